"""scores -> compare.parquet: what several methods keep, trained on side by side, as tasks over one set of scores.

A cell is one training. Cells share nothing but the images and scores, which lie in the object store once. Each is
written when it ends, and its state at the end of a pass over its images when a minute has gone since the last, so that
an interrupted comparison loses little.
"""

from __future__ import annotations

import base64
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from razor_ray import baselines, charts, comparison, images, manifest, methods, model, schema, weights
from razor_ray.comparison import ALL
from razor_ray.config import CompareConfig, PruneConfig
from razor_ray.hashing import VALIDATION, hash_ids
from razor_ray.progress import say, stage
from razor_ray.run_store import RunStore, open_filesystem, write_table
from razor_ray.selection import RULE, Samples, gamma_razor, interclass_quotas
from razor_ray.stages import ingest, runtime
from razor_ray.stages.catalog import Catalog, choose_size, pieces
from razor_ray.stages.cells import (
    CELLS,
    STATE,
    Cell,
    Data,
    Folder,
    Steps,
    cells,
    method_of,
    num_steps_of,
    precision_of,
    state_name,
    train_cells,
)
from razor_ray.stages.sample import random_ids
from razor_ray.stages.weigh import threshold_of_round

_DECODE_BATCH = 256
_MADE_OF = "_made_of.json"
_ROW_FORMAT = 2  # tells which of the held-out images a network is right of
_SECONDS_BETWEEN_STATES = 60.0
_OF_QUOTAS = ("weigh", "sample", "threshold", "earlier")


def compare(
    config: CompareConfig,
    run: RunStore,
    pruned: PruneConfig,
    catalog: Catalog,
    held_out: Catalog | None,
    store: RunStore,
) -> str:
    """Train the cells that are missing, and write the comparison.

    Parameters
    ----------
    config : CompareConfig
        As `reuse.choice_as_in` gives it.
    run : RunStore
        A finished run of `prune`.
    pruned : PruneConfig
        Its configuration.
    catalog : Catalog
        Of the run's input.
    held_out : Catalog or None
        Images to measure on; without them a part of the input is set aside for it.
    store : RunStore
        Gets `cells/`, compare.parquet, compare.md and compare.svg. Cells of earlier calls are told of too, and those
        that were interrupted go on.

    Returns
    -------
    str
        compare.md.

    Raises
    ------
    ValueError
        If a method is not known or needs a score that the run has not, or the images fit no memory.
    """
    made_of = _made_of(run, config, catalog, held_out)
    _check_same(made_of, run, store)
    proxy, size = run.commit_facts("proxy"), choose_size(config.model.image_size, catalog)
    is_alike = (proxy["arch"], proxy["image_size"]) == (model.resolve_arch(config.model.arch, size), size)
    other_network = "" if is_alike else f"{proxy['arch']} at {proxy['image_size']} pixels"
    done = _done(store)
    missing = [cell for cell in cells(config) if cell not in done]
    if missing:
        _check_room(config, catalog, held_out, run)
    samples, sample_id = read_samples(run, config.hardness)
    # Before anything is trained, since it may be refused.
    stability = {uri: _stability(run, samples, sample_id, RunStore(uri)) for uri in config.other_runs}
    if missing:
        _check_methods(config, samples)
        data = _gather(config, samples, sample_id, catalog, held_out)
        data = _with_rounds(data, samples, run.commit_facts("proxy").get("rounds", []), pruned)
        _check_quotas(missing, config, data)
        store.claim(config)  # only now: a request that is refused must not find itself in the way when it is mended
        store.write_json(_MADE_OF, made_of)
        folder = Folder(store.filesystem, store.root.rstrip("/"), _SECONDS_BETWEEN_STATES)
        num_steps = sum(num_steps_of(config, cell, len(data.samples.ids)) for cell in missing)
        num_asked = len(cells(config))
        num_ended = num_asked - len(missing)
        if done:
            _write(config, run, _sorted(done), stability, other_network, store, len(missing))
        _tell_of_ended(num_ended, num_asked)
        with stage("compare", num_steps, "steps") as progress:
            note = told = f"{num_ended} of {num_asked} trainings"
            for cell, found in train_cells(config, missing, data, folder):
                if isinstance(found, Steps):
                    if found.is_earlier:
                        progress.skip(found.count)
                    else:
                        progress.advance(found.count, note)
                    continue
                store.write_json(f"{CELLS}/{cell.name}.json", found)
                store.delete(state_name(cell))
                done[cell] = found
                num_ended += 1
                told = f"{num_ended} of {num_asked} trainings"
                note = f"{told}; {cell.title}: {100 * found['accuracy']:.2f} %"
                progress.advance(0, note)
                _write(config, run, _sorted(done), stability, other_network, store, num_asked - num_ended)
            progress.note = told
    else:
        _tell_of_ended(len(cells(config)), len(cells(config)))
    return _write(config, run, _sorted(done), stability, other_network, store)


def _made_of(run: RunStore, config: CompareConfig, catalog: Catalog, held_out: Catalog | None) -> dict[str, Any]:
    """What decides an accuracy besides the comparison's own settings."""
    start = config.model.weights and model.weights_hash(model.read_file(*open_filesystem(config.model.weights)))
    return {
        "row format": _ROW_FORMAT,
        "rule": RULE,
        "rivals": baselines.RULE,
        "precision": precision_of(config),
        "weights to start from": start,
        "input": catalog.fingerprint,
        "held-out": held_out.fingerprint if held_out else None,
        "proxy": run.commit_facts("proxy")["weights_sha256"],
        "scores": run.commit_facts("scores"),
        "choice": asdict(config.weigh) | asdict(config.sample),
    }


def _check_same(made_of: dict[str, Any], run: RunStore, store: RunStore) -> None:
    """Refuse to put trainings beside others that were made of other images or scores.

    Raises
    ------
    ValueError
        If the run, its input, its settings or the held-out images are not those that the comparison was begun with.
    """
    begun = store.read_json(_MADE_OF)
    if begun is not None and (changed := [name for name, value in made_of.items() if begun.get(name) != value]):
        raise ValueError(
            f"{store.uri} was begun with another state of {run.uri} or of the held-out images, in another arithmetic, "
            f"or by another version of razor_ray ({', '.join(changed)} changed since). Choose another --output."
        )


def _tell_of_ended(num_ended: int, num_asked: int) -> None:
    if num_ended:
        say(f"compare   {num_ended} of {num_asked} trainings done before, skipped")


def _sorted(done: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    return [done[cell] for cell in sorted(done)]


def _done(store: RunStore) -> dict[Cell, dict[str, Any]]:
    """What the folder holds, whoever asked for it: one comparison may be made of several calls."""
    found = store.filesystem.get_file_info(pafs.FileSelector(store.path(CELLS), allow_not_found=True))
    for info in found:
        if info.base_name.startswith("_"):  # whoever wrote it died while it did
            store.delete(f"{CELLS}/{info.base_name}")
    names = sorted(info.base_name for info in found if info.base_name[0] != "_")
    rows = [store.read_json(f"{CELLS}/{name}") for name in names if name.endswith(".json")]
    done = {Cell(row["method"], row["keep_fraction"], row["budget"], row["seed"]): row for row in rows if row}
    for name in {f"{cell.name}{STATE}" for cell in done}.intersection(names):
        store.delete(f"{CELLS}/{name}")  # whoever wrote the row died before it could
    return done


def read_samples(run: RunStore, hardness: str = "auto") -> tuple[Samples, NDArray[np.int64]]:
    """The scores of a finished run of `prune` as arrays.

    Parameters
    ----------
    run : RunStore
    hardness : str
        The score that ranks samples; 'auto' for the run's.

    Returns
    -------
    (Samples, ndarray of shape (N,))
        In the order of the sample ids, and these.
    """
    table = run.read("scores").sort_by("sample_id").combine_chunks()
    begun = run.read_json("config.json")
    assert begun is not None
    names = [name for name in table.column_names if name in (*schema.SCORE_NAMES, *schema.DYNAMICS_NAMES, "correct")]
    sample_id = table["sample_id"].to_numpy()
    embedding = table["embedding"].combine_chunks()
    samples = Samples(
        tie_break=sample_id,
        ids=random_ids(sample_id, table["key"].to_pylist(), by_key=begun["input"]["id_column"] is not None),
        label=table["label"].to_numpy().astype(np.int64),
        scores={name: table[name].to_numpy() for name in names},
        embedding=embedding.flatten().to_numpy().reshape(len(table), -1),
        hardness=run.commit_facts("scores")["hardness"] if hardness == "auto" else hardness,
    )
    return samples, sample_id


def check_names(config: CompareConfig, pruned: PruneConfig) -> None:
    """Refuse names of no method, or of one twice; at once, not when Ray has started.

    Raises
    ------
    ValueError
        If there is no method of a name, or of its settings, or two names are of one.
    """
    named: list[tuple[str, Any]] = []
    for name in config.methods:
        resolved = [
            methods.resolve(
                name,
                weigh=config.weigh,
                sample=replace(config.sample, trained_for=budget),
                has_rounds=pruned.rounds > 1,
            )
            for budget in config.budgets
        ]
        is_what = [(method.func, methods.settings_of(method)) for method in resolved]
        if twins := [other for other, of in named if of == is_what]:
            raise ValueError(f"{twins[0]} and {name} keep the same: leave one out.")
        named.append((name, is_what))


def _check_methods(config: CompareConfig, samples: Samples) -> None:
    """Before hours of training, not after: a score that is missing is told by the method itself."""
    few = samples.take(
        np.concatenate([np.flatnonzero(samples.label == label)[:2] for label in np.unique(samples.label)])
    )
    for name in config.methods:
        method = methods.resolve(name)
        if _is_razor(name):  # whose losses are to be judged all together: see `_check_quotas`
            samples.column(method.keywords["hardness"] or samples.hardness)
        else:
            method(few, len(few.ids), 0)


def _check_quotas(missing: list[Cell], config: CompareConfig, data: Data) -> None:
    """Likewise of what cannot be met: a class floor beyond the budget, or a threshold that a scheme cannot have."""
    of_razor = [cell for cell in missing if _is_razor(cell.method)]
    for cell in {(cell.method, cell.keep_fraction): cell for cell in of_razor}.values():
        method = method_of(cell, config, data)
        budget = weights.budget(len(data.samples.ids), cell.keep_fraction)
        try:
            interclass_quotas(data.samples, budget, **{name: method.keywords[name] for name in _OF_QUOTAS})
        except ValueError as error:
            raise ValueError(f"{cell.method} at {100 * cell.keep_fraction:g} %: {error}") from error


def _is_razor(name: str) -> bool:
    return methods.METHODS.get(name.partition(":")[0]) is gamma_razor


def _check_room(config: CompareConfig, catalog: Catalog, held_out: Catalog | None, run: RunStore) -> None:
    """Refuse more than the object store of a node holds; before scores are read, which may be as many as the images."""
    size = choose_size(config.model.image_size, catalog)
    stored = images.stored_size(size, augment=config.augment != "none")
    scored = pq.read_schema(run.files("scores")[0], filesystem=run.filesystem)
    of_scores = 2 * scored.field("embedding").type.list_size + 8 * len(scored)
    num_bytes = catalog.num_samples * (stored**2 * 3 + of_scores)
    num_bytes += held_out.num_samples * size**2 * 3 if held_out else 0
    room = int(0.8 * runtime.smallest_object_store())
    if num_bytes > room:
        raise ValueError(
            f"the decoded images and their scores take {num_bytes / 2**30:.1f} GiB, but the object store of a node has "
            f"{room / 2**30:.1f} GiB to spare, and each node that trains holds all of them. Compare on a part of the "
            "data, at a smaller --image-size, or on larger nodes."
        )


def _gather(
    config: CompareConfig, samples: Samples, scored: NDArray[np.int64], catalog: Catalog, held_out: Catalog | None
) -> Data:
    size = choose_size(config.model.image_size, catalog)
    stored = images.stored_size(size, augment=config.augment != "none")
    sample_id, pixels, _ = _decode(catalog, stored, "images")
    place = np.minimum(np.searchsorted(sample_id, scored), len(sample_id) - 1)
    if not np.array_equal(sample_id[place], scored):
        raise ValueError(f"images of {catalog.input.path} that the run has scored cannot be decoded any more.")
    if held_out:
        _, eval_pixels, eval_label = _decode(held_out, size, "held-out")
        if num_lost := held_out.num_samples - len(eval_label):
            say(f"warning   {num_lost:,} held-out images could not be used, and count in no figure")
    else:
        aside = validation_mask(samples, config.validation_fraction)
        if not aside.any():
            raise ValueError(
                "no class has two images, one of which could be set aside. Name held-out images by --eval."
            )
        margin = (stored - size) // 2  # the middle of what crops for training are taken from
        eval_pixels = pixels[place[aside], margin : margin + size, margin : margin + size]
        eval_label = samples.label[aside].astype(np.int64)
        num_without = len(np.setdiff1d(samples.label, eval_label))
        if num_without:
            say(f"warning   {num_without} classes of one image each have none set aside, and count in no figure")
        samples, place = samples.take(np.flatnonzero(~aside)), place[~aside]
    if len(place) < len(pixels):
        pixels = pixels[place]
    arch = model.resolve_arch(config.model.arch, size)
    given = None if config.model.weights is None else model.read_file(*open_filesystem(config.model.weights))
    return Data(samples, pixels, eval_pixels, eval_label, arch, len(catalog.class_names), size, given)


def _with_rounds(data: Data, scored: Samples, rounds: list[dict[str, Any]], pruned: PruneConfig) -> Data:
    """The same with what the run's earlier ISPL rounds found, in proportion to what is left of a class."""
    if not rounds:
        return data
    sizes, left = (np.bincount(of.label, minlength=data.num_classes) for of in (scored, data.samples))
    earlier = tuple(
        {int(label): count * left[int(label)] / sizes[int(label)] for label, count in of["effective_count"].items()}
        for of in rounds
    )
    return replace(data, threshold=threshold_of_round(rounds[0], pruned.weigh, len(rounds) + 1), earlier=earlier)


def validation_mask(samples: Samples, fraction: float) -> NDArray[np.bool_]:
    """A part of every class, but at least one of two, by a hash of the ids: the same whatever is compared; (N,)."""
    order = np.lexsort((hash_ids(samples.ids.astype(np.uint64), 0, VALIDATION), samples.label))
    aside = np.zeros(len(order), bool)
    for rows in np.split(order, np.flatnonzero(np.diff(samples.label[order])) + 1):
        aside[rows[: max(int(fraction * len(rows)), min(len(rows) - 1, 1))]] = True
    return aside


def _decode(catalog: Catalog, size: int, title: str) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """All images that can be used: ids (N,), ascending, pixels (N, S, S, 3), labels (N,)."""
    planned = pieces(catalog, max_rows=ingest.piece_rows(size, _DECODE_BATCH), batch_size=_DECODE_BATCH)
    parts: list[Any] = [None] * len(planned)
    shared = ray.put(catalog)  # a row for each shard: too large to go with every task
    with stage(title, catalog.num_samples) as progress:
        for index, part in runtime.run_tasks(
            _decode_piece, ((shared, piece, size) for piece in planned), name="decode"
        ):
            parts[index] = part
            progress.advance(planned[index].num_rows)
    ids, pixels, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    assert (np.diff(ids) > 0).all(), "pieces are in the order of their ids"
    return ids, pixels, labels


def _decode_piece(
    catalog: Catalog, piece: Any, size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    torch.set_num_threads(1)
    parts = []
    for batch in ingest.decoded_batches(catalog, piece, size, _DECODE_BATCH):
        usable = np.array([reason is None for reason in batch.reasons])
        parts.append((batch.sample_id[usable], batch.pixels[usable], batch.label[usable].astype(np.int64)))
    ids, pixels, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return ids, pixels, labels


def _chart(lines: list[comparison.Summary]) -> str:
    whole = [line.accuracy.mean for line in lines if line.method == ALL]
    series: dict[str, list[tuple[float, float, float]]] = {}
    for line in lines:
        if line.method != ALL:
            name = line.method if line.budget == "epochs" else f"{line.method}, equal steps"
            series.setdefault(name, []).append((line.keep_fraction, line.accuracy.mean, line.accuracy.error))
    upwards = dict(sorted(series.items(), key=lambda item: max(item[1])[:2]))  # as their ends lie, so do their names
    return charts.line_chart(
        upwards,
        reference=whole[0] if whole else None,
        x_name="samples kept, %",
        y_name="accuracy, %; bars are a standard error to each side",
    )


def _stability(run: RunStore, samples: Samples, sample_id: NDArray[np.int64], other: RunStore) -> dict[str, float]:
    if not other.is_done("scores"):
        raise ValueError(
            f"{other.uri} holds no run of prune that has scored its samples. Leave it out of --other-runs."
        )
    hashes = [each.commit_facts("proxy")["weights_sha256"] for each in (run, other)]
    if hashes[0] == hashes[1]:
        raise ValueError(
            f"{other.uri} was scored by the same proxy as {run.uri}: that they agree tells nothing. Give runs whose "
            "proxies were trained with other seeds."
        )
    if samples.hardness not in pq.read_schema(other.files("scores")[0], filesystem=other.filesystem).names:
        raise ValueError(
            f"{other.uri} has no score {samples.hardness!r}, by which {run.uri} ranks. Pass a --hardness "
            "that both have, such as el2n, or leave that run out of --other-runs."
        )
    table = other.read("scores", ["sample_id", samples.hardness]).sort_by("sample_id")
    if not np.array_equal(table["sample_id"].to_numpy(), sample_id):
        raise ValueError(f"{other.uri} has scored other samples. Give runs over the same input.")
    return comparison.rank_stability(samples.column(samples.hardness), table[samples.hardness].to_numpy())


def _write(
    config: CompareConfig,
    run: RunStore,
    rows: list[dict[str, Any]],
    stability: dict[str, dict[str, float]],
    other_network: str,
    store: RunStore,
    num_missing: int = 0,
) -> str:
    lines = comparison.summarize(rows)
    cost = manifest.scoring_epochs(run.commit_facts("proxy"))
    text = comparison.markdown(
        lines,
        cost_epochs=cost,
        epochs=config.epochs,
        other_network=other_network,
        stability=stability,
        num_missing=num_missing,
    )
    columns = [row | {"right": base64.b64decode(row["right"])} for row in rows]
    write_table(store.filesystem, store.path("compare.parquet"), pa.Table.from_pylist(columns))
    store.write_bytes("compare.md", text.encode())
    if len(lines) > 1:
        store.write_bytes("compare.svg", _chart(lines).encode())
    known = {  # JSON has no NaN
        uri: {name: None if math.isnan(value) else value for name, value in found.items()}
        for uri, found in stability.items()
    }
    store.write_json("compare.json", {"cost_epochs": cost, "stability": known})
    return text
