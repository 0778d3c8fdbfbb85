"""Training on Ray Train: that it learns, that it goes on after an interruption, and that every sample is counted."""

import dataclasses
import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from razor_ray import images, model, progress, schema, sources, transforms
from razor_ray.cli import main
from razor_ray.config import EvalConfig, InputConfig, TrainConfig
from razor_ray.run_store import RunStore
from razor_ray.shards import Format, Source
from razor_ray.stages import catalog as catalogs
from razor_ray.stages import decode, ingest, train_worker
from razor_ray.stages import train as training
from razor_ray.stages.dynamics import from_table
from razor_ray.stages.ispl import WEIGHT
from razor_ray.stages.per_shard import PerShard
from razor_ray.training import predict
from tests.conftest import png, readme_python, write_shards

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def split(tmp_path_factory, digits):
    """300 digits to train on, 100 held out. All weight is on the zeros, which nobody heeds unless asked to."""
    folder = tmp_path_factory.mktemp("digits")
    weight = [1.0 if label == 0 else 0.0 for label in digits["label"].to_pylist()]
    weighted = digits.append_column("weight", pa.array(weight, pa.float32()))
    write_shards(weighted.slice(0, 300), folder / "train", 3)
    write_shards(digits.slice(300), folder / "test", 2)
    return folder


def config(split, output, **settings) -> TrainConfig:
    arguments = {
        "input": InputConfig(path=str(split / "train")),
        "eval": EvalConfig(path=str(split / "test")),
        "output": str(output),
        "augment": "none",
        "epochs": 2,
    }
    return TrainConfig(**(arguments | settings))


def train(settings: TrainConfig) -> list[dict]:
    """The lines of metrics.jsonl."""
    store = RunStore(settings.output)
    catalog = catalogs.build(settings.input)
    held_out = catalogs.build(InputConfig(path=str(settings.eval.path)), like=catalog)
    training.train(settings, catalog, held_out, store, "train", "train")
    return training.read_metrics(store, "train")


@pytest.fixture
def dying(monkeypatch):
    """A function that makes a training die as it begins an epoch, or live if that is None. Gives a list to which every
    epoch comes that is trained from then on."""
    train_epoch = train_worker.Worker._train_epoch

    def die_at(last: int | None) -> list[int]:
        trained = []

        def spied(self, epoch):
            if epoch == last:
                raise KeyboardInterrupt
            trained.append(epoch)
            return train_epoch(self, epoch)

        monkeypatch.setattr(train_worker.Worker, "_train_epoch", spied)
        return trained

    return die_at


def untimed(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def test_it_learns_and_writes_what_it_says(split, tmp_path, capsys):
    paths = ["--input", f"{split}/train", "--eval", f"{split}/test", "--output", f"{tmp_path}/run"]
    assert main(["train", *paths, "--epochs", "12"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    last = lines[-1]
    assert last["accuracy"] > 0.85  # chance is 0.1
    assert last["num_eval"] == 100
    assert last["num_samples"] == 300
    assert last["num_dropped"] == 0
    assert len(last["recall"]) == 10
    assert min(last["recall"]) > 0.0
    # The model that was saved is the one that was measured.
    description = json.loads((tmp_path / "run/train/model.json").read_text())
    network = model.build(description["arch"], len(description["class_names"]))
    model.load_weights(network, (tmp_path / "run/train/model.safetensors").read_bytes(), "model.safetensors")
    held_out = pq.read_table(split / "test")
    pixels, _ = images.decode_batch(held_out["image"].to_pylist(), description["image_size"])
    precision = description["precision"]
    predicted = predict(network, torch.from_numpy(pixels), precision=precision, device=torch.device("cpu")).numpy()
    assert np.mean(predicted == np.array(held_out["label"].to_pylist())) == pytest.approx(last["accuracy"])
    # And used as the README has it.
    (tmp_path / "photo").write_bytes(held_out["image"][7].as_py())
    code = readme_python("load_weights").replace("runs/photos-model", f"{tmp_path}/run")
    exec(code.replace("photo.jpg", f"{tmp_path}/photo"), {})
    assert capsys.readouterr().out.split()[-1] == description["class_names"][predicted[7]]


def test_the_same_seed_trains_the_same_network_however_often_it_tells_how_far_it_is(split, tmp_path, monkeypatch):
    one = train(config(split, tmp_path / "one"))
    other = train(config(split, tmp_path / "other", seed=1))
    assert untimed(other) != untimed(one)
    monkeypatch.setattr(train_worker, "_BEAT_SECONDS", 0.0)
    assert untimed(train(config(split, tmp_path / "two"))) == untimed(one)
    beat = RunStore(str(tmp_path / "two")).read_json("train/_beat.json")
    assert beat is not None  # the last of them: from the evaluation that ends the second epoch
    assert (beat["epoch"], beat["num_samples"]) == (2, 300)


def test_an_interrupted_training_goes_on_and_ends_the_same_on_another_cpu(split, tmp_path, monkeypatch, dying):
    """Begun where bf16 is fast, gone on with where it is not: from its checkpoint, and in the same precision."""
    monkeypatch.setattr(training.training, "_cpu_has_bf16", lambda: True)
    whole = train(config(split, tmp_path / "whole"))
    assert precision_in(tmp_path / "whole") == "bf16"
    dying(2)
    with pytest.raises(KeyboardInterrupt):
        train(config(split, tmp_path / "resumed"))
    trained = dying(None)
    monkeypatch.setattr(training.training, "_cpu_has_bf16", lambda: False)
    assert untimed(train(config(split, tmp_path / "resumed"))) == untimed(whole)
    assert trained == [2]  # not from the start
    assert precision_in(tmp_path / "resumed") == "bf16"
    # What the worker's own machine could do is not asked.
    monkeypatch.setattr(train_worker.Worker, "__init__", with_bf16_here(train_worker.Worker.__init__, monkeypatch))
    train(config(split, tmp_path / "other", epochs=1))
    assert precision_in(tmp_path / "other") == "float32"


def test_a_training_goes_on_with_as_many_threads_as_it_was_begun_with(split, tmp_path, monkeypatch, dying):
    """Sums depend on how many share them: on a machine with other CPUs another network would come of it."""
    threads = []
    keep_dynamics = train_worker.Worker._keep_dynamics

    def spied(self, epoch):
        threads.append(torch.get_num_threads())
        return keep_dynamics(self, epoch)

    monkeypatch.setattr(train_worker.Worker, "_keep_dynamics", spied)
    monkeypatch.setattr(train_worker.runtime, "of_this_node", lambda resource: 3)
    dying(2)
    with pytest.raises(KeyboardInterrupt):
        train(config(split, tmp_path / "run"))
    dying(None)
    monkeypatch.setattr(train_worker.runtime, "of_this_node", lambda resource: 1)
    train(config(split, tmp_path / "run"))
    assert threads == [3, 3]
    train(config(split, tmp_path / "other", epochs=1))
    train(config(split, tmp_path / "given", epochs=1, num_threads=2))
    assert threads[-2:] == [1, 2]
    told = {name: json.loads((tmp_path / name / "train" / "model.json").read_text()) for name in ("run", "given")}
    assert [told[name]["training"]["num_threads"] for name in ("run", "given")] == [3, 2]


def test_no_gpu_is_taken_that_was_not_asked_for(split, tmp_path, monkeypatch):
    """In this process Ray Train gives whatever torch finds."""
    monkeypatch.setattr(training.ray.train.torch, "get_device", lambda: torch.device("meta"))
    (line,) = train(config(split, tmp_path / "run", epochs=1))
    assert line["accuracy"] > 0


def test_who_goes_on_trains_on_gpus_if_it_was_begun_on_them(split, tmp_path, monkeypatch):
    store, settings = RunStore(str(tmp_path)), config(split, tmp_path)
    counts = SimpleNamespace(gpus=0, is_private=True)
    monkeypatch.setattr(
        training.runtime, "num_gpus", lambda device: max(counts.gpus, 1) if device == "cuda" else counts.gpus
    )
    monkeypatch.setattr(training.runtime, "is_private", lambda: counts.is_private)

    def gpus(number: int) -> int:
        counts.gpus = number
        return training._gpus_as_begun(settings, store, "train")

    assert gpus(0) == 0
    assert gpus(2) == 2  # nothing has been trained yet: begun anew
    store.write_bytes("train/metrics.jsonl", b'{"epoch": 1}\n')
    assert gpus(3) == 3
    with pytest.raises(ValueError, match="was begun on a GPU, and now there is none"):
        gpus(0)
    counts.is_private = False
    assert gpus(0) == 1  # an autoscaler brings it again
    store.write_json("train/_begun.json", {"gpu": False})
    assert (gpus(0), gpus(2), gpus(0)) == (0, 2, 1)  # once there were some, it does not go back


@pytest.mark.parametrize(
    ("gpus", "batch_size", "workers"), [(0, 128, 1), (1, 128, 1), (8, 128, 4), (8, "auto", 1), (8, 512, 8), (2, 16, 1)]
)
def test_a_worker_has_a_batch_worth_its_statistics(split, tmp_path, monkeypatch, gpus, batch_size, workers):
    monkeypatch.setattr(training.runtime, "num_gpus", lambda device: gpus)
    settings = config(split, tmp_path, batch_size=batch_size)
    catalog = catalogs.build(settings.input)  # 300 images, of which 'auto' takes 32 a step
    task = training._task(settings, catalog, None, [], RunStore(str(tmp_path)), "train")
    assert (task.num_workers, task.use_gpu, task.precision) == (workers, gpus > 0, "bf16" if gpus else task.precision)
    given = dataclasses.replace(settings, num_workers=3)
    assert training._task(given, catalog, None, [], RunStore(str(tmp_path)), "train").num_workers == 3


def precision_in(output) -> str:
    return json.loads((output / "train" / "model.json").read_text())["precision"]


def with_bf16_here(start, monkeypatch):
    """A worker that starts on a CPU that multiplies bf16."""

    def started(self, task):
        monkeypatch.setattr(training.training, "_cpu_has_bf16", lambda: True)
        start(self, task)

    return started


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_dynamics_are_of_every_sample_and_epoch(split, tmp_path, monkeypatch, cache_gib):
    """Against a plain forward pass: a network that does not move sees in every epoch what that pass sees."""
    monkeypatch.setattr(training.training, "learning_rate_factor", lambda schedule, progress: 0.0)
    settings = config(split, tmp_path / "run", cache_gib=cache_gib, eval=EvalConfig())
    store = RunStore(settings.output)
    catalog = catalogs.build(settings.input)
    training.train(settings, catalog, None, store, "train", "train", with_dynamics=True)
    (file,) = training.dynamics_files(store, "train")
    found = from_table(pq.read_table(file))
    expected = np.concatenate([schema.sample_ids(shard, 0, 100) for shard in range(3)])
    np.testing.assert_array_equal(found.sample_id, expected)
    assert (found.count == 2).all()
    assert set(found.seen.tolist()) == {0b11}
    scores = found.scores()
    torch.manual_seed(settings.seed)
    network = model.build("resnet9", 10).train()
    encoded = pq.read_table(split / "train")
    pixels, _ = images.decode_batch(encoded["image"].to_pylist(), 8)
    labels = torch.tensor(encoded["label"].to_pylist())
    with torch.inference_mode():  # of batches as they are trained on: their statistics differ a little with the batch
        p = network(transforms.normalize(torch.from_numpy(pixels))).softmax(1)[torch.arange(300), labels].numpy()
    assert np.corrcoef(scores["mean_p"], p)[0, 1] > 0.95
    assert (scores["dyn_unc"] < 0.1).all()


def test_dynamics_survive_an_interruption(split, tmp_path, dying):
    """Of a streamed training, which begins an epoch's stream while the one before is not yet through. The seed orders
    it: gone on with, it ends the same."""

    def run(name):
        settings = config(split, tmp_path / name, epochs=3, eval=EvalConfig(), cache_gib=0.0)
        store = RunStore(settings.output)
        training.train(settings, catalogs.build(settings.input), None, store, "train", "train", with_dynamics=True)
        (file,) = training.dynamics_files(store, "train")
        return from_table(pq.read_table(file)).scores()

    whole = run("whole")
    dying(3)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    trained = dying(None)
    resumed = run("resumed")
    assert trained == [3]
    for name in schema.DYNAMICS_NAMES:
        np.testing.assert_array_equal(resumed[name], whole[name])
    assert whole["dyn_unc"].max() > 0  # it did learn


def test_streamed_data_reaches_the_network_too(split, tmp_path):
    lines = train(config(split, tmp_path / "run", cache_gib=0.0, epochs=3))
    assert [line["num_samples"] for line in lines] == [300] * 3
    assert lines[-1]["num_eval"] == 100
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]


@pytest.mark.parametrize("form", ["folders", "parquet"])
def test_a_stream_of_shards_sorted_by_class_has_many_classes_at_any_time(tmp_path, digits, form):
    """A block and its neighbours, of which the window holds as many, have the classes of the whole input."""
    encoded, labels = digits["image"].to_pylist(), np.sort(np.arange(4000) % 10)
    if form == "folders":
        for row, label in enumerate(labels):
            path = tmp_path / "in" / f"c{label}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded[row % 400])
    else:
        (tmp_path / "in").mkdir()
        for shard in range(4):
            rows = range(1000 * shard, 1000 * (shard + 1))
            table = pa.table({"image": [encoded[row % 400] for row in rows], "label": labels[rows.start : rows.stop]})
            pq.write_table(table, tmp_path / "in" / f"{shard}.parquet", row_group_size=50)
    catalog = catalogs.build(InputConfig(path=str(tmp_path / "in")))
    blocks = decode.plan_stream(catalog, 252, seed=0)  # 512 rows of this size are a block
    rows = [
        [1000 * run.shard_id + run.first_row + row for run in block for row in range(run.num_rows)] for block in blocks
    ]
    assert sorted(row for block in rows for row in block) == list(range(4000))
    assert all(len(block) > 512 - 100 for block in rows[:-1])
    assert max(map(len, rows)) <= 512
    assert len(rows) < 12
    for first, second in zip(rows, rows[1:], strict=False):
        assert len(set(labels[first + second])) >= 7
    assert decode.plan_stream(catalog, 252, seed=0) == blocks
    assert decode.plan_stream(catalog, 252, seed=1) != blocks


def test_images_cross_the_object_store_once_and_as_bytes(tmp_path, split, monkeypatch):
    """Pieces are handed out, and one step makes of them what the workers read: a byte for each colour of a pixel."""
    catalog = catalogs.build(InputConfig(path=str(split / "train")))
    handed, datasets = [], ingest.dataset

    def handing(groups):
        handed.append(datasets(groups))
        return handed[-1]

    monkeypatch.setattr(ingest, "dataset", handing)
    found = decode.dataset(catalog, decode.plan_stream(catalog, 64, seed=0), 64).materialize()
    assert found.count() == 300
    assert 300 * 64 * 64 * 3 < found.size_bytes() < 1.01 * 300 * 64 * 64 * 3
    assert next(iter(found.iter_batches(batch_size=1)))["pixels"].dtype == np.uint8
    (given,) = handed
    assert set(given.columns()) == {field.name for field in dataclasses.fields(sources.Piece)}
    assert given.size_bytes() < 10_000
    operators = set(re.findall(r"Operator \d+ ([\w()]+)", found.stats()))
    assert operators == {"FromBlocks", "MapBatches(decode_pieces)"}


def test_images_come_in_the_planned_order_whichever_is_decoded_first(tmp_path, digits):
    """The first block takes seconds, the others none."""
    rng = np.random.default_rng(0)
    large = [png(rng.integers(0, 255, (3000, 3000), dtype=np.uint8)) for _ in range(2)]
    parts = [large * 4, *(digits["image"].to_pylist()[8 * shard : 8 * shard + 8] for shard in range(1, 6))]
    (tmp_path / "in").mkdir()
    for shard, encoded in enumerate(parts):
        pq.write_table(pa.table({"image": encoded, "label": [0, 1] * 4}), tmp_path / "in" / f"{shard}.parquet")
    catalog = catalogs.build(InputConfig(path=str(tmp_path / "in")))
    planned = [[piece] for piece in catalogs.pieces(catalog, max_rows=8, batch_size=8)]
    assert len(planned) == 6
    found = [batch["sample_id"] for batch in decode.dataset(catalog, planned, 8).iter_batches(batch_size=None)]
    expected = [schema.sample_ids(shard, 0, 8) for shard in range(6)]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))


def test_weights_of_a_round_go_to_the_samples_of_their_ids(tmp_path, split):
    """In blocks of short runs of all shards, in random order. Some samples have none, as those that were not scored."""
    catalog = catalogs.build(InputConfig(path=str(split / "train")))
    ids = np.concatenate([schema.sample_ids(shard, 0, 100) for shard in range(3)])
    known = ids[np.arange(300) % 7 > 0]
    weight = np.random.default_rng(0).random(len(known), np.float32)
    (tmp_path / "ispl").mkdir()
    for shard in range(3):
        mine = schema.shard_ids(known) == shard
        table = pa.table({"sample_id": known[mine], WEIGHT: weight[mine]})
        pq.write_table(table, tmp_path / "ispl" / f"shard-{shard:06d}.parquet")
    beside = PerShard(LocalFileSystem(), str(tmp_path / "ispl"))
    planned = decode.plan_stream(catalog, 64, seed=0)
    found: dict[int, float] = {}
    for batch in decode.dataset(catalog, planned, 64, beside=beside).iter_batches(batch_size=None):
        found |= dict(zip(batch["sample_id"].tolist(), batch["weight"].tolist(), strict=True))
    assert list(found) != sorted(found)
    assert found == dict.fromkeys(ids.tolist(), 0.0) | dict(zip(known.tolist(), weight.tolist(), strict=True))


def test_a_row_group_is_read_once_for_all_its_rows(tmp_path, digits):
    """Runs are no shorter than the groups that Parquet is read by, unless those are larger than a block."""
    (tmp_path / "in").mkdir()
    table = pa.concat_tables([digits.select(["image", "label"])] * 5)
    pq.write_table(table, tmp_path / "in" / "0.parquet", row_group_size=400)
    catalog = catalogs.build(InputConfig(path=str(tmp_path / "in")))
    runs = [run for block in decode.plan_stream(catalog, 252, seed=0) for run in block]
    assert sorted(run.first_row for run in runs) == list(range(0, 2000, 400))
    large = [run for block in decode.plan_stream(catalog, 700, seed=0) for run in block]
    assert {run.num_rows for run in large} == {256, 144}


def test_runs_of_what_is_entered_at_a_cost():
    def run_rows(kind: Format, path: str, largest_group: int) -> int:
        return sources.run_rows(Source(LocalFileSystem(), "", (path,), (1,), kind), largest_group, 64, 512)

    assert run_rows("folders", "1000 files from cat/0.jpg", 1000) == 64
    assert run_rows("webdataset", "0.tar", 128) == 128
    assert run_rows("webdataset", "0.tar.gz", 128) == 512  # a run in it unpacks all that lies before
    assert [run_rows("parquet", "0.parquet", rows) for rows in (10, 100, 5000)] == [64, 100, 512]


def test_unusable_held_out_images_are_told(split, digits, tmp_path, capfd):
    encoded = digits["image"].to_pylist()[300:]
    encoded[0] = b"no image"
    table = digits.slice(300).set_column(0, "image", pa.array(encoded, pa.binary()))
    write_shards(table, tmp_path / "test", 1)
    paths = ["--input", f"{split}/train", "--eval", f"{tmp_path}/test", "--output", f"{tmp_path}/run"]
    assert main(["train", *paths, "--epochs", "1"]) == 0
    line = json.loads((tmp_path / "run/train/metrics.jsonl").read_text())
    assert (line["num_eval"], line["num_eval_unusable"]) == (99, 1)
    told = capfd.readouterr().err
    assert "1 held-out images could not be used" in told
    looked_at = [line.split()[0] for line in told.splitlines() if "samples of" in line]
    assert looked_at == ["catalog", "held-out"]


def test_mistakes_about_held_out_images_name_their_options(split, digits, tmp_path, capfd):
    pq.write_table(digits.select(["image", "label"]).rename_columns(["photo", "label"]), tmp_path / "other.parquet")
    arguments = ["train", "--input", f"{split}/train", "--output", f"{tmp_path}/run", "--eval"]
    assert main([*arguments, f"{tmp_path}/other.parquet"]) == 2
    assert "has no column 'image' (it has: photo, label). Name it with --eval.image-column." in capfd.readouterr().err
    assert main([*arguments, f"{tmp_path}/nowhere"]) == 2
    told = capfd.readouterr().err
    assert "--eval takes Parquet" in told and "--input" not in told
    named = digits.set_column(1, "label", pa.array([f"digit {label}" for label in digits["label"].to_pylist()]))
    write_shards(named.slice(0, 200), tmp_path / "named", 1)
    write_shards(digits.set_column(1, "label", pa.array(["other"] * len(digits))).slice(0, 20), tmp_path / "others", 1)
    paths = ["--input", f"{tmp_path}/named", "--output", f"{tmp_path}/new", "--eval", f"{tmp_path}/others"]
    assert main(["train", *paths, "--epochs", "1"]) == 2
    assert capfd.readouterr().err.endswith("Check --eval.label-column.\n")  # there is no --eval.class-names


def test_a_training_of_other_data_is_not_shown_as_this_one(split, digits, tmp_path, capfd):
    write_shards(digits.slice(0, 300), tmp_path / "in", 1)
    paths = ["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/run", "--epochs", "1"]
    held_out = digits.slice(300).set_column(1, "label", pa.array([11] * 30 + digits["label"].to_pylist()[330:]))
    write_shards(held_out, tmp_path / "test", 1)
    paths += ["--eval", f"{tmp_path}/test"]
    assert main(["train", *paths]) == 0
    told = capfd.readouterr().err
    assert "warning   30 held-out images are of classes that are not trained on (11)\n" in told
    assert re.search(r"recall of the worst class \d+\.\d\d% \(\d\)$", told, re.MULTILINE)
    assert not (tmp_path / "run" / "train" / "_beat.json").exists()
    assert main(["train", *paths]) == 0
    assert "done before, skipped" in capfd.readouterr().err
    write_shards(digits.slice(50, 300), tmp_path / "in", 1)
    assert main(["train", *paths]) == 2
    assert f"the files of {tmp_path}/in are not those that" in capfd.readouterr().err
    # Nor goes one on, if it was not finished, that was measured on other images.
    write_shards(digits.slice(0, 300), tmp_path / "in", 1)
    (tmp_path / "run" / "train" / ".commit.json").unlink()
    write_shards(held_out.slice(1), tmp_path / "test", 1)
    assert main(["train", *paths]) == 2
    assert f"the files of {tmp_path}/test are not those that" in capfd.readouterr().err


def test_weights_of_the_subset_matter_when_asked(split, tmp_path):
    # A network that is trained on nothing but zeros predicts nothing else; unasked, it learns all (above).
    last = train(config(split, tmp_path / "run", use_weights=True, epochs=4))[-1]
    assert last["recall"][0] == 1.0
    assert max(last["recall"][1:]) == 0.0


def test_unusable_images_are_counted_not_trained_on(split, digits, tmp_path):
    encoded = digits["image"].to_pylist()[:300]
    encoded[5], encoded[6] = b"no image", None
    table = digits.slice(0, 300).set_column(0, "image", pa.array(encoded, pa.binary()))
    write_shards(table, tmp_path / "bad", 2)
    lines = train(config(split, tmp_path / "run", input=InputConfig(path=str(tmp_path / "bad"))))
    assert lines[-1]["num_unusable"] == 2
    assert lines[-1]["an_unusable"] in (5, 6)
    assert np.isfinite(lines[-1]["train_loss"])


def test_use_weights_needs_the_column(split, tmp_path, capfd):
    arguments = ["--input", str(split / "test"), "--output", str(tmp_path / "run"), "--use-weights"]
    assert main(["train", *arguments]) == 2
    assert "has no column 'weight'" in capfd.readouterr().err


def test_weights_that_are_none_are_not_trained_on(split, digits, tmp_path):
    """A single one that is not finite would leave a network of NaN."""
    weights = pa.array([None, float("nan"), float("inf"), -1.0, *[1.0] * 296], pa.float32())
    write_shards(digits.slice(0, 300).append_column("weight", weights), tmp_path / "in", 1)
    settings = {"input": InputConfig(path=str(tmp_path / "in")), "use_weights": True, "epochs": 1}
    last = train(config(split, tmp_path / "run", **settings))[-1]
    assert last["num_unusable"] == 4
    assert np.isfinite(last["train_loss"])


def test_what_workers_tell_is_shown(tmp_path):
    store = RunStore(str(tmp_path))
    task = SimpleNamespace(last_epoch=3, num_samples=100, config=SimpleNamespace(epochs=3))
    lines = [{"epoch": epoch, "num_samples": 98, "train_loss": 0.5} for epoch in (1, 2)]

    def tell(num_lines: int, beat: dict) -> None:
        content = "".join(f"{json.dumps(line)}\n" for line in lines[:num_lines])
        store.write_bytes("train/metrics.jsonl", content.encode())
        store.write_json("train/_beat.json", beat)

    def is_seen(done: int, note: str) -> bool:
        end = time.monotonic() + 20
        while (shown.done, shown.note) != (done, note) and time.monotonic() < end:
            time.sleep(0.05)
        return (shown.done, shown.note) == (done, note)

    tell(1, {"at": 0.0})
    with training._followed("train", task, store, "train"):  # type: ignore[arg-type]
        shown = progress._open[-1]
        assert (shown.done, shown.skipped) == (98, 98)  # an earlier attempt's: it tells nothing of the rate
        tell(1, {"at": 1.0, "epoch": 2, "num_samples": 40})
        assert is_seen(138, "epoch 2 of 3")
        tell(2, {"at": 2.0, "epoch": 2, "num_samples": 100})  # more than the epoch's line then says
        assert is_seen(196, "epoch 2 of 3, loss 0.500")


def test_half_a_line_is_none(tmp_path):
    """As a worker that is killed leaves it where writes go to their place."""
    store = RunStore(str(tmp_path))
    store.write_bytes("train/metrics.jsonl", b'{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert training.read_metrics(store, "train") == [{"epoch": 1}, {"epoch": 2}]


def test_a_sign_of_life_that_cannot_be_written_ends_nothing(monkeypatch):
    tries = []

    def fail(_, path, content):
        tries.append((path, json.loads(content)["num_samples"]))
        raise OSError("503")

    monkeypatch.setattr(train_worker, "write_file", fail)
    task = SimpleNamespace(num_workers=2, filesystem=None, folder="run")
    train_worker.Worker._beat(SimpleNamespace(rank=0, last_beat=-1e9, num_seen=5, lines=[], task=task))  # type: ignore[arg-type]
    assert tries == [("run/_beat.json", 10)]


def test_what_an_attempt_of_more_workers_left_is_not_counted(tmp_path, monkeypatch):
    """Four workers wrote how samples fared in an epoch and died; two go on."""
    store = RunStore(str(tmp_path))
    for epoch, rank in [(1, 0), (1, 1), *((2, rank) for rank in range(4))]:
        store.write_bytes(f"train/dynamics/epoch-{epoch:04d}-rank-{rank:04d}.parquet", b"rows")
    monkeypatch.setattr(train_worker.ray.train, "report", lambda line: None)
    kept = []
    task = SimpleNamespace(num_workers=2, filesystem=store.filesystem, folder=store.path("train"))

    def write_results():
        kept.extend(train_worker.dynamics_files(task.filesystem, task.folder, 2))

    worker = SimpleNamespace(rank=0, task=task, _write_results=write_results)
    train_worker.Worker._report(worker, {"epoch": 2})  # type: ignore[arg-type]
    assert [path[-17:] for path in kept] == ["rank-0000.parquet", "rank-0001.parquet"]  # before the state is written
    assert train_worker.dynamics_files(task.filesystem, task.folder, 2) == kept
    assert not train_worker.dynamics_files(task.filesystem, task.folder, 1)


def test_a_store_that_does_not_answer_for_a_moment_is_followed_on(tmp_path, monkeypatch):
    store = RunStore(str(tmp_path))
    read_json, failures = RunStore.read_json, [OSError("503"), OSError("503")]

    def flaky(self, name):
        if failures:
            raise failures.pop()
        return read_json(self, name)

    monkeypatch.setattr(RunStore, "read_json", flaky)
    signs = []
    monkeypatch.setattr(training, "sign_of_life", lambda: signs.append(time.monotonic()))
    task = SimpleNamespace(last_epoch=1, num_samples=1, config=SimpleNamespace(epochs=1))
    store.write_json("train/_beat.json", {"at": 1.0})  # of nothing yet
    with training._followed("train", task, store, "train"):  # type: ignore[arg-type]
        end = time.monotonic() + 20
        while not signs and time.monotonic() < end:
            time.sleep(0.05)
    assert not failures and signs  # the third look found the beat
