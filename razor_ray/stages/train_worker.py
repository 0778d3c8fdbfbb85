"""What each worker of a training does: its epochs, their lines of metrics, the checkpoint that it goes on from."""

from __future__ import annotations

import io
import json
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from razor_ray import dynamics, hardness, model, training, transforms
from razor_ray.config import TrainConfig
from razor_ray.dynamics import Dynamics
from razor_ray.heap import freed_memory_kept
from razor_ray.run_store import write_file, write_table
from razor_ray.stages import decode, preflight, runtime
from razor_ray.stages.dynamics import from_table, to_table
from razor_ray.stages.feed import Feed, window_rows

BEAT = "_beat.json"
"""In a training's folder: how far the epoch under way is."""

_BEAT_SECONDS = 10.0
_EVAL_BATCH = 256
_STATE = "state.pt"
_DYNAMICS = "dynamics"


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
    eval_rows: tuple[int, ...]
    """Held-out images of each worker that has some to evaluate, by rank."""
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
    most_unusable: float
    """Stop after an epoch in which more samples than these could not be used: there are as many in every other."""

    @property
    def train_bytes(self) -> int:
        """Of a worker's share of the decoded images that are trained on."""
        return self.num_samples * self.stored_size**2 * 3 // self.num_workers

    @property
    def eval_bytes(self) -> int:
        """Of the decoded held-out images of the worker that has the most."""
        return max(self.eval_rows, default=0) * self.image_size**2 * 3

    @property
    def is_cached(self) -> bool:
        """Whether what is trained on is decoded once and kept: half of the cache is for it, half for held-out ones."""
        return self.train_bytes <= self.config.cache_gib * 2**29

    @property
    def is_eval_cached(self) -> bool:
        """The same of the held-out images."""
        return self.eval_bytes <= self.config.cache_gib * 2**29

    @property
    def image_bytes(self) -> int:
        """Of the decoded images that a worker holds: what it keeps from one epoch to the next, or a window of it."""
        window = window_rows(self.batch_size) * self.stored_size**2 * 3
        return (self.train_bytes if self.is_cached else window) + self.eval_bytes * self.is_eval_cached


def work(arguments: dict[str, Any]) -> None:
    """Train, as one of the workers of `arguments["task"]`, a `Task`."""
    task: Task = arguments["task"]
    preflight.check_seen(task.filesystem, f"{task.folder}/{BEAT}", "output")
    with nullcontext() if task.use_gpu else freed_memory_kept():  # it may be the driver's own process
        Worker(task).run()


class Worker:
    """One Ray Train worker."""

    def __init__(self, task: Task) -> None:
        context = ray.train.get_context()
        self.task, self.rank = task, context.get_world_rank()
        # In this process Ray gives any GPU that there is, asked for or not.
        self.device = ray.train.torch.get_device() if task.use_gpu else torch.device("cpu")
        self.precision = task.precision
        if self.device.type == "cpu":
            # Ray limits a worker's threads to the CPUs it reserved. Beside it there are decoders at the most, and they
            # wait for a network that takes long. The number may not depend on time, since sums depend on it.
            given = task.config.num_threads
            own_share = max(1, runtime.of_this_node("CPU") // context.get_local_world_size())
            torch.set_num_threads(own_share if given == "auto" else given)
        torch.backends.cudnn.allow_tf32 = False  # float32 is what it says
        torch.manual_seed(task.config.seed)
        network = model.build(task.arch, len(task.class_names))
        if task.initial_weights:
            content = model.read_file(task.filesystem, task.initial_weights)
            model.load_weights(network, content, task.initial_weights)
        self.plain = network.to(memory_format=torch.channels_last)
        self.network: nn.Module = ray.train.torch.prepare_model(self.plain, move_to_device=self.device)
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
        names = decode.names("train", is_cached=task.is_cached)
        self.train_feed = Feed(names, task.batch_size, rows, self._beat, is_cached=task.is_cached)
        # With fewer held-out pieces than workers, some have nothing to evaluate.
        self.eval_feed = (
            None
            if self.rank >= len(task.eval_rows)
            else Feed(
                (f"eval_{self.rank}",),
                _EVAL_BATCH,
                task.eval_rows[self.rank],
                self._beat,
                is_cached=task.is_eval_cached,
            )
        )
        self.lines: list[dict[str, Any]] = []
        self.next_epoch = 1
        self.dynamics = dynamics.merge([])
        self.observed: list[dict[str, Tensor]] = []
        """What this epoch's steps saw of each sample."""

    def run(self) -> None:
        """Train from the last checkpoint, if there is one, to the task's last epoch."""
        self._restore()
        for epoch in range(self.next_epoch, self.task.last_epoch + 1):
            if self.lines and self.lines[-1]["num_unusable"] > self.task.most_unusable:
                return
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
        total_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        num_steps = num_unusable = 0
        an_unusable: int | None = None
        num_batches = self.train_feed.num_batches
        # Not beside an evaluation: two streams would share the object store.
        is_followed = epoch < self.task.last_epoch and not self.task.num_eval
        batches = self.train_feed.batches(self.generator, is_followed=is_followed)
        for step, batch in enumerate(batches):
            progress = (epoch - 1 + min(step / num_batches, 1.0)) / self.task.config.epochs
            labels = batch["label"]
            loss, logits = self.trainer.step(batch["pixels"], labels, batch["weight"], progress, self.generator)
            if self.task.with_dynamics:
                self.observed.append(_observe(batch["sample_id"], labels, logits))
            total_loss += loss
            self.num_seen += len(labels)
            num_steps += 1
            unusable_ids = batch["sample_id"][labels < 0]
            num_unusable += len(unusable_ids)
            if an_unusable is None and len(unusable_ids):
                an_unusable = int(unusable_ids[0])
        totals = torch.tensor([float(total_loss), num_steps, self.num_seen, num_unusable], dtype=torch.float64)
        totals = self._sum_over_workers(totals)
        seconds = time.perf_counter() - started
        seen, unusable = int(totals[2]), int(totals[3])
        return {
            "epoch": epoch,
            "train_loss": float(totals[0] / totals[1]),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "num_samples": seen,
            "num_unusable": unusable,
            "an_unusable": an_unusable,
            "num_dropped": self.task.num_samples - seen,
            "num_steps": int(totals[1]) // self.task.num_workers,
            "seconds": round(seconds, 3),
            "samples_per_second": round(seen / seconds, 1),
        }

    def _evaluate(self) -> dict[str, Any]:
        self.plain.eval()
        if self.task.num_workers > 1:
            # The statistics of rank 0, whose network is kept: each worker has gathered its own since the last step.
            for buffer in self.plain.buffers():
                torch.distributed.broadcast(buffer, 0)
        counts = torch.zeros(3, len(self.task.class_names), dtype=torch.float64)
        with torch.inference_mode(), training.autocast(self.device, self.precision):
            for batch in self.eval_feed.batches(None) if self.eval_feed else ():
                logits = self.plain(transforms.normalize(batch["pixels"].to(self.device)))
                found = training.class_counts(batch["label"], logits.argmax(1).cpu(), counts.shape[1])
                counts += torch.from_numpy(found)
        counts = self._sum_over_workers(counts).long().numpy()
        num_eval = int(counts[0].sum())
        return training.classification_metrics(counts) | {
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
            with suppress(OSError):  # the next may succeed; without any the run is taken for one that stands still
                write_file(self.task.filesystem, f"{self.task.folder}/{BEAT}", json.dumps(beat).encode())

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
        self.dynamics = dynamics.merge([self.dynamics, Dynamics.of_epoch(epoch - 1, **columns)])
        name = f"epoch-{epoch:04d}-rank-{self.rank:04d}.parquet"
        self.task.filesystem.create_dir(f"{self.task.folder}/{_DYNAMICS}", recursive=True)
        write_table(self.task.filesystem, f"{self.task.folder}/{_DYNAMICS}/{name}", to_table(self.dynamics))
        # The state that says this epoch is done is written when the files of all workers are there.
        self._sum_over_workers(torch.zeros(1))

    def _report(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            # An earlier attempt of more workers may have died after it wrote them.
            for path in dynamics_files(self.task.filesystem, self.task.folder, line["epoch"])[self.task.num_workers :]:
                self.task.filesystem.delete_file(path)
            self._write_results()
            for path in dynamics_files(self.task.filesystem, self.task.folder, line["epoch"] - 1):
                self.task.filesystem.delete_file(path)
        ray.train.report(line)

    def _write_results(self) -> None:
        lines = "".join(json.dumps(line) + "\n" for line in self.lines)
        description = {
            "arch": self.task.arch,
            "class_names": list(self.task.class_names),
            "image_size": self.task.image_size,
            "precision": self.precision,
            "training": self._training(),
            "mean": transforms.MEAN,
            "std": transforms.STD,
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

    def _training(self) -> dict[str, Any]:
        """What decided the training besides the settings as they were given."""
        return {
            "num_workers": self.task.num_workers,
            "batch_size": self.task.batch_size * self.task.num_workers,
            "learning_rate": self.task.learning_rate,
            "device": self.device.type,
            "num_threads": torch.get_num_threads() if self.device.type == "cpu" else None,
        }

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lines": json.dumps(self.lines),
            "precision": self.precision,
            "num_threads": torch.get_num_threads(),
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
        if self.device.type == "cpu":  # nor this node's, which may have other CPUs than the one that began
            torch.set_num_threads(state.get("num_threads", torch.get_num_threads()))
        self.lines = json.loads(state["lines"])
        self.next_epoch = len(self.lines) + 1
        # There may be another number of workers now; sums add up whoever goes on with them.
        files = dynamics_files(self.task.filesystem, self.task.folder, len(self.lines))
        self.dynamics = dynamics.merge(
            from_table(pq.read_table(path, filesystem=self.task.filesystem))
            for path in files[self.rank :: self.task.num_workers]
        )


def dynamics_files(filesystem: pafs.FileSystem, folder: str, epoch: int) -> list[str]:
    """Paths of what the workers of a training kept of how samples fared up to an epoch, one of each worker."""
    selector = pafs.FileSelector(f"{folder}/{_DYNAMICS}", allow_not_found=True)
    found = filesystem.get_file_info(selector)
    return sorted(info.path for info in found if info.base_name.startswith(f"epoch-{epoch:04d}-"))


def _observe(sample_id: Tensor, labels: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """What a step tells of each of its samples that can be used, as `Dynamics.of_epoch` takes it.

    Ids and labels are on the CPU: nothing here waits for a GPU.
    """
    usable = (labels >= 0).nonzero().squeeze(1)  # (b,)
    if len(usable) < len(labels):
        logits = logits.index_select(0, transforms.on_device(usable, logits.device))
        labels, sample_id = labels[usable], sample_id[usable]
    logits = logits.float()
    scores = hardness.all_scores(logits, labels)
    labels = transforms.on_device(labels, logits.device)
    of_label = logits.gather(1, labels[:, None])  # (B, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)  # (B, C)
    return {
        "sample_id": sample_id,
        "el2n": scores["el2n"],
        "p": scores["loss"].neg().exp(),
        "margin": of_label.squeeze(1) - others.amax(dim=1),
        "correct": scores["correct"],
    }
