"""gamma-Razor as one call: scored samples in, which to keep out.

The stages do the same to data that fits no single machine, and choose the same samples; here it is arrays, for Python
users, for the comparison with other methods (baselines.py), and for tests.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from razor_ray import sampling, schema, weights
from razor_ray.config import SampleConfig, WeighConfig
from razor_ray.window import Levels, Window, contradicted_fraction, from_zero, passes


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What was scored: all that a method may look at when it chooses.

    Raises
    ------
    ValueError
        If the arrays are not of one length.
    """

    ids: NDArray[np.integer]
    """(N,) Integers that name the samples for good; random choices are keyed by them."""
    label: NDArray[np.integer]
    """(N,) In 0..C-1."""
    scores: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    """Columns of `scores/`, (N,) each, by name."""
    embedding: NDArray[np.floating] | None = None
    """(N, D)"""
    hardness: str = "el2n"
    """The score that ranks samples, for methods that do not name one of their own."""
    tie_break: NDArray[np.integer] | None = None
    """(N,) Integers that tell samples of the same id apart, where ids are given twice."""

    def __post_init__(self) -> None:
        lengths = {"label": len(self.label)} | {name: len(column) for name, column in self.scores.items()}
        for name, array in (("embedding", self.embedding), ("tie_break", self.tie_break)):
            if array is not None:
                lengths[name] = len(array)
        if wrong := {name: length for name, length in lengths.items() if length != len(self.ids)}:
            raise ValueError(f"arrays must have a row for each of the {len(self.ids)} ids, got {wrong}.")

    def take(self, rows: NDArray[np.integer]) -> Samples:
        """Some of the samples."""
        return Samples(
            ids=self.ids[rows],
            label=self.label[rows],
            scores={name: column[rows] for name, column in self.scores.items()},
            embedding=None if self.embedding is None else self.embedding[rows],
            hardness=self.hardness,
            tie_break=None if self.tie_break is None else self.tie_break[rows],
        )

    def column(self, name: str) -> NDArray[np.float64]:
        """A score, (N,).

        Raises
        ------
        ValueError
            If it was not computed.
        """
        if name not in self.scores:
            raise ValueError(f"there is no score {name!r} (there are: {', '.join(sorted(self.scores))}).")
        return np.asarray(self.scores[name], np.float64)


RULE = 5
"""Of what gamma-Razor keeps, given the same scores and settings; another number with each change of that."""

Method = Callable[[Samples, int, int], NDArray[np.bool_]]
"""A way to choose: (samples, budget, seed) to a mask of shape (N,), True for the `budget` samples that are kept."""


def gamma_razor(
    samples: Samples,
    budget: int,
    seed: int,
    *,
    weigh: WeighConfig | None = None,
    sample: SampleConfig | None = None,
    threshold: float | None = None,
    earlier: Sequence[Mapping[int, float]] = (),
    hardness: str | None = None,
) -> NDArray[np.bool_]:
    """Choose by gamma-Razor: interclass sampling gives each class its quota, intraclass sampling fills it.

    Parameters
    ----------
    samples : Samples
        With the scores `loss`, `margin`, `correct` and that which ranks, and, for k-means, embeddings.
    budget : int
        Samples to keep, 1..N.
    seed : int
        0..2^63-1.
    weigh, sample : WeighConfig, SampleConfig, optional
        Defaults as for `razor-ray prune`.
    threshold : float, optional
        The ISPL threshold in nats; without it the configured quantile of the losses.
    earlier : sequence of mappings of label to float
        Effective counts of the classes in earlier ISPL rounds; classes are weighed by the mean over all rounds.
    hardness : str, optional
        The score that ranks samples; that of `samples` unless it is given.

    Returns
    -------
    ndarray of shape (N,)
        True for exactly `budget` samples.

    Raises
    ------
    ValueError
        If a score is missing or not finite, or the budget cannot be met.

    References
    ----------
    Liu et al., gamma-Razor, IEEE TCSS 12(3), 2025, as far as its abstract tells; see `weights` and `sampling` for what
    is ours.
    """
    weigh, sample = weigh or WeighConfig(), sample or SampleConfig()
    classes = _classes(samples)
    quotas = interclass_quotas(samples, budget, weigh=weigh, sample=sample, threshold=threshold, earlier=earlier)
    loss, margin = samples.column("loss"), samples.column("margin")
    ranked_by = hardness or samples.hardness
    hard = samples.column(ranked_by)
    contradicted = contradicted_fraction(samples.column(schema.average_margin(samples.scores)))
    window = Window.of(sample, budget / len(samples.ids), contradicted)
    counted = from_zero(hard, ranked_by)
    log_weight = window.log_weights(Levels.counted(counted).of(counted))
    keep = np.zeros(len(samples.ids), bool)
    for label, rows in classes:
        keep[rows] = sampling.sample_class(
            hardness=hard[rows],
            log_weight=log_weight[rows],
            embedding=None if samples.embedding is None else samples.embedding[rows],
            ids=samples.ids[rows],
            tie_break=None if samples.tie_break is None else samples.tie_break[rows],
            quota=quotas[label],
            seed=seed,
            label=label,
            wrong_label_fraction=sampling.estimate_wrong_labels(loss[rows], margin[rows]),
            settings=sample,
        ).keep
    return keep


def interclass_quotas(
    samples: Samples,
    budget: int,
    *,
    weigh: WeighConfig,
    sample: SampleConfig,
    threshold: float | None = None,
    earlier: Sequence[Mapping[int, float]] = (),
) -> dict[int, int]:
    """What gamma-Razor's interclass sampling gives each class: samples to keep, by label.

    Parameters
    ----------
    samples, budget, weigh, sample, threshold, earlier
        As for `gamma_razor`; embeddings are not looked at.

    Raises
    ------
    ValueError
        If a score is missing or not finite, or the budget cannot be met.
    """
    loss, correct = samples.column("loss"), samples.column("correct")
    threshold = weights.loss_quantile(loss, weigh.quantile) if threshold is None else threshold
    ispl = weights.IsplSettings.of(weigh, threshold)
    classes = _classes(samples)
    shares = weights.class_shares(
        num_samples=np.array([len(rows) for _, rows in classes]),
        effective_count=np.array(
            # In ascending order, as the distributed reduce holds them: the sums are then the same to the last bit.
            [
                statistics.fmean([*(of[label] for of in earlier), ispl.weigh(np.sort(loss[rows])).sum()])
                for label, rows in classes
            ]
        ),
        recall=np.array([np.mean(correct[rows]) for _, rows in classes]),
        budget=budget,
        config=weigh,
        passes=passes(budget / len(samples.ids), sample.trained_for),
    )
    return {label: int(quota) for (label, _), quota in zip(classes, shares.quota, strict=True)}


def _classes(samples: Samples) -> list[tuple[int, NDArray[np.intp]]]:
    """Labels, ascending, with the rows of each."""
    return [(int(label), np.flatnonzero(samples.label == label)) for label in np.unique(samples.label)]
