"""Charts: the counts behind them, and where their parts stand."""

from __future__ import annotations

import math
import re

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from razor_ray.charts import Histogram, hardness_histogram, histogram_chart, histogram_edges, line_chart, stacked_bar


def test_histogram_by_hand():
    edges = np.array([0.0, 0.5, 1.0, 1.5])
    # An edge is of the bin above it, the last one of the last bin; what lies outside is not lost.
    hardness = np.array([-1.0, 0.0, 0.49, 0.5, 1.5, 9.0], np.float32)
    keep = np.array([True, False, True, True, False, True])
    assert_array_equal(hardness_histogram(hardness, keep, edges), [[3, 1, 2], [2, 1, 1]])


@given(st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_histograms_of_parts_add_up(num_samples: int, seed: int):
    rng = np.random.default_rng(seed)
    hardness, keep = rng.exponential(size=num_samples), rng.random(num_samples) < 0.3
    edges = histogram_edges(0.0, 3.0)
    whole = hardness_histogram(hardness, keep, edges)
    cut = num_samples // 3
    parts = [hardness_histogram(hardness[part], keep[part], edges) for part in (slice(cut), slice(cut, None))]
    assert_array_equal(parts[0] + parts[1], whole)
    assert whole.sum(axis=1).tolist() == [num_samples, keep.sum()]
    assert (whole[1] <= whole[0]).all()


@given(st.floats(-100, 100, width=32), st.floats(0, 1000, width=32))
@example(low=32.0, span=1.8e-13)  # a few roundings
@example(low=-1e9, span=0.0)
def test_edges_cover_the_range(low: float, span: float):
    edges = histogram_edges(low, low + span)
    step = edges[1] - edges[0]
    assert edges[0] <= low + 1e-6 * step and edges[-1] >= low + span - 1e-6 * step
    assert (np.diff(edges) > 0).all() and 2 <= len(edges) <= 83


def test_chart_by_hand():
    # Bins of 346 pixels; the fuller one is 210 high, of the 64 below them all and a quarter are kept.
    histogram = Histogram(np.array([0.0, 0.5, 1.0]), np.array([[2, 4], [2, 1]]))
    chart = histogram_chart(histogram, "EL2N", keep_fraction=0.5)
    bars = re.findall(r'<rect y="([\d.]+)" height="([\d.]+)" class="(\w+)" x="([\d.]+)" width="([\d.]+)">', chart)
    assert bars == [
        ("115", "105", "all", "56.5", "345"),
        ("115", "105", "kept", "56.5", "345"),
        ("246", "64", "kept", "56.5", "345"),
        ("10", "210", "all", "402.5", "345"),
        ("167.5", "52.5", "kept", "402.5", "345"),
        ("294", "16", "kept", "402.5", "345"),
    ]
    assert "EL2N 0.5 to 1: 4 samples, 1 kept (25.0 %)" in chart
    assert 'y1="278" y2="278" class="budget"' in chart  # half of 64 above 310


def test_chart_leaves_empty_bins_out():
    chart = histogram_chart(Histogram(np.arange(4.0), np.array([[3, 0, 1], [0, 0, 1]])), "loss", keep_fraction=0.25)
    assert chart.count("<g>") == 2 and "loss 1 to 2" not in chart


def test_stacked_bar_by_hand():
    # A quarter and three quarters of 760, with a pixel between them; nothing of what there is nothing of.
    bar = stacked_bar([("kept", 1, "hard"), ("dropped", 3, "<b>"), ("dropped", 0, "noise")])
    places = re.findall(r'<rect x="([\d.]+)" y="0" width="([\d.]+)" height="18" class="(\w+)">', bar)
    assert places == [("0", "189", "kept"), ("190", "569", "dropped")]
    assert "&lt;b&gt;: 3" in bar and "<b>" not in bar and "noise" not in bar


def test_line_chart_by_hand():
    series = {"a": [(0.1, 0.5, 0.1), (0.5, 0.7, math.inf)], "b": [(0.5, 0.6, 0.0)]}
    chart = line_chart(series, reference=0.8, x_name="kept", y_name="accuracy")
    # Heights from 0.4 (0.5 less its error) to 0.8 in steps of 0.05, over 320 pixels above y = 330: 0.1 is 80 of them.
    # The widest x, 0.5, stands at 578, 0.1 a fifth of the way from 56; two lines stand 2 to either side of it.
    points = re.findall(r'<polyline points="([^"]+)"', chart)
    assert points == ["158.4,250.0 576.0,90.0", "580.0,170.0"]
    errors = re.findall(r'<line x1="158.4" x2="158.4" y1="([\d.]+)" y2="([\d.]+)"', chart)
    assert errors == [("330", "170")]
    assert 'y1="10" y2="10" stroke="#333" stroke-dasharray="5 4"' in chart  # everything: 0.8
    assert "a, 10 %: 50.00" in chart
    assert chart.startswith("<svg") and "xmlns=" in chart  # a document of its own


def test_points_of_one_x_share_the_width():
    series = {name: [(0.3, height, 0.01)] for name, height in (("a", 0.5), ("b", 0.5), ("c", 0.6))}
    chart = line_chart(series, reference=None, x_name="kept", y_name="accuracy")
    # From 56 over 522 pixels: at a quarter, a half and three quarters of them.
    assert re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="3.5"', chart) == ["186.5", "317", "447.5"]
    assert re.findall(r'<text x="317" y="348" text-anchor="middle">([^<]+)<', chart) == ["30"]


def test_names_in_a_line_chart_are_escaped():
    chart = line_chart({"<b>": [(0.1, 0.5, 0.0)]}, reference=None, x_name="<x>", y_name="y")
    assert "<b>" not in chart and "&lt;b&gt;" in chart
    assert "all samples" not in chart
