"""What a person sees while a stage runs, on a terminal and in a log, with a clock of the test's own."""

from __future__ import annotations

import io

import pytest

from razor_ray import progress
from razor_ray.progress import Progress, say, stage

CLEAR = "\r\x1b[K"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def test_a_log_has_a_line_every_ten_seconds(clock):
    stream = io.StringIO()
    shown = Progress("score", 4000, "samples", stream)
    for _ in range(8):  # 100 samples every 3 s
        clock.now += 3
        shown.advance(100)
    clock.now += 1
    shown.finish()
    assert stream.getvalue().splitlines() == [
        # After 12 s 400 are done: 33.3 a second, 3600 left take 108 s.
        "score     400 of 4,000 (10%) samples, 33/s, 1 min 48 s left",
        "score     800 of 4,000 (20%) samples, 33/s, 1 min 36 s left",
        "score     800 samples, 25 s",
    ]


def test_a_terminal_has_one_line_that_renews_itself(clock):
    stream = Terminal()
    shown = Progress("score", 1000, "samples", stream)
    shown.advance(1)  # at once: too early for a line
    for _ in range(3):
        clock.now += 0.5
        shown.advance(333, "2 quarantined")
    shown.finish("2 quarantined")
    assert stream.getvalue() == (
        f"{CLEAR}score     334 of 1,000 (33%) samples, 668/s, 1.0 s left, 2 quarantined"
        f"{CLEAR}score     667 of 1,000 (67%) samples, 667/s, 0.5 s left, 2 quarantined"
        f"{CLEAR}score     1,000 of 1,000 (100%) samples, 667/s, 0.0 s left, 2 quarantined"
        f"{CLEAR}score     1,000 samples, 1.5 s; 2 quarantined\n"
    )


def test_without_a_total_there_is_no_time_left(clock):
    stream = Terminal()
    shown = Progress("train", None, "steps", stream)
    clock.now += 2
    shown.advance(50)
    assert stream.getvalue() == f"{CLEAR}train     50 steps, 25/s"


def test_nothing_done_yet(clock):
    stream = Terminal()
    shown = Progress("catalog", 3, "shards", stream)
    clock.now += 1
    shown.advance(0)
    assert stream.getvalue() == f"{CLEAR}catalog   0 of 3 (0%) shards, 0/s"
    Progress("catalog", 0, "shards", stream).finish()
    assert stream.getvalue().endswith("catalog   0.0 s\n")


@pytest.mark.parametrize(("unit", "one"), [("shards", "1 shard"), ("classes", "1 class"), ("samples", "1 sample")])
def test_one_is_one(clock, unit, one):
    stream = io.StringIO()
    shown = Progress("catalog", 1, unit, stream)
    shown.advance(1)
    shown.finish()
    assert stream.getvalue().splitlines()[-1] == f"catalog   {one}, 0.0 s"


def test_a_slow_stage_has_a_rate(clock):
    # Three shards in 20 s are no '0/s'.
    stream = Terminal()
    shown = Progress("catalog", 30, "shards", stream)
    clock.now += 20
    shown.advance(3)
    assert " 0/s" not in stream.getvalue()
    assert "3 min 00 s left" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3660, "1 h 01 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_durations(clock, seconds, text):
    stream = io.StringIO()
    shown = Progress("x", None, "samples", stream)
    clock.now += seconds
    shown.finish()
    assert stream.getvalue() == f"x         {text}\n"


def test_stage_ends_with_its_note(capsys, clock):
    with stage("weigh", 10, "classes") as shown:
        shown.advance(10)
        shown.note = "3 floors"
        clock.now += 2
    assert capsys.readouterr().err == "weigh     10 classes, 2.0 s; 3 floors\n"
    with stage("report"):
        clock.now += 1
    assert capsys.readouterr().err == "report    1.0 s\n"


def test_a_stage_that_fails_has_no_last_line(capsys, clock):
    with pytest.raises(ValueError, match="bad shard"), stage("score", 10) as shown:
        shown.advance(5)
        raise ValueError("bad shard")
    assert capsys.readouterr().err == ""


def test_an_error_begins_on_a_line_of_its_own(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", stream)
    with pytest.raises(ValueError, match="bad shard"), stage("score", 10) as shown:
        clock.now += 1
        shown.advance(5)
        raise ValueError("bad shard")
    say("razor-ray prune: bad shard")
    assert stream.getvalue().endswith(("\nrazor-ray prune: bad shard\n", f"{CLEAR}razor-ray prune: bad shard\n"))


def test_say(capsys):
    say("done")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "done\n")


def test_what_was_done_before_tells_nothing_of_the_rate(clock):
    stream = io.StringIO()
    shown = Progress("score", 1000, "samples", stream)
    shown.skip(800)
    clock.now += 10
    shown.advance(100)  # 100 in ten seconds: the other 100 take ten more
    assert stream.getvalue() == "score     900 of 1,000 (90%) samples, 10/s, 10 s left\n"


def test_what_a_stage_waits_for_is_told(clock):
    assert progress.under_way() == "between two stages"
    with stage("score", 1000) as shown:
        shown.advance(10)
        assert progress.under_way() == "in stage score (10 of 1,000 samples done)"
        shown.waiting_for = "a GPU"
        assert progress.under_way() == "in stage score (10 of 1,000 samples done, waiting for a GPU)"
        clock.now += 7
        assert progress.idle_seconds() == 7
        progress.sign_of_life()
        assert progress.idle_seconds() == 0
    assert progress.under_way() == "between two stages"
