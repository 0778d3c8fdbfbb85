"""A training worker's share of what `decode` gives, epoch after epoch, in an order that a seed decides."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray.train
import torch
from numpy.typing import NDArray
from torch import Tensor

_WINDOW_BATCHES = 16


def window_rows(batch_size: int) -> int:
    """Rows that a streamed share holds: the window and the batch that fills it, the one drawn, and two on their way."""
    return (_WINDOW_BATCHES + 4) * batch_size


class Feed:
    """A worker's share of a dataset.

    Data that fits is decoded once, through Ray Data, and kept as uint8; every epoch is then a fresh permutation of all
    of it, and the same with the same seed. Larger data is streamed and decoded anew in every epoch, and shuffled in a
    window.

    Parameters
    ----------
    names : tuple of str
        Of the dataset, as Ray Train knows it; epochs take turns with them.
    batch_size : int
    num_rows : int
        Of the share, as planned.
    beat : callable
        Called for every batch.
    is_cached : bool
        Keep what was decoded.
    """

    def __init__(
        self, names: tuple[str, ...], batch_size: int, num_rows: int, beat: Callable[[], None], *, is_cached: bool
    ) -> None:
        self.batch_size, self.num_rows, self.is_cached, self.beat = batch_size, num_rows, is_cached, beat
        self.num_batches = -(-num_rows // batch_size)
        """Of an epoch. The same on every worker, since an equal split gives all of them as many rows."""
        self._cache: dict[str, Tensor] | None = None
        self._order = torch.empty(0, dtype=torch.long)
        self._names = itertools.cycle(names)
        self._begun: Iterator[dict[str, NDArray[Any]]] | None = None
        """The stream of the next epoch, if it is under way."""

    def batches(self, generator: torch.Generator | None, *, is_followed: bool = False) -> Iterator[dict[str, Tensor]]:
        """One epoch; shuffled, if there is a generator to do it by.

        If another epoch is to follow at once, its stream begins when as much of this one's is left as the window holds,
        which is full then: the start of a stream, which takes half a second, and its first blocks cost no time.
        """
        for batch in self._from_cache(generator) if self.is_cached else self._streamed(generator, is_followed):
            self.beat()
            yield batch

    def _streamed(self, generator: torch.Generator | None, is_followed: bool) -> Iterator[dict[str, Tensor]]:
        batches = self._stream(is_followed)
        if generator is not None:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            batches = shuffled_in_window(batches, _WINDOW_BATCHES * self.batch_size, np.random.default_rng(seed))
        for batch in batches:
            # What Ray gives is read-only, in its object store.
            yield {
                name: torch.from_numpy(values if values.flags.writeable else values.copy())
                for name, values in batch.items()
            }

    def _stream(self, is_followed: bool) -> Iterator[dict[str, NDArray[Any]]]:
        stream, self._begun = self._begun or self._begin(), None
        # After the same batch in all workers, who have as many: Ray begins no worker's share before all ask for theirs.
        last = max(1, self.num_batches - _WINDOW_BATCHES)
        for number, batch in enumerate(stream, start=1):
            if is_followed and number == last:
                self._begun = self._begin()
            yield batch

    def _begin(self) -> Iterator[dict[str, NDArray[Any]]]:
        shard: Any = ray.train.get_dataset_shard(next(self._names))
        return begun(shard.iter_batches(batch_size=self.batch_size, prefetch_batches=2))

    def _from_cache(self, generator: torch.Generator | None) -> Iterator[dict[str, Tensor]]:
        if self._cache is None:
            self._fill()
        assert self._cache is not None
        num_rows = len(self._order)
        shuffled = torch.arange(num_rows) if generator is None else torch.randperm(num_rows, generator=generator)
        # Even parts rather than a small last batch, whose few images would make noise of the batch statistics.
        for rows in torch.tensor_split(self._order[shuffled], -(-num_rows // self.batch_size)):
            # Ten times as fast for images as an index in brackets.
            yield {name: values.index_select(0, rows) for name, values in self._cache.items()}

    def _fill(self) -> None:
        # To their place as they come: gathered first, and joined then, they would be in memory twice.
        kept: dict[str, NDArray[Any]] = {}
        row = 0
        shard: Any = ray.train.get_dataset_shard(next(self._names))
        for batch in shard.iter_batches(batch_size=None, prefetch_batches=1):
            self.beat()
            num_rows = len(batch["sample_id"])
            for name, values in batch.items():
                if name not in kept:
                    kept[name] = np.empty((self.num_rows, *values.shape[1:]), values.dtype)
                kept[name][row : row + num_rows] = values
            row += num_rows
        assert row == self.num_rows, f"{row} rows came of a share of {self.num_rows}"
        self._cache = {name: torch.from_numpy(values) for name, values in kept.items()}
        # By identity, so that the permutations do not depend on the order of arrival.
        self._order = self._cache["sample_id"].argsort()


def begun(items: Iterable[dict[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
    """The same items, of which the first is asked for at once, by a thread. What it raises, the first `next` raises."""
    iterator, first = iter(items), SimpleQueue[list[Any] | BaseException]()

    def ask() -> None:
        try:
            first.put(list(itertools.islice(iterator, 1)))
        except BaseException as error:
            first.put(error)

    # A daemon: Ray may never answer, and an interrupted run does not wait for that.
    threading.Thread(target=ask, daemon=True).start()

    def answered() -> Iterator[dict[str, NDArray[Any]]]:
        answer = first.get()
        if isinstance(answer, BaseException):
            raise answer
        yield from answer
        yield from iterator

    return answered()


def shuffled_in_window(
    batches: Iterable[dict[str, NDArray[Any]]], window: int, rng: np.random.Generator
) -> Iterator[dict[str, NDArray[Any]]]:
    """Shuffle rows that stream by: a window of them is held, and each batch changes places with as many of it.

    Ray Data's local shuffle gathers and copies the window's tables instead, at half again the cost of the step that it
    feeds (docs/performance.md).

    Parameters
    ----------
    batches : iterable of dict of ndarrays
        All but the last of equal length, at most `window`; not changed.
    window : int
        Rows to hold.
    rng : Generator

    Yields
    ------
    dict of ndarrays
        As many batches as came in, every row once. The last are even rather than one of them small, whose few images
        would make noise of the batch statistics, or an error.
    """
    held: dict[str, NDArray[Any]] = {}
    num_held = batch_size = 0
    for batch in batches:
        num_rows = len(next(iter(batch.values())))
        if not held:
            batch_size = num_rows
            room = window + batch_size  # for a short last batch too
            held = {name: np.empty((room, *values.shape[1:]), values.dtype) for name, values in batch.items()}
        fresh = num_rows if num_rows < batch_size else min(num_rows, window - num_held)
        for name, values in batch.items():
            held[name][num_held : num_held + fresh] = values[:fresh]
        num_held += fresh
        if fresh < num_rows:
            places = rng.choice(window, num_rows - fresh, replace=False)
            drawn = {name: values[places] for name, values in held.items()}
            for name, values in batch.items():
                held[name][places] = values[fresh:]
            yield drawn
    if num_held:
        for places in np.array_split(rng.permutation(num_held), -(-num_held // batch_size)):
            yield {name: values[places] for name, values in held.items()}
