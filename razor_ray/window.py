r"""Where the razor cuts: which levels of hardness a budget keeps. Ours.

The level of a sample is the share of all samples, of all classes, that are easier. What a budget can teach is a matter
of levels over all classes, not in each: the easy half of a class that is easy throughout is too easy, that of a hard
one is not (docs/experiments.md). A sample at level u is kept with a chance that goes as

.. math:: \left(u^m (1 - u)^{1 - m}\right)^\gamma,

the density of a Beta distribution whose mode is the focus m, and which is the narrower, the larger the sharpness γ.
Both follow the budget and how long a training on it is: what can be learned of few samples, and in few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from razor_ray.clusters import as_scores
from razor_ray.config import SampleConfig, TrainedFor, check_keep_fraction

_DROPPED_BITS = 12
"""Of a float32's 32: values that differ in these only, by less than a part in two thousand, are one level."""
_FEWNESS: dict[TrainedFor, float] = {"epochs": 1.0, "steps": 0.2}
"""Exponent of the fraction that is kept: for so long a training, how much it matters that samples are few."""
_HIGHEST_FOCUS: dict[TrainedFor, float] = {"epochs": 0.7, "steps": 0.75}
"""Above, it was too hard even for easy data, or was not measured (docs/experiments.md)."""
_MOST_PASSES = 10 / 3


@dataclass(frozen=True, slots=True)
class Levels:
    """How many samples there are at each hardness, which tells how hard a sample is among all.

    Counts of integers: whoever counts, in whatever parts and order, counts the same.
    """

    code: NDArray[np.uint32]
    """(K,) The hardness, coarsely, as integers of the same order; ascending."""
    count: NDArray[np.int64]
    """(K,) Samples there."""

    @classmethod
    def counted(cls, hardness: ArrayLike) -> Levels:
        """Count samples.

        Parameters
        ----------
        hardness : array of shape (N,)
            Finite; looked at in float32.

        Raises
        ------
        ValueError
            If a value is NaN or infinite.
        """
        code, count = np.unique(_codes(hardness), return_counts=True)
        return cls(code, count.astype(np.int64))

    @classmethod
    def merged(cls, parts: Iterable[Levels]) -> Levels:
        """The counts of several parts of the samples together."""
        parts = list(parts)
        code, of_each = np.unique(np.concatenate([part.code for part in parts]), return_inverse=True)
        count = np.zeros(len(code), np.int64)
        np.add.at(count, of_each, np.concatenate([part.count for part in parts]))
        return cls(code, count)

    def of(self, hardness: ArrayLike) -> NDArray[np.float64]:
        """Levels of samples that were counted.

        Parameters
        ----------
        hardness : array of shape (n,)

        Returns
        -------
        ndarray of shape (n,)
            In (0, 1): the share of all samples that are easier, plus half of the share of those that are alike.

        Raises
        ------
        ValueError
            If a value was not counted.

        Examples
        --------
        >>> Levels.counted([0.1, 0.3, 0.3, 0.7]).of([0.1, 0.3, 0.7]).tolist()
        [0.125, 0.5, 0.875]
        """
        codes = _codes(hardness)
        place = np.minimum(np.searchsorted(self.code, codes), len(self.code) - 1)  # (n,)
        if len(codes) and not (len(self.code) and (self.code[place] == codes).all()):
            raise ValueError(
                "hardness holds values that were not counted: levels are for the samples they are made of."
            )
        middle = np.cumsum(self.count) - self.count / 2  # (K,)
        return middle[place] / self.count.sum()


def from_zero(score: NDArray[np.floating], name: str) -> NDArray[np.floating]:
    """A score as levels are to be counted of it: the margin of probabilities, which begins at -1, put up to 0.

    Most samples are close to where it begins, if the proxy is sure of them; floats, and levels, are fine around 0 only.

    Parameters
    ----------
    score : ndarray of shape (n,)
    name : str
        Its column.

    Returns
    -------
    ndarray of shape (n,)
    """
    return score + np.float32(1) if name == "margin" else score


@dataclass(frozen=True, slots=True)
class Window:
    """The levels of hardness that are kept: around the focus, the closer the sharper."""

    focus: float
    """m in [0, 1], the level that is kept with the best chance."""
    sharpness: float
    """γ, at least 0. At 0 all levels have one chance."""

    @classmethod
    def of(cls, settings: SampleConfig, keep_fraction: float, contradicted_fraction: float) -> Window:
        """The configured window, or what 'auto' stands for.

        Parameters
        ----------
        settings : SampleConfig
        keep_fraction : float
            Of all samples, in (0, 1].
        contradicted_fraction : float
            In [0, 1], from the function of this name.
        """
        focus = auto_focus(keep_fraction, contradicted_fraction, settings.trained_for)
        sharpness = auto_sharpness(keep_fraction, contradicted_fraction, settings.trained_for)
        return cls(
            focus=focus if settings.focus == "auto" else settings.focus,
            sharpness=sharpness if settings.gamma == "auto" else settings.gamma,
        )

    def log_weights(self, level: NDArray[np.float64]) -> NDArray[np.float64]:
        """Logarithms of what the chances of samples at these levels go as: (n,) in (0, 1) to (n,), at most 0."""
        return self.sharpness * (self.focus * np.log(level) + (1 - self.focus) * np.log1p(-level))


def difficulty(contradicted_fraction: float) -> float:
    """How hard the data is for the rules of focus and sharpness: 5 e, at most 1, of the contradicted share e.

    More than a fifth is contradicted by a proxy that was trained for less, or because labels are wrong, too; the rules
    go no further than where they were measured (docs/experiments.md).

    Parameters
    ----------
    contradicted_fraction : float
        In [0, 1], from the function of this name.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If it is out of range.
    """
    if not 0 <= contradicted_fraction <= 1:
        raise ValueError(f"contradicted_fraction must be in [0, 1], got {contradicted_fraction}.")
    return min(5 * contradicted_fraction, 1.0)


def auto_focus(keep_fraction: float, contradicted_fraction: float, trained_for: TrainedFor = "epochs") -> float:
    """The level to keep most of: exp(-1.4 d (1 - ρ)), but at most 0.7, for equal steps 0.75. Ours.

    d is the `difficulty` of the data, ρ how far a training on the budget gets, of one on everything: the fraction r of
    the samples for equal epochs, r^(1/5) for equal steps, which are nearly as good as more samples. The harder the
    data, the more of its levels are out of a small budget's reach; the more samples and steps, the harder may be what
    they are spent on (docs/experiments.md).

    Parameters
    ----------
    keep_fraction : float
        r in (0, 1].
    contradicted_fraction : float
        In [0, 1].
    trained_for : 'epochs' or 'steps'
        As many of which as everything would be.

    Returns
    -------
    float
        In (0, 0.75].

    Raises
    ------
    ValueError
        If a fraction is out of range, or `trained_for` is neither.
    """
    _check_budget(keep_fraction, trained_for)
    rho = keep_fraction ** _FEWNESS[trained_for]
    return min(math.exp(-1.4 * difficulty(contradicted_fraction) * (1 - rho)), _HIGHEST_FOCUS[trained_for])


def auto_sharpness(keep_fraction: float, contradicted_fraction: float, trained_for: TrainedFor = "epochs") -> float:
    """How sharp the razor is: 0.7 d p / r. Ours.

    r is the fraction that is kept, d the `difficulty` of the data, p how often the `passes` of the training come by
    each sample. The window narrows as the budget falls, its width by the root of r, and so more slowly; in each class
    it is as wide as the quota needs (`sampling.soften`). Of easy data more levels are of use, and of what is seen again
    and again fewer. A proxy that contradicts nothing, as one that knows its images by heart, does not say what is hard:
    then all have one chance.

    Parameters
    ----------
    keep_fraction : float
        In (0, 1].
    contradicted_fraction : float
        In [0, 1].
    trained_for : 'epochs' or 'steps'
        As many of which as everything would be.

    Returns
    -------
    float
        At least 0.

    Raises
    ------
    ValueError
        If a fraction is out of range, or `trained_for` is neither.
    """
    return 0.7 * difficulty(contradicted_fraction) * passes(keep_fraction, trained_for) / keep_fraction


def passes(keep_fraction: float, trained_for: TrainedFor) -> float:
    """How often a training on the subset looks at each sample, for once that a training on everything does.

    Parameters
    ----------
    keep_fraction : float
        r in (0, 1].
    trained_for : 'epochs' or 'steps'
        As many of which as everything would be.

    Returns
    -------
    float
        1 for epochs, 1 / r for steps; at most 10 / 3, beyond which nothing was measured (docs/experiments.md).

    Raises
    ------
    ValueError
        If the fraction is out of range, or `trained_for` is neither.

    Examples
    --------
    >>> passes(0.5, "epochs"), passes(0.5, "steps")
    (1.0, 2.0)
    """
    _check_budget(keep_fraction, trained_for)
    return min(1 / keep_fraction, _MOST_PASSES) if trained_for == "steps" else 1.0


def contradicted_fraction(margin: ArrayLike) -> float:
    """Share of the samples, of all classes, for which the proxy prefers another class.

    Parameters
    ----------
    margin : array of shape (n,)
        Above 0 where some other class is ahead of the sample's own: the score `aum`, over all epochs of a proxy that
        was trained in the run, or `margin`, of one pass. Finite.

    Returns
    -------
    float
        In [0, 1]; 0 without samples.
    """
    margin = as_scores(np.asarray(margin), "contradicted_fraction")
    return float(np.count_nonzero(margin > 0) / max(len(margin), 1))


def _check_budget(keep_fraction: float, trained_for: TrainedFor) -> None:
    check_keep_fraction(keep_fraction)
    if trained_for not in ("epochs", "steps"):
        raise ValueError(f"trained_for must be 'epochs' or 'steps', got {trained_for!r}.")


def _codes(hardness: ArrayLike) -> NDArray[np.uint32]:
    """Hardness as integers of the same order, without its last bits; of the same shape."""
    values = as_scores(np.asarray(hardness), "hardness").astype(np.float32) + np.float32(0)  # no -0
    bits = values.view(np.uint32)
    # Bits of floats are in the order of their sizes: the negative turned round and put below the others.
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ordered >> np.uint32(_DROPPED_BITS)
