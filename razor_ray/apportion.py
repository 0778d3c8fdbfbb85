"""A budget to integers: exact, between floors and caps, close to proportional, and never less of a larger budget."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_STRETCH = 2**16
"""Steps whose units are in memory at once."""


def apportion(mass: ArrayLike, total: int, floor: ArrayLike, cap: ArrayLike) -> NDArray[np.int64]:
    r"""Integers in proportion to masses, between floors and caps, with an exact sum, that never fall as the sum grows.

    The real-valued share is that of water-filling, :math:`x_c = \mathrm{clip}(t m_c, floor_c, cap_c)` with t such that
    the shares add up to `total`. Every integer is within one of its share. Largest remainders would be, too, but take
    a sample from a class when the total grows (the Alabama paradox); this is the quota method instead, generalised to
    floors and caps: samples are given one by one, the k-th of a class not before its share has passed k - 1, and the
    one whose share reaches k first goes first. The price is that of two shares with fractions the larger share tends to
    be rounded up.

    A class without mass gets its floor until all others are full; what is left is shared in proportion to cap - floor.

    Parameters
    ----------
    mass : array of shape (C,)
        Finite, at least 0.
    total : int
        The sum to reach; the time taken grows with it.
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
    masses = check_counts("mass", mass)
    floor, cap = check_integers("floor", floor), check_integers("cap", cap)
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
    pending = _Units.none()
    quotas_opened, first_nth = floor.copy(), floor + 1  # (A,), (A,)
    # In stretches, so that the memory that is taken does not grow with the total.
    for start in range(0, steps, _STRETCH):
        stop = min(start + _STRETCH, steps)
        # Two more than the share: what is released before the stretch ends, and rounding.
        last = np.minimum(np.floor(water.shares(stop + total - steps)).astype(np.int64) + 2, cap)  # (A,)
        last = np.maximum(last, first_nth - 1)
        units = pending.followed_by(_Units.between(first_nth, last, mass, water))
        first_nth = last + 1
        # Of equal deadlines, the one released first has waited longest: its remainder is the larger.
        by_urgency = np.lexsort((units.nth, units.owner, units.release, units.deadline))  # (U,)
        given = _earliest_deadline_first(by_urgency, units.release - (floor.sum() + start), stop - start)
        quotas_opened += np.bincount(units.owner[given], minlength=len(opened))
        pending = units.without(given)
    quotas[opened] = quotas_opened
    return quotas


@dataclass(frozen=True, slots=True)
class _Units:
    """Samples that may be given: the nth of the class at a place."""

    owner: NDArray[np.int64]
    """(U,), places of classes."""
    nth: NDArray[np.int64]
    """(U,), from 1 on."""
    release: NDArray[np.int64]
    """(U,), the first total in which each may be given."""
    deadline: NDArray[np.float64]
    """(U,), the total by which it must have been."""

    @staticmethod
    def none() -> _Units:
        whole = np.zeros(0, np.int64)
        return _Units(whole, whole, whole, np.zeros(0))

    @staticmethod
    def between(first: NDArray[np.int64], last: NDArray[np.int64], mass: NDArray[np.float64], water: _Water) -> _Units:
        """Those from first to last of every class, (A,) each; none where last is first - 1."""
        counts = last - first + 1
        owner = np.repeat(np.arange(len(mass)), counts)  # (U,)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts - first, counts)  # (U,)
        release = np.floor(water.total_at((nth - 1) / mass[owner])).astype(np.int64)
        return _Units(owner, nth, release, np.ceil(water.total_at(nth / mass[owner])))

    def followed_by(self, others: _Units) -> _Units:
        pairs = [(getattr(self, name), getattr(others, name)) for name in self.__slots__]
        return _Units(*(np.concatenate(pair) for pair in pairs))

    def without(self, places: NDArray[np.intp]) -> _Units:
        return _Units(*(np.delete(getattr(self, name), places) for name in self.__slots__))


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


def check_counts(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """The values of each class as float64 (C,), or a ValueError that names them if one is negative or not finite."""
    counts = np.asarray(values, dtype=np.float64)
    if counts.ndim != 1:
        raise ValueError(f"{name} must be of shape (C,), got {counts.shape}.")
    bad = ~(np.isfinite(counts) & (counts >= 0))
    if bad.any():
        raise ValueError(
            f"{name} must be finite and at least 0, got {counts[bad][0]:g} at position {np.flatnonzero(bad)[0]}."
        )
    return counts


def check_integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    """As `check_counts`, for whole numbers."""
    counts = check_counts(name, values)
    if (counts != np.rint(counts)).any() or counts.sum() > 2**53:
        raise ValueError(f"{name} must be integers whose sum is at most 2^53, got {counts}.")
    return counts.astype(np.int64)
