"""Random bits that belong to samples, not to rows: a hash of (seed, purpose, id), the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What a hash is for. The tail's ties must not use the keys of the draw: the tied samples with the larger keys would go
# to the tail, and those left would win the draw more often than their weights say.
DRAW, TAIL_TIES, KMEANS, VALIDATION, REMAINDERS = range(5)


def hash_ids(ids: NDArray[np.uint64], seed: int, purpose: int) -> NDArray[np.uint64]:
    """64 well-mixed bits of (seed, purpose, id).

    Parameters
    ----------
    ids : ndarray of shape (n,)
        From `as_ids`.
    seed : int
        0..2^63-1, see `check_seed`.
    purpose : int
        DRAW, TAIL_TIES, KMEANS, VALIDATION or REMAINDERS: the hashes of one purpose tell nothing of another's.

    Returns
    -------
    ndarray of shape (n,)
    """
    # Mixed before and after the seed joins in: with one round seed + 1 would have the keys of the neighbouring ids.
    salt = splitmix64(splitmix64(np.array([seed], np.uint64)) + np.uint64(purpose))  # (1,)
    return splitmix64(splitmix64(ids) ^ salt)


def splitmix64(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64: a bijection of 64-bit integers, of any shape. Wraps around on purpose.

    References
    ----------
    Steele et al., Fast Splittable Pseudorandom Number Generators, OOPSLA 2014.
    """
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def as_ids(ids: NDArray[np.integer], where: str) -> NDArray[np.uint64]:
    """Ids of shape (n,) as they are hashed; a ValueError that begins with `where` if they are not integers."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise ValueError(
            f"{where}: ids must be one-dimensional integers, got {ids.dtype} of shape {ids.shape}. "
            "Floats cannot tell ids above 2^53 apart; of text pass a 64-bit hash."
        )
    return ids.astype(np.uint64)


def check_seed(seed: int) -> None:
    """Refuse a seed that is not 0..2^63-1."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in 0..2^63-1, got {seed}.")
