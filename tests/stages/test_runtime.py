"""What a run takes from its cluster: devices, workers, and errors of tasks as they were raised."""

import inspect
import os
import signal
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pyarrow.fs as pafs
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from razor_ray.config import InputConfig, ScoreConfig, TrainConfig, check_keep_fraction
from razor_ray.interrupt import StoppedError
from razor_ray.run_store import RunStore
from razor_ray.stages import exchange, runtime
from razor_ray.stages import train as training
from razor_ray.stages.exchange import even_partitions
from razor_ray.stages.score import _resources, _room
from razor_ray.stages.train import _cpus_per_worker, _worker_resources

GIVEN = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture
def cluster(monkeypatch):
    """Pretends a cluster's resources; a fault in them would cost money on a real one."""

    def pretend(resources, is_private=False):
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(runtime, "_private", is_private)

    return pretend


class FakeNode:
    """Starts, as Ray's own does, in its constructor, which raises if that takes too long."""

    left: ClassVar[list["FakeNode"]] = []

    def __init__(self, message: str | None) -> None:
        if message:
            self.left.append(self)
            raise Exception(message)

    def kill_all_processes(self, check_alive: bool, allow_graceful: bool) -> None:
        self.left.remove(self)


@pytest.mark.parametrize("num_late", [0, 1, 3, 4, 9])
def test_a_ray_that_starts_late_is_started_again(monkeypatch, num_late):
    # What this rests on in Ray, which promises none of it.
    assert runtime._LATE in inspect.getsource(ray._private.node.Node.__init__).replace('" \n', "")
    assert callable(ray._private.node.Node.kill_all_processes)
    FakeNode.left.clear()
    started = []

    def init(address: str, **options: object) -> str:
        assert (address, options["include_dashboard"]) == ("local", True)
        started.append(address)
        FakeNode("The current node timed out during startup. This could" if len(started) <= num_late else None)
        return "context"

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if num_late < 4:
        assert runtime._start(dashboard=True) == "context"
    else:
        with pytest.raises(StoppedError, match=r"start, 4 times\. .* are in .*/ray\. .* timed out during startup"):
            runtime._start(dashboard=True)
    assert len(started) == min(num_late + 1, 4)
    assert not FakeNode.left  # what did not start in time is not left beside what does


def test_a_ray_that_cannot_start_says_why(monkeypatch):
    started = []

    def init(**options: object) -> None:
        started.append(options)
        raise ValueError("no such thing")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ValueError, match="no such thing"):
        runtime._start(dashboard=False)
    assert len(started) == 1


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


@pytest.mark.parametrize("is_private", [True, False])
def test_actors_on_gpus(cluster, is_private):
    cluster(GIVEN, is_private)
    found = _resources(ScoreConfig(), "auto", 224)
    assert (found.num_workers, found.num_gpus, found.batch_size, found.precision) == (2, 1.0, 256, "bf16")
    assert _resources(ScoreConfig(num_workers=1), "auto", 224).num_gpus == 1.0
    # On one machine two to a GPU; of 2/3 the third would find none. On a cluster more may come, if more are asked for.
    for num_workers in (3, 4):
        found = _resources(ScoreConfig(num_workers=num_workers), "auto", 224)
        assert (found.num_workers, found.num_gpus) == (num_workers, 0.5 if is_private else 1.0)


def test_gpus_that_are_still_to_come_are_not_shared(cluster):
    cluster({"CPU": 8.0})
    assert _resources(ScoreConfig(num_workers=4), "cuda", 224).num_gpus == 1.0


@pytest.mark.parametrize(("gpu", "precision"), [("T4", "float32"), ("V100", "float32"), ("A10G", "bf16")])
def test_gpus_without_bf16_are_not_asked_for_it(cluster, gpu, precision):
    cluster(GIVEN | {f"accelerator_type:{gpu}": 1.0, "accelerator_type:H100": 1.0})
    assert _resources(ScoreConfig(), "auto", 224).precision == precision
    assert _resources(ScoreConfig(precision="bf16"), "auto", 224).precision == "bf16"
    assert _resources(ScoreConfig(), "cpu", 224).precision == "float32"


@pytest.mark.parametrize(
    ("nodes", "num_workers", "gpu", "expected"),
    [
        # A head without GPUs and a node with one; four with one each beside eight of CPUs only; one with eight GPUs.
        ([(8, 0), (16, 1)], 1, 1.0, 16),
        ([(0, 0), *[(16, 0)] * 8, *[(16, 1)] * 4], 4, 1.0, 16),
        ([(64, 8)], 8, 1.0, 8),
        ([(64, 8)], 16, 0.5, 4),
        ([(4, 8)], 8, 1.0, 1),
        # Without: as many as all can have at once.
        ([(16, 0)] * 4, 1, 0, 16),
        ([(0, 0), (16, 0), (4, 0)], 2, 0, 8),
        ([(2, 0), (64, 0), (64, 0)], 4, 0, 32),  # a small head decides nothing
        ([(0, 0), (16, 0), (16, 0)], 1, 1.0, 1),  # GPUs that are still to come
        ([(8, 0), (4, 2)], 1, 1.0, 4),
        ([(2, 0)], 2, 0, 1),
        ([(2, 0)], 1, 0, 2),
        ([(2, 0)], 5, 0, 1),
    ],
)
def test_no_task_asks_for_more_cpus_than_a_node_has(monkeypatch, cluster, nodes, num_workers, gpu, expected):
    cluster({"CPU": float(sum(cpus for cpus, _ in nodes)), "GPU": float(sum(gpus for _, gpus in nodes))})
    shapes = [{"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {}) for cpus, gpus in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": shape} for shape in shapes])
    assert runtime.cpus_each(num_workers, gpu) == expected


@pytest.mark.usefixtures("ray_session")
def test_what_this_node_has(monkeypatch):
    assert (runtime.of_this_node("CPU"), runtime.of_this_node("GPU")) == (runtime.num_cpus(), 1)
    assert runtime.smallest_object_store() == ray.cluster_resources()["object_store_memory"]
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        {"Alive": True, "NodeID": here, "Resources": {"object_store_memory": 30.0}},  # of the driver, without CPUs
        {"Alive": True, "NodeID": "a", "Resources": {"CPU": 4.0, "GPU": 2.0, "object_store_memory": 20.0}},
        {"Alive": True, "NodeID": "b", "Resources": {"CPU": 0.0, "object_store_memory": 10.0}},  # at which none works
        {"Alive": False, "NodeID": "c", "Resources": {}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert runtime.smallest_object_store() == 20
    assert (runtime.of_this_node("CPU"), runtime.of_this_node("GPU")) == (1, 1)


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
    assert [_room(_resources(ScoreConfig(num_workers=number), "auto", 32)) for number in (1, 2, 3, 4)] == [2] * 4
    cluster(GIVEN, is_private=True)
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


GIB = 2**30


def node(cpus, gib, gpus=0):
    """A shape of a node."""
    return {"CPU": float(cpus), "GPU": float(gpus), "memory": float(gib * GIB)}


@pytest.mark.parametrize(
    ("shapes", "request_of_one", "at_most", "expected_gib"),
    [
        # Four fifths of what each of four has of 16 GiB, of two, and of as many as there are of them.
        ([node(4, 16)], {"CPU": 1}, None, 3.2),
        ([node(4, 16)], {"CPU": 2}, None, 6.4),
        ([node(4, 16)], {"CPU": 1}, 1, 12.8),
        ([node(4, 1000)], {"CPU": 1}, None, 20),  # no more than it takes
        # Only nodes that can hold one count, of these the smallest, and one that does not tell its memory has none.
        ([node(0, 8), node(4, 16)], {"CPU": 1}, None, 3.2),
        ([node(8, 64), node(8, 16, gpus=4)], {"CPU": 1, "GPU": 1}, 4, 3.2),
        ([node(8, 64), node(8, 16, gpus=4)], {"CPU": 1, "GPU": 0.5}, 4, 3.2),
        ([node(8, 64), node(8, 16)], {"CPU": 1, "GPU": 0}, None, 1.6),
        ([node(8, 64), {"CPU": 8.0, "GPU": 1.0}], {"CPU": 1, "GPU": 1}, 1, 0),
        ([node(8, 64)], {"CPU": 1, "GPU": 1}, 1, 0),
        ([], {"CPU": 1}, None, 0),
    ],
)
def test_declaring_memory_makes_no_cluster_too_small(monkeypatch, shapes, request_of_one, at_most, expected_gib):
    monkeypatch.setattr(runtime, "node_shapes", lambda: (shapes, True))
    declared = runtime.declared_memory(20 * GIB, request_of_one, at_most)
    assert declared == pytest.approx(expected_gib * GIB, abs=1)
    for shape in shapes:  # as many fit as do without
        rooms = [int(shape.get(name, 0) / need) for name, need in request_of_one.items() if need]
        assert shape.get("memory", 0) >= declared * min(*rooms, at_most or 99)


@pytest.mark.parametrize(
    ("held_gib", "cpus", "gib", "declared_gib"),
    # Two gibibytes of its own and the images that it holds, but no more than four fifths of the share of one of two.
    [(0, 8, 128, 2.0), (3, 8, 128, 5.0), (60, 8, 128, 51.2), (0, 2, 2, 0.8), (0, 8, 0, None)],
)
def test_training_workers_declare_their_memory(monkeypatch, cluster, held_gib, cpus, gib, declared_gib):
    cluster({"CPU": float(cpus)})
    monkeypatch.setattr(runtime, "node_shapes", lambda: ([node(cpus, gib)], True))
    found = _worker_resources(2, 0, held_gib * GIB)
    expected = {"CPU": min(1.0, (cpus - 1) / 2)}
    if declared_gib is not None:
        expected["memory"] = pytest.approx(declared_gib * GIB, abs=1)
    assert found == expected
    assert _worker_resources(2, 1)["GPU"] == 1


def test_training_reserves_what_its_workers_declare(monkeypatch, cluster, tmp_path):
    """The request that Ray Train gets, for images that are kept and for such as are streamed."""
    cluster({"CPU": 8.0})
    monkeypatch.setattr(runtime, "node_shapes", lambda: ([node(8, 128)], True))
    asked = []

    class Trainer:
        def __init__(self, *_, scaling_config, **options):
            asked.append(scaling_config.resources_per_worker["memory"])

        def fit(self):
            (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1, "num_samples": 2000, "train_loss": 0.1}\n')

    monkeypatch.setattr(training.ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(training, "_train_datasets", lambda *_: {})
    files = SimpleNamespace(filesystem=pafs.LocalFileSystem())
    catalog = SimpleNamespace(num_samples=2000, class_names=("a", "b"), source=files, image_sides=(64, 64))
    monkeypatch.setattr(training, "choose_size", lambda *_: 64)
    source, usual = InputConfig(path="in"), {"num_workers": 2, "batch_size": 128, "augment": "none"}
    for cache_gib in (4.0, 0.0):
        config = TrainConfig(input=source, output="out", cache_gib=cache_gib, **usual)
        training.train(config, catalog, None, RunStore(str(tmp_path)), "run", "train")  # type: ignore[arg-type]
    # A worker's 1,000 images of 64 x 64 x 3 bytes, or 20 batches of 64.
    assert asked == [2 * GIB + 1000 * 64 * 64 * 3, 2 * GIB + 20 * 64 * 64 * 64 * 3]


@given(
    sizes=st.lists(st.integers(0, 10_000), min_size=1, max_size=200),
    rows_per_partition=st.integers(1, 5000),
    usual=st.integers(1, 20),
)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_partitions_grow_with_the_largest_class_only(sizes, rows_per_partition, usual):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "_ROWS_PER_PARTITION", rows_per_partition)
        number = exchange.num_partitions(len(sizes), sum(sizes), usual)
    found = even_partitions(np.array(sizes), number)
    assert found.min() >= 0 and found.max() < number <= len(sizes)
    # Whoever came last came to the emptiest, which had no more than an even share.
    loads = np.bincount(found, sizes, minlength=number)
    even_share = rows_per_partition if number < len(sizes) else 0
    assert loads.max() <= even_share + max(sizes)


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
    with pytest.raises(
        ValueError, match=r"^keep_fraction must be in \(0, 1\], got 2"
    ):  # as ours says it, without stack
        list(runtime.run_tasks(check_keep_fraction, [(2,)], name="check"))
    with pytest.raises(ValueError, match="Error: shard 7 is bad$") as other:  # of other code, with where it was
        list(runtime.run_tasks(fail, [(ValueError("shard 7 is bad"),)], name="fail"))
    assert "in fail" in str(other.value)
    with pytest.raises(OSError, match="No space left") as raised:
        list(runtime.run_tasks(fail, [(OSError(28, "No space left on device", "/run"),)], name="fail"))
    assert (raised.value.errno, raised.value.filename) == (28, "/run")


@pytest.mark.usefixtures("ray_session")
def test_tasks_are_told_apart_by_their_index():
    calls = [(number,) for number in (9, -4, 25, 0)]
    assert dict(runtime.run_tasks(double, calls, name="double")) == {0: 18, 1: -8, 2: 50, 3: 0}


def declared():
    """A task that gives back the memory that it declared."""
    return ray.get_runtime_context().get_assigned_resources().get("memory", 0)


@pytest.mark.usefixtures("ray_session")
def test_each_call_declares_its_own_memory():
    told = dict(runtime.run_tasks(declared, [(), (), ()], name="declared", memory=[2**20, 0, 2**22]))
    assert told == {0: 2**20, 1: 0, 2: 2**22}


def count_up(first, last, error=None):
    """A task that gives back one number after another."""
    for offset in range(last - first):
        yield first + offset
    if error:
        raise error


@pytest.mark.usefixtures("ray_session")
def test_items_of_generators_come_in_their_order():
    calls = [(0, 3), (10, 10), (20, 24)]  # one of them makes nothing
    found = list(runtime.run_tasks(count_up, calls, name="count"))
    assert sorted(found) == [(0, 0), (0, 1), (0, 2), (2, 20), (2, 21), (2, 22), (2, 23)]
    for index in (0, 2):
        items = [item for of, item in found if of == index]
        assert items == sorted(items)


@pytest.mark.usefixtures("ray_session")
def test_an_error_comes_after_the_items_before_it():
    items = runtime.run_tasks(count_up, [(5, 7, ValueError("shard 7 is bad"))], name="count")
    assert [next(items), next(items)] == [(0, 5), (0, 6)]
    with pytest.raises(ValueError, match="Error: shard 7 is bad$"):
        next(items)


def wait_between(folder):
    """A task whose second item comes when its first has arrived."""
    yield "first"
    deadline = time.monotonic() + 60
    while not (folder / "arrived").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield "second" if (folder / "arrived").exists() else "too late"


@pytest.mark.usefixtures("ray_session")
def test_no_more_calls_are_under_way_than_asked(tmp_path):
    calls = [(tmp_path, number) for number in range(6)]
    assert sorted(found for _, found in runtime.run_tasks(count_others, calls, name="count", at_most=1)) == [0] * 6


def count_others(folder, number):
    """A task that tells how many others are under way."""
    (folder / f"at work {number}").touch()
    time.sleep(0.2)
    others = len(list(folder.glob("at work *"))) - 1
    (folder / f"at work {number}").unlink()
    return others


@pytest.mark.usefixtures("ray_session")
def test_an_item_comes_while_its_task_goes_on(tmp_path):
    items = runtime.run_tasks(wait_between, [(tmp_path,)], name="wait")
    assert next(items) == (0, "first")
    (tmp_path / "arrived").touch()
    assert list(items) == [(0, "second")]


def die_at_first(folder, num_deaths, error=None):
    """A task whose worker is killed after two items, the first times; then it makes three, or fails at once."""
    attempt = len(list(folder.glob("attempt *")))
    (folder / f"attempt {attempt}").touch()
    if attempt >= num_deaths and error:
        raise error
    yield "a"
    yield "b"
    if attempt < num_deaths:
        deadline = time.monotonic() + 60
        while not (folder / "arrived").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    yield attempt


def stay_at_work(folder, number):
    """A task that heeds no interrupt; the first ends when another is at work."""
    path = folder / f"at work {number}"
    for _ in range(600):
        with suppress(KeyboardInterrupt):
            if number == 0 and list(folder.iterdir()):
                return
            if number:
                path.touch()
            time.sleep(0.1)


def stay_at_work_on_items(folder, number):
    yield "first"
    stay_at_work(folder, number)
    yield "last"


def interrupt_at_once(ref):
    raise KeyboardInterrupt


@pytest.mark.parametrize("task", [stay_at_work, stay_at_work_on_items])
@pytest.mark.usefixtures("ray_session")
def test_tasks_that_nobody_waits_for_have_ended(tmp_path, task):
    items = runtime.run_tasks(task, [(tmp_path, number) for number in range(2)], name="stay")
    while next(items) not in ((0, None), (0, "last")):
        pass
    items.close()
    check_nobody_is_at_work(tmp_path)


@pytest.mark.usefixtures("ray_session")
def test_nor_does_one_go_on_whose_item_is_fetched(tmp_path, monkeypatch):
    items = runtime.run_tasks(stay_at_work_on_items, [(tmp_path, 1)], name="stay")
    monkeypatch.setattr(runtime, "_get", interrupt_at_once)
    with pytest.raises(KeyboardInterrupt):
        next(items)
    check_nobody_is_at_work(tmp_path)


def fail_as_another_ends(folder, number):
    if number == 0:
        while not (folder / "begun").exists():
            time.sleep(0.01)
        raise ValueError("shard 0 is bad")
    (folder / "begun").touch()
    time.sleep(0.5)
    (folder / "ended").touch()


@pytest.mark.usefixtures("ray_session")
def test_a_task_that_is_about_to_end_does(tmp_path, monkeypatch):
    # Ray aborts this process if it cancels a task in the moment in which that ends.
    monkeypatch.setattr(runtime, "_SECONDS_TO_FINISH", 60.0)
    with pytest.raises(ValueError, match="shard 0 is bad"):
        list(runtime.run_tasks(fail_as_another_ends, [(tmp_path, number) for number in range(2)], name="fail"))
    assert (tmp_path / "ended").exists()


def wait_for(path):
    yield "first"
    while not path.exists():
        time.sleep(0.01)
    path.with_name("ended").touch()


@pytest.mark.usefixtures("ray_session")
def test_tasks_end_with_a_session_that_was_begun_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_opened", True)
    items = runtime.run_tasks(wait_for, [(tmp_path / "signal",)], name="wait")
    next(items)
    started = time.monotonic()
    items.close()
    assert time.monotonic() - started < runtime._SECONDS_TO_FINISH  # which is waited for where they are ended
    (tmp_path / "signal").touch()
    while not (tmp_path / "ended").exists():
        time.sleep(0.01)


def check_nobody_is_at_work(folder):
    for path in folder.iterdir():
        path.unlink()
    time.sleep(1)
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("ray_session")
def test_a_generator_whose_worker_dies_is_called_again(tmp_path):
    items = runtime.run_tasks(die_at_first, [(tmp_path, 1)], name="die")
    assert [next(items), next(items)] == [(0, "a"), (0, "b")]
    (tmp_path / "arrived").touch()
    assert list(items) == [(0, 1)]  # of the second call


@pytest.mark.usefixtures("ray_session")
def test_a_generator_whose_workers_die_for_ever_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_MOST_LOST_WORKERS", 1)
    (tmp_path / "arrived").touch()
    items = runtime.run_tasks(die_at_first, [(tmp_path, 9)], name="die")
    with pytest.raises(ray.exceptions.RayError, match="died"):
        list(items)
    assert len(list(tmp_path.glob("attempt *"))) == 2


@pytest.mark.usefixtures("ray_session")
def test_an_error_of_a_second_call_is_raised(tmp_path):
    (tmp_path / "arrived").touch()
    items = runtime.run_tasks(die_at_first, [(tmp_path, 1, ValueError("out of memory"))], name="die")
    with pytest.raises(ValueError, match="Error: out of memory$"):
        list(items)


@pytest.mark.usefixtures("ray_session")
def test_energy_of_every_node_is_asked_for():
    nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert runtime.energy_counters().keys() == nodes


def test_while_ray_starts_it_can_be_stopped_and_its_workers_will_wait_asleep(monkeypatch):
    seen = {}

    def start(dashboard):
        seen.update(policy=os.environ["OMP_WAIT_POLICY"], on_sigterm=signal.getsignal(signal.SIGTERM))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray's core puts its own in the place of any
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(runtime.ray, "shutdown", lambda: None)
    monkeypatch.setattr(runtime, "_start", start)
    monkeypatch.setattr(runtime, "_private", False)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt, match=str(int(signal.SIGTERM))), runtime.session():
            assert seen == {"policy": "PASSIVE", "on_sigterm": runtime._stop}
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
