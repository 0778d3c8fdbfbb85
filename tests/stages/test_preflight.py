"""What is refused before anything costly, with the arithmetic."""

import os
import shutil
import tarfile
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray

from razor_ray.config import InputConfig, ScoreConfig, TrainConfig
from razor_ray.run_store import RunStore
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import decode, preflight, runtime, train_worker
from razor_ray.stages import score as scoring
from razor_ray.stages import train as training
from tests.conftest import write_shards

GIB = 2**30


def shapes(monkeypatch, *found, is_complete=True):
    monkeypatch.setattr(runtime, "node_shapes", lambda: (list(found), is_complete))


def test_a_request_that_no_node_can_hold(monkeypatch):
    shapes(monkeypatch, {"CPU": 4.0, "memory": 8.0 * GIB}, {"CPU": 0.0, "GPU": 2.0, "memory": 8.0 * GIB})
    preflight.check_fits({"CPU": 4, "memory": 8 * GIB}, "an actor", "Mend.")
    with pytest.raises(ValueError, match="on one node") as raised:  # together is not on one node
        preflight.check_fits({"CPU": 1, "GPU": 1, "memory": 2 * GIB}, "an actor", "Mend.")
    assert str(raised.value) == (
        "an actor needs 1 CPU, 1 GPU and 2.0 GiB on one node, but the nodes have 0 CPU, 2 GPU and 8.0 GiB; "
        "4 CPU, 0 GPU and 8.0 GiB. Mend."
    )
    shapes(monkeypatch, {"CPU": 0.0}, is_complete=False)
    preflight.check_fits({"CPU": 64}, "an actor", "Mend.")  # an autoscaler that does not say may bring anything


def test_more_training_workers_than_gpus(monkeypatch):
    shapes(monkeypatch, {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(runtime, "is_private", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    config = TrainConfig(input=InputConfig(path="in"), output="out", num_workers=3)
    with pytest.raises(ValueError, match=r"3 workers need a GPU each, but there are 2. Pass --num-workers 2"):
        training.check_resources(config, 100)
    config = TrainConfig(input=InputConfig(path="in"), output="out")
    training.check_resources(config, 100)
    with pytest.raises(ValueError, match="1 samples are too few to train on with 1 workers"):
        training.check_resources(config, 1)


def test_a_scoring_actor_beside_a_gpu_without_a_cpu(monkeypatch):
    shapes(monkeypatch, {"CPU": 0.0, "GPU": 1.0, "memory": 64.0 * GIB}, {"CPU": 8.0, "memory": 64.0 * GIB})
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    nodes = "0 CPU, 1 GPU and 64.0 GiB; 8 CPU, 0 GPU and 64.0 GiB"
    with pytest.raises(ValueError, match=f"a scoring actor needs 1 CPU, 1 GPU on one node, but the nodes have {nodes}"):
        scoring.check_resources(ScoreConfig(), "auto")
    scoring.check_resources(ScoreConfig(), "cpu")


def test_the_autoscalers_nodes_count(monkeypatch):
    monkeypatch.setattr(runtime, "is_private", lambda: False)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.0}}])
    groups = [
        SimpleNamespace(resources={"CPU": 16}, max_count=8),
        SimpleNamespace(resources={"CPU": 16, "GPU": 1}, max_count=0),
    ]
    state = ray._private.state.state
    monkeypatch.setattr(state, "get_cluster_config", lambda: SimpleNamespace(node_group_configs=groups), raising=False)
    assert runtime.node_shapes() == ([{"CPU": 0.0}, {"CPU": 16}], True)
    monkeypatch.setattr(state, "get_cluster_config", lambda: None, raising=False)
    assert runtime.node_shapes() == ([{"CPU": 0.0}], False)


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    # 1e6 samples with 1024 numbers of two bytes and 100 bytes of their own: 2.0 GiB; half of 10 GiB of images: 5 GiB.
    catalog = SimpleNamespace(num_samples=10**6, source=SimpleNamespace(sizes=(4 * GIB, 6 * GIB)))
    store = RunStore(str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6.9 * GIB))
    said = r"takes about 7.0 GiB in \S+ \(2.0 of scores, 5.0 of images\), but 6.9 GiB are free there or taken"
    with pytest.raises(ValueError, match=said):
        preflight.check_space(catalog, 1024, 0.5, store)  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7.1 * GIB))
    preflight.check_space(catalog, 1024, 0.5, store)  # type: ignore[arg-type]
    # A run that goes on has some of it already: 0.2 GiB of scores (a file with a hole), whose place is taken.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6.9 * GIB))
    store.write_bytes("_staging/scores/part.parquet", b"")
    os.truncate(store.path("_staging/scores/part.parquet"), GIB // 5)
    preflight.check_space(catalog, 1024, 0.5, store)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_session")
def test_an_output_that_cannot_be_written(tmp_path, monkeypatch):
    store, source = RunStore(str(tmp_path / "run")), SimpleNamespace()
    preflight.check_places(store, source)  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "run") == []

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store, "write_bytes", refuse)
    with pytest.raises(ValueError, match=r"cannot write to .*Permission denied. Choose another --output"):
        preflight.check_places(store, source)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray_session")
def test_every_format_is_seen_where_it_lies(tmp_path, digits):
    store = RunStore(str(tmp_path / "run"))
    store.write_bytes("_preflight/token", b"token")
    nodes = {node["NodeID"]: "host-a" for node in ray.nodes()}
    write_shards(digits.slice(0, 20), tmp_path / "parquet", 2)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as tar:
        tar.add(tmp_path / "parquet" / "train-00000.parquet", "a.jpg")
    for name in ("a", "b"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "folders" / name / f"{number}.png").write_bytes(b"x" * (10 + number))
    for kind in ("parquet", "tars", "folders"):
        source = preflight.sources.find(InputConfig(path=str(tmp_path / kind)))
        preflight._ask_nodes(store, source, nodes, "token")
        shutil.rmtree(tmp_path / kind)
        with pytest.raises(ValueError, match=r"1 of 1 nodes do not see the input"):
            preflight._ask_nodes(store, source, nodes, "token")


@pytest.mark.usefixtures("ray_session")
def test_a_node_that_came_later_and_sees_nothing_refuses_to_work(tmp_path, digits):
    """As the autoscaler brings it: nobody asked it, and its own disk would be taken for the input or the output."""
    catalog = catalogs.build(InputConfig(path=str(write_shards(digits.slice(0, 40), tmp_path / "in", 2))))
    elsewhere = replace(catalog, source=replace(catalog.source, base=str(tmp_path / "none")))
    pieces = catalogs.pieces(catalog, max_rows=64, batch_size=32)
    store = RunStore(str(tmp_path / "run"))
    store.write_bytes("proxy/model.safetensors", b"weights")
    folders = {name: store.path(name) for name in ("scores", "quarantine")}
    resources = scoring.Resources(1, 1.0, 0.0, 32, "float32")
    batch = {field.name: np.array([getattr(pieces[0], field.name)]) for field in fields(pieces[0])}
    proxy = scoring.proxy_in_store(store, "resnet9", 10, 8)
    blind = scoring.proxy_in_store(RunStore(str(tmp_path / "other")), "resnet9", 10, 8)
    for of, given, place in ((elsewhere, proxy, "input"), (catalog, blind, "output")):
        scorer = scoring.Scorer(of, given, resources, store.filesystem, folders, "0")
        with pytest.raises(ValueError, match=rf"node \S+ does not see the {place} .* Give an --{place} that all nodes"):
            scorer(batch)
    with pytest.raises(ValueError, match=r"node \S+ does not see the input"):
        decode.dataset(elsewhere, [pieces], 8).take(1)
    task = SimpleNamespace(filesystem=store.filesystem, folder=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"node \S+ does not see the output"):
        train_worker.work({"task": task})
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("ray_session")
def test_nodes_that_do_not_see_a_place(tmp_path, monkeypatch):
    # A node that has a disk of its own, played by one that looks at another folder.
    store = RunStore(str(tmp_path / "run"))
    (tmp_path / "in.parquet").write_bytes(b"12345")
    source = preflight.sources.Source(store.filesystem, str(tmp_path), ("in.parquet",), (5,))
    nodes = {node["NodeID"]: "host-a" for node in ray.nodes()}
    store.write_bytes("_preflight/token", b"token")
    preflight._ask_nodes(store, source, nodes, "token")
    with pytest.raises(
        ValueError, match=r"1 of 1 nodes do not see the output \S+ \(host-a\). Give an --output that all"
    ):
        preflight._ask_nodes(store, source, nodes, "other-token")
    elsewhere = preflight.sources.Source(store.filesystem, str(tmp_path / "none"), ("in.parquet",), (5,))
    with pytest.raises(ValueError, match=r"1 of 1 nodes do not see the input \S+none \(host-a\). Give an --input"):
        preflight._ask_nodes(store, elsewhere, nodes, "token")
