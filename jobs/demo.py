"""Prune scikit-learn's handwritten digits to 30 %, train on all and on the subset, and compare.

1,797 real images, 8 x 8 pixels, that come with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from razor_ray import labels
from razor_ray.cli import leave, run
from razor_ray.run_store import RunStore
from razor_ray.stages.runtime import session

KEEP_FRACTION = "0.3"
EPOCHS = 15
NUM_SHARDS = 4


def main(folder: Path) -> int:
    """Write the digits, prune them, train twice, print a table; in place of an earlier demo, and of nothing else."""
    if folder.exists() and not (folder / "digits").is_dir() and any(folder.iterdir()):
        print(f"{folder} holds something else than a demo. Name another folder.", file=sys.stderr)
        return 2
    for name in ("digits", "run", "train-all", "train-subset"):
        shutil.rmtree(folder / name, ignore_errors=True)
    write_digits(folder)
    test = ["--eval", f"{folder}/digits/test", "--epochs", str(EPOCHS)]
    commands = [
        ["prune", "--input", f"{folder}/digits/train", "--output", f"{folder}/run", "--keep-fraction", KEEP_FRACTION],
        ["train", "--input", f"{folder}/digits/train", "--output", f"{folder}/train-all", *test],
        ["train", "--input", f"{folder}/run/subset", "--output", f"{folder}/train-subset", *test],
    ]
    with session():  # one for all three: each command would start its own
        for verb, *arguments in commands:
            print(f"\n$ razor-ray {verb} {shlex.join(arguments)}", flush=True)
            if status := run(verb, arguments):
                return status
    _print_table(folder)
    return 0


def _print_table(folder: Path) -> None:
    manifest = RunStore(str(folder / "run")).read_json("manifest.json")
    assert manifest is not None
    counts = manifest["counts"]
    print(f"\n{'trained on':<12}{'images':>8}{'accuracy':>10}{'worst class':>13}{'seconds':>9}")
    for name, title, images in (("all", "all images", counts["scored"]), ("subset", "the subset", counts["kept"])):
        metrics = RunStore(str(folder / f"train-{name}")).commit_facts("train")["metrics"]
        accuracy, worst, seconds = metrics["accuracy"], metrics["worst_recall"], metrics["total_seconds"]
        print(f"{title:<12}{images:>8,}{accuracy:>10.1%}{worst:>13.1%}{seconds:>9.1f}")
    print(f"\nlook next   {folder}/run/report.html    what was kept, and why")
    print(f"            {folder}/run/subset         the kept images, as Parquet")
    print(f"            {folder}/run/manifest.json  what went in and what came out, class by class")


def write_digits(folder: Path) -> None:
    """The digits as PNG images in Parquet shards, a fifth of them held out."""
    digits: Any = load_digits()
    names = [str(name) for name in digits.target_names]
    indices = np.arange(len(digits.target))
    train_indices, test_indices = train_test_split(indices, test_size=0.2, random_state=0, stratify=digits.target)
    for split, chosen in (("train", train_indices), ("test", test_indices)):
        (folder / "digits" / split).mkdir(parents=True)
        for shard, rows in enumerate(np.array_split(chosen, NUM_SHARDS)):
            table = pa.table(
                {
                    "image": pa.array([_png(digits.images[row]) for row in rows], pa.binary()),
                    "label": pa.array(digits.target[rows], pa.int64()),
                }
            ).replace_schema_metadata(labels.class_names_metadata(names))
            pq.write_table(table, folder / "digits" / split / f"{split}-{shard:05d}.parquet")


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((image * 255 / 16).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    leave(main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-run")))
