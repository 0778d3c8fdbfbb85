"""input -> catalog/: one row per shard, the identity of every sample, and what the labels are."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray

from razor_ray import headers, labels, schema, shards, sources
from razor_ray.config import Auto, InputConfig
from razor_ray.progress import say, sign_of_life, stage
from razor_ray.run_store import RunStore, write_table
from razor_ray.stages.runtime import run_tasks

_SHARDS_PER_TASK = 16
_SHARDS_AT_ONCE = 16
_MANY_CLASSES = 20
"""So many labels that each name one sample are none."""
_PIECE_BYTES = 2**29
"""Of a Parquet shard, as a piece of one is in memory at once, encoded; a single batch may take more."""
_MOST_REFUSED = 10
"""After so many shards that cannot be used no more are looked at."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """An input, looked at: its shards, its classes, how large its images are."""

    source: sources.Source
    input: InputConfig
    table: pa.Table
    """Of `schema.CATALOG`."""
    class_names: tuple[str, ...]
    label_kind: shards.LabelKind
    network_size: int
    """Side in pixels that suits the images."""
    class_sizes: tuple[int, ...]
    """Samples of each class, those included that may turn out to be unusable."""
    unknown_labels: dict[str, int] = field(default_factory=dict)
    """Samples of each label that is none of the classes, if there are names; known only when it has just been built."""
    problems: dict[str, int] = field(default_factory=dict)
    """Samples that are known to be unusable otherwise, by reason; likewise, and not all that are."""

    @property
    def fingerprint(self) -> str:
        """One hash over the shards' fingerprints."""
        return hashlib.blake2b("".join(self.table["fingerprint"].to_pylist()).encode(), digest_size=16).hexdigest()

    @property
    def num_samples(self) -> int:
        """Rows of all shards."""
        return int(self.table["num_samples"].to_numpy().sum())


def build(config: InputConfig, like: Catalog | None = None, source: sources.Source | None = None) -> Catalog:
    """Look at every shard's metadata and labels, in parallel.

    Parameters
    ----------
    config : InputConfig
    like : Catalog, optional
        Take the classes from this one (held-out images are of the classes that were trained on).
    source : Source, optional
        Of the input, if it has been listed just now: that of a million files takes minutes.

    Raises
    ------
    InputError
        If the input is not there, shards cannot be read, or the labels make no classes.
    """
    source = source or sources.find(config)
    if source.left_alone:
        say(f"note      left alone in {config.path}: {source.left_alone}")
    num_shards = len(source.paths)
    per_task = 1 if source.format == "webdataset" else _SHARDS_PER_TASK  # a tar is walked from end to end
    groups = [tuple(range(start, min(start + per_task, num_shards))) for start in range(0, num_shards, per_task)]
    found = _Found()
    refused: dict[int, sources.InputError] = {}
    num_seen = 0
    with stage("held-out" if like else "catalog", num_shards, "shards") as progress:
        shared = ray.put(source)  # a path for each shard: too large to go with every task
        for index, group in run_tasks(_inspect, ((shared, g, config) for g in groups), name="catalog"):
            for shard, fact in zip(groups[index], group, strict=True):
                if isinstance(fact, sources.InputError):
                    refused[shard] = fact
                else:
                    found.add(shard, fact)
            progress.advance(len(group))
            num_seen += len(group)
            if len(refused) >= _MOST_REFUSED:
                break  # what is wrong may be wrong of all
        if refused:
            raise _refusal(source, refused, num_seen)
        catalog = _assemble(source, config, found, like)
        progress.note = f"{catalog.num_samples:,} samples of {len(catalog.class_names)} classes"
    return catalog


def write(catalog: Catalog, store: RunStore) -> None:
    """Commit a catalog as the stage `catalog`."""
    folder = store.begin("catalog")
    write_table(store.filesystem, f"{folder}/catalog.parquet", catalog.table)
    facts = {
        "num_shards": catalog.table.num_rows,
        "num_samples": catalog.num_samples,
        "fingerprint": catalog.fingerprint,
        "class_names": list(catalog.class_names),
        "label_kind": catalog.label_kind,
        "network_size": catalog.network_size,
        "class_sizes": list(catalog.class_sizes),
    }
    store.commit("catalog", facts)


def read(config: InputConfig, store: RunStore, source: sources.Source | None = None) -> Catalog:
    """The committed catalog; `source` as for `build`.

    Raises
    ------
    InputError
        If the input's files are not those that were catalogued.
    """
    table, facts = _committed(store)
    source = source or sources.find(config)
    seen = {"path": source.paths, "num_bytes": source.sizes}
    if source.fingerprints:
        seen["fingerprint"] = source.fingerprints
    is_same = all(list(values) == table[name].to_pylist() for name, values in seen.items())
    if not (is_same and _are_as_they_were(source, config, table, store.committed_ns("catalog"))):
        raise sources.InputError(
            f"the files of {config.path} are not those that {store.uri} was begun with. "
            "Choose another --output for the changed input."
        )
    return Catalog(
        source=source,
        input=config,
        table=table,
        class_names=tuple(facts["class_names"]),
        label_kind=facts["label_kind"],
        network_size=facts["network_size"],
        class_sizes=tuple(facts["class_sizes"]),
    )


def _are_as_they_were(source: sources.Source, config: InputConfig, table: pa.Table, since_ns: int) -> bool:
    """Whether the shards that were written since hold what they did, as one with other labels need not be larger."""
    written = [shard for shard, mtime in enumerate(source.mtimes_ns) if mtime > since_ns > 0]
    expected = table["fingerprint"].to_pylist()
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        for shard, fact in zip(written, pool.map(lambda of: sources.inspect(source, of, config), written), strict=True):
            sign_of_life()
            if fact.fingerprint != expected[shard]:
                pool.shutdown(wait=False, cancel_futures=True)
                return False
    return True


def _committed(store: RunStore) -> tuple[pa.Table, dict[str, Any]]:
    """The table of the committed catalog, and the facts of the whole input."""
    facts = store.commit_facts("catalog")
    if "class_names" not in facts:
        raise sources.InputError(
            f"{store.uri} was made by an earlier state of razor_ray, and cannot be read now. Choose another --output."
        )
    return schema.check(store.read("catalog"), schema.CATALOG, "catalog"), facts


def is_of(catalog: Catalog, store: RunStore) -> bool:
    """Whether the run in a store has the same samples: shards, labels and classes, wherever the input lies now."""
    table, facts = _committed(store)
    classes = [list(catalog.class_names), catalog.label_kind, list(catalog.class_sizes)]
    return (
        table.equals(catalog.table)
        and [facts[name] for name in ("class_names", "label_kind", "class_sizes")] == classes
    )


def pieces(catalog: Catalog, *, max_rows: int, batch_size: int) -> list[sources.Piece]:
    """All pieces of the input, in order of shard and row."""
    names = ("path", "group_rows", "group_offsets", "num_bytes", "num_samples")
    rows = zip(*(catalog.table[name].to_pylist() for name in names), strict=True)
    is_held = catalog.source.format == "parquet"  # others are read a batch at a time
    planned = []
    for shard, (path, group_rows, group_offsets, num_bytes, num_samples) in enumerate(rows):
        at_most = min(max_rows, _PIECE_BYTES * num_samples // max(num_bytes, 1)) if is_held else max_rows
        planned += shards.cut(shard, path, group_rows, group_offsets, at_most, batch_size)
    return planned


def choose_size(size: int | Auto, catalog: Catalog) -> int:
    """The side in pixels that was asked for, or that suits the images."""
    return catalog.network_size if size == "auto" else size


def _inspect(
    source: sources.Source, group: tuple[int, ...], config: InputConfig
) -> list[sources.ShardFacts | sources.InputError]:
    found: list[sources.ShardFacts | sources.InputError] = []
    names: dict[Any, Any] = {}  # one list of class names goes back, not one for each shard
    for shard in group:
        try:
            fact = sources.inspect(source, shard, config)
            found.append(replace(fact, class_names=names.setdefault(fact.class_names, fact.class_names)))
        except sources.InputError as error:
            found.append(error)
    return found


class _Found:
    """What shards say, without what would be as large as shards times classes."""

    def __init__(self) -> None:
        self.counts: Counter[Any] = Counter()
        """Samples of each label, of all shards."""
        self.problems: Counter[str] = Counter()
        self._facts: dict[int, sources.ShardFacts] = {}
        self._names: dict[Any, Any] = {}

    def add(self, shard: int, fact: sources.ShardFacts) -> None:
        self.counts.update(fact.label_counts)
        self.problems.update(fact.problems)
        names = self._names.setdefault(fact.class_names, fact.class_names)
        self._facts[shard] = replace(fact, label_counts={}, class_names=names)

    def facts(self) -> list[sources.ShardFacts]:
        """In the order of the shards, without counts."""
        return [self._facts[shard] for shard in sorted(self._facts)]


def _refusal(source: sources.Source, refused: dict[int, sources.InputError], num_seen: int) -> sources.InputError:
    """One error of all shards that cannot be used, so that they can be mended at once."""
    alike: dict[str, list[int]] = {}
    for shard in sorted(refused):
        alike.setdefault(str(refused[shard]).replace(source.paths[shard], ""), []).append(shard)
    lines = []
    for first, *others in alike.values():
        likewise = f" Likewise {', '.join(source.paths[shard] for shard in others)}." if others else ""
        lines.append(f"{refused[first]}{likewise}")
    if num_seen < len(source.paths):
        lines.append(f"That is of {num_seen} shards of {len(source.paths)}: no others were looked at.")
    return sources.InputError("\n".join(lines))


def _assemble(
    source: sources.Source,
    config: InputConfig,
    found: _Found,
    like: Catalog | None,
) -> Catalog:
    facts = found.facts()
    given = like.class_names if like else config.class_names
    kind, counts = _labels(source, config, facts, found.counts, given)
    in_metadata = _names_in_metadata(source, facts)
    if like and kind == "integer" and in_metadata and in_metadata != like.class_names:
        raise sources.InputError(
            f"the classes of {config.path} ({', '.join(in_metadata[:3])}, ...) are not in the order of those that are "
            f"trained on ({', '.join(like.class_names[:3])}, ...), so its integers mean other classes."
        )
    names = labels.resolve_class_names(given, in_metadata, kind, counts)
    sizes = [headers.network_size(height, width) for fact in facts for height, width in fact.image_dimensions]
    unknown = set(counts).difference(names if kind == "string" else range(len(names)), [None])
    if kind == "integer":
        unknown = {label for label in unknown if label >= 0}  # those below are no label
    from_one = range(1, len(names) + 1)
    if kind == "integer" and not counts[0] and unknown == {len(names)} and all(counts[label] for label in from_one):
        raise sources.InputError(
            f"labels of {config.path} go from 1 to {len(names)}, but {len(names)} classes are named, which are 0 to "
            f"{len(names) - 1}: each label would have the name of the next. Count labels from 0, or name a class 0 too "
            "with --input.class-names."
        )
    is_guessed = not (like or config.class_names or in_metadata or source.format == "folders")
    if is_guessed and counts.total() == len(names) >= _MANY_CLASSES:
        raise sources.InputError(
            f"each of the {len(names):,} samples has a label of its own: {config.label_column!r} seems to be no label. "
            "Choose another --input.label-column."
        )
    return Catalog(
        source=source,
        input=config,
        table=_table(source, facts),
        class_names=names,
        label_kind=kind,
        network_size=int(statistics.median_high(sizes or [224])),
        class_sizes=tuple(counts[name if kind == "string" else label] for label, name in enumerate(names)),
        unknown_labels={str(label): counts[label] for label in sorted(unknown)},
        problems=dict(found.problems),
    )


def _labels(
    source: sources.Source,
    config: InputConfig,
    facts: list[sources.ShardFacts],
    counts: Counter[Any],
    class_names: tuple[str, ...] | None,
) -> tuple[shards.LabelKind, Counter[Any]]:
    """Whether all shards' labels are integers or strings, and how many samples have each."""
    if not counts.total():
        raise sources.InputError(f"{config.path} holds no rows.")
    kinds = {fact.label_kind: path for path, fact in zip(source.paths, facts, strict=True) if fact.label_kind}
    if "text" in kinds:
        return labels.kind_of_texts(counts, class_names)
    if "integer" in kinds and "string" in kinds:
        raise sources.InputError(
            f"{config.label_column!r} holds integers in some shards and strings in others (see {kinds['integer']} and "
            f"{kinds['string']})."
        )
    return ("integer" if "integer" in kinds else "string"), counts


def _names_in_metadata(source: sources.Source, facts: list[sources.ShardFacts]) -> tuple[str, ...] | None:
    """Class names of the shards' metadata; they must agree, or the same integer would mean two classes."""
    named = [(path, fact.class_names) for path, fact in zip(source.paths, facts, strict=True) if fact.class_names]
    for path, names in named:
        if names != named[0][1]:
            raise sources.InputError(
                f"shards {named[0][0]} and {path} name their classes differently in their metadata, so the "
                "same integer means two classes. Write both with the same names in the same order."
            )
    return named[0][1] if named else None


def _table(source: sources.Source, facts: list[sources.ShardFacts]) -> pa.Table:
    columns = {
        "shard_id": range(len(facts)),
        "path": source.paths,
        "num_bytes": source.sizes,
        "fingerprint": [fact.fingerprint for fact in facts],
        "num_samples": [fact.num_samples for fact in facts],
        "group_rows": [fact.group_rows for fact in facts],
        "group_offsets": [fact.group_offsets for fact in facts],
    }
    return schema.table(columns, schema.CATALOG, "catalog")
