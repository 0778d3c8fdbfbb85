"""The report of a tiny run that is built by hand: what it says, that it adds up, and that it is safe to open."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from razor_ray import config as configuration
from razor_ray import manifest, report, sampling, schema, sources, survey
from razor_ray.config import InputConfig, PruneConfig
from razor_ray.run_store import CONFIG, RunStore

SCRIPT = "<script>alert(1)</script>"
CLASS_NAMES = [SCRIPT, 'stop & "go"', "cat"]

# (shard, row, label, hardness, reason): 12 scored samples, half of them kept; (0, 6) and (1, 3) are quarantined.
SAMPLES = [
    (0, 0, 0, 0.05, "over_quota"),
    (0, 1, 0, 0.10, "cluster"),
    (0, 2, 0, 0.15, "over_quota"),
    (0, 3, 0, 0.60, "hard"),
    (0, 4, 0, 0.70, "hard"),
    (0, 5, 0, 1.30, "noise"),
    (1, 0, 1, 0.20, "cluster"),
    (1, 1, 1, 0.25, "over_quota"),
    (1, 2, 1, 0.90, "hard"),
    (1, 4, 1, 1.20, "noise"),
    (1, 5, 2, 0.30, "class_floor"),
    (1, 6, 2, 0.35, "over_quota"),
]
PREDICTED = {(0, 5): 2, (1, 4): 0}
"""What the proxy takes samples for, where that is not their label."""
KEPT = ("hard", "cluster", "class_floor")
QUARANTINED = [(0, 6, "not an image"), (1, 3, f"label {SCRIPT} is unknown")]


class Page(HTMLParser):
    """A page taken apart; fails on tags that do not balance."""

    VOID = ("meta", "img")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, {key: value or "" for key, value in attributes}))
        if name not in self.VOID:
            self.open.append(name)
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open and self.open[-1] == name, f"</{name}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """The one table row that begins so."""
        found = [row for row in self.rows if row[0] == first]
        assert len(found) == 1, f"{len(found)} rows begin with {first!r}"
        return found[0]

    def all_text(self) -> str:
        return "".join(text for _, text in self.texts)


def image(colour: int, size: int = 8, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), (colour, 0, 255 - colour)).save(stream, kind)
    return stream.getvalue()


def noise_image(size: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def sample_id(shard: int, row: int) -> int:
    return shard << 32 | row


def commit(store: RunStore, stage: str, facts: dict[str, Any], **tables: pa.Table) -> None:
    folder = store.begin(stage)
    for name, table in tables.items():
        pq.write_table(table, f"{folder}/{name.replace('_', '-')}.parquet", row_group_size=2)
    store.commit(stage, facts)


def selection_table(samples: list[tuple[int, int, int, float, str]]) -> pa.Table:
    shard, row, label, hardness, reason = (list(column) for column in zip(*samples, strict=True))
    columns = {
        "sample_id": [sample_id(*place) for place in zip(shard, row, strict=True)],
        "key": [f"<b>{s}</b>:{r}" for s, r in zip(shard, row, strict=True)],
        "label": label,
        "hardness": hardness,
        "cluster": [0] * len(samples),
        "ispl_weight": [1.0] * len(samples),
        "keep": [name in KEPT for name in reason],
        "rank": list(range(1, len(samples) + 1)),
        "reason": reason,
    }
    arrays = [pa.array(columns[field.name], field.type) for field in schema.SELECTION]
    return pa.table(arrays, schema=schema.SELECTION)


def subset_table(samples: list[tuple[int, int, int, float, str]]) -> pa.Table:
    rows = [
        {
            "sample_id": sample_id(shard, row),
            "key": f"{shard}:{row}",
            "image": {"bytes": image(40 * row), "path": None},
            "label": label,
            "weight": 1.0,
        }
        for shard, row, label, _, reason in samples
        if reason in KEPT
    ]
    return pa.Table.from_pylist(rows, schema=schema.SUBSET)


def quarantine_table(shard: int, rows: list[tuple[int, str]]) -> pa.Table:
    path = f'<img src="x">{shard}.parquet'
    return pa.Table.from_pylist(
        [{"sample_id": sample_id(shard, r), "path": path, "row": r, "reason": why} for r, why in rows],
        schema=schema.QUARANTINE,
    )


def write_input(folder: Path, samples: list[tuple[int, int, int, float, str]]) -> None:
    """What the run is said to have scored: as many rows as there are, whose images tell their row."""
    path = Path(f"{folder}-input")
    path.mkdir(exist_ok=True)
    for shard in {sample[0] for sample in samples}:
        rows = range(1 + max(row for s, row, *_ in samples if s == shard))
        table = pa.table({"image": [image(40 * row % 256) for row in rows], "label": [0] * len(rows)})
        pq.write_table(table, path / f"{shard}.parquet", row_group_size=2)


def make_run(
    folder: Path,
    samples: list[tuple[int, int, int, float, str]] = SAMPLES,
    quarantined: list[tuple[int, int, str]] = QUARANTINED,
    class_names: list[str] = CLASS_NAMES,
    files: int = 2,
) -> tuple[RunStore, dict[str, Any]]:
    """A finished run's folder, by hand, and its manifest as razor_ray writes it."""
    store = RunStore(str(folder))
    config = PruneConfig(input=InputConfig(path=f"data/{SCRIPT}/train"), output=str(folder), keep_fraction=0.5)
    store.write_json(CONFIG, configuration.to_dict(config))
    num_samples = Counter(label for _, _, label, _, _ in samples)
    kept = Counter(label for _, _, label, _, reason in samples if reason in KEPT)
    labels = sorted(num_samples)
    weights = {
        "label": labels,
        "class_name": [class_names[label] for label in labels],
        "num_samples": [num_samples[label] for label in labels],
        "num_effective": [1.0] * len(labels),
        "class_weight": [0.25 + label for label in labels],
        "quota": [kept[label] for label in labels],
    }
    shards = sorted({sample[0] for sample in samples})
    input_shards = [
        {"shard_id": s, "path": f"{s}.parquet", "num_bytes": 1, "fingerprint": "f", "num_samples": 7} for s in shards
    ]
    num_input = len(samples) + len(quarantined)
    catalog = pa.Table.from_pylist(input_shards, schema=schema.CATALOG)
    sizes = [num_samples[label] for label in range(len(class_names))]
    facts = {"num_shards": len(shards), "num_samples": num_input, "fingerprint": "aabb"}
    facts |= {"class_names": [*class_names, "lost <b>"], "class_sizes": [*sizes, 2]}
    commit(store, "catalog", facts, catalog=catalog)
    proxy = {
        "arch": "resnet9",
        "image_size": 32,
        "trained": True,
        "weights_sha256": "0123456789abcdef",
        "metrics": {"epoch": 4},
    }
    store.seal("proxy", proxy)
    predicted = {
        "sample_id": [sample_id(s, r) for s, r, *_ in samples],
        "predicted": pa.array([PREDICTED.get((s, r), label) for s, r, label, *_ in samples], pa.int32()),
    }
    table = pa.table(predicted).sort_by("sample_id")
    firsts = [(shard, min(r for s, r, *_ in samples if s == shard)) for shard in sorted({s for s, *_ in samples})]
    firsts.insert(1, (firsts[0][0], 4))  # a shard in two pieces
    begins = np.searchsorted(table["sample_id"], [sample_id(*first) for first in firsts]).tolist()
    parts = {
        f"{schema.piece_name(*first)}-0123": table.slice(begin, end - begin)
        for first, begin, end in zip(firsts, begins, [*begins[1:], len(table)], strict=True)
    }
    commit(store, "scores", {"num_samples": len(samples), "hardness": "el2n"}, **parts)
    store.write_json("scores/.cost.json", {"seconds": 12.5})
    write_input(folder, samples)
    ispl = {"scheme": "linear", "threshold": 2.5, "second_threshold": 1.25, "diversity_step": 2.5}
    facts = {
        "budget": kept.total(),
        "num_samples": len(samples),
        "beta": 0.75,
        "contradicted_fraction": 0.25,
        "ispl": ispl,
    }
    commit(store, "weights", facts, weights=pa.table(weights, schema=schema.WEIGHTS))
    reasons = Counter(why for _, _, why in quarantined)
    bad = {
        f"part_{shard}": quarantine_table(shard, [(row, why) for s, row, why in quarantined if s == shard])
        for shard in sorted({shard for shard, _, _ in quarantined})
    }
    commit(store, "quarantine", {"num_samples": len(quarantined), "reasons": dict(reasons)}, **bad)
    cuts = np.linspace(0, len(samples), files + 1).astype(int)
    parts = {f"part_{i:05d}": selection_table(samples[cuts[i] : cuts[i + 1]]) for i in range(files)}
    facts = {
        "num_kept": kept.total(),
        "reasons": dict(Counter(sample[-1] for sample in samples)),
        "kept_by_class": {str(label): kept[label] for label in labels},
        "window": {"focus": 0.25, "sharpness": 1.4},
        "notes": ["the proxy contradicts 25.0% of the labels: what it finds hard says little"],
    }
    commit(store, "selection", facts, **parts)
    tables = {f"part_{s:06d}": subset_table(sorted(sample for sample in samples if sample[0] == s)) for s in shards}
    commit(store, "subset", {"num_samples": kept.total(), "num_bytes": 1}, **tables)
    return store, manifest.write(store, config, store.read("weights"))


def written(store: RunStore, facts: dict[str, Any]) -> str:
    given = InputConfig(path=f"{store.root}-input")
    report.write(store, facts, sources.find(given), given)
    return Path(store.path("report.html")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(*make_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


# --- what the page says -----------------------------------------------------------------------------------------------


def test_counts_add_up(page: Page):
    assert page.row("kept")[1:] == ["6", "42.9 %"]
    assert page.row("dropped")[1:] == ["6", "42.9 %"]
    assert page.row("quarantined")[1:] == ["2", "14.3 %"]
    assert ["input", "14", "100.0 %"] in page.rows
    text = page.all_text()
    assert "14 samples in, 6 kept, 2 quarantined; the budget of 6 was met exactly." in text
    assert "Scored: 12 = kept + dropped" in text


def test_what_the_subset_is_for_is_told(tmp_path: Path):
    store, facts = make_run(tmp_path / "run")
    config = store.read_json(CONFIG)
    assert config is not None
    config["sample"]["trained_for"] = "steps"
    store.write_json(CONFIG, config)
    assert Page(written(store, facts)).row("to be trained for")[1:] == ["as many steps as everything"]


def test_chart_counts_every_sample(page: Page):
    bars = [text for place, text in page.texts if place == "title" and " samples, " in text and text.startswith("EL2N")]
    counts = [tuple(map(int, re.search(r": (\d+) samples, (\d+) kept", bar).groups())) for bar in bars]  # type: ignore[union-attr]
    assert [sum(column) for column in zip(*counts, strict=True)] == [12, 6]
    assert "EL2N 0.6 to 0.62: 1 samples, 1 kept (100.0 %)" in bars


def test_reasons_are_counted_and_explained(page: Page):
    counted = {reason: page.row(reason)[1:3] for reason in sampling.REASONS}
    assert counted == {
        "hard": ["kept", "3"],
        "cluster": ["kept", "2"],
        "class_floor": ["kept", "1"],
        "over_quota": ["dropped", "4"],
        "noise": ["dropped", "2"],
    }
    assert all(len(page.row(reason)[3]) > 20 for reason in sampling.REASONS)


def test_hardest_noise_is_listed_with_what_the_proxy_takes_it_for(page: Page):
    assert [row for row in page.rows if row[-1] in ("1.300", "1.200")] == [
        ["<b>0</b>:5", SCRIPT, "cat", "1.300"],
        ["<b>1</b>:4", 'stop & "go"', SCRIPT, "1.200"],
    ]


def test_noise_is_shown_though_the_subset_has_none_of_it(page: Page, tmp_path: Path):
    # Of what the page shows, these alone come from the input: rows 5 and 4 of shards 0 and 1.
    pictures = [attributes["src"] for name, attributes in page.elements if name == "img"]
    assert pictures[-2:] == [report.data_uri(image(40 * row)) for row in (5, 4)]
    taken_for = [text for _, text in page.texts if text.startswith("proxy: ")]
    assert taken_for == ["proxy: cat", f"proxy: {SCRIPT}"]
    assert "The hardest of 2, with label" in page.all_text()
    assert "Of all samples the proxy contradicts the labels of 3 (25.0 %): on average" in page.all_text()  # of 12
    assert "auto: 16.7 % of the scored were set aside" in page.all_text()
    # A page is made also when a shard of the input has gone.
    store, facts = make_run(tmp_path / "run")
    given = InputConfig(path=f"{store.root}-input")
    source = sources.find(given)
    Path(given.path, "0.parquet").unlink()
    report.write(store, facts, source, given)
    again = Page(Path(store.path("report.html")).read_text())
    assert [attributes["src"] for name, attributes in again.elements if name == "img"] == [*pictures[:-2], pictures[-1]]
    assert [text for _, text in again.texts].count("no preview") == 1


def test_only_scores_of_what_is_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, _ = make_run(tmp_path / "run")
    opened = []
    open_file = pq.ParquetFile

    def recording(path: str, **options: Any) -> pq.ParquetFile:
        opened.append(path.rpartition("/")[2])
        return open_file(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", recording)
    names = dict(enumerate(CLASS_NAMES))
    assert survey.predicted_names(store, {sample_id(0, 5), sample_id(0, 4)}, names) == {
        sample_id(0, 5): "cat",
        sample_id(0, 4): SCRIPT,
    }
    assert opened == ["part-000000-0000000004-0123.parquet"]
    assert survey.predicted_names(store, {sample_id(1, 4), sample_id(0, 0)}, {}) == {
        sample_id(1, 4): "class 0",
        sample_id(0, 0): "class 0",
    }


def test_a_run_that_an_earlier_version_began_has_a_report(tmp_path: Path):
    store, facts = make_run(tmp_path / "run")
    config = store.read_json(CONFIG)
    assert config is not None
    del config["scores_from"], config["sample"]["trained_for"]
    store.write_json(CONFIG, config)
    for path in store.files("scores"):
        pq.write_table(pq.read_table(path).drop(["predicted"]), path)
    page = Page(written(store, facts))
    assert ["<b>0</b>:5", SCRIPT, "", "1.300"] in page.rows
    assert page.row("to be trained for")[1:] == ["as many epochs as everything"]


def test_without_noise_nothing_is_said_of_it(tmp_path: Path):
    samples = [sample for sample in SAMPLES if sample[-1] != "noise"]
    assert "set aside as noise" not in Page(written(*make_run(tmp_path / "run", samples))).all_text()


def test_classes(page: Page):
    assert page.row(SCRIPT) == [SCRIPT, "6", "3", "3", "50.0 %", "", "0.25"]
    assert page.row("cat") == ["cat", "2", "1", "1", "50.0 %", "", "2.25"]


def test_many_classes_are_not_a_wall(tmp_path: Path):
    # Class c has two samples; those below 500 keep both, the others none, save one.
    samples = [
        (0, 2 * label + turn, label, 0.5, "hard" if label < 500 or (label, turn) == (700, 0) else "over_quota")
        for label in range(1000)
        for turn in (0, 1)
    ]
    store, facts = make_run(tmp_path, samples, [], [f"class {label}" for label in range(1000)])
    rows = [row for row in Page(written(store, facts)).rows if re.fullmatch(r"class \d+", row[0])]
    assert len(rows) == 40
    assert rows[0][0] == "class 0" and rows[0][4] == "100.0 %"
    assert rows[-1][0] == "class 999" and rows[-1][4] == "0.0 %"


def test_quarantine(page: Page):
    assert page.row("not an image") == ["not an image", "1"]
    assert ['<img src="x">0.parquet', "6", "not an image"] in page.rows
    assert ['<img src="x">1.parquet', "3", QUARANTINED[1][2]] in page.rows
    assert "No image can be used of lost <b> (2)." in page.all_text()


def test_long_quarantine_is_cut(tmp_path: Path):
    bad = [(shard, row, f"reason {row}") for shard in (0, 1) for row in range(100, 125)]
    page = Page(written(*make_run(tmp_path, quarantined=bad)))
    assert page.row("other reasons") == ["other reasons", "10"]
    assert sum(row[0].endswith(".parquet") and row[-1].startswith("reason") for row in page.rows) == 20


def test_no_quarantine(tmp_path: Path):
    store, facts = make_run(tmp_path, quarantined=[])
    assert "Every sample could be read and scored." in Page(written(store, facts)).all_text()


def test_what_the_run_noted_of_its_choice(page: Page):
    text = page.all_text()
    assert "Before you use it" in text
    assert "The proxy contradicts 25.0% of the labels: what it finds hard says little." in text
    assert str(report._notes([])) == ""


def test_configuration_and_seconds(page: Page):
    text = page.all_text()
    for expected in ("λ = 2.5 nats", "β = 0.75 (auto)", "scheme linear", "resnet9 at 32 pixels", "for 4 epochs"):
        assert expected in text
    assert page.row("keep fraction")[1] == "0.5" and page.row("seed")[1] == "0"
    assert page.row("scores")[1] == "12.5" and page.row("total")[1] == "12.5"


def test_footer_credits_the_paper_and_owns_the_reading(page: Page):
    text = page.all_text()
    assert "γ-Razor is by Liu et al., IEEE TCSS 12(3):957–971, 2025, doi:10.1109/TCSS.2024.3453600" in text
    assert "razor_ray's own" in text


# --- the page itself --------------------------------------------------------------------------------------------------


def test_no_text_becomes_markup(source: str, page: Page):
    assert "<script" not in source.lower() and "<b>0" not in source and 'src="x"' not in source
    assert not {name for name, _ in page.elements} & {"script", "iframe", "object", "link"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]


def test_page_loads_nothing(source: str, page: Page):
    targets = [attributes[key] for _, attributes in page.elements for key in ("src", "href") if key in attributes]
    outside = [target for target in targets if not target.startswith("data:image/")]
    assert outside == ["https://doi.org/10.1109/TCSS.2024.3453600"]
    assert "url(" not in source and "@import" not in source


def test_charts_hold_finite_numbers(page: Page):
    for name, attributes in page.elements:
        if name in ("rect", "line", "text"):
            numbers = [attributes[key] for key in ("x", "y", "x1", "x2", "y1", "y2") if key in attributes]
            assert all(math.isfinite(float(number)) for number in numbers)
            assert all(float(attributes[key]) >= 0 for key in ("width", "height") if key in attributes)


def test_equal_hardness_makes_a_page(tmp_path: Path):
    samples = [(shard, row, label, 1.0, reason) for shard, row, label, _, reason in SAMPLES]
    page = Page(written(*make_run(tmp_path, samples)))
    assert [text for _, text in page.texts if "12 samples, 6 kept (" in text]
    test_charts_hold_finite_numbers(page)


def test_page_does_not_depend_on_the_files(tmp_path: Path):
    pages = []
    for name, samples, files in (("one", SAMPLES, 1), ("five", SAMPLES[::-1], 5)):
        store, facts = make_run(tmp_path / name, samples, files=files)
        pages.append(written(store, facts).replace(store.uri, "RUN"))
    assert pages[0] == pages[1]


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_gallery_shows_each_kept_sample_once(page: Page):
    pictures = [attributes for name, attributes in page.elements if name == "img"][:-2]  # of noise
    # Six were kept, by falling hardness: rows 2, 4, 3, 5, 0 of their shards, and 1; the image tells the row.
    expected = [report.data_uri(image(40 * row)) for row in (2, 4, 3, 5, 0, 1)]
    assert [picture["src"] for picture in pictures] == expected
    assert pictures[1]["alt"] == SCRIPT


def test_only_needed_row_groups_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, _ = make_run(tmp_path)
    groups = []
    read = pq.ParquetFile.read_row_group

    def recording(file: Any, group: int, **options: Any) -> pa.Table:
        groups.append(group)
        return read(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recording)
    # Shard 1 keeps rows 0, 2 and 5, in row groups of two.
    assert survey.read_kept(store, [sample_id(1, 5)]) == {sample_id(1, 5): image(200)}
    assert groups == [1]


def test_small_pictures_are_shown_as_they_are():
    for kind in ("PNG", "JPEG", "WebP"):
        uri = report.data_uri(image(9, kind=kind))
        assert uri is not None and uri.startswith(f"data:image/{kind.lower()};base64,")


def test_large_or_odd_pictures_become_thumbnails():
    for encoded in (image(9, size=3000), image(9, kind="BMP"), image(9, kind="GIF")):
        uri = report.data_uri(encoded)
        assert uri is not None and uri.startswith("data:image/jpeg;base64,")
        assert len(uri) < 12_500


def test_gallery_stays_small():
    uri = report.data_uri(noise_image(500))  # the hardest picture to compress
    assert uri is None or 36 * len(uri) <= 450_000


@pytest.mark.parametrize("encoded", [b"", b"<svg onload='alert(1)'/>", b"GIF89a"])
def test_no_picture_is_no_picture(encoded: bytes):
    assert report.data_uri(encoded) is None
