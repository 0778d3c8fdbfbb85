"""A subset as tars: names that are safe and come back, image bytes as they were, the same bytes each time."""

from __future__ import annotations

import io
import os
import tarfile
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from razor_ray import images, shards, sources, webdataset_writer
from razor_ray.config import InputConfig
from razor_ray.webdataset_shards import _split
from razor_ray.webdataset_writer import member_key, suffix
from tests.conftest import png

LOCAL = pafs.LocalFileSystem()


def encoded(kind: str, value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(stream, kind)
    return stream.getvalue()


def write_subset(path, keys: list[str]) -> list[bytes]:
    images = [png(np.full((4, 4), row % 256, np.uint8)) for row in range(len(keys))]
    content = {"key": keys, "image": [{"bytes": i, "path": None} for i in images], "label": range(len(keys))}
    pq.write_table(pa.table(content), path, row_group_size=3)
    return images


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")],
)
def test_the_suffix_is_the_images_own(kind, expected):
    assert suffix(encoded(kind)) == expected


def test_what_the_decoder_takes_for_a_jpeg_is_one():
    """Pillow is stricter with a marker that has no length of its own before the first that has."""
    image = encoded("JPEG")
    odd = image[:2] + b"\xff\x01" + image[2:]
    _, reasons = images.decode_batch([odd], 8)
    assert reasons == [None]
    assert suffix(odd) == "jpg"


@settings(deadline=None, derandomize=True)
@given(st.text(st.sampled_from("ab./%\n\0é ~")) | st.text())
def test_a_key_comes_back_and_leads_nowhere(key):
    name = f"{member_key(key)}.jpg"
    assert _split(name) == (member_key(key), "jpg")
    parts = name.split("/")
    assert ".." not in parts and "" not in parts and "\0" not in name
    # A space stands for an empty part, and a suffix is an image's; nothing else changes.
    assert unquote(member_key(key)) == "/".join(part or " " for part in key.split("/"))


def test_a_files_name_is_not_given_two_suffixes():
    assert member_key("cat/1.JPEG") == "cat/1"
    assert member_key("cat/1.v2.png") == "cat/1%2Ev2"
    assert member_key("cat/.png") == "cat/%2Epng"
    assert member_key("jpg") == "jpg"


def test_tars_are_cut_ordered_and_the_same_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset_writer, "SAMPLES_PER_TAR", 4)
    keys = ["b", "a", "train.parquet:7", "a", "x/ä", "a", "c", "d", "e"]
    images = write_subset(tmp_path / "part-00003.parquet", keys)
    contents = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        counts = webdataset_writer.write_tars(LOCAL, f"{tmp_path}/part-00003.parquet", str(tmp_path / folder))
        assert counts == [4, 4, 1]
        files = sorted((tmp_path / folder).iterdir())
        assert [file.name for file in files] == [f"part-00003-{number:03d}.tar" for number in range(3)]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    names, found = [], {}
    for file in sorted((tmp_path / "one").iterdir()):
        with tarfile.open(file) as tar:
            for member in tar:
                names.append(member.name)
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                found[file.name, member.name] = tar.extractfile(member).read()  # pyright: ignore
    expected = ["b", "a", "train%2Eparquet:7", "a%232", "x/ä", "a", "c", "d", "e"]
    assert names == [f"{key}.{end}" for key in expected for end in ("png", "cls")]
    assert [content for (_, name), content in found.items() if name.endswith("png")] == images
    assert [content for (_, name), content in found.items() if name.endswith("cls")] == [
        str(label).encode() for label in range(9)
    ]


def test_what_is_written_is_read(tmp_path):
    keys = [f"k{row}" for row in range(10)]
    images = write_subset(tmp_path / "part-00000.parquet", keys)
    (tmp_path / "tars").mkdir()
    webdataset_writer.write_tars(LOCAL, f"{tmp_path}/part-00000.parquet", str(tmp_path / "tars"))
    config = InputConfig(path=str(tmp_path / "tars"))
    source = sources.find(config)
    table = pa.concat_tables(sources.read(source, shards.Piece(0, source.paths[0], 0, 10), config, 4))
    assert table["key"].to_pylist() == keys
    assert table["image"].to_pylist() == images
    assert table["label"].to_pylist() == [str(label) for label in range(10)]


def test_a_tar_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    write_subset(tmp_path / "part-00000.parquet", ["a", "b", "c"])
    (tmp_path / "tars").mkdir()
    monkeypatch.setattr(webdataset_writer, "SAMPLES_PER_TAR", 2)
    add = webdataset_writer._add
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)

    def full(tar, name, content):
        if name.startswith("c"):
            raise OSError(28, "No space left on device")
        add(tar, name, content)

    monkeypatch.setattr(webdataset_writer, "_add", full)
    with pytest.raises(OSError, match="No space left"):
        webdataset_writer.write_tars(LOCAL, f"{tmp_path}/part-00000.parquet", str(tmp_path / "tars"))
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["part-00000-000.tar"]
    assert len(synced) == 1  # before it got its name
