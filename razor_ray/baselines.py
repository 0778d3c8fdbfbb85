"""The methods that a user would compare with, from their papers' definitions, behind one signature.

Each takes (samples, budget, seed) and keeps exactly `budget` samples. Random choices, those between equals too, are
keyed by sample ids, so that a method keeps the same samples in whatever order it gets them. Scores are those of
`razor_ray.hardness` and `razor_ray.dynamics`: higher = harder.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from razor_ray.apportion import apportion
from razor_ray.clusters import as_scores
from razor_ray.hashing import REMAINDERS, TAIL_TIES, as_ids, check_seed, hash_ids
from razor_ray.sampling import draw_keys, first_of_groups, weighted_draw
from razor_ray.selection import Samples

RULE = 1
"""Of what the methods here keep, given the same scores and settings; another number with each change of that."""

_DUAL_SCALE, _DUAL_ANCHORS = 15.0, 10


def random(samples: Samples, budget: int, seed: int) -> NDArray[np.bool_]:
    """Keep `budget` samples, each with the same chance."""
    return _first(_random_order(samples, seed), budget)


def random_balanced(samples: Samples, budget: int, seed: int) -> NDArray[np.bool_]:
    """Keep as many samples of every class, and all of a class that is smaller; at random within classes.

    What is left over goes to classes by chance, one each.
    """
    _check_budget(budget, len(samples.ids))
    check_seed(seed)
    labels, of_class, sizes = np.unique(samples.label, return_inverse=True, return_counts=True)  # (C,), (N,), (C,)
    order = np.argsort(hash_ids(labels.astype(np.uint64), seed, REMAINDERS), kind="stable")  # (C,)
    quota = np.empty(len(labels), np.int64)  # (C,)
    quota[order] = apportion(np.ones(len(labels)), budget, np.zeros(len(labels), np.int64), sizes[order])
    return first_of_groups(_random_order(samples, seed), of_class, quota)


def hardest_first(samples: Samples, budget: int, seed: int, *, hardness: str | None = None) -> NDArray[np.bool_]:
    """Keep the hardest, by the score `hardness`, that of `samples` unless it is given.

    References
    ----------
    Paul et al., Deep Learning on a Data Diet, NeurIPS 2021, for EL2N.
    """
    return _highest(samples, hardness or samples.hardness, budget, seed)


def forgetting(samples: Samples, budget: int, seed: int) -> NDArray[np.bool_]:
    """Keep those that were forgotten most often; those that were never learned come first.

    References
    ----------
    Toneva et al., An Empirical Study of Example Forgetting, ICLR 2019.
    """
    return _highest(samples, "forgetting", budget, seed)


def dyn_unc(samples: Samples, budget: int, seed: int) -> NDArray[np.bool_]:
    """Keep those whose predicted probability of the label varied most while the proxy learned.

    References
    ----------
    He et al., Large-scale Dataset Pruning with Dynamic Uncertainty, CVPR workshops 2024. Its window is here the whole
    training of the proxy, which is short.
    """
    return _highest(samples, "dyn_unc", budget, seed)


def ccs(
    samples: Samples,
    budget: int,
    seed: int,
    *,
    tail: float | None = None,
    num_strata: int = 50,
    hardness: str | None = None,
) -> NDArray[np.bool_]:
    """Coverage-centric coreset selection: the hardest are cut off, the rest is covered evenly over its scores.

    The scores of what is left are cut into strata of equal width. The smallest stratum comes first; each may keep an
    equal share of the budget that is left, at random.

    Parameters
    ----------
    samples, budget, seed
        As for every method.
    tail : float, optional
        Fraction of the samples that are cut off (the paper's beta), never so many that the budget cannot be met. The
        default is what the authors found best for CIFAR-10: 0.3 if at most 10 % are kept, 0.1 if at most 30 %, else 0.
    num_strata : int
        The paper's k.
    hardness : str, optional
        The score; that of `samples` unless it is given. (The authors have AUM for CIFAR, and report that others do
        about as well.)

    Raises
    ------
    ValueError
        If `tail` is not in [0, 1), or there is no stratum.

    References
    ----------
    Zheng et al., Coverage-centric Coreset Selection for High Pruning Rates, ICLR 2023, Algorithm 1.
    """
    if not (tail is None or 0 <= tail < 1) or num_strata < 1:
        raise ValueError(f"tail must be in [0, 1) and num_strata at least 1, got {tail} and {num_strata}.")
    _check_budget(budget, len(samples.ids))
    num_samples = len(samples.ids)
    tail = _authors_tail(num_samples, budget) if tail is None else tail
    num_cut = min(int(tail * num_samples + 1e-9), num_samples - budget)
    values = samples.column(hardness or samples.hardness)
    rest = _hardest_order(samples, values, seed)[num_cut:]  # (M,)
    low, high = values[rest].min(), values[rest].max()
    stratum = np.zeros(num_samples, np.int64)
    if high > low:
        stratum[rest] = np.minimum((values[rest] - low) / (high - low) * num_strata, num_strata - 1).astype(np.int64)
    sizes = np.bincount(stratum[rest], minlength=num_strata)  # (K,)
    quota = np.zeros(num_strata, np.int64)  # (K,)
    left = budget
    by_size = np.argsort(sizes, kind="stable")
    by_size = by_size[sizes[by_size] > 0]
    for place, at in enumerate(by_size):
        quota[at] = min(sizes[at], left // (len(by_size) - place))
        left -= quota[at]
    is_rest = np.zeros(num_samples, bool)
    is_rest[rest] = True
    order = _random_order(samples, seed)
    return first_of_groups(order[is_rest[order]], stratum, quota)


def ccs_per_class(
    samples: Samples,
    budget: int,
    seed: int,
    *,
    tail: float | None = None,
    num_strata: int = 50,
    hardness: str | None = None,
) -> NDArray[np.bool_]:
    """`ccs` inside every class; the default tail is of the whole budget, the same in all."""
    tail = _authors_tail(len(samples.ids), budget) if tail is None else tail
    return per_class(ccs)(samples, budget, seed, tail=tail, num_strata=num_strata, hardness=hardness)


def _authors_tail(num_samples: int, budget: int) -> float:
    # A budget is a fraction of the samples, rounded: up, too, and another tail is not meant by that.
    if budget <= 0.1 * num_samples + 0.5:
        return 0.3
    return 0.1 if budget <= 0.3 * num_samples + 0.5 else 0.0


def moderate(samples: Samples, budget: int, seed: int) -> NDArray[np.bool_]:
    """Moderate-DS: of each class, keep those whose distance to the class's mean embedding is closest to the median.

    Classes keep shares in proportion to their sizes. The authors' code takes the distances to medians, number by
    number, instead, and a window of their ranks over all classes at once.

    References
    ----------
    Xia et al., Moderate Coreset: A Universal Method of Data Selection for Real-world Data-efficient Deep Learning, ICLR
    2023.
    """
    if samples.embedding is None:
        raise ValueError("moderate needs embeddings, got none.")
    return per_class(_nearest_to_median)(samples, budget, seed)


def _nearest_to_median(samples: Samples, budget: int, seed: int) -> NDArray[np.bool_]:
    assert samples.embedding is not None
    rows = np.lexsort((_ties(samples), as_ids(samples.ids, "moderate")))  # one order for the float sums
    embedding = samples.embedding[rows].astype(np.float64)  # (n, D)
    distance = np.linalg.norm(embedding - embedding.mean(axis=0), axis=1)  # (n,)
    off_median = np.empty(len(rows))  # (n,)
    off_median[rows] = np.abs(distance - np.median(distance))
    return _first(_hardest_order(samples, -off_median, seed), budget)


def dual(samples: Samples, budget: int, seed: int, *, exponent: float = 4.0) -> NDArray[np.bool_]:
    r"""DUAL with Beta sampling: uncertain and difficult samples, easier ones the smaller the budget.

    Drawn without replacement with chances that go as DUAL times the density of Beta(a, b) at the sample's mean
    probability of its label, :math:`b = 15 (1 - \mu)(1 - r^c)`, :math:`a = 16 - b`, where r is the fraction that is
    pruned and :math:`\mu` the mean probability of the ten samples of the highest DUAL.

    Parameters
    ----------
    samples, budget, seed
        As for every method.
    exponent : float
        The paper's c_D; 4 is the default of the authors' code, which is for CIFAR-10 and CIFAR-100 and takes the latter
        unless told. (An earlier state of it added 2 to that.)

    Raises
    ------
    ValueError
        If `exponent` is not positive and finite.

    References
    ----------
    Cho et al., Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction Uncertainty,
    ICML 2025 (arXiv 2502.06905), and the authors' code.
    """
    if not 0 < exponent < math.inf:
        raise ValueError(f"exponent must be positive and finite, got {exponent}.")
    _check_budget(budget, len(samples.ids))
    score, mean = (as_scores(samples.column(name), name) for name in ("dual", "mean_p"))
    top = _hardest_order(samples, score, seed)[:_DUAL_ANCHORS]
    anchor = float(np.sort(mean[top]).mean())
    pruned = 1 - budget / len(samples.ids)
    b = max(_DUAL_SCALE * (1 - anchor) * (1 - pruned**exponent), 1e-6)
    a = _DUAL_SCALE + 1 - b
    # Logarithms, since the density spans hundreds of orders of magnitude; its constant factor changes no draw.
    inside = np.clip(mean, 1e-12, 1 - 1e-12)
    with np.errstate(divide="ignore"):
        logarithm = (a - 1) * np.log(inside) + (b - 1) * np.log1p(-inside) + np.log(score)  # (N,)
    finite = np.isfinite(logarithm)
    weight = np.zeros(len(score))
    if finite.any():
        # Beyond e^-600 of the largest, chances are nothing; weights must stay normal numbers.
        weight[finite] = np.exp(np.maximum(logarithm[finite] - logarithm[finite].max(), -600.0))
    ids = as_ids(samples.ids, "dual")
    keep = np.zeros(len(score), bool)
    keep[weighted_draw(weight, draw_keys(ids, seed), budget, _ties(samples))] = True
    return keep


def per_class(method: Callable[..., NDArray[np.bool_]]) -> Callable[..., NDArray[np.bool_]]:
    """The same method, with the same settings, inside every class, which keep shares in proportion to their sizes."""

    @functools.wraps(method)
    def balanced(samples: Samples, budget: int, seed: int, **settings: Any) -> NDArray[np.bool_]:
        _check_budget(budget, len(samples.ids))
        _, of_class, sizes = np.unique(samples.label, return_inverse=True, return_counts=True)
        quota = apportion(sizes.astype(np.float64), budget, np.zeros(len(sizes), np.int64), sizes)
        keep = np.zeros(len(samples.ids), bool)
        for index, count in enumerate(quota):
            rows = np.flatnonzero(of_class == index)
            if count:
                keep[rows] = method(samples.take(rows), int(count), seed, **settings)
        return keep

    return balanced


def _highest(samples: Samples, score: str, budget: int, seed: int) -> NDArray[np.bool_]:
    return _first(_hardest_order(samples, samples.column(score), seed), budget)


def _random_order(samples: Samples, seed: int) -> NDArray[np.intp]:
    """All rows in random order, (N,)."""
    return np.lexsort((_ties(samples), draw_keys(as_ids(samples.ids, "random"), seed)))


def _hardest_order(samples: Samples, score: NDArray[np.float64], seed: int) -> NDArray[np.intp]:
    """All rows, the highest score first, (N,); equals in random order."""
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite; samples without belong in quarantine.")
    check_seed(seed)
    return np.lexsort((_ties(samples), hash_ids(as_ids(samples.ids, "hardest"), seed, TAIL_TIES), -score))


def _ties(samples: Samples) -> NDArray[np.integer]:
    """What decides between samples that chance holds for equal: those of one id, and hashes that are alike."""
    if samples.tie_break is not None:
        return samples.tie_break
    ids = as_ids(samples.ids, "ids")
    if len(np.unique(ids)) < len(ids):
        raise ValueError(
            "ids occur more than once, so which of their samples are kept would depend on the order of rows. Pass "
            "their sample_id as tie_break."
        )
    return ids


def _first(order: NDArray[np.intp], budget: int) -> NDArray[np.bool_]:
    """A mask, (N,), of the first `budget` rows of an order."""
    _check_budget(budget, len(order))
    keep = np.zeros(len(order), bool)
    keep[order[:budget]] = True
    return keep


def _check_budget(budget: int, num_samples: int) -> None:
    if not 1 <= budget <= num_samples:
        raise ValueError(f"the budget must be in 1..{num_samples}, the number of samples, got {budget}.")
