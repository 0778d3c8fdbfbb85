"""What an input is: found, looked at, cut into pieces and read; every layout that people have, every wrong one."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from razor_ray import sources
from razor_ray.config import InputConfig, PruneConfig, to_dict
from razor_ray.sources import InputError, Piece, Source
from tests.conftest import write_shards


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
        assert sources.inspect(source, shard, InputConfig(path="x")).group_rows == (4,)


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
        ("none", r"there is no .*none\. --input takes Parquet or tars"),
        ("none/none.parquet", "there is no"),
        ("notes.txt/in", "there is no"),
        ("*.csvx", r"no file matches .*\*\.csvx\. Quote the glob"),
        ("none/*.parquet", "no file matches"),
        ("none/**/*.parquet", "no file matches"),
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


def test_links_that_lead_back_up_twice_are_no_endless_maze(tmp_path):
    # Forty times either of them is 2^40 paths, all of them there.
    for name in ("a", "b"):
        put(tmp_path, f"{name}/0.parquet")
        (tmp_path / name / "all").symlink_to("..")
        (tmp_path / name / "self").symlink_to(".")
    for path in (tmp_path, f"{tmp_path}/**/*.parquet"):
        assert find(path).paths == ("a/0.parquet", "b/0.parquet")


def test_links_to_each_other_end(tmp_path):
    put(tmp_path, "a/0.parquet", "b/0.parquet")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    for path in (tmp_path, f"{tmp_path}/**/*.parquet"):
        found = find(path).paths
        assert found == ("a/0.parquet", "b/0.parquet")
    (tmp_path / "self.parquet").symlink_to("self.parquet")  # and this one has no end at all
    with pytest.raises(InputError, match=r"1 files of the input are links that lead nowhere \(.*self\.parquet"):
        find(tmp_path)


def test_links_to_other_places_are_followed(tmp_path):
    put(tmp_path, "elsewhere/0.parquet", "elsewhere/more/1.parquet", "in/2.parquet", "3.parquet")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "file.parquet").symlink_to("../3.parquet")
    expected = ("2.parquet", "file.parquet", "linked/0.parquet", "linked/more/1.parquet")
    for path in (tmp_path / "in", f"{tmp_path}/in/**/*.parquet"):
        assert find(path).paths == expected


@pytest.mark.parametrize("glob", ["", "/*.parquet", "/**/*.parquet"])
def test_links_that_lead_nowhere_are_not_left_out_in_silence(tmp_path, glob):
    put(tmp_path, "0.parquet", "1.parquet")
    (tmp_path / "2.parquet").symlink_to(".git/annex/objects/2")
    (tmp_path / "notes.txt").symlink_to("gone")  # which is none of ours
    with pytest.raises(InputError, match=r"1 files of the input are links that lead nowhere \(.*2\.parquet, \.\.\.\)"):
        find(f"{tmp_path}{glob}")
    (tmp_path / "2.parquet").unlink()
    assert len(find(f"{tmp_path}{glob}").paths) == 2
    (tmp_path / "more").symlink_to("gone")  # a folder, it may be
    if "*" not in glob:
        with pytest.raises(InputError, match=r"links that lead nowhere \(.*more, "):
            find(tmp_path)
    put(tmp_path, "classes/cat/1.jpg")
    (tmp_path / "classes" / "cat" / "2.jpg").symlink_to("gone.jpg")
    with pytest.raises(InputError, match="links that lead nowhere"):
        find(tmp_path / "classes")


# Which format.


def put(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    return folder


@pytest.mark.parametrize(
    ("names", "there", "kind", "paths"),
    [
        (["a.tar", "sub/b.TAR.GZ", "c.tgz", "_x.tar"], "", "webdataset", ("a.tar", "c.tgz", "sub/b.TAR.GZ")),
        (["a.tar", "b.parquet"], "a.tar", "webdataset", ("a.tar",)),
        (["a.tar", "b.parquet"], "*.tar", "webdataset", ("a.tar",)),
        (["a.parquet", "preview.png"], "", "parquet", ("a.parquet",)),
        (["cat/1.jpg", "dog/2.JPEG"], "", "folders", ("2 files from cat/1.jpg",)),
        (["a.bin"], "a.bin", "parquet", ("a.bin",)),
    ],
)
def test_the_format_is_seen(tmp_path, names, there, kind, paths):
    source = find(put(tmp_path, *names) / there)
    assert (source.format, source.paths) == (kind, paths)


@pytest.mark.parametrize(
    ("names", "there", "message"),
    [
        (["a.parquet", "b.tar"], "", r"holds 1 \.parquet \(a\.parquet, \.\.\.\) and 1 tars.*parquet or webdataset"),
        (["a.tar", "x/1.png", "x/2.png"], "", r"1 tars .* and 2 images in sub-folders .*webdataset or folders"),
        (["a.parquet", "a.tar"], "a.*", r"1 \.parquet and 1 tars\. Choose a glob of one kind"),
        (["cat/1.jpg"], "*/*.jpg", "Name the folder that holds the class folders"),
        (["a.tar.zst"], "", r"a\.tar\.zst is compressed in a way that is not read"),
        (["a.tar.xz"], "a.tar.xz", r"a\.tar\.xz is compressed in a way that is not read"),
    ],
)
def test_what_is_not_one_format(tmp_path, names, there, message):
    with pytest.raises(InputError, match=message):
        find(put(tmp_path, *names) / there)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["data/train-0.parquet", "data/test-0.parquet"], "data/train*"),
        (["train/0.tar", "val/0.tar", "val/1.tar"], "train"),
        (["a/Train_images/0.tar", "a/dev/0.tar"], "a/Train_images"),
        (["training.parquet", "x/evaluation.parquet", "other.parquet"], "training*"),
    ],
)
def test_images_to_train_on_and_to_test_with_are_not_mixed_unasked(tmp_path, names, part):
    put(tmp_path, *names)
    with pytest.raises(InputError, match="holds images to train on and others to test with") as caught:
        find(tmp_path)
    assert f"by a folder or a glob ({part} in it, for one), or give a glob that all" in str(caught.value)
    asked = find(tmp_path / part).paths
    assert len(asked) == 1 and names[0].endswith(asked[0])
    assert len(find(f"{tmp_path}/**/*{Path(names[0]).suffix}").paths) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ["train-0.parquet", "train-1.parquet"],
        ["test-0.parquet", "val/0.parquet"],
        ["constraint.parquet", "protest.parquet", "valley.parquet", "trains.parquet", "devices.parquet"],
        ["train/test-0.parquet", "train/0.parquet", "train/dev.parquet"],
    ],
)
def test_what_is_of_one_split_is_not_refused(tmp_path, names):
    assert len(find(put(tmp_path, *names)).paths) == len(names)


@pytest.mark.parametrize("name", ["a.parquet", "sub/a.tar", "dog 2/1 files from.jpg"])
def test_a_file_to_probe_is_one_that_is_there(tmp_path, name):
    source = find(put(tmp_path, name))
    path = sources.probe_path(source)
    assert path == str(tmp_path / name)
    assert source.filesystem.get_file_info(path).type == pafs.FileType.File


def test_a_format_that_was_named_is_taken(tmp_path):
    put(tmp_path, "a.parquet", "b.tar", "x/1.png", "shard")
    for kind, paths in {"parquet": "a.parquet", "webdataset": "b.tar", "folders": "1 files from x/1.png"}.items():
        assert sources.find(InputConfig(path=str(tmp_path), format=kind)).paths == (paths,)
    source = sources.find(InputConfig(path=str(tmp_path / "shard"), format="webdataset"))
    assert (source.format, source.paths) == ("webdataset", ("shard",))
    with pytest.raises(InputError, match="holds no tars"):
        sources.find(InputConfig(path=str(put(tmp_path / "x")), format="webdataset"))


def test_only_parquet_has_columns(tmp_path):
    with pytest.raises(InputError, match="only Parquet has a column 'weight', not tars. Mend."):
        sources.check_numbers(find(put(tmp_path, "a.tar")), "weight", "Mend.")


def test_fsspec_opens_what_pyarrow_does_not(tmp_path):
    fsspec.filesystem("memory").pipe("/parquet/a.parquet", write(tmp_path / "a.parquet").read_bytes())
    for path in ("memory://parquet", "memory://parquet/*.parquet", f"local://{tmp_path}"):
        config = InputConfig(path=path)
        source = sources.find(config)
        assert source.paths == ("a.parquet",)
        facts = sources.inspect(source, 0, config)
        assert facts.num_samples == 4
        found = list(sources.read(source, Piece(0, "a.parquet", 0, 4), config, 3))
        assert [part.num_rows for part in found] == [3, 1]
        assert found[0]["image"].to_pylist() == table()["image"].to_pylist()[:3]


def test_a_filesystem_whose_package_is_missing(monkeypatch):
    def missing(uri: str):
        raise ImportError("Install huggingface_hub to access HfFileSystem")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(InputError, match="cannot open hf://datasets/x: a package is missing here. Install huggingface"):
        find("hf://datasets/x")


def test_the_folder_of_a_run_is_not_its_subset(tmp_path, digits):
    write_shards(digits, tmp_path / "subset", 1)
    write_shards(digits, tmp_path / "catalog", 1)
    asked = InputConfig(path=str(tmp_path))
    (tmp_path / "config.json").write_text('{"catalog": "of something else"}')
    assert len(sources.find(asked).paths) == 2
    run = PruneConfig(input=asked, output="out", keep_fraction=0.5)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(run)))
    with pytest.raises(sources.InputError, match=f"^{tmp_path} is the folder of a run of prune. What it kept is in"):
        sources.find(asked)
    assert len(sources.find(InputConfig(path=f"{tmp_path}/subset")).paths) == 1
    assert len(sources.find(InputConfig(path=str(tmp_path), format="parquet")).paths) == 2
