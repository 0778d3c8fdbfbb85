"""What an input is: found, looked at, cut into pieces and read; every layout that people have, every wrong one."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from razor_ray import schema, sources
from razor_ray.config import InputConfig
from razor_ray.sources import InputError, Piece, Source

seeded = settings(deadline=None, derandomize=True, max_examples=300)
few = settings(deadline=None, derandomize=True, max_examples=40)


def png(height: int = 8, width: int = 8, value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (width, height), value).save(stream, "PNG")
    return stream.getvalue()


def table(labels: list | None = None, **columns) -> pa.Table:
    labels = [0, 1, 2, 0] if labels is None else labels
    images = pa.array([png(value=row % 256) for row in range(len(labels))], pa.binary())
    return pa.table({"image": images, "label": labels} | columns)


def write(path: Path, content: pa.Table | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table() if content is None else content, path, **options)
    return path


def find(path: Path | str) -> Source:
    return sources.find(InputConfig(path=str(path)))


def inspect(path: Path, **columns) -> sources.ShardFacts:
    config = InputConfig(path=str(path), **columns)
    return sources.inspect(sources.find(config), 0, config)


# Find.


@pytest.fixture
def tree(tmp_path):
    for name in ("b.parquet", "a.parquet", "sub/z.parquet", "sub/deep/y.parquet", "B.parquet", "a-1.parquet"):
        write(tmp_path / name)
    for name in ("_x.parquet", ".x.parquet", "_temporary/0/x.parquet", ".git/x.parquet", "sub/_x/x.parquet"):
        write(tmp_path / name)
    for name in ("_SUCCESS", "notes.txt", "sub/a.parquet.crc", "c.parquet.tmp", "labels.csv"):
        (tmp_path / name).write_text("no data")
    return tmp_path


def test_find_a_folder(tree):
    source = find(tree)
    expected = ["B.parquet", "a-1.parquet", "a.parquet", "b.parquet", "sub/deep/y.parquet", "sub/z.parquet"]
    assert source.paths == tuple(expected)
    assert source.base == str(tree)
    assert source.sizes == tuple((tree / name).stat().st_size for name in expected)
    assert find(f"{tree}/") == source
    assert find(f"file://{tree}") == source


def test_find_a_file(tree):
    source = find(tree / "sub" / "z.parquet")
    assert (source.base, source.paths) == (f"{tree}/sub", ("z.parquet",))
    assert source.sizes == ((tree / "sub" / "z.parquet").stat().st_size,)
    assert find(write(tree / "no_suffix")).paths == ("no_suffix",)  # what is named is meant


@pytest.mark.parametrize(
    ("glob", "base", "paths"),
    [
        ("*.parquet", "", ["B.parquet", "a-1.parquet", "a.parquet", "b.parquet"]),
        ("[ab].parquet", "", ["a.parquet", "b.parquet"]),
        ("?.parquet", "", ["B.parquet", "a.parquet", "b.parquet"]),
        ("a*", "", ["a-1.parquet", "a.parquet"]),
        ("sub/*.parquet", "sub", ["z.parquet"]),
        ("*/z.parquet", "", ["sub/z.parquet"]),
        ("s*/*/y.parquet", "", ["sub/deep/y.parquet"]),
        ("sub/**/y.parquet", "sub", ["deep/y.parquet"]),
    ],
)
def test_find_a_glob(tree, glob, base, paths):
    source = find(tree / glob)
    assert source.base == str(tree / base)
    assert source.paths == tuple(paths)
    assert all(
        (Path(source.base) / path).stat().st_size == size for path, size in zip(source.paths, source.sizes, strict=True)
    )


@pytest.mark.parametrize(
    ("glob", "paths"),
    [
        ("*.parquet", ["B.parquet", "a-1.parquet", "a.parquet", "b.parquet"]),
        ("[ab].parquet", ["a.parquet", "b.parquet"]),
        ("[!ab].parquet", ["B.parquet"]),
        ("[a-z].parquet", ["a.parquet", "b.parquet"]),
        ("?.parquet", ["B.parquet", "a.parquet", "b.parquet"]),
        ("*/z.parquet", ["sub/z.parquet"]),
        ("**/*.parquet", ["B.parquet", "a-1.parquet", "a.parquet", "b.parquet", "sub/deep/y.parquet", "sub/z.parquet"]),
        ("**/deep/*", ["sub/deep/y.parquet"]),
        ("[.parquet", []),
        ("a.parquet[", []),
        ("(a|b).parquet?", []),
    ],
)
@pytest.mark.parametrize("place", ["here", "bucket"])
def test_globs_mean_the_same_on_every_filesystem(tree, monkeypatch, glob, paths, place):
    # Object stores have no glob of their own.
    if place == "bucket":
        bucket = pafs.SubTreeFileSystem(str(tree.parent), pafs.LocalFileSystem())
        monkeypatch.setattr(sources, "open_filesystem", lambda uri: (bucket, uri.removeprefix("s3://")))
        given = f"s3://{tree.name}/{glob}"
    else:
        given = f"{tree}/{glob}"
    if paths:
        assert find(given).paths == tuple(paths)
    else:
        with pytest.raises(InputError, match="no file matches"):
            find(given)


def test_two_stars_are_any_number_of_folders(tree):
    # As in bash (globstar), Python and every other tool: also none.
    assert find(tree / "sub/**/*.parquet").paths == ("deep/y.parquet", "z.parquet")


def test_brackets_in_the_name_of_what_is_there(tmp_path):
    path = write(tmp_path / "run [1]" / "x.parquet")
    assert find(path.parent).paths == ("x.parquet",)
    assert find(path).paths == ("x.parquet",)


def test_find_names_of_all_sorts(tmp_path):
    names = ["ä ö.parquet", "a b.parquet", "100%25.parquet", "train-00010.parquet", "train-00009.parquet"]
    for name in names:
        write(tmp_path / name)
    source = find(tmp_path)
    assert source.paths == tuple(sorted(names))
    for shard in range(len(names)):
        assert sources.row_groups(source, shard) == [4]


def test_find_from_a_relative_path(tree, monkeypatch):
    monkeypatch.chdir(tree.parent)
    assert find(tree.name) == find(tree)
    assert find(f"{tree.name}/*.parquet") == find(tree / "*.parquet")
    monkeypatch.chdir(tree)
    assert find("a.parquet") == find(tree / "a.parquet")
    assert find("*.parquet") == find(tree / "*.parquet")


def test_a_glob_from_the_root(tree):
    first = tree.parts[1]  # /tmp/... as /tm?/...
    assert find(f"/{first[:-1]}?/{tree.relative_to(f'/{first}')}/a.parquet").paths[0].endswith("a.parquet")


def test_hidden_folders_above_the_input_do_not_hide_it(tmp_path):
    path = write(tmp_path / ".cache" / "_data" / "x.parquet")
    assert find(path.parent).paths == ("x.parquet",)
    assert find(path.parent / "*.parquet").paths == ("x.parquet",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", r"there is no .*none\. --input takes a Parquet file, a folder or a glob"),
        ("none/none.parquet", "there is no"),
        ("notes.txt/in", "there is no"),
        ("*.csvx", r"no file matches .*\*\.csvx\. Quote the glob"),
        ("none/*.parquet", "no file matches"),
        ("notes.txt/*.parquet", "no file matches"),
    ],
)
def test_nothing_there(tree, name, message):
    with pytest.raises(InputError, match=message):
        find(tree / name)


def test_a_folder_without_parquet(tmp_path):
    (tmp_path / "x.csv").write_text("a")
    write(tmp_path / "_old" / "x.parquet")
    with pytest.raises(InputError, match=r"holds no .parquet file"):
        find(tmp_path)


def test_an_unknown_filesystem():
    with pytest.raises(InputError, match="cannot open nosuch://bucket/x"):
        find("nosuch://bucket/x")


# Inspect.


def test_facts_by_hand(tmp_path):
    images = pa.array([png(8, 9), png(10, 8), None, b"broken", png(7, 8)], pa.binary())
    facts = inspect(write(tmp_path / "a.parquet", pa.table({"image": images, "label": [3, None, 3, -1, 0]})))
    assert facts.num_samples == 5
    assert facts.label_kind == "integer"
    assert facts.label_counts == {3: 2, None: 1, -1: 1, 0: 1}
    assert facts.class_names is None
    assert facts.image_dimensions == ((8, 9), (10, 8), (7, 8))


def test_few_images_are_probed(tmp_path):
    path = write(tmp_path / "a.parquet", table([0] * 1000), row_group_size=100)
    facts = inspect(path)
    assert facts.num_samples == 1000
    assert 1 <= len(facts.image_dimensions) <= 100


@pytest.mark.parametrize(
    ("labels", "kind", "counts"),
    [
        (pa.array([1, 0, 1], pa.int8()), "integer", {1: 2, 0: 1}),
        (pa.array([1, 0, 2**64 - 1], pa.uint64()), "integer", {1: 1, 0: 1, 2**64 - 1: 1}),
        (pa.array([1, 0, 1], pa.int64()).dictionary_encode(), "integer", {1: 2, 0: 1}),
        (pa.array(["b", "a", "b"]), "string", {"b": 2, "a": 1}),
        (pa.array(["b", None, "b"], pa.large_string()), "string", {"b": 2, None: 1}),
        (pa.array(["b", "a", None]).dictionary_encode(), "string", {"b": 1, "a": 1, None: 1}),
        (pa.array(["b", "a", "b"], pa.large_string()).dictionary_encode(), "string", {"b": 2, "a": 1}),
        (pa.array([None, None, None], pa.int32()), "integer", {None: 3}),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, kind, counts):
    facts = inspect(write(tmp_path / "a.parquet", pa.table({"image": [png()] * 3, "label": labels})))
    assert facts.label_kind == kind
    assert facts.label_counts == counts


def test_hugging_face_structs(tmp_path):
    images = [{"bytes": png(5, 6), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    content = pa.table({"image": pa.array(images, schema.IMAGE), "label": [0, 1, 0]})
    path = write(tmp_path / "a.parquet", content)
    assert inspect(path).image_dimensions == ((5, 6),)
    column = pq.read_table(path)["image"]
    assert sources.image_bytes(column) == [png(5, 6), None, None]
    assert sources.image_paths(column) == ["a.png", "b.png", None]
    assert sources.image_bytes(column.slice(1)) == [None, None]
    plain = pa.chunked_array([pa.array([b"a", None])])
    assert sources.image_bytes(plain) == [b"a", None]
    assert sources.image_paths(plain) == [None, None]
    only_bytes = pa.chunked_array([pa.array([{"bytes": b"a"}])])
    assert sources.image_paths(only_bytes) == [None]


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])])
def test_large_images(tmp_path, kind):
    value = {"bytes": png(), "path": None} if pa.types.is_struct(kind) else png()
    path = write(tmp_path / "a.parquet", pa.table({"image": pa.array([value], kind), "label": [0]}))
    assert inspect(path).image_dimensions == ((8, 8),)


def test_a_shard_without_rows(tmp_path):
    facts = inspect(write(tmp_path / "a.parquet", table().slice(0, 0)))
    assert (facts.num_samples, facts.label_counts, facts.image_dimensions) == (0, {}, ())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label_column": "target"},
            "shard a.parquet has no column 'target' (it has: image, label). Name it with --input.label-column.",
        ),
        (
            {"image_column": "img"},
            "shard a.parquet has no column 'img' (it has: image, label). Name it with --input.image-column.",
        ),
        (
            {"id_column": "id"},
            "shard a.parquet has no column 'id' (it has: image, label). Name it with --input.id-column.",
        ),
    ],
)
def test_a_missing_column(tmp_path, columns, message):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(InputError) as raised:
        inspect(path, **columns)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table([0.0, 1.0]), "shard a.parquet: column 'label' is double, not integers or strings.*--input.label-column"),
        (table([True, False]), "column 'label' is bool"),
        (table([[0], [1]]), "column 'label' is list"),
        (pa.table({"image": ["a.jpg"], "label": [0]}), "'image' is string, not bytes.*--input.image-column"),
        (pa.table({"image": [[1, 2]], "label": [0]}), "'image' is list"),
        (pa.table({"image": [{"path": "a.jpg"}], "label": [0]}), "'image' is struct"),
        (pa.table({"image": [{"bytes": "text"}], "label": [0]}), "'image' is string, not bytes"),
    ],
)
def test_a_column_of_the_wrong_kind(tmp_path, content, message):
    path = write(tmp_path / "a.parquet", content)
    with pytest.raises(InputError, match=message):
        inspect(path)


def test_what_is_no_parquet_is_named(tmp_path):
    whole = write(tmp_path / "whole.parquet", table(list(range(4)) * 50)).read_bytes()
    contents = [
        *(b"", b"PAR1", b"PAR1PAR1", b"not Parquet at all" * 20, b"\0" * 1000),
        *(whole[:-1], whole[: len(whole) // 2], whole[:-100] + b"\xff" * 92 + whole[-8:], whole[100:]),
        whole[:-8] + b"\xff\xff\xff\x7fPAR1",  # a footer that is said to be 2 GiB long
    ]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "bad-00017.parquet"
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"(?s)shard bad-00017.parquet cannot be read: .*Repair it, or move it out"
        ):
            inspect(path)


def test_damaged_data_behind_a_sound_footer(tmp_path):
    path = write(tmp_path / "a.parquet", table([f"class {row}" for row in range(200)]), compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xaa" * 1996
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard a.parquet cannot be read"):
        inspect(path)


@pytest.mark.parametrize("place", ["class_names", "huggingface", "label"])
def test_damaged_text_is_named(tmp_path, place):
    # Text that is no UTF-8: bit rot in a footer, or latin-1 written as if it were text.
    labels = pa.array([b"caf\xe9", b"tea"]).view(pa.string()) if place == "label" else pa.array(["a", "b"])
    content = pa.table({"image": [png(), png()], "label": labels})
    if place != "label":
        content = content.replace_schema_metadata({place.encode(): b'["caf\xe9", "tea"]'})
    path = write(tmp_path / "a.parquet", content)
    try:
        inspect(path)
    except InputError as error:
        assert "a.parquet" in str(error)


def test_a_shard_that_has_gone(tmp_path):
    path = write(tmp_path / "a.parquet")
    config = InputConfig(path=str(path))
    source = sources.find(config)
    path.unlink()
    with pytest.raises(InputError, match=r"shard a.parquet cannot be read"):
        sources.inspect(source, 0, config)


def test_check_column(tmp_path):
    write(tmp_path / "a.parquet", table(weight=[1.0] * 4))
    sources.check_column(find(tmp_path), "weight", "Mend.")
    write(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"shard b.parquet has no column 'weight' \(it has: image, label\)\. Mend\."):
        sources.check_column(find(tmp_path), "weight", "Mend.")


# Fingerprints.


def fingerprint(path: Path, content: pa.Table, **options) -> str:
    return inspect(write(path, content, **options)).fingerprint


def test_fingerprint_is_of_the_content(tmp_path):
    one = fingerprint(tmp_path / "a.parquet", table())
    assert len(one) == 32
    assert fingerprint(tmp_path / "elsewhere" / "b.parquet", table()) == one
    assert fingerprint(tmp_path / "c.parquet", table([0, 1, 2, 0, 1])) != one  # longer
    assert fingerprint(tmp_path / "c.parquet", table([0, 1, 2, 3])) != one  # same size, another maximum
    assert fingerprint(tmp_path / "c.parquet", table(), row_group_size=2) != one  # other row groups, other pieces
    names = table().replace_schema_metadata({b"class_names": b'["a", "b", "c"]'})
    assert fingerprint(tmp_path / "c.parquet", names) != one


def test_fingerprint_does_not_depend_on_what_lies_under_nulls(tmp_path):
    content = table([None if row % 3 else row % 7 for row in range(5000)])
    path = write(tmp_path / "a.parquet", content, row_group_size=700)
    found = set()
    for number in range(20):
        rubbish = [os.urandom(5000 + number) for _ in range(20)]
        found.add(inspect(path).fingerprint)
        del rubbish
    assert len(found) == 1


def test_fingerprint_sees_that_labels_were_swapped(tmp_path):
    # Same size, same least and greatest label: only reading the labels tells, and they are read anyway.
    one = fingerprint(tmp_path / "a.parquet", table([0, 1, 2, 0]))
    assert fingerprint(tmp_path / "a.parquet", table([0, 2, 1, 0])) != one


# Class names.


def names_of(metadata: dict[bytes, bytes], label_column: str = "label") -> tuple[str, ...] | None:
    return sources.class_names_in_metadata(pa.schema([pa.field("x", pa.int64())], metadata=metadata), label_column)


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
    ],
)
def test_no_names_in_metadata(metadata):
    assert names_of(metadata) is None


@pytest.mark.parametrize("content", [b'"cats"', b'{"cat": 0, "dog": 1}', b'["caf\xe9"]', b"\xff\xfe\x00", b"[]"])
def test_metadata_of_another_meaning_gives_no_names(content):
    # A text is no list of its letters.
    assert not names_of({b"class_names": content})


def test_names_survive_parquet(tmp_path):
    names = ("a", "b ü", 'c"')
    for metadata in (sources.hugging_face_metadata(names), sources.class_names_metadata(names)):
        path = write(tmp_path / "a.parquet", table().replace_schema_metadata(metadata))
        assert inspect(path).class_names == names


def test_resolve_given_before_metadata_before_labels():
    counts = Counter({0: 5, 1: 3, None: 1})
    assert sources.resolve_class_names(("a", "b"), ("c", "d"), "integer", counts) == ("a", "b")
    assert sources.resolve_class_names(None, ("c", "d"), "integer", counts) == ("c", "d")
    assert sources.resolve_class_names(None, None, "integer", counts) == ("0", "1")
    assert sources.resolve_class_names(None, None, "integer", Counter({0: 1, 3: 1, -1: 9})) == ("0", "1", "2", "3")
    words = Counter({"dog": 1, "Cat": 2, "ant": 1, None: 7})
    assert sources.resolve_class_names(None, None, "string", words) == ("Cat", "ant", "dog")
    assert sources.resolve_class_names(("ant", "dog"), None, "string", words) == ("ant", "dog")


@pytest.mark.parametrize(
    ("given_names", "kind", "counts", "message"),
    [
        (None, "integer", {0: 7}, r"1 class found \(0\); hardness needs at least two"),
        (None, "integer", {}, "0 class found"),
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
        sources.resolve_class_names(given_names, None, kind, Counter(counts))


def test_many_sparse_classes_are_classes():
    assert len(sources.resolve_class_names(None, None, "integer", Counter({0: 1, 1019: 1}))) == 1020
    with pytest.raises(InputError, match="do not look like classes"):
        sources.resolve_class_names(None, None, "integer", Counter({0: 1, 1020: 1}))


# Labels.

OUT = "label is not one of the classes"
NULL = "label is null"


@pytest.mark.parametrize(
    ("column", "kind", "labels", "reasons"),
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
def test_encode_labels(column, kind, labels, reasons):
    for chunks in ([column], [column.slice(0, 1), column.slice(1)]):
        got, why = sources.encode_labels(pa.chunked_array(chunks, column.type), kind, ("a", "b", "c"))
        assert got.dtype == np.int32
        assert got.tolist() == labels
        assert why == reasons


def test_class_names_that_look_like_numbers_are_names():
    # Strings "10", "9": the place in the list counts, not the number.
    labels, _ = sources.encode_labels(pa.chunked_array([pa.array(["9", "10"])]), "string", ("10", "9"))
    assert labels.tolist() == [1, 0]


# Pieces.


def test_pieces_by_hand():
    assert sources.plan_pieces([], 100, 10) == []
    assert sources.plan_pieces([0, 0], 100, 10) == []
    assert sources.plan_pieces([7], 100, 10) == [(0, 7)]
    assert sources.plan_pieces([60, 40, 1], 100, 10) == [(0, 100), (100, 1)]
    assert sources.plan_pieces([0, 60, 0, 50, 0], 100, 10) == [(0, 60), (60, 50)]
    assert sources.plan_pieces([101], 100, 10) == [(0, 60), (60, 41)]  # two halves of 50.5, up to whole batches
    assert sources.plan_pieces([5, 250, 5], 100, 50) == [(0, 5), (5, 100), (105, 100), (205, 50), (255, 5)]
    assert sources.plan_pieces([100], 10, 64) == [(0, 64), (64, 36)]  # a piece is a batch at least


layouts = st.lists(st.integers(0, 50) | st.integers(0, 3000), max_size=12)


@seeded
@given(layouts, st.integers(1, 700), st.integers(1, 130))
def test_pieces_cover_all_rows_once_in_order(groups, max_rows, batch_size):
    pieces = sources.plan_pieces(groups, max_rows, batch_size)
    covered = [row for first, rows in pieces for row in range(first, first + rows)]
    assert covered == list(range(sum(groups)))
    assert all(rows > 0 for _, rows in pieces)
    # Row groups stay whole, but for those that are larger than a piece may be: these are cut at multiples of the batch.
    starts = np.cumsum([0, *groups]).tolist()
    for first, _ in pieces:
        inside = [(start, rows) for start, rows in zip(starts, groups, strict=False) if start < first < start + rows]
        for start, rows in inside:
            assert rows > max(max_rows, batch_size)
            assert (first - start) % batch_size == 0


@seeded
@given(layouts, st.integers(1, 20), st.integers(1, 130))
def test_pieces_are_no_larger_than_asked(groups, num_batches, batch_size):
    pieces = sources.plan_pieces(groups, num_batches * batch_size, batch_size)
    assert all(rows <= num_batches * batch_size for _, rows in pieces)


@seeded
@given(layouts, st.integers(1, 700), st.integers(1, 130))
def test_pieces_are_no_larger_than_asked_of_any_batch(groups, max_rows, batch_size):
    # Also where the limit is no multiple of the batch: 'rows of a piece, unless a batch is larger'.
    pieces = sources.plan_pieces(groups, max_rows, batch_size)
    assert all(rows <= max(max_rows, batch_size) for _, rows in pieces)


@seeded
@given(layouts, st.integers(1, 20), st.integers(1, 130))
def test_pieces_waste_no_batches(groups, num_batches, batch_size):
    # Two neighbours that would fit together, and are whole row groups, are together.
    limit = num_batches * batch_size
    pieces = sources.plan_pieces(groups, limit, batch_size)
    ends = set(np.cumsum([0, *groups]).tolist())
    large = [(end - rows, end) for end, rows in zip(np.cumsum(groups).tolist(), groups, strict=True) if rows > limit]
    for (first, rows), (_, following) in zip(pieces, pieces[1:], strict=False):
        middle = first + rows
        next_group = next(rows for end, rows in zip(np.cumsum(groups).tolist(), groups, strict=True) if end > middle)
        if middle in ends and not any(start <= first < end or start == middle for start, end in large):
            assert rows + next_group > limit, (rows, following)


# Reading.


def numbered(num_rows: int) -> pa.Table:
    images = pa.array([{"bytes": str(row).encode(), "path": f"{row}.png"} for row in range(num_rows)], schema.IMAGE)
    labels = pa.array([str(row % 7) for row in range(num_rows)]).dictionary_encode()
    return pa.table({"image": images, "label": labels, "row": pa.array(range(num_rows), pa.int64())})


@few
@given(st.integers(1, 400), st.integers(1, 120), st.integers(1, 90), st.integers(1, 40), st.data())
def test_reading_is_slicing(tmp_path_factory, num_rows, group_rows, max_rows, batch_size, data):
    path = tmp_path_factory.mktemp("read") / "a.parquet"
    content = numbered(num_rows)
    pq.write_table(content, path, row_group_size=group_rows)
    plain = pq.read_table(path)
    source = find(path)
    groups = sources.row_groups(source, 0)
    assert groups == [min(group_rows, num_rows - start) for start in range(0, num_rows, group_rows)]
    for first, rows in sources.plan_pieces(groups, max_rows, batch_size):
        piece = sources.read_piece(source, Piece(0, "a.parquet", first, rows), ["row", "image", "label"])
        assert set(piece.column_names) == {"row", "image", "label"}
        assert piece["row"].to_pylist() == list(range(first, first + rows))
        for name in ("image", "label"):
            assert piece[name].to_pylist() == plain[name].slice(first, rows).to_pylist()
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, num_rows - 1)))), np.int64)
    found = list(sources.read_rows(source, 0, chosen, ["image", "row"]))
    assert all(part.num_rows for part in found)
    got = [row for part in found for row in part["row"].to_pylist()]
    assert got == chosen.tolist()
    got_images = [image["bytes"] for part in found for image in part["image"].to_pylist()]
    assert got_images == [str(row).encode() for row in chosen.tolist()]


def test_any_run_of_rows_can_be_read(tmp_path):
    path = write(tmp_path / "a.parquet", numbered(30), row_group_size=7)
    source = find(path)
    for first in range(30):
        for rows in (1, 6, 7, 8, 30):
            if first + rows <= 30:
                piece = sources.read_piece(source, Piece(0, "a.parquet", first, rows), ["row"])
                assert_array_equal(piece["row"], np.arange(first, first + rows))


def test_a_piece_of_a_shard_that_became_shorter(tmp_path):
    path = write(tmp_path / "a.parquet", numbered(30))
    source = find(path)
    write(path, numbered(20))
    with pytest.raises(AssertionError):
        sources.read_piece(source, Piece(0, "a.parquet", 0, 30), ["row"])


def test_reading_from_shards_in_folders(tmp_path):
    write(tmp_path / "a" / "x.parquet", numbered(3))
    write(tmp_path / "b" / "x.parquet", numbered(5))
    source = find(tmp_path)
    assert [sources.row_groups(source, shard) for shard in (0, 1)] == [[3], [5]]
    assert sources.read_piece(source, Piece(1, "b/x.parquet", 0, 5), ["row"]).num_rows == 5
    assert [part.num_rows for part in sources.read_rows(source, 1, np.array([4]), ["row"])] == [1]


@pytest.mark.parametrize("glob", ["", "/**/*.parquet", "/**"])
def test_a_loop_of_links_does_not_multiply_the_input(tmp_path, glob):
    # A folder that holds a link to itself: every image would count forty times.
    write(tmp_path / "a.parquet")
    os.symlink(tmp_path, tmp_path / "latest")
    try:
        source = find(f"{tmp_path}{glob}")
    except InputError:
        return
    assert len(source.paths) <= 2
