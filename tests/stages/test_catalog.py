"""The catalog: what a later attempt finds changed, and what all shards say together."""

from __future__ import annotations

import pytest

from razor_ray import sources
from razor_ray.config import InputConfig
from razor_ray.run_store import RunStore
from razor_ray.stages import catalog as catalogs
from tests.conftest import write_folders


def assemble(config: InputConfig) -> catalogs.Catalog:
    """What `build` makes, without its tasks."""
    source = sources.find(config)
    facts = [sources.inspect(source, shard, config) for shard in range(len(source.paths))]
    return catalogs._assemble(source, config, facts, None)


def test_a_file_that_moved_is_another_input(tmp_path, digits):
    folder = write_folders(digits.slice(0, 40), tmp_path / "in")
    config, store = InputConfig(path=str(folder)), RunStore(str(tmp_path / "run"))
    catalogs.write(assemble(config), store)
    assert catalogs.read(config, store).num_samples == 40
    moved = sorted((folder / "3").iterdir())[0]
    moved.rename(folder / "7" / moved.name)  # as many files, as large, and the first is the first
    with pytest.raises(sources.InputError, match="are not those that .* was begun with"):
        catalogs.read(config, store)
