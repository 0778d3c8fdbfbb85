"""Labels and the names of their classes: from whatever an input holds to integers 0..C-1."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from razor_ray.shards import InputError, LabelKind

_INTEGER = re.compile("-?[0-9]{1,18}")


def encode_labels(
    column: pa.ChunkedArray, kind: LabelKind, class_names: Sequence[str]
) -> tuple[NDArray[np.int32], list[str | None]]:
    """Labels as integers 0..C-1.

    Parameters
    ----------
    column : ChunkedArray of length B
        Integers or strings; of kind 'integer' also integers as text, which is what tars hold.
    kind : 'integer' or 'string'
    class_names : sequence of C str

    Returns
    -------
    labels : ndarray of shape (B,), int32
        -1 where there is none.
    reasons : list of B str or None
        Why there is none.
    """
    if kind == "string":
        index = {name: label for label, name in enumerate(class_names)}
        values = column.cast(pa.string()).to_pylist()
        labels = np.array([index.get(value, -1) for value in values], np.int32)  # (B,)
        nulls = [value is None for value in values]
    else:
        numbers = _integers(column) if is_text(column.type) else column.cast(pa.int64(), safe=False)
        filled = pc.fill_null(numbers, -1).to_numpy()  # (B,)
        labels = np.where((filled >= 0) & (filled < len(class_names)), filled, -1).astype(np.int32)
        nulls = column.is_null().to_pylist()
    reasons = [
        None if label >= 0 else "label is null" if null else "label is not one of the classes"
        for label, null in zip(labels.tolist(), nulls, strict=True)
    ]
    return labels, reasons


def is_integer(text: str) -> bool:
    """Whether a label that came as text is an integer.

    >>> [is_integer(text) for text in ("7", "-1", "0007", "7.0", "seven", "٧")]
    [True, True, True, False, False, False]
    """
    return _INTEGER.fullmatch(text) is not None


def kind_of_texts(
    counts: Counter[str | None], class_names: Sequence[str] | None = None
) -> tuple[LabelKind, Counter[Any]]:
    """Whether labels that came as text are integers, as most of an input's are or are not, and how many of each.

    They are names, whatever they look like, if most of them are among those that were given; but not if all are
    integers in the range of the classes, as of classes that are named by numbers.

    >>> kind_of_texts(Counter({"4": 2, "004": 1, "n/a": 1}))
    ('integer', Counter({4: 3, None: 1}))
    >>> kind_of_texts(Counter({"4": 1, "cat": 1}))
    ('string', Counter({'4': 1, 'cat': 1}))
    >>> kind_of_texts(Counter({"00144764": 2}), ["00144764", "00144765"])
    ('string', Counter({'00144764': 2}))
    >>> kind_of_texts(Counter({"1": 2, "0": 1}), ["1", "2"])
    ('integer', Counter({1: 2, 0: 1}))
    """
    if class_names:
        places = {str(place) for place in range(len(class_names))}
        named = sum(counts[text] for text in set(class_names))
        if 2 * named > counts.total() - counts[None] and not counts.keys() - {None} <= places:
            return "string", counts
    num_integers = sum(count for text, count in counts.items() if text is not None and is_integer(text))
    if 2 * num_integers <= counts.total() - counts[None]:
        return "string", counts
    integers: Counter[int | None] = Counter()
    for text, count in counts.items():
        integers[int(text) if text is not None and is_integer(text) else None] += count
    return "integer", integers


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in the order of their labels: as numbers where all are numbers, else as text.

    >>> in_order({"10", "9", "0"}), in_order({"10", "9", "x"}), in_order({"10", "09"})
    (('0', '9', '10'), ('10', '9', 'x'), ('09', '10'))
    """
    names = tuple(names)
    if all(is_integer(name) and str(int(name)) == name for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column's values are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    values = [int(text) if text is not None and is_integer(text) else None for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.int64())])


def resolve_class_names(
    given: tuple[str, ...] | None, in_metadata: tuple[str, ...] | None, kind: LabelKind, counts: Counter[Any]
) -> tuple[str, ...]:
    """Names of the classes 0..C-1: as given, else as the metadata says, else from the labels themselves.

    Parameters
    ----------
    given, in_metadata : tuple of str or None
    kind : 'integer' or 'string'
    counts : Counter
        Samples of each value of the label column, null included.

    Raises
    ------
    InputError
        If there are fewer than two classes, two of one name, or the integers are no labels.
    """
    values = [value for value in counts if value is not None]
    if given or in_metadata:
        names = given or in_metadata or ()
    elif kind == "string":
        names = in_order(values)
    else:
        labels = [value for value in values if value >= 0]
        num_classes = max(labels, default=-1) + 1
        if num_classes > 10 * len(labels) + 1000:
            raise InputError(
                f"labels go up to {num_classes - 1} but only {len(labels)} differ: these do not look like classes "
                "0..C-1. Name the classes with --input.class-names, or choose another --input.label-column."
            )
        names = tuple(str(label) for label in range(num_classes))
    if len(names) < 2:
        raise InputError(
            f"{len(names)} class found ({', '.join(names) or 'every label is null or negative'}); hardness needs at "
            "least two. Check --input.label-column, or name all classes with --input.class-names."
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        where = "--input.class-names" if given else "the metadata"
        raise InputError(
            f"{where} names {len(twice)} classes twice ({', '.join(twice[:3])}), so that a name does not say which is "
            "meant. Name all classes with --input.class-names, each otherwise."
        )
    if kind == "string" and not set(values) & set(names):
        raise InputError(
            f"no label is among the class names ({', '.join(names[:5])}, ...); labels are "
            f"{', '.join(map(str, sorted(values)[:5]))}, ... Check --input.class-names."
        )
    return names


def class_names_in_metadata(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """Class names in Hugging Face feature metadata, or as JSON under the schema's metadata key `class_names`."""
    metadata = schema.metadata or {}
    try:
        if b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            if names := features.get(label_column, {}).get("names"):
                return tuple(map(str, names))
        if b"class_names" in metadata and isinstance(names := json.loads(metadata[b"class_names"]), list):
            return tuple(map(str, names))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # metadata of another meaning; the labels themselves will tell
    return None


def hugging_face_metadata(class_names: Sequence[str]) -> dict[bytes, bytes]:
    """Schema metadata by which Hugging Face `datasets` reads a subset's images as images and its labels by name."""
    features = {
        "sample_id": {"dtype": "int64", "_type": "Value"},
        "key": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
        "weight": {"dtype": "float32", "_type": "Value"},
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()} | class_names_metadata(class_names)


def class_names_metadata(class_names: Sequence[str]) -> dict[bytes, bytes]:
    """Schema metadata that names the classes 0..C-1 of a label column."""
    return {b"class_names": json.dumps(list(class_names)).encode()}
