"""What docs/experiments.md needs beside `razor-ray`: datasets made worse on purpose, and how a run deals with them.

    python jobs/experiments.py long-tail    --input 'cifar10/train-*.parquet' --output cifar-lt --imbalance 100
    python jobs/experiments.py flip-labels  --input 'cifar10/train-*.parquet' --output cifar-flip --fraction 0.2
    python jobs/experiments.py relabel      --input 'cifar10/train-*.parquet' --output cifar-random1 --labels FILE
    python jobs/experiments.py wrong-labels --run run-over-one-of-these
    python jobs/experiments.py alarm        --run run-over-cifar10 --labels FILE

The datasets keep the true label of every image in the column `clean`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from razor_ray import schema, sources, weights
from razor_ray.config import InputConfig, PruneConfig, from_dict
from razor_ray.methods import METHODS
from razor_ray.run_store import CONFIG, RunStore, check_apart
from razor_ray.selection import Method, gamma_razor
from razor_ray.stages.compare import read_samples

CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class LongTail:
    """Keep ever fewer images of one class after the other, down to 1 / imbalance of the first."""

    input: str
    output: str
    imbalance: float = 100.0
    seed: int = 0

    def run(self) -> None:
        """Write the dataset."""
        labels = np.concatenate([table["label"].to_numpy() for _, table in _shards(self.input)])
        keep = np.zeros(len(labels), bool)
        order = np.random.default_rng(self.seed).permutation(len(labels))
        for label, count in enumerate(long_tail_sizes(np.bincount(labels), self.imbalance)):
            keep[order[labels[order] == label][:count]] = True
        _write(self.input, self.output, lambda table, rows: table.filter(pa.array(keep[rows])))
        print(f"{keep.sum():,} of {len(keep):,} images in {self.output}: {np.bincount(labels[keep]).tolist()}")


@dataclass(frozen=True, kw_only=True)
class FlipLabels:
    """Give a part of the images, chosen at random, another class, chosen at random."""

    input: str
    output: str
    fraction: float = 0.2
    seed: int = 0

    def run(self) -> None:
        """Write the dataset."""
        labels = np.concatenate([table["label"].to_numpy() for _, table in _shards(self.input)])
        flipped = flip_labels(labels, self.fraction, self.seed)
        _write(self.input, self.output, lambda table, rows: _relabelled(table, flipped[rows]))
        print(f"{np.mean(flipped != labels):.1%} of {len(labels):,} labels are wrong in {self.output}")


@dataclass(frozen=True, kw_only=True)
class Relabel:
    """Take the labels from a column of another file, joined by `id`."""

    input: str
    output: str
    labels: str
    column: str = "random1"

    def run(self) -> None:
        """Write the dataset."""
        table = pq.read_table(self.labels, columns=["id", self.column])
        given = dict(zip(table["id"].to_pylist(), table[self.column].to_pylist(), strict=True))

        def relabelled(table: pa.Table, _: slice) -> pa.Table:
            return _relabelled(table, np.array([given[name] for name in table["id"].to_pylist()]))

        wrong = _write(self.input, self.output, relabelled)
        print(f"{wrong:.1%} of the labels are wrong in {self.output}")


@dataclass(frozen=True, kw_only=True)
class WrongLabels:
    """What share of the labels that are kept is wrong, and how well hardness tells them."""

    run_folder: Annotated[str, tyro.conf.arg(name="run")]
    keep_fractions: tuple[float, ...] = (0.1, 0.3, 0.5)
    seed: int = 0

    def run(self) -> None:
        """Print a table."""
        store = RunStore(self.run_folder)
        pruned = _config(store)
        if pruned.rounds > 1:
            raise ValueError(f"{self.run_folder} was scored in {pruned.rounds} rounds. Name a run of one.")
        samples, sample_id = read_samples(store)
        wrong = _column(store, sample_id, CLEAN) != samples.label
        print(f"{wrong.mean():.1%} of {len(wrong):,} labels are wrong")
        for name in ("mean_el2n", "el2n", "loss", "aum"):
            if name in samples.scores:
                print(f"AUROC of {name}: {roc_auc_score(wrong, samples.column(name)):.3f}")
        methods: dict[str, Method] = {
            "razor, noise guard on": partial(
                gamma_razor, weigh=pruned.weigh, sample=replace(pruned.sample, tail="auto")
            ),
            "razor, noise guard off": partial(gamma_razor, weigh=pruned.weigh, sample=replace(pruned.sample, tail=0.0)),
            **{name: METHODS[name] for name in ("random_balanced", "ccs", "dual", "hardest")},
        }
        print(f"\n| wrong of the kept, % | {' | '.join(f'keep {100 * f:g} %' for f in self.keep_fractions)} |")
        print(f"|---|{'---|' * len(self.keep_fractions)}")
        for name, method in methods.items():
            budgets = [weights.budget(len(wrong), fraction) for fraction in self.keep_fractions]
            shares = [wrong[method(samples, budget, self.seed)].mean() for budget in budgets]
            print(f"| {name} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """Whether scores belong to the images they are said to: hardness must tell the images that people disagree on."""

    run_folder: Annotated[str, tyro.conf.arg(name="run")]
    labels: str
    column: str = "aggre"
    num_shuffles: int = 20

    def run(self) -> None:
        """Print the two areas under the curve."""
        store = RunStore(self.run_folder)
        samples, sample_id = read_samples(store)
        table = pq.read_table(self.labels, columns=["id", self.column])
        given = dict(zip(table["id"].to_pylist(), table[self.column].to_pylist(), strict=True))
        disputed = np.array([given[name] for name in _column(store, sample_id, "id")]) != samples.label
        hardness = samples.column(samples.hardness)
        print(f"{disputed.mean():.1%} of {len(disputed):,} images are disputed by {self.column}")
        print(f"AUROC of {samples.hardness} within classes: {auroc_in_classes(disputed, hardness, samples.label):.3f}")
        orders = [shuffle_in_classes(samples.label, seed) for seed in range(self.num_shuffles)]
        shuffled = np.mean([auroc_in_classes(disputed, hardness[order], samples.label) for order in orders])
        print(f"the same with ids shuffled within classes: {shuffled:.3f}, mean of {self.num_shuffles} shuffles")


def long_tail_sizes(sizes: NDArray[np.integer], imbalance: float) -> list[int]:
    """Images to keep of each class: from all of the first down to 1 / imbalance of it, in even ratios.

    >>> long_tail_sizes(np.array([5000] * 10), 100)
    [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    _check_classes(len(sizes))
    ratio = imbalance ** -(1 / (len(sizes) - 1))
    return [min(int(size), int(sizes[0] * ratio**place + 1e-9)) for place, size in enumerate(sizes)]


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"at least two classes are needed, got {num_classes}.")


def flip_labels(labels: NDArray[np.integer], fraction: float, seed: int) -> NDArray[np.integer]:
    """Labels of which exactly round(fraction N) were changed, to each other class with the same chance; (N,)."""
    rng = np.random.default_rng(seed)
    num_classes = int(labels.max()) + 1
    _check_classes(num_classes)
    chosen = rng.permutation(len(labels))[: round(fraction * len(labels))]
    flipped = labels.copy()
    flipped[chosen] = (labels[chosen] + rng.integers(1, num_classes, len(chosen))) % num_classes
    return flipped


def auroc_in_classes(positive: NDArray[np.bool_], score: NDArray[np.floating], label: NDArray[np.integer]) -> float:
    """Area under the ROC curve inside every class that has both kinds, averaged over its positives."""
    areas, counts = [], []
    for value in np.unique(label):
        rows = label == value
        if 0 < positive[rows].sum() < rows.sum():
            areas.append(roc_auc_score(positive[rows], score[rows]))
            counts.append(positive[rows].sum())
    if not areas:
        raise ValueError("no class has samples of both kinds.")
    return float(np.average(areas, weights=counts))


def shuffle_in_classes(label: NDArray[np.integer], seed: int) -> NDArray[np.intp]:
    """A permutation, (N,), that gives every sample another one's place in its class."""
    order = np.empty(len(label), np.intp)
    shuffled = np.random.default_rng(seed).permutation(len(label))
    order[np.argsort(label, kind="stable")] = shuffled[np.argsort(label[shuffled], kind="stable")]
    return order


def _shards(path: str) -> Iterator[tuple[str, pa.Table]]:
    source = sources.find(InputConfig(path=path))
    for name in source.paths:
        yield name, pq.read_table(f"{source.base}/{name}", filesystem=source.filesystem)


def _write(path: str, output: str, change: Callable[[pa.Table, slice], pa.Table]) -> float:
    """Write every shard as `change` makes it of (its table, its rows in the input); gives the share of wrong labels."""
    check_apart(path, output)
    folder = Path(output)
    start = num_wrong = num_samples = 0
    for name, table in _shards(path):
        changed = change(table.append_column(CLEAN, table["label"]), slice(start, start + table.num_rows))
        start += table.num_rows
        num_samples += changed.num_rows
        num_wrong += int(np.sum(changed["label"].to_numpy() != changed[CLEAN].to_numpy()))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)  # shards of two folders may have one name
        pq.write_table(changed, folder / name, row_group_size=1000)
    return num_wrong / num_samples


def _relabelled(table: pa.Table, labels: NDArray[np.integer]) -> pa.Table:
    place = table.schema.get_field_index("label")
    return table.set_column(place, table.schema.field(place), pa.array(labels, table.schema.field(place).type))


def _config(store: RunStore) -> PruneConfig:
    values = store.read_json(CONFIG)
    if values is None:
        raise ValueError(f"{store.uri} holds no run of prune.")
    return from_dict(PruneConfig, values)


def _column(store: RunStore, sample_id: NDArray[np.int64], name: str) -> NDArray[np.generic]:
    """A column of the run's input for samples in ascending order of their ids."""
    shards = [table[name].to_numpy() for _, table in _shards(_config(store).input.path)]
    first = np.cumsum([0, *map(len, shards)])  # (S + 1,)
    return np.concatenate(shards)[first[schema.shard_ids(sample_id)] + schema.rows(sample_id)]


Verb = (
    Annotated[LongTail, tyro.conf.subcommand("long-tail")]
    | Annotated[FlipLabels, tyro.conf.subcommand("flip-labels")]
    | Annotated[Relabel, tyro.conf.subcommand("relabel")]
    | Annotated[WrongLabels, tyro.conf.subcommand("wrong-labels")]
    | Annotated[Alarm, tyro.conf.subcommand("alarm")]
)

if __name__ == "__main__":
    tyro.cli(Verb, args=sys.argv[1:], description=__doc__).run()
