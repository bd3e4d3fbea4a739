"""Latencies in published runtimes, each model predicted from the others of its device: `nas bench latency`.

Figures of shipped devices lie beside their profiles. Those of data/published_latencies.csv are of devices that are not
shipped: each starts from the shipped one that is named beside it, as `nas device new --like` does, and is calibrated as
`nas device calibrate --runtime` does. The prior of the calibration was chosen on these, the shipped ones judge it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cost_models.corrected import CorrectedModel
from cost_models.models import plain_model
from experiments.shipped_runtimes import fitted, runtimes
from hardware_profiles import load
from hardware_profiles.catalog import SHIPPED
from nas.published_latencies import figure

Progress = Callable[[str, int, int, str], None]

_DATA = Path(__file__).parent / "data" / "published_latencies.csv"
#: Devices with fewer figures are shown, and left out of the medians.
LEAST_FIGURES = 6


def latency(progress: Progress) -> dict[str, Any]:
    """Median errors of models left out, by device, runtime and phase; and the median over devices."""
    shipped = [(figures, runtime) for figures in sorted(SHIPPED.glob("*/figures.csv")) for runtime in runtimes(figures)]
    others: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    with _DATA.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            others.setdefault((row["device"], row["like"], row["runtime"]), []).append(row)
    found: list[dict[str, Any]] = []
    for figures, runtime in shipped:
        progress("latency", len(found), len(shipped) + len(others), figures.parent.name)
        model, _ = fitted(figures, runtime)
        found.append(_told(figures.parent.name, runtime, figures.parent.name, model))
    for (device, like, runtime), rows in others.items():
        progress("latency", len(found), len(shipped) + len(others), device)
        model, _ = CorrectedModel.fit(
            plain_model("auto", load(like).in_runtime(runtime)), [figure(row) for row in rows]
        )
        found.append(_told(device, runtime, like, model))
    progress("latency", len(found), len(found), "")
    return {"devices": found, "least_figures": LEAST_FIGURES} | {
        name: _medians([one for one in found if one["figures"] >= LEAST_FIGURES and keep(one)]) for name, keep in _SETS
    }


_SETS: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("all", lambda one: True),
    ("judging", lambda one: one["shipped"]),
    ("chosen_on", lambda one: not one["shipped"]),
)


def _told(device: str, runtime: str, like: str, model: CorrectedModel) -> dict[str, Any]:
    error = model.error
    return {
        "device": device,
        "runtime": runtime,
        "like": like,
        "shipped": device == like,
        "figures": error.measurements,
        "models": error.models,
        "phases": {
            part: {"before": error.medians_before[part], "after": after} for part, after in error.medians.items()
        },
        "unchecked": error.unchecked,
        "within_interval": error.within_interval,
    }


def _medians(devices: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By phase: the median and the worst of the devices' errors, and how many devices."""
    phases = sorted({phase for one in devices for phase in one["phases"]})
    errors = {phase: [one["phases"][phase]["after"] for one in devices if phase in one["phases"]] for phase in phases}
    return {
        phase: {"median": float(np.median(each)), "worst": max(each), "devices": len(each)}
        for phase, each in errors.items()
    }
