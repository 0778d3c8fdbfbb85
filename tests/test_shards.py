"""How a shard is cut into pieces."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from razor_ray import shards

seeded = settings(deadline=None, derandomize=True, max_examples=300)


# Pieces.


def test_pieces_by_hand():
    assert shards.plan_pieces([], 100, 10) == []
    assert shards.plan_pieces([0, 0], 100, 10) == []
    assert shards.plan_pieces([7], 100, 10) == [(0, 7)]
    assert shards.plan_pieces([60, 40, 1], 100, 10) == [(0, 100), (100, 1)]
    assert shards.plan_pieces([0, 60, 0, 50, 0], 100, 10) == [(0, 60), (60, 50)]
    assert shards.plan_pieces([101], 100, 10) == [(0, 60), (60, 41)]  # two halves of 50.5, up to whole batches
    assert shards.plan_pieces([5, 250, 5], 100, 50) == [(0, 5), (5, 100), (105, 100), (205, 50), (255, 5)]
    assert shards.plan_pieces([100], 10, 64) == [(0, 64), (64, 36)]  # a piece is a batch at least


layouts = st.lists(st.integers(0, 50) | st.integers(0, 3000), max_size=12)


@seeded
@given(layouts, st.integers(1, 700), st.integers(1, 130))
def test_pieces_cover_all_rows_once_in_order(groups, max_rows, batch_size):
    pieces = shards.plan_pieces(groups, max_rows, batch_size)
    covered = [row for first, rows in pieces for row in range(first, first + rows)]
    assert covered == list(range(sum(groups)))
    assert all(rows > 0 for _, rows in pieces)
    # Row groups stay whole, but for those that are larger than a piece may be: these are cut at multiples of the batch.
    starts = np.cumsum([0, *groups]).tolist()
    for first, _ in pieces:
        inside = [(start, rows) for start, rows in zip(starts, groups, strict=False) if start < first < start + rows]
        for start, rows in inside:
            assert rows > max(max_rows, batch_size)
            assert (first - start) % batch_size == 0


@seeded
@given(layouts, st.integers(1, 20), st.integers(1, 130))
def test_pieces_are_no_larger_than_asked(groups, num_batches, batch_size):
    pieces = shards.plan_pieces(groups, num_batches * batch_size, batch_size)
    assert all(rows <= num_batches * batch_size for _, rows in pieces)


@seeded
@given(layouts, st.integers(1, 700), st.integers(1, 130))
def test_pieces_are_no_larger_than_asked_of_any_batch(groups, max_rows, batch_size):
    # Also where the limit is no multiple of the batch: 'rows of a piece, unless a batch is larger'.
    pieces = shards.plan_pieces(groups, max_rows, batch_size)
    assert all(rows <= max(max_rows, batch_size) for _, rows in pieces)


@seeded
@given(layouts, st.integers(1, 20), st.integers(1, 130))
def test_pieces_waste_no_batches(groups, num_batches, batch_size):
    # Two neighbours that would fit together, and are whole row groups, are together.
    limit = num_batches * batch_size
    pieces = shards.plan_pieces(groups, limit, batch_size)
    ends = set(np.cumsum([0, *groups]).tolist())
    large = [(end - rows, end) for end, rows in zip(np.cumsum(groups).tolist(), groups, strict=True) if rows > limit]
    for (first, rows), (_, following) in zip(pieces, pieces[1:], strict=False):
        middle = first + rows
        next_group = next(rows for end, rows in zip(np.cumsum(groups).tolist(), groups, strict=True) if end > middle)
        if middle in ends and not any(start <= first < end or start == middle for start, end in large):
            assert rows + next_group > limit, (rows, following)
