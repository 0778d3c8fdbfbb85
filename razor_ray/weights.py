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

import heapq
import itertools
import math
from typing import Literal, assert_never

import numpy as np
from numpy.typing import ArrayLike, NDArray

from razor_ray.config import check_keep_fraction

Scheme = Literal["hard", "linear", "log", "mixture", "diversity"]
QuotaRule = Literal["ispl", "proportional", "uniform", "recall"]


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
        If a loss or a parameter is out of its range, or a parameter of the scheme is missing.
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
            assert_never(scheme)


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
    value = np.quantile(losses, quantile, method="inverted_cdf")
    if value == 0:
        value = np.min(losses, initial=np.inf, where=losses > 0)
    return float(value) if value < np.inf else 0.5


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
    num_samples = _check_counts("num_samples", num_samples)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta:g}. Towards 1 every sample counts in full: try 0.9999.")
    if beta == 0:
        return (num_samples > 0).astype(np.float64)
    # expm1: 1 - beta^n has no digits left when beta^n is close to 1.
    effective = -np.expm1(num_samples * math.log(beta)) / (1 - beta)  # (C,)
    return np.minimum(effective, np.maximum(num_samples, 1))


def default_beta(num_samples: ArrayLike) -> float:
    """1 - C / N: one over the mean size of a class, so that it scales with the data (ours).

    Parameters
    ----------
    num_samples : array of shape (C,)
        Samples of each class; empty classes do not count.

    Returns
    -------
    float
        In [0, 1).

    Raises
    ------
    ValueError
        If there is no sample, or a count is negative or not finite.

    Examples
    --------
    >>> default_beta([30, 10, 0])
    0.95
    """
    num_samples = _check_counts("num_samples", num_samples)
    if not num_samples.sum() > 0:
        raise ValueError("num_samples must hold at least one sample, got none in any class.")
    beta = 1 - np.count_nonzero(num_samples) / num_samples.sum()
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
    effective_counts = _check_counts("effective_counts", effective_counts)
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


def quota_mass(
    rule: QuotaRule, *, ispl_mass: ArrayLike, num_samples: ArrayLike, recall: ArrayLike
) -> NDArray[np.float64]:
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
    ispl_mass = _check_counts("ispl_mass", ispl_mass)
    num_samples = _check_counts("num_samples", num_samples)
    recall = _check_counts("recall", recall)
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
        Integers that add up to `total`.

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
    sizes = _check_integers("num_samples", num_samples)
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


def apportion(mass: ArrayLike, total: int, floor: ArrayLike, cap: ArrayLike) -> NDArray[np.int64]:
    r"""Integers in proportion to masses, between floors and caps, with an exact sum, that never fall as the sum grows.

    The real-valued share is that of water-filling, :math:`x_c = \mathrm{clip}(t m_c, floor_c, cap_c)` with t such that
    the shares add up to `total`. Every integer is within one of its share. Largest remainders would be, too, but take
    a sample from a class when the total grows (the Alabama paradox); this is the quota method instead, generalised to
    floors and caps: samples are given one by one, the k-th of a class not before its share has passed k - 1, and the
    one whose share reaches k first goes first. Where shares end in fractions, the larger class is so rounded up sooner.

    A class without mass gets its floor until all others are full; what is left is shared in proportion to cap - floor.

    Parameters
    ----------
    mass : array of shape (C,)
        Finite, at least 0.
    total : int
        The sum to reach; the time and memory taken grow with it.
    floor, cap : arrays of shape (C,)
        Integers, 0 <= floor <= cap.

    Returns
    -------
    ndarray of shape (C,)
        Integers that add up to `total`.

    Raises
    ------
    ValueError
        If no such integers exist, or an argument is out of its range.

    References
    ----------
    Balinski and Young, The Quota Method of Apportionment, American Mathematical Monthly 82, 1975; Still, A Class of
    New Methods for Congressional Apportionment, SIAM J. Appl. Math. 37, 1979.

    Examples
    --------
    >>> apportion([6, 6, 2], 11, [0, 0, 0], [9, 9, 9]).tolist()
    [5, 5, 1]
    """
    masses = _check_counts("mass", mass)
    floor, cap = _check_integers("floor", floor), _check_integers("cap", cap)
    _check_feasible(masses, total, floor, cap)
    # Less than 1e-200 of the largest is no mass: cap / mass must not overflow.
    weighty = masses > 1e-200 * masses.max(initial=0.0)  # (C,)
    floor_of_others = int(floor[~weighty].sum())
    first_total = min(total - floor_of_others, int(cap[weighty].sum()))
    quotas = floor.copy()  # (C,)
    quotas[weighty] = _quota_method(masses[weighty], first_total, floor[weighty], cap[weighty])
    room = (cap - floor)[~weighty]
    left = total - floor_of_others - first_total
    quotas[~weighty] += _quota_method(room.astype(np.float64), left, np.zeros_like(room), room)
    return quotas


def _quota_method(
    mass: NDArray[np.float64], total: int, floor: NDArray[np.int64], cap: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`apportion` for masses that are positive wherever floor < cap.

    Why every sample is given in time: of the samples that must be given in the totals s+1..e, class c has at most
    x_c(e) - x_c(s), all classes e - s, one for each total. By Hall's theorem a schedule exists, and then earliest
    deadline first finds one. Its first steps do not depend on where it stops, hence no quota falls.
    """
    quotas = floor.copy()
    opened = np.flatnonzero(floor < cap)  # (A,)
    steps = total - int(floor.sum())
    if not steps:
        return quotas
    mass, floor, cap = mass[opened], floor[opened], cap[opened]
    # A power of two, so that scaling is exact.
    mass = np.ldexp(mass, -int(np.frexp(mass.max())[1]))
    total = steps + int(floor.sum())
    water = _Water(mass, floor, cap)
    # Two more than the share: what is released before `total`, and rounding.
    last = np.minimum(np.floor(water.shares(total)).astype(np.int64) + 2, cap)  # (A,)
    owner = np.repeat(np.arange(len(mass)), last - floor)  # (U,), a unit for each sample that may be given
    nth = 1 + np.arange(len(owner)) - np.repeat(np.cumsum(last - floor) - last, last - floor)  # (U,), floor + 1..last
    release = np.floor(water.total_at((nth - 1) / mass[owner])).astype(np.int64) - int(floor.sum())  # (U,)
    deadline = np.ceil(water.total_at(nth / mass[owner]))  # (U,)
    # Of equal deadlines, the one released first has waited longest: its remainder is the larger.
    by_urgency = np.lexsort((owner, release, deadline))  # (U,)
    given = _earliest_deadline_first(by_urgency, release, steps)  # (steps,)
    quotas[opened] += np.bincount(owner[given], minlength=len(opened))
    return quotas


def _earliest_deadline_first(by_urgency: NDArray[np.intp], release: NDArray[np.int64], steps: int) -> NDArray[np.intp]:
    """Units given in steps 0..steps-1, one each: the most urgent of those with release <= step.

    Parameters
    ----------
    by_urgency : ndarray of shape (U,)
        Units, the most urgent first.
    release : ndarray of shape (U,)
        First step in which each unit may be given.
    steps : int
        At most U.

    Returns
    -------
    ndarray of shape (steps,)
        Units in the order in which they are given.
    """
    urgency = np.empty_like(by_urgency)  # (U,)
    urgency[by_urgency] = np.arange(len(by_urgency))
    by_release = np.argsort(release, kind="stable")  # (U,)
    num_released = np.searchsorted(release[by_release], np.arange(steps), side="right")  # (steps,)
    # Rounding must not leave a step without a unit: at least as many are released as are given.
    num_released = np.maximum(num_released, np.arange(1, steps + 1)).tolist()
    arrivals = iter(urgency[by_release].tolist())
    # Plain integers and local names: this loop is the cost of the whole function.
    heap: list[int] = []
    given: list[int] = []
    push, pop, before = heapq.heappush, heapq.heappop, 0
    for released in num_released:
        for arrival in itertools.islice(arrivals, released - before):
            push(heap, arrival)
        before = released
        given.append(pop(heap))
    return by_urgency[given]


class _Water:
    """The total of the shares as a function of the water level t: rising, piecewise linear.

    Parameters
    ----------
    mass : ndarray of shape (A,)
        Positive.
    floor, cap : ndarrays of shape (A,)
        floor < cap.
    """

    def __init__(self, mass: NDArray[np.float64], floor: NDArray[np.int64], cap: NDArray[np.int64]) -> None:
        self._mass, self._floor, self._cap = mass, floor, cap
        levels = np.concatenate([floor / mass, cap / mass])  # (2A,), where a share leaves its floor, meets its cap
        order = np.argsort(levels, kind="stable")
        self._levels = levels[order]
        # From each level on the total is fixed + rising * t.
        self._fixed = int(floor.sum()) + np.cumsum(np.concatenate([-floor, cap])[order])  # (2A,)
        self._rising = _exact_running_sums(np.concatenate([mass, -mass])[order])  # (2A,)

    def total_at(self, level: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the shares at each level, all at least the lowest floor / mass."""
        segment = np.searchsorted(self._levels, level, side="right") - 1
        totals = self._fixed[segment] + self._rising[segment] * level
        # A total that is an integer but for rounding is that integer: the caller takes floor and ceil.
        nearest = np.rint(totals)
        return np.where(np.abs(totals - nearest) <= 4e-15 * nearest, nearest, totals)

    def shares(self, total: int) -> NDArray[np.float64]:
        """Shares, of shape (A,), that add up to `total`, which must lie between the sums of floors and caps."""
        totals = np.maximum.accumulate(self.total_at(self._levels))  # (2A,)
        segment = int(np.searchsorted(totals, total, side="right")) - 1
        level = self._levels[segment]
        if self._rising[segment] > 0:
            # Not below its segment, where a share too small to show in the total would start anew.
            level = max(level, (total - self._fixed[segment]) / self._rising[segment])
        return np.clip(level * self._mass, self._floor, self._cap)


def _exact_running_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums, each rounded once.

    Masses are added and later taken away again; in floating point a large one would leave its rounding error behind,
    larger than the small masses that remain.
    """
    ratios = [value.as_integer_ratio() for value in values.tolist()]
    denominator = max(below for _, below in ratios)  # all are powers of two
    sums = itertools.accumulate(above * (denominator // below) for above, below in ratios)
    return np.array([running / denominator for running in sums])


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


def _check_counts(name: str, values: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(values, dtype=np.float64)
    if counts.ndim != 1:
        raise ValueError(f"{name} must be of shape (C,), got {counts.shape}.")
    bad = ~(np.isfinite(counts) & (counts >= 0))
    if bad.any():
        raise ValueError(
            f"{name} must be finite and at least 0, got {counts[bad][0]:g} at position {np.flatnonzero(bad)[0]}."
        )
    return counts


def _check_integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    counts = _check_counts(name, values)
    if (counts != np.rint(counts)).any() or counts.sum() > 2**53:
        raise ValueError(f"{name} must be integers whose sum is at most 2^53, got {counts}.")
    return counts.astype(np.int64)


def _check_feasible(mass: NDArray[np.float64], total: int, floor: NDArray[np.int64], cap: NDArray[np.int64]) -> None:
    if not mass.shape == floor.shape == cap.shape:
        raise ValueError(
            f"mass, floor and cap must be of one shape (C,), got {mass.shape}, {floor.shape} and {cap.shape}."
        )
    if (floor > cap).any():
        position = int(np.argmax(floor > cap))
        raise ValueError(
            f"floor must not exceed cap, got {floor[position]} and {cap[position]} at position {position}."
        )
    if not floor.sum() <= total <= cap.sum():
        bound = (
            f"below the sum of the floors, {floor.sum()}"
            if total < floor.sum()
            else (f"above the sum of the caps, {cap.sum()}")
        )
        raise ValueError(f"total must lie between the sums of floors and caps, got {total}, {bound}.")
