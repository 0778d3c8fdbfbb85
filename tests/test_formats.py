"""The same images in the three formats: the same labels, scores and subset; nothing is lost in any."""

from __future__ import annotations

import json
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch

from razor_ray import model, schema
from razor_ray.cli import main
from razor_ray.run_store import open_filesystem
from tests.conftest import write_folders, write_shards, write_tar, write_tars

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("proxy") / "proxy.safetensors"
    path.write_bytes(model.save_weights(model.build("resnet9", 10)))
    return path


def prune(path, output, weights_file, *options) -> int:
    fixed = ["--input", str(path), "--output", str(output), "--keep-fraction", "0.3"]
    fixed += ["--proxy.weights", str(weights_file), "--score.num-workers", "1", "--score.precision", "float32"]
    return main(["prune", *fixed, *options])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits, weights_file):
    """A finished run of each format, and of class folders by way of fsspec; the ids are the digits' names in each."""
    folder = tmp_path_factory.mktemp("formats")
    write_shards(digits, folder / "in-parquet", 2)
    write_tars(digits, folder / "in-webdataset", 2)
    write_folders(digits, folder / "in-folders")
    # What pyarrow does not open itself, and every process can: class folders in an archive.
    zipped = shutil.make_archive(f"{folder}/in-folders", "zip", folder, "in-folders")
    assert isinstance(open_filesystem(f"zip://in-folders::{zipped}")[0], pafs.PyFileSystem)
    inputs = {
        "parquet": (folder / "in-parquet", "--input.id-column", "name"),
        "webdataset": (f"file://{folder}/in-webdataset", "--input.id-column", "key"),
        "folders": (f"zip://in-folders::{zipped}", "--input.id-column", "name"),
    }
    for name, (path, *options) in inputs.items():
        extra = ["--subset.webdataset", "--subset.ids"] if name == "webdataset" else []
        assert prune(path, folder / name, weights_file, *options, *extra) == 0
    return folder


def by_key(folder, stage, columns=None) -> pa.Table:
    return pq.read_table(folder / stage, columns=columns).sort_by("key").combine_chunks()


def test_labels_and_scores_are_the_same(runs):
    scores = {name: by_key(runs / name, "scores") for name in ("parquet", "webdataset", "folders")}
    for other in ("webdataset", "folders"):
        assert scores[other]["key"].equals(scores["parquet"]["key"])
        assert scores[other]["label"].equals(scores["parquet"]["label"])
    # Shards, rows and so batches of Parquet and of the tars are the same, and so is every bit.
    names = [*schema.SCORE_NAMES, "correct", "predicted", "embedding", "sample_id"]
    assert scores["webdataset"].select(names).equals(scores["parquet"].select(names))
    # Class folders are in another order. An image's score does not see its neighbours, but sums of a batch of another
    # size may be added in another order.
    for name in schema.SCORE_NAMES:
        np.testing.assert_allclose(scores["folders"][name], scores["parquet"][name], rtol=1e-4, atol=1e-5)


def test_the_subset_is_the_same(runs, digits):
    expected = {row["name"]: row for row in digits.to_pylist()}
    kept = by_key(runs / "parquet", "subset")
    assert kept.num_rows == 120
    for name in ("webdataset", "folders"):
        other = by_key(runs / name, "subset")
        assert other["key"].equals(kept["key"])
        assert other["label"].equals(kept["label"])
        for row in other.to_pylist():
            assert row["image"]["bytes"] == expected[row["key"]]["image"]
            assert row["image"]["path"].endswith(f"{row['key']}.png")


def test_the_manifest_reconciles_in_each(runs):
    for name in ("parquet", "webdataset", "folders"):
        counts = json.loads((runs / name / "manifest.json").read_text())["counts"]
        assert counts == {"input": 400, "scored": 400, "kept": 120, "dropped": 280, "quarantined": 0}


def test_the_subset_as_tars_and_as_a_list(runs, digits):
    run = runs / "webdataset"
    expected = {row["name"]: row for row in digits.to_pylist()}
    kept = pq.read_table(run / "subset").sort_by("sample_id")["key"].to_pylist()
    assert (run / "subset_ids.txt").read_text().splitlines() == kept
    members = {}
    for path in sorted((run / "subset-tars").glob("*.tar")):
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore
    assert list(members) == [f"{key}.{end}" for key in kept for end in ("png", "cls")]
    assert all(members[f"{key}.png"] == expected[key]["image"] for key in kept)
    assert all(int(members[f"{key}.cls"]) == expected[key]["label"] for key in kept)
    assert json.loads((run / "subset-tars" / "class_names.json").read_text()) == [str(label) for label in range(10)]


def test_tars_and_a_list_may_be_asked_for_of_a_finished_run(runs, weights_file, capfd):
    run, tars = runs / "parquet", runs / "parquet" / "subset-tars"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    options = ["--input.id-column", "name", "--subset.webdataset", "--subset.ids"]
    assert prune(runs / "in-parquet", run, weights_file, *options) == 0
    shown = capfd.readouterr().err.splitlines()
    assert [line for line in shown if line.startswith("tars ") and line.endswith(f"2 in {tars}")]
    assert [line for line in shown if line.startswith("ids       120 keys") and line.endswith(f"{run}/subset_ids.txt")]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")} == before
    contents = [path.read_bytes() for path in sorted(tars.glob("*.tar"))]
    others = [path.read_bytes() for path in sorted((runs / "webdataset" / "subset-tars").glob("*.tar"))]
    assert contents == others  # the same subset in the same shards is the same bytes


def test_nothing_is_lost_of_a_bad_tar(tmp_path, digits, weights_file):
    members = []
    for row in digits.slice(0, 200).to_pylist():
        members += [(f"{row['name']}.cls", str(row["label"]).encode()), (f"{row['name']}.png", row["image"])]
    members += [("x-broken.cls", b"1"), ("x-broken.png", b"no image")]
    members += [("x-imageless.cls", b"1"), ("x-unlabelled.png", digits["image"][0].as_py())]
    members += [("x-unknown.cls", b"none"), ("x-unknown.png", digits["image"][0].as_py())]
    path = write_tar(tmp_path / "in" / "a.tar.gz", members, "w:gz")
    assert prune(path, tmp_path / "out", weights_file, "--max-quarantine-fraction", "0.1") == 0
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts == {"input": 204, "scored": 200, "kept": 60, "dropped": 140, "quarantined": 4}
    quarantine = pq.read_table(tmp_path / "out" / "quarantine").sort_by("row").to_pylist()
    assert [(row["path"], row["row"], row["reason"]) for row in quarantine] == [
        ("a.tar.gz:x-broken", 200, "not an image"),
        ("a.tar.gz:x-imageless", 201, "no image under this key"),
        ("a.tar.gz:x-unlabelled", 202, "no label under this key"),
        ("a.tar.gz:x-unknown", 203, "label is not one of the classes"),
    ]


def test_a_bad_file_is_quarantined_by_its_own_path(tmp_path, digits, weights_file):
    folder = write_folders(digits.slice(0, 200), tmp_path / "in")
    (folder / "3" / "broken.png").write_bytes(b"no image")
    assert prune(folder, tmp_path / "out", weights_file) == 0
    quarantine = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert [(row["path"], row["reason"]) for row in quarantine] == [("3/broken.png", "not an image")]
    assert all("/" in key for key in pq.read_table(tmp_path / "out" / "subset")["key"].to_pylist())


def test_training_takes_each_format(runs, tmp_path):
    arguments = ["train", "--input", str(runs / "in-webdataset"), "--eval", str(runs / "in-folders")]
    arguments += ["--output", str(tmp_path / "train"), "--epochs", "1", "--arch", "resnet9"]
    assert main(arguments) == 0
    line = json.loads((tmp_path / "train" / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["num_samples"] == 400


def test_a_subset_as_tars_is_of_the_same_classes(tmp_path, digits, weights_file):
    # Names that are not in the order of the alphabet: integers alone would lose them.
    named = digits.slice(0, 200).set_column(
        1, "label", pa.array([f"{9 - d}th" for d in digits["label"].to_pylist()[:200]])
    )
    run = tmp_path / "run"
    folder = write_folders(named, tmp_path / "in")
    assert prune(folder, run, weights_file, "--subset.webdataset") == 0
    arguments = ["train", "--input", str(run / "subset-tars"), "--eval", str(run / "subset")]
    arguments += ["--output", str(tmp_path / "train"), "--epochs", "1", "--arch", "resnet9"]
    assert main(arguments) == 0


def test_weights_are_parquets_alone(runs, tmp_path, capfd):
    arguments = ["train", "--input", str(runs / "in-folders"), "--output", str(tmp_path / "train"), "--use-weights"]
    assert main(arguments) == 2
    assert "only Parquet has a column 'weight'" in capfd.readouterr().err
