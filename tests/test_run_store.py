"""A run's folder: whose it is, what is done, and that nothing is ever there by half."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from razor_ray import run_store
from razor_ray.config import InputConfig, ProxyConfig, PruneConfig, ScoreConfig, TrainConfig, to_dict
from razor_ray.run_store import RunStore, open_filesystem, write_file, write_table

TABLE = pa.table({"x": pa.array(np.arange(1000))})


def config(**changes) -> PruneConfig:
    return PruneConfig(**({"input": InputConfig(path="in"), "output": "out", "keep_fraction": 0.3} | changes))


@pytest.fixture
def store(tmp_path):
    return RunStore(str(tmp_path / "run"))


def commit(store: RunStore, stage: str, facts: dict | None = None, names: tuple[str, ...] = ("a",)) -> None:
    folder = store.begin(stage)
    for name in names:
        write_table(store.filesystem, f"{folder}/{name}.parquet", TABLE)
    store.commit(stage, facts or {})


# Whose folder it is.


def test_claim_writes_the_configuration(store, tmp_path):
    store.claim(config())
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads(json.dumps(to_dict(config())))
    assert os.listdir(tmp_path / "run") == ["config.json"]


def test_an_empty_folder_can_be_claimed(store, tmp_path):
    (tmp_path / "run").mkdir()
    store.claim(config())
    assert store.read_json("config.json") is not None


def test_the_same_configuration_resumes(store):
    store.claim(config(input=InputConfig(path="in", class_names=("a", "b"))))
    commit(store, "catalog")
    before = store.read_json("config.json")
    store.claim(config(input=InputConfig(path="in", class_names=("a", "b")), score=ScoreConfig(num_workers=3)))
    assert store.read_json("config.json") == before
    assert store.is_done("catalog")


def test_another_configuration_is_refused_with_its_differences(store):
    store.claim(config())
    with pytest.raises(ValueError, match="holds another run") as raised:
        store.claim(config(keep_fraction=0.5, proxy=ProxyConfig(epochs=9)))
    assert str(raised.value) == (
        f"{store.uri} holds another run (keep_fraction: 0.5 here, 0.3 there; proxy.epochs: 9 here, 4 there). "
        "Choose another --output, or delete that folder to start anew."
    )


def test_the_other_kind_of_run_is_refused(store):
    store.claim(config())
    with pytest.raises(ValueError, match=r"holds a run of prune\. Choose another --output"):
        store.claim(TrainConfig(input=InputConfig(path="in"), output="out"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"new_setting": 1}'])
def test_a_configuration_that_cannot_be_read_is_refused(store, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(ValueError, match="holds another kind of run"):
        store.claim(config())
    assert (tmp_path / "run" / "config.json").read_text() == text


@pytest.mark.parametrize("name", ["photo.jpg", ".hidden", "subset/x.parquet"])
def test_a_folder_with_other_files_is_refused(store, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is not empty and holds no run. Choose another --output."):
        store.claim(config())
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["run", "run/in"])
def test_an_output_that_is_a_file_is_for_the_user_to_mend(tmp_path, name):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ValueError, match="run"):
        RunStore(str(tmp_path / name)).claim(config())
    assert (tmp_path / "run").read_text() == "a file"


def test_a_claim_that_died_can_be_made_again(store, monkeypatch):
    # The disk was full when the very first file was written; room was made, and the same command is given again.
    with monkeypatch.context() as patch:
        fail_while_writing(patch)
        with pytest.raises(OSError, match="full"):
            store.claim(config())
    store.claim(config())
    assert store.read_json("config.json") is not None


# What is done.


def test_a_stage_is_done_when_it_has_committed(store):
    assert not store.is_done("scores")
    folder = store.begin("scores")
    write_table(store.filesystem, f"{folder}/b.parquet", TABLE)
    write_table(store.filesystem, f"{folder}/a.parquet", TABLE.slice(0, 3))
    assert not store.is_done("scores")
    assert not Path(store.path("scores")).exists()
    store.commit("scores", {"num_samples": 1003, "reasons": {}})
    assert store.is_done("scores")
    assert store.commit_facts("scores") == {"num_samples": 1003, "reasons": {}}
    assert store.files("scores") == [store.path("scores", "a.parquet"), store.path("scores", "b.parquet")]
    assert not Path(folder).exists()
    assert store.read("scores")["x"].to_pylist()[:5] == [0, 1, 2, 0, 1]
    assert store.read("scores", ["x"]).num_rows == 1003


@pytest.mark.parametrize(
    ("read", "written", "is_refused"),
    [
        ("in", "in", True),
        ("in/", "in/run", True),
        ("in", "./in/deeper/run", True),
        ("in", "in-2/run", False),
        ("in/train", "in/run", False),
        ("in/*.parquet", "in/run", False),  # which no run's file is taken for
        ("in/**/*.parquet", "in/run", True),  # but for this they are
        ("in/[a-z]*/**/*.parquet", "in/run", True),
        ("in/train/**/*.parquet", "in/run", False),
        ("s3://bucket/in?region=eu-west-1", "s3://bucket/in/run?region=eu-west-1", True),
        ("s3://bucket/in?region=eu-west-1", "bucket/in/run", False),
    ],
)
def test_what_is_written_is_not_to_lie_in_what_is_read(read, written, is_refused):
    with pytest.raises(ValueError, match="lies in --input") if is_refused else nullcontext():
        run_store.check_apart(read, written)


def test_nor_by_way_of_a_link(tmp_path):
    (tmp_path / "real" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ValueError, match="lies in --input"):
        run_store.check_apart(f"{tmp_path}/real/in", f"{tmp_path}/link/in/run")
    run_store.check_apart(f"{tmp_path}/real/in", f"{tmp_path}/link/run")


def test_half_of_a_json_file_is_none(store):
    store.write_json("scores/.commit.json", {"num_samples": 3})
    assert store.read_json("scores/.commit.json") == {"num_samples": 3}
    assert store.is_done("scores")
    for text in ('{"num_samples": ', ""):
        Path(store.path("scores", ".commit.json")).write_text(text)
        assert store.read_json("scores/.commit.json") is None
        assert not store.is_done("scores")


def test_a_stage_without_a_commit_file_has_not_happened(store):
    commit(store, "scores", names=("a", "b"))
    Path(store.path("scores", ".commit.json")).unlink()
    assert not store.is_done("scores")
    with pytest.raises(AssertionError, match="scores has not committed"):
        store.files("scores")
    with pytest.raises(AssertionError, match="scores has not committed"):
        store.commit_facts("scores")
    commit(store, "scores", names=("c",))  # done again: nothing of the dead attempt is left
    assert store.files("scores") == [store.path("scores", "c.parquet")]


def test_begin_sweeps_what_a_dead_attempt_left(store):
    folder = Path(store.begin("scores"))
    (folder / "old.parquet").write_bytes(b"half")
    (folder / "deeper").mkdir()
    again = Path(store.begin("scores"))
    assert again == folder
    assert list(again.iterdir()) == []


def test_begin_leaves_other_stages_alone(store):
    commit(store, "scores")
    staged = Path(store.begin("weights"))
    (staged / "x").write_text("x")
    store.begin("selection")
    assert store.is_done("scores")
    assert (staged / "x").exists()


def test_a_commit_that_dies_before_its_commit_file(store, monkeypatch):
    folder = store.begin("scores")
    write_table(store.filesystem, f"{folder}/a.parquet", TABLE)
    with monkeypatch.context() as patch:
        fail_while_writing(patch)
        with pytest.raises(OSError, match="full"):
            store.commit("scores", {})
    assert not store.is_done("scores")
    commit(store, "scores")
    assert store.files("scores") == [store.path("scores", "a.parquet")]


def test_files_are_sorted_and_hidden_names_are_none(store):
    commit(store, "scores", names=("part-10", "part-9", "part-09", "A"))
    folder = Path(store.path("scores"))
    (folder / "_unfinished.parquet").write_bytes(b"half")  # names with an underscore are no data to any reader
    (folder / "notes.txt").write_text("x")
    names = [path.rpartition("/")[2] for path in store.files("scores")]
    assert names == ["A.parquet", "part-09.parquet", "part-10.parquet", "part-9.parquet"]


def test_seal_and_discard(store):
    store.write_bytes("proxy/model.safetensors", b"weights")
    assert not store.is_done("proxy")
    store.seal("proxy", {"arch": "resnet9"})
    assert store.commit_facts("proxy") == {"arch": "resnet9"}
    store.discard("proxy")
    store.discard("proxy")  # not there any more
    assert not store.is_done("proxy")
    assert not Path(store.path("proxy")).exists()


def test_json_comes_back(store):
    assert store.read_json("manifest.json") is None
    value = {"ü": [1, 2.5, None], "nested": {"a": 2**62}}
    store.write_json("manifest.json", value)
    assert store.read_json("manifest.json") == value
    store.write_json("manifest.json", {})
    assert store.read_json("manifest.json") == {}


# Whole or not at all.


class Failing:
    """An output stream on a disk that is full after ten bytes."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        self.stream.__enter__()
        return self

    def __exit__(self, *error):
        return self.stream.__exit__(*error)

    def write(self, content: bytes) -> None:
        self.stream.write(content[:10])
        raise OSError(28, "the disk is full")


class FullDisk(pafs.LocalFileSystem):
    def open_output_stream(self, *arguments, **options):
        return Failing(super().open_output_stream(*arguments, **options))


def fail_while_writing(patch: pytest.MonkeyPatch) -> None:
    """Every `write_file` meets a full disk."""
    whole = run_store.write_file
    patch.setattr(run_store, "write_file", lambda _, path, content: whole(FullDisk(), path, content))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "er" / "x.json"
    with pytest.raises(OSError, match="full"):
        write_file(FullDisk(), str(path), b"0123456789abcdef")
    assert not path.exists()
    write_file(pafs.LocalFileSystem(), str(path), b"one")
    with pytest.raises(OSError, match="full"):
        write_file(FullDisk(), str(path), b"0123456789abcdef")
    assert path.read_bytes() == b"one"
    write_file(pafs.LocalFileSystem(), str(path), b"two")
    assert path.read_bytes() == b"two"


def test_a_file_leaves_nothing_aside(tmp_path):
    write_file(pafs.LocalFileSystem(), str(tmp_path / "x.json"), b"one")
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_table_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    with monkeypatch.context() as patch:

        def stop_half_way(table, target, **options):
            Path(target).write_bytes(b"PAR1 and no more")
            raise KeyboardInterrupt

        patch.setattr(run_store.pq, "write_table", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            write_table(pafs.LocalFileSystem(), str(path), TABLE)
    assert not path.exists()
    write_table(pafs.LocalFileSystem(), str(path), TABLE)
    assert pq.read_table(path).equals(TABLE)
    assert pq.read_metadata(path).row_group(0).column(0).compression == "ZSTD"


def test_lists_are_stored_as_they_are_and_the_rest_is_packed(tmp_path):
    rng = np.random.default_rng(0)
    numbers = pa.array(rng.normal(size=4000).astype(np.float16))
    table = pa.table(
        {
            "sample_id": np.arange(1000),
            "key": ["a key that comes again"] * 1000,
            "reason": pa.array(["hard", "noise"] * 500).dictionary_encode(),
            "embedding": pa.FixedSizeListArray.from_arrays(numbers, 4),
            "recall": pa.array([[0.5, 0.25]] * 1000),
        }
    )
    path = tmp_path / "x.parquet"
    write_table(pafs.LocalFileSystem(), str(path), table)
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(place).path_in_schema: group.column(place) for place in range(group.num_columns)}
    assert {name: column.compression for name, column in columns.items()} == {
        "sample_id": "ZSTD",
        "key": "ZSTD",
        "reason": "ZSTD",
        "embedding.list.element": "UNCOMPRESSED",
        "recall.list.element": "UNCOMPRESSED",
    }
    assert {name: column.has_dictionary_page for name, column in columns.items()} == {
        "sample_id": True,
        "key": True,
        "reason": True,
        "embedding.list.element": False,  # of noise a dictionary holds every value, and the indices besides
        "recall.list.element": False,
    }
    assert 8000 <= columns["embedding.list.element"].total_compressed_size < 9000  # 4,000 of two bytes, and the lists
    assert columns["key"].total_compressed_size < 200
    assert pq.read_table(path).equals(table)


def test_what_a_killed_worker_left_does_not_spoil_the_stage(store, monkeypatch):
    # A worker is killed while it writes; its successor, another process, writes the part again. Users read the folder.
    folder = store.begin("scores")
    with monkeypatch.context() as patch:

        def stop_half_way(table, target, **options):
            Path(target).write_bytes(b"PAR1 and no more")
            raise KeyboardInterrupt

        patch.setattr(run_store.pq, "write_table", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            write_table(store.filesystem, f"{folder}/a.parquet", TABLE)
    write_table(store.filesystem, f"{folder}/a.parquet", TABLE)
    store.commit("scores", {})
    assert store.read("scores").num_rows == 1000
    assert pq.read_table(store.path("scores")).num_rows == 1000


# Filesystems.


def test_local_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for uri, expected in (
        ("run", tmp_path / "run"),
        ("./a/../run/", tmp_path / "run"),
        ("~/run", tmp_path / "home" / "run"),
        (f"file://{tmp_path}/run", tmp_path / "run"),
        (f"file://{tmp_path}/a%20b", tmp_path / "a b"),
        (f"file://{tmp_path}/a b/ü [0-3] {{x}} #1 100% %41.parquet", tmp_path / "a b/ü [0-3] {x} #1 100% A.parquet"),
    ):
        filesystem, path = open_filesystem(uri)
        assert isinstance(filesystem, pafs.LocalFileSystem)
        assert path.rstrip("/") == str(expected)


def test_names_in_a_bucket_are_taken_as_people_write_them():
    for name in ("a b/train-[0-9].parquet", "größe/(1),{2}", "*/x+y=z", "50%/#"):
        assert open_filesystem(f"s3://bucket/{name}?region=eu-west-1")[1] == f"bucket/{name}"
    filesystem, path = open_filesystem("s3://bucket/%5Ba%20b%5D?scheme=http&region=eu-west-1")
    assert path == "bucket/[a b]"
    assert isinstance(filesystem, pafs.S3FileSystem)
    assert filesystem.region == "eu-west-1"


@pytest.mark.parametrize("uri", ["nosuch://bucket/run", "file://relative/run", "://", "a://"])
def test_unknown_filesystems_are_explained(uri):
    with pytest.raises(ValueError, match=rf"cannot open {uri}: .*Use a local path, or s3://, gs:// or hdfs://"):
        open_filesystem(uri)


def test_paths_with_and_without_a_slash_at_the_end(tmp_path):
    for uri in (f"{tmp_path}/run/", f"file://{tmp_path}/run/", f"{tmp_path}/run"):
        assert RunStore(uri).path("scores", "a") == f"{tmp_path}/run/scores/a"


@pytest.mark.parametrize(
    "uri", ["run", "file:///data/run/", "memory://run", "s3://bucket/run?region=eu-west-1&scheme=http"]
)
def test_an_address_leads_to_its_path(uri):
    store = RunStore(uri)
    address = store.address("_rounds", "01")
    filesystem, path = open_filesystem(address)
    assert path == store.path("_rounds", "01")
    assert filesystem == store.filesystem  # with the same options
    assert address.endswith("?region=eu-west-1&scheme=http") == uri.startswith("s3")


@pytest.fixture(params=["mock", "subtree"])
def remote(request, tmp_path):
    """A store that is not on a local filesystem: there is no rename, the files are copied."""
    store = RunStore("mock:///bucket/run")
    if request.param == "subtree":
        store.filesystem = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
        store.root = "run"
    assert not isinstance(store.filesystem, pafs.LocalFileSystem)
    return store


def test_a_remote_stage_commits(remote):
    remote.claim(config())
    remote.claim(config(output="elsewhere"))
    with pytest.raises(ValueError, match="holds another run"):
        remote.claim(config(seed=1))
    commit(remote, "scores", {"num_samples": 2000}, names=("b", "a"))
    assert remote.is_done("scores")
    assert remote.commit_facts("scores") == {"num_samples": 2000}
    assert remote.files("scores") == [remote.path("scores", "a.parquet"), remote.path("scores", "b.parquet")]
    assert remote.read("scores").num_rows == 2000
    assert remote.filesystem.get_file_info(remote.path("_staging", "scores")).type == pafs.FileType.NotFound


def test_a_remote_stage_is_done_again(remote):
    remote.write_json("scores/part-1.parquet", {})  # copied by an attempt that died before its commit file
    assert not remote.is_done("scores")
    folder = remote.begin("scores")
    write_table(remote.filesystem, f"{folder}/a.parquet", TABLE)
    remote.commit("scores", {})
    assert remote.files("scores") == [remote.path("scores", "a.parquet")]


def test_half_a_file_is_not_finished_where_writes_go_to_their_place(remote):
    """As a process leaves it that is killed while it writes to hdfs://, or to what fsspec opens."""
    folder = remote.begin("scores")
    write_table(remote.filesystem, f"{folder}/a.parquet", TABLE)
    with remote.filesystem.open_input_file(f"{folder}/a.parquet") as file:
        content = file.read()
    for name, cut in (("b", content[: len(content) // 2]), ("c", content[:-1]), ("d", b"PA"), ("e", b"")):
        with remote.filesystem.open_output_stream(f"{folder}/{name}.parquet") as stream:
            stream.write(cut)
    assert remote.finished("scores") == {"a.parquet"}
    with remote.filesystem.open_output_stream(remote.path("scores", ".commit.json")) as stream:
        stream.write(b'{"files": ["a.par')
    assert not remote.is_done("scores")


class NoRename(pafs.FSSpecHandler):
    """An object store: files are there when a put has ended, and nothing can be moved."""

    def move(self, src, dest):
        raise NotImplementedError("no rename")


@pytest.fixture(params=["disk", "object store"])
def any_store(request, tmp_path):
    found = RunStore(str(tmp_path / "run"))
    if request.param == "object store":
        found.filesystem = pafs.PyFileSystem(NoRename(fsspec.filesystem("memory")))
        found.root = f"{tmp_path.name}-{id(request)}/run"
    return found


def put(store: RunStore, folder: str, *names: str) -> None:
    for name in names:
        write_table(store.filesystem, f"{folder}/{name}", TABLE)


def names_in(store: RunStore, stage: str) -> list[str]:
    return store._list(store.path(stage))


def test_only_what_is_listed_is_the_stages(any_store):
    put(any_store, any_store.begin("scores"), "a.parquet", "b.parquet", "zombie.parquet")
    any_store.commit("scores", {"n": 2}, ["a.parquet", "b.parquet"])
    assert names_in(any_store, "scores") == [".commit.json", "a.parquet", "b.parquet"]
    put(any_store, any_store.path("scores"), "c.parquet")  # of an actor of a dead attempt
    assert any_store.files("scores") == [any_store.path("scores", name) for name in ("a.parquet", "b.parquet")]
    assert any_store.commit_facts("scores") == {"n": 2}


def test_begin_keeps_what_is_named_and_sweeps_the_rest(any_store):
    put(any_store, any_store.begin("scores"), "a.parquet", "b.parquet", "c.parquet")
    put(any_store, any_store.begin("scores", keep=["b.parquet", "d.parquet"]), "d.parquet")
    assert any_store.finished("scores") == {"b.parquet", "d.parquet"}
    any_store.begin("scores")
    assert any_store.finished("scores") == set()


def test_a_committed_stage_is_taken_up_again(any_store):
    put(any_store, any_store.begin("quarantine"), "a.parquet", "b.parquet")
    any_store.commit("quarantine", {})
    any_store.begin("quarantine", keep=["a.parquet"])
    assert not any_store.is_done("quarantine")
    assert any_store.finished("quarantine") == {"a.parquet"}
    any_store.commit("quarantine", {})
    assert any_store.files("quarantine") == [any_store.path("quarantine", "a.parquet")]


def test_a_commit_dies_at_every_one_of_its_steps(any_store):
    """Whichever call to the filesystem is the last one: the stage is whole or is none, and can be done again."""
    for last in range(1, 40):
        put(any_store, any_store.begin("scores"), "a.parquet", "b.parquet")
        calls = Countdown(any_store.filesystem, last)
        store = RunStore(any_store.uri)
        store.filesystem, store.root = calls, any_store.root
        store._work = any_store._work
        try:
            store.commit("scores", {})
        except KeyboardInterrupt:
            if any_store.is_done("scores"):
                assert any_store.read("scores").num_rows == 2000
            continue
        assert any_store.read("scores").num_rows == 2000
        assert last > 2
        return
    pytest.fail("the commit never came to its end")


class Countdown:
    """A filesystem behind which the process is killed at the n-th call that changes something."""

    def __init__(self, filesystem: pafs.FileSystem, calls: int) -> None:
        self.filesystem, self.calls = filesystem, calls

    def __getattr__(self, name):
        if name in ("move", "delete_file", "delete_dir", "create_dir", "open_output_stream"):
            self.calls -= 1
            if self.calls <= 0:
                raise KeyboardInterrupt
        return getattr(self.filesystem, name)


def test_remote_files_are_sealed_and_discarded(remote):
    remote.write_bytes("proxy/model.safetensors", b"weights")
    remote.seal("proxy", {"a": 1})
    assert remote.is_done("proxy")
    remote.discard("proxy")
    assert not remote.is_done("proxy")


def test_a_stage_goes_on_from_the_files_of_an_attempt_that_was_made_of_the_same(any_store):
    store = any_store
    for made_of, expected in (("a", set()), ("a", {"0.parquet"}), ("b", set())):
        folder, found = store.resume("subset", made_of)
        assert found == expected
        assert set(store._list(folder)) == expected | {"_made_of"}
        pq.write_table(pa.table({"x": [1]}), f"{folder}/0.parquet", filesystem=store.filesystem)
        write_file(store.filesystem, f"{folder}/_1.parquet.of-a-dead-worker", b"PAR1")
    store.commit("subset", {})
    assert set(store._list(store.path("subset"))) == {"0.parquet", ".commit.json"}
    # What has committed was made of nobody knows what.
    assert store.resume("subset", "b")[1] == set()


def test_what_an_error_ended_is_no_file(any_store):
    """A writer that is closed on the way out ends its file well, and an object store's put with it."""
    folder = any_store.begin("subset")
    for error in (OSError, KeyboardInterrupt):
        with (
            pytest.raises(error),
            run_store.aside(any_store.filesystem, f"{folder}/a.parquet") as target,
            pq.ParquetWriter(target, TABLE.schema, filesystem=any_store.filesystem) as writer,
        ):
            writer.write_table(TABLE)
            raise error
        assert any_store._list(folder) == []
        assert any_store.finished("subset") == set()


def test_a_file_that_has_just_been_begun_is_not_whole(any_store, monkeypatch):
    monkeypatch.setattr(run_store, "_WHOLE_OR_NOT_AT_ALL", ())
    folder = any_store.begin("subset")
    for name, content in (("begun", b"PAR1"), ("ended", b"PAR1 and all that PAR1"), ("half", b"PAR1 and all th")):
        with any_store.filesystem.open_output_stream(f"{folder}/{name}.parquet") as stream:
            stream.write(content)
    assert any_store.finished("subset") == {"ended.parquet"}


def test_a_stamp_tells_other_facts_where_files_have_no_times(any_store):
    stamps = []
    for number in (1, 2, 1):
        any_store.begin("selection")
        any_store.commit("selection", {"num": number})
        stamps.append(any_store.stamp("selection"))
    assert stamps[0] != stamps[1] != stamps[2]
    assert any_store.stamp("selection") == stamps[2]


def test_a_stamp_tells_one_commit_from_the_next(tmp_path):
    store = RunStore(str(tmp_path / "run"))
    stamps = []
    for _ in range(2):
        store.begin("selection")
        store.commit("selection", {"num": 1})
        stamps += [store.stamp("selection"), RunStore(str(tmp_path / "run")).stamp("selection")]
        time.sleep(0.01)
    assert stamps[0] == stamps[1] != stamps[2] == stamps[3]


def test_sizes_of_a_committed_stage(tmp_path):
    store = RunStore(str(tmp_path / "run"))
    folder = store.begin("scores")
    for name, rows in (("b", 1), ("a", 1000)):
        pq.write_table(pa.table({"x": np.random.default_rng(0).random(rows)}), f"{folder}/{name}.parquet")
    store.commit("scores", {})
    sizes = store.file_sizes("scores")
    assert sizes == [Path(path).stat().st_size for path in store.files("scores")]
    assert sizes[0] > sizes[1] > 0
