"""`train`: images per second into a training step, from Ray Data and from a DataLoader."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from glob import glob
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from jobs.benchmarks.contenders import Setup
from jobs.benchmarks.measure import Measured, format_table, in_own_process, interleaved, median, num_cpus
from jobs.benchmarks.scoring import prepared, read_images, write_images
from razor_ray import heap, images, model, training
from razor_ray.config import InputConfig, ModelConfig, TrainConfig

Epochs = list[tuple[int, float]]
"""Images and seconds of every epoch."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Ray Train's ingest against a DataLoader: same images, decoder, crops, batch, network and step; one worker."""

    input: str
    """Parquet with `image` and an integer `label`."""
    arch: str = "jobs.benchmarks.networks:tiny"
    """A network that leaves next to nothing but the ingest."""
    image_size: int = 224
    batch_size: int = 128
    num_images: int = 2560
    """Repeated if the input has fewer."""
    shard_rows: int = 1024
    epochs: int = 3
    """The first, with the start of workers, is told apart from the others."""
    repeats: int = 3

    def run(self) -> tuple[str, dict[str, Any]]:
        """Measure; the table and the result."""
        if self.epochs < 2:
            raise ValueError(f"epochs must be at least 2, got {self.epochs}: the first is the start.")
        with prepared(self) as (setup, folder):
            write_images(self.input, setup.folder, self.num_images, self.shard_rows)

            def on_ray(cache_gib: float) -> Measured:
                run = tempfile.mkdtemp(dir=folder)
                return in_own_process(ray_train, setup, run, self.epochs, cache_gib)

            contenders: dict[str, Callable[[], Measured]] = {
                "ray_streamed": lambda: on_ray(0.0),
                "ray_cached": lambda: on_ray(64.0),
                "data_loader": lambda: in_own_process(data_loader, setup, self.epochs, _Images),
                "data_loader_shards": lambda: in_own_process(data_loader, setup, self.epochs, _Shards),
            }
            found = interleaved(contenders, self.repeats)
        result = summarize({name: [each.result for each in measured] for name, measured in found.items()})
        ratios_of = {name: tuple(ratios.values()) for name, ratios in result["ratios"].items()}
        titles = {
            "ray_streamed": "Ray, streamed",
            "ray_cached": "Ray, kept decoded",
            "data_loader": "DataLoader, images in memory",
            "data_loader_shards": "DataLoader, from the shards",
        }
        rows = [
            (title, result["first_epoch"][name], result["later_epochs"][name], *ratios_of.get(name, ("", "")))
            for name, title in titles.items()
        ]
        table = format_table(("images/s", "first epoch", "later epochs", "to images in memory", "to shards"), rows)
        return table, {"settings": asdict(self), **result}


def summarize(found: dict[str, list[Epochs]]) -> dict[str, Any]:
    """Medians over the repeats of images per second, in the first epoch and in the others, and the latter's ratios to
    both DataLoaders."""
    first = {name: median(epochs[0][0] / epochs[0][1] for epochs in runs) for name, runs in found.items()}
    later = {
        name: median(sum(count for count, _ in epochs[1:]) / sum(s for _, s in epochs[1:]) for epochs in runs)
        for name, runs in found.items()
    }
    ratios = {
        name: {other: later[name] / later[other] for other in ("data_loader", "data_loader_shards")}
        for name in ("ray_streamed", "ray_cached")
    }
    return {"first_epoch": first, "later_epochs": later, "ratios": ratios}


def ray_train(setup: Setup, run_folder: str, epochs: int, cache_gib: float) -> Epochs:
    """`razor-ray train` as it is: its own metrics tell the images and seconds of an epoch."""
    from razor_ray.run_store import RunStore
    from razor_ray.stages import catalog as catalogs
    from razor_ray.stages import runtime
    from razor_ray.stages import train as stage

    store = RunStore(run_folder)
    with runtime.session():
        catalog = catalogs.build(InputConfig(path=setup.folder))
        stage.train(_config(setup, run_folder, epochs, cache_gib), catalog, None, store, "train", "train")
    return [(line["num_samples"], line["seconds"]) for line in stage.read_metrics(store, "train")]


def data_loader(setup: Setup, epochs: int, dataset: type[_Images | _Shards]) -> Epochs:
    """The same steps from a DataLoader that shuffles, with as many workers as CPUs."""
    config = _config(setup, "none", epochs, 0.0)
    torch.set_num_threads(num_cpus())
    heap.keep_freed_memory()  # as a training on Ray does
    network = model.build(setup.arch, setup.num_classes).to(memory_format=torch.channels_last)
    device = torch.device(setup.device)
    trainer = training.Trainer(
        network.train(),
        training.make_optimizer(network, config, 0.1),
        config,
        learning_rate=0.1,
        image_size=setup.image_size,
        precision=training.choose_precision(config.precision, device),
        device=device,
    )
    loader: DataLoader[Any] = DataLoader(
        dataset(setup),
        batch_size=setup.batch_size,
        shuffle=dataset is _Images,
        num_workers=num_cpus(),
        persistent_workers=True,
    )
    generator, found = torch.Generator().manual_seed(0), []
    for epoch in range(epochs):
        started, count = time.perf_counter(), 0
        for pixels, labels in loader:
            trainer.step(pixels, labels, torch.ones(len(labels)), epoch / epochs, generator)
            count += len(labels)
        found.append((count, time.perf_counter() - started))
    return found


class _Images(Dataset[tuple[torch.Tensor, int]]):
    """Encoded images in memory, decoded one by one: what a DataLoader can have at best."""

    def __init__(self, setup: Setup) -> None:
        table = read_images(setup.folder)
        self.encoded, self.labels = table["image"].to_pylist(), table["label"].to_pylist()
        self.size = images.stored_size(setup.image_size, augment=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(images.decode(self.encoded[index], self.size)), self.labels[index]


class _Shards(IterableDataset[tuple[torch.Tensor, int]]):
    """Row groups of the shards in random order, each read and decoded by one worker: data may be larger than memory."""

    def __init__(self, setup: Setup) -> None:
        self.size = images.stored_size(setup.image_size, augment=True)
        paths = sorted(glob(f"{setup.folder}/*.parquet"))
        self.groups = [(path, index) for path in paths for index in range(pq.ParquetFile(path).num_row_groups)]
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        worker = get_worker_info()
        assert worker is not None
        order = np.random.default_rng(self.epoch).permutation(len(self.groups))
        self.epoch += 1
        for place in order[worker.id :: worker.num_workers]:
            path, index = self.groups[place]
            with pq.ParquetFile(path) as file:
                table = file.read_row_group(index, columns=["image", "label"])
            for encoded, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
                yield torch.from_numpy(images.decode(encoded, self.size)), label


def _config(setup: Setup, output: str, epochs: int, cache_gib: float) -> TrainConfig:
    return TrainConfig(
        input=InputConfig(path=setup.folder),
        output=output,
        model=ModelConfig(arch=setup.arch, image_size=setup.image_size, device="cpu"),
        epochs=epochs,
        batch_size=setup.batch_size,
        learning_rate=0.1,
        cache_gib=cache_gib,
    )
