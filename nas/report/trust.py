"""How far to trust it: predicted against measured, the cheap score against training, work counted twice."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

import numpy as np

from hardware_profiles import Basis
from nas.count import COUNTED, fvcore_operations, kernel_operations, torch_operations
from nas.report import figures
from nas.report.figures import Dot
from nas.report.findings import Findings, hover
from nas.report.page import badge, chart, count, number, section, table
from search_spaces import SPACES

#: Front members whose operations are counted twice: each is a run of its network.
COUNTED_MEMBERS = 4
#: Phases of a measured record; its vision includes the projector.
_PHASES = ("vision", "prefill", "decode")


def agreement_section(found: Findings) -> str:
    """Predicted over measured seconds by phase, with median and worst error."""
    title = "Predicted against measured"
    phases: dict[str, list[Dot]] = {}
    for key, record in found.measured.items():
        predicted, measured = dict(record.get("predicted_s", {})), dict(record.get("measured_s", {}))
        predicted["request"], measured["request"] = record.get("latency_predicted_s"), record.get("latency_measured_s")
        for phase in (*_PHASES, "request"):
            if predicted.get(phase) and measured.get(phase):
                x, y = measured[phase] * 1e3, predicted[phase] * 1e3
                off = f"{y / x - 1:+.1%}"
                text = f"<b>{escape(key)}</b> {phase}<br>predicted {number(y)} ms, measured {number(x)} ms: {off}"
                phases.setdefault(phase, []).append(Dot(x, y, text))
    if not phases:
        return section(title, "Nothing of this experiment has been measured on a device yet.")
    rows = []
    for phase in (*_PHASES, "request"):
        if dots := phases.get(phase):
            errors = [dot.y / dot.x - 1 for dot in dots]
            worst = max(errors, key=abs)
            near = sum(abs(error) <= 0.1 for error in errors)
            cells = (len(dots), f"{statistics.median(map(abs, errors)):.1%}", f"{worst:+.1%}")
            bias = f"{statistics.median(errors):+.1%}"
            body = "".join(f"<td>{cell}</td>" for cell in (*cells, bias, f"{near} of {len(dots)}"))
            rows.append(f'<tr><td class="what">{phase}</td>{body}</tr>')
    every = [dot.y / dot.x - 1 for phase, dots in phases.items() if phase != "request" for dot in dots]
    every = every or [dot.y / dot.x - 1 for dot in phases["request"]]
    devices = sorted({str(record.get("device", "a device without name")) for record in found.measured.values()})
    intro = (
        f"{count(len(found.measured), 'model')} measured on {escape(', '.join(devices))}. Over their phases the median "
        f"error is <strong>{statistics.median(map(abs, every)):.1%}</strong>, the worst "
        f"<strong>{max(every, key=abs):+.1%}</strong> (n = {len(every)}). Vision includes the projector."
    )
    disturbed = sum(not record.get("quiet", True) for record in found.measured.values())
    if disturbed:
        intro += f" Something else slowed the machine while {count(disturbed, 'model')} of them ran: measure again."
    by_phase = table(["phase", "n", "median error", "worst", "bias", "within ±10 %"], rows)
    picture = chart(figures.agreement_figure(phases), "predicted over measured milliseconds")
    return section(title, intro, f'<div class="split">{picture}{by_phase}</div>')


def proxy_section(found: Findings) -> str:
    """Rank correlation of the cheap score with the accuracy after training, beside what would cost nothing."""
    title = "Can the cheap score be trusted?"
    scores = {e.id: e.accuracy.value for e in found.cheap if e.accuracy}
    both = [e for e in found.dear if e.id in scores and e.accuracy]
    if len(both) < 3:
        return section(
            title, f"{count(len(both), 'model')} with both a cheap score and an accuracy are too few to tell."
        )
    accuracies, n = [e.accuracy.value for e in both if e.accuracy], len(both)
    tau = kendall_tau([scores[e.id] for e in both], accuracies)
    # 97.5 % quantile of tau under independence (Kendall, Biometrika 30, 1938): near normal from n = 8 or so.
    chance = min(1.0, 1.96 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))))
    rivals = {"number of parameters": "parameters", "predicted latency": "latency"}
    taus = {f"{found.cheap_proxy} score": tau} | {
        words: kendall_tau([found.shown(e, name) for e in both], accuracies) for words, name in rivals.items()
    }
    for name, evaluations in found.between.items():
        told = {e.id: e.accuracy.value for e in evaluations if e.accuracy}
        pairs = [(told[e.id], e.accuracy.value) for e in both if e.id in told and e.accuracy]
        if len(pairs) > 2:
            taus[f"{escape(name)}, of {len(pairs)}"] = kendall_tau(*zip(*pairs, strict=True))
    rows = (
        f'<tr><td class="what">{words}</td><td>{"–" if value is None else f"{value:+.2f}"}</td><td>{n}</td></tr>'
        for words, value in taus.items()
    )
    if tau is None:
        verdict = "One of the two is the same for all, so there is no rank correlation."
    else:
        meaning = "beyond chance" if abs(tau) > chance else "not distinguishable from chance"
        verdict = (
            f"Kendall's τ between {found.cheap_proxy} score and trained accuracy is <strong>{tau:+.2f}</strong> "
            f"(n = {n}): {meaning}, as unrelated rankings of {n} reach ±{chance:.2f} in one case of twenty."
        )
    intro = (
        f"{verdict} Beside it, rankings that cost nothing: a score that does not beat them adds little. Only promising "
        "candidates were trained, so this says nothing about those that the score had put last."
    )
    dots = [Dot(scores[e.id], y, hover(found, e)) for e, y in zip(both, accuracies, strict=True)]
    figure = figures.scatter_figure(dots, (f"{found.cheap_proxy} score", "trained accuracy"))
    picture, by_ranking = chart(figure, "trained accuracy over cheap score"), table(["ranking by", "τ", "n"], rows)
    return section(title, intro, f'<div class="split">{picture}{by_ranking}</div>')


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b, -1 to 1; None where one of the two never differs."""
    dx, dy = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(x), np.asarray(y)))
    scale = math.sqrt(float((dx**2).sum() * (dy**2).sum()))
    return float((dx * dy).sum()) / scale if scale else None


def operations_section(found: Findings) -> str:
    """Operations of front members by our kernels and by fvcore, or by torch where a network is too large to run."""
    workload, rows, equal = found.experiment.workload.workload(), [], 0
    members = found.front[:COUNTED_MEMBERS]
    large = SPACES[found.experiment.space].full_size
    counter, name = (torch_operations, "torch") if large else (fvcore_operations, "fvcore")
    for evaluation in members:
        config = evaluation.config(found.experiment)
        ours, theirs = kernel_operations(config, workload), counter(config, workload)
        same = ours == theirs
        equal += same
        cells = [f"<td>{counts[graph]:,}{badge(Basis.STATIC)}</td>" for graph in COUNTED for counts in (ours, theirs)]
        mark = "equal" if same else '<em class="broken">differs</em>'
        rows.append(
            f'<tr><td class="what"><code>{escape(evaluation.id)}</code></td>{"".join(cells)}<td>{mark}</td></tr>'
        )
    head = ["model", "vision + projector: ours", name, "prefill: ours", name, ""]
    how = "torch in a run that holds no weights" if large else "fvcore in a trace of the network"
    which = f"the {len(members)} most accurate" if len(members) < len(found.front) else "all"
    intro = (
        "Operations of matrix products, convolutions and attention, counted from the config by our kernels and by "
        f"{how}, for {which} of the front: <strong>{equal} of {len(members)} equal</strong>. "
        "A multiply-add is two operations; decode is not counted by both."
    )
    return section("Work, counted twice", intro, table(head, rows))
