"""What could not be used, and why: its table, its counts by reason, and how much of it is too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from razor_ray import schema
from razor_ray.run_store import RunStore
from razor_ray.stages import ingest, runtime

_FILES_PER_TASK = 256


class QuarantineError(ValueError):
    """More images were unusable than the configuration allows; the message counts them by reason."""


def count_reasons(input_format: str, store: RunStore, folder: str) -> tuple[Counter[str], dict[str, str]]:
    """Reasons of what lies in a quarantine's folder, and an example of each."""
    files = [f"{folder}/{name}" for name in sorted(store.finished("quarantine"))]
    groups = [files[start : start + _FILES_PER_TASK] for start in range(0, len(files), _FILES_PER_TASK)]
    calls = ((input_format, store.filesystem, group) for group in groups)
    counted: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for _, (of_group, examples_of_group) in runtime.run_tasks(_reasons_in, calls, name="count reasons"):
        counted += of_group
        examples |= examples_of_group
    return counted, examples


def _reasons_in(
    input_format: str, filesystem: pafs.FileSystem, files: list[str]
) -> tuple[Counter[str], dict[str, str]]:
    found: Counter[str] = Counter()
    examples = {}
    for file in files:
        for row in pq.read_table(file, filesystem=filesystem).to_pylist():
            found[row["reason"]] += 1
            examples[row["reason"]] = ingest.in_words(input_format, row["path"], row["sample_id"])
    return found, examples


def is_too_many(reasons: Counter[str], num_samples: int, max_fraction: float) -> bool:
    """Whether more samples of the input are unusable than may be."""
    return reasons.total() > max_fraction * num_samples


def check(
    reasons: Counter[str],
    num_samples: int,
    max_fraction: float,
    examples: Mapping[str, str] | None = None,
    *,
    named_in: str = "",
) -> None:
    """Raise QuarantineError if too many samples of the input were unusable.

    It says where one of each reason is (`examples`), or the folder in which all of them are named already.
    """
    if is_too_many(reasons, num_samples, max_fraction):
        of = examples or {}
        counted = "; ".join(
            f"{count} {reason}{f', such as {of[reason]}' if reason in of else ''}"
            for reason, count in reasons.most_common()
        )
        raise QuarantineError(
            f"{reasons.total()} of {num_samples} samples cannot be used so far ({counted}), more than "
            f"max_quarantine_fraction {max_fraction:g} allows. Raise --max-quarantine-fraction, and "
            f"the same command goes on: {named_in or 'quarantine/ then'} names all of them. "
            "Or repair the input, for another --output."
        )


def table(bad: list[tuple[int, str, str]]) -> pa.Table:
    """Of samples by their id, place and reason, as `schema.QUARANTINE` has them."""
    sample_id = np.array([identity for identity, _, _ in bad], np.int64)
    columns = {
        "sample_id": sample_id,
        "path": [place for _, place, _ in bad],
        "row": schema.rows(sample_id),
        "reason": [reason for _, _, reason in bad],
    }
    return schema.table(columns, schema.QUARANTINE, "quarantine")
