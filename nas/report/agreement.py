"""A page of predicted against measured latencies that a user brought, by phase or kind of kernel."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from nas.report import figures
from nas.report.figures import Dot
from nas.report.page import chart, number, page, save, section, table


def write_agreement(found: Mapping[str, Any], path: Path) -> Path:
    """Write what `calibration.agreement` found as one HTML file and return its path."""
    parts: dict[str, list[Dot]] = {}
    for row in found["each"]:
        x, y = row["measured_s"] * 1e3, row["predicted_s"] * 1e3
        text = f"<b>{escape(row['label'])}</b><br>predicted {number(y)} ms, measured {number(x)} ms: {y / x - 1:+.1%}"
        parts.setdefault(escape(row["part"]), []).append(Dot(x, y, text))
    rows = [
        f'<tr><td class="what">{escape(name)}</td><td>{part["measurements"]}</td>'
        f"<td>{part['within_10_percent']:.0%}</td><td>{part['mape']:.1%}</td><td>{part['bias']:+.1%}</td><td>{part['worst']:.1%}</td></tr>"
        for name, part in [*found["by_part"].items(), ("all", found["all"])]
    ]
    head = ("", "measurements", "within 10 %", "MAPE", "median error", "worst")
    title = f"{escape(found['device'])}, {escape(found['runtime'])}: predicted against measured"
    intro = " ".join(map(escape, found["notes"])) or "On the diagonal, predicted and measured are equal."
    body = section(title, intro, chart(figures.agreement_figure(parts), title), table(head, rows))
    return save(path, page(title, body)).resolve()
