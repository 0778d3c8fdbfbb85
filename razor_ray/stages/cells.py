"""The cells of a comparison: single trainings as Ray tasks, over images and scores that lie in the object store once.

The driver decides on what and how each is trained; where it lands changes nothing. A cell keeps its state at the end of
a pass over its images, when a minute has gone since the last.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import ray
import torch
from numpy.typing import NDArray

import razor_ray
from razor_ray import comparison, methods, model, training, weights
from razor_ray.comparison import ALL
from razor_ray.config import CompareConfig, TrainedFor
from razor_ray.heap import freed_memory_kept
from razor_ray.run_store import CONFIG
from razor_ray.selection import Samples
from razor_ray.stages import preflight, runtime
from razor_ray.stages.checkpoint import Checkpoint

CELLS, STATE = "cells", ".pt"
_STEPS_BETWEEN_SIGNS = 10


@dataclass(frozen=True, order=True, slots=True)
class Cell:
    """One training of the comparison."""

    method: str
    keep_fraction: float
    budget: TrainedFor
    seed: int

    @property
    def name(self) -> str:
        """Of its file: without ':', which not every filesystem takes."""
        return f"{self.method.replace(':', '-')}-{self.keep_fraction!r}-{self.budget}-{self.seed}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.method} at {100 * self.keep_fraction:g} %, equal {self.budget}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Data:
    """What all cells are about; in the object store once."""

    samples: Samples
    pixels: NDArray[np.uint8]
    """(N, H, H, 3), in the order of the samples."""
    eval_pixels: NDArray[np.uint8]
    """(M, S, S, 3)"""
    eval_label: NDArray[np.int64]
    """(M,)"""
    arch: str
    num_classes: int
    image_size: int
    weights: bytes | None = None
    """The state_dict that trainings start from, if one was given."""
    threshold: float | None = None
    earlier: tuple[dict[int, float], ...] = ()
    """Of a run with ISPL rounds, as `selection.gamma_razor` takes them."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Some steps of a cell that have been made."""

    count: int
    is_earlier: bool = False
    """By an attempt before this one."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where cells keep the states of their trainings."""

    filesystem: pafs.FileSystem
    root: str
    """Of the comparison."""
    seconds: float
    """Between two states of a cell."""

    def checkpoint(self, cell: Cell, of: str) -> Checkpoint:
        """Of a cell, on any node.

        Raises
        ------
        ValueError
            If the node does not see the folder.
        """
        preflight.check_seen(self.filesystem, f"{self.root}/{CONFIG}", "output")
        return Checkpoint(self.filesystem, f"{self.root}/{state_name(cell)}", of, self.seconds)


def state_name(cell: Cell) -> str:
    """Of the file, in a comparison's folder, that holds the state of a training under way."""
    return f"{CELLS}/{cell.name}{STATE}"


def cells(config: CompareConfig) -> list[Cell]:
    """All cells of a comparison, those of the first seed first: what has been done is then of use at any time."""
    found = []
    for seed in config.seeds:
        found += [Cell(ALL, 1.0, "epochs", seed)] if config.train_on_all else []
        found += [
            Cell(method, fraction, budget, seed)
            for budget in config.budgets
            for fraction in config.keep_fractions
            for method in config.methods
        ]
    return found


def precision_of(config: CompareConfig) -> str:
    """In which all cells are trained: what was asked for, or what 'auto' is where they are."""
    device = torch.device("cuda" if runtime.num_gpus(config.model.device) else "cpu")
    return training.choose_precision(config.precision, device, gpus_have_bf16=runtime.gpus_have_bf16())


def train_cells(
    config: CompareConfig, missing: list[Cell], data: Data, folder: Folder
) -> Iterator[tuple[Cell, Steps | dict[str, Any]]]:
    """Train cells side by side.

    Yields
    ------
    (Cell, Steps or dict)
        What each tells: steps that it has made, and at its end its row.
    """
    gpus = runtime.num_gpus(config.model.device)
    workers = (gpus or runtime.num_cpus()) if config.num_workers == "auto" else config.num_workers
    share = runtime.share_of_gpu(workers) if gpus else 0.0
    threads = runtime.cpus_each(workers, share)
    # Here, lest it depend on where a cell is trained.
    device = "cuda" if gpus else "cpu"
    config = replace(config, precision=precision_of(config), model=replace(config.model, device=device))
    at_most = None if config.num_workers == "auto" else workers  # a cluster may grow meanwhile
    shared = ray.put(data)
    calls = ((cell, config, shared, folder, threads) for cell in missing)
    for index, found in runtime.run_tasks(
        _train_cell, calls, name="compare", at_most=at_most, num_cpus=threads, num_gpus=share
    ):
        yield missing[index], found


def _train_cell(
    cell: Cell, config: CompareConfig, data: Data, folder: Folder, threads: int
) -> Iterator[Steps | dict[str, Any]]:
    # No decorator: it would hide from Ray that this is a generator.
    with freed_memory_kept():
        yield from _steps_and_row(cell, config, data, folder, threads)


def _steps_and_row(
    cell: Cell, config: CompareConfig, data: Data, folder: Folder, threads: int
) -> Iterator[Steps | dict[str, Any]]:
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is what it says
    started = time.perf_counter()
    rows = _choose(cell, config, data)
    chosen = time.perf_counter()
    device = torch.device("cuda" if config.model.device == "cuda" else "cpu")
    network = _fresh_network(cell.seed, config, data).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    num_samples = len(data.samples.ids)
    num_steps = num_steps_of(config, cell, num_samples)
    arithmetic = (config.precision, device.type, str(threads), torch.__version__, razor_ray.__version__)
    checkpoint = folder.checkpoint(cell, _digest(data, rows, network, arithmetic))
    steps = training.fit(
        network,
        _as_tensor(data.pixels),
        _as_tensor(data.samples.label),
        replace(config, batch_size=batch_size_of(config, cell, num_samples)),
        arch=data.arch,
        image_size=data.image_size,
        num_steps=num_steps,
        seed=cell.seed,
        device=device,
        rows=torch.from_numpy(rows),
        checkpoint=checkpoint,
    )
    told, first = 0, 0
    mean_loss = torch.tensor(math.nan)
    for step, loss in steps:
        mean_loss = loss
        first = first or step
        # By steps and not by the clock, and also those of an earlier attempt: a cell that is begun again must tell of
        # the same.
        while step - told >= _STEPS_BETWEEN_SIGNS or step == num_steps > told:
            count = min(_STEPS_BETWEEN_SIGNS, step - told)
            told += count
            yield Steps(count, is_earlier=told < first)
    train_loss = float(mean_loss)  # waits for the last step
    trained = time.perf_counter()
    predicted = training.predict(network, _as_tensor(data.eval_pixels), precision=config.precision, device=device)
    counts = training.class_counts(_as_tensor(data.eval_label), predicted, data.num_classes)
    yield {
        "method": cell.method,
        "keep_fraction": cell.keep_fraction,
        "budget": cell.budget,
        "seed": cell.seed,
        "num_kept": len(rows),
        "num_steps": num_steps,
        "num_eval": len(data.eval_label),
        "right": comparison.pack(predicted.cpu().numpy() == data.eval_label),
        "train_loss": train_loss,
        "seconds": round(checkpoint.spent + trained - chosen, 3),
        "selection_seconds": round(chosen - started, 3),
        **training.classification_metrics(counts),
    }


def _choose(cell: Cell, config: CompareConfig, data: Data) -> NDArray[np.intp]:
    """Rows of the samples that a cell is trained on, (K,), ascending."""
    num_samples = len(data.samples.ids)
    if cell.method == ALL:
        return np.arange(num_samples)
    method = method_of(cell, config, data)
    return np.flatnonzero(method(data.samples, weights.budget(num_samples, cell.keep_fraction), cell.seed))


def _fresh_network(seed: int, config: CompareConfig, data: Data) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = model.build(data.arch, data.num_classes)
    if data.weights is not None:
        model.load_weights(network, data.weights, str(config.model.weights))
    return network


def _as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """An array of the object store, where it lies once for all cells of a node. It is only read."""
    with warnings.catch_warnings(action="ignore"):  # that torch has no tensors that are only to be read
        return torch.from_numpy(array)


def _digest(data: Data, rows: NDArray[np.integer], fresh: torch.nn.Module, arithmetic: tuple[str, ...]) -> str:
    """Of all that decides a training and that the configuration of the comparison leaves open.

    A cell that is begun again with another number of threads, or by another version, is then trained from its start: it
    comes out as one that nothing befell.
    """
    kept = data.samples.take(rows)
    names = json.dumps([data.arch, data.num_classes, data.image_size, *arithmetic])
    content = (names.encode(), kept.ids.tobytes(), kept.label.tobytes(), model.save_weights(fresh))
    return hashlib.sha256(b"".join(content)).hexdigest()


def num_steps_of(config: CompareConfig, cell: Cell, num_samples: int) -> int:
    """Of a cell, given the number of all samples to choose from."""
    return config.epochs * -(-_counted(cell, num_samples) // batch_size_of(config, cell, num_samples))


def batch_size_of(config: CompareConfig, cell: Cell, num_samples: int) -> int:
    """Of a cell, given the number of all samples to choose from: equal steps are of as many samples as with all."""
    return training.choose_batch_size(_counted(cell, num_samples)) if config.batch_size == "auto" else config.batch_size


def _counted(cell: Cell, num_samples: int) -> int:
    """Samples in an epoch of a cell, as its budget counts them."""
    return weights.budget(num_samples, cell.keep_fraction) if cell.budget == "epochs" else num_samples


def method_of(cell: Cell, config: CompareConfig, data: Data) -> functools.partial[NDArray[np.bool_]]:
    """The method of a cell; 'razor' with the settings of the comparison, the rounds of its run and the cell's budget.

    Only the razor's rule has a place for how long its choice will be trained; settings behind a name come on top.
    """
    return methods.resolve(
        cell.method,
        weigh=config.weigh,
        sample=replace(config.sample, trained_for=cell.budget),
        threshold=data.threshold,
        earlier=data.earlier,
    )
