"""A WebDataset shard: a tar in which the members of a sample lie side by side and share a name up to the first dot.

A tar is walked once for the catalog, header by header, and its samples are counted in groups; the byte at which each
group begins is all that is kept, so that a piece is read from there on, as a stream. In a compressed tar all that lies
before a piece is unpacked and forgotten: one of n pieces is unpacked n / 2 times, by as many actors as there are, and
what is finished of it stays so.

A tar may come from anyone. Names of its members are only ever keys; links, devices and sparse members are not followed;
nothing but images, text and JSON is read, and nothing is unpacked onto a disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from razor_ray import headers, retry, schema
from razor_ray.config import LABEL, InputConfig
from razor_ray.shards import InputError, Piece, ShardFacts, Source, check_batch_bytes
from razor_ray.tar_stream import Tar, is_plain, members_of, open_tar

SUFFIXES = (".tar", ".tar.gz", ".tgz")
UNREAD_SUFFIXES = (".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
"""Archives that are told apart to be refused."""

CLASS_NAMES = "class_names.json"
"""A list of strings beside the tars."""

_SAMPLES_PER_GROUP = 128
_IMAGES_READ_AT_ONCE = 100
_MAX_TEXT_BYTES = 2**20
"""Of a .cls or .json member; more holds no label."""
_MAX_LABEL = 1000
"""Characters: the distinct labels of all shards are in memory at once."""


@dataclass(slots=True)
class _Sample:
    """Members that lie side by side under one key."""

    key: str
    offset: int
    """Byte at which its first header begins."""
    image: bytes | None = None
    image_path: str | None = None
    image_bytes: int = 0
    labels: dict[str, str | None] = field(default_factory=dict)
    """Of its members .cls and .json."""
    problem: str | None = None
    no_label: str | None = None
    """Why what stands for a label is none."""

    @property
    def label(self) -> str | None:
        return self.labels.get("cls", self.labels.get("json"))


def check_suffix(path: str) -> None:
    """Raise InputError if a tar is compressed in a way that is not read."""
    if path.lower().endswith(UNREAD_SUFFIXES):
        raise InputError(f"{path} is compressed in a way that is not read. Tars may be plain or .tar.gz: pack it anew.")


def inspect(source: Source, shard: int, config: InputConfig) -> ShardFacts:
    """Walk a tar: its samples, labels, a few images, and where it can be entered.

    Raises
    ------
    InputError
        If it cannot be walked to its end, a key comes back after others, no sample has an image or none a label.
    OSError
        If its store fails, and goes on failing.
    """
    path = source.paths[shard]
    if config.id_column not in (None, "key", "name"):
        raise InputError(
            f"WebDataset tars have no ids {config.id_column!r}. Pass --input.id-column key, or name for its last part."
        )
    try:
        return retry.ask(lambda: _inspect(source, shard, config))
    except (PermissionError, *retry.NOT_THERE) as error:
        raise InputError(
            f"shard {path} cannot be read: {str(error).rstrip('.')}. Repair it, or move it out of the input."
        ) from error


def _inspect(source: Source, shard: int, config: InputConfig) -> ShardFacts:
    path = source.paths[shard]
    keys: set[bytes] = set()
    labels: Counter[str | None] = Counter()
    problems: Counter[str] = Counter()
    images, beginnings, group_offsets, num_images, no_label = [], [], [], 0, None
    digest = hashlib.blake2b(source.sizes[shard].to_bytes(8, "little"), digest_size=16)
    with open_tar(source, shard) as tar:
        for row, sample in enumerate(
            _samples(tar, config, lambda row: row < headers.NUM_PROBED, headers.MAX_PROBED_BYTES)
        ):
            # Hashes, since a tar may have millions, and names as long as it likes.
            key = hashlib.blake2b(sample.key.encode(), digest_size=16).digest()
            if key in keys:
                raise InputError(
                    f"shard {path}: key {sample.key!r} comes back at sample {row}, after others. The members of a "
                    "sample must lie side by side, and no two samples may have one key. Write the tar sorted by name."
                )
            keys.add(key)
            labels[sample.label] += 1
            no_label = no_label or sample.no_label
            num_images += sample.image_path is not None
            if problem := _problem(sample):
                problems[problem] += 1
            elif sample.image is not None:
                is_whole = sample.image_bytes <= headers.MAX_PROBED_BYTES
                (images if is_whole else beginnings).append(sample.image)
            if row % _SAMPLES_PER_GROUP == 0:
                group_offsets.append(sample.offset)
            digest.update(repr((sample.key, sample.image_path, sample.image_bytes, sample.label)).encode())
    num_samples = len(keys)
    _check_there_are(path, num_samples, num_images, num_samples - labels[None], no_label, config)
    image_dimensions, of_images = headers.look_at_some(images)
    image_dimensions += headers.look_at_some(beginnings)[0]  # some formats' headers are elsewhere, which is no fault
    full, rest = divmod(num_samples, _SAMPLES_PER_GROUP)
    group_rows = (_SAMPLES_PER_GROUP,) * full + ((rest,) if rest else ())
    return ShardFacts(
        num_samples=num_samples,
        fingerprint=digest.hexdigest(),
        label_kind="text" if num_samples > labels[None] else None,
        label_counts=dict(labels),
        class_names=_class_names(source, shard),
        image_dimensions=image_dimensions,
        group_rows=group_rows,
        group_offsets=tuple(group_offsets),
        problems=dict(problems + of_images),
    )


def read(source: Source, piece: Piece, config: InputConfig, batch_size: int) -> Iterator[pa.Table]:
    """The samples of a piece, a batch at a time, as `schema.READ` has them; no more than a batch is in memory.

    Raises
    ------
    InputError
        If the tar is not as it was when it was catalogued.
    """
    assert piece.offset or not piece.first_row, "a tar is entered where a group begins"
    num_read = 0
    for batch in retry.stream(lambda given: _batches(source, piece, config, batch_size, given)):
        num_read += len(batch)
        yield _table(batch, piece.path, config)
    if num_read < piece.num_rows:
        raise _shorter(piece.path)


def _batches(source: Source, piece: Piece, config: InputConfig, batch_size: int, given: int) -> Iterator[list[_Sample]]:
    """The samples of a piece, but for the first of them, that were given already."""
    with open_tar(source, piece.shard_id, piece.offset) as tar:
        samples = itertools.islice(_samples(tar, config, lambda row: row >= given), given, piece.num_rows)
        while batch := _take(samples, batch_size, piece.path):
            yield batch


def read_images(source: Source, shard: int, rows: NDArray[np.int64], config: InputConfig) -> Iterator[pa.Table]:
    """Images of some rows of a shard, given in ascending order, some at a time, as `schema.READ_IMAGE`.

    Raises
    ------
    InputError
        If the tar is not as it was when it was catalogued.
    """
    num_read = 0
    for batch in retry.stream(lambda given: _chosen(source, shard, rows[given:].tolist(), config)):
        num_read += len(batch)
        images = [sample.image for sample in batch]
        yield pa.table([images, [sample.image_path for sample in batch]], schema=schema.READ_IMAGE)
    if num_read < len(rows):
        raise _shorter(source.paths[shard])


def _chosen(source: Source, shard: int, rows: list[int], config: InputConfig) -> Iterator[list[_Sample]]:
    wanted = set(rows)
    with open_tar(source, shard) as tar:
        samples = itertools.islice(_samples(tar, config, wanted.__contains__), max(wanted, default=-1) + 1)
        chosen = (sample for row, sample in enumerate(samples) if row in wanted)
        while batch := _take_some(chosen):
            yield batch


def _shorter(path: str) -> InputError:
    return InputError(f"shard {path} is shorter than it was. Leave the input as it is while it is read.")


def _take(samples: Iterator[_Sample], batch_size: int, path: str) -> list[_Sample]:
    batch, num_bytes = [], 0
    for sample in itertools.islice(samples, batch_size):
        batch.append(sample)
        num_bytes += len(sample.image or b"")
        check_batch_bytes(num_bytes, len(batch), f"shard {path}")
    return batch


def _take_some(samples: Iterator[_Sample]) -> list[_Sample]:
    some, num_bytes = [], 0
    for sample in itertools.islice(samples, _IMAGES_READ_AT_ONCE):
        some.append(sample)
        num_bytes += len(sample.image or b"")
        if num_bytes >= headers.BYTES_READ_AT_ONCE:
            break
    return some


def _table(batch: list[_Sample], path: str, config: InputConfig) -> pa.Table:
    by_name = config.id_column == "name"
    columns = [
        [sample.image for sample in batch],
        [sample.image_path for sample in batch],
        [sample.label for sample in batch],
        [sample.key.rpartition("/")[2] if by_name else sample.key for sample in batch],
        [f"{path}:{sample.key}" for sample in batch],
        [_problem(sample) for sample in batch],
    ]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema.READ, strict=True)], schema=schema.READ)


def _problem(sample: _Sample) -> str | None:
    if sample.problem is None and sample.image_path is None:
        return "no image under this key"
    if sample.problem is None and sample.label is None:
        return sample.no_label or "no label under this key"
    return sample.problem


def _samples(
    tar: Tar, config: InputConfig, wants_image: Callable[[int], bool], most: int = headers.MAX_FILE_BYTES
) -> Iterator[_Sample]:
    """Samples from where the tar was entered, numbered from there; of those that are wanted, `most` bytes of images."""
    sample, row = None, 0
    for member in members_of(tar):
        key, suffix = _split(member.name)
        if key is None or member.isdir():
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
                row += 1
            sample = _Sample(key, member.offset)
        if suffix in headers.SUFFIXES:
            _add_image(sample, member, tar, most if wants_image(row) else 0)
        elif suffix in ("cls", "json"):
            _add_label(sample, member, suffix, tar, config.label_column)
    if sample is not None:
        yield sample


def _split(name: str) -> tuple[str | None, str]:
    """Key and suffix of a member as WebDataset has them; no key for hidden files and names without a suffix.

    >>> _split("train/0001.seg.PNG"), _split("./a.b/7.jpg"), _split("x/._7.jpg"), _split("README")
    (('train/0001', 'seg.png'), ('./a.b/7', 'jpg'), (None, '_7.jpg'), (None, ''))
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{folder}{slash}{stem}" if stem and dot else None), suffix.lower()


def _add_image(sample: _Sample, member: tarfile.TarInfo, tar: Tar, most: int) -> None:
    if sample.image_path is not None:
        sample.problem = "more than one image under this key"
        return
    sample.image_path, sample.image_bytes = member.name.rpartition("/")[2], member.size
    if not is_plain(member):
        sample.problem = "image is a link or device"
    elif member.size > headers.MAX_FILE_BYTES:
        sample.problem = "image file is too large"
    elif most:
        sample.image = tar.content(member, most)


def _add_label(sample: _Sample, member: tarfile.TarInfo, suffix: str, tar: Tar, label_key: str) -> None:
    """Take the label of a member: of .cls, unless a key of .json was named."""
    if suffix == "cls" and label_key != LABEL:
        return
    if suffix in sample.labels:
        sample.problem = f"more than one .{suffix} under this key"
    elif not is_plain(member) or member.size > _MAX_TEXT_BYTES:
        sample.problem = f".{suffix} is a link, a device or too large"
    else:
        content = tar.content(member, _MAX_TEXT_BYTES)
        try:
            label = _label_of_cls(content) if suffix == "cls" else _label_of_json(content, label_key)
            if label is not None and len(label) > _MAX_LABEL:
                raise _NoLabelError(f"the label is longer than {_MAX_LABEL:,} characters")
            sample.labels[suffix] = label
        except _NoLabelError as error:
            sample.labels[suffix], sample.no_label = None, str(error)


class _NoLabelError(Exception):
    """There is something in the place of a label that is none."""


def _label_of_cls(content: bytes) -> str | None:
    try:
        return content.decode().strip() or None
    except UnicodeDecodeError:
        raise _NoLabelError("the .cls member is not in UTF-8") from None


def _label_of_json(content: bytes, key: str) -> str | None:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise _NoLabelError("the .json member is not JSON") from None
    value = values.get(key) if isinstance(values, dict) else None
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        kind = {bool: "true or false", float: "a fraction", list: "a list", dict: "an object"}[type(value)]
        raise _NoLabelError(f"the label is {kind}, not an integer or a string")
    return str(value).encode(errors="backslashreplace").decode().strip() or None


def _class_names(source: Source, shard: int) -> tuple[str, ...] | None:
    """Names of the integers, if a list of them lies beside the tar, as it does beside those of a subset."""
    path = f"{source.path(shard).rpartition('/')[0]}/{CLASS_NAMES}"
    if source.filesystem.get_file_info(path).type != pafs.FileType.File:
        return None
    try:
        with source.filesystem.open_input_stream(path) as stream:
            names = json.loads(stream.read())
    except (ValueError, RecursionError):
        return None  # of another meaning
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _check_there_are(
    path: str, num_samples: int, num_images: int, num_labels: int, no_label: str | None, config: InputConfig
) -> None:
    if num_samples and not num_images:
        raise InputError(
            f"shard {path}: none of its {num_samples} keys has an image (.{', .'.join(headers.SUFFIXES)} right behind "
            "the first dot of its name)."
        )
    if num_samples and not num_labels and no_label:
        raise InputError(
            f"shard {path}: none of its {num_samples} keys has a label that can be used: {no_label}. Name another key "
            "of the .json members with --input.label-column, or write labels as integers or strings."
        )
    if num_samples and not num_labels:
        members = f"key {config.label_column!r} in a .json member"
        members = f".cls member or {members}" if config.label_column == LABEL else members
        raise InputError(
            f"shard {path}: none of its {num_samples} keys has a label: no {members}. Name the key of the .json "
            "members with --input.label-column."
        )
