"""Hostile input, over 5,000 of it: never a crash, never a silent loss.

What can be damaged: image bytes, Parquet files with their footers, labels. Each input either gives what it should or is
refused in words; nothing else may be raised. Derandomised, so that a failure comes back.
"""

from __future__ import annotations

import io
import struct
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
    assert reason is not None or pixels.shape == (1, SIZE, SIZE, 3)


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
    pq.write_table(table, stream, row_group_size=10)
    return stream.getvalue()


SHARD = shard()


@fuzzed(1200)
@given(CUT, PATCHES, st.booleans(), st.integers(0, 2**32 - 1))
def test_damaged_parquet(tmp_path_factory, cut, patches, is_in_footer, length):
    """Looked at and read as a run does. What a footer promises is there, or the shard is refused by its name."""
    content = bytearray(damage(SHARD, cut, [] if is_in_footer else patches))
    footer = int.from_bytes(SHARD[-8:-4], "little")
    if is_in_footer and len(content) == len(SHARD):
        for place, patch in patches:
            start = len(content) - 8 - footer + int(place * footer)
            content[start : start + len(patch)] = patch
        if length % 4 == 0:
            content[-8:-4] = length.to_bytes(4, "little")
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.parquet").write_bytes(content)
    config = InputConfig(path=str(folder))
    try:
        source = sources.find(config)
        facts = sources.inspect(source, 0, config)
    except sources.InputError as error:
        assert "a.parquet" in str(error) or "holds no" in str(error)
        return
    assert sum(facts.label_counts.values()) == facts.num_samples
    pieces = shards.cut(0, source.paths[0], facts.group_rows, facts.group_offsets, 16, 8)
    assert sum(piece.num_rows for piece in pieces) == facts.num_samples
    for piece in pieces:
        batches = list(sources.read(source, piece, config, 8))
        assert sum(batch.num_rows for batch in batches) == piece.num_rows
        for batch in batches:
            _, reasons = images.decode_batch(batch["image"].to_pylist(), SIZE)
            assert len(reasons) == batch.num_rows


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
