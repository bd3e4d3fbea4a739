"""Calibrates shipped devices for the runtimes that figures were published of: figures.csv beside a profile.

    python -m experiments.shipped_runtimes

Writes calibration-RUNTIME.json beside it, as `nas device calibrate NAME --runtime RUNTIME` does for a device of one's
own, and prints the errors of docs/calibration.md.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from cost_models.corrected import CorrectedModel, Observation
from cost_models.models import plain_model
from hardware_profiles import load
from hardware_profiles.catalog import SHIPPED
from nas.calibration import read_measurements
from search_spaces import Workload


def fitted(figures: Path, runtime: str) -> tuple[CorrectedModel, list[Observation]]:
    """(the calibrated model, the figures)."""
    base = plain_model("auto", load(figures.parent).in_runtime(runtime))
    observations, _ = read_measurements(figures, base, Workload())
    model, _ = CorrectedModel.fit(base, observations)
    return model, observations


def runtimes(figures: Path) -> list[str]:
    """Runtimes in a file of figures."""
    with figures.open(encoding="utf-8", newline="") as file:
        return sorted({row["runtime"] for row in csv.DictReader(file)})


def main() -> None:
    """Calibrate every device with figures, and print a line each."""
    for figures in sorted(SHIPPED.glob("*/figures.csv")):
        for runtime in runtimes(figures):
            model, observations = fitted(figures, runtime)
            path = model.save(observations)
            error = model.error
            parts = ", ".join(f"{part} {median:.1%}" for part, median in error.medians.items())
            sys.stdout.write(
                f"{path.parent.name} {runtime}: {error.measurements} figures, {error.models} models, {parts}, "
                f"{error.within_interval:.0%} inside\n"
            )


if __name__ == "__main__":
    main()
