"""`score`: images per second of the scoring stage against a bare loop, a DataLoader, and what the machine could do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.benchmarks import contenders
from jobs.benchmarks.contenders import Setup
from jobs.benchmarks.measure import (
    Measured,
    format_table,
    in_own_process,
    interleaved,
    median,
    steady_rate,
)
from razor_ray import model, parquet_shards, sources
from razor_ray.config import InputConfig

_TITLES = {
    "ray": "scoring stage on Ray",
    "bare_loop": "bare loop, one process",
    "data_loader": "DataLoader, a worker a CPU",
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scoring on Ray against a bare loop and a DataLoader: same images, decoder, network, batch and scores."""

    input: str
    """Parquet with `image` and an integer `label`."""
    arch: str = "resnet18"
    """As for `prune --proxy.arch`; jobs.benchmarks.networks:tiny leaves next to nothing but decoding."""
    image_size: int = 224
    batch_size: int = 32
    """What the stage chooses on a CPU for images of this size; on a GPU it is 256."""
    shard_rows: int = 128
    """Images of a shard, which makes a piece and a file of scores: the instants that the stage is measured by. More are
    nearer to a real run, fewer give more instants."""
    num_images: int = 1280
    """Repeated if the input has fewer."""
    repeats: int = 3
    device: Literal["cpu", "cuda"] = "cpu"
    ceiling_seconds: float = 5.0
    """How long to decode only, and to go forward only."""

    def run(self) -> tuple[str, dict[str, Any]]:
        """Measure; the table and the result."""
        with prepared(self) as (setup, folder):
            write_images(self.input, setup.folder, self.num_images, self.shard_rows)

            def on_ray() -> Measured:
                return in_own_process(contenders.ray_pipeline, setup, tempfile.mkdtemp(dir=folder))

            found = interleaved(
                {
                    "ray": on_ray,
                    "bare_loop": lambda: in_own_process(contenders.bare_loop, setup),
                    "data_loader": lambda: in_own_process(contenders.data_loader, setup),
                    "decode": lambda: sum(contenders.decode_rates(setup, self.ceiling_seconds)),
                    "forward": lambda: sum(contenders.forward_rates(setup, self.ceiling_seconds)),
                },
                self.repeats,
            )
        result = summarize(found, shares_cores=self.device == "cpu")
        return _table(result), {"settings": asdict(self), **result}


def summarize(found: dict[str, list[Any]], *, shares_cores: bool) -> dict[str, Any]:
    """Medians over the repeats, and ratios of them.

    Parameters
    ----------
    found : dict
        Lists of `Measured` for 'ray', 'bare_loop' and 'data_loader', of images per second for 'decode' and 'forward'.
    shares_cores : bool
        Whether decoding and the network use the same cores: what is possible is then 1 / (1 / decode + 1 / forward).
    """
    steady = {name: median(steady_rate(*each.result) for each in found[name]) for name in _TITLES}
    whole = {name: median(sum(each.result[1]) / each.seconds for each in found[name]) for name in _TITLES}
    decode, forward = median(found["decode"]), median(found["forward"])
    possible = 1 / (1 / decode + 1 / forward) if shares_cores else min(decode, forward)
    return {
        "images_per_second": steady,
        "images_per_second_with_start_up": whole,
        "images_per_second_of_each_repeat": {
            name: [steady_rate(*each.result) for each in found[name]] for name in _TITLES
        },
        "ceilings": {"decode": decode, "forward": forward, "possible": possible},
        "seconds_to_first_piece": {
            name: median(min(each.result[0]) - each.started for each in found[name]) for name in _TITLES
        },
        "first_piece_images": found["ray"][0].result[1][0],
        "ratios": {
            "to_bare_loop": steady["ray"] / steady["bare_loop"],
            "to_data_loader": steady["ray"] / steady["data_loader"],
            "to_bare_loop_with_start_up": whole["ray"] / whole["bare_loop"],
            "to_data_loader_with_start_up": whole["ray"] / whole["data_loader"],
            "to_lower_ceiling": steady["ray"] / min(decode, forward),
            "to_possible": steady["ray"] / possible,
        },
    }


def _table(result: dict[str, Any]) -> str:
    steady, ceilings = result["images_per_second"], result["ceilings"]
    rows: list[tuple[str | float, ...]] = [
        (
            title,
            steady[name],
            result["images_per_second_with_start_up"][name],
            result["seconds_to_first_piece"][name],
            steady["ray"] / steady[name],
            steady[name] / ceilings["possible"],
        )
        for name, title in _TITLES.items()
    ]
    rows += [
        (title, ceilings[name], "", "", steady["ray"] / ceilings[name], ceilings[name] / ceilings["possible"])
        for name, title in (
            ("decode", "decoding only"),
            ("forward", "network and scores only"),
            ("possible", "possible with both"),
        )
    ]
    header = ("images/s", "steady", "with start-up", "first batch, s", "Ray is", "of possible")
    return format_table(header, rows)


@contextmanager
def prepared(settings: Any) -> Iterator[tuple[Setup, str]]:
    """A temporary folder with the weights of a random network, and the setup of the contenders."""
    with tempfile.TemporaryDirectory() as folder:
        num_classes = 1 + max(read_images(settings.input)["label"].to_pylist())
        torch.manual_seed(0)
        weights = Path(folder, "proxy.safetensors")
        weights.write_bytes(model.save_weights(model.build(settings.arch, num_classes)))
        Path(folder, "input").mkdir()
        setup = Setup(
            folder=f"{folder}/input",
            weights=str(weights),
            arch=settings.arch,
            num_classes=num_classes,
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            device=getattr(settings, "device", "cpu"),
        )
        yield setup, folder


def read_images(path: str) -> pa.Table:
    """All images (bytes) and labels (int64) of an input."""
    source = sources.find(InputConfig(path=path))
    tables = [
        pq.read_table(f"{source.base}/{name}", filesystem=source.filesystem, columns=["image", "label"])
        for name in source.paths
    ]
    label = pa.concat_tables([table.select(["label"]) for table in tables])["label"]
    if not pa.types.is_integer(label.type):
        raise ValueError(f"{path}: the benchmarks need an integer label, got {label.type}.")
    encoded = [each for table in tables for each in parquet_shards.image_bytes(table["image"])]
    return pa.table({"image": pa.array(encoded, pa.binary()), "label": label.cast(pa.int64())})


def write_images(path: str, folder: str, num_images: int, rows_per_shard: int) -> None:
    """Write so many images of an input, repeated if there are fewer, as shards of equal size."""
    table = read_images(path)
    repeated = pa.concat_tables([table] * -(-num_images // table.num_rows)).slice(0, num_images)
    for shard, first in enumerate(range(0, num_images, rows_per_shard)):
        pq.write_table(repeated.slice(first, rows_per_shard), f"{folder}/train-{shard:05d}.parquet", row_group_size=128)
