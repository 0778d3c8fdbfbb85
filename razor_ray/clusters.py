"""Clusters of one class: k-means on embeddings or mean-shift on hardness, numbered from easy to hard.

Nothing here depends on the number of CPUs: BLAS and OpenMP are held to one thread.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from razor_ray.hashing import KMEANS, check_seed, hash_ids

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_MEAN_SHIFT_POINTS = 1000
_KMEANS_ITERATIONS = 20
_SAMPLES_PER_CLUSTER = 10
_MOST_FITTED = 200_000
"""Rows that k-means finds its centres on; ten thousand to a cluster at twenty clusters."""
_ASSIGNED_AT_ONCE = 50_000


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
    `sampling.sample_class` the order of rows matters to k-means. Of a class of more than 200,000 the centres are found
    on so many, drawn at random, and all are then assigned to the nearest: that bounds memory and time.

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
    hardness = as_scores(hardness, where)
    check_same_length(where, hardness=hardness, embedding=embedding)
    check_seed(seed)
    if clustering == "kmeans":
        check_embedding(embedding, where)
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
    start = int(hash_ids(np.array([label % 2**64], np.uint64), seed, KMEANS)[0] >> np.uint64(32))
    is_large = len(embedding) > _MOST_FITTED
    fitted = embedding
    if is_large:
        fitted = embedding[np.sort(np.random.default_rng(start).choice(len(embedding), _MOST_FITTED, replace=False))]
    rows = _unit_rows(fitted)  # (m, D)
    num_clusters = _num_distinct(rows, enough=num_clusters)
    if num_clusters == 1:
        return np.zeros(len(embedding), np.int64)
    # Imported late: it takes 2.5 s (2 cores, warm), and a process that only plans or submits a run needs none of it.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

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
        if not is_large:
            return kmeans.fit_predict(rows)
        kmeans.fit(rows)
        parts = range(0, len(embedding), _ASSIGNED_AT_ONCE)
        return np.concatenate(
            [kmeans.predict(_unit_rows(embedding[first : first + _ASSIGNED_AT_ONCE])) for first in parts]
        )


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


def as_scores(scores: NDArray[np.floating], where: str) -> NDArray[np.float64]:
    """Finite values of shape (n,), or a ValueError that begins with `where`."""
    # float64: the difference of two float32 values cannot overflow in it.
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise ValueError(f"{where}: scores must have shape (n,), got {scores.shape}.")
    if num_bad := np.count_nonzero(~np.isfinite(scores)):
        raise ValueError(f"{where}: {num_bad} of {len(scores)} scores are NaN or infinite. Quarantine them first.")
    return scores


def check_embedding(embedding: NDArray[np.floating] | None, where: str) -> None:
    """Refuse embeddings that k-means cannot use, with a ValueError that begins with `where`."""
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


def check_same_length(where: str, **arrays: NDArray[Any] | None) -> None:
    """Refuse arrays of several lengths, with a ValueError that begins with `where`; None is no array."""
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{where}: arrays must have one row per sample, got {lengths}.")
