"""Devices on the screen: their facts, how well they are priced, what measuring and calibrating them came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nas.screen.console import out, print_json

if TYPE_CHECKING:
    from hardware_profiles import Profile


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
    title = f"{found['device']}, {found['runtime']}: predicted against measured"
    table = Table(title=title, title_justify="left", box=None)
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
