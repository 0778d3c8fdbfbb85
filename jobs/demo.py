"""Prune scikit-learn's handwritten digits to 30 %, train on all and on the subset, and compare.

1,797 real images, 8 x 8 pixels, that come with scikit-learn: nothing is downloaded.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from razor_ray import sources
from razor_ray.config import EvalConfig, InputConfig, PruneConfig, TrainConfig
from razor_ray.pipeline import prune, train
from razor_ray.stages.runtime import session

KEEP_FRACTION = 0.3
EPOCHS = 20
NUM_SHARDS = 4


def main(folder: Path) -> None:
    """Write the digits, prune them, train twice, print a table."""
    shutil.rmtree(folder, ignore_errors=True)
    write_digits(folder)
    with session():
        manifest = prune(
            PruneConfig(
                input=InputConfig(path=str(folder / "digits/train")),
                output=str(folder / "run"),
                keep_fraction=KEEP_FRACTION,
            )
        )
        trained = {
            "all images": _train(folder / "digits/train", folder),
            "the subset": _train(folder / "run/subset", folder),
        }
    counts = manifest["counts"]
    print(f"\n{'trained on':<12}{'images':>8}{'accuracy':>10}{'worst class':>13}{'seconds':>9}")
    for (name, (metrics, seconds)), images in zip(trained.items(), (counts["scored"], counts["kept"]), strict=True):
        print(f"{name:<12}{images:>8,}{metrics['accuracy']:>10.1%}{metrics['worst_recall']:>13.1%}{seconds:>9.1f}")
    print(f"\nlook next   {folder}/run/subset         the kept images, as Parquet")
    print(f"            {folder}/run/manifest.json  what went in and what came out, class by class")
    print(f"            {folder}/run/report.html    the same as a page")
    print("            README.md                your own images: razor-ray prune --input ... --keep-fraction 0.3")


def write_digits(folder: Path) -> None:
    """The digits as PNG images in Parquet shards, a fifth of them held out."""
    digits = load_digits()
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
            ).replace_schema_metadata(sources.class_names_metadata(names))
            pq.write_table(table, folder / "digits" / split / f"{split}-{shard:05d}.parquet")


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((image * 255 / 16).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _train(path: Path, folder: Path) -> tuple[dict, float]:
    config = TrainConfig(
        input=InputConfig(path=str(path)),
        eval=EvalConfig(path=str(folder / "digits/test")),
        output=str(folder / f"train-{path.name}"),
        epochs=EPOCHS,
    )
    metrics = train(config)
    return metrics, metrics["total_seconds"]


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-run"))
