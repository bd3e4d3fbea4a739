"""The front as a static SVG."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nas import query
from nas.archive import Archive
from nas.report.figures import ACCENT, FONT, GREY, GRID, INK, LOG_RANGE, MUTED, Points, staircase
from nas.report.page import count, save
from search_spaces import VLMConfig

_WIDTH, _HEIGHT = 880, 500
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 28, 72, 60
LABEL_KEY = "encoder, its depth x width · projector · depth x width of the decoder"


def front_picture(archive: Archive, path: Path) -> Path:
    """Write accuracy over latency of the front as SVG and return its path; raises NasError for an empty front."""
    front, experiment = query.front(archive), archive.experiment
    members = {evaluation.id for evaluation in front}
    labelled = [
        Labelled(e.cost.latency_s * 1e3, e.accuracy.value, _short(e.config(experiment))) for e in front if e.accuracy
    ]
    known = [e for e in archive.best_known() if e.id not in members]
    other = [(e.cost.latency_s * 1e3, e.accuracy.value) for e in known if e.accuracy]
    bases = ", ".join(sorted({evaluation.cost.basis for evaluation in front}))
    accuracies = ", ".join(sorted({f"{e.accuracy.proxy}, {e.accuracy.basis}" for e in front if e.accuracy}))
    purpose = "running" if archive.evaluations("dear") else "training"
    title = f"{count(len(front), 'model')} worth {purpose} on {experiment.device}"
    return save(
        path, front_svg(labelled, other, title, f"latency of a request, ms ({bases})", f"accuracy ({accuracies})")
    )


@dataclass(frozen=True, slots=True)
class Labelled:
    """A member of the front in the static picture: x and y in the unit shown, and a label of plain text."""

    x: float
    y: float
    label: str


def _short(config: VLMConfig) -> str:
    vision, language = config.vision, config.language
    encoder, decoder = f"{vision.family} {vision.depth}x{vision.width}", f"{language.depth}x{language.width}"
    return f"{encoder} · {config.projector.kind} · {decoder}"


def front_svg(front: Sequence[Labelled], other: Points, title: str, x_title: str, y_title: str) -> str:
    """The front (x: less is better, y: more is better) as SVG; texts are escaped here.

    A label without room is left out.
    """
    xs = [dot.x for dot in front] + [x for x, _ in other]
    ys = [dot.y for dot in front] + [y for _, y in other]
    across = _Scale.of(xs, _LEFT, _WIDTH - _RIGHT, log=min(xs) > 0 and max(xs) / min(xs) > LOG_RANGE)
    up = _Scale.of(ys, _HEIGHT - _BOTTOM, _TOP, log=False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" font-family="{html.escape(FONT)}" font-size="13" fill="{INK}">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="10" fill="#fff"/>',
        f'<text x="{_LEFT}" y="30" font-size="17" font-weight="600">{html.escape(title)}</text>',
        _text(_LEFT, 50, LABEL_KEY, "start", MUTED, 12),
    ]
    floor, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in across.ticks():
        x = across(value)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{floor}" stroke="{GRID}"/>')
        parts.append(_text(x, floor + 20, f"{value:g}", "middle", MUTED))
    for value in up.ticks():
        y = up(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{GRID}"/>')
        parts.append(_text(_LEFT - 10, y + 4, f"{value:g}", "end", MUTED))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 16, x_title, "middle", INK))
    middle = (_TOP + floor) / 2
    turned = f'transform="rotate(-90 22 {middle:.1f})"'
    parts.append(f'<text x="22" y="{middle:.1f}" text-anchor="middle" {turned}>{html.escape(y_title)}</text>')
    parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="4" fill="{GREY}"/>' for x, y in other]
    steps = staircase([(dot.x, dot.y) for dot in front], (1, -1))
    path = "".join(f"H{across(x):.1f}V{up(y):.1f}" for x, y in steps[1:])
    start = f"M{across(steps[0][0]):.1f} {up(steps[0][1]):.1f}"
    parts.append(f'<path d="{start}{path}H{right}" fill="none" stroke="{ACCENT}" stroke-width="2"/>')
    taken = [_around(across(dot.x), up(dot.y), 7) for dot in front]
    taken += [_around(across(x), up(y), 4) for x, y in other]
    for dot in sorted(front, key=lambda dot: -dot.y):
        x, y = across(dot.x), up(dot.y)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{ACCENT}" stroke="#fff" stroke-width="1.5"/>')
        placed = _place(x, y, dot.label, taken)
        if placed is not None:
            parts.append(placed)
    return "\n".join([*parts, "</svg>", ""])


#: left, top, right, bottom in pixels.
_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, log: bool) -> _Scale:
        low, high = min(values), max(values)
        if log:
            return cls(math.log10(low) - 0.08, math.log10(high) + 0.12, start, end, True)
        room = (high - low) * 0.12 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, start, end, False)

    def __call__(self, value: float) -> float:
        position = math.log10(value) if self.log else value
        return self.start + (position - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            nice = [mantissa * 10.0**decade for decade in decades for mantissa in (1, 2, 5)]
            return [value for value in nice if self.low <= math.log10(value) <= self.high]
        raw = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(mantissa * power for mantissa in (1, 2, 5, 10) if mantissa * power >= raw)
        first = math.ceil(self.low / step)
        return [round(i * step, 12) for i in range(first, math.floor(self.high / step) + 1)]


def _text(x: float, y: float, text: str, anchor: str, colour: str, size: float = 13) -> str:
    look = f'text-anchor="{anchor}" fill="{colour}" font-size="{size:g}" stroke="#fff" stroke-width="3"'
    look += ' paint-order="stroke"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{html.escape(text)}</text>'


def _around(x: float, y: float, radius: float) -> _Box:
    return x - radius, y - radius, x + radius, y + radius


def _place(x: float, y: float, label: str, taken: list[_Box]) -> str | None:
    width, height = 6.1 * len(label), 14.0  # of letters of 12 px
    for left, top, anchor in (
        (x + 11, y + 3, "start"),
        (x + 11, y + 15, "start"),
        (x - 11 - width, y - height - 3, "end"),
        (x + 11, y - height - 3, "start"),
        (x - 11 - width, y + 3, "end"),
    ):
        box = (left, top, left + width, top + height)
        inside = box[0] > _LEFT and box[2] < _WIDTH - 4 and box[1] > _TOP - 16 and box[3] < _HEIGHT - _BOTTOM
        if inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
        ):
            taken.append(box)
            return _text(left if anchor == "start" else left + width, top + 11, label, anchor, INK, 12)
    return None
