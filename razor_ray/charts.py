"""Charts as SVG, to stand in a page: numbers in, markup out.

The charts name their parts by class: `STYLE` has the rules, and takes the colours from variables that the page sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from razor_ray.markup import Html, percent, tag

_MOST_BINS = 80
_WIDTH, _LEFT, _RIGHT = 760, 56, 12
_TOP, _HEIGHT, _GAP, _STRIP = 10, 210, 26, 64

STYLE = """\
.chart { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 12px; }
svg .all { fill: var(--all); }
svg .kept { fill: var(--kept); }
svg .dropped { fill: var(--dropped); }
svg .quarantined { fill: var(--quarantined); }
svg .track { fill: var(--track); }
.grid { stroke: var(--rule); stroke-width: 1; }
.budget { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 4 3; }
.swatch { margin-right: 7px; }
"""
"""For --all, --kept, --dropped, --quarantined and --track; text is in --quiet and lines are in --rule."""


# --- histogram --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many samples, and how many kept ones, have which hardness."""

    edges: NDArray[np.float64]
    """(bins + 1,)"""
    counts: NDArray[np.int64]
    """(2, bins): all samples, and the kept ones."""


def hardness_histogram(
    hardness: NDArray[np.floating], keep: NDArray[np.bool_], edges: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Counts of all samples and of the kept ones between edges; histograms of parts add up to that of the whole.

    Parameters
    ----------
    hardness : ndarray of shape (n,)
    keep : ndarray of shape (n,)
    edges : ndarray of shape (bins + 1,)
        Ascending. An edge belongs to the bin above it; what lies outside is counted in the outermost bins, so that
        no sample is lost.

    Returns
    -------
    ndarray of shape (2, bins)

    Examples
    --------
    >>> hardness_histogram(np.array([0.1, 0.2, 1.0]), np.array([True, False, True]), np.array([0.0, 0.5, 1.0]))
    array([[2, 1],
           [1, 1]])
    """
    bins = np.searchsorted(edges[1:-1], hardness, side="right")  # (n,)
    num_bins = len(edges) - 1
    return np.stack([np.bincount(bins, minlength=num_bins), np.bincount(bins[keep], minlength=num_bins)])  # (2, bins)


def histogram_edges(low: float, high: float) -> NDArray[np.float64]:
    """Edges at round numbers that cover [low, high], at most about eighty bins.

    >>> histogram_edges(0.03, 0.9).round(2)[[0, 1, 2, -1]].tolist()
    [0.02, 0.04, 0.06, 0.9]
    """
    largest = max(abs(low), abs(high))
    # A range of a few roundings is none: edges inside it could not be told apart.
    span = high - low if high - low > 1e-9 * largest else max(1.0, 1e-6 * largest)
    step = round_step(span, _MOST_BINS)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return np.arange(first, last + 1, dtype=np.float64) * step


def round_step(span: float, most: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that divides `span` into at most `most` steps.

    >>> round_step(1.41, 5), round_step(1000, 5), round_step(0.05, 50)
    (0.5, 200.0, 0.001)
    """
    power = 10.0 ** math.floor(math.log10(span / most))
    # 1 + 1e-9: 0.05 / 50 divided by 0.001 is 1.0000000000000002, and means 1.
    return next(factor * power for factor in (1, 2, 5, 10) if span / most <= factor * power * (1 + 1e-9))


def histogram_chart(histogram: Histogram, score: str, keep_fraction: float) -> Html:
    """Bars of all samples with those of the kept in front, and below them the fraction kept.

    Parameters
    ----------
    histogram : Histogram
        Bins without samples are left out.
    score : str
        What the hardness is called.
    keep_fraction : float
        In [0, 1]; a dashed line across the fractions kept.
    """
    edges, (num_all, num_kept) = histogram.edges, histogram.counts
    x = _LEFT + (edges - edges[0]) / (edges[-1] - edges[0]) * (_WIDTH - _LEFT - _RIGHT)  # (bins + 1,)
    most = max(int(num_all.max()), 1)
    base, strip_base = _TOP + _HEIGHT, _TOP + _HEIGHT + _GAP + _STRIP
    bars = []
    for index in range(len(num_all)):
        total, kept = int(num_all[index]), int(num_kept[index])
        if total == 0:
            continue
        place = {"x": x[index] + 0.5, "width": x[index + 1] - x[index] - 1}
        heights = [(total / most * _HEIGHT, base, "all"), (kept / most * _HEIGHT, base, "kept")]
        heights.append((kept / total * _STRIP, strip_base, "kept"))
        tip = f"{score} {edges[index] + 0.0:.6g} to {edges[index + 1] + 0.0:.6g}: {total:,} samples, {kept:,} kept"
        rects = [tag("rect", y=foot - high, height=high, class_=kind, **place) for high, foot, kind in heights]
        bars.append(tag("g", tag("title", f"{tip} ({percent(kept, total)})"), *rects))
    axes = [
        *_y_axis(_ticks(0, most, 4), base, _HEIGHT / most, "{:,.0f}".format),
        *_y_axis([0, 1], strip_base, _STRIP, lambda value: f"{100 * value:.0f} %"),
        *_x_axis(edges, x, strip_base + 18),
        _label(_LEFT, strip_base + 36, "easier", "start"),
        _label(
            (_LEFT + _WIDTH - _RIGHT) / 2, strip_base + 36, f"{score} · below: fraction kept, and the budget's (dashed)"
        ),
        _label(_WIDTH - _RIGHT, strip_base + 36, "harder", "end"),
    ]
    name = f"Histogram of {score}: {int(num_all.sum()):,} samples, {int(num_kept.sum()):,} kept"
    return tag(
        "svg",
        *axes,
        *bars,
        _line(strip_base - keep_fraction * _STRIP, "budget"),
        viewBox=f"0 0 {_WIDTH} {strip_base + 44}",
        role="img",
        aria_label=name,
        class_="chart",
    )


def _ticks(low: float, high: float, most: int) -> list[float]:
    step = round_step(high - low, most)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _x_axis(edges: NDArray[np.float64], x: NDArray[np.float64], y: float) -> list[Html]:
    return [
        _label(float(np.interp(value, edges, x)), y, f"{value:.6g}")
        for value in _ticks(float(edges[0]), float(edges[-1]), 10)
    ]


def _y_axis(values: Sequence[float], base: float, scale: float, text: Callable[[float], str]) -> list[Html]:
    parts = []
    for value in values:
        y = base - value * scale
        parts += [_line(y, "grid"), _label(_LEFT - 8, y + 4, text(value), "end")]
    return parts


def _line(y: float, kind: str) -> Html:
    return tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_=kind)


def _label(x: float, y: float, text: str, anchor: str = "middle") -> Html:
    return tag("text", text, x=x, y=y, text_anchor=anchor)


# --- bars -------------------------------------------------------------------------------------------------------------


def stacked_bar(parts: Sequence[tuple[str, int, str]]) -> Html:
    """One bar cut into shares.

    Parameters
    ----------
    parts : sequence of (str, int, str)
        The colour's class, the count and the name of each; a part of 0 is left out, and the sum is positive.
    """
    total = sum(count for _, count, _ in parts)
    x, pieces = 0.0, []
    for kind, count, name in parts:
        width = count / total * _WIDTH
        if count:
            tip = tag("title", f"{name}: {count:,}")
            pieces.append(tag("rect", tip, x=x, y=0, width=max(width - 1, 1), height=18, class_=kind))
        x += width
    return tag("svg", *pieces, viewBox=f"0 0 {_WIDTH} 18", role="img", aria_label="shares", class_="chart")


def bar(fraction: float) -> Html:
    """A small bar to stand in a table, filled to a fraction in [0, 1]."""
    track = tag("rect", x=0, y=0, width=120, height=8, rx=2, class_="track")
    part = tag("rect", x=0, y=0, width=120 * fraction, height=8, rx=2, class_="kept")
    return tag("svg", track, part, viewBox="0 0 120 8", width=120, height=8, aria_hidden="true")


def swatch(kind: str) -> Html:
    """A small square in the colour of a class, for a legend."""
    square = tag("rect", width=10, height=10, rx=2, class_=kind)
    return tag("svg", square, viewBox="0 0 10 10", width=10, height=10, aria_hidden="true", class_="swatch")


# --- lines ------------------------------------------------------------------------------------------------------------

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""
_APART = 4
"""Pixels between the points of neighbouring lines."""


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float, float]]], *, reference: float | None, x_name: str, y_name: str
) -> Html:
    """Lines of points with intervals, all in percent; a document of its own.

    The lines are set a little apart, since their points have the same x and their intervals would hide each other. If
    there is one x only, their points share the width.

    Parameters
    ----------
    series : mapping
        By name, points (x, y, error) with fractions in [0, 1]; an error that is not finite is not drawn.
    reference : float or None
        The height of a dashed line across.
    x_name, y_name : str
        What the axes show.
    """
    points = [point for values in series.values() for point in values]
    heights = [y + sign * (error if math.isfinite(error) else 0) for _, y, error in points for sign in (-1, 1)]
    heights += [reference] if reference is not None else []
    low, high = min(heights), max(heights)
    step = round_step(max(high - low, 0.01), 8)
    bottom = math.floor(low / step) * step
    top = max(math.ceil(high / step) * step, bottom + step)
    right, base = _WIDTH - 170, _TOP + 320
    every_x = sorted({x for x, _, _ in points})
    width = right - _LEFT - 12
    apart = _APART if len(every_x) > 1 else width / (len(series) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        share = x / every_x[-1] if len(every_x) > 1 else 0.5
        return _LEFT + share * width, base - (y - bottom) / (top - bottom) * 320

    parts = []
    for value in _ticks(bottom, top, 8):
        y = place(0, value)[1]
        parts += [
            tag("line", x1=_LEFT, x2=right, y1=y, y2=y, stroke="#ddd"),
            _label(_LEFT - 8, y + 4, f"{100 * value:.6g}", "end"),
        ]
    for value in every_x:
        parts.append(_label(place(value, bottom)[0], base + 18, f"{100 * value:g}"))
    if reference is not None:
        y = place(0, reference)[1]
        parts += [
            tag("line", x1=_LEFT, x2=right, y1=y, y2=y, stroke="#333", stroke_dasharray="5 4"),
            _label(right + 8, y + 4, "all samples", "start"),
        ]
    for index, (name, values) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        aside = (index - (len(series) - 1) / 2) * apart
        at = [(left + aside, up) for left, up in (place(x, y) for x, y, _ in values)]
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in at), fill="none", stroke=colour))
        for (x, y, error), (left, up) in zip(values, at, strict=True):
            if math.isfinite(error):
                ends = {"y1": place(x, y - error)[1], "y2": place(x, y + error)[1]}
                parts.append(tag("line", x1=left, x2=left, **ends, stroke=colour))
            tip = tag("title", f"{name}, {100 * x:g} %: {100 * y:.2f}")
            parts.append(tag("circle", tip, cx=left, cy=up, r=3.5, fill=colour))
        parts += [
            tag("circle", cx=right + 16, cy=base - 18 * index - 6, r=4, fill=colour),
            _label(right + 26, base - 18 * index - 2, name, "start"),
        ]
    parts += [_label((_LEFT + right) / 2, base + 38, x_name), _label(_LEFT, _TOP - 14, y_name, "start")]
    return tag(
        "svg",
        tag("style", Html("text { font: 12px sans-serif; }")),
        tag("rect", x=0, y=-30, width=_WIDTH, height=base + 80, fill="#fff"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 -30 {_WIDTH} {base + 80}",
        role="img",
        aria_label=f"{y_name} by {x_name}",
    )
