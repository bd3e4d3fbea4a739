"""What was found: the answer, the front as charts and as a table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from hardware_profiles import Basis
from nas.archive import Evaluation
from nas.experiment import Experiment, PlacementSpec
from nas.fitting import would_fit
from nas.objectives import CAPS, OBJECTIVES, violations
from nas.report import figures
from nas.report.figures import Axis, Dot
from nas.report.findings import Findings, hover, in_words
from nas.report.page import badge, cell, chart, count, number, section, table
from search_spaces.placement import cuts_named


def _answer(found: Findings) -> str:
    front, name = found.front, next(n for n in found.experiment.objectives if n != "accuracy")
    best = max(front, key=lambda e: found.shown(e, "accuracy"))
    least = min(front, key=lambda e: found.shown(e, name))
    word = "accuracy" if found.trained else f"{found.score} score"
    suffix = "" if name == "latency" else f" {found.title(name)}"

    def told(e: Evaluation) -> str:
        accuracy, cost = number(found.shown(e, "accuracy")), number(found.shown(e, name))
        unit = OBJECTIVES[name].unit
        return (
            f"{accuracy}{badge(found.basis(e, 'accuracy'))} {word} at {cost} {unit}{suffix}"
            f"{badge(found.basis(e, name))}"
        )

    verb = "is" if len(front) == 1 else "are"
    purpose = "worth running" if found.trained else "worth training"
    start = f"{count(len(front), 'model')} {verb} {purpose} on {escape(found.profile.full_title)}: "
    return start + (told(best) if best is least else f"from {told(best)} to {told(least)}") + "."


def _caps(experiment: Experiment) -> str:
    told = []
    for cap, limit in experiment.caps.items():
        bounded = OBJECTIVES[CAPS[cap]]
        relation = "≤" if bounded.sign > 0 else "≥"
        words = in_words(bounded.name)
        told.append(f"{words} {relation} {limit:g} {bounded.unit}".strip())
    return "; ".join(told) or "none"


def _placement(spec: PlacementSpec) -> str:
    given = (spec.uplink_mbit, "Mbit/s up"), (spec.downlink_mbit, "Mbit/s down"), (spec.round_trip_ms, "ms round trip")
    link = ", ".join(f"{value:g} {unit}" for value, unit in given if value is not None) or "by the device's profile"
    cuts = ", ".join(cuts_named(spec.cuts, spec.no_pixels_leave))
    return f"cloud {spec.cloud}; link {link}; best cut of {cuts}; features in {spec.features}"


def header(found: Findings) -> str:
    """The answer in one sentence, and what was asked."""
    experiment, profile, work = found.experiment, found.profile, found.experiment.workload
    fit = sum(not evaluation.refused for evaluation in found.cheap)
    space = experiment.searched
    others = ", ".join(each.full_title for each, _ in found.fronts if each is not profile)
    facts = {
        "Device": f"{profile.full_title}; {profile.chip}; runs on {profile.runs_on}, "
        f"{count(profile.threads.value, 'thread')}",
        **({"Other devices": others} if others else {}),
        "One request": f"{count(work.images, 'image')}, {count(work.prompt_tokens, 'prompt token')}, "
        f"{count(work.new_tokens, 'new token')}",
        **({"Placement": _placement(experiment.placement)} if experiment.placement else {}),
        "Caps": _caps(experiment),
        "Objectives": ", ".join(in_words(name) for name in experiment.objectives),
        "Search": f"space {space.name} of {space.size:,} models, sampler {experiment.sampler}, seed {experiment.seed}",
        "Candidates": f"{fit} scored with {experiment.proxy.cheap}, {len(found.dear)} {experiment.proxy.dear}, "
        f"{len(found.cheap) - fit} refused for breaking a cap, {len(found.measured)} measured",
    }
    rows = "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())
    legend = " ".join(f"<span>{badge(basis)} {basis}</span>" for basis in Basis)
    return (
        f'<header><p class="eyebrow">edge-vlm-nas · experiment {escape(experiment.name)}</p>'
        f'<h1>{_answer(found)}</h1><dl>{rows}</dl><p class="legend">How a number was obtained: {legend}</p></header>'
    )


def front_section(found: Findings) -> str:
    """A chart a pair of objectives; accuracy is an axis of the first ones."""
    names = found.experiment.objectives
    others = [name for name in names if name != "accuracy"]
    pairs = [(name, "accuracy") for name in others] + list(itertools.combinations(others, 2))
    members, known = {e.id for e in found.front}, {e.id for e in found.known}
    fit = [evaluation for evaluation in found.cheap if not evaluation.refused]
    text = {id(e): hover(found, e) for e in (*found.known, *fit)}

    def dots(evaluations: Iterable[Evaluation], x: str, y: str) -> list[Dot]:
        return [Dot(found.shown(e, x), found.shown(e, y), text[id(e)]) for e in evaluations]

    def axis(name: str) -> Axis:
        unit = OBJECTIVES[name].unit
        return Axis(found.title(name) + (f", {unit}" if unit else ""), OBJECTIVES[name].sign)

    tabs, panels = [], []
    for i, (x, y) in enumerate(pairs):
        apart = y == "accuracy" and found.trained
        other = [e for e in found.known if e.id not in members] if found.trained else []
        shown = members if not found.trained else known if not apart else set()
        grey = [e for e in fit if e.id not in shown]
        below = Axis(f"{found.cheap_proxy} score", -1) if apart else None
        figure = figures.front_figure(
            dots(other, x, y), dots(found.front, x, y), dots(grey, x, y), axis(x), axis(y), below
        )
        label = f"{found.title(y)} over {found.title(x)}"
        tabs.append(f'<button type="button" aria-pressed="{str(i == 0).lower()}">{label}</button>')
        panels.append(f'<div class="panel"{"" if i == 0 else " hidden"}>{chart(figure, label)}</div>')
    refused = Counter(cap for evaluation in found.cheap for cap in evaluation.refused)
    caps = ", ".join(f"{escape(cap)}: {times}" for cap, times in sorted(refused.items()))
    refusals = sum(bool(evaluation.refused) for evaluation in found.cheap)
    left_out = (
        f" {refusals} more broke a cap ({caps}) and are not shown.{_would_fit(found)}"
        if refusals
        else " None broke a cap."
    )
    lower = (
        f" An accuracy is known of the trained only; of all candidates, grey, the panel under it shows the "
        f"{found.cheap_proxy} score, which only ranks."
        if found.trained
        else " Nothing has been trained yet: the score only ranks."
    )
    intro = f"No other candidate is better in one objective without being worse in another.{lower}{left_out}"
    buttons = f'<div class="tabs">{"".join(tabs)}</div>' if len(pairs) > 1 else ""
    return section("The front", intro, f'<div class="tabbed">{buttons}{"".join(panels)}</div>')


def _would_fit(found: Findings) -> str:
    """How many of those that the device cannot hold would fit under which scheme."""
    if found.experiment.placement is not None:
        return ""
    usable, workload = found.profile.usable_memory_bytes, found.experiment.workload.workload()
    large = [e for e in found.cheap if e.cost.memory.peak_bytes > usable][-ASKED_TO_FIT:]
    instead = Counter(
        next(iter(would_fit(e.config(found.experiment), workload, usable, e.cost.memory)), "") for e in large
    )
    if not large:
        return ""
    none = instead.pop("", 0)
    parts = [f"{times} in {escape(quant)}" for quant, times in instead.most_common()]
    parts += [f"{none} in no precision"] * bool(none)
    return (
        f" {found.profile.title} has {number(usable * 1e-6)} MB for a model: of {count(len(large), 'candidate')} "
        f"that need more, would fit, in the widest precision that does: {', '.join(parts)}."
    )


#: Refused candidates of which a report says what would fit: the newest.
ASKED_TO_FIT = 200
#: A longer table of the front is folded away behind so many members.
SHOWN_MEMBERS = 24


def table_section(found: Findings) -> str:
    """One row a member of the front: predicted by phase, measured beside it, errors of its exports."""
    rows, breaking = [], 0
    tested = any("test_accuracy" in evaluation.detail for evaluation in found.front)
    for evaluation in found.front:
        cost, accuracy = evaluation.cost, evaluation.accuracy
        broken = violations(found.experiment.caps, cost, accuracy if found.trained else None)
        breaking += bool(broken)
        marks = "".join(f'<em class="broken">breaks {escape(v.cap)}</em>' for v in broken)
        what = escape(found.words[evaluation.id])
        cells = [f'<td class="what"><code>{escape(evaluation.id)}</code>{marks}<small>{what}</small></td>']
        cells += [cell(found.shown(evaluation, name), found.basis(evaluation, name)) for name in ("parameters",)]
        cells.append(cell(accuracy.value, accuracy.basis) if accuracy else "<td>–</td>")
        if tested:
            share = evaluation.detail.get("test_accuracy")
            cells.append("<td>–</td>" if share is None else cell(share, Basis.MEASURED))
        phases = (cost.vision, cost.projector, cost.prefill, cost.decode, cost.first_token, cost.total)
        cells += [cell(phase.latency_s * 1e3, phase.basis) for phase in phases[:-1]]
        cells.append(f"<td>{number(cost.latency_s * 1e3)}{badge(cost.basis)}{_shares(evaluation)}</td>")
        cells += [cell(found.shown(evaluation, n), found.basis(evaluation, n)) for n in ("peak_memory", "energy")]
        cells += _measured_cells(found.measured.get(evaluation.id, {}))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    groups = (
        f'<tr class="groups"><th colspan="{3 + tested}"></th>'
        '<th colspan="6">predicted latency, ms</th><th colspan="2">request</th>'
        '<th colspan="2">measured latency</th><th colspan="2">relative error</th></tr>'
    )
    head = ["model", "params, M", "accuracy" if found.trained else f"{found.score} score"]
    head += ["test accuracy"] if tested else []
    head += ["vision", "projector", "prefill", "decode / token", "first token", "request", "memory, MB", "energy, mJ"]
    head += ["request, ms", "predicted off by", "ONNX", "TVM"]
    shares = "".join(f'<i style="background:{figures.PHASE_COLOURS[p]}"></i> {p} ' for p in (*_FIRST, "decode"))
    devices = sorted({str(record["device"]) for record in found.measured.values() if record.get("device")})
    where = f" Measured on {escape(', '.join(devices))}." if devices else ""
    caps = f" {breaking} of them break a cap and are marked." if breaking else ""
    held = " Test accuracy is of images that neither training nor the search saw." if tested else ""
    link = ""
    if found.experiment.placement:
        shares += f'<i style="background:{figures.LINK_COLOUR}"></i> link '
        link = " + link"
    key = f'<p class="key">Where the time of a request goes: {shares}</p>'
    intro = (
        f"{'Most accurate' if found.trained else 'Highest score'} first. "
        f"First token = vision + projector + prefill{link}; "
        f"request = first token + {found.experiment.workload.new_tokens} × decode. “Off by”: predicted / measured − 1. "
        f"Relative error: an export against torch, share of the largest output.{held}{where}{caps}"
    )
    title = f"The {count(len(rows), 'model')} of the front"
    if len(rows) <= SHOWN_MEMBERS:
        return section(title, intro, table(head, rows, groups), key)
    first = {round(at * (len(rows) - 1) / (SHOWN_MEMBERS - 1)) for at in range(SHOWN_MEMBERS)}
    shown = [row for at, row in enumerate(rows) if at in first]
    folded = f"<details><summary>all {len(rows)}</summary>{table(head, rows, groups)}</details>"
    intro += f" {len(shown)} of them, from the first to the last."
    return section(title, intro, table(head, shown, groups), key, folded)


#: Phases before the first token.
_FIRST = ("vision", "projector", "prefill")


def _shares(evaluation: Evaluation) -> str:
    cost = evaluation.cost
    seconds = {name: getattr(cost, name).latency_s for name in _FIRST} | {
        "decode": cost.decode.latency_s * cost.new_tokens
    }
    colours = {**figures.PHASE_COLOURS, "link": figures.LINK_COLOUR}
    if cost.away:
        seconds["link"] = cost.away.link.latency_s
    bars = "".join(
        f'<i style="width:{100 * value / cost.latency_s:.1f}%;background:{colours[name]}" '
        f'title="{name} {number(value * 1e3)} ms"></i>'
        for name, value in seconds.items()
    )
    return f'<span class="shares">{bars}</span>'


def _measured_cells(record: Mapping[str, Any]) -> list[str]:
    measured, predicted = record.get("latency_measured_s"), record.get("latency_predicted_s")
    cells = ["<td>–</td>", "<td>–</td>"]
    if measured:
        cells[0] = cell(measured * 1e3, Basis.MEASURED)
        if predicted:
            error = predicted / measured - 1
            css = ' class="off"' if abs(error) > 0.1 else ""
            cells[1] = f"<td{css}>{error:+.1%}</td>"
    for key in ("onnx_max_error", "tvm_max_error"):
        value = record.get(key)
        cells.append("<td>–</td>" if value is None else f"<td>{float(value):.1e}{badge(Basis.MEASURED)}</td>")
    return cells
