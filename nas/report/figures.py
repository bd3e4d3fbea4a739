"""The figures of a report as plotly's JSON: `data` and `layout` of plain values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas import pareto

Figure = dict[str, Any]
#: Two values a point: x, y.
Points = Sequence[tuple[float, float]]

INK, MUTED, GRID, GREY, ACCENT, FAINT = "#1d2129", "#667085", "#e8eaee", "#b9c0cb", "#2456d6", "#9db4ee"
PHASE_COLOURS = {
    "vision": "#2456d6",
    "projector": "#7aa2ff",
    "prefill": "#e07b00",
    "decode": "#0f9d73",
    "request": "#7d3cc9",
}
#: Of what a link takes, beside the phases.
LINK_COLOUR = "#8a94a6"
#: Of more parts than phases, in the order they come.
OTHER_COLOURS = (
    *("#2456d6", "#e07b00", "#0f9d73", "#7d3cc9", "#d62839"),
    *("#7aa2ff", "#8c6d31", "#17becf", "#e377c2", "#667085"),
)
#: Axes over a wider range than this are logarithmic.
LOG_RANGE = 12.0
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Dot:
    """A candidate in a figure, values in the unit shown; `text` is HTML, already escaped."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Title with unit, already escaped, and the sign that makes less better: +1, or -1 where more is better."""

    title: str
    sign: int


def staircase(points: Points, signs: tuple[int, int]) -> list[tuple[float, float]]:
    """The non-dominated points of a pair of objectives, ascending by x."""
    if not points:
        return []
    kept = pareto.front(np.asarray(points, dtype=float) * np.asarray(signs, dtype=float))
    return sorted(points[i] for i in kept)


def front_figure(
    other: Sequence[Dot], front: Sequence[Dot], cheap: Sequence[Dot], x: Axis, y: Axis, below: Axis | None
) -> Figure:
    """Candidates over a pair of objectives, the front's highlighted, and their border as a line.

    `cheap` are the candidates known only from the cheap proxy: in the same panel, or, where `below` is given (their y
    cannot be compared), in a panel of their own under it.
    """
    steps = staircase([(dot.x, dot.y) for dot in (*front, *other, *(() if below else cheap))], (x.sign, y.sign))
    marks = [
        _dots(cheap, "scored cheaply", {"color": GREY, "size": 6, "opacity": 0.75}, "y2" if below else "y"),
        _dots(other, "trained, not on the front", {"color": FAINT, "size": 9, "line": {"color": ACCENT, "width": 1}}),
        _line(steps, "front of this pair", {"color": ACCENT, "width": 2, "shape": "hv"}),
        _dots(front, "on the front", {"color": ACCENT, "size": 13, "line": {"color": "#fff", "width": 2}}),
    ]
    layout = _layout(520 if below else 430)
    layout["xaxis"] |= {"title": {"text": x.title}} | _scale([*front, *other, *cheap])
    layout["yaxis"] |= {"title": {"text": y.title}}
    if below:
        layout["yaxis"] |= {"domain": [0.36, 1]}
        layout["yaxis2"] = _axis() | {"domain": [0, 0.26], "title": {"text": below.title}, "anchor": "x"}
        layout["xaxis"] |= {"anchor": "y2"}
    return {"data": [mark for mark in marks if mark["x"]], "layout": layout}


def fleet_figure(fronts: Mapping[str, Sequence[Dot]], x: Axis, y: Axis) -> Figure:
    """The front of each device, by its escaped name, over a cost whose axis is logarithmic; steps join its members."""
    colours, marks = itertools.cycle(OTHER_COLOURS), []
    for name, dots in fronts.items():
        colour = next(colours)
        steps = staircase([(dot.x, dot.y) for dot in dots], (x.sign, y.sign))
        marks.append(_line(steps, name, {"color": colour, "width": 2, "shape": "hv"}) | {"showlegend": False})
        marks.append(_dots(dots, name, {"color": colour, "size": 9, "line": {"color": "#fff", "width": 1}}))
    layout, values = _layout(430), [dot.x for dots in fronts.values() for dot in dots]
    layout["xaxis"] |= {"title": {"text": x.title}, **(log_axis(min(values), max(values)) if min(values) > 0 else {})}
    layout["yaxis"] |= {"title": {"text": y.title}}
    return {"data": [mark for mark in marks if mark["x"]], "layout": layout}


def agreement_figure(phases: Mapping[str, Sequence[Dot]]) -> Figure:
    """Measured (x) against predicted (y) milliseconds by phase or kind, with the diagonal and lines at +-10 %."""
    values = [value for dots in phases.values() for dot in dots for value in (dot.x, dot.y)]
    low, high = min(values) / 1.6, max(values) * 1.6
    lines = [
        _line([(low, low * share), (high, high * share)], name, {"color": MUTED, "width": width, "dash": dash})
        for share, name, width, dash in (
            (1.0, "equal", 1.5, "solid"),
            (1.1, "±10 %", 1, "dot"),
            (1 / 1.1, "", 1, "dot"),
        )
    ]
    lines[2]["showlegend"] = False
    others = itertools.cycle(OTHER_COLOURS)
    marks = [
        _dots(dots, phase, {"color": PHASE_COLOURS.get(phase) or next(others), "size": 9, "opacity": 0.85})
        for phase, dots in phases.items()
    ]
    layout, ends = _layout(470), [math.log10(low), math.log10(high)]
    layout["xaxis"] |= {"title": {"text": "measured, ms"}, "range": ends, **log_axis(low, high)}
    layout["yaxis"] |= {"title": {"text": "predicted, ms"}, "range": ends, **log_axis(low, high)}
    return {"data": [*lines, *marks], "layout": layout}


def lines_figure(lines: Mapping[str, Points], titles: tuple[str, str], *, strong: frozenset[str], shape: str) -> Figure:
    """Lines by name over one pair of axes; those in `strong` in colour. Names and titles are already escaped."""
    colours = iter(list(PHASE_COLOURS.values()) * (len(strong) // len(PHASE_COLOURS) + 1))
    marks = []
    for name in sorted(lines, key=lambda name: name in strong):
        look = {"color": next(colours), "width": 2} if name in strong else {"color": GREY, "width": 1}
        mark = _line(list(lines[name]), name, look | {"shape": shape})
        del mark["hoverinfo"]
        marks.append(mark | {"hovertemplate": f"{name}<br>%{{x}}: %{{y:.3g}}<extra></extra>"})
    layout = _layout(330)
    layout["xaxis"] |= {"title": {"text": titles[0]}, "rangemode": "tozero"}
    layout["yaxis"] |= {"title": {"text": titles[1]}, "rangemode": "tozero"}
    layout["showlegend"] = 1 < len(lines) <= 12
    return {"data": marks, "layout": layout}


def bars_figure(shares: Mapping[str, Sequence[float]], colour: str) -> Figure:
    """Bars of repeated shares, 0 to 1: their mean, and a whisker from lowest to highest; names are already escaped."""
    means = {name: sum(found) / len(found) for name, found in shares.items()}
    names = sorted(means, key=lambda name: means[name])
    values = [means[name] for name in names]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": [f"{name}  <b>{means[name]:.0%}</b>" for name in names],
        "marker": {"color": colour},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [max(shares[name]) - means[name] for name in names],
            "arrayminus": [means[name] - min(shares[name]) for name in names],
            "color": INK,
            "thickness": 1.2,
            "width": 3,
        },
        "hovertemplate": "%{y}<extra></extra>",
    }
    layout = _layout(60 + 26 * len(names))
    layout["xaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    layout["yaxis"] |= {"automargin": True, "showgrid": False}
    return {"data": [bars], "layout": layout}


def scatter_figure(dots: Sequence[Dot], titles: tuple[str, str]) -> Figure:
    """Plain dots over one pair of axes; titles are already escaped."""
    layout = _layout(380)
    layout["xaxis"] |= {"title": {"text": titles[0]}}
    layout["yaxis"] |= {"title": {"text": titles[1]}}
    return {"data": [_dots(dots, "", {"color": ACCENT, "size": 10, "opacity": 0.85})], "layout": layout}


def _dots(dots: Sequence[Dot], name: str, marker: dict[str, Any], yaxis: str = "y") -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [dot.x for dot in dots],
        "y": [dot.y for dot in dots],
        "yaxis": yaxis,
        "text": [dot.text for dot in dots],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
    }


def _line(points: Points, name: str, line: dict[str, Any]) -> dict[str, Any]:
    x, y = [point[0] for point in points], [point[1] for point in points]
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line, "hoverinfo": "skip"}


def _axis() -> dict[str, Any]:
    return {"gridcolor": GRID, "linecolor": GREY, "zeroline": False, "ticks": "outside", "tickcolor": GREY}


def _scale(dots: Sequence[Dot]) -> dict[str, Any]:
    values = [dot.x for dot in dots]
    wide = min(values) > 0 and max(values) / min(values) > LOG_RANGE
    return log_axis(min(values), max(values)) if wide else {"rangemode": "tozero"}


def log_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis labelled at 1, 2, 5, 10, 20 ...: plotly on its own writes a 2 where 20 is."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{mantissa}e{decade}") for decade in decades for mantissa in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 16, "t": 36, "b": 52},
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "xanchor": "left"},
        "hoverlabel": {"bgcolor": "#fff", "bordercolor": GREY, "font": {"family": FONT, "size": 12.5, "color": INK}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": ACCENT},
        "xaxis": _axis(),
        "yaxis": _axis(),
    }
