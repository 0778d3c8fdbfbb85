"""Class folders: found by one listing, cut into runs, each run listed again by who reads it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from razor_ray import class_folders, retry, shards, sources
from razor_ray.config import InputConfig
from razor_ray.shards import InputError, Piece
from tests.conftest import FailingStore, png, real_data


def image(value: int = 0) -> bytes:
    return png(np.full((8, 9), value % 256, np.uint8))


def put(folder: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(image(number))
    return folder


def find(path: Path | str) -> sources.Source:
    return sources.find(InputConfig(path=str(path)))


def read(path: Path | str, batch_size: int = 3, max_rows: int = 1000, **settings) -> list[dict]:
    """All samples, piece by piece."""
    config = InputConfig(path=str(path), **settings)
    source = sources.find(config)
    tables = []
    for shard in range(len(source.paths)):
        rows = sources.inspect(source, shard, config).group_rows
        for piece in shards.cut(shard, source.paths[shard], rows, (), max_rows, batch_size):
            tables += sources.read(source, piece, config, batch_size)
    return pa.concat_tables(tables).to_pylist()


@pytest.mark.parametrize(("setting", "option"), [("label_column", "label-column"), ("image_column", "image-column")])
def test_columns_are_refused_where_there_are_none(tmp_path, setting, option):
    put(tmp_path, "cat/a.png", "dog/b.png")
    with pytest.raises(InputError, match=f"have no column 'breed'. Leave out --input.{option}"):
        sources.find(InputConfig(path=str(tmp_path), **{setting: "breed"}))


def test_a_tree_by_hand(tmp_path):
    put(tmp_path, "dog/2.jpg", "cat/b.PNG", "cat/a.x.jpeg", "cat-2/c.webp")
    for ignored in (".git/x/y.png", "cat/.hidden.png", "cat/Thumbs.db", "README.md"):
        put(tmp_path, ignored)
    source = find(tmp_path)
    assert (source.format, source.paths) == ("folders", ("4 files from cat/a.x.jpeg",))
    facts = sources.inspect(source, 0, InputConfig(path=str(tmp_path)))
    assert (facts.num_samples, facts.label_kind, facts.group_rows) == (4, "string", (4,))
    assert facts.label_counts == {"cat": 2, "cat-2": 1, "dog": 1}
    assert facts.image_dimensions == ((8, 9),) * 4
    rows = read(tmp_path)
    paths = ["cat/a.x.jpeg", "cat/b.PNG", "cat-2/c.webp", "dog/2.jpg"]
    assert (
        [row["key"] for row in rows] == [row["place"] for row in rows] == [row["image_path"] for row in rows] == paths
    )
    assert [row["label"] for row in rows] == ["cat", "cat", "cat-2", "dog"]
    assert [row["image"] for row in rows] == [image(2), image(1), image(3), image(0)]
    assert [row["key"] for row in read(tmp_path, id_column="path")] == paths
    assert [row["key"] for row in read(tmp_path, id_column="key")] == ["cat/a", "cat/b", "cat-2/c", "dog/2"]
    assert [row["key"] for row in read(tmp_path, id_column="name")] == ["a", "b", "c", "2"]


@pytest.mark.parametrize("files_per_shard", [1, 2, 3, 7, 100])
def test_runs_are_the_whole(tmp_path, monkeypatch, files_per_shard):
    paths = [f"{name}/{number:02d}.png" for name in ("ä", "b", "c", "z") for number in range(ord(name[0]) % 7 + 1)]
    put(tmp_path, *paths)
    whole = read(tmp_path)
    assert sorted(row["key"] for row in whole) == sorted(paths)
    monkeypatch.setattr(class_folders, "_FILES_PER_SHARD", files_per_shard)
    source = find(tmp_path)
    assert len(source.paths) == -(-len(paths) // files_per_shard)
    assert sum(source.sizes) == sum((tmp_path / path).stat().st_size for path in paths)
    assert read(tmp_path) == read(tmp_path, 2, 2) == whole
    config = InputConfig(path=str(tmp_path))
    for shard, path in enumerate(source.paths):
        count = int(path.partition(" ")[0])
        first = shard * files_per_shard
        rows = np.arange(0, count, 2)
        images = [i for part in sources.read_images(source, shard, rows, config) for i in part["image"].to_pylist()]
        assert images == [whole[first + row]["image"] for row in rows.tolist()]


def test_a_run_lists_its_own_classes_alone(tmp_path, monkeypatch):
    put(tmp_path, *(f"{name}/{number}.png" for name in "abcdef" for number in range(3)))
    monkeypatch.setattr(class_folders, "_FILES_PER_SHARD", 4)
    source = find(tmp_path)
    assert source.class_folders == tuple("abcdef")
    listed = []
    list_class = class_folders._list_class

    def spy(source, class_name):
        listed.append(class_name)
        return list_class(source, class_name)

    monkeypatch.setattr(class_folders, "_list_class", spy)
    assert source.paths[2] == "4 files from c/2.png"
    assert [file.path for file in class_folders._list_run(source, 2)] == ["c/2.png", "d/0.png", "d/1.png", "d/2.png"]
    assert listed == ["c", "d"]
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(InputError, match="4 files from c/2.png cannot be listed"):
        class_folders._list_run(source, 2)


def test_what_else_lies_in_class_folders_is_told(tmp_path):
    put(tmp_path, "cat/1.png", "dog/2.JFIF", "cat/1.txt", "bird/3.heic", "bird/4.HEIC", "list.csv", "_notes.txt")
    source = find(tmp_path)
    assert (
        source.left_alone
        == "3 files that are no images by their names (.heic 2, .txt 1); bird holds no image and is no class"
    )
    assert source.paths == ("2 files from cat/1.png",)
    for name in ("cat/1.txt", "bird/3.heic", "bird/4.HEIC"):
        (tmp_path / name).unlink()
    (tmp_path / "_kept").mkdir()
    assert find(tmp_path).left_alone == "bird holds no image and is no class"
    (tmp_path / "bird").rmdir()
    assert find(tmp_path).left_alone == ""


def test_a_run_names_what_changed_under_it(tmp_path, monkeypatch):
    monkeypatch.setattr(class_folders, "_FILES_PER_SHARD", 2)
    put(tmp_path, "a/1.png", "a/3.png", "b/1.png", "b/3.png")
    source, config = find(tmp_path), InputConfig(path=str(tmp_path))
    put(tmp_path, "a/5.png")  # behind the first run, and not in the second
    assert sources.inspect(source, 0, config).num_samples == 2
    assert sources.inspect(source, 1, config).num_samples == 2
    (tmp_path / "a" / "3.png").unlink()
    (tmp_path / "b" / "1.png").unlink()
    for shard in (0, 1):
        with pytest.raises(InputError, match=rf"the 2 files from {'ab'[shard]}/1.png in .* are not those"):
            list(sources.read(source, Piece(shard, source.paths[shard], 0, 2), config, 2))


def test_a_file_that_moved_to_another_class_is_seen(tmp_path):
    # As many files, of the same size together, and the same first one: row 1 would be another sample.
    put(tmp_path, "a/0.png", "a/1.png", "b/2.png")
    source, config = find(tmp_path), InputConfig(path=str(tmp_path))
    (tmp_path / "a" / "1.png").rename(tmp_path / "b" / "z.png")
    again = find(tmp_path)
    assert (again.paths, again.sizes) == (source.paths, source.sizes)
    assert again.fingerprints != source.fingerprints
    with pytest.raises(InputError, match="are not those that were there before"):
        sources.inspect(source, 0, config)


def test_fingerprints_tell_names_and_sizes(tmp_path):
    def fingerprint(name: str, *files: tuple[str, bytes]) -> str:
        for path, content in files:
            put(tmp_path / name, path)
            (tmp_path / name / path).write_bytes(content)
        config = InputConfig(path=str(tmp_path / name))
        return sources.inspect(sources.find(config), 0, config).fingerprint

    one = fingerprint("one", ("a/1.png", b"12"), ("b/1.png", b"3"))
    assert fingerprint("same", ("a/1.png", b"45"), ("b/1.png", b"6")) == one
    assert fingerprint("sizes", ("a/1.png", b"1"), ("b/1.png", b"23")) != one
    assert fingerprint("names", ("a/1.png", b"12"), ("b/2.png", b"3")) != one


def test_files_that_cannot_be_read_have_a_reason_each(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "b" / "3.png").write_bytes(b"x" * 1000)
    monkeypatch.setattr(class_folders.headers, "MAX_FILE_BYTES", 999)
    source, config = find(tmp_path), InputConfig(path=str(tmp_path))
    listed = class_folders._list_run
    monkeypatch.setattr(class_folders, "_list_run", lambda *a: (listed(*a), os.unlink(tmp_path / "a" / "2.png"))[0])
    table = next(sources.read(source, Piece(0, source.paths[0], 0, 3), config, 3))
    assert table["problem"].to_pylist() == [None, "image file cannot be read", "image file is too large"]
    assert table["place"].to_pylist() == ["a/1.png", "a/2.png", "b/3.png"]
    assert table["image"].to_pylist() == [image(0), None, None]


@pytest.mark.parametrize("failing", [{0}, {0, 1}])
def test_a_store_that_fails_for_a_moment_costs_nothing(tmp_path, monkeypatch, failing):
    put(tmp_path, "a/1.png")
    monkeypatch.setattr(retry, "PAUSES", (0, 0))
    source = dataclasses.replace(find(tmp_path), filesystem=pafs.PyFileSystem(FailingStore(failing)))
    table = next(sources.read(source, Piece(0, source.paths[0], 0, 1), InputConfig(path=str(tmp_path)), 1))
    assert table["image"].to_pylist() == [image(0)]


def test_a_store_that_goes_on_failing_stops_the_run_and_quarantines_nothing(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/2.png")
    monkeypatch.setattr(retry, "PAUSES", (0, 0))
    source = dataclasses.replace(find(tmp_path), filesystem=pafs.PyFileSystem(FailingStore(range(100))))
    with pytest.raises(OSError, match="503 Slow Down"):
        list(sources.read(source, Piece(0, source.paths[0], 0, 2), InputConfig(path=str(tmp_path)), 2))


@pytest.mark.parametrize("num_failures", [1, 2, 3])
def test_a_store_that_fails_to_list_is_asked_again(tmp_path, monkeypatch, num_failures):
    put(tmp_path, "a/1.png", "a/2.png")
    monkeypatch.setattr(retry, "PAUSES", (0, 0))
    config, found = InputConfig(path=str(tmp_path)), find(tmp_path)
    failures = [OSError("503 Slow Down")] * num_failures

    class Failing(pafs.FSSpecHandler):
        def get_file_info_selector(self, selector):
            if failures:
                raise failures.pop()
            return super().get_file_info_selector(selector)

    source = dataclasses.replace(found, filesystem=pafs.PyFileSystem(Failing(fsspec.filesystem("file"))))
    piece = Piece(0, source.paths[0], 0, 2)
    if num_failures == 3:
        with pytest.raises(OSError, match="503 Slow Down"):
            list(sources.read(source, piece, config, 2))
    else:
        assert pa.concat_tables(sources.read(source, piece, config, 2)).num_rows == 2
    assert not failures


def test_large_files_are_not_in_memory_together(tmp_path, monkeypatch):
    put(tmp_path, *(f"a/{row}.png" for row in range(8)))
    size = (tmp_path / "a" / "0.png").stat().st_size
    monkeypatch.setattr(class_folders.headers, "MAX_BATCH_BYTES", 5 * size + size // 2)
    monkeypatch.setattr(class_folders.headers, "BYTES_READ_AT_ONCE", 3 * size + size // 2)
    with pytest.raises(InputError, match=r"a/0\.png and those behind it: a batch of 8 images is"):
        read(tmp_path, 8)
    assert len(read(tmp_path, 5)) == 8
    source, config = find(tmp_path), InputConfig(path=str(tmp_path))
    copied = list(sources.read_images(source, 0, np.arange(8), config))
    assert [part.num_rows for part in copied] == [3, 3, 2]


def test_an_image_that_is_kept_and_has_gone_is_not_left_out(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    source, config = find(tmp_path), InputConfig(path=str(tmp_path))
    listed = class_folders._list_run
    monkeypatch.setattr(class_folders, "_list_run", lambda *a: (listed(*a), os.unlink(tmp_path / "a" / "2.png"))[0])
    with pytest.raises(InputError, match=r"a/2\.png in .* was read when it was scored, and now: image file cannot be"):
        list(sources.read_images(source, 0, np.arange(3), config))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["a/1.png", "b/x/2.png"],
            r"holds b/x/2\.png\. Name the folder whose sub-folders are the classes, such as .*/b, or move",
        ),
        (
            ["train/a/1.png", "test/a/1.png"],
            r"holds test/a/1\.png\. Name the folder whose .*, such as \S+/test or \S+/train, or move",
        ),
        (["a/1.png", "2.png"], r"holds 2\.png\. Name the folder whose sub-folders are the classes, or move"),
        (["1.png", "2.png"], r"Its 2 images lie in no class folder: class/name\.jpg"),
        (["a/readme.txt"], "holds no .parquet file, no tar and no class folder"),
    ],
)
def test_what_is_no_tree_of_class_folders(tmp_path, paths, message):
    with pytest.raises(InputError, match=message):
        find(put(tmp_path, *paths))


def test_a_name_that_is_no_text(tmp_path):
    put(tmp_path, "a/1.png")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(image())
    with pytest.raises(InputError, match=r"caf\\xe9\.png is not a name in UTF-8"):
        find(tmp_path)


def test_nor_is_one_that_a_glob_finds(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.parquet")).touch()
    with pytest.raises(InputError, match=r"caf\\xe9\.parquet is not a name in UTF-8"):
        sources.find(InputConfig(path=f"{tmp_path}/*.parquet"))


def test_an_unknown_id(tmp_path):
    put(tmp_path, "a/1.png")
    config = InputConfig(path=str(tmp_path), id_column="uid")
    with pytest.raises(InputError, match=r"no ids 'uid'. Pass --input.id-column path \(class/name.jpg\)"):
        sources.inspect(sources.find(config), 0, config)


def test_reading_on_any_filesystem(tmp_path):
    put(tmp_path, "a/1.png", "a/2.png", "b/x.png")
    for path in sorted(tmp_path.rglob("*.png")):
        fsspec.filesystem("memory").pipe(f"/folders/{path.relative_to(tmp_path)}", path.read_bytes())
    assert read("memory://folders") == read(tmp_path) == read(f"file://{tmp_path}")


def test_real_photographs(tmp_path):
    table = pq.read_table(real_data("clothing"), columns=["id", "image", "label"]).slice(0, 120)
    for row in table.to_pylist():
        folder = tmp_path / f"class-{row['label']:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{row['id'].replace('/', '_')}.jpg").write_bytes(row["image"])
    rows = read(tmp_path, 32, 50, id_column="name")
    assert [row["label"] for row in rows] == sorted(f"class-{label:02d}" for label in table["label"].to_pylist())
    by_id = {row["id"].replace("/", "_").partition(".")[0]: row for row in table.to_pylist()}
    assert len(rows) == len(by_id) == 120
    assert all(by_id[row["key"]]["image"] == row["image"] for row in rows)
