"""Ways to score the same images with the same network; each runs in a process of its own.

What needs Ray is imported where it is used, so that contenders without Ray need not load it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jobs.benchmarks.measure import num_cpus
from razor_ray import hardness, heap, images, model, parquet_shards, transforms
from razor_ray.config import InputConfig, ScoreConfig
from razor_ray.run_store import RunStore


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all contenders are given."""

    folder: str
    """Of Parquet shards with `image` and an integer `label`."""
    weights: str
    """File of the network's weights."""
    arch: str
    num_classes: int
    image_size: int
    batch_size: int
    device: str
    """'cpu' or 'cuda'."""

    @property
    def precision(self) -> str:
        """What the scoring stage chooses by itself."""
        return "bf16" if self.device == "cuda" else "float32"

    def shards(self) -> list[str]:
        """Paths of the shards, by name."""
        return sorted(map(str, Path(self.folder).glob("*.parquet")))


Timeline = tuple[list[float], list[int]]
"""When batches or pieces were finished, by `time.time`, and their images."""


def ray_pipeline(setup: Setup, run_folder: str) -> Timeline:
    """The scoring stage as `razor-ray prune` runs it, on a private Ray."""
    from razor_ray.stages import catalog as catalogs
    from razor_ray.stages import runtime
    from razor_ray.stages.score import proxy_in_store, score

    store = RunStore(run_folder)
    store.write_bytes("proxy/model.safetensors", Path(setup.weights).read_bytes())
    with runtime.session():
        catalog = catalogs.build(InputConfig(path=setup.folder))
        proxy = proxy_in_store(store, setup.arch, setup.num_classes, setup.image_size, setup.device)
        score(catalog, proxy, ScoreConfig(batch_size=setup.batch_size), store, 0.01)
    files = store.files("scores")
    return [os.stat(file).st_mtime for file in files], [pq.read_metadata(file).num_rows for file in files]


def bare_loop(setup: Setup) -> Timeline:
    """One process that reads, decodes and scores, one after the other; torch uses all CPUs."""
    return _score_all(setup, decoded(setup.shards(), setup))


def data_loader(setup: Setup) -> Timeline:
    """`torch.utils.data.DataLoader` with as many workers as CPUs."""
    loader: DataLoader[tuple[torch.Tensor, torch.Tensor]] = DataLoader(
        _DecodedShards(setup), batch_size=None, num_workers=num_cpus(), pin_memory=setup.device == "cuda"
    )
    return _score_all(setup, iter(loader))


def decode_rates(setup: Setup, seconds: float) -> list[float]:
    """Images that each of as many processes as CPUs decodes in a second, all at once."""
    return _together(_decode_rate, num_cpus(), setup, seconds)


def forward_rates(setup: Setup, seconds: float) -> list[float]:
    """Images that each of as many processes as CPUs, or one with the GPU, scores in a second once they are decoded."""
    return _together(_forward_rate, 1 if setup.device == "cuda" else num_cpus(), setup, seconds)


def decoded(shards: list[str], setup: Setup) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of pixels (B, S, S, 3) and labels (B,)."""
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(setup.batch_size, columns=["image", "label"]):
            pixels, _ = images.decode_batch(batch["image"].to_pylist(), setup.image_size)
            yield torch.from_numpy(pixels), torch.from_numpy(batch["label"].to_numpy().astype(np.int64))


class _DecodedShards(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        assert worker is not None
        return decoded(self.setup.shards()[worker.id :: worker.num_workers], self.setup)


class _Network:
    """The forward pass and the scores, as an actor of the scoring stage computes them."""

    def __init__(self, setup: Setup, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        heap.keep_freed_memory()  # as the scoring stage does
        network = model.build(setup.arch, setup.num_classes)
        model.load_weights(network, Path(setup.weights).read_bytes(), setup.weights)
        self.device, self.precision = torch.device(setup.device), setup.precision
        moved = model.FeaturesAndLogits(network.eval())
        self.network = moved.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def score(self, pixels: torch.Tensor, labels: torch.Tensor) -> None:
        """All scores and the embedding, in host memory."""
        bf16 = self.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            embedding, logits = self.network(transforms.normalize(pixels.to(self.device, non_blocking=True)))
        scores = hardness.all_scores(logits.float(), labels.to(self.device))
        for value in (*scores.values(), embedding.to(torch.float16)):
            value.cpu().numpy()


def _score_all(setup: Setup, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Timeline:
    network = _Network(setup, num_cpus())
    times, counts = [], []
    for pixels, labels in batches:
        network.score(pixels, labels)
        times.append(time.time())
        counts.append(len(labels))
    return times, counts


_barrier: Barrier | None = None


def _share(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _together(
    function: Callable[[Setup, float], float], num_processes: int, setup: Setup, seconds: float
) -> list[float]:
    """Call a function in several processes at once; the barrier in `_rate` gives each of them one call."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_processes, _share, (context.Barrier(num_processes),)) as pool:
        return pool.starmap(function, [(setup, seconds)] * num_processes, chunksize=1)


def _decode_rate(setup: Setup, seconds: float) -> float:
    torch.set_num_threads(1)
    column = pq.read_table(setup.shards()[0], columns=["image"])["image"].slice(0, setup.batch_size)
    encoded = parquet_shards.image_bytes(column)
    return _rate(lambda: images.decode_batch(encoded, setup.image_size), len(encoded), seconds)


def _forward_rate(setup: Setup, seconds: float) -> float:
    network = _Network(setup, 1)
    shape = (setup.batch_size, setup.image_size, setup.image_size, 3)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    labels = torch.zeros(setup.batch_size, dtype=torch.long)
    if setup.device == "cuda":
        pixels = pixels.pin_memory()
    return _rate(lambda: network.score(pixels, labels), setup.batch_size, seconds)


def _rate(step: Callable[[], object], count: int, seconds: float) -> float:
    step()  # what is made at the first call is no part of the steady state
    assert _barrier is not None
    _barrier.wait()
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        step()
        done += count
    return done / elapsed
