"""What a newcomer runs first: `make demo`, with fewer epochs."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import demo


@pytest.mark.system
@pytest.mark.usefixtures("ray_session")
def test_the_demo_prunes_trains_twice_and_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "EPOCHS", 2)
    for name in ("digits", "run"):  # of an earlier demo, which a new one replaces
        (tmp_path / name).mkdir()
        (tmp_path / name / "left.txt").touch()
    assert demo.main(tmp_path) == 0
    assert not list(tmp_path.rglob("left.txt"))
    shown = capsys.readouterr().out
    rows = re.findall(r"^(all images|the subset) +([\d,]+) +([\d.]+)% +([\d.]+)% +[\d.]+$", shown, flags=re.MULTILINE)
    # 1,797 digits less a fifth; 30 % of 1,437 is 431.1.
    assert [(title, number) for title, number, *_ in rows] == [("all images", "1,437"), ("the subset", "431")]
    accuracy = {title: float(accuracy) for title, _, accuracy, _ in rows}
    assert accuracy["all images"] > 50  # of ten classes, after two epochs
    assert pq.read_table(tmp_path / "run" / "subset").num_rows == 431
    told = [Path(path) for path in re.findall(rf"{tmp_path}/run/\S+", shown.split("look next")[1])]
    assert len(told) == 3
    assert all(path.exists() for path in told)


def test_the_demo_takes_the_place_of_nothing_else(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert demo.main(tmp_path) == 2
    assert "holds something else than a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
