"""Writing the subset: what is kept is written with its bytes, or not at all."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from razor_ray import schema, sources
from razor_ray.config import InputConfig
from razor_ray.stages import subset
from razor_ray.stages.catalog import Catalog
from tests.conftest import write_shards


@pytest.fixture
def catalog(tmp_path, digits) -> Catalog:
    config = InputConfig(path=str(write_shards(digits, tmp_path / "in", 1)))
    table = schema.CATALOG.empty_table()
    return Catalog(sources.find(config), config, table, tuple("0123456789"), "integer", 8, (40,) * 10)


def kept(digits: pa.Table, rows: list[int]) -> pa.Table:
    chosen = digits.take(rows)
    label = chosen["label"].cast(pa.int32())
    weight = pa.array(np.ones(len(rows), np.float32))
    columns = {"sample_id": pa.array(rows, pa.int64()), "key": chosen["name"], "label": label, "ispl_weight": weight}
    return pa.table(columns)


def write(catalog: Catalog, path: str, rows: pa.Table) -> None:
    subset._write_shard(catalog, pafs.LocalFileSystem(), path, 0, rows, 1.0)


def test_kept_images_are_written_byte_for_byte(tmp_path, digits, catalog):
    rows = [3, 7, 399]
    write(catalog, f"{tmp_path}/part.parquet", kept(digits, rows))
    found = pq.read_table(tmp_path / "part.parquet")
    assert [image["bytes"] for image in found["image"].to_pylist()] == digits["image"].take(rows).to_pylist()


def test_row_groups_hold_a_hundred_rows_at_the_most(tmp_path, digits, catalog):
    # As viewers and shuffled reading want them, whatever the input's own are: here it is one of 400.
    write_shards(digits, tmp_path / "in", 1, row_group_size=400)
    write(catalog, f"{tmp_path}/part.parquet", kept(digits, list(range(350))))
    metadata = pq.read_metadata(tmp_path / "part.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [100, 100, 100, 50]


def test_an_image_without_bytes_is_not_written_in_silence(tmp_path, digits, catalog, monkeypatch):
    read_images = sources.read_images

    def lossy(*arguments):
        for table in read_images(*arguments):
            images = [None, *table["image"].to_pylist()[1:]]
            yield table.set_column(0, "image", pa.array(images, pa.binary()))

    monkeypatch.setattr(sources, "read_images", lossy)
    with pytest.raises(sources.InputError, match=r"1 images that are kept of train-00000\.parquet are not there"):
        write(catalog, f"{tmp_path}/part.parquet", kept(digits, [3, 7, 399]))


def written_again(tmp_path, digits, monkeypatch, written: frozenset[str]) -> tuple[list[dict], list[int]]:
    """What `_write_shards` tells of three shards with 2, 0 and 3 kept samples, and which of them it writes."""
    config = InputConfig(path=str(write_shards(digits, tmp_path / "in", 3)))
    table = schema.CATALOG.empty_table()
    catalog = Catalog(sources.find(config), config, table, tuple("0123456789"), "integer", 8, (40,) * 10)
    rows = kept(digits, [9, 3, 5, 1, 7])
    sample_id = pa.array(
        [2 << schema.ROW_BITS | 4, 2 << schema.ROW_BITS | 1, 6, 3, 2 << schema.ROW_BITS | 9], pa.int64()
    )
    rows = rows.set_column(0, "sample_id", sample_id)
    (tmp_path / "out").mkdir(exist_ok=True)
    write_shard, shards = subset._write_shard, []

    def spy(catalog, filesystem, path, shard, *others):
        shards.append(shard)
        write_shard(catalog, filesystem, path, shard, *others)

    monkeypatch.setattr(subset, "_write_shard", spy)
    parts = (rows.slice(0, 3), rows.slice(3))
    filesystem = pafs.LocalFileSystem()
    told = list(subset._write_shards(catalog, filesystem, str(tmp_path / "out"), 1.0, written, *parts))
    return told, shards


def test_each_shard_is_told_of_and_those_that_are_there_are_not_written_again(tmp_path, digits, monkeypatch):
    told, shards = written_again(tmp_path, digits, monkeypatch, frozenset())
    names = [schema.shard_name(0), schema.shard_name(2)]
    sizes = [(tmp_path / "out" / name).stat().st_size for name in names]
    expected = [{"num_rows": 2, "num_bytes": sizes[0]}, {"num_rows": 3, "num_bytes": sizes[1]}]
    assert told == [row | {"is_earlier": False} for row in expected]
    assert shards == [0, 2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    found = pq.read_table(tmp_path / "out" / names[1])
    assert [identity & 0xFF for identity in found["sample_id"].to_pylist()] == [1, 4, 9]
    again, shards = written_again(tmp_path, digits, monkeypatch, frozenset(names[:1]))
    assert again == [expected[0] | {"is_earlier": True}, expected[1] | {"is_earlier": False}]
    assert shards == [2]
    # Nor is a file believed that holds other rows than it should, or is none.
    pq.write_table(pq.read_table(tmp_path / "out" / names[0]).slice(1), tmp_path / "out" / names[0])
    (tmp_path / "out" / names[1]).write_bytes(b"PAR1")
    again, shards = written_again(tmp_path, digits, monkeypatch, frozenset(names))
    assert again == told
    assert shards == [0, 2]


def test_a_file_that_was_not_written_to_its_end_is_none(tmp_path, digits, catalog, monkeypatch):
    def broken(*arguments):
        yield from read_images(catalog.source, 0, np.array([3]), catalog.input)
        raise OSError("the store is gone")

    read_images = sources.read_images
    monkeypatch.setattr(sources, "read_images", broken)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="the store is gone"):
        write(catalog, f"{tmp_path}/out/part.parquet", kept(digits, [3, 7]))
    assert not list((tmp_path / "out").iterdir())
