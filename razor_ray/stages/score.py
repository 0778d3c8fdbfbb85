"""catalog -> scores/ and quarantine/: one forward pass of the proxy over every image, in a pool of actors.

An actor reads its pieces itself and decodes them, so that no pixel crosses the object store; it writes what it scored
and gives back a row of counts.

A piece is finished when its scores file is there; what of it was quarantined is written before. The file's name holds
the piece and a hash of everything that decides a score, the versions of what decodes and computes among it, so one
listing tells a new attempt what it need not score again, and nothing of another proxy, batch or precision can be taken
for its own, even if an actor of a dead attempt still writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data
import torch
from ray.exceptions import RayTaskError

import razor_ray
from razor_ray import hardness, heap, images, model, schema, sources, transforms
from razor_ray.config import ScoreConfig
from razor_ray.headers import SMALL_IMAGE
from razor_ray.interrupt import StoppedError
from razor_ray.progress import say, stage
from razor_ray.run_store import RunStore, write_file, write_table
from razor_ray.stages import ingest, preflight, quarantine, runtime
from razor_ray.stages.catalog import Catalog
from razor_ray.stages.catalog import pieces as plan
from razor_ray.stages.ispl import LOSS
from razor_ray.stages.per_shard import PerShard

BEGUN = "_scoring"
"""Folder of the run that says how scoring began; not needed when it has ended."""

_TRIES = f"{BEGUN}/tries"

_MANY_FLAT = 0.01
"""Fraction of images of one colour that is worth a word."""
_BATCH_ON_GPU = 256
_BATCH_ON_CPU, _LARGE_BATCH_ON_CPU = 128, 32
"""Of small and of large images: on a CPU a larger batch is no faster, and its activations must fit `_ACTOR_GIB`."""
_CALLS_IN_FLIGHT = 2
_MOST_PIECES_PER_CALL, _CALLS_PER_ACTOR = 8, 4
"""Of an actor with a GPU, which waits where a call begins: for the first piece to be read."""
_ACTOR_GIB = 2
"""Memory that an actor declares: torch and a network, two pieces encoded and two batches decoded."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The network that scores; its weights lie in the run's folder, where every node can read them."""

    arch: str
    num_classes: int
    image_size: int
    filesystem: pafs.FileSystem
    weights_path: str
    device: str = "auto"
    dynamics_folder: str | None = None
    """Where `stages.dynamics.gather` wrote how samples fared while it was trained, if it was."""
    round_folders: tuple[str, ...] = ()
    """Where `stages.ispl.write` wrote the losses of earlier rounds, if they are to be kept."""


def score(catalog: Catalog, proxy: Proxy, config: ScoreConfig, store: RunStore, max_quarantine_fraction: float) -> None:
    """Score every sample, and commit the stage `scores` (with `quarantine`).

    Raises
    ------
    QuarantineError
        As soon as more samples are quarantined than `max_quarantine_fraction` of the input.
    ValueError
        If some were scored on GPUs, and now there is none.
    StoppedError
        If a piece ends its actor's process each time.
    """
    resources = _resources_as_begun(config, proxy, store)
    batch_size = resources.batch_size
    pieces = plan(catalog, max_rows=ingest.piece_rows(proxy.image_size, batch_size), batch_size=batch_size)
    plan_hash = _plan_hash(catalog, proxy, resources, pieces)
    names = {file_name(piece, plan_hash): piece for piece in pieces}
    folders = {"scores": store.begin("scores", keep=names)}
    scored = store.finished("scores") & names.keys()  # an actor of another plan's may still be at work
    # Not those of pieces that were not finished: what is to be quarantined of them is found again.
    folders["quarantine"] = store.begin("quarantine", keep=scored)
    store.discard(_TRIES)  # another attempt may be on larger nodes
    folders["tries"] = store.path(_TRIES)
    reasons, examples = quarantine.count_reasons(catalog.source.format, store, folders["quarantine"])
    missing = [piece for name, piece in names.items() if name not in scored]
    num_scored = sum(names[name].num_rows for name in scored) - reasons.total()
    num_samples, num_flat = catalog.num_samples, 0
    with stage("score", num_samples) as progress:
        progress.waiting_for = _asked(resources, len(missing))
        progress.skip(num_samples - sum(piece.num_rows for piece in missing))
        quarantine.check(reasons, num_samples, max_quarantine_fraction, examples)
        with_bad = store.finished("quarantine")
        for row in _score_pieces(missing, catalog, proxy, resources, store, folders, plan_hash):
            with_bad.update([row["file"]] if row["reasons"] else [])
            num_scored += row["num_scored"]
            num_flat += row["num_flat"]
            reasons.update(dict(zip(row["reasons"], row["reason_counts"], strict=True)))
            examples = dict(zip(row["reasons"], row["examples"], strict=True)) | examples
            quarantine.check(reasons, num_samples, max_quarantine_fraction, examples)
            progress.advance(row["num_rows"], f"{reasons.total():,} quarantined" if reasons else "")
    if num_flat > _MANY_FLAT * num_samples:
        say(
            f"warning   {num_flat:,} images are of one colour as they are decoded (drawn by transparency alone? or "
            "in 16 bits that hold small numbers?): nothing tells them apart"
        )
    assert num_scored + reasons.total() == num_samples, "a sample was neither scored nor quarantined"
    store.commit("quarantine", {"num_samples": reasons.total(), "reasons": dict(reasons)}, with_bad)
    facts = {
        "num_samples": num_scored,
        "batch_size": batch_size,
        "precision": resources.precision,
        "decoders": images.decoders(),
        "hardness": hardness_column(config, schema.DYNAMICS_NAMES if proxy.dynamics_folder else ()),
    }
    store.commit("scores", facts, names)


def check_resources(config: ScoreConfig, device: str) -> None:
    """Refuse a cluster on which not one actor of the pool could start.

    Actors read their pieces themselves, so no CPU need be left over for that.

    Raises
    ------
    ValueError
        With the arithmetic.
    """
    resources = _resources(config, device, image_size=0)  # which decides the batch only
    request = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": float(_actor_bytes(resources))}
    preflight.check_fits(request, "a scoring actor", "Give the nodes more, or pass another --proxy.device.")


def file_name(piece: sources.Piece, plan_hash: str) -> str:
    """Of a piece's files in `scores/` and `quarantine/`."""
    return f"{schema.piece_name(piece.shard_id, piece.first_row)}-{plan_hash}.parquet"


def _plan_hash(catalog: Catalog, proxy: Proxy, resources: Resources, pieces: list[sources.Piece]) -> str:
    """A hash of what decides a score, and of how the input is cut."""
    decides = (
        (razor_ray.__version__, torch.__version__, images.decoders(), schema.scores(1).names),
        catalog.fingerprint,
        (catalog.source.format, catalog.input.image_column, catalog.input.label_column, catalog.input.id_column),
        catalog.class_names,
        model.weights_hash(model.read_file(proxy.filesystem, proxy.weights_path)),
        (proxy.arch, proxy.num_classes, proxy.image_size, proxy.dynamics_folder is not None, len(proxy.round_folders)),
        (resources.batch_size, resources.precision, resources.num_gpus > 0),
        [(piece.shard_id, piece.first_row, piece.num_rows) for piece in pieces],
    )
    return hashlib.blake2b(json.dumps(decides).encode(), digest_size=6).hexdigest()


def _score_pieces(
    pieces: list[sources.Piece],
    catalog: Catalog,
    proxy: Proxy,
    resources: Resources,
    store: RunStore,
    folders: dict[str, str],
    plan_hash: str,
) -> Iterator[dict[str, Any]]:
    """Score pieces in a pool of actors; gives a row of counts for each, in the order in which they end."""
    if not pieces:
        return
    per_call = _pieces_per_call(resources, len(pieces))
    num_actors = min(resources.num_workers, -(-len(pieces) // per_call))
    summaries = ingest.dataset([piece] for piece in pieces).map_batches(
        Scorer,
        fn_constructor_args=(catalog, proxy, resources, store.filesystem, folders, plan_hash),
        batch_size=per_call,
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            max_size=num_actors,
            initial_size=min(num_actors, _room(resources)),
            max_tasks_in_flight_per_actor=_CALLS_IN_FLIGHT,
            # One call at a time all the same, but on the actor's main thread: `heap` reaches no other.
            enable_true_multi_threading=True,
        ),
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus or None,
        memory=_actor_bytes(resources) or None,
    )
    try:
        yield from summaries.iter_rows()
    except RayTaskError as error:
        if isinstance(error.cause, StoppedError):
            raise error.cause from None  # its own message, without the actor's stack
        raise


def _pieces_per_call(resources: Resources, num_pieces: int) -> int:
    """Pieces that an actor is handed at once: several with a GPU, but few enough that all actors end together."""
    if not resources.num_gpus:
        return 1
    return min(max(num_pieces // (_CALLS_PER_ACTOR * resources.num_workers), 1), _MOST_PIECES_PER_CALL)


def _room(resources: Resources) -> int:
    """Actors that the cluster as it is now has room for, at least one."""
    rooms = [runtime.num_cpus() / resources.num_cpus]
    if resources.num_gpus:
        rooms.append(runtime.num_gpus() / resources.num_gpus)
    return max(1, int(min(rooms)))


def _actor_bytes(resources: Resources) -> int:
    request = {"CPU": resources.num_cpus, "GPU": resources.num_gpus}
    return runtime.declared_memory(_ACTOR_GIB * 2**30, request, resources.num_workers)


def _asked(resources: Resources, num_pieces: int) -> str:
    """What the pool needs, in words."""
    each = f"{resources.num_cpus:g} CPU, {resources.num_gpus:g} GPU and {_actor_bytes(resources) / 2**30:.1f} GiB each"
    per_call = _pieces_per_call(resources, num_pieces)
    num_actors = min(resources.num_workers, -(-num_pieces // per_call))
    in_flight = min(num_pieces, num_actors * _CALLS_IN_FLIGHT * per_call)
    return f"1 to {num_actors} actors of {each}, with up to {in_flight} pieces in flight of {num_pieces} at the start"


@dataclass(frozen=True, slots=True)
class Resources:
    """What an actor of the pool gets."""

    num_workers: int
    num_cpus: float
    num_gpus: float
    batch_size: int
    precision: str


class Scorer:
    """An actor of the pool: a copy of the proxy, and the pieces that it is handed.

    Parameters
    ----------
    catalog : Catalog
    proxy : Proxy
    resources : Resources
    filesystem : FileSystem
    folders : dict
        Where to write: paths of 'scores', 'quarantine' and 'tries' in the filesystem.
    plan_hash : str
        For the names of the files.
    """

    most_tries = 3
    """Of a piece, by actors that have died before."""

    def __init__(
        self,
        catalog: Catalog,
        proxy: Proxy,
        resources: Resources,
        filesystem: pafs.FileSystem,
        folders: dict[str, str],
        plan_hash: str,
    ) -> None:
        self.catalog, self.proxy, self.resources = catalog, proxy, resources
        self.filesystem, self.folders, self.plan_hash = filesystem, folders, plan_hash
        self.refusal = None
        try:
            preflight.check_seen(catalog.source.filesystem, sources.probe_path(catalog.source), "input")
            preflight.check_seen(proxy.filesystem, proxy.weights_path, "output")
        except ValueError as error:
            self.refusal = error  # for the first piece to raise: Ray begins an actor again whose start fails
            return
        self.device = torch.device("cuda" if resources.num_gpus else "cpu")
        torch.backends.cudnn.allow_tf32 = False  # float32 is what it says
        # One thread to an actor without a GPU, whatever the machine: more actors use more CPUs, and a score does not
        # depend on how many threads shared its sums.
        torch.set_num_threads(1)
        heap.keep_freed_memory()
        pa.set_cpu_count(1)
        pa.set_io_thread_count(2)
        network = model.build(proxy.arch, proxy.num_classes)
        weights = model.read_file(proxy.filesystem, proxy.weights_path)
        model.load_weights(network, weights, proxy.weights_path)
        network = model.FeaturesAndLogits(network.eval())
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        folder = proxy.dynamics_folder
        self.dynamics = None if folder is None else PerShard(proxy.filesystem, folder)
        self.rounds = [PerShard(proxy.filesystem, folder) for folder in proxy.round_folders]
        self.pool = None
        if resources.num_gpus:
            each = runtime.of_this_node("CPU") * resources.num_gpus / runtime.of_this_node("GPU")
            self.pool = ThreadPoolExecutor(max(1, int(each)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score pieces; gives a row of counts for each."""
        if self.refusal is not None:
            raise self.refusal
        rows = self.score_pieces(ingest.pieces_of(batch))
        return {name: [row[name] for row in rows] for name in rows[0]}

    def score_pieces(self, pieces: list[sources.Piece]) -> list[dict[str, Any]]:
        """Score pieces, and write the files of each as soon as it is done."""
        self._count_tries(pieces)
        size, batch_size = self.proxy.image_size, self.resources.batch_size
        if self.pool is not None:
            found = ingest.decoded_ahead(self.catalog, pieces, size, batch_size, self.pool)
        else:
            found = (
                (piece, batch)
                for piece in pieces
                for batch in ingest.decoded_batches(self.catalog, piece, size, batch_size)
            )
        of_pieces = itertools.groupby(found, key=operator.itemgetter(0))
        return [self._score_piece(piece, (batch for _, batch in batches)) for piece, batches in of_pieces]

    def _count_tries(self, pieces: list[sources.Piece]) -> None:
        """Note what an actor begins that has died before; refuse what ends one each time.

        Ray Data would begin it again without end, and an option that bounds it is deprecated.

        Raises
        ------
        StoppedError
            Naming the pieces.
        """
        context = ray.get_runtime_context()
        if context.get_actor_id() is None or not context.was_current_actor_reconstructed:
            return
        folder, names = self.folders["tries"], [schema.piece_name(of.shard_id, of.first_row) for of in pieces]
        found = self.filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
        tries = Counter(info.base_name.rpartition(".")[0] for info in found)
        if min(tries[name] for name in names) >= self.most_tries:
            places = [f"{of.path}, rows {of.first_row:,} to {of.first_row + of.num_rows - 1:,}" for of in pieces]
            raise StoppedError(
                f"{'; '.join(places)}: scoring this has ended the process {self.most_tries + 1} times. Its node may be "
                "short of memory, or an image there may be more than its decoder stands. Give the nodes more memory, "
                "or move the shard out of the input. What is finished is kept."
            )
        for name in names:
            write_file(self.filesystem, f"{folder}/{name}.{tries[name]}", b"")

    def _score_piece(self, piece: sources.Piece, batches: Iterable[ingest.Batch]) -> dict[str, Any]:
        tables, bad, num_flat = [], [], 0
        for batch in batches:
            num_flat += _num_flat(batch)
            columns = self._forward(batch)
            if self.dynamics is not None:
                # The few that no epoch saw, such as the remainder of an equal split, get what this pass alone tells.
                is_there, found = self.dynamics.look_up(batch.sample_id, schema.DYNAMICS_NAMES)
                alone = _dynamics_of_one_pass(columns)
                columns |= {
                    name: np.where(is_there, values, alone[name]).astype(np.float32) for name, values in found.items()
                }
            if self.rounds:
                losses = [of_round.look_up(batch.sample_id, [LOSS])[1][LOSS] for of_round in self.rounds]
                columns["round_loss"] = np.stack([*losses, columns["loss"]], axis=1)  # (B, T)
            finite = np.isfinite(columns["loss"]) & np.isfinite(columns["embedding"]).all(axis=1)
            reasons = [
                reason or (None if fine else "score is not finite")
                for reason, fine in zip(batch.reasons, finite.tolist(), strict=True)
            ]
            tables.append(_score_table(batch, columns, np.array([reason is None for reason in reasons])))
            rows = zip(batch.sample_id.tolist(), batch.place, reasons, strict=True)
            bad += [(identity, place, reason) for identity, place, reason in rows if reason is not None]
        name = file_name(piece, self.plan_hash)
        scored = pa.concat_tables(tables)
        if bad:
            write_table(self.filesystem, f"{self.folders['quarantine']}/{name}", quarantine.table(bad))
        write_table(self.filesystem, f"{self.folders['scores']}/{name}", scored)  # last: it says that the piece is done
        counts = Counter(reason for _, _, reason in bad)
        examples = {
            reason: ingest.in_words(self.catalog.source.format, place, identity) for identity, place, reason in bad
        }
        return {
            "file": name,
            "num_rows": piece.num_rows,
            "num_scored": scored.num_rows,
            "num_flat": num_flat,
            "reasons": list(counts),
            "reason_counts": list(counts.values()),
            "examples": [examples[reason] for reason in counts],
        }

    def _forward(self, batch: ingest.Batch) -> dict[str, np.ndarray]:
        """All scores and the embedding of a batch, unusable rows included."""
        bf16 = self.resources.precision == "bf16"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            pixels = torch.from_numpy(batch.pixels).to(self.device, non_blocking=True)  # (B, S, S, 3)
            embedding, logits = self.network(transforms.normalize(pixels))  # (B, D), (B, C)
        labels = torch.from_numpy(batch.label).clamp(min=0).long()  # (B,)
        # A network that has run away gives logits without a score; they are told apart below, not here.
        scores = hardness.all_scores(logits.float(), labels)
        columns = {name: value.cpu().numpy() for name, value in scores.items()}
        # The first of equal ones, as `correct` has it.
        columns["predicted"] = logits.argmax(dim=1).to(torch.int32).cpu().numpy()
        # float16 ends at 65504, and an embedding is used for its direction.
        columns["embedding"] = embedding.float().clamp(-65504, 65504).to(torch.float16).cpu().numpy()
        return columns


def _num_flat(batch: ingest.Batch) -> int:
    """Usable images whose pixels are all the same."""
    some = batch.pixels[:, ::4, ::4]  # (B, S / 4, S / 4, 3): of most images enough to tell
    maybe = np.flatnonzero((some == some[:, :1, :1]).all(axis=(1, 2, 3)))
    return sum(
        batch.reasons[row] is None and bool((batch.pixels[row] == batch.pixels[row, 0, 0]).all()) for row in maybe
    )


def _dynamics_of_one_pass(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    p = np.exp(-columns["loss"].astype(np.float64))
    other = np.maximum(columns["margin"] + p, np.finfo(np.float32).tiny)  # of the likeliest other class
    return {
        "mean_el2n": columns["el2n"],
        "mean_p": p,
        "dyn_unc": np.zeros_like(p),
        "dual": np.zeros_like(p),
        # Logits differ as the logarithms of their probabilities do.
        "aum": np.log(other) + columns["loss"],
        "forgetting": np.where(columns["correct"], 0.0, 2.0),
    }


def proxy_in_store(
    store: RunStore,
    arch: str,
    num_classes: int,
    image_size: int,
    device: str = "auto",
    *,
    with_dynamics: bool = False,
    rounds: Sequence[RunStore] = (),
) -> Proxy:
    """The proxy whose weights were put into the run's folder; the losses of `rounds` are kept beside its own."""
    return Proxy(
        arch,
        num_classes,
        image_size,
        store.filesystem,
        store.path("proxy", "model.safetensors"),
        device,
        store.path("proxy", "dynamics") if with_dynamics else None,
        tuple(of_round.path("ispl") for of_round in rounds),
    )


def hardness_column(config: ScoreConfig, columns: Collection[str]) -> str:
    """The column of `scores/` that ranks samples inside a class, of those that are there.

    How samples fared in training costs nothing, and no pass of its own was better (docs/experiments.md).

    >>> hardness_column(ScoreConfig(), ["el2n", "mean_el2n"]), hardness_column(ScoreConfig(), ["el2n"])
    ('mean_el2n', 'el2n')
    """
    if config.hardness != "auto":
        return config.hardness
    return "mean_el2n" if "mean_el2n" in columns else "el2n"


def _resources(config: ScoreConfig, device: str, image_size: int) -> Resources:
    gpus, cpus = runtime.num_gpus(device), runtime.num_cpus()
    workers = (gpus or cpus) if config.num_workers == "auto" else config.num_workers
    on_cpu = _LARGE_BATCH_ON_CPU if image_size > SMALL_IMAGE else _BATCH_ON_CPU
    batch_size = (_BATCH_ON_GPU if gpus else on_cpu) if config.batch_size == "auto" else config.batch_size
    on_gpu = "bf16" if runtime.gpus_have_bf16() else "float32"
    precision = (on_gpu if gpus else "float32") if config.precision == "auto" else config.precision
    if not gpus:
        # One machine does not grow; a cluster may, up to the number of workers that was asked for.
        return Resources(min(workers, cpus) if runtime.is_private() else workers, 1.0, 0.0, batch_size, precision)
    return Resources(workers, 1.0, runtime.share_of_gpu(workers), batch_size, precision)


def _resources_as_begun(config: ScoreConfig, proxy: Proxy, store: RunStore) -> Resources:
    """Resources that give the rest of the pieces the scores that they would have had from the start.

    What 'auto' stands for depends on the GPUs that are there, and they may have gone with their nodes, or come.
    """
    resources = _resources(config, proxy.device, proxy.image_size)
    name = f"{BEGUN}/begun.json"
    begun = store.read_json(name)
    if begun is None or not store.finished("scores"):
        begun = {"batch_size": resources.batch_size, "precision": resources.precision, "gpu": resources.num_gpus > 0}
        store.write_json(name, begun)
    if begun["gpu"] and not resources.num_gpus:
        if runtime.is_private():
            raise ValueError(
                f"{len(store.finished('scores'))} pieces of {store.uri} were scored on GPUs, and now there is none. "
                "Give the same command again when there is, or begin anew with --proxy.device cpu and another --output."
            )
        resources = _resources(config, "cuda", proxy.image_size)  # which the autoscaler brings again
    if resources.num_gpus and not begun["gpu"]:
        resources = _resources(config, "cpu", proxy.image_size)
    return replace(resources, batch_size=begun["batch_size"], precision=begun["precision"])


def _score_table(batch: ingest.Batch, columns: dict[str, np.ndarray], usable: np.ndarray) -> pa.Table:
    size = columns["embedding"].shape[1]
    values = pa.array(columns["embedding"].ravel(), pa.float16())
    arrays = {
        "sample_id": pa.array(batch.sample_id),
        "key": pa.array(batch.key, pa.string()),
        "label": pa.array(batch.label),
        **{name: pa.array(columns[name]) for name in (*schema.SCORE_NAMES, "correct", "predicted")},
        **{name: pa.array(columns[name]) for name in schema.DYNAMICS_NAMES if name in columns},
        **_round_losses(columns),
        "embedding": pa.FixedSizeListArray.from_arrays(values, size),
    }
    expected = schema.scores(
        size,
        with_dynamics=schema.DYNAMICS_NAMES[0] in columns,
        num_rounds=columns["round_loss"].shape[1] if "round_loss" in columns else 0,
    )
    table = pa.table(arrays, schema=expected)
    return schema.check(table.filter(pa.array(usable)), expected, "scores")


def _round_losses(columns: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    if "round_loss" not in columns:
        return {}
    losses = columns["round_loss"]  # (B, T)
    values = pa.array(losses.ravel().astype(np.float32))
    return {"round_loss": pa.FixedSizeListArray.from_arrays(values, losses.shape[1])}
