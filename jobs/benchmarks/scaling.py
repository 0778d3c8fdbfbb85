"""`scale`: time and memory of scoring against the size of the dataset."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.benchmarks import contenders
from jobs.benchmarks.measure import format_table, gib, in_own_process, interleaved, median
from jobs.benchmarks.scoring import prepared
from razor_ray import sources
from razor_ray.config import InputConfig


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Scoring a dataset, and the same dataset several times over: is time in proportion, does memory stay?"""

    input: str
    """Parquet with `image` and an integer `label`, in a local file system; its shards are repeated as they are."""
    arch: str = "jobs.benchmarks.networks:tiny"
    image_size: int = 224
    batch_size: int = 32
    multiples: tuple[int, ...] = (1, 4, 16)
    """How often the input is repeated; the first two tell what a size costs, the last is compared with them."""
    repeats: int = 1

    def run(self) -> tuple[str, dict[str, Any]]:
        """Measure; the table and the result."""
        if len(self.multiples) < 3 or list(self.multiples) != sorted(set(self.multiples)):
            raise ValueError(f"multiples must be three or more, ascending, got {list(self.multiples)}.")
        with prepared(self) as (setup, folder):

            def score(multiple: int) -> Any:
                setup_here = replace(setup, folder=f"{folder}/input-{multiple}")
                if not Path(setup_here.folder).exists():
                    repeat_shards(self.input, Path(setup_here.folder), multiple)
                return in_own_process(contenders.ray_pipeline, setup_here, tempfile.mkdtemp(dir=folder), memory=True)

            found = interleaved(
                {str(multiple): lambda multiple=multiple: score(multiple) for multiple in self.multiples}, self.repeats
            )
        runs = [
            {
                "multiple": int(multiple),
                "num_images": sum(measured[0].result[1]),
                "seconds": median(each.seconds for each in measured),
                "peak_gib": median(gib(each.peak_bytes) for each in measured),
            }
            for multiple, measured in found.items()
        ]
        ratios = compare(runs)
        rows = [(f"{run['multiple']} times", run["num_images"], run["seconds"], run["peak_gib"]) for run in runs]
        table = format_table(("input", "images", "seconds", "peak GiB"), rows)
        table += f"\ntime of the last over linear growth: {ratios['time_to_linear']:.3f}"
        table += f"\npeak memory of the last over the first: {ratios['memory_last_to_first']:.3f}"
        return table, {"settings": asdict(self), "runs": runs, "ratios": ratios}


def compare(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The last run's time over what linear growth predicts, and its peak memory over the first's.

    Linear growth is the line through the first and the second run: the start-up, which does not grow, is in its
    intercept.

    Parameters
    ----------
    runs : list of dict
        'num_images', 'seconds' and 'peak_gib', by ascending size.
    """
    first, second, last = runs[0], runs[1], runs[-1]
    per_image = (second["seconds"] - first["seconds"]) / (second["num_images"] - first["num_images"])
    predicted = second["seconds"] + per_image * (last["num_images"] - second["num_images"])
    return {
        "time_to_linear": last["seconds"] / predicted,
        "memory_last_to_first": last["peak_gib"] / first["peak_gib"],
    }


def repeat_shards(path: str, folder: Path, multiple: int) -> None:
    """Hard links to the shards of an input, so often; copies where links are not possible."""
    source = sources.find(InputConfig(path=path))
    folder.mkdir()
    for repeat in range(multiple):
        for shard, name in enumerate(source.paths):
            target = folder / f"train-{repeat:04d}-{shard:05d}.parquet"
            try:
                os.link(f"{source.base}/{name}", target)
            except OSError:  # on another disk, or one without links
                shutil.copy(f"{source.base}/{name}", target)
