"""A page of a supernet's loss over its training."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from nas.report import figures
from nas.report.page import chart, page, save, section


def write_curves(title: str, curve: Sequence[Sequence[float]], path: Path) -> Path:
    """Write (step, loss of the largest slice, mean loss of the others) as one HTML file and return its path."""
    lines = {
        "largest slice": [(step, own) for step, own, _ in curve],
        "other slices": [(step, others) for step, _, others in curve],
    }
    figure = figures.lines_figure(lines, ("step", "loss of the answers, nats"), strong=frozenset(lines), shape="linear")
    intro = "Mean cross-entropy of the answers over the steps between two points."
    body = section(escape(title), intro, chart(figure, title))
    return save(path, page(escape(title), body)).resolve()
