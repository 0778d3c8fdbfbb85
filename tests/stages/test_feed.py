"""Streams of rows: the window in which they are shuffled, and when each begins."""

from __future__ import annotations

import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor_ray.stages import feed
from razor_ray.stages.feed import begun, shuffled_in_window


def batches(num_rows: int, batch_size: int) -> list[dict[str, np.ndarray]]:
    ids = np.arange(num_rows)
    parts = (ids[start : start + batch_size] for start in range(0, num_rows, batch_size))
    return [{"id": part, "pixels": np.repeat(part[:, None], 3, axis=1).astype(np.uint8)} for part in parts]


@given(num_rows=st.integers(0, 200), batch_size=st.integers(1, 20), window=st.integers(1, 8), seed=st.integers(0, 99))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_every_row_comes_once_with_its_columns(num_rows, batch_size, window, seed):
    given_batches = batches(num_rows, batch_size)
    for batch in given_batches:
        for values in batch.values():
            values.flags.writeable = False  # as Ray gives them
    got = list(shuffled_in_window(given_batches, window * batch_size, np.random.default_rng(seed)))
    ids = np.concatenate([batch["id"] for batch in got]) if got else np.zeros(0, int)
    assert sorted(ids.tolist()) == list(range(num_rows))
    assert all((batch["pixels"] == batch["id"][:, None].astype(np.uint8)).all() for batch in got)
    lengths = [len(batch["id"]) for batch in got]
    assert len(lengths) == len(given_batches)
    assert all(length == batch_size for length in lengths[: -window - 1])
    assert not lengths or max(lengths[-window - 1 :]) - min(lengths[-window - 1 :]) <= max(1, batch_size - min(lengths))
    assert num_rows < 2 or batch_size < 3 or min(lengths) > 1  # a single image has no batch statistics


def test_the_order_is_the_seeds():
    def order(seed: int) -> list[int]:
        got = shuffled_in_window(batches(1000, 10), 100, np.random.default_rng(seed))
        return np.concatenate([batch["id"] for batch in got]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_what_is_yielded_is_not_overwritten_later():
    got = [
        (batch["id"], batch["id"].copy()) for batch in shuffled_in_window(batches(90, 10), 30, np.random.default_rng(0))
    ]
    assert len(got) == 9
    assert all((ids == as_yielded).all() for ids, as_yielded in got)


def test_rows_are_mixed_over_the_whole_window():
    """A row stays for a time that falls off geometrically: on average as many batches as the window holds."""
    num_batches, window_batches = 2000, 16
    got = list(shuffled_in_window(batches(num_batches * 8, 8), window_batches * 8, np.random.default_rng(0)))
    came, left = np.arange(num_batches * 8) // 8, np.empty(num_batches * 8)
    for step, batch in enumerate(got):
        left[batch["id"]] = step + window_batches  # nothing leaves before the window is full
    stayed = (left - came)[1000:-1000]
    assert stayed.mean() == pytest.approx(window_batches, rel=0.05)
    assert stayed.std() == pytest.approx(window_batches, rel=0.1)


def test_a_stream_that_has_begun_is_the_stream():
    given_batches = batches(50, 10)
    got = list(begun(given_batches))
    assert len(got) == 5
    assert all(one is other for one, other in zip(got, given_batches, strict=True))
    assert list(begun([])) == []


def test_a_stream_begins_before_its_first_batch_is_asked_for():
    asked = threading.Event()

    def stream():
        asked.set()
        yield from batches(10, 5)

    following = begun(stream())
    assert asked.wait(10)
    assert len(list(following)) == 2


@pytest.mark.parametrize("num_before", [0, 1])
def test_what_a_stream_raises_comes_where_it_is_read(num_before):
    def stream():
        yield from batches(num_before * 5, 5)
        raise OSError("the shard is gone")

    following = begun(stream())
    for _ in range(num_before):
        next(following)
    with pytest.raises(OSError, match="the shard is gone"):
        next(following)


def streams_of(num_rows: int, monkeypatch) -> list[str]:
    """Let every dataset have so many rows, in batches of ten; a list to which the name of each comes that is begun."""
    began = []

    def get_dataset_shard(name: str) -> SimpleNamespace:
        began.append(name)
        return SimpleNamespace(iter_batches=lambda **_: iter(batches(num_rows, 10)))

    monkeypatch.setattr(feed.ray.train, "get_dataset_shard", get_dataset_shard)
    return began


def test_the_next_epoch_begins_while_the_window_is_still_full(monkeypatch):
    began = streams_of(480, monkeypatch)
    given_feed = feed.Feed(("a", "b"), 10, 480, lambda: None, is_cached=False)
    generator = torch.Generator().manual_seed(0)

    def num_begun(*, is_followed: bool) -> list[int]:
        found, ids = [], []
        for batch in given_feed.batches(generator, is_followed=is_followed):
            found.append(len(began))
            ids += batch["id"].tolist()
        assert sorted(ids) == list(range(480))
        return found

    # Of 48 batches the window holds 16: when the first is drawn 17 have come, and after 32 the next stream begins.
    assert num_begun(is_followed=True) == [1] * 15 + [2] * 33
    assert num_begun(is_followed=True) == [2] * 15 + [3] * 33
    assert num_begun(is_followed=False) == [3] * 48
    assert num_begun(is_followed=False) == [4] * 48
    assert began == ["a", "b", "a", "b"]


def test_what_is_kept_is_in_memory_once(monkeypatch):
    num_rows, num_bytes = 4000, 4000 * 3072
    pixels = np.random.default_rng(0).integers(0, 256, (num_rows, 3072), np.uint8)

    def iter_batches(**_):
        for start in range(0, num_rows, 500):  # views, as those into Ray's object store
            ids = np.arange(num_rows - start, num_rows - start - 500, -1)
            yield {"sample_id": ids, "pixels": pixels[start : start + 500]}

    monkeypatch.setattr(feed.ray.train, "get_dataset_shard", lambda _: SimpleNamespace(iter_batches=iter_batches))
    given_feed = feed.Feed(("a",), 100, num_rows, lambda: None, is_cached=True)
    tracemalloc.start()
    given_feed._fill()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_bytes < peak < 1.2 * num_bytes
    got = list(given_feed.batches(None))
    assert np.concatenate([batch["sample_id"] for batch in got]).tolist() == list(range(1, num_rows + 1))
    assert (np.concatenate([batch["pixels"] for batch in got])[::-1] == pixels).all()


def test_a_short_epoch_is_followed_too(monkeypatch):
    began = streams_of(15, monkeypatch)
    given_feed = feed.Feed(("a", "b"), 10, 15, lambda: None, is_cached=False)
    for is_followed in (True, True, False):
        got = given_feed.batches(torch.Generator(), is_followed=is_followed)
        assert sorted(np.concatenate([batch["id"] for batch in got]).tolist()) == list(range(15))
    assert began == ["a", "b", "a"]
