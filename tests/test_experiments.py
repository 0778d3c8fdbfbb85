"""Datasets made worse on purpose, and what is measured on them."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from razor_ray.cli import main
from tests.conftest import DATA, write_shards


@pytest.fixture(scope="module")
def experiments():
    """The script, which is no module of the package."""
    path = Path(__file__).parents[1] / "jobs" / "experiments.py"
    spec = importlib.util.spec_from_file_location("experiments", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["experiments"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_long_tail_falls_in_even_ratios(experiments):
    # 1000, 1000 / 10, 1000 / 100; a class that is smaller than its share is kept whole.
    assert experiments.long_tail_sizes(np.array([1000, 1000, 1000]), 100) == [1000, 100, 10]
    assert experiments.long_tail_sizes(np.array([1000, 40, 1000]), 100) == [1000, 40, 10]


def test_flipped_labels_are_as_many_as_asked_and_all_wrong(experiments):
    labels = np.repeat([0, 1, 2, 3], 3000)
    flipped = experiments.flip_labels(labels, 0.25, seed=0)
    wrong = flipped != labels
    assert wrong.sum() == 3000
    assert set(flipped) == {0, 1, 2, 3}
    counts = np.histogram2d(labels[wrong], flipped[wrong], bins=4)[0]
    assert (np.abs(counts[~np.eye(4, dtype=bool)] - 250) < 4 * np.sqrt(250)).all()  # 3000 over 12 pairs
    np.testing.assert_array_equal(experiments.flip_labels(labels, 0.25, seed=0), flipped)
    assert (experiments.flip_labels(labels, 0.25, seed=1) != flipped).any()


def test_auroc_is_of_pairs_in_one_class(experiments):
    # Class 0: of 2 x 1 pairs the positive is above one: 1/2. Class 1: 1 x 3, above all: 1. Of four positives one is of
    # class 0: (1/2 + 3) / 4.
    label = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    positive = np.array([True, False, False, True, True, True, False, True])  # class 2 has no pair
    score = np.array([0.5, 0.9, 0.1, 0.3, 0.4, 0.5, 0.2, 9.0])
    assert experiments.auroc_in_classes(positive, score, label) == pytest.approx(0.875)
    with pytest.raises(ValueError, match="no class has samples of both kinds"):
        experiments.auroc_in_classes(np.ones(8, bool), score, label)


def test_of_one_class_there_is_no_other_label_and_no_tail(experiments):
    with pytest.raises(ValueError, match="at least two classes are needed, got 1"):
        experiments.flip_labels(np.zeros(5, int), 0.2, 0)
    with pytest.raises(ValueError, match="at least two classes are needed, got 1"):
        experiments.long_tail_sizes(np.array([5]), 100)


def test_shuffling_stays_in_classes(experiments):
    label = np.random.default_rng(0).integers(0, 3, 500)
    order = experiments.shuffle_in_classes(label, seed=0)
    assert sorted(order) == list(range(500))
    np.testing.assert_array_equal(label[order], label)
    assert (order != np.arange(500)).mean() > 0.9


def test_datasets_keep_images_and_true_labels(experiments, digits, tmp_path):
    named = digits.append_column("id", digits["name"])
    write_shards(named, tmp_path / "in", 3)
    experiments.FlipLabels(input=f"{tmp_path}/in", output=f"{tmp_path}/flip", fraction=0.5).run()
    flipped = pq.read_table(tmp_path / "flip")
    assert flipped["image"].equals(named["image"])
    assert flipped["clean"].to_pylist() == digits["label"].to_pylist()
    assert sum(a != b for a, b in zip(flipped["label"].to_pylist(), digits["label"].to_pylist(), strict=True)) == 200
    # Labels of another file, in another order.
    other = pa.table({"id": named["name"], "random1": flipped["label"]}).take(np.random.default_rng(0).permutation(400))
    pq.write_table(other, tmp_path / "labels.parquet")
    arguments = {"input": f"{tmp_path}/in", "output": f"{tmp_path}/again", "labels": f"{tmp_path}/labels.parquet"}
    experiments.Relabel(**arguments).run()
    assert pq.read_table(tmp_path / "again")["label"].equals(flipped["label"])
    experiments.LongTail(input=f"{tmp_path}/in", output=f"{tmp_path}/tail", imbalance=10).run()
    tail = pq.read_table(tmp_path / "tail")
    sizes = np.bincount(digits["label"])
    assert np.bincount(tail["label"]).tolist() == experiments.long_tail_sizes(sizes, 10)
    assert set(tail["image"].to_pylist()) <= set(digits["image"].to_pylist())


def test_the_originals_are_not_written_over(experiments, digits, tmp_path):
    path = write_shards(digits.slice(0, 60), tmp_path / "in", 1)
    before = (path / "train-00000.parquet").read_bytes()
    for output in (path, path / "deeper"):
        with pytest.raises(ValueError, match="lies in --input"):
            experiments.FlipLabels(input=str(path), output=str(output)).run()
    assert [file.name for file in path.iterdir()] == ["train-00000.parquet"]
    assert (path / "train-00000.parquet").read_bytes() == before


def test_shards_of_one_name_in_two_folders_stay_two(experiments, digits, tmp_path):
    write_shards(digits.slice(0, 100), tmp_path / "in" / "a", 1)
    write_shards(digits.slice(100, 100), tmp_path / "in" / "b", 1)
    experiments.FlipLabels(input=f"{tmp_path}/in", output=f"{tmp_path}/flip").run()
    names = [str(path.relative_to(tmp_path / "flip")) for path in sorted((tmp_path / "flip").rglob("*.parquet"))]
    assert names == ["a/train-00000.parquet", "b/train-00000.parquet"]
    found = pa.concat_tables(pq.read_table(tmp_path / "flip" / name) for name in names)
    assert found["image"].to_pylist() == digits["image"].slice(0, 200).to_pylist()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("shards", "proxy", "at_least"),
    [
        # A fifth of the images and twenty epochs of a small network give 0.55, five standard errors above chance.
        pytest.param("train-00000-of-*", ("lenet", "20"), 0.53, marks=pytest.mark.system, id="a fifth"),
        # What is asked for, of the default proxy.
        pytest.param("train-*", ("auto", "4"), 0.6, marks=pytest.mark.long, id="all"),
    ],
)
def test_scores_belong_to_their_images(ray_session, experiments, cifar10, tmp_path, capsys, shards, proxy, at_least):
    # The alarm: people disagree on images that a network finds hard, within a class too. Were ids mixed up anywhere
    # between a shard, the proxy's training, the reduce and the scores, this would be chance.
    arch, epochs = proxy
    paths = ["--input", f"{cifar10}/{shards}", "--output", f"{tmp_path}/run"]
    options = ["--keep-fraction", "0.3", "--score.num-workers", "1", "--proxy.arch", arch, "--proxy.epochs", epochs]
    assert main(["prune", *paths, *options]) == 0
    capsys.readouterr()
    experiments.Alarm(run_folder=f"{tmp_path}/run", labels=f"{DATA}/cifar10n/train_labels.parquet").run()
    aligned, shuffled = (float(area) for area in re.findall(r": (0\.\d+)", capsys.readouterr().out))
    assert aligned >= at_least
    assert 0.49 < shuffled < 0.51
