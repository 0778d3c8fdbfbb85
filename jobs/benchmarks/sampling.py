"""`sample`: the selection from scores of any number of samples, features and classes."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.benchmarks.measure import format_table, gib, growth_exponent, in_own_process, num_cpus
from razor_ray import heap, schema, weights
from razor_ray.apportion import apportion
from razor_ray.config import InputConfig, PruneConfig
from razor_ray.progress import say
from razor_ray.run_store import RunStore, write_table
from razor_ray.selection import Samples, gamma_razor

_ROWS_PER_FILE = 768  # of a piece of 224-pixel images, which the scoring stage writes as a file
_FILES_PER_SHARD = 13  # about 10,000 samples, as ImageNet is often stored
_SHARES = (0.25, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Weigh and sample synthetic scores on Ray, at three sizes, and in one process that holds everything in memory."""

    num_samples: int = 1_281_167
    num_features: int = 512
    num_classes: int = 1000
    keep_fraction: float = 0.3
    zipf: float | None = None
    """Also with class sizes that fall as rank to the power of this; 1 is Zipf's law."""
    scores_folder: str | None = None
    """Keep the synthetic scores here, and use those that are there; without it they are made anew."""

    def run(self) -> tuple[str, dict[str, Any]]:
        """Measure; the table and the result."""
        with self._folder() as folder:
            evenly = {share: self._made(folder, round(share * self.num_samples), 0.0) for share in _SHARES}
            skewed = None if self.zipf is None else self._made(folder, self.num_samples, self.zipf)
            runs = {f"even, {share:g} of N": self._measure(select_on_ray, path) for share, path in evenly.items()}
            whole = list(runs)[-1]
            runs["even, one process"] = self._measure(select_in_memory, evenly[1.0])
            if skewed:
                runs[f"Zipf {self.zipf:g}"] = self._measure(select_on_ray, skewed)
        on_ray = list(runs.values())[: len(_SHARES)]
        ratios = {
            "growth_exponent": growth_exponent([r["num_samples"] for r in on_ray], [r["seconds"] for r in on_ray]),
            "one_process_to_ray": runs["even, one process"]["seconds"] / runs[whole]["seconds"],
            "same_selection": runs["even, one process"]["digest"] == runs[whole]["digest"],
        }
        if skewed:
            ratios["zipf_to_even"] = runs[f"Zipf {self.zipf:g}"]["seconds"] / runs[whole]["seconds"]
        columns = ("num_samples", "seconds", "seconds_with_start_up", "peak_gib", "num_kept", "classes_off_quota")
        rows = [(name, *(run[column] for column in columns)) for name, run in runs.items()]
        header = ("scores", "samples", "seconds", "with start-up", "peak GiB", "kept", "classes off quota")
        table = format_table(header, rows) + f"\ngrowth exponent {ratios['growth_exponent']:.3f}"
        table += f", one process takes {ratios['one_process_to_ray']:.2f} times as long"
        table += f", {'the same' if ratios['same_selection'] else 'ANOTHER'} selection"
        return table, {"settings": asdict(self), "runs": runs, "ratios": ratios}

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.scores_folder:
            yield Path(self.scores_folder)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def _made(self, folder: Path, num_samples: int, zipf: float) -> str:
        path = folder / f"{num_samples}x{self.num_features}x{self.num_classes}-{zipf:g}"
        if not RunStore(str(path)).is_done("scores"):
            write_scores(str(path), class_sizes(num_samples, self.num_classes, zipf), self.num_features)
        return str(path)

    def _measure(self, select: Any, path: str) -> dict[str, Any]:
        """Once for the time and once for the memory, since watching that takes time."""
        arguments = (select, path, self.num_classes, self.keep_fraction)
        timed, watched = in_own_process(*arguments), in_own_process(*arguments, memory=True)
        assert timed.result["digest"] == watched.result["digest"], "the same call chose other samples"
        seconds, peak = timed.result["seconds"], gib(watched.peak_bytes)
        say(f"measured  {select.__name__} on {path}: {seconds:.1f} s, {peak:.2f} GiB")
        return {**timed.result, "seconds_with_start_up": timed.seconds, "peak_gib": peak}


def class_sizes(num_samples: int, num_classes: int, zipf: float) -> NDArray[np.int64]:
    """Sizes of classes that fall as rank^-zipf, none empty; shape (C,).

    >>> class_sizes(11, 3, 1.0).tolist()
    [6, 3, 2]
    """
    mass = np.arange(1, num_classes + 1, dtype=np.float64) ** -zipf
    ones = np.ones(num_classes, np.int64)
    return apportion(mass, num_samples, ones, ones * num_samples)


def write_scores(path: str, sizes: NDArray[np.int64], num_features: int) -> None:
    """Scores of samples of classes of these sizes, in random order, as the scoring stage writes them.

    Embeddings are noise around a centre of the class; losses are exponential, and the other scores follow from them.
    """
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))  # (N,)
    centres = np.random.default_rng(1).standard_normal((len(sizes), num_features), np.float32)  # (C, D)
    store = RunStore(path)
    folder = store.begin("scores")

    def write(file: int) -> None:
        table = _synthetic(file, labels[file * _ROWS_PER_FILE : (file + 1) * _ROWS_PER_FILE], centres)
        write_table(store.filesystem, f"{folder}/part-{file:06d}.parquet", table)

    with ThreadPoolExecutor(num_cpus()) as pool:
        list(pool.map(write, range(-(-len(labels) // _ROWS_PER_FILE))))
    store.commit("scores", {"num_samples": len(labels), "hardness": "el2n"})


def _synthetic(file: int, label: NDArray[np.int32], centres: NDArray[np.float32]) -> pa.Table:
    rng = np.random.default_rng([2, file])
    shard, place = divmod(file, _FILES_PER_SHARD)
    first_row = place * _ROWS_PER_FILE
    loss = rng.exponential(0.7, len(label)).astype(np.float32)  # (B,)
    p = np.exp(-loss)
    embedding = centres[label] + rng.standard_normal((len(label), centres.shape[1]), np.float32)  # (B, D)
    columns = {
        "sample_id": schema.sample_ids(shard, first_row, len(label)),
        "key": [f"train-{shard:05d}.parquet:{first_row + row}" for row in range(len(label))],
        "label": label,
        "loss": loss,
        "el2n": np.float32(np.sqrt(2)) * (1 - p),  # as if one other class had all the rest
        "margin": 1 - 2 * p,
        "entropy": rng.random(len(label), np.float32),
        "correct": p > 0.5,
        "predicted": np.where(p > 0.5, label, (label + 1) % len(centres)),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(embedding.astype(np.float16).ravel()), embedding.shape[1]
        ),
    }
    expected = schema.scores(embedding.shape[1])
    return pa.table([pa.array(columns[name], expected.field(name).type) for name in expected.names], schema=expected)


def select_on_ray(path: str, num_classes: int, keep_fraction: float) -> dict[str, Any]:
    """The stages `weigh` and `sample` on a private Ray, start of the session included."""
    from razor_ray.stages import runtime, weigh
    from razor_ray.stages.sample import sample

    config = PruneConfig(input=InputConfig(path="none"), output=path, keep_fraction=keep_fraction)
    store = RunStore(path)
    started = time.perf_counter()
    with runtime.session():
        session_started = time.perf_counter()
        names = tuple(map(str, range(num_classes)))
        weigh.weigh(store, names, config.weigh, keep_fraction, trained_for=config.sample.trained_for)
        weighed = time.perf_counter()
        sample(store, weigh.read(store), config)
        ended = time.perf_counter()
    kept_ids, kept_labels = _kept(store)
    table = weigh.read(store).table
    quota = dict(zip(table["label"].to_pylist(), table["quota"].to_pylist(), strict=True))
    result = _summary(store, kept_ids, kept_labels, quota, ended - started)
    stages = {"session": session_started - started, "weigh": weighed - session_started, "sample": ended - weighed}
    return {**result, "stage_seconds": stages}


def select_in_memory(path: str, num_classes: int, keep_fraction: float) -> dict[str, Any]:
    """`razor_ray.selection.gamma_razor` on all scores in this process, with as many threads as its libraries start."""
    heap.keep_freed_memory()  # as the tasks on Ray do
    store = RunStore(path)
    started = time.perf_counter()
    names = ["sample_id", "label", "loss", "margin", "el2n", "correct", "embedding"]
    table = pq.read_table(store.path("scores"), filesystem=store.filesystem, columns=names).sort_by("sample_id")
    values = table["embedding"].combine_chunks()
    samples = Samples(
        ids=table["sample_id"].to_numpy(),
        label=table["label"].to_numpy(),
        scores={name: table[name].to_numpy() for name in ("loss", "margin", "el2n", "correct")},
        embedding=values.flatten().to_numpy().reshape(table.num_rows, -1),
    )
    keep = gamma_razor(samples, weights.budget(table.num_rows, keep_fraction), 0)
    seconds = time.perf_counter() - started
    return _summary(store, samples.ids[keep], samples.label[keep], None, seconds)


def _kept(store: RunStore) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    table = store.read("selection", ["sample_id", "label", "keep"]).filter(pc.field("keep"))
    return table["sample_id"].to_numpy(), table["label"].to_numpy()


def _summary(
    store: RunStore, ids: NDArray[Any], labels: NDArray[Any], quota: dict[int, int] | None, seconds: float
) -> dict[str, Any]:
    return {
        "num_samples": store.commit_facts("scores")["num_samples"],
        "seconds": seconds,
        "num_kept": len(ids),
        "classes_off_quota": classes_off_quota(np.bincount(labels), quota) if quota is not None else 0,
        "digest": hashlib.blake2b(np.sort(ids).tobytes(), digest_size=8).hexdigest(),
    }


def classes_off_quota(kept: NDArray[np.int64], quota: dict[int, int]) -> int:
    """Classes that keep another number of samples than their quota.

    >>> classes_off_quota(np.array([3, 2]), {0: 3, 1: 1, 2: 0})
    1
    """
    return sum(count != (int(kept[label]) if label < len(kept) else 0) for label, count in quota.items())
