"""Published models beside the front, in words and as a table."""

from __future__ import annotations

from html import escape

from hardware_profiles import Basis
from nas.beside import Standing, hardest, standings
from nas.report.findings import Findings
from nas.report.page import badge, cell, number, section, table


def beside_section(found: Findings) -> str:
    """A row a published model, in the precision in which it holds out best; nothing where no score compares them."""
    every = standings(found.front, found.experiment, found.profile)
    if not every:
        return ""
    rows = hardest(every)
    left = [each.name for each in rows if not each.beaten and each.fits]
    beaten = sum(each.beaten for each in rows)
    told = (
        f"The front does not beat {escape(', '.join(left))}: none of its models is as good in every objective."
        if left
        else "No published model that fits into the device's memory is left unbeaten."
    )
    intro = (
        f"<strong>{beaten} of {len(rows)} beaten in every precision.</strong> {told} Each is shown in the precision in "
        "which it holds out best, priced on the same device, and scored as if it had been trained as the candidates "
        "are taken to be: architectures are compared, not recipes. “Beaten” is by a model of the front that is no "
        "worse in any objective and better in one; “ahead” is by how many points of the mean score that model is "
        "expected to lead (nine in ten), or the front's highest score where none does. “Faster by”: the soonest answer "
        "of those of the front that score as high."
    )
    head = ["model", "precision", "score, %", "first token, ms", "request, ms", "memory, MB"]
    head += ["beaten by", "ahead, points", "as good, faster by"]
    return section("Beside published models", intro, table(head, map(_row, rows)))


def _row(each: Standing) -> str:
    cost, score, ahead = each.cost, each.score, each.ahead
    mark = "" if each.fits else f'<em class="broken">does not fit{_instead(each)}</em>'
    by = f"<code>{escape(each.member.id)}</code>" if each.beaten else '<em class="broken">none</em>'
    cells = [
        f'<td class="what">{escape(each.name)}{mark}</td>',
        f"<td>{escape(each.precision)}</td>",
        f"<td>{_points(score.value)}{badge(Basis.PREDICTED)} ({_points(score.low)} to {_points(score.high)})</td>",
        cell(cost.time_to_first_token_s * 1e3, cost.basis),
        cell(cost.latency_s * 1e3, cost.basis),
        f"<td>{number(cost.memory.peak_bytes * 1e-6)}{badge(Basis.STATIC)}</td>",
        f"<td>{by}</td>",
        f"<td>{ahead.value * 100:+.1f} ({ahead.low * 100:+.1f} to {ahead.high * 100:+.1f})</td>",
        f"<td>{number(times)} times</td>" if (times := each.times_faster) else "<td>–</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _instead(each: Standing) -> str:
    """The largest scheme that would fit."""
    if not each.would_fit:
        return ", in no precision"
    quant, size_bytes = next(iter(each.would_fit.items()))
    return f", {escape(quant)} would ({number(size_bytes * 1e-6)} MB)"


def _points(share: float) -> str:
    return f"{share * 100:.1f}"
