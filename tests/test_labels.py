"""Labels and class names: from metadata, from the user, from the labels themselves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from razor_ray import labels
from razor_ray.sources import InputError


def write(path: Path, content: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, **options)
    return path


# Class names.


def names_of(metadata: dict[bytes, bytes], label_column: str = "label") -> tuple[str, ...] | None:
    return labels.class_names_in_metadata(pa.schema([pa.field("x", pa.int64())], metadata=metadata), label_column)


def hugging_face(features: object) -> dict[bytes, bytes]:
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def test_names_in_metadata():
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    assert names_of(hugging_face({"label": label})) == ("cat", "dog")
    assert names_of(hugging_face({"fine": label}), "fine") == ("cat", "dog")
    assert names_of({b"class_names": b'["cat", "dog"]'}) == ("cat", "dog")
    assert names_of({b"class_names": '["Käse", "茶"]'.encode()}) == ("Käse", "茶")
    assert names_of({b"class_names": b"[1, 2]"}) == ("1", "2")
    # Hugging Face's own says nothing of the label: the plain key does.
    assert names_of(hugging_face({"label": {"dtype": "int64"}}) | {b"class_names": b'["a", "b"]'}) == ("a", "b")
    assert names_of(hugging_face({"other": label}) | {b"class_names": b'["a", "b"]'}) == ("a", "b")
    assert names_of(hugging_face({"label": label}) | {b"class_names": b'["a", "b"]'}) == ("cat", "dog")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {b"pandas": b"{}"},
        hugging_face({"label": {"dtype": "int64", "_type": "Value"}}),
        hugging_face({"label": [{"dtype": "int64"}]}),
        hugging_face([]),
        {b"huggingface": b"{}"},
        {b"huggingface": b"not JSON"},
        {b"huggingface": b"[]"},
        {b"class_names": b"cat, dog"},
        {b"class_names": b"3"},
        {b"class_names": b"null"},
        {b"class_names": b"[" * 100_000},
        {b"huggingface": b"[" * 100_000},
    ],
)
def test_no_names_in_metadata(metadata):
    assert names_of(metadata) is None


@pytest.mark.parametrize("content", [b'"cats"', b'{"cat": 0, "dog": 1}', b'["caf\xe9"]', b"\xff\xfe\x00", b"[]"])
def test_metadata_of_another_meaning_gives_no_names(content):
    # A text is no list of its letters.
    assert not names_of({b"class_names": content})


def test_resolve_given_before_metadata_before_labels():
    counts = Counter({0: 5, 1: 3, None: 1})
    assert labels.resolve_class_names(("a", "b"), ("c", "d"), "integer", counts) == ("a", "b")
    assert labels.resolve_class_names(None, ("c", "d"), "integer", counts) == ("c", "d")
    assert labels.resolve_class_names(None, None, "integer", counts) == ("0", "1")
    assert labels.resolve_class_names(None, None, "integer", Counter({0: 1, 3: 1, -1: 9})) == ("0", "1", "2", "3")
    words = Counter({"dog": 1, "Cat": 2, "ant": 1, None: 7})
    assert labels.resolve_class_names(None, None, "string", words) == ("Cat", "ant", "dog")
    assert labels.resolve_class_names(("ant", "dog"), None, "string", words) == ("ant", "dog")


def test_two_classes_of_one_name_are_refused():
    # ImageNet has two cranes; text could not say which is meant, nor could the subset's Hugging Face features.
    with pytest.raises(InputError, match=r"the metadata names 1 classes twice \(crane\)"):
        labels.resolve_class_names(None, ("cat", "crane", "dog", "crane"), "integer", Counter({0: 1, 3: 1}))


def test_names_that_are_numbers_are_in_the_order_of_numbers():
    # Folders "0" to "11" are the labels 0 to 11, as they are in Parquet and in tars.
    counts = Counter({str(label): 1 for label in range(12)})
    assert labels.resolve_class_names(None, None, "string", counts) == tuple(str(label) for label in range(12))
    # Of another writing they are names: two of them could be one number.
    assert labels.resolve_class_names(None, None, "string", Counter(["010", "9"])) == ("010", "9")


@pytest.mark.parametrize(
    ("given_names", "kind", "counts", "message"),
    [
        (None, "integer", {0: 7}, r"1 class found \(0\); hardness needs at least two"),
        (None, "integer", {}, "0 class found"),
        (("a", "b", "a"), "integer", {0: 1, 1: 1}, r"--input.class-names names 1 classes twice \(a\)"),
        (None, "integer", {None: 5, -1: 3}, r"0 class found \(every label is null or negative\)"),
        (None, "string", {"cat": 5}, r"1 class found \(cat\)"),
        (None, "string", {None: 5}, "0 class found"),
        (("cat",), "string", {"cat": 5, "dog": 5}, r"1 class found \(cat\)"),
        (
            ("a", "b"),
            "string",
            {"x": 1, "y": 1},
            r"no label is among the class names \(a, b, ...\); labels are x, y, ... Check --input.class-names",
        ),
        (None, "integer", {0: 1, 10**9: 1}, "labels go up to 1000000000 but only 2 differ"),
    ],
)
def test_classes_that_are_none(given_names, kind, counts, message):
    with pytest.raises(InputError, match=message):
        labels.resolve_class_names(given_names, None, kind, Counter(counts))


def test_many_sparse_classes_are_classes():
    assert len(labels.resolve_class_names(None, None, "integer", Counter({0: 1, 1019: 1}))) == 1020
    with pytest.raises(InputError, match="do not look like classes"):
        labels.resolve_class_names(None, None, "integer", Counter({0: 1, 1020: 1}))


# Labels.

OUT = "label is not one of the classes"
NULL = "label is null"


@pytest.mark.parametrize(
    ("column", "kind", "expected", "reasons"),
    [
        (pa.array([2, 0, 1], pa.int64()), "integer", [2, 0, 1], [None] * 3),
        (pa.array([2, 3, -1, None], pa.int64()), "integer", [2, -1, -1, -1], [None, OUT, OUT, NULL]),
        (pa.array([2, -128, None], pa.int8()), "integer", [2, -1, -1], [None, OUT, NULL]),
        (pa.array([2, 255], pa.uint8()), "integer", [2, -1], [None, OUT]),
        (pa.array([2, 2**64 - 1, 2**63, 2**32], pa.uint64()), "integer", [2, -1, -1, -1], [None, OUT, OUT, OUT]),
        (pa.array([2**32, 2**32 + 1, -(2**63)], pa.int64()), "integer", [-1] * 3, [OUT] * 3),
        (pa.array([2, None, 9], pa.int32()).dictionary_encode(), "integer", [2, -1, -1], [None, NULL, OUT]),
        (pa.array([None, None], pa.int16()), "integer", [-1, -1], [NULL, NULL]),
        (pa.array(["b", "c", "a"]), "string", [1, 2, 0], [None] * 3),
        (pa.array(["b", "x", None, ""]), "string", [1, -1, -1, -1], [None, OUT, NULL, OUT]),
        (pa.array(["c", None], pa.large_string()), "string", [2, -1], [None, NULL]),
        (pa.array(["c", None, "x"]).dictionary_encode(), "string", [2, -1, -1], [None, NULL, OUT]),
        (pa.array([], pa.int64()), "integer", [], []),
        (pa.array([], pa.string()), "string", [], []),
    ],
)
def test_encode_labels(column, kind, expected, reasons):
    for chunks in ([column], [column.slice(0, 1), column.slice(1)]):
        got, why = labels.encode_labels(pa.chunked_array(chunks, column.type), kind, ("a", "b", "c"))
        assert got.dtype == np.int32
        assert got.tolist() == expected
        assert why == reasons


def test_class_names_that_look_like_numbers_are_names():
    # Strings "10", "9": the place in the list counts, not the number.
    encoded, _ = labels.encode_labels(pa.chunked_array([pa.array(["9", "10"])]), "string", ("10", "9"))
    assert encoded.tolist() == [1, 0]
