"""Benchmarks on the screen: how predictors, calibrations and proxies fare on what they have not seen."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from nas.screen.console import out


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


def show_latency(found: dict[str, Any]) -> None:
    """Errors of models that were left out of a runtime's calibration."""
    table = Table(title="median error of a model predicted from the others", title_justify="left", box=None)
    for heading in ("device", "runtime", "figures", "models", "before", "after", "inside"):
        table.add_column(heading, justify="right" if heading in ("figures", "models", "inside") else "left")
    for one in found["devices"]:
        before, after = (
            ", ".join(f"{phase} {part[when]:.0%}" for phase, part in one["phases"].items())
            for when in ("before", "after")
        )
        cells = (str(one["figures"]), str(one["models"]), before, after, f"{one['within_interval']:.0%}")
        table.add_row(one["device"], one["runtime"], *cells)
    out.print(table)
    for name, of in (("all", "devices"), ("judging", "devices that chose nothing")):
        for phase, part in found[name].items():
            out.print(
                f"{phase}: {part['median']:.1%} in the median of {part['devices']} {of} with {found['least_figures']} "
                f"figures or more, at worst {part['worst']:.1%}",
                markup=False,
                soft_wrap=True,
            )


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
            median = found["zero_cost"]["seconds"]  # None where the fit has seen every config
            seconds = f"{median:.2f}" if name == "combined" and median is not None else ""
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


def show_searches(found: dict[str, Any]) -> None:
    """Hypervolume by budget of each method on each problem, the best of each budget marked."""
    for name, methods in found["problems"].items():
        budgets = list(dict.fromkeys(budget for each in methods.values() for budget in each["hypervolume"]))
        means = {
            (method, budget): sum(volumes) / len(volumes)
            for method, each in methods.items()
            for budget, volumes in each["hypervolume"].items()
        }
        title = f"{name}: hypervolume as a share of the reference front's, mean over seeds"
        table = Table(title=title, title_justify="left", box=None)
        for heading in ("", *(f"at {budget}" for budget in budgets), "repeated", "CPU ms a trial"):
            table.add_column(heading, justify="left" if not heading else "right")
        for method, each in methods.items():
            cells = []
            for budget in budgets:
                mean = means.get((method, budget))
                best = max(value for (_, other), value in means.items() if other == budget)
                cells.append("" if mean is None else f"{mean:.3f}" + ("*" if mean == best else " "))
            table.add_row(method, *cells, f"{each['duplicates']:.0f}", f"{each['cpu_ms_per_trial']:.1f}")
        out.print(table)
    out.print(
        f"pricing {found['pricing_per_s']:,.0f} points/s, of the first million {found['pricing_first_per_s']:,.0f}; "
        f"a new device's front {found['new_device_front_s']:.1f} s; "
        f"storage {found['storage_ms_per_trial']:.1f} ms a trial, two workers",
        markup=False,
    )
