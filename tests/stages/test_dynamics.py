"""From what workers saw, to a file of scores for each shard."""

import numpy as np
import pytest

from razor_ray import schema
from razor_ray.config import InputConfig
from razor_ray.dynamics import Dynamics, merge
from razor_ray.run_store import RunStore, write_table
from razor_ray.stages import catalog as catalogs
from razor_ray.stages.dynamics import gather, to_table
from razor_ray.stages.per_shard import PerShard
from tests.conftest import write_shards

pytestmark = pytest.mark.usefixtures("ray_session")


def test_gather_sorts_what_workers_saw_by_shard(tmp_path, digits):
    catalog = catalogs.build(InputConfig(path=str(write_shards(digits.slice(0, 30), tmp_path / "in", 3))))
    store = RunStore(str(tmp_path / "run"))
    ids = np.concatenate([schema.sample_ids(shard, 0, 10) for shard in range(2)])  # nothing of the third shard
    rng = np.random.default_rng(0)
    p = rng.random((2, 20))
    owner = rng.integers(0, 2, (2, 20))  # samples change workers between epochs
    files = []
    for rank in range(2):
        seen = []
        for epoch in range(2):
            mine = owner[epoch] == rank
            row = p[epoch, mine]
            seen.append(Dynamics.of_epoch(epoch, ids[mine], el2n=row, p=row, margin=row, correct=row > 0.5))
        files.append(str(tmp_path / f"{rank}.parquet"))
        write_table(store.filesystem, files[-1], to_table(merge(seen)))
    gather(catalog, files, store, "proxy/dynamics")
    reader = PerShard(store.filesystem, store.path("proxy", "dynamics"))
    for shard in (1, 0):
        rows = slice(10 * shard, 10 * shard + 10)
        is_there, found = reader.look_up(ids[rows], ["mean_p", "dyn_unc"])
        assert is_there.all()
        np.testing.assert_allclose(found["mean_p"], p.mean(axis=0)[rows], rtol=1e-6)
        np.testing.assert_allclose(found["dyn_unc"], p.std(axis=0)[rows], atol=1e-6)
    is_there, found = reader.look_up(schema.sample_ids(2, 0, 10), ["mean_p"])
    assert not is_there.any()
    assert not found["mean_p"].any()
    # Some of a shard, in any order, and some that are not known.
    is_there, found = reader.look_up(np.array([7, 3, 10, 2**31]), ["mean_p"])
    assert is_there.tolist() == [True, True, False, False]
    np.testing.assert_allclose(found["mean_p"], [*p.mean(axis=0)[[7, 3]], 0, 0], rtol=1e-6)
