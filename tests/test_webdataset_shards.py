"""WebDataset tars: grouped, labelled, entered anywhere, read as streams; and tars that somebody made to do harm."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from razor_ray import retry, shards, sources, tar_stream, webdataset_shards
from razor_ray.config import InputConfig
from razor_ray.labels import is_integer
from razor_ray.shards import InputError
from tests.conftest import FailingStore, png, real_data, write_tar

few = settings(deadline=None, derandomize=True, max_examples=60)


def image(value: int = 0) -> bytes:
    return png(np.full((8, 9), value % 256, np.uint8))


def sample(key: str, label: object = 0, value: int = 0, suffix: str = "png") -> list[tuple[str, bytes]]:
    return [(f"{key}.cls", str(label).encode()), (f"{key}.{suffix}", image(value))]


def inspect(path: Path | str, **settings) -> shards.ShardFacts:
    config = InputConfig(path=str(path), **settings)
    return sources.inspect(sources.find(config), 0, config)


def read(path: Path | str, batch_size: int = 4, max_rows: int = 1000, **settings) -> pa.Table:
    """All of a tar, piece by piece."""
    config = InputConfig(path=str(path), **settings)
    source = sources.find(config)
    facts = sources.inspect(source, 0, config)
    pieces = shards.cut(0, source.paths[0], facts.group_rows, facts.group_offsets, max_rows, batch_size)
    tables = [table for piece in pieces for table in sources.read(source, piece, config, batch_size)]
    assert sum(table.num_rows for table in tables) == facts.num_samples
    return pa.concat_tables(tables)


# Grouping and labels, by hand.


def test_a_tar_by_hand(tmp_path):
    members = [
        ("./a/1.jpg", image(1)),
        ("./a/1.cls", b"3\n"),
        ("./a/1.txt", b"a caption"),
        ("2.cls", b"0"),
        ("2.seg.png", image(9)),  # a mask beside the image is no image
        ("2.PNG", image(2)),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    facts = inspect(path)
    assert (facts.num_samples, facts.label_kind, facts.label_counts) == (2, "text", {"3": 1, "0": 1})
    assert facts.image_dimensions == ((8, 9), (8, 9))
    assert (facts.group_rows, facts.group_offsets) == ((2,), (0,))
    table = read(path)
    assert table["key"].to_pylist() == ["./a/1", "2"]
    assert table["image"].to_pylist() == [image(1), image(2)]
    assert table["image_path"].to_pylist() == ["1.jpg", "2.PNG"]
    assert table["label"].to_pylist() == ["3", "0"]
    assert table["place"].to_pylist() == ["a.tar:./a/1", "a.tar:2"]
    assert table["problem"].to_pylist() == [None, None]
    assert read(path, id_column="name")["key"].to_pylist() == ["1", "2"]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
@pytest.mark.parametrize("label", [("cls", b"3"), ("json", b'{"label": 3}')], ids=["cls", "json"])
def test_images_of_each_suffix_with_labels_of_each_kind(tmp_path, suffix, label):
    members = [(f"1.{suffix}", image(1)), (f"1.{label[0]}", label[1]), (f"2.{label[0]}", label[1]), ("2.png", image(2))]
    table = read(write_tar(tmp_path / "a.tar", members))
    assert table["image"].to_pylist() == [image(1), image(2)]
    assert table["label"].to_pylist() == ["3", "3"]
    assert table["problem"].null_count == 2


@pytest.mark.parametrize(
    ("label_column", "labels"),
    [("label", ["7", "cat", "cat"]), ("fine", ["1", "2", None]), ("other", ["x", None, None])],
)
def test_labels_from_json(tmp_path, label_column, labels):
    first = json.dumps({"label": "not this one", "fine": 1, "other": "x"}).encode()
    second = json.dumps({"label": "cat", "fine": "2", "other": True}).encode()
    third = json.dumps({"label": " cat ", "fine": 0.5, "other": [1]}).encode()
    members = [("1.cls", b"7"), ("1.json", first), ("1.png", image())]
    members += [("2.json", second), ("2.png", image()), ("3.png", image()), ("3.json", third)]
    path = write_tar(tmp_path / "a.tar", members)
    assert read(path, label_column=label_column)["label"].to_pylist() == labels
    assert inspect(path, label_column=label_column).label_counts == Counter(labels)


@pytest.mark.parametrize(
    ("value", "label", "why"),
    [
        (3, "3", None),
        (3.0, "3", None),  # as of whoever had a missing one among them
        (3.5, None, "the label is a fraction, not an integer or a string"),
        (float("nan"), None, "the label is a fraction, not an integer or a string"),
        (True, None, "the label is true or false, not an integer or a string"),
        ([3], None, "the label is a list, not an integer or a string"),
        ({"a": 3}, None, "the label is an object, not an integer or a string"),
        (None, None, "no label under this key"),
        ("", None, "no label under this key"),
    ],
)
def test_a_label_that_is_none_is_not_called_absent(tmp_path, value, label, why):
    other = [("1.json", json.dumps({"label": value}).encode()), ("1.png", image())]
    table = read(write_tar(tmp_path / "a.tar", [*sample("0"), *other]))
    assert (table["label"].to_pylist(), table["problem"].to_pylist()) == (["0", label], [None, why])
    if why and "absent" not in why and value not in (None, ""):
        with pytest.raises(InputError, match=f"none of its 1 keys has a label that can be used: {why}. Name another"):
            inspect(write_tar(tmp_path / "b.tar", other))


def test_what_lies_behind_the_beginning_of_a_large_image_is_no_fault_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset_shards.headers, "MAX_PROBED_BYTES", 1000)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    members = []
    for number, kind in enumerate(("tiff", "webp", "png")):
        content = io.BytesIO()
        noise.save(content, kind, **({"lossless": True} if kind == "webp" else {}))
        assert len(content.getvalue()) > 1000
        members += [(f"{number}.cls", b"0"), (f"{number}.{kind}", content.getvalue())]
    facts = inspect(
        write_tar(tmp_path / "a.tar", [*members, *sample("small"), ("broken.cls", b"1"), ("broken.png", b"?")])
    )
    assert facts.problems == {"not an image": 1}
    assert set(facts.image_dimensions) == {(8, 9), (40, 30)}  # of the PNG, at least, the beginning tells


def test_what_is_missing_or_twice_has_a_reason(tmp_path):
    members = [
        *sample("good"),
        ("no-image.cls", b"0"),
        ("no-label.png", image()),
        *sample("two-images"),
        ("two-images.jpg", image()),
        *sample("two-labels"),
        ("two-labels.cls", b"1"),
        ("empty-label.cls", b" \n"),
        ("empty-label.png", image()),
        ("latin.cls", "Käse".encode("latin-1")),
        ("latin.png", image()),
        ("bad-json.json", b"[" * 100_000),
        ("bad-json.png", image()),
        ("text.txt", b"neither"),
    ]
    table = read(write_tar(tmp_path / "a.tar", members))
    problems = Counter(problem for problem in table["problem"].to_pylist() if problem)
    assert inspect(tmp_path / "a.tar").problems == problems  # known before anything is trained
    assert dict(zip(table["key"].to_pylist(), table["problem"].to_pylist(), strict=True)) == {
        "good": None,
        "no-image": "no image under this key",
        "no-label": "no label under this key",
        "two-images": "more than one image under this key",
        "two-labels": "more than one .cls under this key",
        "empty-label": "no label under this key",
        "latin": "the .cls member is not in UTF-8",
        "bad-json": "the .json member is not JSON",
        "text": "no image under this key",
    }


@pytest.mark.parametrize(
    ("members", "settings", "message"),
    [
        ([*sample("a"), *sample("b"), ("a.png", image())], {}, "key 'a' comes back at sample 2"),
        ([("a.cls", b"0"), ("a.txt", b"")], {}, "none of its 1 keys has an image"),
        ([("a.png", image())], {}, r"no .cls member or key 'label' in a .json member.*--input.label-column"),
        (sample("a"), {"label_column": "fine"}, r"no key 'fine' in a .json member"),
        (sample("a"), {"id_column": "uid"}, "have no ids 'uid'. Pass --input.id-column key"),
    ],
)
def test_what_a_user_has_to_mend(tmp_path, members, settings, message):
    with pytest.raises(InputError, match=message):
        inspect(write_tar(tmp_path / "a.tar", members), **settings)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b'["cat", "dog"]', ("cat", "dog")),
        (b'{"cat": 0}', None),
        (b'["cat", 1]', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_class_names_beside_the_tars(tmp_path, content, names):
    path = write_tar(tmp_path / "a.tar", sample("a"))
    assert inspect(path).class_names is None
    (tmp_path / "class_names.json").write_bytes(content)
    assert inspect(path).class_names == names


# Entering a tar.


@few
@given(st.integers(1, 600), st.integers(1, 300), st.integers(1, 90), st.booleans(), st.data())
def test_pieces_are_the_whole(tmp_path_factory, num_samples, max_rows, batch_size, is_compressed, data):
    members = [member for row in range(num_samples) for member in sample(f"{row:04d}", row % 7, row)]
    name = "a.tar.gz" if is_compressed else "a.tar"
    path = write_tar(tmp_path_factory.mktemp("tar") / name, members, "w:gz" if is_compressed else "w")
    table = read(path, batch_size, max_rows)
    assert table["key"].to_pylist() == [f"{row:04d}" for row in range(num_samples)]
    assert table["label"].to_pylist() == [str(row % 7) for row in range(num_samples)]
    assert table["image"].to_pylist() == [image(row) for row in range(num_samples)]
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, num_samples - 1)))), np.int64)
    config = InputConfig(path=str(path))
    found = list(sources.read_images(sources.find(config), 0, chosen, config))
    assert [i for part in found for i in part["image"].to_pylist()] == [image(row) for row in chosen.tolist()]


def test_a_tar_is_entered_by_groups_compressed_or_not(tmp_path):
    members = [member for row in range(300) for member in sample(f"{row:04d}")]
    facts = inspect(write_tar(tmp_path / "a.tar", members))
    assert facts.group_rows == (128, 128, 44)
    size = facts.group_offsets[1] // 128
    assert facts.group_offsets == (0, 128 * size, 256 * size)  # all samples here are of one size
    cut = shards.cut(5, "a.tar", facts.group_rows, facts.group_offsets, 256, 32)
    assert cut == [shards.Piece(5, "a.tar", 0, 256, 0), shards.Piece(5, "a.tar", 256, 44, 256 * size)]
    # Smaller pieces than a group are not made: nothing inside one can be entered.
    assert [piece.num_rows for piece in shards.cut(5, "a.tar", (128, 128, 44), (0, 9, 18), 32, 32)] == [128, 128, 44]
    # Of a compressed one these are bytes of what it unpacks to; no piece of it is all of it.
    compressed = inspect(write_tar(tmp_path / "b.tgz", members, "w:gz"))
    assert (compressed.group_rows, compressed.group_offsets) == (facts.group_rows, facts.group_offsets)
    source, config = sources.find(InputConfig(path=str(tmp_path / "b.tgz"))), InputConfig(path=str(tmp_path / "b.tgz"))
    (last,) = sources.read(source, shards.Piece(0, "b.tgz", 256, 44, 256 * size), config, 64)
    assert last["key"].to_pylist() == [f"{row:04d}" for row in range(256, 300)]


def test_long_names_and_every_tar_dialect(tmp_path):
    keys = [f"{'ordner/' * 30}é-{row}" for row in range(300)]
    members = [member for row, key in enumerate(keys) for member in sample(key, row)]
    for dialect in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{dialect}.tar"
        with tarfile.open(path, "w", format=dialect) as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        assert read(path, 32, 128)["key"].to_pylist() == keys


def test_reading_on_any_filesystem(tmp_path):
    content = write_tar(
        tmp_path / "a.tar", [m for row in range(300) for m in sample(f"{row}", row % 3, row)]
    ).read_bytes()
    fsspec.filesystem("memory").pipe("/tars/a.tar", content)
    table = read("memory://tars", 32, 128)
    assert table.equals(read(tmp_path / "a.tar", 32, 128))
    assert inspect("memory://tars/*.tar") == inspect(tmp_path)


def test_the_real_shard():
    path = real_data("webdataset_sample") / "sample.tgz"
    facts = inspect(path)
    assert facts.num_samples == 90
    assert all(is_integer(label) for label in facts.label_counts)
    assert sum(facts.label_counts.values()) == 90
    assert set(facts.image_dimensions) == {(28, 28)}
    table = read(path, 32)
    with tarfile.open(path) as tar:
        for row in table.to_pylist():
            assert tar.extractfile(f"{row['key']}.png").read() == row["image"]  # pyright: ignore
            assert tar.extractfile(f"{row['key']}.cls").read().decode() == row["label"]  # pyright: ignore


def test_fingerprints_tell_labels_names_and_sizes(tmp_path):
    first = inspect(write_tar(tmp_path / "a.tar", [*sample("a"), *sample("b", 1)])).fingerprint
    assert inspect(write_tar(tmp_path / "b.tar", [*sample("a"), *sample("b", 1)])).fingerprint == first
    others = [[*sample("a", 1), *sample("b")], [*sample("a"), *sample("c", 1)], [*sample("a"), *sample("b", 10)]]
    prints = {inspect(write_tar(tmp_path / f"{i}.tar", members)).fingerprint for i, members in enumerate(others)}
    assert len(prints | {first}) == 4


# Tars that are damaged or meant to do harm.


def test_links_devices_and_climbing_names_are_only_names(tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes(image(77))
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("dev", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = kind, str(outside)
            tar.addfile(member)
            label = tarfile.TarInfo(f"{name}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"0"))
        for name in (f"{tmp_path}/absolute", "../../up"):
            for suffix, content in (("png", image(1)), ("cls", b"1"), ("pyd", b"cos\nsystem\n"), ("pth", b"\x80\x04.")):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    table = read(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert table["key"].to_pylist() == ["link", "hard", "dev", f"{tmp_path}/absolute", "../../up"]
    assert table["problem"].to_pylist() == ["image is a link or device"] * 3 + [None] * 2
    assert table["image"].to_pylist() == [None] * 3 + [image(1)] * 2


def broken(tmp_path: Path, content: bytes, name: str = "a.tar") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.fixture
def sound(tmp_path) -> bytes:
    return write_tar(tmp_path / "sound.tar", [m for row in range(20) for m in sample(f"{row}", row % 2)]).read_bytes()


def test_a_tar_that_was_cut_off_is_named_wherever_it_was_cut(tmp_path, sound):
    end = max(at for at in range(0, len(sound), 512) if any(sound[at : at + 512])) + 512
    for length in [0, 1, 511, 512, 700, 1024, 1025, 5000, end - 512, end - 1, end, end + 512]:
        with pytest.raises(InputError, match=r"shard a\.tar cannot be read: .*Repair it, or move it"):
            inspect(broken(tmp_path, sound[:length]))
    assert inspect(broken(tmp_path, sound[: end + 1024])).num_samples == 20


def test_a_damaged_header_in_the_middle_is_not_the_end(tmp_path, sound):
    for at in (512 * 4, 512 * 8):
        assert sound[at : at + 1].isdigit()  # a header begins with a name
        content = bytearray(sound)
        content[at + 124] ^= 0xFF
        with pytest.raises(InputError, match=f"its header at byte {at} is damaged"):
            inspect(broken(tmp_path, bytes(content)))


def test_two_tars_one_after_the_other(tmp_path, sound):
    with pytest.raises(InputError, match="data follows its end"):
        inspect(broken(tmp_path, sound + sound))


def test_a_damaged_gzip(tmp_path, sound):
    packed = gzip.compress(sound)
    for content in (packed[:-20], packed[: len(packed) // 2], sound, b"", packed[:100] + b"\0" * 50 + packed[150:]):
        with pytest.raises(InputError, match=r"shard a\.tgz cannot be read"):
            inspect(broken(tmp_path, content, "a.tgz"))


@few
@given(st.data())
def test_any_damage_is_told_or_harmless(tmp_path_factory, data):
    members = [m for row in range(6) for m in sample(f"{row}", row % 2)]
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(write_tar(folder / "sound.tar", members).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    try:
        table = read(broken(folder, bytes(content)))
    except InputError as error:
        assert "a.tar" in str(error)
    else:
        assert table.num_rows >= 6  # a changed name tears a sample apart, and loses none


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_without_end(tmp_path, kind):
    # Each of these is small when it is packed, and would be large in memory or deep on the stack.
    endless, deep = tarfile.TarInfo("header"), tarfile.TarInfo("header")
    endless.type = deep.type = kind
    endless.size, deep.size = 2**32, 0
    for name, header in (("a.tar", endless.tobuf()), ("a.tar.gz", gzip.compress(endless.tobuf() + b"\0" * 2**22))):
        with pytest.raises(InputError, match="claims 4294967296 bytes"):
            inspect(broken(tmp_path, header, name))
    with pytest.raises(InputError, match="cannot be read"):
        inspect(broken(tmp_path, deep.tobuf() * 5000))


def test_members_that_claim_to_be_enormous_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset_shards.headers, "MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(webdataset_shards, "_MAX_TEXT_BYTES", 10)
    members = [("a.png", b"x" * 1001), ("a.cls", b"0"), ("b.png", image()), ("b.cls", b"1" * 11), *sample("c", 1)]
    assert read(write_tar(tmp_path / "a.tar", members))["problem"].to_pylist() == [
        "image file is too large",
        ".cls is a link, a device or too large",
        None,
    ]


def bomb(path: Path, num_images: int, num_bytes: int) -> Path:
    members = [(f"{row}.jpg", bytes(num_bytes)) for row in range(num_images)]
    members += [(f"x{row}.cls", b"0") for row in range(num_images)]
    return write_tar(path, members, "w:gz")


def peak_of(act: Callable[[], object]) -> int:
    """Bytes of Python objects at once, beyond those that are there."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_tar_that_unpacks_to_much_is_looked_at_in_little_memory(tmp_path):
    path = bomb(tmp_path / "a.tar.gz", 8, 30 * 2**20)
    assert path.stat().st_size < 2**20
    assert peak_of(lambda: inspect(path)) < 120 * 2**20


def test_a_small_tar_that_unpacks_to_much_is_not_read_as_a_batch(tmp_path, monkeypatch):
    path = bomb(tmp_path / "a.tar.gz", 8, 2**20)
    monkeypatch.setattr(webdataset_shards.headers, "MAX_BATCH_BYTES", 5 * 2**20)
    monkeypatch.setattr(webdataset_shards.headers, "BYTES_READ_AT_ONCE", 3 * 2**20)
    with pytest.raises(InputError, match=r"shard a\.tar\.gz: a batch of 6 images is .* Make them smaller"):
        read(path, 8)
    assert read(path, 5).num_rows == 16
    config = InputConfig(path=str(path))
    copied = list(sources.read_images(sources.find(config), 0, np.arange(8), config))
    assert [part.num_rows for part in copied] == [3, 3, 2]


def test_a_tar_that_changed_after_it_was_catalogued(tmp_path):
    path = write_tar(tmp_path / "a.tar", [m for row in range(9) for m in sample(f"{row}")])
    config = InputConfig(path=str(path))
    source = sources.find(config)
    write_tar(path, [m for row in range(5) for m in sample(f"{row}")])
    with pytest.raises(InputError, match=r"shard a\.tar is shorter than it was"):
        list(sources.read(source, shards.Piece(0, "a.tar", 0, 9), config, 4))


def test_a_tar_that_has_gone(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("a"))
    config = InputConfig(path=str(path))
    source = sources.find(config)
    path.unlink()
    with pytest.raises(InputError, match=r"shard a\.tar cannot be read"):
        sources.inspect(source, 0, config)
    with pytest.raises(FileNotFoundError):  # an object store that fails may be back when the run goes on
        list(sources.read(source, shards.Piece(0, "a.tar", 0, 1), config, 4))


# Stores that fail.


def on_a_failing_store(path: Path, failing) -> tuple[shards.Source, FailingStore]:
    store = FailingStore(failing)
    found = sources.find(InputConfig(path=str(path)))
    return dataclasses.replace(found, filesystem=pafs.PyFileSystem(store)), store


@pytest.fixture(params=["tar", "tar.gz"])
def of_ten(request, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0, 0))
    monkeypatch.setattr(tar_stream, "_REMOTE_BUFFER", 512)  # so that a sample takes several reads
    members = [member for number in range(10) for member in sample(f"{number}", number % 3, number)]
    return write_tar(tmp_path / f"a.{request.param}", members, "w:gz" if request.param == "tar.gz" else "w")


def test_a_store_that_fails_for_a_moment_costs_nothing(of_ten):
    config = InputConfig(path=str(of_ten))
    sound, counted = on_a_failing_store(of_ten, ())
    facts = sources.inspect(sound, 0, config)
    to_inspect = counted.num_calls
    piece = shards.Piece(0, sound.paths[0], 0, 10)
    expected = pa.concat_tables(sources.read(sound, piece, config, 3))
    to_read = counted.num_calls - to_inspect
    rows = np.array([1, 4, 8])
    chosen = pa.concat_tables(sources.read_images(sound, 0, rows, config))
    assert to_inspect > 3 and to_read > 3
    for failing in range(to_inspect):
        source, store = on_a_failing_store(of_ten, {failing})
        assert sources.inspect(source, 0, config) == facts
        assert store.num_calls > failing + 1
    for failing in range(to_read):
        for numbers in ({failing}, {failing, failing + 2}):
            source, _ = on_a_failing_store(of_ten, numbers)
            assert pa.concat_tables(sources.read(source, piece, config, 3)) == expected
            source, _ = on_a_failing_store(of_ten, numbers)
            assert pa.concat_tables(sources.read_images(source, 0, rows, config)) == chosen


@pytest.mark.parametrize("first", [0, 2])
def test_a_store_that_goes_on_failing_is_no_broken_tar(of_ten, first):
    config = InputConfig(path=str(of_ten))
    piece = shards.Piece(0, of_ten.name, 0, 10)
    for look in (
        lambda source: sources.inspect(source, 0, config),
        lambda source: list(sources.read(source, piece, config, 3)),
        lambda source: list(sources.read_images(source, 0, np.array([9]), config)),
    ):
        source, store = on_a_failing_store(of_ten, range(first, 1000))
        with pytest.raises(OSError, match="503 Slow Down"):
            look(source)
        assert store.num_calls == first + 3  # asked three times


def test_of_a_tar_that_became_shorter_no_image_is_left_out_in_silence(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample("1"))
    config = InputConfig(path=str(path))
    with pytest.raises(InputError, match=r"shard a\.tar is shorter than it was"):
        list(sources.read_images(sources.find(config), 0, np.array([0, 1]), config))


def test_a_label_as_long_as_a_book_is_none(tmp_path):
    # All labels of all shards are in memory at once.
    members = [(f"{number}.{kind}", text) for number in range(3) for kind, text in (("png", image()), ("cls", b"0"))]
    members += [
        ("8.png", image()),
        ("8.cls", b"x" * 1001),
        ("9.png", image()),
        ("9.json", b'{"label": "%s"}' % (b"y" * 1001)),
    ]
    members += [("A.png", image()), ("A.cls", b"z" * 1000)]
    path = write_tar(tmp_path / "a.tar", members)
    assert inspect(path).label_counts == {"0": 3, None: 2, "z" * 1000: 1}
    assert read(path)["problem"].to_pylist() == [None] * 3 + ["the label is longer than 1,000 characters"] * 2 + [None]
