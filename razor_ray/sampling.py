r"""Intraclass sampling: which samples of one class are kept, given how many.

What looks like wrong labels, the hardest tail, is set aside. The rest is clustered, so that every part of the class
stays covered, and drawn with the chances that `window` gives: what is too easy to teach anything is thinned, and so is
what is too hard for the budget.

From the paper (Liu et al., gamma-Razor, IEEE TCSS 12(3), 2025, read as an abstract): intraclass sampling is a
hardness-aware cluster sampling that downsamples the easy samples within each class. All else here is ours: k-means on
embeddings, the tail and its size, the window and the meaning of gamma, the hashed draw.

Every choice depends on (seed, sample id) and on the class's data, never on the position of a row: rows are put into
canonical order (by id) before anything is summed, so results are the same bit for bit at any number of workers. What
can move them is another kind of CPU, on which BLAS and NumPy's logarithms may round differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from razor_ray import clusters
from razor_ray.apportion import apportion
from razor_ray.clusters import as_scores, check_embedding, check_same_length
from razor_ray.config import SampleConfig
from razor_ray.hashing import DRAW, TAIL_TIES, as_ids, check_seed, hash_ids

REASONS = ("hard", "cluster", "class_floor", "over_quota", "noise")
"""Why a sample was kept (the first three) or dropped; a reason's code is its place here."""

NOT_CLUSTERED = -1
"""Cluster of a sample that no cluster was made for: in the tail, or of a class that is kept or dropped whole."""

HARD, CLUSTER, CLASS_FLOOR, OVER_QUOTA, NOISE = range(len(REASONS))

_LEAST_OF_A_CLUSTER = 3
"""Samples of a quota to a cluster, on average."""
_SOFTENED_WITHIN, _MOST_HALVINGS = 1e-3, 100
"""How exactly the power is found: no weight is off by more than this part of it, unless it is far beyond floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSample:
    """The samples of one class, in the caller's order."""

    keep: NDArray[np.bool_]
    """(n,) Exactly `quota` are True."""
    cluster: NDArray[np.int32]
    """(n,) 0 is the cluster with the lowest mean hardness; NOT_CLUSTERED for those without."""
    rank: NDArray[np.int64]
    """(n,) 1..n. The kept first, by preference; then those over quota, by preference; then the tail, easiest first."""
    reason: NDArray[np.int8]
    """(n,) Codes into REASONS."""


def sample_class(
    *,
    hardness: NDArray[np.floating],
    log_weight: NDArray[np.floating],
    embedding: NDArray[np.floating] | None,
    ids: NDArray[np.integer],
    quota: int,
    seed: int,
    label: int,
    wrong_label_fraction: float,
    settings: SampleConfig,
    tie_break: NDArray[np.integer] | None = None,
    floor_bound: bool = False,
) -> ClassSample:
    r"""Choose `quota` samples of one class.

    The hardest floor(tail * n) samples are set aside, but never so many that fewer than `quota` are left (the least
    hard of them come back first). The rest is clustered; each cluster gets a share of the quota in proportion to its
    sum of weights, at most its size; inside it samples are drawn with those weights. Of a small quota k-means makes
    fewer clusters, a third of it, lest some get nothing, whatever the seed. A class kept whole
    (quota = n) or not at all (quota = 0) is neither clustered nor given a tail. If all hardness is equal there is no
    tail.

    Parameters
    ----------
    hardness : ndarray of shape (n,)
        Higher = harder, in any unit: of it only the order matters, and for mean-shift its density. Finite.
    log_weight : ndarray of shape (n,)
        Logarithms of what the chances of the samples go as, from `Window.log_weights`; only their differences matter,
        and of these as much as `soften` leaves. Finite.
    embedding : ndarray of shape (n, D) or None
        float16 or float32, finite. Used by 'kmeans' only, which takes about 10 * n * D bytes on top of it (94 MB for
        20,000 x 512 float16, by tracemalloc) and nothing of n * n.
    ids : ndarray of shape (n,)
        Integers that name the samples for good: sample_id, or a 64-bit hash of the user's key.
    quota : int
        Samples to keep, 0..n.
    seed : int
        0..2^63-1.
    label : int
        Of the class; with `seed` it starts k-means, and errors name it.
    wrong_label_fraction : float
        In [0, 1], from `estimate_wrong_labels`; the tail, if that is 'auto'.
    settings : SampleConfig
        Clustering and tail.
    tie_break : ndarray of shape (n,) or None
        Integers that tell samples of the same id apart (sample_id, if `ids` are hashes).
    floor_bound : bool
        Whether the class floor set `quota`; kept samples then have the reason class_floor.

    Returns
    -------
    ClassSample
        Bit-identical for any order of the rows and any number of CPUs.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, the quota is out of range, or two samples cannot be told apart.
    """
    where = f"class {label}"
    hardness, log_weight, ids = as_scores(hardness, where), as_scores(log_weight, where), as_ids(ids, where)
    check_same_length(
        where, hardness=hardness, log_weight=log_weight, ids=ids, embedding=embedding, tie_break=tie_break
    )
    check_seed(seed)
    if not 0 <= quota <= len(hardness):
        raise ValueError(
            f"{where} has {len(hardness)} samples, got a quota of {quota}. Quotas come from weights.class_quotas."
        )
    if not 0 <= wrong_label_fraction <= 1:
        raise ValueError(f"{where}: wrong_label_fraction must be in [0, 1], got {wrong_label_fraction}.")
    if settings.clustering == "kmeans":
        check_embedding(embedding, where)
    order = _canonical_order(ids, tie_break, where)  # (n,)
    tail_size = _tail_size(hardness, quota, wrong_label_fraction if settings.tail == "auto" else settings.tail)
    canonical = _sample_class(
        hardness, log_weight, embedding, ids, order, quota, tail_size, seed, label, settings, floor_bound
    )
    place = np.empty_like(order)  # (n,) from canonical order back to the caller's
    place[order] = np.arange(len(order))
    return ClassSample(
        keep=canonical.keep[place],
        cluster=canonical.cluster[place],
        rank=canonical.rank[place],
        reason=canonical.reason[place],
    )


def _sample_class(
    hardness: NDArray[np.float64],
    log_weight: NDArray[np.float64],
    embedding: NDArray[np.floating] | None,
    ids: NDArray[np.uint64],
    order: NDArray[np.intp],
    quota: int,
    tail_size: int,
    seed: int,
    label: int,
    settings: SampleConfig,
    floor_bound: bool,
) -> ClassSample:
    """`sample_class` in canonical order. The embeddings alone are reordered late, so that they are copied once."""
    hardness, log_weight, ids = hardness[order], log_weight[order], ids[order]  # (n,)
    tail = _hardest(hardness, ids, seed, tail_size)  # (T,) easiest first
    in_tail = np.zeros(len(ids), bool)
    in_tail[tail] = True
    rest = np.flatnonzero(~in_tail)  # (n - T,)
    log_weight[rest] = _softened(log_weight[rest], quota)  # the tail's are not used

    preference = _draw_order(log_weight, _draw_keys(ids, seed), np.arange(len(ids)))  # (n,)
    preference = preference[~in_tail[preference]]  # (n - T,) rows of the rest, the best first
    cluster = np.full(len(ids), NOT_CLUSTERED, np.int32)
    if 0 < quota < len(ids):
        rows = embedding[order[rest]] if embedding is not None and settings.clustering == "kmeans" else None
        cluster[rest] = clusters.cluster(
            hardness[rest],
            rows,
            clustering=settings.clustering,
            num_clusters=min(settings.num_clusters, max(quota // _LEAST_OF_A_CLUSTER, 1)),
            seed=seed,
            label=label,
        )
        keep = _draw_in_clusters(preference, cluster, log_weight, quota)
    else:
        keep = np.full(len(ids), quota > 0)
    return ClassSample(
        keep=keep,
        cluster=cluster,
        rank=_rank(keep, preference, tail),
        reason=_reasons(keep, in_tail, hardness, floor_bound),
    )


def draw_keys(ids: NDArray[np.integer], seed: int) -> NDArray[np.float64]:
    """Random numbers that belong to samples, not to rows: Exp(1) variates from a hash of (seed, id). Ours.

    Parameters
    ----------
    ids : ndarray of shape (n,)
        64-bit integers, all 64 bits of which count.
    seed : int
        0..2^63-1. Another seed gives independent keys.

    Returns
    -------
    ndarray of shape (n,)
        Positive and finite, at most 53 ln 2 = 36.8.
    """
    check_seed(seed)
    return _draw_keys(as_ids(ids, "draw_keys"), seed)


def _draw_keys(ids: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    # Odd multiples of 2^-53 up to 1 - 2^-53: exact in float64, and never 0 or 1, whose logarithms are -inf and 0.
    uniform = ((hash_ids(ids, seed, DRAW) >> np.uint64(11)) | np.uint64(1)) * 2.0**-53  # (n,)
    return -np.log(uniform)


def weighted_draw(
    weight: NDArray[np.floating], keys: NDArray[np.float64], count: int, tie_breaker: NDArray[np.integer]
) -> NDArray[np.intp]:
    """Draw without replacement, with chances in proportion to the weights of those still there.

    Parameters
    ----------
    weight : ndarray of shape (n,)
        At least 0 and finite. Samples of weight 0 come only after all others, in the order of their keys.
    keys : ndarray of shape (n,)
        Exp(1) variates, from `draw_keys`.
    count : int
        0..n.
    tie_breaker : ndarray of shape (n,)
        Decides between equal keys / weight; the smaller first.

    Returns
    -------
    ndarray of shape (count,)
        Indices of the smallest keys / weight, the smallest first.

    References
    ----------
    Efraimidis and Spirakis, Weighted random sampling with a reservoir, Information Processing Letters 97(5), 2006.
    """
    check_same_length("weighted_draw", weight=weight, keys=keys, tie_breaker=tie_breaker)
    if not (np.isfinite(weight).all() and (np.asarray(weight) >= 0).all()):
        raise ValueError("weights must be finite and at least 0. Non-finite hardness belongs in quarantine.")
    if not 0 <= count <= len(keys):
        raise ValueError(f"count must be in 0..{len(keys)}, the number of samples, got {count}.")
    with np.errstate(divide="ignore"):
        log_weight = np.log(np.asarray(weight, np.float64))  # (n,)
    return _draw_order(log_weight, keys, tie_breaker)[:count]


def _draw_order(
    log_weight: NDArray[np.float64], keys: NDArray[np.float64], tie_breaker: NDArray[np.integer]
) -> NDArray[np.intp]:
    """All rows, in the order in which they would be drawn; shape (n,)."""
    is_zero = np.isneginf(log_weight)
    # The logarithm of keys / weight, which spans more than floats do.
    priority = np.log(keys) - np.where(is_zero, 0.0, log_weight)
    return np.lexsort((tie_breaker, priority, is_zero))


def soften(log_weight: NDArray[np.floating], quota: int) -> NDArray[np.float64]:
    r"""Weights to the largest power up to 1 at which they leave a choice. Ours.

    Of a class that lies far from the levels of hardness that are kept, a sharp window would take the few samples that
    are nearest to them, of whatever part of the class, and the same for every seed. A choice is what Kish's effective
    sample size :math:`(\sum w)^2 / \sum w^2` of at least one and a half times the quota leaves, or half of what is
    beyond it in a class that is kept nearly whole.

    Parameters
    ----------
    log_weight : ndarray of shape (n,)
        Logarithms of the weights. Finite.
    quota : int
        Samples to keep, 0..n.

    Returns
    -------
    ndarray of shape (n,)
        Logarithms, at most 0, of weights the largest of which is 1.
    """
    log_weight = as_scores(log_weight, "soften")
    if not 0 <= quota <= len(log_weight):
        raise ValueError(f"quota must be in 0..{len(log_weight)}, the number of samples, got {quota}.")
    return _softened(log_weight, quota)


def _softened(log_weight: NDArray[np.float64], quota: int) -> NDArray[np.float64]:
    if len(log_weight) == 0:
        return log_weight
    log_weight = log_weight - log_weight.max()  # (n,)
    enough = min(1.5 * quota, (len(log_weight) + quota) / 2)
    if _effective_size(log_weight) >= enough:
        return log_weight
    # The effective size falls as the power grows: halve the interval until no weight hangs on where in it the power is.
    low, high = 0.0, 1.0
    for _ in range(_MOST_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _effective_size(middle * log_weight) >= enough else (low, middle)
        if (high - low) * -log_weight.min() < _SOFTENED_WITHIN:
            break
    return low * log_weight


def _effective_size(log_weight: NDArray[np.float64]) -> float:
    """Kish's, of weights the largest of which is 1."""
    weight = np.exp(log_weight)  # (n,)
    return float(weight.sum() ** 2 / np.square(weight).sum())


def _draw_in_clusters(
    preference: NDArray[np.intp], cluster: NDArray[np.int32], log_weight: NDArray[np.float64], quota: int
) -> NDArray[np.bool_]:
    """Share the quota over the clusters by their sums of weights, and take the most preferred of each; shape (n,)."""
    rest = np.sort(preference)  # canonical order again, for the float sums
    size = np.bincount(cluster[rest])  # (K,)
    mass = np.bincount(cluster[rest], weights=np.exp(log_weight[rest]))  # (K,)
    quotas = apportion(mass, quota, np.zeros(len(size), np.int64), size)  # (K,)
    return first_of_groups(preference, cluster, quotas)


def first_of_groups(order: NDArray[np.intp], group: NDArray[np.integer], quota: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The first rows of each group.

    Parameters
    ----------
    order : ndarray of shape (M,)
        Some of the rows, the first first.
    group : ndarray of shape (N,)
        Of every row; of those in `order` in 0..K-1.
    quota : ndarray of shape (K,)

    Returns
    -------
    ndarray of shape (N,)
        True for as many of each group as its quota, or all of a smaller one.
    """
    grouped = order[np.argsort(group[order], kind="stable")]  # (M,) group by group, in the order of each
    sizes = np.bincount(group[order], minlength=len(quota))  # (K,)
    place = np.arange(len(grouped)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # (M,) place in its group
    keep = np.zeros(len(group), bool)
    keep[grouped[place < np.repeat(quota, sizes)]] = True
    return keep


def estimate_wrong_labels(loss: NDArray[np.floating], margin: NDArray[np.floating]) -> float:
    """Share of a class that the proxy contradicts with confidence.

    A sample counts if some other class has more than its own (margin > 0), at least as much as the class's samples
    that the proxy agrees with have on average for their own label, and at least one half, so that a proxy that is sure
    of nothing accuses nobody. Confident learning asks this of the other class's average, for which the scores have no
    column; reading it for one class is ours.

    Parameters
    ----------
    loss : ndarray of shape (n,)
        Cross-entropy in nats: -ln p_y. At least 0 and finite.
    margin : ndarray of shape (n,)
        Largest other probability less p_y, in [-1, 1].

    Returns
    -------
    float
        In [0, 0.5]: a proxy that contradicts more than half of a class is no judge of it. 0 for an empty class.

    References
    ----------
    Northcutt et al., Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70, 2021, Eq. (1), (2).
    """
    where = "estimate_wrong_labels"
    loss, margin = as_scores(loss, where), as_scores(margin, where)
    check_same_length(where, loss=loss, margin=margin)
    if (loss < 0).any():
        raise ValueError(f"loss is a cross-entropy and at least 0, got {loss.min():g}. Pass the column `loss`.")
    if len(loss) == 0:
        return 0.0
    order = np.lexsort((margin, loss))  # float sums over sorted values do not depend on the order of the rows
    p_label = np.exp(-loss[order])  # (n,)
    p_other = margin[order] + p_label  # (n,)
    agreed = margin[order] <= 0  # (n,)
    confident = max(0.5, p_label[agreed].mean()) if agreed.any() else 0.5
    contradicted = (p_other >= confident) & ~agreed  # (n,)
    return min(0.5, np.count_nonzero(contradicted) / len(loss))


def tail_size(fraction: float, num_samples: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many samples a tail is, were there no quota to leave.

    Parameters
    ----------
    fraction : float
        Of a class, in [0, 1].
    num_samples : ndarray of shape (C,)
        Of classes.

    Returns
    -------
    ndarray of shape (C,)
        floor(fraction * num_samples).
    """
    # 1e-9: 0.29 * 100 is 28.999999999999996, and means 29.
    return np.floor(fraction * np.asarray(num_samples) + 1e-9).astype(np.int64)


def _tail_size(hardness: NDArray[np.float64], quota: int, fraction: float) -> int:
    """Number of samples to set aside, between 0 and n - quota."""
    num_samples = len(hardness)
    if quota == 0 or hardness.min() == hardness.max():
        return 0
    return min(int(tail_size(fraction, np.array([num_samples]))[0]), num_samples - quota)


def _hardest(hardness: NDArray[np.float64], ids: NDArray[np.uint64], seed: int, count: int) -> NDArray[np.intp]:
    """Rows of the `count` hardest samples, easiest first; equal hardness by a hash of their ids."""
    return np.lexsort((hash_ids(ids, seed, TAIL_TIES), hardness))[len(hardness) - count :]


def _rank(keep: NDArray[np.bool_], preference: NDArray[np.intp], tail: NDArray[np.intp]) -> NDArray[np.int64]:
    """Ranks 1..n: the kept by preference, those over quota by preference, the tail in its order."""
    kept = keep[preference]  # (n - T,)
    final = np.concatenate([preference[kept], preference[~kept], tail])  # (n,) rows, that of rank 1 first
    rank = np.empty(len(keep), np.int64)
    rank[final] = np.arange(1, len(keep) + 1)
    return rank


def _reasons(
    keep: NDArray[np.bool_], in_tail: NDArray[np.bool_], hardness: NDArray[np.float64], floor_bound: bool
) -> NDArray[np.int8]:
    """Codes into REASONS, shape (n,). Hard is what lies above the median of the samples that the tail left."""
    if len(keep) == 0:
        return np.zeros(0, np.int8)
    kept = np.where(hardness > np.median(hardness[~in_tail]), HARD, CLUSTER)
    if floor_bound:
        kept = np.full(len(keep), CLASS_FLOOR)
    return np.where(keep, kept, np.where(in_tail, NOISE, OVER_QUOTA)).astype(np.int8)


def _canonical_order(ids: NDArray[np.uint64], tie_break: NDArray[np.integer] | None, where: str) -> NDArray[np.intp]:
    """Rows by (id, tie_break), shape (n,)."""
    ties = np.zeros(len(ids), np.uint64) if tie_break is None else as_ids(tie_break, where)
    order = np.lexsort((ties, ids))
    same = (np.diff(ids[order]) == 0) & (np.diff(ties[order]) == 0)  # (n - 1,)
    if same.any():
        twice = ids[order][1:][same][0]
        raise ValueError(
            f"{where}: id {twice} occurs more than once, so which one is kept would depend on the order of rows. "
            "Pass their sample_id as tie_break."
        )
    return order
