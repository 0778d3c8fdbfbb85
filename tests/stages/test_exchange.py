"""How much the exchange makes of how much data: neither tiny objects in the driver's memory nor tasks too large."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from razor_ray.stages import exchange, sample

seeded = settings(deadline=None, derandomize=True, max_examples=200)
MIB = 2**20


@seeded
@given(
    num_files=st.integers(1, 500_000),
    file_bytes=st.integers(1, 4 * MIB),
    num_partitions=st.integers(1, 2000),
    usual=st.sampled_from([16, 128]),
    num_cpus=st.integers(1, 5000),
)
def test_objects_are_of_a_fair_size_and_tasks_fit(num_files, file_bytes, num_partitions, usual, num_cpus):
    num_bytes = num_files * file_bytes
    step = exchange.files_per_task(num_files, num_bytes, num_partitions, usual, num_cpus)
    tasks = math.ceil(num_files / step)
    assert 1 <= step <= num_files
    if num_bytes <= 256 * MIB:
        assert step <= usual  # and what lies in the driver's memory is bounded by what there is
        assert tasks >= min(num_files, num_cpus)  # none has nothing to do
    else:
        in_objects = num_bytes / (tasks * num_partitions)
        in_task = step * file_bytes
        assert in_objects >= 256 * 1024 or in_task >= 256 * MIB or tasks == 1
        # No larger than the one or the other asks for.
        assert step <= max(usual, 2 * math.ceil(max(512 * 1024 * num_partitions, 512 * MIB) / file_bytes))


@pytest.mark.parametrize(
    ("num_files", "file_bytes", "num_cpus", "at_most"),
    [
        (24_000, 547_000, 64, 30_000),  # 14 million samples
        (24_000, 547_000, 4096, 30_000),  # on a cluster so large that a task of one file each would be had
        (400_000, 547_000, 256, 450_000),  # 200 million
    ],
)
def test_the_exchange_of_embeddings_of_large_inputs(num_files, file_bytes, num_cpus, at_most):
    num_bytes = num_files * file_bytes
    partitions = sample._num_partitions(num_bytes, 10_000)
    step = exchange.files_per_task(num_files, num_bytes, partitions, 16, num_cpus)
    objects = math.ceil(num_files / step) * partitions
    assert objects <= at_most
    assert num_bytes / objects > 400_000  # well above what Ray would keep in the driver
    assert step * file_bytes < 512 * MIB and num_bytes / partitions < 512 * MIB


def test_partitions_of_small_inputs():
    assert sample._num_partitions(1000, 10) == 10  # no more than classes
    assert sample._num_partitions(1000, 100) == 16
    assert sample._num_partitions(20 * 256 * MIB, 100) == 20


def test_bytes_of_a_row():
    assert exchange.row_bytes(["sample_id", "key", "label"]) == 48
