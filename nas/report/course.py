"""How it was found: hypervolume over trials, which choices matter, what training did."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from hardware_profiles import Basis
from nas import pareto
from nas.archive import Evaluation, distributions
from nas.experiment import Experiment
from nas.report import figures
from nas.report.findings import Findings
from nas.report.page import badge, chart, count, section, table
from search_spaces import Value

#: Knob importance needs this many trials, and takes no more than the first so many: later ones crowd near the front.
IMPORTANCE_TRIALS = (20, 200)
IMPORTANCE_FORESTS, IMPORTANCE_TREES = 3, 8
#: A choice of more values is one axis of fANOVA, its values ordered by their mean: as names they take 2^values cells.
IMPORTANCE_NAMES = 10


def history_section(found: Findings) -> str:
    """Hypervolume over candidates, a chart a fidelity."""
    names, charts = found.experiment.objectives, []
    for what, proxy, evaluations in (
        ("cheap", found.experiment.proxy.cheap, found.cheap),
        *(("between", name, evaluations) for name, evaluations in found.between.items()),
        ("dear", found.experiment.proxy.dear, found.dear),
    ):
        fit = [evaluation.minimised(names) for evaluation in evaluations if not evaluation.refused]
        if len(fit) > 1:
            points = _hypervolumes(np.asarray(fit))
            figure = figures.lines_figure(
                {"share": points}, ("candidates", "hypervolume"), strong=frozenset({"share"}), shape="hv"
            )
            picture = chart(figure, f"hypervolume, {what}")
            charts.append(f"<div><h3>{what}: {escape(proxy)}, n = {len(fit)}</h3>{picture}</div>")
    intro = (
        "Hypervolume of the front so far, as a share of the box between the worst and best values of the whole "
        "experiment. Where the curve is flat, more trials of this sampler brought nothing; fidelities have "
        "different accuracies, so their curves cannot be compared."
    )
    return section("How the search went", intro, f'<div class="split">{"".join(charts)}</div>')


def _hypervolumes(values: pareto.Values) -> list[tuple[float, float]]:
    low, high = values.min(0), values.max(0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    checked = {round(i) for i in np.linspace(1, len(scaled), min(len(scaled), 80))}
    kept, points = scaled[:0], []
    for i in range(len(scaled)):
        kept = np.vstack([kept, scaled[i : i + 1]])
        if i + 1 in checked:
            kept = kept[pareto.front(kept)]
            points.append((float(i + 1), pareto.hypervolume(kept, [1.0] * values.shape[1])))
    return points


def importance_section(found: Findings) -> str:
    """Shares of the variance that each choice explains, of the cheap score and of the latency."""
    title = "Which choices matter"
    fewest, most = IMPORTANCE_TRIALS
    fit = [e for e in found.cheap if e.accuracy and not e.refused and math.isfinite(e.accuracy.value)][:most]
    if len(fit) < fewest:
        return section(title, f"{count(len(fit), 'trial')} of the cheap study are too few: {fewest} are needed.")
    targets = {
        f"{found.cheap_proxy} score": [e.accuracy.value for e in fit if e.accuracy],
        "latency (logarithm)": [math.log(e.cost.latency_s) for e in fit],
    }
    charts = []
    for (name, values), colour in zip(targets.items(), (figures.ACCENT, figures.PHASE_COLOURS["prefill"]), strict=True):
        shares = _importances(found.experiment, fit, values)
        picture = chart(figures.bars_figure(shares, colour), name) if shares else "<p>It is the same for all.</p>"
        charts.append(f"<div><h3>{name}</h3>{picture}</div>")
    intro = (
        f"fANOVA (optuna's, {IMPORTANCE_FORESTS} random forests of {IMPORTANCE_TREES} trees) over the first {len(fit)} "
        "candidates of the cheap study: the share of the variance that each choice explains alone, scaled to a sum of "
        "one; whiskers from the lowest to the highest forest. The sampler did not draw evenly, and interactions are "
        "left out."
    )
    return section(title, intro, f'<div class="split">{"".join(charts)}</div>')


def _importances(experiment: Experiment, fit: Sequence[Evaluation], values: Sequence[float]) -> dict[str, list[float]]:
    import optuna
    from optuna.distributions import BaseDistribution, IntDistribution
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(set(values)) < 2:
        return {}
    study, choices, places = optuna.create_study(), dict(distributions(experiment)), {}
    known: dict[str, BaseDistribution] = dict(choices)
    for name, choice in choices.items():
        if len(choice.choices) > IMPORTANCE_NAMES:
            places[name] = _by_mean([e.point[name] for e in fit], values)
            known[name] = IntDistribution(0, len(choice.choices))
    for evaluation, value in zip(fit, values, strict=True):
        point = {k: places[k][v] if k in places else v for k, v in evaluation.point.items()}
        study.add_trial(optuna.trial.create_trial(params=point, distributions=known, value=value))
    seeds = range(experiment.seed, experiment.seed + IMPORTANCE_FORESTS)
    forests = [FanovaImportanceEvaluator(n_trees=IMPORTANCE_TREES, seed=seed) for seed in seeds]
    shares = [get_param_importances(study, evaluator=forest) for forest in forests]
    return {name.replace("_", " "): [float(found[name]) for found in shares] for name in choices}


def _by_mean(names: Sequence[Value], values: Sequence[float]) -> dict[Value, int]:
    """The place of each name in the order of their mean values."""
    by_name: dict[Value, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        by_name.setdefault(name, []).append(value)
    return {name: place for place, name in enumerate(sorted(by_name, key=lambda each: float(np.mean(by_name[each]))))}


def training_section(found: Findings) -> str:
    """Loss curves and accuracy by kind of question; empty where no evaluation tells them."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for evaluation in found.dear:
        curve = evaluation.detail.get("loss_curve") or []
        pairs = [point if isinstance(point, list | tuple) else (i + 1, point) for i, point in enumerate(curve)]
        if pairs:
            curves[escape(evaluation.id)] = [(float(step), float(loss)) for step, loss in pairs]
    typed = [e for e in found.front if e.detail.get("by_question_type")]
    parts = []
    if curves:
        strong = frozenset(escape(e.id) for e in found.front) & curves.keys()
        figure = figures.lines_figure(curves, ("step", "loss on answers, nats"), strong=strong, shape="linear")
        parts.append(f"<div><h3>Loss; the front's in colour</h3>{chart(figure, 'training loss over steps')}</div>")
    if typed:
        parts.append(f"<div><h3>Accuracy by question</h3>{_question_table(typed)}</div>")
    diverged = sum(bool(e.refused) for e in (*found.dear, *itertools.chain(*found.between.values())))
    if not parts and not diverged:
        return ""
    seconds = [float(e.detail["seconds"]) for e in found.dear if e.detail.get("seconds")]
    spent = f" They took {sum(seconds):.0f} s of processor time together." if seconds else ""
    lost = f"{count(diverged, 'model')} diverged, on no front." if diverged else "None diverged."
    return section(
        "Training",
        f"{count(len(found.dear), 'model')} trained. {lost}{spent}",
        f'<div class="split">{"".join(parts)}</div>',
    )


def _blind(evaluation: Evaluation) -> tuple[float | None, Mapping[str, float]]:
    # What the commonest training answers yield without the image: overall, to the exact question, and by kind.
    blind = evaluation.detail.get("blind_baseline")
    if isinstance(blind, Mapping):
        kinds = blind.get("each_kind")
        overall = blind.get("by_text", blind.get("by_kind"))
        return overall, kinds if isinstance(kinds, Mapping) else {}
    return (float(blind), {}) if blind is not None else (None, {})


def _question_table(evaluations: Sequence[Evaluation]) -> str:
    kinds = list(dict.fromkeys(kind for e in evaluations for kind in e.detail["by_question_type"]))
    rows = []

    def row(name: str, total: float | None, values: Mapping[str, float], mark: str) -> str:
        cells = []
        for value in (total, *(values.get(kind) for kind in kinds)):
            tint = f' style="background:rgba(36,86,214,{0.32 * value:.2f})"' if value is not None else ""
            cells.append(f"<td{tint}>{f'{value:.0%}{mark}' if value is not None else '–'}</td>")
        return f'<tr><td class="what">{name}</td>{"".join(cells)}</tr>'

    for evaluation in evaluations:
        accuracy = evaluation.accuracy
        mark = badge(accuracy.basis) if accuracy else ""
        total = accuracy.value if accuracy else None
        rows.append(row(f"<code>{escape(evaluation.id)}</code>", total, evaluation.detail["by_question_type"], mark))
    overall, each = _blind(evaluations[0])
    if overall is not None:
        rows.append(row("commonest answer, no image", overall, each, badge(Basis.MEASURED)))
    return table(["model", "all", *(escape(str(kind)) for kind in kinds)], rows)
