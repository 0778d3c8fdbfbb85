"""Scoring: the numbers against a plain loop, bit for bit at any number of actors, and what becomes of bad images."""

import dataclasses
import json
import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from razor_ray import hardness, images, model, schema, sources, transforms
from razor_ray.config import InputConfig, PruneConfig, ScoreConfig
from razor_ray.heap import freed_memory_kept
from razor_ray.interrupt import StoppedError
from razor_ray.run_store import RunStore, write_table
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import ingest, quarantine, runtime, weigh
from razor_ray.stages import score as scoring
from razor_ray.stages.quarantine import QuarantineError
from razor_ray.stages.sample import sample
from razor_ray.stages.score import Resources, Scorer, proxy_in_store, score
from razor_ray.stages.subset import write_subset
from tests.conftest import png, write_shards, write_tars

pytestmark = pytest.mark.usefixtures("ray_session")


def put_proxy(store: RunStore, num_classes: int = 10) -> torch.nn.Module:
    """A proxy with random weights in the run's folder."""
    torch.manual_seed(0)
    network = model.build("resnet9", num_classes).eval()
    store.write_bytes("proxy/model.safetensors", model.save_weights(network))
    return network


def scored(folder, path, *, num_workers=1, batch_size=32, max_quarantine_fraction=0.01, **settings):
    """Score what lies at `path`; the store, and the scores by sample id."""
    store = RunStore(str(folder))
    put_proxy(store)
    catalog = catalogs.build(InputConfig(path=str(path), **settings))
    config = ScoreConfig(num_workers=num_workers, batch_size=batch_size)
    score(catalog, proxy_in_store(store, "resnet9", 10, 8), config, store, max_quarantine_fraction)
    table = store.read("scores").sort_by("sample_id").combine_chunks()
    return store, schema.check(table, schema.scores(128), "scores")


def scored_here(folder, path, *, batch_size=32, chosen=slice(None), pool=None, **settings):
    """The same by an actor's class in this process, which need not load torch anew: for what an actor does with a
    piece, where pieces go to is not looked at; `chosen` says which, and in which order. Scores by sample id."""
    store = RunStore(str(folder))
    put_proxy(store)
    catalog = catalogs.build(InputConfig(path=str(path), **settings))
    folders = {name: store.begin(name) for name in ("quarantine", "scores")}
    resources = Resources(1, 1.0, 0.0, batch_size, "float32")
    threads, cpus, io_threads = torch.get_num_threads(), pa.cpu_count(), pa.io_thread_count()
    try:
        with freed_memory_kept():  # as the actor has it for its life; here other tests follow
            scorer = Scorer(catalog, proxy_in_store(store, "resnet9", 10, 8), resources, store.filesystem, folders, "0")
            assert (torch.get_num_threads(), pa.cpu_count(), pa.io_thread_count()) == (1, 1, 2)
            pieces = catalogs.pieces(catalog, max_rows=ingest.piece_rows(8, batch_size), batch_size=batch_size)
            scorer.pool = pool
            rows = scorer.score_pieces(pieces[chosen])
            assert [row["num_rows"] for row in rows] == [piece.num_rows for piece in pieces[chosen]]
    finally:
        torch.set_num_threads(threads)
        pa.set_cpu_count(cpus)
        pa.set_io_thread_count(io_threads)
    store.commit("scores", {"num_samples": sum(piece.num_rows for piece in pieces[chosen]), "hardness": "el2n"})
    table = store.read("scores").sort_by("sample_id").combine_chunks()
    return schema.check(table, schema.scores(128), "scores")


def test_agrees_with_a_plain_loop(tmp_path, digits):
    table = scored_here(tmp_path / "run", write_shards(digits, tmp_path / "in", 3))
    network = model.FeaturesAndLogits(put_proxy(RunStore(str(tmp_path / "run"))))
    pixels, reasons = images.decode_batch(digits["image"].to_pylist(), 8)
    assert not any(reasons)
    with torch.inference_mode():
        embedding, logits = network(transforms.normalize(torch.from_numpy(pixels)))
    expected = hardness.all_scores(logits.double(), torch.tensor(digits["label"].to_pylist()))
    for name in schema.SCORE_NAMES:
        np.testing.assert_allclose(table[name], expected[name], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(table["label"], digits["label"])
    np.testing.assert_array_equal(table["predicted"], logits.argmax(1))
    np.testing.assert_array_equal(table["correct"], logits.argmax(1) == torch.tensor(digits["label"].to_pylist()))
    values = table["embedding"].combine_chunks().flatten().to_numpy().reshape(400, -1)
    np.testing.assert_allclose(values, embedding, rtol=2e-3, atol=2e-3)
    # 134, 133 and 133 rows a shard; the key is the place in the input.
    expected_ids = np.concatenate([schema.sample_ids(s, 0, n) for s, n in ((0, 133), (1, 133), (2, 134))])
    np.testing.assert_array_equal(table["sample_id"], expected_ids)
    assert table["key"][133].as_py() == "train-00001.parquet:0"


def test_bit_identical_at_one_and_two_actors_and_in_any_order(tmp_path, digits):
    path = write_shards(digits, tmp_path / "in", 5)
    _, one = scored(tmp_path / "one", path, num_workers=1)
    store, two = scored(tmp_path / "two", path, num_workers=2)
    assert two.equals(one)
    assert scored_here(tmp_path / "backwards", path, chosen=slice(None, None, -1)).equals(one)
    assert store.commit_facts("scores")["decoders"] == images.decoders()  # and so in the manifest


@pytest.mark.parametrize("write", [write_shards, write_tars])
def test_read_and_decoded_ahead_as_for_a_gpu_scores_are_the_same(tmp_path, digits, write):
    encoded = digits["image"].to_pylist()
    encoded[40] = encoded[133] = encoded[399] = b"no image"
    path = write(digits.set_column(0, "image", pa.array(encoded, pa.binary())), tmp_path / "in", 3)
    table = scored_here(tmp_path / "plain", path)
    with ThreadPoolExecutor(3) as pool:
        assert scored_here(tmp_path / "ahead", path, pool=pool).equals(table)
    assert table.num_rows == 397
    files = [sorted((tmp_path / name / "_staging" / "quarantine").iterdir()) for name in ("plain", "ahead")]
    told = [[pq.read_table(file).to_pylist() for file in of] for of in files]
    assert told[0] == told[1] and sum(map(len, told[0])) == 3


@pytest.mark.parametrize(
    ("gpu", "workers", "num_pieces", "per_call", "actors"),
    [(1.0, 2, 1000, 8, 2), (1.0, 4, 40, 2, 4), (0.5, 4, 15, 1, 4), (1.0, 8, 3, 1, 3), (0.0, 4, 1000, 1, 4)],
)
def test_an_actor_with_a_gpu_is_handed_several_pieces(monkeypatch, gpu, workers, num_pieces, per_call, actors):
    asked = {}

    def map_batches(function, **options):
        asked.update(options)
        return SimpleNamespace(iter_rows=lambda: iter([]))

    monkeypatch.setattr(ingest, "dataset", lambda pieces: SimpleNamespace(map_batches=map_batches))
    monkeypatch.setattr(runtime, "num_gpus", lambda device="auto": 8)
    resources = Resources(workers, 1.0, gpu, 32, "float32")
    store = SimpleNamespace(filesystem=None)
    assert not list(scoring._score_pieces([None] * num_pieces, None, None, resources, store, {}, "0"))  # type: ignore[list-item,arg-type]
    assert (asked["batch_size"], asked["compute"].max_size) == (per_call, actors)


@pytest.mark.parametrize(
    ("workers", "num_pieces", "cpus", "sizes"),
    [(8, 20, 8, (1, 8, 8)), (8, 20, 3, (1, 3, 8)), (8, 5, 8, (1, 5, 5)), (100, 200, 8, (1, 8, 100))],
)
def test_the_pool_is_bounded_and_declares_what_it_takes(monkeypatch, workers, num_pieces, cpus, sizes):
    asked = {}

    def map_batches(function, **options):
        asked.update(options, function=function)
        return SimpleNamespace(iter_rows=lambda: iter([]))

    monkeypatch.setattr(ingest, "dataset", lambda pieces: SimpleNamespace(map_batches=map_batches))
    monkeypatch.setattr(runtime, "num_cpus", lambda: cpus)
    monkeypatch.setattr(runtime, "node_shapes", lambda: ([{"CPU": 1.0, "memory": 2.0**30}], True))
    resources = Resources(workers, 1.0, 0.0, 32, "float32")
    store = SimpleNamespace(filesystem=None)
    assert not list(scoring._score_pieces([None] * num_pieces, None, None, resources, store, {}, "0"))  # type: ignore[list-item,arg-type]
    pool = asked["compute"]
    assert (pool.min_size, pool.initial_size, pool.max_size) == sizes
    assert pool.max_tasks_in_flight_per_actor == 2  # one is scored, the next is there
    # One call at a time, and in the main thread: make_callable_class_single_threaded would put it into another.
    assert pool.max_concurrent_calls_per_actor is None and pool.enable_true_multi_threading
    assert (asked["function"], asked["batch_size"]) == (Scorer, 1)
    assert (asked["num_cpus"], asked["num_gpus"], asked["memory"]) == (1.0, None, int(0.8 * 2**30))


class Witness(Scorer):
    """An actor that tells what came to it through the object store, and what it gave to it."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        given = super().__call__(batch)
        came = {name: len(pickle.dumps(values.tolist())) for name, values in batch.items()}
        gave = {name: len(pickle.dumps(values)) for name, values in given.items()}
        return {"witness": [json.dumps({"came": came, "gave": gave})], **given}


def test_no_image_crosses_the_object_store(tmp_path, monkeypatch, digits):
    """Not even encoded: an actor is handed the place of a piece, and reads it. What it gives is counts."""
    rng = np.random.default_rng(0)
    noise = [png(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(64)]  # 5 KB each
    noise[5] = b"no image"
    table = digits.slice(0, 64).set_column(0, "image", pa.array(noise, pa.binary()))
    path = write_shards(table, tmp_path / "in", 2)
    told, score_pieces = [], scoring._score_pieces

    def witnessed(*given):
        for row in score_pieces(*given):
            told.append(json.loads(row["witness"]))
            yield row

    monkeypatch.setattr(scoring, "Scorer", Witness)
    monkeypatch.setattr(scoring, "_score_pieces", witnessed)
    _, table = scored(tmp_path / "run", path, max_quarantine_fraction=0.02)
    assert table.num_rows == 63
    assert len(told) == 2
    for witness in told:
        assert witness["came"].keys() == {field.name for field in dataclasses.fields(sources.Piece)}
        assert sum(witness["came"].values()) < 500  # of 32 images of 5 KB
        assert sum(witness["gave"].values()) < 500


def test_id_column_names_the_samples(tmp_path, digits):
    table = scored_here(tmp_path / "run", write_shards(digits, tmp_path / "in", 2), id_column="name")
    assert table["key"].to_pylist() == digits["name"].to_pylist()


def bad_rows(digits: pa.Table) -> pa.Table:
    """400 digits, five of which cannot be used."""
    encoded, labels = digits["image"].to_pylist(), digits["label"].to_pylist()
    encoded[3] = encoded[3][:40]
    encoded[150] = b"no image"
    encoded[151] = None
    labels[200], labels[399] = None, -1
    return pa.table({"image": pa.array(encoded, pa.binary()), "label": pa.array(labels, pa.int64())})


def test_bad_images_and_labels_are_quarantined_and_no_other_changes(tmp_path, digits):
    folder = write_shards(bad_rows(digits), tmp_path / "bad", 2)
    names = tuple("0123456789")
    store, table = scored(tmp_path / "run", folder, max_quarantine_fraction=0.02, class_names=names)
    quarantine = schema.check(store.read("quarantine"), schema.QUARANTINE, "quarantine").sort_by("sample_id")
    assert quarantine["row"].to_pylist() == [3, 150, 151, 0, 199]
    assert quarantine["path"].to_pylist() == ["train-00000.parquet"] * 3 + ["train-00001.parquet"] * 2
    reasons = quarantine["reason"].to_pylist()
    assert reasons[1:] == ["not an image", "no image bytes", "label is null", "label is not one of the classes"]
    assert "image" in reasons[0]
    assert table.num_rows == 395
    clean = scored_here(tmp_path / "clean", write_shards(digits, tmp_path / "in", 2), class_names=names)
    usable = np.isin(clean["sample_id"].to_numpy(), table["sample_id"].to_numpy())
    assert table.equals(clean.filter(pa.array(usable)))  # a bad row moves no other: the same bits


def test_a_poisoned_shard_costs_no_sample_of_the_others(tmp_path, digits):
    """The images' pages of a whole shard are overwritten; its footer and its labels are sound."""
    clean = scored_here(tmp_path / "clean", write_shards(digits, tmp_path / "in", 4))
    path = write_shards(digits, tmp_path / "poisoned", 4) / "train-00001.parquet"
    content = bytearray(path.read_bytes())
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    store, table = scored(tmp_path / "run", path.parent, max_quarantine_fraction=0.3)
    quarantine = store.read("quarantine")
    assert quarantine.num_rows == 100
    assert set(quarantine["path"].to_pylist()) == {"train-00001.parquet"}
    assert set(quarantine["reason"].to_pylist()) == {"the shard is damaged here"}
    is_other = schema.shard_ids(clean["sample_id"].to_numpy()) != 1
    assert table.equals(clean.filter(pa.array(is_other)))


class Dying(Scorer):
    """An actor whose process an image ends, as a decoder's fault would."""

    most_tries = 1

    def _score_piece(self, piece, batches):
        if piece.shard_id == 1:
            os._exit(1)
        return super()._score_piece(piece, batches)


def test_a_piece_that_ends_its_actor_each_time_ends_the_run_and_is_named(tmp_path, digits, monkeypatch):
    path = write_shards(digits, tmp_path / "in", 2)
    monkeypatch.setattr(scoring, "Scorer", Dying)
    with pytest.raises(StoppedError, match=r"^train-00001.parquet, rows 0 to 199: .* has ended the process 2 times"):
        scored(tmp_path / "run", path)


def test_only_what_was_quarantined_of_these_pieces_is(tmp_path, digits, store, monkeypatch):
    """A lingering actor of another plan writes beside those that are at work."""
    pieces = scoring._score_pieces

    def beside(missing, catalog, proxy, resources, of, folders, plan_hash):
        stray = quarantine.table([(0, "train-00000.parquet", "not an image")])
        write_table(of.filesystem, f"{folders['quarantine']}/00000-000000000000-000000000000.parquet", stray)
        return pieces(missing, catalog, proxy, resources, of, folders, plan_hash)

    monkeypatch.setattr(scoring, "_score_pieces", beside)
    catalog = catalogs.build(InputConfig(path=str(write_shards(bad_rows(digits), tmp_path / "in", 2))))
    put_proxy(store)
    proxy = proxy_in_store(store, "resnet9", 10, 8)
    score(catalog, proxy, ScoreConfig(num_workers=1, batch_size=32), store, 0.02)
    assert store.read("quarantine").num_rows == store.commit_facts("quarantine")["num_samples"] == 5


def test_images_of_one_colour_are_told_of(tmp_path, digits, capfd):
    flat = [png(np.full((8, 8), value, np.uint8)) for value in (0, 90, 255)]
    # Which every fourth row and column would not tell.
    line = np.zeros((8, 8), np.uint8)
    line[2] = 255
    images = [*flat, png(line), *digits["image"].to_pylist()[4:]]
    for name, table in (("some", digits.set_column(0, "image", pa.array(images))), ("none", digits)):
        path = write_shards(table.slice(0, 100), tmp_path / name, 1)
        run_store = RunStore(str(tmp_path / f"{name}-run"))
        put_proxy(run_store)
        catalog = catalogs.build(InputConfig(path=str(path)))
        score(catalog, proxy_in_store(run_store, "resnet9", 10, 8), ScoreConfig(num_workers=1), run_store, 0.0)
        told = capfd.readouterr().err
        assert ("warning   3 images are of one colour as they are decoded" in told) == (name == "some")


@pytest.fixture
def store(tmp_path):
    """A run's folder on a filesystem that, like an object store, is not known to rename; for disks: tests/chaos.py."""
    found = RunStore(str(tmp_path / "run"))
    found.filesystem, found.root = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run"
    return found


def written(store: RunStore) -> dict[str, int]:
    """The scores files of a committed store and when they were written."""
    infos = store.filesystem.get_file_info(store.files("scores"))
    return {info.base_name: info.mtime_ns for info in infos}


def test_only_what_is_missing_is_scored_again(tmp_path, digits, store, monkeypatch):
    """A run dies between its two commits, and some pieces are gone: the others keep what they have, and all adds up."""
    path = write_shards(bad_rows(digits), tmp_path / "bad", 4)
    put_proxy(store)
    catalog = catalogs.build(InputConfig(path=str(path), class_names=tuple("0123456789")))
    config, proxy = ScoreConfig(num_workers=1, batch_size=32), proxy_in_store(store, "resnet9", 10, 8)
    commit = RunStore.commit

    def killed(self, stage, *arguments):
        if stage == "scores":
            raise KeyboardInterrupt
        commit(self, stage, *arguments)

    monkeypatch.setattr(RunStore, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        score(catalog, proxy, config, store, 0.02)
    monkeypatch.setattr(RunStore, "commit", commit)
    assert store.is_done("quarantine") and not store.is_done("scores")
    first = sorted(store.finished("scores"))
    assert len(first) == 4
    lost = first[1]  # rows 100..199: two of the five bad ones
    folder = store._work("scores")
    store.filesystem.delete_file(f"{folder}/{lost}")
    half = lost.replace(lost[-20:-8], "0" * 12)  # what a killed actor left, of another plan
    with store.filesystem.open_output_stream(f"{folder}/{half}") as stream:
        stream.write(b"PAR1 and no more")
    scored_again = []
    pieces = scoring._score_pieces
    monkeypatch.setattr(scoring, "_score_pieces", lambda p, *rest: scored_again.extend(p) or pieces(p, *rest))
    score(catalog, proxy, config, store, 0.02)
    assert [(piece.shard_id, piece.first_row) for piece in scored_again] == [(1, 0)]
    assert sorted(written(store)) == first
    assert half not in [
        info.base_name for info in store.filesystem.get_file_info(pafs.FileSelector(store.path("scores")))
    ]
    assert store.commit_facts("scores")["num_samples"] == 395
    assert store.commit_facts("quarantine")["num_samples"] == 5
    assert sum(store.commit_facts("quarantine")["reasons"].values()) == 5
    quarantine = store.read("quarantine").sort_by("sample_id")
    assert quarantine["row"].to_pylist() == [3, 50, 51, 0, 99]
    whole = scored_here(tmp_path / "whole", path, class_names=tuple("0123456789"))
    assert store.read("scores").sort_by("sample_id").combine_chunks().equals(whole)


def test_who_goes_on_scores_as_it_was_begun(store, monkeypatch):
    """What 'auto' stands for follows the GPUs that are there; they go with their nodes, and come back."""
    config, proxy = ScoreConfig(), proxy_in_store(store, "resnet9", 10, 8)
    counts = SimpleNamespace(gpus=0)
    # As on a cluster, on which one is counted where 'cuda' is asked for.
    monkeypatch.setattr(
        runtime, "num_gpus", lambda device="auto": {"cpu": 0, "auto": counts.gpus, "cuda": max(counts.gpus, 1)}[device]
    )

    def resources(gpus: int) -> tuple[int, str, bool]:
        counts.gpus = gpus
        found = scoring._resources_as_begun(config, proxy, store)
        return found.batch_size, found.precision, found.num_gpus > 0

    assert resources(0) == (128, "float32", False)
    assert resources(2) == (256, "bf16", True)  # nothing is finished yet: begun anew
    folder = store.begin("scores")
    store.filesystem.open_output_stream(f"{folder}/part-a.parquet").close()
    assert resources(4) == (256, "bf16", True)  # an empty file is none
    write_table(store.filesystem, f"{folder}/part-a.parquet", pa.table({"a": [1]}))
    with pytest.raises(ValueError, match="1 pieces of .* were scored on GPUs, and now there is none"):
        resources(0)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "is_private", lambda: False)
        assert resources(0) == (256, "bf16", True)  # they come again, with an autoscaler's node
    assert resources(1) == (256, "bf16", True)
    store.discard(scoring.BEGUN)
    store.filesystem.delete_file(f"{folder}/part-a.parquet")
    assert resources(0) == (128, "float32", False)
    write_table(store.filesystem, f"{folder}/part-a.parquet", pa.table({"a": [1]}))
    assert resources(2) == (128, "float32", False)


def test_what_decides_a_score_is_in_the_plan(tmp_path, digits, monkeypatch):
    path = write_shards(digits, tmp_path / "in", 2)
    store = RunStore(str(tmp_path / "run"))
    put_proxy(store)
    proxy = proxy_in_store(store, "resnet9", 10, 8)
    catalog = catalogs.build(InputConfig(path=str(path)))
    resources = Resources(1, 1.0, 0.0, 32, "float32")
    pieces = catalogs.pieces(catalog, max_rows=64, batch_size=32)
    same = scoring._plan_hash(catalog, proxy, resources, pieces)
    assert same == scoring._plan_hash(catalog, proxy, replace(resources, num_workers=7), pieces)
    assert same == scoring._plan_hash(catalog, proxy, replace(resources, num_cpus=0.5), pieces)
    others = [
        scoring._plan_hash(catalog, proxy, changed, pieces)
        for changed in (
            replace(resources, batch_size=64),
            replace(resources, precision="bf16"),
            replace(resources, num_gpus=1.0),
        )
    ]
    others += [
        scoring._plan_hash(catalog, changed, resources, pieces)
        for changed in (
            replace(proxy, arch="resnet18"),
            replace(proxy, num_classes=11),
            replace(proxy, image_size=16),
            replace(proxy, dynamics_folder="dynamics"),
            replace(proxy, round_folders=("01",)),
            replace(proxy, round_folders=("01", "02")),
        )
    ]
    columns = ("image_column", "label_column", "id_column")
    others += [
        scoring._plan_hash(changed, proxy, resources, pieces)
        for changed in (
            replace(catalog, table=catalog.table.slice(1)),  # and so another fingerprint
            replace(catalog, class_names=catalog.class_names[::-1]),
            *(replace(catalog, input=replace(catalog.input, **{column: "another"})) for column in columns),
            replace(catalog, source=replace(catalog.source, format="webdataset")),
        )
    ]
    others.append(scoring._plan_hash(catalog, proxy, resources, pieces[:-1]))
    others.append(scoring._plan_hash(catalog, proxy, resources, [replace(pieces[0], num_rows=63), *pieces[1:]]))
    for place, name in ((torch, "__version__"), (scoring.razor_ray, "__version__")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, "0.0.1")
            others.append(scoring._plan_hash(catalog, proxy, resources, pieces))
    for package in ("simplejpeg", "torchvision", "pillow"):
        with monkeypatch.context() as patch:
            installed = images.version
            patch.setattr(images, "version", lambda name: "0.0.1" if name == package else installed(name))  # noqa: B023
            others.append(scoring._plan_hash(catalog, proxy, resources, pieces))
    torch.manual_seed(1)
    store.write_bytes("proxy/model.safetensors", model.save_weights(model.build("resnet9", 10)))
    others.append(scoring._plan_hash(catalog, proxy, resources, pieces))
    assert len({same, *others}) == 1 + len(others)


def test_too_many_bad_images_stop_the_run(tmp_path, digits):
    folder = write_shards(bad_rows(digits), tmp_path / "bad", 2)
    with pytest.raises(QuarantineError, match=r"of 400 samples cannot be used so far .* max_quarantine_fraction 0.001"):
        scored(tmp_path / "run", folder, max_quarantine_fraction=0.001)
    with pytest.raises(QuarantineError, match=r"2 not an image, such as row 150 of train-00000\.parquet[;)]"):
        scored(tmp_path / "again", folder, max_quarantine_fraction=0.0074)
    # What is known from an attempt before is told as well.
    with pytest.raises(QuarantineError, match=r"2 not an image, such as row \d+ of train-00000\.parquet[;)]"):
        scored(tmp_path / "again", folder, max_quarantine_fraction=0.0074)
    assert not RunStore(str(tmp_path / "run")).is_done("scores")


def test_the_limit_counts_by_reason():
    reasons = Counter({"not an image": 2, "label is null": 1})
    quarantine.check(reasons, 300, 0.01)  # exactly the limit
    with pytest.raises(QuarantineError, match=r"3 of 299 .*2 not an image; 1 label is null"):
        quarantine.check(reasons, 299, 0.01)
    with pytest.raises(QuarantineError, match=r"2 not an image, such as cat/3\.jpg; 1 label is null"):
        quarantine.check(reasons, 299, 0.01, {"not an image": "cat/3.jpg"})


def test_ids_above_2_to_the_32(tmp_path):
    # Two images in each of three shards: ids are shard << 32 | row, and none may pass through a float.
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in range(3):
        content = [png(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)) for _ in range(2)]
        pq.write_table(pa.table({"image": content, "label": [0, 1]}), folder / f"{shard}.parquet")
    table = scored_here(tmp_path / "run", folder, class_names=tuple("0123456789"))
    assert table["sample_id"].to_pylist() == [0, 1, 2**32, 2**32 + 1, 2**33, 2**33 + 1]


def test_rows_above_2_to_the_24_from_the_input_to_the_subset(tmp_path, digits):
    # A shard whose first 2^24 rows are empty: every second of the ids behind them is none in float32.
    few = digits.slice(0, 40).select(["image", "label"])
    (tmp_path / "in").mkdir()
    with pq.ParquetWriter(tmp_path / "in" / "a.parquet", few.schema) as writer:
        for _ in range(16):
            writer.write_table(pa.table([pa.nulls(2**20, field.type) for field in few.schema], few.schema))
        writer.write_table(few)
    names = tuple("0123456789")
    table = scored_here(tmp_path / "run", tmp_path / "in", chosen=slice(-1, None), class_names=names)
    assert table["sample_id"].to_pylist() == list(range(2**24, 2**24 + 40))
    source = InputConfig(path=str(tmp_path / "in"), class_names=names)
    store, config = RunStore(str(tmp_path / "run")), PruneConfig(input=source, output="unused", keep_fraction=0.5)
    weigh.weigh(store, names, config.weigh, config.keep_fraction, trained_for="epochs")
    sample(store, weigh.read(store), config)
    write_subset(catalogs.build(source), store)
    kept = store.read("selection").filter(pc.field("keep"))["sample_id"].to_pylist()
    subset = store.read("subset")
    assert subset["sample_id"].to_pylist() == sorted(kept)
    assert any(identity % 2 for identity in kept)
    expected = few.take([identity - 2**24 for identity in sorted(kept)])
    assert [image["bytes"] for image in subset["image"].to_pylist()] == expected["image"].to_pylist()
    assert subset["label"].to_pylist() == expected["label"].to_pylist()


def test_a_proxy_that_has_run_away_is_quarantined(tmp_path, digits):
    store = RunStore(str(tmp_path / "run"))
    network = put_proxy(store)
    with torch.no_grad():
        network.head.weight.fill_(float("nan"))
    store.write_bytes("proxy/model.safetensors", model.save_weights(network))
    catalog = catalogs.build(InputConfig(path=str(write_shards(digits, tmp_path / "in", 1))))
    with pytest.raises(QuarantineError, match="score is not finite"):
        score(catalog, proxy_in_store(store, "resnet9", 10, 8), ScoreConfig(num_workers=1), store, 0.01)
