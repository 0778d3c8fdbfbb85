"""What a run takes from its cluster: devices, workers, and errors of tasks as they were raised."""

import numpy as np
import pytest
import ray

from razor_ray.config import ScoreConfig
from razor_ray.stages import runtime
from razor_ray.stages.exchange import even_partitions
from razor_ray.stages.score import _resources, _room
from razor_ray.stages.train import _cpus_per_worker

GIVEN = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture
def cluster(monkeypatch):
    """Pretends a cluster's resources; a fault in them would cost money on a real one."""

    def pretend(resources, is_private=False):
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(runtime, "_private", is_private)

    return pretend


def test_gpus_are_used_if_there_are_any(cluster):
    cluster(GIVEN)
    assert [runtime.num_gpus(device) for device in ("auto", "cpu", "cuda")] == [2, 0, 2]
    cluster({"CPU": 8.0})
    assert [runtime.num_gpus(device) for device in ("auto", "cpu")] == [0, 0]


def test_cuda_is_brought_by_an_autoscaler_but_not_to_one_machine(cluster):
    cluster({"CPU": 8.0})
    assert runtime.num_gpus("cuda") == 1
    cluster({"CPU": 8.0}, is_private=True)
    with pytest.raises(ValueError, match="this machine has no GPU"):
        runtime.num_gpus("cuda")


def test_actors_on_gpus(cluster):
    cluster(GIVEN)
    found = _resources(ScoreConfig(), "auto", 224)
    assert (found.num_workers, found.num_gpus, found.batch_size, found.precision) == (2, 1.0, 256, "bf16")
    assert _resources(ScoreConfig(num_workers=1), "auto", 224).num_gpus == 1.0
    assert _resources(ScoreConfig(num_workers=4), "auto", 224).num_gpus == 0.5  # two to a GPU
    assert _resources(ScoreConfig(num_workers=3), "auto", 224).num_gpus == 0.5  # of 2/3 the third would find no GPU
    cluster({"CPU": 8.0})
    assert _resources(ScoreConfig(num_workers=4), "cuda", 224).num_gpus == 1.0  # to come, and not to be shared


def test_actors_on_cpus(cluster):
    cluster({"CPU": 8.0})
    found = _resources(ScoreConfig(), "auto", 32)
    assert (found.num_workers, found.num_cpus, found.num_gpus, found.precision) == (8, 1.0, 0.0, "float32")
    assert _resources(ScoreConfig(num_workers=100), "auto", 32).num_workers == 100  # an autoscaler may bring them
    assert [_resources(ScoreConfig(), "cpu", size).batch_size for size in (32, 64, 65, 224)] == [128, 128, 32, 32]
    assert _resources(ScoreConfig(batch_size=7), "cpu", 224).batch_size == 7
    cluster({"CPU": 8.0}, is_private=True)
    assert _resources(ScoreConfig(num_workers=100), "auto", 32).num_workers == 8  # one machine does not grow


def test_actors_that_begin_together_find_room(cluster):
    cluster(GIVEN)
    assert _room(_resources(ScoreConfig(), "cpu", 32)) == 8
    assert [_room(_resources(ScoreConfig(num_workers=number), "auto", 32)) for number in (1, 2, 3, 4)] == [2, 2, 4, 4]
    cluster({"CPU": 3.0, "GPU": 4.0})
    assert _room(_resources(ScoreConfig(), "auto", 32)) == 3  # each takes a CPU too
    cluster({"CPU": 1.0})
    assert _room(_resources(ScoreConfig(num_workers=4), "cuda", 32)) == 1  # the GPUs are yet to come


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (2, 2), (4, 2), (8, 7), (8, 16)])
def test_workers_leave_a_cpu_to_decode_with(cluster, cpus, workers):
    # A decoding task takes half a CPU; with none left the training would wait for images for ever.
    cluster({"CPU": float(cpus)})
    assert 0 < _cpus_per_worker(workers) <= 1
    assert cpus - workers * _cpus_per_worker(workers) >= 0.5 - 1e-9


def test_partitions_are_even():
    # Largest first to the emptiest: 9 | 7 | 6+2 | 5+4 is as even as it gets.
    found = even_partitions(np.array([2, 9, 4, 7, 6, 5]), 4)
    loads = [sum(size for size, part in zip([2, 9, 4, 7, 6, 5], found, strict=True) if part == p) for p in range(4)]
    assert sorted(loads) == [7, 8, 9, 9]


def fail(error):
    """A task that raises."""
    raise error


def double(number):
    """A task that gives something back."""
    return 2 * number


@pytest.mark.usefixtures("ray_session")
def test_errors_of_tasks_come_back_as_they_were_raised():
    with pytest.raises(ValueError, match="^shard 7 is bad$"):
        list(runtime.run_tasks(fail, [(ValueError("shard 7 is bad"),)], name="fail"))
    with pytest.raises(OSError, match="No space left") as raised:
        list(runtime.run_tasks(fail, [(OSError(28, "No space left on device", "/run"),)], name="fail"))
    assert (raised.value.errno, raised.value.filename) == (28, "/run")


@pytest.mark.usefixtures("ray_session")
def test_tasks_are_told_apart_by_their_index():
    calls = [(number,) for number in (9, -4, 25, 0)]
    assert dict(runtime.run_tasks(double, calls, name="double")) == {0: 18, 1: -8, 2: 50, 3: 0}


@pytest.mark.usefixtures("ray_session")
def test_energy_of_every_node_is_asked_for():
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert runtime.energy_counters().keys() == nodes
