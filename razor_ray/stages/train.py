"""subset or input -> checkpoint: supervised training on Ray Train, fed by Ray Data."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.data import ExecutionOptions
from torch import Tensor, nn

from razor_ray import dynamics, hardness, images, model, sources, training
from razor_ray.config import TrainConfig
from razor_ray.dynamics import Dynamics
from razor_ray.heap import freed_memory_kept, keep_freed_memory
from razor_ray.progress import Progress, sign_of_life, stage
from razor_ray.run_store import RunStore, open_filesystem, write_file, write_table
from razor_ray.stages import ingest, preflight, runtime
from razor_ray.stages.catalog import Catalog, choose_size, pieces
from razor_ray.stages.dynamics import from_table, to_table
from razor_ray.stages.feed import Feed
from razor_ray.stages.ispl import WEIGHT
from razor_ray.stages.per_shard import PerShard

_EVAL_BATCH = _DECODE_BATCH = 256
_RUN_ROWS = 64
_STATE = "state.pt"
_DYNAMICS = "dynamics"
_BEAT = "_beat.json"
_BEAT_SECONDS = 10.0
_MAX_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Task:
    """All that a worker of a training needs to know."""

    config: TrainConfig
    arch: str
    class_names: tuple[str, ...]
    image_size: int
    stored_size: int
    batch_size: int
    """Of one worker."""
    learning_rate: float
    precision: str
    """'float32' or 'bf16': resolved once, in the driver, lest it depend on where the worker runs."""
    num_workers: int
    num_samples: int
    num_eval: int
    num_eval_feeds: int
    """Workers that have held-out images to evaluate."""
    is_cached: bool
    is_eval_cached: bool
    use_gpu: bool
    filesystem: pafs.FileSystem
    folder: str
    """Where metrics.jsonl and the model go, in the filesystem."""
    initial_weights: str | None
    """Path in the filesystem of a state_dict to start from."""
    with_dynamics: bool
    """Keep how every sample fares: `razor_ray.dynamics`."""
    last_epoch: int
    """Stop after it, though the schedule may go on."""


def train(
    config: TrainConfig,
    catalog: Catalog,
    held_out: Catalog | None,
    store: RunStore,
    folder: str,
    title: str,
    *,
    with_dynamics: bool = False,
    last_epoch: int | None = None,
    sample_weights: str | None = None,
) -> dict[str, Any]:
    """Train a network.

    Parameters
    ----------
    config : TrainConfig
    catalog : Catalog
        What to train on.
    held_out : Catalog or None
        What to evaluate on after every epoch.
    store : RunStore
    folder : str
        In the store: gets metrics.jsonl, model.safetensors, model.json and the checkpoint state.pt after every epoch.
        Run again after an interruption, the training goes on from there.
    title : str
        For the progress.
    with_dynamics : bool
        Keep how every sample fared over the epochs, in `dynamics_files(store, folder)`.
    last_epoch : int, optional
        Stop after this epoch of the schedule; called again, the training goes on from there.
    sample_weights : str, optional
        Path in the store's filesystem of what `stages.ispl.write` wrote: weigh each sample's loss by it.

    Returns
    -------
    dict
        The last epoch's line of metrics.jsonl.
    """
    size = choose_size(config.model.image_size, catalog)
    held_out_pieces = _plan(held_out, size) if held_out else []
    task = _task(config, catalog, held_out, len(held_out_pieces), store, folder)
    task = replace(task, with_dynamics=with_dynamics, last_epoch=last_epoch or config.epochs)
    weight_column = "weight" if config.use_weights else None
    if task.is_cached:
        planned = [[piece] for piece in _in_random_order(_plan(catalog, task.stored_size), config.seed)]
    else:
        planned = _plan_stream(catalog, task.stored_size, config.seed)
    beside = PerShard(store.filesystem, sample_weights) if sample_weights else None
    datasets = {"train": _dataset(catalog, planned, task.stored_size, weight_column, beside)}
    for rank in range(task.num_eval_feeds):
        assert held_out is not None
        share = held_out_pieces[rank :: task.num_workers]
        datasets[f"eval_{rank}"] = _dataset(held_out, [[piece] for piece in share], size)
    in_process = task.num_workers == 1 and not task.use_gpu and runtime.is_private()
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"task": task},
        datasets=datasets,  # type: ignore[arg-type]
        # Held-out images are dealt out by us: an equal split would drop its remainder, and every one counts.
        dataset_config=ray.train.DataConfig(
            datasets_to_split=["train"], execution_options=ExecutionOptions(preserve_order=True)
        ),
        # No workers means in this process: a lone worker on this machine's CPUs need not wait 20 s for another.
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else task.num_workers,
            use_gpu=task.use_gpu,
            resources_per_worker={"CPU": _cpus_per_worker(task.num_workers)} | ({"GPU": 1} if task.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=store.path(folder),
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )
    store.write_json(f"{folder}/{_BEAT}", {"at": 0.0})  # a worker that does not see it has a disk of its own
    with _followed(title, task, store, folder):
        try:
            with _own_interrupts():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    return read_metrics(store, folder)[-1]


def check_resources(config: TrainConfig) -> None:
    """Refuse a cluster that cannot hold the workers and beside them half a CPU to decode with.

    Raises
    ------
    ValueError
        With the arithmetic.
    """
    gpus = runtime.num_gpus(config.model.device)
    workers = max(1, gpus) if config.num_workers == "auto" else config.num_workers
    shapes, is_complete = runtime.node_shapes()
    found = sum(int(shape.get("GPU", 0)) for shape in shapes)
    if gpus and is_complete and runtime.is_private() and workers > found:
        raise ValueError(
            f"{workers} workers need a GPU each, but there are {found}. Pass --num-workers {found}, or --device cpu."
        )
    share = {"CPU": _cpus_per_worker(workers), "GPU": min(gpus, 1)}
    preflight.check_fits(share, "a training worker", "Give the nodes more, or pass another --device.")


def _cpus_per_worker(num_workers: int) -> float:
    """CPUs that a worker reserves: one, or less where that would leave none to decode with, and the run would hang."""
    spare = max(runtime.num_cpus() - 1, 0.5)
    return min(1.0, math.floor(100 * spare / num_workers) / 100)


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Make Ctrl-C mean here what it means elsewhere.

    Ray Train puts a handler of its own in place, which ends the process with status 0, and leaves it there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _cause(error: ray.train.TrainingFailedError) -> Exception:
    """What a worker raised, if that is for the user to mend; else the failure itself."""
    failures = getattr(error, "worker_failures", {})
    return next((failure for failure in failures.values() if isinstance(failure, ValueError | OSError)), error)


def read_metrics(store: RunStore, folder: str) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; none before its first epoch has ended."""
    if store.filesystem.get_file_info(store.path(folder, "metrics.jsonl")).type == pafs.FileType.NotFound:
        return []
    with store.filesystem.open_input_stream(store.path(folder, "metrics.jsonl")) as stream:
        return [json.loads(line) for line in stream.read().decode().splitlines()]


def dynamics_files(store: RunStore, folder: str) -> list[str]:
    """Paths of the files in which the workers of a training kept how samples fared, one of each worker."""
    epoch = len(read_metrics(store, folder))
    return _dynamics_files(store.filesystem, store.path(folder), epoch)


def _dynamics_files(filesystem: pafs.FileSystem, folder: str, epoch: int) -> list[str]:
    selector = pafs.FileSelector(f"{folder}/{_DYNAMICS}", allow_not_found=True)
    found = filesystem.get_file_info(selector)
    return sorted(info.path for info in found if info.base_name.startswith(f"epoch-{epoch:04d}-"))


def _task(
    config: TrainConfig,
    catalog: Catalog,
    held_out: Catalog | None,
    num_eval_pieces: int,
    store: RunStore,
    folder: str,
) -> Task:
    gpus = runtime.num_gpus(config.model.device)
    workers = max(1, gpus) if config.num_workers == "auto" else config.num_workers
    size = choose_size(config.model.image_size, catalog)
    arch = model.resolve_arch(config.model.arch, size)
    model.build(arch, len(catalog.class_names))  # a wrong name fails here, not in a worker
    num_samples = catalog.num_samples
    if num_samples < 2 * workers:
        raise ValueError(f"{num_samples} samples are too few to train on with {workers} workers.")
    total = training.choose_batch_size(num_samples) if config.batch_size == "auto" else config.batch_size
    rate = config.learning_rate
    num_eval = held_out.num_samples if held_out else 0
    cache_bytes = config.cache_gib * 2**30 / 2  # one half for each of the two datasets
    stored = images.stored_size(size, augment=config.augment != "none")
    return Task(
        config=config,
        arch=arch,
        class_names=catalog.class_names,
        image_size=size,
        stored_size=stored,
        batch_size=max(2, total // workers),
        learning_rate=training.choose_learning_rate(config.optimizer, arch, total) if rate == "auto" else rate,
        precision=training.choose_precision(config.precision, torch.device("cuda" if gpus else "cpu")),
        num_workers=workers,
        num_samples=num_samples,
        num_eval=num_eval,
        num_eval_feeds=min(workers, num_eval_pieces),
        is_cached=num_samples * stored**2 * 3 / workers <= cache_bytes,
        is_eval_cached=num_eval * size**2 * 3 / workers <= cache_bytes,
        use_gpu=gpus > 0,
        filesystem=store.filesystem,
        folder=store.path(folder),
        initial_weights=_copy_weights(config, store, folder),
        with_dynamics=False,
        last_epoch=config.epochs,
    )


def _copy_weights(config: TrainConfig, store: RunStore, folder: str) -> str | None:
    """Put the weights to start from where every worker can read them."""
    if config.model.weights is None:
        return None
    filesystem, path = open_filesystem(config.model.weights)
    name = "initial" + os.path.splitext(path)[1]
    store.write_bytes(f"{folder}/{name}", model.read_file(filesystem, path))
    return store.path(folder, name)


def _plan(catalog: Catalog, size: int) -> list[sources.Piece]:
    return pieces(catalog, max_rows=ingest.piece_rows(size, _DECODE_BATCH), batch_size=_DECODE_BATCH)


def _plan_stream(catalog: Catalog, size: int, seed: int) -> list[list[sources.Piece]]:
    """Blocks of short runs from all over the input, in random order.

    Shards may be sorted by class, and what is streamed is shuffled in a window only: in one of long pieces there would
    be few classes.
    """
    max_rows = ingest.piece_rows(size, _DECODE_BATCH)
    largest_group = max(max(rows, default=0) for rows in catalog.table["group_rows"].to_pylist())
    run_rows = sources.run_rows(catalog.source, largest_group, _RUN_ROWS, max_rows)
    blocks: list[list[sources.Piece]] = []
    num_rows = max_rows  # of the last block: there is none yet
    for run in _in_random_order(pieces(catalog, max_rows=run_rows, batch_size=_RUN_ROWS), seed):
        if num_rows + run.num_rows > max_rows:
            blocks.append([])
            num_rows = 0
        blocks[-1].append(run)
        num_rows += run.num_rows
    return blocks


def _in_random_order(planned: list[sources.Piece], seed: int) -> list[sources.Piece]:
    return [planned[place] for place in np.random.default_rng(seed).permutation(len(planned))]


def _dataset(
    catalog: Catalog,
    planned: list[list[sources.Piece]],
    size: int,
    weight_column: str | None = None,
    beside: PerShard | None = None,
) -> ray.data.Dataset:
    """Decoded images as blocks. Rows that cannot be used stay, labelled -1, so that every row is accounted for."""

    def decode_pieces(batch: Any) -> Iterator[dict[str, Any]]:
        torch.set_num_threads(1)
        keep_freed_memory()  # batches are alike
        preflight.check_seen(catalog.source.filesystem, sources.probe_path(catalog.source), "input")
        for piece in ingest.pieces_of(batch):
            for decoded in ingest.decoded_batches(catalog, piece, size, _DECODE_BATCH, weight_column=weight_column):
                usable = np.array([reason is None for reason in decoded.reasons])
                weight = decoded.weight if beside is None else beside.look_up(decoded.sample_id, [WEIGHT])[1][WEIGHT]
                yield {
                    "sample_id": decoded.sample_id,
                    "pixels": decoded.pixels,
                    "label": np.where(usable, decoded.label, -1).astype(np.int64),
                    "weight": weight,
                }

    decoded = ingest.dataset(planned).map_batches(decode_pieces, batch_size=None, num_cpus=0.5)
    # In order, whichever piece is decoded first: what is shuffled by a seed must be the same each time.
    decoded.context.execution_options.preserve_order = True
    return decoded


@contextmanager
def _followed(title: str, task: Task, store: RunStore, folder: str) -> Iterator[None]:
    """Show a training's progress by what its workers write: Ray Train calls back in a process without a terminal."""
    ended = threading.Event()
    with stage(title, task.last_epoch * task.num_samples) as progress:
        before = read_metrics(store, folder)
        progress.skip(sum(line["num_samples"] for line in before))
        follow = threading.Thread(target=_follow, args=(progress, ended, task, store, folder, len(before)), daemon=True)
        follow.start()
        try:
            yield
        finally:
            ended.set()
            follow.join()


def _follow(
    progress: Progress, ended: threading.Event, task: Task, store: RunStore, folder: str, num_epochs: int
) -> None:
    """Show the epochs from `num_epochs` on as they end, and of the one under way what the last beat tells."""
    finished, beat = progress.done, None
    while True:
        is_last = ended.wait(1.0)
        # A store that does not answer for a moment must not end this: without it the run would seem to stand still.
        with suppress(OSError):
            for line in read_metrics(store, folder)[num_epochs:]:
                num_epochs += 1
                finished += line["num_samples"]
                accuracy = f", accuracy {line['accuracy']:.1%}" if "accuracy" in line else ""
                note = f"epoch {line['epoch']} of {task.config.epochs}, loss {line['train_loss']:.3f}{accuracy}"
                progress.advance(finished - progress.done, note)
            if (found := store.read_json(f"{folder}/{_BEAT}")) is not None and found != beat:
                beat = found
                sign_of_life()
                of_epoch = found["num_samples"] if found.get("epoch") == num_epochs + 1 else 0
                if (ahead := finished + of_epoch - progress.done) > 0:
                    progress.advance(ahead, f"epoch {num_epochs + 1} of {task.config.epochs}")
        if is_last:
            return


def _train_worker(arguments: dict[str, Any]) -> None:
    task: Task = arguments["task"]
    preflight.check_seen(task.filesystem, f"{task.folder}/{_BEAT}", "output")
    with nullcontext() if task.use_gpu else freed_memory_kept():  # it may be the driver's own process
        _Worker(task).run()


class _Worker:
    """One Ray Train worker."""

    def __init__(self, task: Task) -> None:
        context = ray.train.get_context()
        self.task, self.rank = task, context.get_world_rank()
        self.device = ray.train.torch.get_device()
        self.precision = task.precision
        if self.device.type == "cpu":
            # Ray limits a worker's threads to the CPUs it reserved, but nothing else computes while it trains.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        torch.manual_seed(task.config.seed)
        network = model.build(task.arch, len(task.class_names))
        if task.initial_weights:
            content = model.read_file(task.filesystem, task.initial_weights)
            model.load_weights(network, content, task.initial_weights)
        self.plain = network.to(memory_format=torch.channels_last)
        self.network: nn.Module = ray.train.torch.prepare_model(self.plain)
        self.optimizer = training.make_optimizer(self.plain, task.config, task.learning_rate)
        self.trainer = training.Trainer(
            self.network,
            self.optimizer,
            task.config,
            learning_rate=task.learning_rate,
            image_size=task.image_size,
            precision=self.precision,
            device=self.device,
            num_workers=task.num_workers,
        )
        self.generator = torch.Generator()
        self.last_beat = 0.0
        self.num_seen = 0
        """Samples of the epoch under way that this worker has trained on."""
        rows = task.num_samples // task.num_workers
        self.train_feed = Feed("train", task.batch_size, rows, self._beat, is_cached=task.is_cached)
        # With fewer held-out pieces than workers, some have nothing to evaluate.
        self.eval_feed = (
            None
            if self.rank >= task.num_eval_feeds
            else Feed(f"eval_{self.rank}", _EVAL_BATCH, 0, self._beat, is_cached=task.is_eval_cached)
        )
        self.lines: list[dict[str, Any]] = []
        self.next_epoch = 1
        self.dynamics = Dynamics.empty(np.zeros(0, np.int64))
        self.observed: list[dict[str, Tensor]] = []
        """What this epoch's steps saw of each sample."""

    def run(self) -> None:
        self._restore()
        for epoch in range(self.next_epoch, self.task.last_epoch + 1):
            line = self._train_epoch(epoch)
            if self.task.num_eval:
                line |= self._evaluate()
            line["total_seconds"] = round(line["seconds"] + sum(earlier["seconds"] for earlier in self.lines), 3)
            self.lines.append(line)
            self._keep_dynamics(epoch)
            self._report(line)

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        started = time.perf_counter()
        # Of seed, epoch and worker, so that a training that was interrupted goes on as if it had not been.
        seed = int(np.random.SeedSequence([self.task.config.seed, epoch, self.rank]).generate_state(1)[0])
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        self.network.train()
        self.num_seen = 0
        # Sum of losses, steps, rows, rows without a usable image.
        totals = torch.zeros(4, dtype=torch.float64)
        num_batches = self.train_feed.num_batches
        # Not beside an evaluation: two streams would share the object store.
        is_followed = epoch < self.task.last_epoch and not self.task.num_eval
        batches = self.train_feed.batches(self.generator, is_followed=is_followed)
        for step, batch in enumerate(batches):
            progress = (epoch - 1 + min(step / num_batches, 1.0)) / self.task.config.epochs
            labels = batch["label"]
            loss, logits = self.trainer.step(batch["pixels"], labels, batch["weight"], progress, self.generator)
            if self.task.with_dynamics:
                self.observed.append(_observe(batch["sample_id"], labels.to(self.device), logits))
            self.num_seen += len(labels)
            totals += torch.tensor([loss, 1, len(labels), int((labels < 0).sum())], dtype=torch.float64)
        totals = self._sum_over_workers(totals)
        seconds = time.perf_counter() - started
        seen, unusable = int(totals[2]), int(totals[3])
        return {
            "epoch": epoch,
            "train_loss": float(totals[0] / totals[1]),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "num_samples": seen,
            "num_unusable": unusable,
            "num_dropped": self.task.num_samples - seen,
            "num_steps": int(totals[1]) // self.task.num_workers,
            "seconds": round(seconds, 3),
            "samples_per_second": round(seen / seconds, 1),
        }

    def _evaluate(self) -> dict[str, Any]:
        self.plain.eval()
        confusion = torch.zeros(len(self.task.class_names), len(self.task.class_names), dtype=torch.float64)
        with torch.inference_mode(), training.autocast(self.device, self.precision):
            for batch in self.eval_feed.batches(None) if self.eval_feed else ():
                logits = self.plain(images.normalize(batch["pixels"].to(self.device)))
                found = training.confusion_matrix(batch["label"], logits.argmax(1).cpu(), len(confusion))
                confusion += torch.from_numpy(found)
        confusion = self._sum_over_workers(confusion).long().numpy()
        num_eval = int(confusion.sum())
        return training.classification_metrics(confusion) | {
            "num_eval": num_eval,
            "num_eval_unusable": self.task.num_eval - num_eval,
        }

    def _beat(self) -> None:
        """Let the driver know how far this is: an epoch may take hours, and its line comes at the end."""
        now = time.monotonic()
        if self.rank == 0 and now - self.last_beat >= _BEAT_SECONDS:
            self.last_beat = now
            # All workers have as much to do and wait for each other at every step.
            seen = self.num_seen * self.task.num_workers
            beat = {"at": now, "epoch": len(self.lines) + 1, "num_samples": seen}
            write_file(self.task.filesystem, f"{self.task.folder}/{_BEAT}", json.dumps(beat).encode())

    def _sum_over_workers(self, values: Tensor) -> Tensor:
        if self.task.num_workers == 1:
            return values
        on_device = values.to(self.device)
        torch.distributed.all_reduce(on_device)
        return on_device.cpu()

    def _keep_dynamics(self, epoch: int) -> None:
        if not self.task.with_dynamics:
            return
        columns = {name: torch.cat([step[name] for step in self.observed]).cpu().numpy() for name in self.observed[0]}
        self.observed.clear()
        of_epoch = Dynamics.empty(columns["sample_id"])
        of_epoch.add(epoch - 1, **columns)
        self.dynamics = dynamics.merge([self.dynamics, of_epoch])
        name = f"epoch-{epoch:04d}-rank-{self.rank:04d}.parquet"
        self.task.filesystem.create_dir(f"{self.task.folder}/{_DYNAMICS}", recursive=True)
        write_table(self.task.filesystem, f"{self.task.folder}/{_DYNAMICS}/{name}", to_table(self.dynamics))
        # The state that says this epoch is done is written when the files of all workers are there.
        self._sum_over_workers(torch.zeros(1))

    def _report(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            self._write_results()
            for path in _dynamics_files(self.task.filesystem, self.task.folder, line["epoch"] - 1):
                self.task.filesystem.delete_file(path)
        ray.train.report(line)

    def _write_results(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        description = {
            "arch": self.task.arch,
            "class_names": list(self.task.class_names),
            "image_size": self.task.image_size,
            "precision": self.precision,
        }
        state = io.BytesIO()
        torch.save(self._state(), state)
        # The state last, so that what it says has been done is there.
        for name, content in (
            ("model.safetensors", model.save_weights(self.plain)),
            ("model.json", json.dumps(description, indent=2).encode()),
            ("metrics.jsonl", lines.encode()),
            (_STATE, state.getvalue()),
        ):
            write_file(self.task.filesystem, f"{self.task.folder}/{name}", content)

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lines": json.dumps(self.lines),
            "precision": self.precision,
        }

    def _restore(self) -> None:
        path = f"{self.task.folder}/{_STATE}"
        if self.task.filesystem.get_file_info(path).type == pafs.FileType.NotFound:
            return
        content = model.read_file(self.task.filesystem, path)
        state = torch.load(io.BytesIO(content), map_location=self.device, weights_only=True)
        self.plain.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # Not the task's: the driver that goes on may be of another kind than the one that began.
        self.precision = self.trainer.precision = state.get("precision", self.precision)
        self.lines = json.loads(state["lines"])
        self.next_epoch = len(self.lines) + 1
        # There may be another number of workers now; sums add up whoever goes on with them.
        files = _dynamics_files(self.task.filesystem, self.task.folder, len(self.lines))
        self.dynamics = dynamics.merge(
            from_table(pq.read_table(path, filesystem=self.task.filesystem))
            for path in files[self.rank :: self.task.num_workers]
        )


def _observe(sample_id: Tensor, labels: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """What a step tells of each of its samples that can be used, as `Dynamics.add` takes it."""
    usable = labels >= 0
    logits, labels = logits[usable].float(), labels[usable]
    scores = hardness.all_scores(logits, labels)
    of_label = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # (B, C)
    return {
        "sample_id": sample_id[usable.cpu()],
        "el2n": scores["el2n"],
        "p": scores["loss"].neg().exp(),
        "margin": of_label.squeeze(1) - others.amax(dim=1),
        "correct": scores["correct"],
    }
