"""Hostile input, over 7,000 of it: never a crash, never a silent loss.

What can be damaged: image bytes, Parquet files with their footers, names and paths, the headers of tars, labels. Each
input either gives what it should or is refused in words; nothing else may be raised. Derandomised, so that a failure
comes back.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from razor_ray import headers, images, shards, sources
from razor_ray import labels as labels_of
from razor_ray.config import InputConfig
from tests.conftest import png

SIZE = 16


def fuzzed(examples: int) -> settings:
    suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=suppressed
    )


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


IMAGES = {kind: encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")}


def damage(content: bytes, cut: float, patches: list[tuple[float, bytes]]) -> bytes:
    """Cut short, and overwritten in some places."""
    damaged = bytearray(content[: round(cut * len(content))])
    for place, patch in patches:
        start = int(place * len(damaged))
        damaged[start : start + len(patch)] = patch
    return bytes(damaged)


PATCHES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=4)
CUT = st.one_of(st.just(1.0), st.floats(0, 1))


@fuzzed(2400)
@given(st.sampled_from(sorted(IMAGES)), CUT, PATCHES)
def test_damaged_images(kind, cut, patches):
    content = damage(IMAGES[kind], cut, patches)
    pixels, (reason, fine) = images.decode_batch([content, IMAGES["PNG"]], SIZE)
    assert fine is None
    np.testing.assert_array_equal(pixels[1], images.decode(IMAGES["PNG"], SIZE))  # a bad neighbour changes nothing
    if reason is not None:
        assert not pixels[0].any()
        assert 0 < len(reason) < 60


@fuzzed(800)
@given(
    st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"GIF89a", b"BM", b"II*\0", b"P6\n"]
    ),
    st.binary(max_size=200),
)
def test_bytes_that_begin_like_an_image(start, rest):
    pixels, (reason,) = images.decode_batch([start + rest], SIZE)
    if reason is not None:
        assert 0 < len(reason) < 60
        assert not pixels.any()
    else:  # it became one by chance: then it is one to others too
        assert Image.open(io.BytesIO(start + rest)).size > (0, 0)


def chunk(kind: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@fuzzed(300)
@given(st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_decompression_bombs(width, height):
    """A header may promise what it likes: above the limit it is refused by what it says, without a pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    _, (reason,) = images.decode_batch([content], SIZE)
    if width * height > headers.MAX_PIXELS:
        assert reason == "too many pixels"


def shard(num_rows: int = 40) -> bytes:
    table = pa.table(
        {"image": [png(np.full((8, 8), row, np.uint8)) for row in range(num_rows)], "label": range(num_rows)}
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=GROUP_ROWS)
    return stream.getvalue()


GROUP_ROWS = 10
SHARD = shard()
FOOTER_START = len(SHARD) - 8 - int.from_bytes(SHARD[-8:-4], "little")
GROUP_BYTES = [
    [
        (column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size)
        for column in map(pq.ParquetFile(io.BytesIO(SHARD)).metadata.row_group(group).column, range(2))
    ]
    for group in range(4)
]
"""Where the column chunks of each row group begin, and how long they are."""


def is_sound(content: bytes, group: int) -> bool:
    """Whether nothing was overwritten of a row group, nor of the footer."""
    if len(content) != len(SHARD) or content[FOOTER_START:] != SHARD[FOOTER_START:]:
        return False
    return all(content[start : start + size] == SHARD[start : start + size] for start, size in GROUP_BYTES[group])


def read_and_copy(source: sources.Source, piece: sources.Piece, config: InputConfig) -> pa.Table:
    """A piece as scoring reads it; its images without a problem are the same when the subset copies them."""
    table = pa.concat_tables(sources.read(source, piece, config, 8))
    assert table.num_rows == piece.num_rows
    rows = np.flatnonzero(table["problem"].is_null().to_numpy())
    if len(rows):
        copied = [
            image
            for part in sources.read_images(source, 0, piece.first_row + rows, config)
            for image in part["image"].to_pylist()
        ]
        assert copied == table["image"].take(rows).to_pylist()
    return table


@fuzzed(1200)
@given(CUT, PATCHES, st.booleans(), st.integers(0, 2**32 - 1))
def test_damaged_parquet(tmp_path_factory, cut, patches, is_in_footer, length):
    """Looked at, read and copied as a run does. What a footer promises is there, or the shard is refused by its name;
    and damage to one row group costs no other."""
    content = bytearray(damage(SHARD, cut, [] if is_in_footer else patches))
    if is_in_footer and len(content) == len(SHARD):
        for place, patch in patches:
            start = FOOTER_START + int(place * (len(SHARD) - 8 - FOOTER_START))
            content[start : start + len(patch)] = patch
        if length % 4 == 0:
            content[-8:-4] = length.to_bytes(4, "little")
    content = bytes(content)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.parquet").write_bytes(content)
    config = InputConfig(path=str(folder))
    try:
        source = sources.find(config)
        facts = sources.inspect(source, 0, config)
    except sources.InputError as error:
        assert "a.parquet" in str(error) or "holds no" in str(error)
        assert content != SHARD
        return
    assert sum(facts.label_counts.values()) == facts.num_samples
    pieces = shards.cut(0, source.paths[0], facts.group_rows, facts.group_offsets, 16, 8)
    assert sum(piece.num_rows for piece in pieces) == facts.num_samples
    for piece in pieces:
        table = read_and_copy(source, piece, config)
        _, reasons = images.decode_batch(table["image"].to_pylist(), SIZE)
        assert len(reasons) == piece.num_rows
        if is_sound(content, piece.first_row // GROUP_ROWS):
            rows = range(piece.first_row, piece.first_row + GROUP_ROWS)
            assert piece.num_rows == GROUP_ROWS
            assert table["problem"].null_count == GROUP_ROWS
            assert table["label"].to_pylist() == list(rows)
            assert table["image"].to_pylist() == [png(np.full((8, 8), row, np.uint8)) for row in rows]


TEXT = st.one_of(st.none(), st.binary(max_size=6), st.text(max_size=4).map(str.encode))


def is_utf8(content: bytes) -> bool:
    return content.decode(errors="replace").encode() == content


@fuzzed(300)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=12), st.booleans(), st.integers(1, 12))
def test_names_and_paths_in_parquet(tmp_path_factory, names, is_dictionary, batch_size):
    """Of any bytes: a name that is not UTF-8 costs its own sample, a path none; what is copied has the path that was
    scored."""
    ids, paths = (pa.array(of, pa.binary()).view(pa.string()) for of in zip(*names, strict=True))
    image = pa.StructArray.from_arrays([pa.array([IMAGES["PNG"]] * len(names)), paths], ["bytes", "path"])
    folder = tmp_path_factory.mktemp("fuzz")
    columns = {"image": image, "label": range(len(names)), "id": ids}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=5, use_dictionary=is_dictionary)
    config = InputConfig(path=str(folder), id_column="id")
    source = sources.find(config)
    assert sources.inspect(source, 0, config).num_samples == len(names)
    piece = sources.Piece(0, "a.parquet", 0, len(names))
    table = pa.concat_tables(sources.read(source, piece, config, batch_size))
    for row, ((name, path), found) in enumerate(zip(names, table.to_pylist(), strict=True)):
        if name is None or is_utf8(name):
            assert (found["key"], found["problem"]) == (None if name is None else name.decode(), None)
        else:
            assert (found["key"], found["problem"]) == (f"a.parquet:{row}", "id is not UTF-8")
        if path is not None and is_utf8(path):
            assert found["image_path"] == path.decode()
        else:
            assert (found["image_path"] is None) == (path is None)
    copied = pa.concat_tables(sources.read_images(source, 0, np.arange(len(names)), config))
    assert copied["image_path"].to_pylist() == table["image_path"].to_pylist()


def tar(num_samples: int = 6) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for row in range(num_samples):
            # Every other name is too long for a header, and is in an extended one.
            name = f"{'folder/' * 40 * (row % 2)}{row}"
            for suffix, content in (("cls", str(row % 3).encode()), ("png", png(np.full((8, 8), row, np.uint8)))):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


TAR = tar()
HEADERS = [at for at in range(0, len(TAR), 512) if TAR[at + 257 : at + 262] == b"ustar"]
FIELDS = {
    "name": (0, 100),
    "size": (124, 12),
    "kind": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 9),
}
SIZES = st.one_of(
    st.integers(0, 2**33 - 1).map(lambda size: b"%011o\0" % size),
    st.integers(-(2**70), 2**70).map(lambda size: b"\x80" + (size % 2**88).to_bytes(11, "big")),
    st.binary(min_size=12, max_size=12),
)
KINDS = st.one_of(
    st.sampled_from([bytes([kind]) for kind in b"0\x001234567LKxgSDVNM"]), st.binary(min_size=1, max_size=1)
)
HEADER_DAMAGE = st.one_of(
    st.tuples(st.just("size"), SIZES),
    st.tuples(st.just("kind"), KINDS),
    st.tuples(st.sampled_from(["name", "link", "magic", "prefix"]), st.binary(min_size=1, max_size=100)),
    st.tuples(st.just("name"), st.sampled_from([b"../../../x.png\0", b"/etc/passwd\0", b"0.png\0", b".png\0", b"\0"])),
)


def with_field(header: bytes, field: str, value: bytes, is_signed: bool) -> bytes:
    """A header with a field overwritten, and its checksum made good again unless it is left to tell."""
    start, length = FIELDS[field]
    value = value[:length]
    header = header[:start] + value + header[start + len(value) :]
    if not is_signed:
        return header
    return header[:148] + b"%06o\0 " % (sum(header[:148]) + sum(header[156:512]) + 8 * 32) + header[156:]


@fuzzed(1000)
@given(
    st.lists(st.tuples(st.sampled_from(HEADERS), HEADER_DAMAGE, st.booleans()), min_size=1, max_size=3),
    CUT,
    st.booleans(),
)
def test_headers_of_tars(tmp_path_factory, changes, cut, is_compressed):
    """A tar is refused by its name, or all that its headers say is there, the same when it is looked at, read and
    copied. Nothing is written anywhere."""
    content = TAR
    for at, (field, value), is_signed in changes:
        content = content[:at] + with_field(content[at : at + 512], field, value, is_signed) + content[at + 512 :]
    content = damage(content, cut, [])
    folder = tmp_path_factory.mktemp("fuzz")
    name = "a.tar.gz" if is_compressed else "a.tar"
    (folder / name).write_bytes(gzip.compress(content, 1) if is_compressed else content)
    config = InputConfig(path=str(folder))
    source = sources.find(config)
    try:
        facts = sources.inspect(source, 0, config)
    except sources.InputError as error:
        assert name in str(error)
        assert content != TAR
        return
    assert cut > 0.5, "a tar without its end was taken for a whole one"
    assert sum(facts.label_counts.values()) == sum(facts.group_rows) == facts.num_samples
    for piece in shards.cut(0, source.paths[0], facts.group_rows, facts.group_offsets, 16, 8):
        table = read_and_copy(source, piece, config)
        found = dict(zip(table["key"].to_pylist(), table["image"].to_pylist(), strict=True))
        assert len(found) == facts.num_samples
        if changes[0][0] == HEADERS[-1] and len(changes) == 1:
            # Whatever became of the last header, all samples before it are as they were.
            assert [found[key] for key in list(found)[:5]] == [png(np.full((8, 8), row, np.uint8)) for row in range(5)]
    assert [path.name for path in folder.iterdir()] == [name]


NAMES = ("cat", "dog", "ant")
INTEGERS = st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-2, 4)), max_size=20)
STRINGS = st.lists(st.one_of(st.none(), st.text(max_size=6), st.sampled_from(NAMES)), max_size=20)


@fuzzed(500)
@given(INTEGERS)
def test_labels_that_are_integers(values):
    labels, reasons = labels_of.encode_labels(pa.chunked_array([pa.array(values, pa.int64())]), "integer", NAMES)
    for value, label, reason in zip(values, labels.tolist(), reasons, strict=True):
        if value in (0, 1, 2):
            assert (label, reason) == (value, None)
        else:
            assert label == -1
            assert reason == ("label is null" if value is None else "label is not one of the classes")


@fuzzed(500)
@given(STRINGS, st.booleans())
def test_labels_that_are_strings(values, is_dictionary):
    column = pa.chunked_array([pa.array(values, pa.string())])
    if is_dictionary:
        column = column.dictionary_encode()
    labels, reasons = labels_of.encode_labels(column, "string", NAMES)
    for value, label, reason in zip(values, labels.tolist(), reasons, strict=True):
        if value in NAMES:
            assert (label, reason) == (NAMES.index(value), None)
        else:
            assert label == -1
            assert reason == ("label is null" if value is None else "label is not one of the classes")


@fuzzed(200)
@given(
    st.dictionaries(
        st.sampled_from([b"huggingface", b"class_names"]),
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    b'{"info": []}',
                    b'{"info": {"features": {"label": {"names": 5}}}}',
                    b"[[1], null]",
                    b'["a", "b"]',
                    b"{}",
                ]
            ),
        ),
    )
)
def test_metadata_that_names_classes(metadata):
    found = labels_of.class_names_in_metadata(pa.schema([("label", pa.int64())], metadata=metadata), "label")
    assert found is None or all(isinstance(name, str) for name in found)
