r"""Intraclass sampling: which samples of one class are kept, given how many.

The class is cut from both edges. Its hardest tail is set aside (wrong labels, or out of reach of the budget); the rest
is clustered, so that every part of the class stays covered, and thinned where its hardness is dense, because easy
samples are many and alike.

From the paper (Liu et al., gamma-Razor, IEEE TCSS 12(3), 2025, read as an abstract): intraclass sampling is a
hardness-aware cluster sampling that downsamples the easy samples within each class. All else here is ours: k-means on
embeddings, the tail and its size, the density weights and the meaning of gamma, the hashed draw.

Every choice depends on (seed, sample id) and on the class's data, never on the position of a row: rows are put into
canonical order (by id) before anything is summed, so results are the same bit for bit at any number of workers. The
one thing that can move them is BLAS, whose float32 products may round differently on another kind of CPU.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from razor_ray.apportion import apportion
from razor_ray.config import SampleConfig

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

REASONS = ("hard", "cluster", "class_floor", "over_quota", "noise")
"""Why a sample was kept (the first three) or dropped; a reason's code is its place here."""

NOT_CLUSTERED = -1
"""Cluster of a sample that no cluster was made for: in the tail, or of a class that is kept or dropped whole."""

HARD, CLUSTER, CLASS_FLOOR, OVER_QUOTA, NOISE = range(len(REASONS))

_AUTO_GAMMA = 1.0
_MAX_TAIL_FRACTION = 0.5
_MEAN_SHIFT_POINTS = 1000
_KMEANS_ITERATIONS = 20
_SAMPLES_PER_CLUSTER = 10

# What a hash is for. The tail's ties must not use the keys of the draw: the tied samples with the larger keys would go
# to the tail, and those left would win the draw more often than their weights say.
_DRAW, _TAIL_TIES, _KMEANS = range(3)


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
    sum of density weights, at most its size; inside it samples are drawn with those weights. A class kept whole
    (quota = n) or not at all (quota = 0) is neither clustered nor given a tail. If all hardness is equal there is no
    tail and all weights are 1: a seeded uniform draw, spread over the clusters.

    Parameters
    ----------
    hardness : ndarray of shape (n,)
        Higher = harder, in any unit: of it only the order and the density over its range matter. Finite.
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
        In [0, 1], from `estimate_wrong_labels`; for tail 'auto' with the noise guard on.
    settings : SampleConfig
        Clustering, tail and gamma.
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
    hardness, ids = _as_scores(hardness, where), _as_ids(ids, where)
    _check_same_length(where, hardness=hardness, ids=ids, embedding=embedding, tie_break=tie_break)
    _check_seed(seed)
    if not 0 <= quota <= len(hardness):
        raise ValueError(
            f"{where} has {len(hardness)} samples, got a quota of {quota}. Quotas come from weights.apportion."
        )
    if not 0 <= wrong_label_fraction <= 1:
        raise ValueError(f"{where}: wrong_label_fraction must be in [0, 1], got {wrong_label_fraction}.")
    if settings.clustering == "kmeans":
        _check_embedding(embedding, where)
    order = _canonical_order(ids, tie_break, where)  # (n,)
    tail_size = _tail_size(hardness, quota, wrong_label_fraction, settings)
    canonical = _sample_class(hardness, embedding, ids, order, quota, tail_size, seed, label, settings, floor_bound)
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
    hardness, ids = hardness[order], ids[order]  # (n,)
    tail = _hardest(hardness, ids, seed, tail_size)  # (T,) easiest first
    in_tail = np.zeros(len(ids), bool)
    in_tail[tail] = True
    rest = np.flatnonzero(~in_tail)  # (n - T,)

    weight = np.ones(len(ids))  # the tail's are not used
    weight[rest] = _density_weights(hardness[rest], _gamma(settings))
    preference = _draw_order(weight, _draw_keys(ids, seed), np.arange(len(ids)))  # (n,)
    preference = preference[~in_tail[preference]]  # (n - T,) rows of the rest, the best first
    cluster = np.full(len(ids), NOT_CLUSTERED, np.int32)
    if 0 < quota < len(ids):
        rows = embedding[order[rest]] if embedding is not None and settings.clustering == "kmeans" else None
        cluster[rest] = _cluster(hardness[rest], rows, settings.clustering, settings.num_clusters, seed, label)
        keep = _draw_in_clusters(preference, cluster, weight, quota)
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
    _check_seed(seed)
    return _draw_keys(_as_ids(ids, "draw_keys"), seed)


def _draw_keys(ids: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    # Odd multiples of 2^-53 up to 1 - 2^-53: exact in float64, and never 0 or 1, whose logarithms are -inf and 0.
    uniform = ((_hash(ids, seed, _DRAW) >> np.uint64(11)) | np.uint64(1)) * 2.0**-53  # (n,)
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
    _check_same_length("weighted_draw", weight=weight, keys=keys, tie_breaker=tie_breaker)
    if not (np.isfinite(weight).all() and (np.asarray(weight) >= 0).all()):
        raise ValueError("weights must be finite and at least 0. Non-finite hardness belongs in quarantine.")
    if not 0 <= count <= len(keys):
        raise ValueError(f"count must be in 0..{len(keys)}, the number of samples, got {count}.")
    return _draw_order(np.asarray(weight, np.float64), keys, tie_breaker)[:count]


def _draw_order(
    weight: NDArray[np.float64], keys: NDArray[np.float64], tie_breaker: NDArray[np.integer]
) -> NDArray[np.intp]:
    """All rows, in the order in which they would be drawn; shape (n,)."""
    is_zero = weight == 0
    with np.errstate(over="ignore"):  # a subnormal weight: inf sorts last, as it should
        priority = keys / np.where(is_zero, 1.0, weight)
    return np.lexsort((tie_breaker, priority, is_zero))


def _draw_in_clusters(
    preference: NDArray[np.intp], cluster: NDArray[np.int32], weight: NDArray[np.float64], quota: int
) -> NDArray[np.bool_]:
    """Share the quota over the clusters by their sums of weights, and take the most preferred of each; shape (n,)."""
    rest = np.sort(preference)  # canonical order again, for the float sums
    size = np.bincount(cluster[rest])  # (K,)
    mass = np.bincount(cluster[rest], weights=weight[rest])  # (K,)
    quotas = apportion(mass, quota, np.zeros(len(size), np.int64), size)  # (K,)
    grouped = preference[np.argsort(cluster[preference], kind="stable")]  # (m,) cluster by cluster, the best first
    place = np.arange(len(grouped)) - np.repeat(np.cumsum(size) - size, size)  # (m,) place in its cluster
    keep = np.zeros(len(cluster), bool)
    keep[grouped[place < np.repeat(quotas, size)]] = True
    return keep


def density_weights(hardness: NDArray[np.floating], gamma: float, num_bins: int = 50) -> NDArray[np.float64]:
    r"""Weights that thin a class where its hardness is dense: :math:`\rho(h)^{-\gamma}`. Ours, and our gamma.

    The density is a histogram's over [min, max], in min(`num_bins`, ceil(sqrt(n))) bins of equal width.

    Parameters
    ----------
    hardness : ndarray of shape (n,)
        Of the samples that the tail left. Finite.
    gamma : float
        The razor's sharpness, at least 0. 0 follows the data: all weights are 1. 1 covers the range of hardness evenly:
        every bin that is not empty weighs the same in sum.
    num_bins : int
        At most this many bins.

    Returns
    -------
    ndarray of shape (n,)
        In (0, 1]; the sparsest bin's samples have 1. All 1 if all hardness is equal.
    """
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise ValueError(f"gamma must be at least 0 and finite, got {gamma}. 0 follows the data, 1 evens it out.")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}.")
    return _density_weights(_as_scores(hardness, "density_weights"), gamma, num_bins)


def _density_weights(hardness: NDArray[np.float64], gamma: float, num_bins: int = 50) -> NDArray[np.float64]:
    if len(hardness) == 0:
        return np.ones(0)
    num_bins = min(num_bins, math.ceil(math.sqrt(len(hardness))))
    bins = np.minimum((_unit_range(hardness) * num_bins).astype(np.int64), num_bins - 1)  # (n,)
    # Counts are integers, so the density does not depend on the order of the rows.
    counts = np.bincount(bins)  # (num_bins,)
    counts = np.maximum(counts, 1)  # empty bins have no samples to weigh
    sparsest = counts[bins].min()
    # The floor matters for gamma > 20 only: keys / weight must not overflow.
    return np.maximum((sparsest / counts) ** gamma, 1e-100)[bins]


def tail_fraction(keep_fraction: float, wrong_label_fraction: float) -> float:
    """Share of a class to set aside as its hardest tail, for tail 'auto'. Ours.

    max(min(0.5, 0.03 / keep_fraction), wrong_label_fraction): 0.30 when 10 % are kept and 0.10 when 30 % are, the two
    points measured on CIFAR-10; the curve between and beyond them is a guess.

    Parameters
    ----------
    keep_fraction : float
        Of this class, in (0, 1].
    wrong_label_fraction : float
        In [0, 1], from `estimate_wrong_labels`; 0 if not known.

    Returns
    -------
    float
        In (0, 1]. `sample_class` shortens the tail where it would eat into the quota.
    """
    if not 0 < keep_fraction <= 1:
        raise ValueError(f"keep_fraction must be in (0, 1], got {keep_fraction}. It is the fraction to keep.")
    if not 0 <= wrong_label_fraction <= 1:
        raise ValueError(f"wrong_label_fraction must be in [0, 1], got {wrong_label_fraction}.")
    return max(min(_MAX_TAIL_FRACTION, 0.03 / keep_fraction), wrong_label_fraction)


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
    loss, margin = _as_scores(loss, where), _as_scores(margin, where)
    _check_same_length(where, loss=loss, margin=margin)
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


def cluster(
    hardness: NDArray[np.floating],
    embedding: NDArray[np.floating] | None,
    *,
    clustering: Literal["kmeans", "mean_shift", "none"],
    num_clusters: int,
    seed: int,
    label: int,
) -> NDArray[np.int32]:
    """Cluster the samples of one class.

    The paper says clusters; which kind is ours. 'kmeans' is Lloyd's algorithm on L2-normalised embeddings in float32;
    'mean_shift' works on the scalar hardness, its bandwidth Silverman's, its modes found on at most 1,000 quantiles;
    'none' is one cluster. Threads are held to one, so that sums do not depend on the number of CPUs; unlike in
    `sample_class` the order of rows matters to k-means.

    Parameters
    ----------
    hardness : ndarray of shape (n,)
        Finite.
    embedding : ndarray of shape (n, D) or None
        float16 or float32, finite; for 'kmeans' only. A row of zeros stays at the origin.
    clustering : {'kmeans', 'mean_shift', 'none'}
    num_clusters : int
        For k-means: at most this many, at most n // 10 (but 1), and at most the number of distinct rows.
    seed, label : int
        Start k-means.

    Returns
    -------
    ndarray of shape (n,)
        0..K-1, none of them empty, from the lowest mean hardness to the highest.
    """
    where = f"class {label}"
    hardness = _as_scores(hardness, where)
    _check_same_length(where, hardness=hardness, embedding=embedding)
    _check_seed(seed)
    if clustering == "kmeans":
        _check_embedding(embedding, where)
    return _cluster(hardness, embedding, clustering, num_clusters, seed, label)


def _cluster(
    hardness: NDArray[np.float64],
    embedding: NDArray[np.floating] | None,
    clustering: str,
    num_clusters: int,
    seed: int,
    label: int,
) -> NDArray[np.int32]:
    if len(hardness) == 0:
        return np.zeros(0, np.int32)
    if clustering == "kmeans":
        assert embedding is not None
        assignment = _kmeans(embedding, num_clusters, seed, label)  # (n,)
    elif clustering == "mean_shift":
        assignment = _mean_shift(_unit_range(hardness))  # (n,)
    else:
        assignment = np.zeros(len(hardness), np.int64)
    # Number them by mean hardness: k-means' own numbers mean nothing. Ties by the first member.
    _, first, dense = np.unique(assignment, return_index=True, return_inverse=True)  # (K,), (K,), (n,)
    mean = np.bincount(dense, weights=hardness) / np.bincount(dense)  # (K,)
    number = np.empty(len(mean), np.int32)
    number[np.lexsort((first, mean))] = np.arange(len(mean))
    return number[dense]


def _kmeans(embedding: NDArray[np.floating], num_clusters: int, seed: int, label: int) -> NDArray[np.integer]:
    """Clusters of rows (n, D) on the unit sphere, as numbers of shape (n,)."""
    num_clusters = min(num_clusters, max(1, len(embedding) // _SAMPLES_PER_CLUSTER))
    rows = _unit_rows(embedding)  # (n, D)
    num_clusters = _num_distinct(rows, enough=num_clusters)
    if num_clusters == 1:
        return np.zeros(len(embedding), np.int64)
    # Imported late: it takes 2.5 s (2 cores, warm), and a process that only plans or submits a run needs none of it.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    start = int(_hash(np.array([label % 2**64], np.uint64), seed, _KMEANS)[0] >> np.uint64(32))
    kmeans = KMeans(
        num_clusters,
        n_init=1,  # pyright: ignore[reportArgumentType]  (its stubs know 'auto' only)
        max_iter=_KMEANS_ITERATIONS,
        random_state=start,
        copy_x=False,
        algorithm="lloyd",
    )
    with _thread_pools().limit(limits=1), warnings.catch_warnings():
        # Rows an ulp apart may end in fewer clusters than asked for; `_cluster` closes the gaps.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit_predict(rows)


def _mean_shift(hardness: NDArray[np.float64]) -> NDArray[np.integer]:
    """Clusters of values in [0, 1] around the modes of their density, as numbers of shape (n,)."""
    # Evenly spaced quantiles stand for the class: no random choice, and the cost is bounded.
    num_points = min(len(hardness), _MEAN_SHIFT_POINTS)
    points = np.sort(hardness)[np.linspace(0, len(hardness) - 1, num_points).astype(np.int64)]  # (P,)
    if points[0] == points[-1]:
        return np.zeros(len(hardness), np.int64)
    from sklearn.cluster import MeanShift  # late, as in _kmeans

    lower, upper = np.quantile(points, [0.25, 0.75])
    spread = min(points.std(), (upper - lower) / 1.34) if upper > lower else points.std()
    # Silverman's rule; at least 1 % of the range, which bounds the number of seeds by about 100.
    bandwidth = max(0.01, 0.9 * spread * num_points**-0.2)
    with _thread_pools().limit(limits=1), warnings.catch_warnings():
        # With few points binning thins nothing, and scikit-learn says so; that is no fault.
        warnings.simplefilter("ignore", UserWarning)
        shifted = MeanShift(bandwidth=bandwidth, bin_seeding=True, max_iter=100).fit(points[:, None])
    modes = np.sort(shifted.cluster_centers_[:, 0])  # (K,)
    return np.searchsorted((modes[1:] + modes[:-1]) / 2, hardness)  # nearest mode


@functools.cache
def _thread_pools() -> ThreadpoolController:
    """BLAS and OpenMP of this process; looked for once, as that takes 5 ms. Call it after scikit-learn is imported."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _unit_rows(embedding: NDArray[np.floating]) -> NDArray[np.float32]:
    """L2-normalised float32 rows, shape (n, D); a row of zeros stays zero."""
    rows = embedding.astype(np.float32)  # (n, D), a copy
    # Scaled by the largest entry first, so that squares neither overflow nor vanish.
    largest = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))  # (n,)
    rows /= np.where(largest > 0, largest, 1)[:, None]
    norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))  # (n,)
    rows /= np.where(norm > 0, norm, 1)[:, None]
    return rows


def _num_distinct(rows: NDArray[np.float32], enough: int) -> int:
    """Number of distinct rows, counted up to `enough`: as a rule the first `enough` rows settle it."""
    seen: set[bytes] = set()
    for row in rows:
        seen.add(row.tobytes())
        if len(seen) == enough:
            break
    return len(seen)


def _unit_range(hardness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values moved and scaled to [0, 1]; all 0 if they are equal."""
    low = hardness.min()
    span = hardness.max() - low
    return (hardness - low) / (span if span > 0 else 1.0)


def _gamma(settings: SampleConfig) -> float:
    return _AUTO_GAMMA if settings.gamma == "auto" else settings.gamma


def _tail_size(hardness: NDArray[np.float64], quota: int, wrong_label_fraction: float, settings: SampleConfig) -> int:
    """Number of samples to set aside, between 0 and n - quota."""
    num_samples = len(hardness)
    if quota == 0 or hardness.min() == hardness.max():
        return 0
    if settings.tail == "auto":
        fraction = tail_fraction(quota / num_samples, wrong_label_fraction if settings.noise_guard else 0.0)
    else:
        fraction = settings.tail
    # 1e-9: 0.29 * 100 is 28.999999999999996, and means 29.
    return min(math.floor(fraction * num_samples + 1e-9), num_samples - quota)


def _hardest(hardness: NDArray[np.float64], ids: NDArray[np.uint64], seed: int, count: int) -> NDArray[np.intp]:
    """Rows of the `count` hardest samples, easiest first; equal hardness by a hash of their ids."""
    return np.lexsort((_hash(ids, seed, _TAIL_TIES), hardness))[len(hardness) - count :]


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


def _hash(ids: NDArray[np.uint64], seed: int, purpose: int) -> NDArray[np.uint64]:
    """64 well-mixed bits of (seed, purpose, id), shape (n,)."""
    # Mixed before and after the seed joins in: with one round seed + 1 would have the keys of the neighbouring ids.
    salt = _mix(_mix(np.array([seed], np.uint64)) + np.uint64(purpose))  # (1,)
    return _mix(_mix(ids) ^ salt)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64 (Steele et al., OOPSLA 2014): a bijection of 64-bit integers. Wraps around on purpose."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _canonical_order(ids: NDArray[np.uint64], tie_break: NDArray[np.integer] | None, where: str) -> NDArray[np.intp]:
    """Rows by (id, tie_break), shape (n,)."""
    ties = np.zeros(len(ids), np.uint64) if tie_break is None else _as_ids(tie_break, where)
    order = np.lexsort((ties, ids))
    same = (np.diff(ids[order]) == 0) & (np.diff(ties[order]) == 0)  # (n - 1,)
    if same.any():
        twice = ids[order][1:][same][0]
        raise ValueError(
            f"{where}: id {twice} occurs more than once, so which one is kept would depend on the order of rows. "
            "Pass their sample_id as tie_break."
        )
    return order


def _as_ids(ids: NDArray[np.integer], where: str) -> NDArray[np.uint64]:
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise ValueError(
            f"{where}: ids must be one-dimensional integers, got {ids.dtype} of shape {ids.shape}. "
            "Floats cannot tell ids above 2^53 apart; of text pass a 64-bit hash."
        )
    return ids.astype(np.uint64)


def _as_scores(scores: NDArray[np.floating], where: str) -> NDArray[np.float64]:
    # float64: the difference of two float32 values cannot overflow in it.
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise ValueError(f"{where}: scores must have shape (n,), got {scores.shape}.")
    if num_bad := np.count_nonzero(~np.isfinite(scores)):
        raise ValueError(f"{where}: {num_bad} of {len(scores)} scores are NaN or infinite. Quarantine them first.")
    return scores


def _check_embedding(embedding: NDArray[np.floating] | None, where: str) -> None:
    if embedding is None:
        raise ValueError(f"{where}: k-means needs embeddings, got none. Score with them, or set sample.clustering.")
    if embedding.ndim != 2 or embedding.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"{where}: embeddings must be float16 or float32 of shape (n, D), got {embedding.dtype} of shape "
            f"{embedding.shape}. Cast them with astype(np.float32)."
        )
    if not np.isfinite(embedding).all():
        num_bad = np.count_nonzero(~np.isfinite(embedding).all(axis=1))
        raise ValueError(
            f"{where}: {num_bad} of {len(embedding)} embeddings hold NaN or infinity (float16 ends at 65504). "
            "Quarantine them, or scale the embeddings before they are saved."
        )


def _check_same_length(where: str, **arrays: NDArray[Any] | None) -> None:
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: arrays must have one row per sample, got {lengths}.")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in 0..2^63-1, got {seed}.")
