"""The page around the sections: pieces of HTML, look, and the script that draws the charts. Arguments are escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from hardware_profiles import Basis
from nas.errors import NasError
from nas.report import figures
from nas.report.figures import Figure


def number(value: float) -> str:
    """Three digits, never an exponent from a thousandth up."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-3 else f"{value:.1e}"


def badge(basis: Basis) -> str:
    """The initial of how a number was obtained."""
    return f'<abbr class="basis {basis}" title="{basis}">{basis[0].upper()}</abbr>'


def cell(value: float, basis: Basis) -> str:
    """A number in a table."""
    return f"<td>{number(value)}{badge(basis)}</td>"


def section(title: str, intro: str, *parts: str) -> str:
    """A card with heading, a paragraph and what follows."""
    return f"<section><h2>{title}</h2><p>{intro}</p>{''.join(parts)}</section>"


def table(head: Iterable[str], rows: Iterable[str], groups: str = "") -> str:
    """A table that scrolls sideways where it is too wide; `groups` is a row above the head."""
    cells = "".join(f"<th>{name}</th>" for name in head)
    top = f"<thead>{groups}<tr>{cells}</tr></thead>"
    return f'<div class="wide"><table>{top}<tbody>{"".join(rows)}</tbody></table></div>'


def chart(figure: Figure, label: str) -> str:
    """A figure, drawn by the page's script when it is first visible."""
    # JSON has no NaN; and a "<" in it could end the script element.
    clean = json.loads(json.dumps(figure), parse_constant=lambda _: None)
    data = json.dumps(clean, separators=(",", ":")).replace("<", "\\u003c")
    plot = f'<div class="plot" style="height:{figure["layout"]["height"]}px"></div>'
    data = f'<script type="application/json">{data}</script>'
    return f'<div class="chart" role="img" aria-label="{label}">{data}{plot}</div>'


def count(number_of: int, noun: str) -> str:
    """So many of a noun."""
    return f"{number_of} {noun}" + ("" if number_of == 1 else "s")


def page(title: str, body: str) -> str:
    """The whole document: plotly.js inside, nothing to be loaded."""
    from plotly.offline import get_plotlyjs

    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main>\n"
        f"<script>{get_plotlyjs()}</script>\n<script>{_SCRIPT}</script></body></html>\n"
    )


def save(path: Path, text: str) -> Path:
    """Write a file, folders included, and return its path; raises NasError where that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NasError(f"{path}: cannot be written ({error.strerror})") from None
    return path


#: The browser itself keeps the page from loading or sending anything.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)

_STYLE = f"""
:root {{ --ink: {figures.INK}; --muted: {figures.MUTED}; --line: {figures.GRID}; --accent: {figures.ACCENT}; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: #f6f7f9; color: var(--ink); font: 15px/1.55 {figures.FONT}; }}
main {{ max-width: 1440px; margin: 0 auto; padding: 36px 20px 64px; }}
.eyebrow {{ margin: 0; color: var(--muted); font-size: 13px; letter-spacing: .02em; }}
h1 {{ font-size: 30px; line-height: 1.3; font-weight: 650; margin: 8px 0 24px; max-width: 34em; text-wrap: balance; }}
h2 {{ font-size: 19px; font-weight: 650; margin: 0 0 4px; }}
h3 {{ font-size: 14px; font-weight: 600; margin: 12px 0 0; }}
section p {{ margin: 0 0 14px; color: #475063; max-width: 62em; }}
section, header dl {{ background: #fff; border: 1px solid var(--line); border-radius: 12px; }}
section {{ padding: 22px 22px; margin-top: 20px; }}
dl {{ margin: 0; display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 14px 32px; }}
header dl {{ padding: 18px 24px; }}
dt {{ color: var(--muted); font-size: 12.5px; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
.legend {{ color: var(--muted); font-size: 13px; margin: 12px 0 0; }}
.legend span {{ margin-left: 12px; white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: 7px 6px; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ color: var(--muted); font-weight: 500; font-size: 12px; vertical-align: bottom; white-space: normal; }}
.groups th {{ text-align: center; border-bottom: 0; padding-bottom: 0; color: var(--ink); }}
th:first-child, td.what {{ text-align: left; }}
td {{ vertical-align: top; }}
td.what small {{ display: block; color: var(--muted); font-size: 12px; white-space: normal; min-width: 15em; }}
td.off {{ color: #b42318; font-weight: 600; }}
tbody tr:hover {{ background: #f8f9fb; }}
code {{ font: 12.5px/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
em.broken {{ font-style: normal; color: #b42318; font-size: 12px; margin-left: 6px; }}
.basis {{ display: inline-block; margin-left: 3px; padding: 0 3px; border-radius: 4px;
  font: 600 9.5px/14px {figures.FONT};
  text-decoration: none; vertical-align: 2px; cursor: help; color: #fff; }}
h1 .basis {{ vertical-align: 10px; }}
.measured {{ background: #0f8a5f; }} .calibrated {{ background: #0e8aa5; }} .predicted {{ background: #3f6fe0; }}
.static {{ background: #6b7385; }} .datasheet {{ background: #b07908; }} .assumed {{ background: #c8442c; }}
.shares {{ display: flex; height: 5px; border-radius: 3px; overflow: hidden; margin-top: 5px; min-width: 60px; }}
.key {{ font-size: 12.5px; margin: 12px 0 0; }}
.key i {{ display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-left: 10px; }}
.tabs {{ display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 6px; }}
.tabs button {{ font: inherit; font-size: 13px; padding: 4px 12px; border: 1px solid var(--line); border-radius: 999px;
  background: #fff; color: var(--muted); cursor: pointer; }}
.tabs button[aria-pressed=true] {{ background: var(--accent); border-color: var(--accent); color: #fff; }}
.split {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 8px 32px; }}
.split > * {{ min-width: 0; }}
footer {{ margin: 36px 4px 0; color: #475063; font-size: 13.5px; }}
footer h2 {{ font-size: 16px; color: var(--ink); margin: 20px 0 10px; }}
pre {{ background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 14px; overflow-x: auto; }}
@media print {{ body {{ background: #fff; }} section {{ break-inside: avoid; }} }}
"""

_SCRIPT = """
const draw = chart => {
  const plot = chart.querySelector('.plot');
  if (plot.data || !chart.offsetParent) return;
  const figure = JSON.parse(chart.querySelector('script').textContent);
  Plotly.newPlot(plot, figure.data, figure.layout, {responsive: true, displaylogo: false, plotlyServerURL: '',
    showSendToCloud: false, modeBarButtonsToRemove: ['sendChartToCloud', 'lasso2d', 'select2d', 'autoScale2d']});
};
document.querySelectorAll('.chart').forEach(draw);
document.querySelectorAll('.tabbed').forEach(tabbed => {
  const buttons = [...tabbed.querySelectorAll('button')], panels = [...tabbed.querySelectorAll('.panel')];
  buttons.forEach((button, chosen) => button.addEventListener('click', () => {
    buttons.forEach((other, i) => other.setAttribute('aria-pressed', i === chosen));
    panels.forEach((panel, i) => { panel.hidden = i !== chosen; });
    panels[chosen].querySelectorAll('.chart').forEach(draw);
  }));
});
"""
