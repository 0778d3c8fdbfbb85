"""A Parquet shard: looked at and read; every layout that people have, every wrong one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import pickle
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

from razor_ray import labels, parquet_shards, retry, schema, shards, sources
from razor_ray.config import InputConfig
from razor_ray.sources import InputError, Piece, Source
from tests.conftest import FailingStore

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
        (pa.array(["b", None, "b"], pa.string_view()), "string", {"b": 2, None: 1}),
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
    assert parquet_shards.image_bytes(column) == [png(5, 6), None, None]
    assert parquet_shards.image_paths(column) == ["a.png", "b.png", None]
    assert parquet_shards.image_bytes(column.slice(1)) == [None, None]
    plain = pa.chunked_array([pa.array([b"a", None])])
    assert parquet_shards.image_bytes(plain) == [b"a", None]
    assert parquet_shards.image_paths(plain) == [None, None]
    only_bytes = pa.chunked_array([pa.array([{"bytes": b"a"}])])
    assert parquet_shards.image_paths(only_bytes) == [None]


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])])
def test_large_images(tmp_path, kind):
    value = {"bytes": png(), "path": None} if pa.types.is_struct(kind) else png()
    path = write(tmp_path / "a.parquet", pa.table({"image": pa.array([value], kind), "label": [0]}))
    assert inspect(path).image_dimensions == ((8, 8),)


@pytest.mark.parametrize("is_struct", [False, True])
def test_views_are_read_as_what_they_are_views_of(tmp_path, is_struct):
    content = [png(value=value) for value in range(6)]
    column = pa.array(content, pa.binary_view())
    names = pa.array(list("uvwxyz"), pa.string_view())
    if is_struct:
        column = pa.StructArray.from_arrays([column, names], ["bytes", "path"])
    columns = {"image": column, "label": pa.array(["a", "b"] * 3, pa.string_view()), "id": names}
    path = write(tmp_path / "a.parquet", pa.table(columns))
    assert pa.types.is_string_view(pq.read_schema(path).field("label").type)  # or nothing is tested
    config = InputConfig(path=str(path), id_column="id")
    source = find(path)
    read = pa.concat_tables(sources.read(source, Piece(0, "a.parquet", 1, 5), config, 3))
    assert read["image"].to_pylist() == content[1:]
    assert (read["label"].to_pylist(), read["key"].to_pylist()) == (list("babab"), list("vwxyz"))
    (some,) = sources.read_images(source, 0, np.array([1, 4]), config)
    assert some["image"].to_pylist() == [content[1], content[4]]
    assert some["image_path"].to_pylist() == (["v", "y"] if is_struct else [None, None])


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
        (
            pa.table({"image": ["a.jpg"], "label": [0]}),
            "'image' is text. Paths are not followed: .*--input.image-column",
        ),
        (pa.table({"image": [[1, 2]], "label": [0]}), "'image' is list"),
        (pa.table({"image": [{"path": "a.jpg"}], "label": [0]}), "'image' is struct"),
        (pa.table({"image": [{"bytes": "text"}], "label": [0]}), "'image' is text. Paths"),
        (pa.table({"image": [{"bytes": None, "path": "a.jpg"}], "label": [0]}), "'image' holds paths and no bytes"),
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


def test_damaged_labels_behind_a_sound_footer(tmp_path):
    path = write(tmp_path / "a.parquet", table([f"class {row}" for row in range(200)]), compression="zstd")
    damage(path, row_group=0, column="label")
    with pytest.raises(InputError, match=r"shard a.parquet cannot be read"):
        inspect(path)


def test_labels_that_are_no_text_are_refused_by_the_shards_name(tmp_path):
    # No UTF-8: bit rot, or latin-1 written as if it were text.
    labels = pa.array([b"caf\xe9", b"tea"]).view(pa.string())
    path = write(tmp_path / "a.parquet", pa.table({"image": [png(), png()], "label": labels}))
    with pytest.raises(InputError, match=r"shard a\.parquet cannot be read: .*utf-8"):
        inspect(path)


def text(values: list[bytes | None], kind: pa.DataType) -> pa.Array:
    """A column of text that holds these bytes, whether or not they are UTF-8."""
    if pa.types.is_dictionary(kind):
        distinct = sorted({value for value in values if value is not None})
        indices = [None if value is None else distinct.index(value) for value in values]
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), text(distinct, kind.value_type))
    of_bytes = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return pa.array(values, of_bytes[kind]).view(kind)


TEXTS = [pa.string(), pa.large_string(), pa.string_view()]


@pytest.mark.parametrize("kind", [*TEXTS, *(pa.dictionary(pa.int32(), kind) for kind in TEXTS[:2])])
def test_names_that_are_no_utf8_cost_their_samples_and_no_other(tmp_path, kind):
    # Arrow reads text without a look at it, and so does `inspect`: it is latin-1, or bit rot.
    ids = [b"tea", b"caf\xe9", None, "thé".encode(), b"\xed\xa0\x80"]
    content = table([0, 1, 2, 0, 1], id=text(ids, kind))
    path = write(tmp_path / "a.parquet", content, row_group_size=3)
    config = InputConfig(path=str(path), id_column="id")
    assert inspect(path, id_column="id").num_samples == 5
    read = pa.concat_tables(sources.read(find(path), Piece(0, "a.parquet", 1, 4), config, 2))
    assert read["key"].to_pylist() == ["a.parquet:1", None, "thé", "a.parquet:4"]
    assert read["problem"].to_pylist() == ["id is not UTF-8", None, None, "id is not UTF-8"]
    assert read["image"].to_pylist() == content["image"].to_pylist()[1:]


@pytest.mark.parametrize("kind", TEXTS)
def test_paths_that_are_no_utf8_are_kept_as_they_can_be(tmp_path, kind):
    """The same when they are scored and when they are copied, whichever others lie beside them."""
    paths = text([b"a.png", None, b"caf\xe9.png", "thé.png".encode()], kind)
    image = pa.StructArray.from_arrays([table()["image"].combine_chunks(), paths], ["bytes", "path"])
    path = write(tmp_path / "a.parquet", table().set_column(0, "image", image))
    assert inspect(path).num_samples == 4
    source, config = find(path), InputConfig(path=str(path))
    expected = ["a.png", None, "caf\\xe9.png", "thé.png"]
    for batch_size in (1, 4):
        read = pa.concat_tables(sources.read(source, Piece(0, "a.parquet", 0, 4), config, batch_size))
        assert read["image_path"].to_pylist() == expected
        assert read["problem"].null_count == 4
    for rows in ([0, 1, 2, 3], [2], [1, 3]):
        (copied,) = sources.read_images(source, 0, np.array(rows), config)
        assert copied["image_path"].to_pylist() == [expected[row] for row in rows]


@pytest.mark.parametrize("place", ["class_names", "huggingface"])
def test_metadata_that_is_no_text_names_no_classes(tmp_path, place):
    content = table(["a", "b"]).replace_schema_metadata({place.encode(): b'["caf\xe9", "tea"]'})
    facts = inspect(write(tmp_path / "a.parquet", content))
    assert facts.class_names is None
    assert facts.label_counts == {"a": 1, "b": 1}


def test_a_shard_that_has_gone(tmp_path):
    path = write(tmp_path / "a.parquet")
    config = InputConfig(path=str(path))
    source = sources.find(config)
    path.unlink()
    with pytest.raises(InputError, match=r"shard a.parquet cannot be read"):
        sources.inspect(source, 0, config)


def test_a_column_of_numbers(tmp_path):
    write(tmp_path / "a.parquet", table(weight=[1.0] * 4))
    sources.check_numbers(find(tmp_path), "weight", "Mend.")
    write(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"shard b.parquet has no column 'weight' \(it has: image, label\)\. Mend\."):
        sources.check_numbers(find(tmp_path), "weight", "Mend.")
    write(tmp_path / "b.parquet", table(weight=["1"] * 4))
    with pytest.raises(InputError, match=r"shard b.parquet has string, not numbers, in column 'weight'\. Mend\."):
        sources.check_numbers(find(tmp_path), "weight", "Mend.")


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


def test_names_survive_parquet(tmp_path):
    names = ("a", "b ü", 'c"')
    for metadata in (labels.hugging_face_metadata(names), labels.class_names_metadata(names)):
        path = write(tmp_path / "a.parquet", table().replace_schema_metadata(metadata))
        assert inspect(path).class_names == names


# Reading.


def numbered(num_rows: int) -> pa.Table:
    images = pa.array([{"bytes": str(row).encode(), "path": f"{row}.png"} for row in range(num_rows)], schema.IMAGE)
    labels = pa.array([str(row % 7) for row in range(num_rows)]).dictionary_encode()
    return pa.table({"image": images, "label": labels, "row": pa.array(range(num_rows), pa.int64())})


def read_piece(source: Source, piece: Piece, columns: list[str]) -> pa.Table:
    """The rows of a piece, as they are read before anything is made of them."""
    with parquet_shards.open_file(source.path(piece.shard_id), source.filesystem) as file:
        return parquet_shards._rows_of_piece(file, piece, columns)


@few
@given(st.integers(1, 400), st.integers(1, 120), st.integers(1, 90), st.integers(1, 40), st.data())
def test_reading_is_slicing(tmp_path_factory, num_rows, group_rows, max_rows, batch_size, data):
    path = tmp_path_factory.mktemp("read") / "a.parquet"
    content = numbered(num_rows)
    pq.write_table(content, path, row_group_size=group_rows)
    plain = pq.read_table(path)
    source = find(path)
    groups = list(inspect(path).group_rows)
    assert groups == [min(group_rows, num_rows - start) for start in range(0, num_rows, group_rows)]
    for first, rows in shards.plan_pieces(groups, max_rows, batch_size):
        piece = read_piece(source, Piece(0, "a.parquet", first, rows), ["row", "image", "label"])
        assert set(piece.column_names) == {"row", "image", "label"}
        assert piece["row"].to_pylist() == list(range(first, first + rows))
        for name in ("image", "label"):
            assert piece[name].to_pylist() == plain[name].slice(first, rows).to_pylist()
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, num_rows - 1)))), np.int64)
    found = list(parquet_shards.read_rows(source, 0, chosen, ["image", "row"]))
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
                piece = read_piece(source, Piece(0, "a.parquet", first, rows), ["row"])
                assert_array_equal(piece["row"], np.arange(first, first + rows))


def test_large_images_are_decoded_few_at_a_time(tmp_path, monkeypatch):
    """Arrow makes no batch of structs that take 2 GiB, and whoever reads fewer columns must cut as the others do."""
    rng = np.random.default_rng(0)
    content = [{"bytes": rng.bytes(10_000), "path": None} for _ in range(40)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.table({"image": pa.array(content, kind), "label": pa.array(range(40))})
    path = write(tmp_path / "a.parquet", images, use_dictionary=False)
    monkeypatch.setattr(parquet_shards, "_BYTES_DECODED_AT_ONCE", 35_000)
    with parquet_shards.open_file(path) as file:
        for columns in (["image"], ["image", "label"], ["label"]):
            sizes = [batch.num_rows for _, batch in parquet_shards._batches(file, 0, 0, columns, 40)]
            assert sizes == [3] * 13 + [1]
    source = find(path)
    assert read_piece(source, Piece(0, "a.parquet", 5, 20), ["label"])["label"].to_pylist() == list(range(5, 25))


@pytest.mark.parametrize("num_rows", [20, 15, 4])  # rows 16 to 23 are wanted: some are there, none is
def test_a_shard_that_became_shorter_is_refused_and_no_row_is_taken_for_damaged(tmp_path, num_rows):
    path = write(tmp_path / "a.parquet", numbered(30), row_group_size=8)
    source, config = find(path), InputConfig(path=str(path))
    write(path, numbered(num_rows), row_group_size=8)
    message = r"shard a\.parquet is shorter than it was\. Leave the input as it is while it is read\."
    with pytest.raises(InputError, match=message):
        list(sources.read(source, Piece(0, "a.parquet", 16, 8), config, 2))
    for rows in ([17, 22], [3, 22]):
        with pytest.raises(InputError, match=message):
            list(sources.read_images(source, 0, np.array(rows), config))
    assert [part.num_rows for part in sources.read_images(source, 0, np.array([1, 3]), config)] == [2]


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_column_that_went_is_named(tmp_path, column):
    path = write(tmp_path / "a.parquet", numbered(30))
    source, config = find(path), InputConfig(path=str(path))
    pq.write_table(pq.read_table(path).rename_columns({column: "other"}), path)
    message = rf"shard a\.parquet has no column '{column}' any more\. Leave the input as it is while it is read\."
    with pytest.raises(InputError, match=message):
        list(sources.read(source, Piece(0, "a.parquet", 16, 8), config, 2))
    if column == "image":
        with pytest.raises(InputError, match=message):
            list(sources.read_images(source, 0, np.array([17]), config))


def test_a_shard_that_became_longer_gives_the_rows_that_are_asked_for(tmp_path):
    path = write(tmp_path / "a.parquet", numbered(30), row_group_size=8)
    source = find(path)
    write(path, numbered(50), row_group_size=11)
    read = pa.concat_tables(sources.read(source, Piece(0, "a.parquet", 16, 8), InputConfig(path=str(path)), 3))
    assert read["image_path"].to_pylist() == [f"{row}.png" for row in range(16, 24)]
    assert read["problem"].null_count == 8


def with_rows(content: bytes, num_rows: int) -> bytes:
    """A shard of one row group of 40 rows, whose footer says that there are more."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = [place for place in range(start, len(content) - 8) if content[place] == 2 * 40]  # a zigzag of Thrift
    for chosen in itertools.combinations(places, 2):
        changed = bytearray(content)
        for place in chosen:
            changed[place] = 2 * num_rows
        with contextlib.suppress(pa.ArrowInvalid, OSError):
            metadata = pq.read_metadata(io.BytesIO(changed))
            if metadata.num_rows == metadata.row_group(0).num_rows == num_rows:
                return bytes(changed)
    raise AssertionError("no numbers of rows found")


def test_a_footer_that_promises_more_rows_than_there_are(tmp_path):
    # Arrow reads to the end of the pages, and says nothing.
    path = write(tmp_path / "a.parquet", numbered(40))
    source, config = find(path), InputConfig(path=str(path))
    path.write_bytes(with_rows(path.read_bytes(), 50))
    assert pq.read_table(path).num_rows == 40  # or nothing is tested
    with pytest.raises(InputError, match=r"shard a\.parquet cannot be read: .*different numbers of rows\. Repair"):
        inspect(path)
    read = pa.concat_tables(sources.read(source, Piece(0, "a.parquet", 30, 20), config, 8))
    assert read["problem"].to_pylist() == ["the shard is damaged here"] * 20
    with pytest.raises(
        InputError, match=r"shard a\.parquet cannot be read: .*fewer rows than the footer says\. Repair"
    ):
        list(sources.read_images(source, 0, np.array([45]), config))
    assert [part.num_rows for part in sources.read_images(source, 0, np.array([0, 39]), config)] == [2]


class CountingFile:
    """A file that knows how many of its bytes were read."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.closed = False
        self.num_bytes = 0

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(size)
        self.num_bytes += len(found)
        return found


@pytest.mark.parametrize(("group_rows", "is_large"), [(4000, True), (200, False)])
def test_of_a_large_row_group_only_what_is_wanted_is_read(tmp_path, group_rows, is_large):
    rng = np.random.default_rng(0)
    images = pa.array([rng.bytes(10_000) for _ in range(4000)], pa.binary())  # 40 MB
    content = pa.table({"image": images, "row": pa.array(range(4000), pa.int64())})
    path = write(tmp_path / "a.parquet", content, row_group_size=group_rows, use_dictionary=False)
    for first, at_most in ((0, 18_000_000), (2000, 35_000_000), (3600, 41_000_000)):
        counted = CountingFile(path)
        with parquet_shards.open_file(counted) as file:
            found = parquet_shards._rows_of_piece(file, Piece(0, "a.parquet", first, 400), ["row", "image"])
        assert found["row"].to_pylist() == list(range(first, first + 400))
        assert found["image"].to_pylist() == images[first : first + 400].to_pylist()
        assert counted.num_bytes < (at_most if is_large else 5_000_000)


def test_reading_from_shards_in_folders(tmp_path):
    write(tmp_path / "a" / "x.parquet", numbered(3))
    write(tmp_path / "b" / "x.parquet", numbered(5))
    source = find(tmp_path)
    assert [sources.inspect(source, shard, InputConfig(path="x")).group_rows for shard in (0, 1)] == [(3,), (5,)]
    assert read_piece(source, Piece(1, "b/x.parquet", 0, 5), ["row"]).num_rows == 5
    assert [part.num_rows for part in parquet_shards.read_rows(source, 1, np.array([4]), ["row"])] == [1]


# Damage that only reading finds.


def damage(path: Path, row_group: int, column: str = "image") -> None:
    """Overwrite the pages of a column of one row group; the footer and all other pages stay."""
    chunk = pq.ParquetFile(path).metadata.row_group(row_group).column(0 if column == "image" else 1)
    content = bytearray(path.read_bytes())
    start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)


def test_a_damaged_page_costs_its_piece_and_no_other(tmp_path):
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4, compression="zstd")
    damage(path, row_group=1)
    source, config = find(path), InputConfig(path=str(path))
    facts = sources.inspect(source, 0, config)  # labels and footer are sound
    assert facts.num_samples == 12
    pieces = shards.cut(0, "a.parquet", facts.group_rows, (), 4, 2)
    assert [(piece.first_row, piece.num_rows) for piece in pieces] == [(0, 4), (4, 4), (8, 4)]
    found = [pa.concat_tables(sources.read(source, piece, config, 2)) for piece in pieces]
    assert [part["problem"].null_count for part in found] == [4, 0, 4]
    assert set(found[1]["problem"].to_pylist()) == {"the shard is damaged here"}
    assert found[1]["image"].null_count == 4
    assert found[1]["key"].to_pylist() == [f"a.parquet:{row}" for row in range(4, 8)]
    assert found[2]["label"].to_pylist() == [8, 9, 10, 11]
    reasons = labels.encode_labels(found[1]["label"], "integer", ["x"] * 12)[1]
    assert reasons == ["label is null"] * 4


def test_a_store_that_fails_is_no_damage(tmp_path):
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4, compression="zstd")
    damage(path, row_group=1)
    source, config = find(path), InputConfig(path=str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(sources.read(source, Piece(0, "a.parquet", 4, 4), config, 2))


@pytest.mark.parametrize("failing", [0, 1])  # of the calls that read the footer and the pages
def test_a_store_that_fails_for_a_moment_is_no_damage(tmp_path, failing):
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4)
    config, piece = InputConfig(path=str(path)), Piece(0, "a.parquet", 4, 4)
    store = FailingStore({failing})
    source = dataclasses.replace(find(path), filesystem=pafs.PyFileSystem(store))
    found = pa.concat_tables(sources.read(source, piece, config, 2))
    assert store.num_calls > failing + 1
    assert found["problem"].null_count == 4
    assert found.equals(pa.concat_tables(sources.read(find(path), piece, config, 2)))


def test_a_store_that_fails_is_no_broken_shard(tmp_path):
    """A broken shard is for the user to mend, and ends a job for good; a store that fails does not."""
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4)
    config = InputConfig(path=str(path))

    def inspect(*failing: int) -> shards.ShardFacts:
        store = pafs.PyFileSystem(FailingStore(failing))
        return sources.inspect(dataclasses.replace(find(path), filesystem=store), 0, config)

    assert inspect(0) == inspect(1) == inspect() == sources.inspect(find(path), 0, config)
    with pytest.raises(OSError, match="503 Slow Down"):
        inspect(*range(100))


def test_no_store_that_fails_makes_a_shard_look_broken(tmp_path, monkeypatch):
    """Whichever of the handles it fails at: those of the footer's bytes and of a few images too."""
    monkeypatch.setattr(retry, "PAUSES", (0,))
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4)
    config, found = InputConfig(path=str(path)), find(path)
    expected, num_refused = sources.inspect(found, 0, config), 0
    pairs = list(itertools.combinations(range(12), 2))
    for failing in [*({call} for call in range(12)), *map(set, pairs), *({a, a + 1, b, b + 1} for a, b in pairs)]:
        source = dataclasses.replace(found, filesystem=pafs.PyFileSystem(FailingStore(failing)))
        try:
            assert sources.inspect(source, 0, config) == expected
        except OSError as error:
            assert "503 Slow Down" in str(error)
            assert len(failing) > 1
            num_refused += 1
    assert num_refused > 20


@pytest.mark.parametrize("first", [0, 1])
def test_a_store_that_goes_on_failing_stops_the_run(tmp_path, first):
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4)
    source = dataclasses.replace(find(path), filesystem=pafs.PyFileSystem(FailingStore(range(first, 100))))
    with pytest.raises(OSError, match="503 Slow Down"):
        list(sources.read(source, Piece(0, "a.parquet", 4, 4), InputConfig(path=str(path)), 2))


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet")

    def full(*_):
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(parquet_shards, "_rows_of_piece", full)
    with pytest.raises(MemoryError):
        list(sources.read(find(path), Piece(0, "a.parquet", 0, 4), InputConfig(path=str(path)), 2))


@pytest.mark.parametrize("place", [0.05, 0.35, 0.5, 0.9])
def test_what_scoring_could_read_of_a_damaged_row_group_can_be_read_again(tmp_path, place):
    # One row group of 6,000 rows. What lies before the damage is scored and may be kept; reading it must not run on
    # into the damage. What lies behind can be reached only through it, and is lost to both.
    rng = np.random.default_rng(0)
    content = table([0] * 6000, image=pa.array([rng.bytes(200) for _ in range(6000)]))
    layout = {"use_dictionary": False, "data_page_size": 2**13, "write_batch_size": 40}
    path = write(tmp_path / "a.parquet", content, compression="zstd", **layout)
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    damaged = bytearray(path.read_bytes())
    start = chunk.data_page_offset + int(place * chunk.total_compressed_size)
    damaged[start : start + 10_000] = b"\xff" * 10_000  # some 50 rows, with the header of a page
    path.write_bytes(damaged)
    source, config = find(path), InputConfig(path=str(path))
    pieces = shards.cut(0, "a.parquet", (6000,), (), 2048, 128)
    is_sound = []
    for piece in pieces:
        found = pa.concat_tables(sources.read(source, piece, config, 128))
        is_sound.append(found["problem"].null_count == piece.num_rows)
        if is_sound[-1]:
            rows = np.arange(piece.first_row, piece.first_row + piece.num_rows)
            for chosen in (rows, rows[:999], rows[-1:]):
                images = pa.concat_tables(sources.read_images(source, 0, chosen, config))["image"].to_pylist()
                assert images == content["image"].take(chosen).to_pylist()
    # A piece is read to the end of the 500 rows in which it ends.
    ends = [-(-(piece.first_row + piece.num_rows) // 500) * 500 for piece in pieces]
    assert is_sound == [place * 6000 - 100 > end for end in ends]


def test_damage_that_came_after_scoring_is_told_of_by_the_shards_name(tmp_path):
    path = write(tmp_path / "a.parquet", table(list(range(12))), row_group_size=4, compression="zstd")
    source, config = find(path), InputConfig(path=str(path))
    damage(path, row_group=2)
    found = sources.read_images(source, 0, np.arange(12), config)
    assert [next(found).num_rows, next(found).num_rows] == [4, 4]  # what lies before it is given as it is read
    message = (
        r"(?s)shard a\.parquet cannot be read: .+\. Repair it, or put it back as it was, and give the same command"
    )
    with pytest.raises(InputError, match=message):
        next(found)
    assert pa.concat_tables(sources.read_images(source, 0, np.arange(8), config)).num_rows == 8
    path.write_bytes(path.read_bytes()[:-100] + b"\xff" * 92 + path.read_bytes()[-8:])  # the footer
    with pytest.raises(InputError, match=message):
        list(sources.read_images(source, 0, np.arange(8), config))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(sources.read_images(source, 0, np.arange(8), config))


@pytest.mark.parametrize("failing", range(8))
def test_a_store_that_fails_while_images_are_copied_is_asked_again(tmp_path, failing):
    content = table(list(range(20)))
    path = write(tmp_path / "a.parquet", content, row_group_size=4)
    rows, config = np.array([0, 2, 5, 7, 8, 11, 13, 19]), InputConfig(path=str(path))
    expected = content["image"].take(rows).to_pylist()
    store = FailingStore({failing})
    source = dataclasses.replace(find(path), filesystem=pafs.PyFileSystem(store))
    found = sources.read_images(source, 0, rows, config)
    assert store.num_calls == 0  # nothing is read before it is asked for
    assert pa.concat_tables(found)["image"].to_pylist() == expected  # none twice
    is_met = store.num_calls > failing + 1
    assert is_met or failing > 5
    source = dataclasses.replace(find(path), filesystem=pafs.PyFileSystem(FailingStore(range(failing, 100))))
    given = []
    with pytest.raises(OSError, match="503 Slow Down") if is_met else contextlib.nullcontext():
        for part in sources.read_images(source, 0, rows, config):
            given += part["image"].to_pylist()
    assert given == expected[: len(given)]


class Touch:
    """What is pickled as a call that leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_in_a_shard_are_not_unpickled(tmp_path):
    """Ray Data registers a type of Arrow's whose values are unpickled by whoever asks for them in Python."""
    import ray.data  # noqa: F401
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    pickled = pa.ExtensionArray.from_storage(
        ArrowPythonObjectType(), pa.array([pickle.dumps(Touch(tmp_path / "touched"))] * 4, pa.large_binary())
    )
    image = pa.StructArray.from_arrays([table()["image"].combine_chunks(), pickled], ["bytes", "path"])
    path = write(tmp_path / "a.parquet", table().set_column(0, "image", image))
    with pytest.raises(InputError, match=r"a\.parquet: the paths in column 'image' are extension<.*>, not strings"):
        inspect(path)
    assert not (tmp_path / "touched").exists()
    pq.read_table(path)["image"].to_pylist()
    assert (tmp_path / "touched").exists()  # or this would show nothing


def test_paths_that_are_no_strings_are_refused(tmp_path):
    image = pa.array([{"bytes": png(), "path": 3}] * 4, pa.struct({"bytes": pa.binary(), "path": pa.int64()}))
    with pytest.raises(InputError, match="the paths in column 'image' are int64, not strings"):
        inspect(write(tmp_path / "a.parquet", table().set_column(0, "image", image)))
