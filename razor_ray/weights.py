r"""Interclass sampling: weights of samples and classes from losses, and how many samples each class keeps.

The paper (γ-Razor, doi:10.1109/TCSS.2024.3453600) states that hard samples are learnt by inverse self-paced learning
(ISPL) and that their weights adapt to the inverse of each class's effective number of samples. Self-paced schemes are
Jiang et al.'s (2014), Zhao et al.'s (2015) and Li and Gong's (2017), effective numbers are Cui et al.'s (2019). Ours
are how the two are joined, the defaults, and everything about quotas.

    losses                  -> ispl_weights -> v_i in [0, 1]
    sums of v of each class -> class_weights -> w_c
    sums of w_c v_i         -> quota_mass, class_quotas -> integers that add up to the budget
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import assert_never, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from razor_ray.apportion import apportion, check_counts, check_integers
from razor_ray.config import Quota, Scheme, WeighConfig, check_keep_fraction

# Inverse self-paced weights: v = 1 - u, u the weight that self-paced learning gives.


def ispl_weights(
    loss: ArrayLike,
    *,
    scheme: Scheme,
    threshold: float,
    second_threshold: float | None = None,
    diversity_step: float | None = None,
    labels: ArrayLike | None = None,
) -> NDArray[np.float64]:
    r"""Inverse self-paced weight of each sample, :math:`v = 1 - u`.

    Parameters
    ----------
    loss : array of shape (N,)
        In nats, finite and at least 0.
    scheme : {'hard', 'linear', 'log', 'mixture', 'diversity'}
        See the functions `inverse_hard_weights`, `inverse_linear_weights` and so on.
    threshold : float
        λ, in nats, positive; λ₁ of 'mixture'.
    second_threshold : float, optional
        λ₂ of 'mixture', in nats (not a fraction of `threshold`).
    diversity_step : float, optional
        δ of 'diversity', in nats (not a fraction of `threshold`).
    labels : array of shape (N,), optional
        For 'diversity', whose ranks are within a class.

    Returns
    -------
    ndarray of shape (N,)
        In [0, 1], higher for harder samples. A function of the loss (and class) alone, not of the order of samples.

    Raises
    ------
    ValueError
        If there is no such scheme, a loss or a parameter is out of its range, or a parameter of the scheme is missing.
    """
    match scheme:
        case "hard":
            return inverse_hard_weights(loss, threshold)
        case "linear":
            return inverse_linear_weights(loss, threshold)
        case "log":
            return inverse_log_weights(loss, threshold)
        case "mixture":
            if second_threshold is None:
                raise ValueError("scheme 'mixture' needs second_threshold. Pass it, or choose scheme linear.")
            return inverse_mixture_weights(loss, threshold, second_threshold)
        case "diversity":
            if diversity_step is None or labels is None:
                raise ValueError("scheme 'diversity' needs diversity_step and labels. Pass them, or choose linear.")
            return inverse_diversity_weights(loss, threshold, diversity_step, labels)
        case _:
            schemes = ", ".join(get_args(Scheme))
            raise ValueError(f"there is no scheme {scheme!r}. Schemes: {schemes}.")


def inverse_hard_weights(loss: ArrayLike, threshold: float) -> NDArray[np.float64]:
    r"""1 where the loss is at least λ, else 0; inverse of :math:`f(u) = -\lambda u`.

    Parameters
    ----------
    loss : array of shape (N,)
    threshold : float
        λ > 0.

    Returns
    -------
    ndarray of shape (N,)
    """
    loss, threshold = _check_losses(loss), _check_threshold("threshold", threshold)
    return (loss >= threshold).astype(np.float64)


def inverse_linear_weights(loss: ArrayLike, threshold: float) -> NDArray[np.float64]:
    r"""min(1, ℓ / λ); inverse of :math:`f(u) = \lambda (u^2 / 2 - u)`.

    Parameters
    ----------
    loss : array of shape (N,)
    threshold : float
        λ > 0.

    Returns
    -------
    ndarray of shape (N,)
    """
    loss, threshold = _check_losses(loss), _check_threshold("threshold", threshold)
    return np.minimum(loss, threshold) / threshold


def inverse_log_weights(loss: ArrayLike, threshold: float) -> NDArray[np.float64]:
    r"""1 - ln(ℓ + ζ) / ln ζ below λ, else 1, with ζ = 1 - λ; inverse of :math:`f(u) = \zeta u - \zeta^u / \ln \zeta`.

    Parameters
    ----------
    loss : array of shape (N,)
    threshold : float
        λ in (0, 1).

    Returns
    -------
    ndarray of shape (N,)
    """
    loss, threshold = _check_losses(loss), _check_threshold("threshold", threshold)
    if threshold >= 1:
        raise ValueError(
            f"scheme 'log' needs a threshold in (0, 1), got {threshold:g} nats: lower weigh.quantile or choose scheme "
            "linear."
        )
    # The same as 1 - ln(l + zeta) / ln(zeta), without the cancellation at small losses.
    below = np.log1p(np.minimum(loss, threshold) / (1 - threshold)) / -np.log1p(-threshold)
    return np.where(loss < threshold, np.minimum(below, 1.0), 1.0)


def inverse_mixture_weights(loss: ArrayLike, threshold: float, second_threshold: float) -> NDArray[np.float64]:
    r"""0 up to λ₂, 1 from λ₁, between them 1 - ζ(1/ℓ - 1/λ₁) with ζ = λ₁λ₂ / (λ₁ - λ₂).

    Inverse of :math:`f(u) = -\zeta \ln(u + \zeta / \lambda_1)`.

    Parameters
    ----------
    loss : array of shape (N,)
    threshold : float
        λ₁ > 0.
    second_threshold : float
        λ₂ in (0, λ₁).

    Returns
    -------
    ndarray of shape (N,)
    """
    loss, threshold = _check_losses(loss), _check_threshold("threshold", threshold)
    second_threshold = _check_threshold("second_threshold", second_threshold)
    if second_threshold >= threshold:
        raise ValueError(
            f"second_threshold must be below threshold, got {second_threshold:g} and {threshold:g}. Lower "
            "weigh.second_threshold."
        )
    # The same as 1 - zeta (1 / l - 1 / l1), without the cancellation just above l2.
    between = np.clip(loss, second_threshold, threshold)
    between = (between - second_threshold) / between * (threshold / (threshold - second_threshold))
    return np.where(loss < threshold, np.minimum(between, 1.0), 1.0)


def inverse_diversity_weights(
    loss: ArrayLike, threshold: float, diversity_step: float, labels: ArrayLike
) -> NDArray[np.float64]:
    r"""1 where the k-th smallest loss of a class is at least λ + δ / (√k + √(k-1)), else 0.

    Inverse of :math:`f(u) = -\lambda \sum u - \delta \sum_c \lVert u_c \rVert_2`, which takes easy samples from many
    classes rather than from few. Samples of one class with equal losses all have the rank of the last of them, so that
    they weigh the same whatever their order: at the border such a group is hard as a whole.

    Parameters
    ----------
    loss : array of shape (N,)
    threshold : float
        λ > 0.
    diversity_step : float
        δ > 0.
    labels : array of shape (N,)
        Class of each sample.

    Returns
    -------
    ndarray of shape (N,)
    """
    loss, threshold = _check_losses(loss), _check_threshold("threshold", threshold)
    diversity_step = _check_threshold("diversity_step", diversity_step)
    labels = np.asarray(labels)
    if labels.shape != loss.shape:
        raise ValueError(f"labels must be of the shape of the losses {loss.shape}, got {labels.shape}.")
    rank = _rank_in_class(loss, labels).astype(np.float64)  # (N,)
    return (loss >= threshold + diversity_step / (np.sqrt(rank) + np.sqrt(rank - 1))).astype(np.float64)


def loss_quantile(losses: ArrayLike, quantile: float) -> float:
    """First threshold λ₀ of the schemes: a quantile of the losses, so that the schemes have no unit.

    Parameters
    ----------
    losses : array of shape (N,)
        In nats, finite and at least 0.
    quantile : float
        In [0, 1].

    Returns
    -------
    float
        The smallest loss that at least this fraction of the losses does not exceed: one of the losses, never a mean of
        two. If that is 0, the smallest positive loss, because a threshold must be positive. If all losses are 0, all
        samples are equally easy under any threshold, and the result is 0.5, which every scheme takes.

    Raises
    ------
    ValueError
        If there is no loss, a loss is negative or not finite, or `quantile` is outside [0, 1].

    Examples
    --------
    >>> loss_quantile([0.1, 0.4, 0.2, 0.3], 0.7)
    0.3
    """
    losses = _check_losses(losses)
    if not len(losses):
        raise ValueError("losses must hold at least one value, got none.")
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile:g}.")
    value = np.partition(losses, place := quantile_place(len(losses), quantile))[place]
    if value == 0:
        value = np.min(losses, initial=np.inf, where=losses > 0)
    return float(value) if value < np.inf else 0.5


def quantile_place(num_losses: int, quantile: float) -> int:
    """Place, from 0, among the losses in ascending order, of that which `loss_quantile` gives.

    Examples
    --------
    380 x 0.55 is 209 and, in binary digits, a little more:

    >>> quantile_place(4, 0.7), quantile_place(380, 0.55)
    (2, 208)
    """
    return max(math.ceil(num_losses * quantile * (1 - 1e-12)) - 1, 0)


# Effective numbers and class weights.


def effective_number(num_samples: ArrayLike, beta: float) -> NDArray[np.float64]:
    r"""Effective number of samples of each class, :math:`E_n = (1 - \beta^n) / (1 - \beta)`.

    Parameters
    ----------
    num_samples : array of shape (C,)
        Samples of each class; may be fractional (a sum of soft weights). Order is kept.
    beta : float
        In [0, 1). 0 makes every non-empty class count 1; towards 1, E_n tends to n. The number saturates at
        1 / (1 - beta) samples.

    Returns
    -------
    ndarray of shape (C,)
        In samples, between 0 and `num_samples` (for a fraction of a sample, between that fraction and 1).

    Raises
    ------
    ValueError
        If `beta` is outside [0, 1), or a count is negative or not finite.

    References
    ----------
    Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, Eq. (2).

    Examples
    --------
    >>> effective_number([0, 1, 2, 1000], beta=0.5).tolist()
    [0.0, 1.0, 1.5, 2.0]
    """
    num_samples = check_counts("num_samples", num_samples)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta:g}. Towards 1 every sample counts in full: try 0.9999.")
    if beta == 0:
        return (num_samples > 0).astype(np.float64)
    # expm1: 1 - beta^n has no digits left when beta^n is close to 1.
    effective = -np.expm1(num_samples * math.log(beta)) / (1 - beta)  # (C,)
    return np.minimum(effective, np.maximum(num_samples, 1))


def default_beta(num_samples: ArrayLike, passes: float = 1.0) -> float:
    """1 - p C / N, but at least 0: effective numbers level off at a p-th of the mean size of a class.

    Ours; so it scales with the data. The lower they level off, the more alike are the classes' weights, and the more of
    the budget goes where the hard samples are: a training that looks at each more often can learn more of those.

    Parameters
    ----------
    num_samples : array of shape (C,)
        Samples of each class; empty classes do not count.
    passes : float
        p, at least 1, of `window.passes`.

    Returns
    -------
    float
        In [0, 1).

    Raises
    ------
    ValueError
        If there is no sample, a count is negative or not finite, or `passes` is below 1 or not finite.

    Examples
    --------
    >>> default_beta([30, 10, 0]), default_beta([30, 10], passes=3)
    (0.95, 0.85)
    """
    num_samples = check_counts("num_samples", num_samples)
    if not num_samples.sum() > 0:
        raise ValueError("num_samples must hold at least one sample, got none in any class.")
    if not (passes >= 1 and math.isfinite(passes)):
        raise ValueError(f"passes must be finite and at least 1, got {passes}.")
    beta = 1 - passes * np.count_nonzero(num_samples) / num_samples.sum()
    return float(np.clip(beta, 0.0, np.nextafter(1.0, 0.0)))


def class_weights(effective_counts: ArrayLike, beta: float) -> NDArray[np.float64]:
    r"""Weight of each class, :math:`w_c \propto 1 / E(\max(m_c, 1))` with mean 1.

    Parameters
    ----------
    effective_counts : array of shape (C,)
        m_c, the sum of the ISPL weights of each class. Leave out classes without samples.
    beta : float
        In [0, 1), as for `effective_number`.

    Returns
    -------
    ndarray of shape (C,)
        Positive; the sum is C.

    Raises
    ------
    ValueError
        If there is no class, a count is negative or not finite, or `beta` is outside [0, 1).

    Examples
    --------
    >>> class_weights([3.0, 1.0], beta=0.0).tolist()
    [1.0, 1.0]
    """
    effective_counts = check_counts("effective_counts", effective_counts)
    if not len(effective_counts):
        raise ValueError("effective_counts must hold at least one class, got none.")
    # A class may have lost all its weight; counting it as one sample bounds its weight.
    inverse = 1 / effective_number(np.maximum(effective_counts, 1), beta)  # (C,)
    return inverse / inverse.mean()


# Budget and quotas.


def budget(num_samples: int, keep_fraction: float) -> int:
    """Number of samples to keep, ``round(keep_fraction * num_samples)``.

    Parameters
    ----------
    num_samples : int
        Samples that were scored.
    keep_fraction : float
        In (0, 1].

    Returns
    -------
    int
        Between 1 and `num_samples`.

    Raises
    ------
    ValueError
        If `keep_fraction` is outside (0, 1], or not one sample would be kept.

    Examples
    --------
    >>> budget(50_000, 0.3)
    15000
    """
    check_keep_fraction(keep_fraction)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}: nothing was scored.")
    total = round(keep_fraction * num_samples)
    if total < 1:
        raise ValueError(
            f"keep_fraction {keep_fraction:g} of {num_samples} samples comes to 0 samples. Pass at least "
            f"{_round_up(1 / num_samples):g}."
        )
    return total


def quota_mass(rule: Quota, *, ispl_mass: ArrayLike, num_samples: ArrayLike, recall: ArrayLike) -> NDArray[np.float64]:
    """What the quotas of the classes are proportional to.

    Parameters
    ----------
    rule : {'ispl', 'proportional', 'uniform', 'recall'}
        'ispl' (default of the product, ours): `ispl_mass`. 'proportional': `num_samples`. 'uniform': the same for all.
        'recall': 1 - `recall`, as the code of DRoP has it (its paper weighs by `num_samples` too; the two agree on
        classes of equal size).
    ispl_mass : array of shape (C,)
        Sum of w_c v_i over the samples of each class.
    num_samples : array of shape (C,)
        Samples of each class.
    recall : array of shape (C,)
        Fraction of each class's samples that the proxy gets right, in [0, 1].

    Returns
    -------
    ndarray of shape (C,)
        At least 0.

    Raises
    ------
    ValueError
        If an array is of another shape or out of its range.

    References
    ----------
    Vysogorets et al., DRoP: Distributionally Robust Data Pruning, ICLR 2025.
    """
    ispl_mass = check_counts("ispl_mass", ispl_mass)
    num_samples = check_counts("num_samples", num_samples)
    recall = check_counts("recall", recall)
    if not ispl_mass.shape == num_samples.shape == recall.shape:
        raise ValueError(
            "ispl_mass, num_samples and recall must be of one shape (C,), got "
            f"{ispl_mass.shape}, {num_samples.shape} and {recall.shape}."
        )
    if (recall > 1).any():
        raise ValueError(f"recall must be in [0, 1], got {recall.max():g}.")
    match rule:
        case "ispl":
            return ispl_mass
        case "proportional":
            return num_samples
        case "uniform":
            return np.ones_like(num_samples)
        case "recall":
            return 1 - recall
        case _:
            assert_never(rule)


def class_quotas(mass: ArrayLike, num_samples: ArrayLike, total: int, class_floor: int = 1) -> NDArray[np.int64]:
    """How many samples each class keeps: `apportion` between a floor and the size of the class.

    Parameters
    ----------
    mass : array of shape (C,)
        What the quotas are proportional to, from `quota_mass`.
    num_samples : array of shape (C,)
        Samples of each class.
    total : int
        The budget.
    class_floor : int
        Keep at least this many samples of each class; all of a smaller class.

    Returns
    -------
    ndarray of shape (C,)
        Quotas, with what `apportion` promises of their sum and their rounding.

    Raises
    ------
    ValueError
        If the budget is below the sum of the floors (the message names the smallest keep_fraction that works) or
        above the number of samples.

    Examples
    --------
    >>> class_quotas([1.0, 1.0, 1.0], [10, 10, 1], total=9).tolist()
    [4, 4, 1]
    """
    sizes = check_integers("num_samples", num_samples)
    if class_floor < 0:
        raise ValueError(f"class_floor must be at least 0, got {class_floor}.")
    floor = np.minimum(sizes, class_floor)  # (C,)
    needed = int(floor.sum())
    if total < needed:
        raise ValueError(
            f"a floor of {class_floor} for each of {len(sizes)} classes takes {needed} samples, but the budget is "
            f"{total} of {sizes.sum()}. Pass keep_fraction of at least {_round_up(needed / int(sizes.sum())):g}, or "
            "lower weigh.class_floor."
        )
    return apportion(mass, total, floor, sizes)


@dataclass(frozen=True, slots=True)
class IsplSettings:
    """What turns a loss into an ISPL weight: the scheme, and its thresholds in nats."""

    scheme: Scheme
    threshold: float
    second_threshold: float
    diversity_step: float

    @classmethod
    def of(cls, config: WeighConfig, threshold: float) -> IsplSettings:
        """The configured scheme at a threshold in nats, of which its other parameters are fractions."""
        return cls(config.scheme, threshold, threshold * config.second_threshold, threshold * config.diversity_step)

    def weigh(self, loss: NDArray[np.floating]) -> NDArray[np.float64]:
        """ISPL weights, before the class weight, of the samples of one class: (n,) to (n,)."""
        return ispl_weights(
            loss.astype(np.float64),
            scheme=self.scheme,
            threshold=self.threshold,
            second_threshold=self.second_threshold,
            diversity_step=self.diversity_step,
            labels=np.zeros(len(loss), np.int64),
        )


@dataclass(frozen=True, slots=True)
class ClassShares:
    """What interclass sampling gives the classes."""

    beta: float
    """Of the effective number."""
    class_weight: NDArray[np.float64]
    """(C,) Mean 1."""
    quota: NDArray[np.int64]
    """(C,) Samples to keep; they add up to the budget."""


def class_shares(
    *,
    num_samples: NDArray[np.integer],
    effective_count: NDArray[np.floating],
    recall: NDArray[np.floating],
    budget: int,
    config: WeighConfig,
    passes: float = 1.0,
) -> ClassShares:
    """Interclass sampling, from what the reduce knows of each class to its weight and quota.

    Parameters
    ----------
    num_samples : ndarray of shape (C,)
        Samples of each class, at least 1.
    effective_count : ndarray of shape (C,)
        Sum of the ISPL weights of each class.
    recall : ndarray of shape (C,)
        Fraction of each class's samples that the proxy gets right.
    budget : int
        Samples to keep in all.
    config : WeighConfig
    passes : float
        As `default_beta` takes it.

    Returns
    -------
    ClassShares

    Raises
    ------
    ValueError
        If the budget cannot be met, as `class_quotas` does.
    """
    beta = default_beta(num_samples, passes) if config.beta == "auto" else config.beta
    class_weight = class_weights(effective_count, beta)  # (C,)
    mass = quota_mass(config.quota, ispl_mass=class_weight * effective_count, num_samples=num_samples, recall=recall)
    return ClassShares(beta, class_weight, class_quotas(mass, num_samples, budget, config.class_floor))


def _rank_in_class(loss: NDArray[np.float64], labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Rank from 1 of each loss in its class, ascending; equal losses all have the rank of the last of them."""
    order = np.lexsort((loss, labels))  # (N,)
    sorted_loss, sorted_labels = loss[order], labels[order]
    positions = np.arange(len(loss))
    first_of_class = np.r_[True, sorted_labels[1:] != sorted_labels[:-1]][: len(loss)]  # (N,)
    first_of_tie = first_of_class | np.r_[True, sorted_loss[1:] != sorted_loss[:-1]][: len(loss)]  # (N,)
    class_start = np.maximum.accumulate(np.where(first_of_class, positions, 0))  # (N,)
    tie_ends = np.append(np.flatnonzero(first_of_tie)[1:], len(loss))  # (T,), position after each group of equals
    rank = np.empty(len(loss), np.int64)
    rank[order] = tie_ends[np.cumsum(first_of_tie) - 1] - class_start
    return rank


def _round_up(fraction: float) -> float:
    """The fraction with five significant digits, not rounded down; at most 1."""
    scale = 10.0 ** (4 - math.floor(math.log10(fraction)))
    return min(1.0, math.ceil(fraction * scale) / scale)


def _check_losses(loss: ArrayLike) -> NDArray[np.float64]:
    losses = np.asarray(loss, dtype=np.float64)
    if losses.ndim != 1:
        raise ValueError(f"losses must be of shape (N,), got {losses.shape}.")
    bad = ~(np.isfinite(losses) & (losses >= 0))
    if bad.any():
        raise ValueError(
            f"losses must be finite and at least 0, got {losses[bad][0]:g} at position {np.flatnonzero(bad)[0]} and "
            f"{np.count_nonzero(bad)} such losses in all. Quarantine these samples first."
        )
    return losses


def _check_threshold(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value:g}.")
    return float(value)
