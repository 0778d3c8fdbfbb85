"""The identity of a sample, and the check that every table passes between stages."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from razor_ray import schema

seeded = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.mark.parametrize(
    ("shard", "row", "expected"),
    [
        (0, 0, 0),
        (0, 2**24 + 1, 16_777_217),  # the first integer that float32 cannot hold
        (0, 2**32 - 1, 4_294_967_295),
        (1, 0, 4_294_967_296),
        (2, 2**31, 10_737_418_240),
        (2**21, 1, 9_007_199_254_740_993),  # 2^53 + 1, the first that float64 cannot hold
        (2**31 - 1, 2**32 - 1, 2**63 - 1),
    ],
)
def test_hand_worked_identities(shard, row, expected):
    ids = schema.sample_ids(shard, row, 1)
    assert ids.dtype == np.int64
    assert ids.tolist() == [expected]
    assert schema.shard_ids(ids).tolist() == [shard]
    assert schema.rows(ids).tolist() == [row]


@seeded
@given(st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 100), st.integers(0, 100))
def test_identities_come_apart_again(shard, first_row, num_rows):
    ids = schema.sample_ids(shard, first_row, num_rows)
    assert_array_equal(schema.shard_ids(ids), np.full(num_rows, shard))
    assert_array_equal(schema.rows(ids), np.arange(first_row, first_row + num_rows))
    assert (ids >= 0).all()


def test_shards_do_not_overlap():
    assert schema.sample_ids(6, 2**32 - 1, 1)[0] + 1 == schema.sample_ids(7, 0, 1)[0]


@pytest.mark.parametrize(("shard", "first", "num"), [(2**31, 0, 1), (-1, 0, 1), (0, 2**32, 1), (0, 2**32 - 1, 2)])
def test_identities_out_of_range(shard, first, num):
    with pytest.raises(AssertionError):
        schema.sample_ids(shard, first, num)


def test_the_columns_that_users_read_by_hand():
    """The contract of a run's folder: of what ARCHITECTURE and README promise no name and no type moves unseen."""
    f32, f64 = "float", "double"
    assert columns(schema.CATALOG)[:4] == [
        *("shard_id int32", "path string", "num_bytes int64", "fingerprint string"),
    ]
    assert columns(schema.scores(512)) == [
        *("sample_id int64", "key string", "label int32", f"loss {f32}", f"el2n {f32}", f"margin {f32}"),
        *(f"entropy {f32}", "correct bool", "predicted int32", "embedding fixed_size_list<item: halffloat>[512]"),
    ]
    assert columns(schema.QUARANTINE) == ["sample_id int64", "path string", "row int64", "reason string"]
    assert columns(schema.WEIGHTS) == [
        *("label int32", "class_name string", "num_samples int64", f"num_effective {f64}", f"class_weight {f64}"),
        "quota int64",
    ]
    assert columns(schema.SELECTION) == [
        *("sample_id int64", "key string", "label int32", f"hardness {f32}", "cluster int32", f"ispl_weight {f32}"),
        *("keep bool", "rank int64", "reason dictionary<values=string, indices=int8, ordered=0>"),
    ]
    assert columns(schema.SUBSET) == [
        *("sample_id int64", "key string", "image struct<bytes: binary, path: string>", "label int64"),
        f"weight {f32}",
    ]


def columns(table: pa.Schema) -> list[str]:
    return [f"{field.name} {field.type}" for field in table]


def score_table(size: int = 3, num_rows: int = 4) -> pa.Table:
    values = np.arange(size * num_rows, dtype=np.float16) / 7
    arrays = [
        pa.array(schema.sample_ids(2**31 - 1, 2**24, num_rows)),
        pa.array([f"k{row}" for row in range(num_rows)]),
        pa.array(range(num_rows), pa.int32()),
        *[pa.array(np.arange(num_rows, dtype=np.float32) / 3) for _ in schema.SCORE_NAMES],
        pa.array([True] * num_rows),
        pa.array(range(num_rows), pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(values), size),
    ]
    return pa.table(arrays, schema=schema.scores(size))


@pytest.mark.parametrize("size", [1, 3, 512])
def test_scores_survive_parquet(size, tmp_path):
    table = score_table(size)
    pq.write_table(table, tmp_path / "scores.parquet", compression="zstd")
    again = schema.check(pq.read_table(tmp_path / "scores.parquet"), schema.scores(size), "scores")
    assert again.equals(table)
    assert again.schema.field("embedding").type == pa.list_(pa.float16(), size)
    assert schema.shard_ids(again["sample_id"].to_numpy()).tolist() == [2**31 - 1] * 4
    assert schema.rows(again["sample_id"].to_numpy()).tolist() == [2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3]


@pytest.mark.parametrize(
    "expected", [schema.CATALOG, schema.QUARANTINE, schema.WEIGHTS, schema.SELECTION, schema.SUBSET, schema.scores(8)]
)
def test_every_schema_survives_parquet_without_rows(expected, tmp_path):
    pq.write_table(expected.empty_table(), tmp_path / "t.parquet")
    schema.check(pq.read_table(tmp_path / "t.parquet"), expected, "t")


def test_embedding_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"scores: expected column .*embedding.*\[4\].* got .*embedding.*\[3\]"):
        schema.check(score_table(3), schema.scores(4), "scores")


def test_scores_do_not_share_a_schema():
    assert not schema.scores(3).equals(schema.scores(4))
    assert schema.scores(3).names == [
        *("sample_id", "key", "label", "loss", "el2n", "margin", "entropy", "correct", "predicted", "embedding")
    ]


def test_check_gives_the_table_back():
    table = score_table()
    assert schema.check(table, schema.scores(3), "scores") is table


def test_check_forgives_metadata_only():
    table = score_table().replace_schema_metadata({b"a": b"b"})
    assert schema.check(table, schema.scores(3), "scores") is table


def changed_type(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, pa.field(name, kind, nullable=False), table[name].cast(kind))


def test_check_names_the_type():
    for name, kind in (("sample_id", pa.float64()), ("sample_id", pa.uint64()), ("label", pa.int64())):
        table = score_table().slice(0, 1)
        if pa.types.is_floating(kind):
            table = table.set_column(0, "sample_id", pa.array([0], pa.int64()))
        with pytest.raises(ValueError, match=rf"^scores: expected column .*{name}.* got .*{name}: {kind}"):
            schema.check(changed_type(table, name, kind), schema.scores(3), "scores")


def test_check_names_order_and_missing_columns():
    table = score_table()
    names = table.column_names
    swapped = table.select([names[1], names[0], *names[2:]])
    with pytest.raises(ValueError, match=r"expected column .*sample_id.* got .*key"):
        schema.check(swapped, schema.scores(3), "scores")
    with pytest.raises(ValueError, match=r"expected columns .*'embedding'\], got .*'predicted'\]"):
        schema.check(table.select(names[:-1]), schema.scores(3), "scores")
    with pytest.raises(ValueError, match=r"expected columns .* got .*'extra'"):
        schema.check(table.append_column("extra", pa.array(range(4))), schema.scores(3), "scores")
    with pytest.raises(ValueError, match=r"expected column .*loss"):
        schema.check(table.rename_columns([name.replace("loss", "los") for name in names]), schema.scores(3), "scores")


def test_check_names_nulls():
    table = score_table()
    holes = pa.chunked_array([pa.array([1, None, None, 2], pa.int32())])
    table = table.set_column(2, pa.field("label", pa.int32(), nullable=False), holes)
    with pytest.raises(ValueError, match="scores: column label holds 2 nulls"):
        schema.check(table, schema.scores(3), "scores")


def test_check_refuses_a_column_that_may_be_null():
    table = score_table()
    table = table.set_column(2, pa.field("label", pa.int32(), nullable=True), table["label"])
    with pytest.raises(ValueError, match=r"expected column .*label.*not null.* got .*label"):
        schema.check(table, schema.scores(3), "scores")


def test_selection_keeps_its_dictionary(tmp_path):
    reasons = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), ["hard", "cluster"])
    arrays = {
        "sample_id": pa.array(schema.sample_ids(1, 0, 2)),
        "key": pa.array(["a", "b"]),
        "label": pa.array([0, 1], pa.int32()),
        "hardness": pa.array([0.5, 0.25], pa.float32()),
        "cluster": pa.array([-1, 3], pa.int32()),
        "ispl_weight": pa.array([1, 2], pa.float32()),
        "keep": pa.array([True, False]),
        "rank": pa.array([0, 1], pa.int64()),
        "reason": reasons,
    }
    table = pa.table([arrays[name] for name in schema.SELECTION.names], schema=schema.SELECTION)
    pq.write_table(table, tmp_path / "t.parquet")
    again = schema.check(pq.read_table(tmp_path / "t.parquet"), schema.SELECTION, "selection")
    assert again["reason"].to_pylist() == ["hard", "cluster"]
