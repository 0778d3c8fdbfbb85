"""Reading ahead, and what is said of a sample that cannot be used."""

import threading

import pyarrow as pa
import pytest

from razor_ray import schema, sources
from razor_ray.config import InputConfig
from razor_ray.stages import ingest
from tests.conftest import write_folders, write_shards, write_tars
from tests.stages.test_catalog import assemble


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (lambda table, path: write_shards(table, path, 2), "row 97 of train-00001.parquet"),
        (lambda table, path: write_tars(table, path, 2), "train-00001.tar:digit-0297"),
        (write_folders, "{label}/digit-0297.png"),
    ],
)
def test_where_a_sample_is_and_what_is_wrong_with_it(tmp_path, digits, write, place):
    encoded = digits["image"].to_pylist()
    encoded[297] = b"no image"
    table = digits.set_column(0, "image", pa.array(encoded, pa.binary()))
    write(table, tmp_path)
    catalog = assemble(InputConfig(path=str(tmp_path)))
    sizes = catalog.table["num_samples"].to_pylist()
    label = digits["label"][297].as_py()
    if catalog.source.format == "folders":
        files = sorted(f"{label}/digit-{row:04d}" for row, of in enumerate(digits["label"].to_pylist()) if of == label)
        before = sum(of < label for of in digits["label"].to_pylist())
        place_in_input = before + files.index(f"{label}/digit-0297")
    else:
        place_in_input = 297
    shard = 0
    while place_in_input >= sizes[shard]:
        place_in_input -= sizes[shard]
        shard += 1
    sample_id = int(schema.sample_ids(shard, place_in_input, 1)[0])
    assert ingest.why_unusable(catalog, sample_id, 8) == f"{place.format(label=label)}: not an image"


def test_an_id_that_is_no_utf8_costs_its_sample_and_no_other(tmp_path, digits):
    names = pa.array([b"tea", b"caf\xe9", None, b"milk"], pa.binary()).view(pa.string())
    write_shards(digits.slice(0, 4).set_column(2, "name", names), tmp_path, 1)
    catalog = assemble(InputConfig(path=str(tmp_path), id_column="name"))
    piece = sources.Piece(0, "train-00000.parquet", 0, 4)
    (batch,) = ingest.decoded_batches(catalog, piece, 8, 4)
    assert batch.reasons == [None, "id is not UTF-8", "id is null", None]
    assert batch.key == ["tea", "train-00000.parquet:1", "", "milk"]
    assert ingest.why_unusable(catalog, 1, 8) == "row 1 of train-00000.parquet: id is not UTF-8"


def test_items_are_asked_for_before_they_are_needed_and_come_in_order():
    asked = []
    far_ahead = threading.Event()

    def items():
        for number in range(10):
            asked.append(number)
            if number == 3:
                far_ahead.set()
            yield number

    ahead = ingest._ahead(items(), 4)
    assert next(ahead) == 0
    assert far_ahead.wait(30)  # the first three to come after it, without being asked for
    assert list(ahead) == list(range(1, 10))
    assert asked == list(range(10))


def test_what_is_raised_comes_in_its_turn():
    def items():
        yield "a"
        yield "b"
        raise OSError("503 Slow Down")

    ahead = ingest._ahead(items(), 4)
    assert [next(ahead), next(ahead)] == ["a", "b"]
    with pytest.raises(OSError, match="503"):
        next(ahead)


def test_whoever_stops_early_leaves_no_thread():
    before = threading.active_count()
    ahead = ingest._ahead(iter(range(1000)), 4)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before
