"""subset or input -> checkpoint: supervised training on Ray Train, fed by Ray Data."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow.fs as pafs
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.data import ExecutionOptions

from razor_ray import blame, images, model, training
from razor_ray.config import LEAST_BATCH, TrainConfig
from razor_ray.progress import Progress, say, sign_of_life, stage
from razor_ray.run_store import RunStore, open_filesystem
from razor_ray.sources import Piece
from razor_ray.stages import decode, preflight, runtime, train_worker
from razor_ray.stages.catalog import Catalog, choose_size
from razor_ray.stages.per_shard import PerShard
from razor_ray.stages.train_worker import BEAT, Task, work

BEGUN = "_begun.json"
"""In a training's folder, while it is under way: what it was begun on."""

_MAX_FAILURES = 3
_USUAL_LEAST_BATCH = 32
"""Of a worker, unless their number is given: batch statistics of fewer samples are mostly noise."""
_MANY_SAMPLES = 100_000
"""From so many on it is worth a word that GPUs stand idle."""
_WORKER_GIB = 2
"""Memory that a worker declares, besides the images that it holds: torch, a network with its gradients, activations."""


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
    most_unusable: float = math.inf,
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
    most_unusable : float, optional
        Stop after an epoch in which more samples than these could not be used.
    sample_weights : str, optional
        Path in the store's filesystem of what `stages.ispl.write` wrote: weigh each sample's loss by it.

    Returns
    -------
    dict
        The last epoch's line of metrics.jsonl.
    """
    size = choose_size(config.model.image_size, catalog)
    held_out_pieces = decode.plan(held_out, size) if held_out else []
    task = _task(
        config,
        catalog,
        held_out,
        held_out_pieces,
        store,
        folder,
        with_dynamics=with_dynamics,
        last_epoch=last_epoch,
        most_unusable=most_unusable,
    )
    gpus = runtime.num_gpus(config.model.device)
    if config.num_workers == "auto" and task.num_workers < gpus and task.num_samples >= _MANY_SAMPLES:
        total = task.batch_size * task.num_workers
        say(
            f"note      {title} trains on {task.num_workers} of {gpus} GPUs: a batch is {total} images, however many "
            "there are. A larger one takes more of them."
        )
    beside = PerShard(store.filesystem, sample_weights) if sample_weights else None
    trainer = _trainer(
        task,
        _train_datasets(task, catalog, beside),
        _eval_datasets(task, held_out, held_out_pieces, size) if held_out else {},
        store,
        folder,
    )
    store.write_json(f"{folder}/{BEAT}", {"at": 0.0})  # a worker that does not see it has a disk of its own
    with _followed(title, task, store, folder):
        try:
            with _own_interrupts():
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _cause(error) from error
    return read_metrics(store, folder)[-1]


def _trainer(
    task: Task,
    trained_on: dict[str, ray.data.Dataset],
    evaluated_on: dict[str, ray.data.Dataset],
    store: RunStore,
    folder: str,
) -> ray.train.torch.TorchTrainer:
    in_process = task.num_workers == 1 and not task.use_gpu and runtime.is_private()
    return ray.train.torch.TorchTrainer(
        work,
        train_loop_config={"task": task},
        datasets=trained_on | evaluated_on,  # type: ignore[arg-type]
        # Held-out images are dealt out by us: an equal split would drop its remainder, and every one counts.
        dataset_config=ray.train.DataConfig(
            datasets_to_split=list(trained_on), execution_options=ExecutionOptions(preserve_order=True)
        ),
        # No workers means in this process: a lone worker on this machine's CPUs need not wait 20 s for another.
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else task.num_workers,
            use_gpu=task.use_gpu,
            resources_per_worker=_worker_resources(task.num_workers, int(task.use_gpu), task.image_bytes),
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=store.path(folder),
            storage_filesystem=store.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=_MAX_FAILURES),
        ),
    )


def _train_datasets(task: Task, catalog: Catalog, beside: PerShard | None) -> dict[str, ray.data.Dataset]:
    """What is trained on, by the names that the workers' feeds ask for."""
    seed, size = task.config.seed, task.stored_size
    if task.is_cached:
        planned = [[piece] for piece in decode.in_random_order(decode.plan(catalog, size), seed)]
    else:
        planned = decode.plan_stream(catalog, size, seed)
    weight_column = "weight" if task.config.use_weights else None
    names = decode.names("train", is_cached=task.is_cached)
    return {name: decode.dataset(catalog, planned, size, weight_column, beside) for name in names}


def _eval_datasets(task: Task, held_out: Catalog, pieces: list[Piece], size: int) -> dict[str, ray.data.Dataset]:
    """The share of the held-out images that each worker evaluates, by the name that it asks for."""
    return {
        f"eval_{rank}": decode.dataset(held_out, [[piece] for piece in pieces[rank :: task.num_workers]], size)
        for rank in range(len(task.eval_rows))
    }


def check_resources(config: TrainConfig, num_samples: int) -> None:
    """Refuse a cluster that cannot hold the workers and beside them half a CPU to decode with, or too few samples.

    Raises
    ------
    ValueError
        With the arithmetic.
    """
    gpus = runtime.num_gpus(config.model.device)
    workers, _ = _workers_and_batch(config, num_samples, gpus)
    if num_samples < 2 * workers:
        raise ValueError(f"{num_samples} samples are too few to train on with {workers} workers.")
    shapes, is_complete = runtime.node_shapes()
    found = sum(int(shape.get("GPU", 0)) for shape in shapes)
    if gpus and is_complete and runtime.is_private() and workers > found:
        raise ValueError(
            f"{workers} workers need a GPU each, but there are {found}. Pass --num-workers {found}, or --device cpu."
        )
    share = _worker_resources(workers, min(gpus, 1))
    preflight.check_fits(share, "a training worker", "Give the nodes more, or pass another --device.")


def _worker_resources(num_workers: int, gpus: int, image_bytes: int = 0) -> dict[str, float]:
    """What each worker reserves, who holds so many bytes of images."""
    request: dict[str, float] = {"CPU": _cpus_per_worker(num_workers)} | ({"GPU": gpus} if gpus else {})
    memory = runtime.declared_memory(_WORKER_GIB * 2**30 + image_bytes, request, num_workers)
    return request | ({"memory": memory} if memory else {})


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
    for failure in getattr(error, "worker_failures", {}).values():
        # From another process it comes without its traceback, which stands in Ray's text.
        is_ours = blame.is_ours(failure) if failure.__traceback__ else blame.ends_in_ours(str(error))
        if isinstance(failure, OSError) or (isinstance(failure, ValueError) and is_ours):
            return failure
    return error


def read_metrics(store: RunStore, folder: str) -> list[dict[str, Any]]:
    """The lines of a training's metrics.jsonl; none before its first epoch has ended."""
    if store.filesystem.get_file_info(store.path(folder, "metrics.jsonl")).type == pafs.FileType.NotFound:
        return []
    with store.filesystem.open_input_stream(store.path(folder, "metrics.jsonl")) as stream:
        lines = stream.read().decode().splitlines(keepends=True)
    # Where writes go to their place the last may lack its end.
    return [json.loads(line) for line in lines if line.endswith("\n")]


def dynamics_files(store: RunStore, folder: str) -> list[str]:
    """Paths of the files in which the workers of a training kept how samples fared, one of each worker."""
    epoch = len(read_metrics(store, folder))
    return train_worker.dynamics_files(store.filesystem, store.path(folder), epoch)


def _task(
    config: TrainConfig,
    catalog: Catalog,
    held_out: Catalog | None,
    held_out_pieces: list[Piece],
    store: RunStore,
    folder: str,
    *,
    with_dynamics: bool = False,
    last_epoch: int | None = None,
    most_unusable: float = math.inf,
) -> Task:
    gpus = _gpus_as_begun(config, store, folder)
    size = choose_size(config.model.image_size, catalog)
    arch = model.resolve_arch(config.model.arch, size)
    model.build(arch, len(catalog.class_names))  # a wrong name fails here, not in a worker
    num_samples = catalog.num_samples
    workers, total = _workers_and_batch(config, num_samples, gpus)
    num_steps = config.epochs * -(-num_samples // total)
    rate = config.learning_rate
    if rate == "auto":
        rate = training.choose_learning_rate(config.optimizer, arch, total, num_steps)
    num_eval = held_out.num_samples if held_out else 0
    num_shares = min(workers, len(held_out_pieces))
    stored = images.stored_size(size, augment=config.augment != "none")
    return Task(
        config=config,
        arch=arch,
        class_names=catalog.class_names,
        image_size=size,
        stored_size=stored,
        batch_size=max(LEAST_BATCH, total // workers),
        learning_rate=rate,
        precision=training.choose_precision(
            config.precision, torch.device("cuda" if gpus else "cpu"), gpus_have_bf16=runtime.gpus_have_bf16()
        ),
        num_workers=workers,
        num_samples=num_samples,
        num_eval=num_eval,
        eval_rows=tuple(sum(piece.num_rows for piece in held_out_pieces[rank::workers]) for rank in range(num_shares)),
        use_gpu=gpus > 0,
        filesystem=store.filesystem,
        folder=store.path(folder),
        initial_weights=_copy_weights(config, store, folder),
        with_dynamics=with_dynamics,
        last_epoch=last_epoch or config.epochs,
        most_unusable=most_unusable,
    )


def _workers_and_batch(config: TrainConfig, num_samples: int, gpus: int) -> tuple[int, int]:
    """Workers, and images in a batch of all of them together."""
    total = training.choose_batch_size(num_samples) if config.batch_size == "auto" else config.batch_size
    workers = max(1, min(gpus, total // _USUAL_LEAST_BATCH)) if config.num_workers == "auto" else config.num_workers
    return workers, total


def _gpus_as_begun(config: TrainConfig, store: RunStore, folder: str) -> int:
    """GPUs to train on: those that are there; one, if those that it was trained on last have gone with their nodes.

    Raises
    ------
    ValueError
        If they have gone from this machine.
    """
    gpus = runtime.num_gpus(config.model.device)
    begun = store.read_json(f"{folder}/{BEGUN}")
    if begun is None or gpus or not read_metrics(store, folder):
        begun = {"gpu": gpus > 0}
        store.write_json(f"{folder}/{BEGUN}", begun)
    if not begun["gpu"] or gpus:
        return gpus
    if runtime.is_private():
        raise ValueError(
            f"the training in {store.uri} was begun on a GPU, and now there is none. Give the same command again when "
            "there is, or begin anew on the CPU, with another --output."
        )
    return runtime.num_gpus("cuda")  # which the autoscaler brings again


def _copy_weights(config: TrainConfig, store: RunStore, folder: str) -> str | None:
    """Put the weights to start from where every worker can read them."""
    if config.model.weights is None:
        return None
    filesystem, path = open_filesystem(config.model.weights)
    name = "initial" + os.path.splitext(path)[1]
    store.write_bytes(f"{folder}/{name}", model.read_file(filesystem, path))
    return store.path(folder, name)


@contextmanager
def _followed(title: str, task: Task, store: RunStore, folder: str) -> Iterator[None]:
    """Show a training's progress by what its workers write: Ray Train calls back in a process without a terminal."""
    ended = threading.Event()
    with stage(title, task.last_epoch * task.num_samples) as progress:
        before = read_metrics(store, folder)
        if before:
            say(f"{title:<10}goes on after epoch {len(before)} of {task.config.epochs}")
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
            if (found := store.read_json(f"{folder}/{BEAT}")) is not None and found != beat:
                beat = found
                sign_of_life()
                of_epoch = found["num_samples"] if found.get("epoch") == num_epochs + 1 else 0
                if (ahead := finished + of_epoch - progress.done) > 0:
                    progress.advance(ahead, f"epoch {num_epochs + 1} of {task.config.epochs}")
        if is_last:
            return
