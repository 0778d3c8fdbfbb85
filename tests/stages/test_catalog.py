"""The catalog: what a later attempt finds changed, and what all shards say together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from razor_ray import sources
from razor_ray.config import InputConfig
from razor_ray.labels import hugging_face_metadata
from razor_ray.run_store import RunStore
from razor_ray.stages import catalog as catalogs
from tests.conftest import png, write_folders, write_shards, write_tar, write_tars


def assemble(config: InputConfig, like: catalogs.Catalog | None = None) -> catalogs.Catalog:
    """What `build` makes, without its tasks."""
    source = sources.find(config)
    found = catalogs._Found()
    for shard in reversed(range(len(source.paths))):  # in whatever order they come
        found.add(shard, sources.inspect(source, shard, config))
    return catalogs._assemble(source, config, found, like)


def test_what_shards_say_is_not_kept_for_each_class_of_each():
    found = catalogs._Found()
    for shard in range(3):
        names = tuple(f"class {label}" for label in range(5))  # as they come from a task: equal, and others
        counts = dict.fromkeys(range(shard, 5), shard)
        found.add(shard, sources.ShardFacts(10, "fingerprint", "integer", counts, names, (), (10,)))
    assert found.counts == {1: 1, 2: 3, 3: 3, 4: 3} | {0: 0}
    first, *others = found.facts()
    assert all(fact.class_names is first.class_names and not fact.label_counts for fact in (first, *others))


def test_a_file_that_moved_is_another_input(tmp_path, digits):
    folder = write_folders(digits.slice(0, 40), tmp_path / "in")
    config, store = InputConfig(path=str(folder)), RunStore(str(tmp_path / "run"))
    catalogs.write(assemble(config), store)
    assert catalogs.read(config, store).num_samples == 40
    moved = sorted((folder / "3").iterdir())[0]
    moved.rename(folder / "7" / moved.name)  # as many files, as large, and the first is the first
    with pytest.raises(sources.InputError, match="are not those that .* was begun with"):
        catalogs.read(config, store)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_file_of_the_same_size_with_other_labels_is_another_input(tmp_path, digits, form):
    """A run that goes on would else keep the old labels of what it has scored, and take the new ones of the rest."""

    def write(labels: list[int]) -> Path:
        table = digits.slice(0, 40).set_column(1, "label", pa.array(labels))
        if form == "webdataset":
            return write_tars(table, tmp_path / "in", 2)
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
        pq.write_table(table, folder / "a.parquet", **options)
        return folder

    labels = [row % 10 for row in range(40)]
    config, store = InputConfig(path=str(write(labels))), RunStore(str(tmp_path / "run"))
    catalogs.write(assemble(config), store)
    sizes = sources.find(config).sizes
    write(labels)
    assert catalogs.read(config, store).num_samples == 40  # written again, and the same
    write([*labels[:38], 9, 8])
    assert sources.find(config).sizes == sizes
    with pytest.raises(sources.InputError, match="are not those that .* was begun with"):
        catalogs.read(config, store)


def test_pieces_of_large_images_are_of_fewer_rows(tmp_path, digits, monkeypatch):
    """What is in memory at once is bounded, down to one batch. Of tars that is a batch, whatever the piece."""
    rows = {"max_rows": 1000, "batch_size": 32}

    def cut(path: Path) -> list[int]:
        return [piece.num_rows for piece in catalogs.pieces(assemble(InputConfig(path=str(path))), **rows)]

    path = tmp_path / "a.parquet"
    pq.write_table(digits.slice(0, 200), path)
    assert cut(path) == [200]
    monkeypatch.setattr(catalogs, "_PIECE_BYTES", 110 * path.stat().st_size // 200)
    assert cut(path) == [96, 96, 8]
    monkeypatch.setattr(catalogs, "_PIECE_BYTES", 1)
    assert cut(path) == [32] * 6 + [8]
    assert cut(write_tars(digits.slice(0, 200), tmp_path / "tars", 1)) == [200]


def tar(folder: Path, number: int, labels: list[str]) -> None:
    members = []
    for row, label in enumerate(labels):
        members += [(f"{number}-{row}.cls", label.encode()), (f"{number}-{row}.png", png(np.zeros((8, 8), np.uint8)))]
    write_tar(folder / f"{number}.tar", members)


def test_whether_labels_are_integers_all_tars_tell_together(tmp_path):
    # By itself the second would hold strings: one poisoned small tar must not have the whole input refused.
    tar(tmp_path, 0, ["0", "3", "1", "3"])
    tar(tmp_path, 1, ["3", "oops"])
    found = assemble(InputConfig(path=str(tmp_path)))
    assert (found.label_kind, found.class_names) == ("integer", ("0", "1", "2", "3"))
    assert found.class_sizes == (1, 1, 0, 3)
    tar(tmp_path, 2, ["cat", "cat", "dog", "dog"])
    assert assemble(InputConfig(path=str(tmp_path))).label_kind == "string"


def test_integers_in_some_parquet_shards_and_strings_in_others(tmp_path, digits):
    write_shards(digits, tmp_path, 1)
    texts = digits.set_column(1, "label", digits["label"].cast("string"))
    write_shards(texts, tmp_path / "b", 1)
    with pytest.raises(sources.InputError, match=r"'label' holds integers in some shards .*see train.* and b/train"):
        assemble(InputConfig(path=str(tmp_path)))


def test_a_dozen_integer_classes_are_the_same_in_each_format(tmp_path, digits):
    labels = pa.array([row % 12 for row in range(36)], pa.int64())
    table = digits.slice(0, 36).set_column(1, "label", labels)
    write_shards(table, tmp_path / "parquet", 1)
    write_tars(table, tmp_path / "tars", 1)
    write_folders(table, tmp_path / "folders")
    found = [assemble(InputConfig(path=str(tmp_path / name))) for name in ("parquet", "tars", "folders")]
    assert [catalog.class_names for catalog in found] == [tuple(str(label) for label in range(12))] * 3


@pytest.mark.usefixtures("ray_session")
def test_shards_that_cannot_be_used_are_told_of_together(tmp_path, digits):
    write_shards(digits, tmp_path, 40)
    names = [f"train-{shard:05d}.parquet" for shard in range(40)]
    config = InputConfig(path=str(tmp_path))
    assert catalogs.build(config).num_samples == 400
    for name in (names[3], names[30]):
        (tmp_path / name).write_bytes(b"PAR1 this is not Parquet")
    other = pq.read_table(tmp_path / names[20]).rename_columns(["image", "class", "name"])
    pq.write_table(other, tmp_path / names[20])
    with pytest.raises(sources.InputError) as refused:
        catalogs.build(config)
    broken, without = str(refused.value).splitlines()
    assert broken.startswith(f"shard {names[3]} cannot be read: ")
    assert broken.endswith(f" Repair it, or move it out of the input. Likewise {names[30]}.")
    assert without.startswith(f"shard {names[20]} has no column 'label' (it has: image, class, name).")


@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_of_all_shards_is_told_once(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(catalogs, "_SHARDS_PER_TASK", 2)
    write_shards(digits, tmp_path, 40)
    with pytest.raises(sources.InputError) as refused:
        catalogs.build(InputConfig(path=str(tmp_path), label_column="class"))
    told, end = str(refused.value).splitlines()
    assert told.count("has no column 'class'") == 1
    assert told.count(".parquet") == 10
    assert end == "That is of 10 shards of 40: no others were looked at."
    for shard in range(12, 40):
        (tmp_path / f"train-{shard:05d}.parquet").unlink()
    monkeypatch.setattr(catalogs, "_SHARDS_PER_TASK", 12)
    with pytest.raises(sources.InputError) as refused:
        catalogs.build(InputConfig(path=str(tmp_path), label_column="class"))
    assert str(refused.value).count(".parquet") == 12
    assert "looked at" not in str(refused.value)


def test_a_label_for_each_sample_is_none(tmp_path, digits):
    few = digits.slice(0, 40)
    each = few.set_column(1, "label", few["name"])
    config = InputConfig(path=str(write_shards(each, tmp_path / "in", 1)))
    with pytest.raises(sources.InputError, match="each of the 40 samples has a label of its own: 'label' seems to be"):
        assemble(config)
    # Where something says that these are the classes, one of each is few, and no mistake.
    names = tuple(few["name"].to_pylist())
    named = InputConfig(path=config.path, class_names=names)
    assert assemble(named).class_sizes == (1,) * 40
    of_names = assemble(named)
    assert assemble(config, of_names).class_sizes == (1,) * 40
    metadata = each.replace_schema_metadata(hugging_face_metadata(names))
    assert assemble(InputConfig(path=str(write_shards(metadata, tmp_path / "subset", 1)))).class_sizes == (1,) * 40
    assert assemble(InputConfig(path=str(write_folders(each, tmp_path / "folders")))).class_sizes == (1,) * 40
    write_shards(pa.concat_tables([each, each.slice(0, 1)]), tmp_path / "twice", 1)
    assert assemble(InputConfig(path=str(tmp_path / "twice"))).num_samples == 41


def test_names_that_look_like_numbers_are_names_of_held_out_images_too(tmp_path):
    names = ("00144764", "00144765")
    for number, folder in enumerate(("in", "test")):
        (tmp_path / folder).mkdir()
        tar(tmp_path / folder, number, [*names, *names])
    with_names = InputConfig(path=str(tmp_path / "in"), class_names=names)
    catalog = assemble(with_names)
    assert (catalog.label_kind, catalog.class_sizes) == ("string", (2, 2))
    held_out = assemble(InputConfig(path=str(tmp_path / "test")), catalog)
    assert (held_out.label_kind, held_out.class_sizes) == ("string", (2, 2))
    # One that is none of them does not turn them all into numbers.
    tar(tmp_path / "in", 2, ["144766"])
    assert assemble(with_names).unknown_labels == {"144766": 1}


def test_labels_that_are_counted_from_one_are_refused(tmp_path, digits):
    from_one = digits.set_column(1, "label", pa.array([row % 10 + 1 for row in range(len(digits))]))
    path = str(write_shards(from_one, tmp_path / "in", 2))
    names = tuple("abcdefghij")
    with pytest.raises(sources.InputError, match="go from 1 to 10, but 10 classes are named, which are 0 to 9: each"):
        assemble(InputConfig(path=path, class_names=names))
    assert assemble(InputConfig(path=path, class_names=("none", *names))).class_sizes == (0,) + (40,) * 10
    # Without names nothing says that there are ten.
    assert len(assemble(InputConfig(path=path)).class_names) == 11
    # Held-out images likewise: each would be taken for one of the next class.
    like = assemble(InputConfig(path=str(write_shards(digits, tmp_path / "like", 1)), class_names=names))
    with pytest.raises(sources.InputError, match="go from 1 to 10"):
        assemble(InputConfig(path=path), like)
    # A class that is empty, and one label too high.
    few = digits.set_column(1, "label", pa.array([10, *[5] * 399]))
    few_path = str(write_shards(few, tmp_path / "few", 1))
    assert assemble(InputConfig(path=few_path, class_names=names)).unknown_labels == {"10": 1}
    # A class that happens to be empty, and labels beyond all of them, are another matter.
    beyond = digits.set_column(1, "label", pa.array([1, 2, 3, 40] * 100))
    path = str(write_shards(beyond, tmp_path / "beyond", 2))
    assert assemble(InputConfig(path=path, class_names=names)).unknown_labels == {"40": 100}


def test_labels_of_held_out_images_that_no_class_has_are_known(tmp_path, digits):
    write_folders(digits.slice(0, 40), tmp_path / "in")
    write_folders(digits.slice(40, 40), tmp_path / "test")
    (tmp_path / "test" / "3").rename(tmp_path / "test" / "drei")
    config = InputConfig(path=str(tmp_path / "in"))
    catalog = assemble(config)
    assert catalog.unknown_labels == {}
    held_out = InputConfig(path=str(tmp_path / "test"))
    found = assemble(held_out, catalog)
    threes = digits["label"].to_pylist()[40:80].count(3)
    assert threes > 0
    write_shards(digits.slice(0, 20).set_column(1, "label", pa.array([0, 1, -1, 12] * 5)), tmp_path / "ints", 1)
    integers = InputConfig(path=str(tmp_path / "ints"), class_names=("a", "b"))
    assert assemble(integers).unknown_labels == {"12": 5}
    assert found.unknown_labels == {"drei": threes}
