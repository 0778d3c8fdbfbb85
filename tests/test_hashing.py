"""The hash behind every random choice; that what is drawn by it is random is tested with `sampling.draw_keys`."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal

from razor_ray.hashing import splitmix64


def test_hash_is_splitmix64():
    # The first outputs of splitmix64 from state 0, as published with it (Vigna, splitmix64.c).
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert_array_equal(splitmix64(states), np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4], np.uint64))
