"""The fronts of several devices side by side: the accuracies are the same, what they cost is each device's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from hardware_profiles import Profile
from nas.archive import Evaluation
from nas.asked import first_cost
from nas.choice import knee_of
from nas.objectives import OBJECTIVES, objective
from nas.report import figures
from nas.report.figures import Axis, Dot
from nas.report.findings import Findings, in_words
from nas.report.page import cell, chart, count, number, section, table


def fleet_section(found: Findings) -> str:
    """A chart with a trace a device, what each device's front offers, and the fronts themselves; of one device none."""
    if len(found.fronts) < 2:
        return ""
    cost = first_cost(found.experiment.objectives)
    unit, scale = OBJECTIVES[cost].unit, OBJECTIVES[cost].scale
    serving = Counter(member.id for _, front in found.fronts for member in front)
    traces = {
        escape(profile.called): [
            Dot(
                objective(cost).value(e.cost, e.accuracy) * scale,
                e.accuracy.value if e.accuracy else 0.0,
                f"<b>{escape(e.id)}</b> on {escape(profile.called)}<br>{escape(found.words[e.id])}<br>"
                f"on the front of {count(serving[e.id], 'device')}",
            )
            for e in front
        ]
        for profile, front in found.fronts
    }
    words = found.title("accuracy")
    figure = figures.fleet_figure(traces, Axis(f"{in_words(cost)}, {unit}", 1), Axis(words, -1))
    rows = [_row(found, profile, front, serving, cost) for profile, front in found.fronts]
    noun = "accuracy" if found.trained else "score"
    head = ["device", "models", "on no other front", f"highest {noun}", f"at {unit}", f"least {unit}", f"at {noun}"]
    head += ["knee", f"its {noun}", f"at {unit}"]
    everywhere = sum(times == len(found.fronts) for times in serving.values())
    intro = (
        f"Each accuracy was estimated once and serves {len(found.fronts)} devices; costs are each device's own. "
        f"{count(len(serving), 'model')} on the fronts, {everywhere} of them on all. The caps hold on every device, "
        f"and so does its own memory; other sections are of {escape(found.profile.full_title)}."
    )
    folded = "".join(
        f"<details><summary>{escape(profile.full_title)}: {count(len(front), 'model')}</summary>"
        f"{_members(found, profile, front)}</details>"
        for profile, front in found.fronts
    )
    return section("The front on each device", intro, chart(figure, "a front a device"), table(head, rows), folded)


def _row(found: Findings, profile: Profile, front: Sequence[Evaluation], serving: Counter[str], cost: str) -> str:
    if not front:
        return f'<tr><td class="what">{escape(profile.full_title)}</td><td>0</td>{"<td>–</td>" * 8}</tr>'
    alone = sum(serving[member.id] == 1 for member in front)
    knee = knee_of(front, cost, found.experiment.objectives)
    best = max(front, key=lambda e: found.shown(e, "accuracy"))
    least = min(front, key=lambda e: found.shown(e, cost))

    def both(e: Evaluation, first: str, second: str) -> str:
        return "".join(
            cell(found.shown(e, name), objective(name).basis(e.cost, e.accuracy, profile)) for name in (first, second)
        )

    middle = f"<td><code>{escape(knee.id)}</code></td>{both(knee, 'accuracy', cost)}" if knee else "<td>–</td>" * 3
    return (
        f'<tr><td class="what">{escape(profile.full_title)}</td><td>{len(front)}</td><td>{alone}</td>'
        f"{both(best, 'accuracy', cost)}{both(least, cost, 'accuracy')}{middle}</tr>"
    )


def _members(found: Findings, profile: Profile, front: Sequence[Evaluation]) -> str:
    names = found.experiment.objectives
    head = ["model", *(f"{found.title(n)} {OBJECTIVES[n].unit}".strip() for n in names), "parameters, M"]
    rows = []
    for e in front:
        cells = [cell(found.shown(e, n), objective(n).basis(e.cost, e.accuracy, profile)) for n in names]
        what = f"<code>{escape(e.id)}</code><small>{escape(found.words[e.id])}</small>"
        size = number(found.shown(e, "parameters"))
        rows.append(f'<tr><td class="what">{what}</td>{"".join(cells)}<td>{size}</td></tr>')
    return table(head, rows)
