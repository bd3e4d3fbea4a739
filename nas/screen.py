"""What the command line shows: tables, progress, JSON. Milliseconds and megabytes appear only here and in reports."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from hardware_profiles import Profile
    from nas.archive import Archive, Evaluation
    from nas.search import Progress

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar per stage on standard error with the time left; where that is no terminal, a line per tenth."""
    if not err.is_terminal:
        yield _line_progress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=err) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: float, total: float, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield show


def _line_progress() -> Progress:
    told: dict[str, int] = {}

    def show(stage: str, done: float, total: float, note: str = "") -> None:
        tenth = int(10 * done / total) if total else 10
        if told.get(stage, -1) < tenth:
            told[stage] = tenth
            err.print(f"{stage}: {done:g} of {total:g} {note}", markup=False)

    return show


def front_table(members: Sequence[Evaluation], archive: Archive, profile: Profile, title: str) -> Table:
    """One row a member: accuracy, latency with what was measured beside it, memory, parameters."""
    from nas.objectives import OBJECTIVES
    from nas.query import is_own

    own = is_own(archive, profile)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("id", no_wrap=True)
    for heading in ("accuracy", "predicted", "measured", "error", "memory", "params"):
        table.add_column(heading, justify="right", no_wrap=True)
    for member in members:
        measured = archive.measured(member.id) if own else None
        beside = ("-", "-")
        if measured:
            seconds, predicted = measured["latency_measured_s"], measured["latency_predicted_s"]
            beside = (OBJECTIVES["latency"].show(seconds), f"{(predicted / seconds - 1) * 100:+.0f} %")
        accuracy, latency, memory, parameters = (
            OBJECTIVES[name].show(OBJECTIVES[name].value(member.cost, member.accuracy))
            for name in ("accuracy", "latency", "peak_memory", "parameters")
        )
        table.add_row(member.id, accuracy, latency, *beside, memory, parameters)
    return table


def front_models(members: Sequence[Evaluation], archive: Archive) -> str:
    """The models of a table in words, a line each."""
    from nas.query import describe

    return "\n".join(f"{member.id}  {describe(member, archive)}" for member in members)


def detail_table(member: Evaluation, archive: Archive, profile: Profile, title: str) -> Table:
    """Every objective of one model with its basis, its latency by phase, and what was measured of it."""
    from nas.objectives import OBJECTIVES
    from nas.query import describe, is_own, phases_s

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_column()
    table.add_row("id", member.id)
    table.add_row("model", describe(member, archive))
    for name, objective in OBJECTIVES.items():
        if objective.of is not None or member.accuracy is not None:
            value = objective.value(member.cost, member.accuracy)
            table.add_row(name, objective.show(value), objective.basis(member.cost, member.accuracy, profile).value)
    for phase, seconds in phases_s(member.cost).items():
        table.add_row(f"latency of {phase}", OBJECTIVES["latency"].show(seconds), member.cost.basis.value)
    measured = archive.measured(member.id) if is_own(archive, profile) else None
    if measured:
        table.add_row("latency, end to end", OBJECTIVES["latency"].show(measured["latency_measured_s"]), "measured")
    return table


def basis_line(members: Sequence[Evaluation], archive: Archive, profile: Profile) -> str:
    """How the numbers of a table were obtained."""
    from nas.objectives import OBJECTIVES
    from nas.query import is_own

    first = members[0]
    told = [
        f"{name} {OBJECTIVES[name].basis(first.cost, first.accuracy, profile).value}"
        for name in ("accuracy", "latency", "peak_memory", "energy")
    ]
    proxy = first.accuracy.proxy if first.accuracy else "none"
    share = f"{100 * first.cost.total.timed_share:.0f} % of its latency from kernels timed on {profile.name}"
    own = is_own(archive, profile)
    records = [record for member in members if own and (record := archive.measured(member.id))]
    disturbed = sum(not record["quiet"] for record in records)
    warning = (
        f"\n{disturbed} of {len(records)} were measured while something else slowed this machine down: "
        "run the search again to measure them again"
    )
    told_basis = f"basis: {', '.join(told)} (accuracy by the proxy {proxy}; of the first row {share})"
    return told_basis + (warning if disturbed else "")


def prediction_table(predicted: dict[str, Any]) -> Table:
    """Kernels by phase, dearest first."""
    table = Table(title=f"{predicted['id']} on {predicted['device']}", title_justify="left", box=None, pad_edge=False)
    for heading in ("phase", "kernel"):
        table.add_column(heading)
    for heading in ("count", "one run", "in all", "share"):
        table.add_column(heading, justify="right")
    table.add_column("basis")
    for name, phase in predicted["phases"].items():
        unsure = "" if phase["deviation_s"] is None else f" ± {phase['deviation_s'] * 1e3:.3f}"
        table.add_row(name, "", "", "", f"{phase['latency_s'] * 1e3:.3f}{unsure} ms", "100 %", "", style="bold")
        for row in phase["kernels"]:
            share = row["total_s"] / phase["latency_s"]
            one, whole = f"{row['seconds'] * 1e6:.1f} us", f"{row['total_s'] * 1e3:.3f} ms"
            table.add_row("", row["kernel"], str(row["count"]), one, whole, f"{share:.0%}", row["basis"])
        if phase["overhead_s"] > 1e-9:
            whole, share = f"{phase['overhead_s'] * 1e3:.3f} ms", phase["overhead_s"] / phase["latency_s"]
            table.add_row("", "beside the kernels", "", "", whole, f"{share:.0%}", "predicted")
    return table


def prediction_totals(predicted: dict[str, Any]) -> str:
    """One line an objective, with its basis."""
    from nas.objectives import OBJECTIVES

    lines = [
        f"{name:20} {OBJECTIVES[name].show(number['value']):>12}  {number['basis']}"
        for name, number in predicted["objectives"].items()
    ]
    if not predicted["fits_in_memory"]:
        would = ", ".join(f"{quant} ({size / 1e9:.2f} GB)" for quant, size in predicted["would_fit"].items())
        told = f"; as {would} it would" if would else "; nor under any quantisation"
        usable = predicted["usable_memory_bytes"] / 1e9
        lines.append(f"does not fit into the {usable:.2f} GB that {predicted['device']} has left{told}")
    if "scores" in predicted:
        lines.append("expected of it by published results, trained as LLaVA-1.5 (assumed), nine in ten between:")
        lines += [
            f"{name:20} {score['value']:>12.0f}  {score['low']:.0f} to {score['high']:.0f}, {score['basis']}"
            for name, score in predicted["scores"].items()
        ]
        lines += [f"  {why}" for why in predicted["scores_outside"]]
    return "\n".join(lines)


def systems_table(systems: Sequence[dict[str, Any]]) -> Table:
    """One row a published model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right")
    for heading in ("encoder", "projector", "decoder"):
        table.add_column(heading, overflow="fold")
    table.add_column("basis", no_wrap=True)
    for system in systems:
        table.add_row(
            system["name"],
            f"{system['parameters'] / 1e6:,.0f} M",
            f"{system['encoder']} at {system['image_px']} px",
            f"{system['projector']} to {system['image_tokens']}",
            system["decoder"],
            system["basis"],
        )
    return table


def devices_table(profiles: Sequence[Profile]) -> Table:
    """One row a device: peak, bandwidth, memory, and how its kernels are priced."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", no_wrap=True)
    table.add_column("computes on")
    for heading in ("fp32 GFLOP/s", "GB/s", "memory"):
        table.add_column(heading, justify="right")
    table.add_column("latency by")
    for profile in profiles:
        peak, bandwidth = profile.peak_ops_per_s.fp32, profile.bandwidth_bytes_per_s
        table.add_row(
            profile.name,
            profile.runs_on if profile.runs_on == "gpu" else f"cpu, threads: {profile.threads.value}",
            f"{peak.value / 1e9:.4g} {peak.basis.value}",
            f"{bandwidth.value / 1e9:.3g} {bandwidth.basis.value}",
            f"{profile.memory_bytes.value / 1e9:.1f} GB",
            _latency_by(profile),
        )
    return table


def _latency_by(profile: Profile) -> str:
    from cost_models.learned import LearnedModel

    if not LearnedModel.is_fitted(profile):
        return "roofline"
    return " and ".join(f"{basis.value} kernels" for basis in LearnedModel.of(profile).table_bases())


def devices_note(profiles: Sequence[Profile]) -> str:
    """The titles of the devices, and how good the predictors of those with timed kernels are."""
    from cost_models.corrected import CorrectedModel
    from cost_models.learned import LearnedModel
    from cost_models.models import cost_model

    lines = [f"{profile.name}: {profile.full_title}" for profile in profiles]
    for profile in profiles:
        if LearnedModel.is_fitted(profile):
            lines.append(f"{profile.name}: {LearnedModel.of(profile).told()}")
        for runtime in profile.runtimes:
            if isinstance(corrected := cost_model("auto", profile.in_runtime(runtime)), CorrectedModel):
                lines.append(f"{profile.name}: {corrected.told()}")
    return "\n".join(lines)


def show_device(found: dict[str, Any]) -> None:
    """What a measurement or an estimation ended with."""
    kernels = ", ".join(f"{count} {basis}" for basis, count in found["kernels"].items()) or "none"
    out.print(f"{found['device']}: kernels {kernels}; kept in {found['folder']}", markup=False, soft_wrap=True)
    for kernel, reason in found.get("failed", {}).items():
        out.print(f"not estimated: {kernel}: {reason}", markup=False, soft_wrap=True)
    if found["predictor"]:
        error = found["predictor"]
        out.print(
            f"predictor: {error['within_10_percent']:.1%} of held-out kernels within 10 % (MAPE {error['mape']:.1%}; "
            f"measuring twice: {error['noise_within_10_percent']:.1%})",
            markup=False,
        )


def show_validation(found: dict[str, Any]) -> None:
    """Predicted against measured by kind and phase, and what else a benchmark found."""
    table = Table(title=f"{found['device']}: predicted against measured, held out", title_justify="left", box=None)
    for heading in ("", "held out", "within 10 %", "MAPE", "Spearman"):
        table.add_column(heading, justify="left" if not heading else "right")
    kernels = found["kernels"]
    parts = [("kernels", kernels), *((f"  {kind}", part) for kind, part in kernels["by_kind"].items())]
    if "models" in found:
        models = found["models"]
        parts += [("whole models", models), *((f"  {name}", part) for name, part in models["by_phase"].items())]
    for name, part in parts:
        rank = f"{part['spearman']:.4f}" if "spearman" in part else ""
        table.add_row(
            name, str(part.get("held_out", "")), f"{part['within_10_percent']:.1%}", f"{part['mape']:.1%}", rank
        )
    out.print(table)
    out.print(f"kernels measured twice: {kernels['noise_within_10_percent']:.1%} within 10 %", markup=False)
    if "models" in found:
        out.print(f"whole models timed undisturbed: {found['models']['undisturbed']:.0%}", markup=False)
    if "static" in found:
        static = found["static"]
        out.print(
            f"static estimates, one scale: kernels MAPE {static['kernels_mape_after_one_scale']:.1%}, models MAPE "
            f"{static['models_mape_after_one_scale']:.1%}, Spearman {static['models_spearman']:.3f}",
            markup=False,
        )
    for name, part in found.get("schedules", {}).items():
        out.print(
            f"time over the better of torch and onnxruntime, {name}: {part['geomean']:.2f} (worst {part['worst']:.2f}, "
            f"{part['kernels']} kernels)",
            markup=False,
        )


def show_calibration(found: dict[str, Any], as_json: bool) -> None:
    """How good a calibration is, what it makes of the facts, and which measurements it doubts."""
    if as_json:
        print_json(found)
        return
    error = found["error"]
    each = f"each of {error['models']} models" if error["models"] else "each"
    parts = ", ".join(f"{part} {median:.1%}" for part, median in error["medians"].items())
    lines = [
        f"{found['device']}, {found['runtime']}: {error['measurements']} measurements, {each} predicted from the "
        f"others: MAPE {error['mape_after']:.1%} (before: {error['mape_before']:.1%}); median error {parts}; "
        f"{error['within_interval']:.0%} inside an interval that should hold 68 %",
        *(f"note: {note}" for note in found["notes"]),
        *(f"doubted: {label} does not fit the others" for label in found["doubted"]),
        f"kept in {found['calibration']}; delete it to go back",
    ]
    out.print("\n".join(lines), markup=False, soft_wrap=True)


def show_agreement(found: dict[str, Any], as_json: bool) -> None:
    """Predicted against measured by part."""
    if as_json:
        print_json(found)
        return
    table = Table(title=f"{found['device']}: predicted against measured", title_justify="left", box=None)
    for heading in ("", "measurements", "within 10 %", "MAPE", "median error", "worst"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, part in [*found["by_part"].items(), ("all", found["all"])]:
        table.add_row(
            name,
            str(part["measurements"]),
            f"{part['within_10_percent']:.0%}",
            f"{part['mape']:.1%}",
            f"{part['bias']:+.1%}",
            f"{part['worst']:.1%}",
        )
    out.print(table)
    for note in [*found["notes"], *([f"report: {found['report']}"] if "report" in found else [])]:
        out.print(note, markup=False, soft_wrap=True)


def show_fewshot(found: dict[str, Any]) -> None:
    """Rank correlations and errors of calibration by few measurements."""
    table = Table(title=f"few measurements, {found['seeds']} draws", title_justify="left", box=None)
    for heading in ("", "20 samples", "10 samples"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, twenty in found["samples_20"].items():
        ten = found["samples_10"][name]
        cells = (
            [f"{part['mean']:.3f} ± {part['std']:.3f}" for part in (twenty, ten)]
            if name != "geomean"
            else [f"{part:.3f}" for part in (twenty, ten)]
        )
        table.add_row(f"rank correlation, {name}", *cells)
    out.print(table)
    for name, part in found["hat"].items():
        out.print(f"HAT {name}: MAPE {part['mape_20']:.2f} % (50 samples: {part['mape_50']:.2f} %)", markup=False)
    for name, part in found["timm"].items():
        out.print(f"vision transformers on {name}: MAPE {part['mape_20']:.1f} %", markup=False)


def show_proxies(found: dict[str, Any]) -> None:
    """Rank correlations of the accuracy proxies."""
    truth, supernet = found["truth"], found["supernet"]
    seeds = "" if truth["seed_kendall"] is None else f", Kendall's tau between seeds {truth['seed_kendall']:.2f}"
    table = Table(
        title=f"{truth['configurations']} models trained alone: accuracy to {truth['best']:.3f}, spread "
        f"{truth['spread']:.3f}{seeds}",
        title_justify="left",
        box=None,
    )
    for heading in ("proxy", "Kendall's tau", "seconds a model"):
        table.add_column(heading, justify="left" if heading == "proxy" else "right")
    table.add_row("supernet", _tau(supernet["kendall"]), f"{supernet['seconds']:.2f}")
    for name, part in found["zero_cost"].items():
        if isinstance(part, dict):
            seconds = f"{found['zero_cost']['seconds']:.2f}" if name == "combined" else ""
            table.add_row(name, _tau(part["kendall"]), seconds)
    out.print(table)
    published = found["published"]
    out.print(
        f"published results: Spearman {published['mean_spearman']:.2f} in groups that were left out, "
        f"{published['coverage']:.0%} inside intervals of 90 %",
        markup=False,
    )


def _tau(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def facts_table(profile: Profile) -> Table:
    """Every fact of a device: value, basis, source."""
    table = Table(title=f"{profile.name}: {profile.full_title}", title_justify="left", box=None, pad_edge=False)
    for heading in ("fact", "value", "basis", "source"):
        table.add_column(heading, overflow="fold")
    for key, fact in _facts(profile.model_dump(mode="json"), ""):
        table.add_row(key, f"{fact['value']:,}", fact["basis"], fact["source"])
    return table


def _facts(data: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict) and set(data) == {"value", "basis", "source"}:
        yield prefix, data
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _facts(value, f"{prefix}.{key}" if prefix else str(key))


def measured_table(record: dict[str, Any]) -> Table:
    """Predicted beside measured, by phase."""
    table = Table(title=f"{record['id']} on {record['device']}", title_justify="left", box=None, pad_edge=False)
    table.add_column("phase")
    for heading in ("predicted", "measured", "error"):
        table.add_column(heading, justify="right")
    rows = [(name, record["predicted_s"][name], seconds) for name, seconds in record["measured_s"].items()]
    rows.append(("request", record["latency_predicted_s"], record["latency_measured_s"]))
    for name, predicted, measured in rows:
        error = f"{(predicted / measured - 1) * 100:+.1f} %"
        table.add_row(name, f"{predicted * 1e3:.3f} ms", f"{measured * 1e3:.3f} ms", error)
    table.caption = (
        f"largest error against torch: ONNX {record['onnx_max_error']:.1e}, TVM {record['tvm_max_error']:.1e}"
    )
    return table


def compressed_table(found: dict[str, Any]) -> Table:
    """A model before and after it was made smaller."""
    from nas.objectives import OBJECTIVES

    before, after = found["before"], found["after"]
    table = Table(title=f"{before['id']} on {found['device']}", title_justify="left", box=None, pad_edge=False)
    for heading in ("", "before", "after", "basis"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("id", before["id"], after["id"], "")
    for name in ("accuracy", "test_accuracy"):
        table.add_row(name.replace("_", " "), f"{before[name]:.1%}", f"{after[name]:.1%}", "measured")
    sizes = [f"{each['weight_bytes'] / 1e6:.3f} MB" for each in (before, after)]
    table.add_row("weights", *sizes, "static")
    if before["objectives"] and after["objectives"]:
        for name in ("latency", "peak_memory"):
            values = [OBJECTIVES[name].show(each["objectives"][name]["value"]) for each in (before, after)]
            table.add_row(name.replace("_", " "), *values, after["objectives"][name]["basis"])
    table.caption = f"right after the cut {found['accuracy_untrained']:.1%}, then {found['steps']} steps"
    return table
