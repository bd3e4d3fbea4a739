"""Every accuracy proxy against the truth: configs trained alone (see truth.py), and published results.

nas bench proxy --json
python -m experiments.benchmarks.proxy     # how the supernet ranks, stored beside its weights for reports
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict
from typing import Any

from scipy.stats import spearmanr

from experiments.benchmarks.published import published
from experiments.benchmarks.truth import FILE
from experiments.benchmarks.zero_cost import zero_cost
from nas.errors import NasError
from nas.proxies.combined import SUPERNET, Validated
from nas.proxies.supernet_work import evaluate_slice
from nas.report.trust import kendall_tau
from nas.search import Progress
from search_spaces import SPACES


def proxy(progress: Progress) -> dict[str, Any]:
    """Everything that `nas bench proxy` prints."""
    rows, steps = truth_rows()
    truth = [statistics.mean(row["accuracy"]) for row in rows]
    twice = [row["accuracy"] for row in rows if len(row["accuracy"]) > 1]
    return {
        "truth": {
            "configurations": len(rows),
            "with_two_seeds": len(twice),
            "steps": steps,
            "spread": max(truth) - min(truth),
            "best": max(truth),
            "seed_kendall": kendall_tau(*zip(*twice, strict=True)) if len(twice) > 2 else None,
            "seed_noise": statistics.median(abs(one - other) for one, other in twice) if twice else None,
        },
        "supernet": of_supernet(rows, truth, progress),
        "zero_cost": zero_cost(rows, progress),
        "published": published(progress),
    }


def truth_rows() -> tuple[list[dict[str, Any]], int]:
    """The truth as far as it is made, accuracies of the seeds that are; and the steps of each training.

    Raises NasError where fewer than two configs are trained: they have no ranks.
    """
    table: dict[str, Any] = {"rows": [], "steps": 0}
    if FILE.is_file():
        table = json.loads(FILE.read_text(encoding="utf-8"))
    rows = [
        {**row, "accuracy": found}
        for row in table["rows"]
        if (found := [accuracy for accuracy in row["accuracy"] if accuracy is not None])
    ]
    if len(rows) < 2:
        raise NasError(
            f"{FILE}: proxies are judged by how they rank two trained configs or more, but the table has {len(rows)}; "
            "run python -m experiments.benchmarks.truth"
        )
    return rows, table["steps"]


def of_supernet(rows: list[dict[str, Any]], truth: list[float], progress: Progress) -> dict[str, Any]:
    """Ranks of the slices against the truth, and the median seconds of one evaluation."""
    told, seconds = [], []
    for at, row in enumerate(rows):
        progress("supernet", at, len(rows), "")
        started = time.monotonic()
        told.append(evaluate_slice(SPACES["tiny"].decode(row["point"]))["accuracy"])
        seconds.append(time.monotonic() - started)
    return {
        "kendall": kendall_tau(told, truth),
        "spearman": float(spearmanr(told, truth).statistic),
        "seconds": statistics.median(seconds),
        "most_seconds": max(seconds[1:]),
        "mean_error": statistics.mean(abs(slice_ - alone) for slice_, alone in zip(told, truth, strict=True)),
    }


def main() -> None:
    """Store how the supernet ranks the truth."""
    rows, _ = truth_rows()
    truth = [statistics.mean(row["accuracy"]) for row in rows]
    found = of_supernet(rows, truth, lambda *_: None)
    told = Validated(space="tiny", configurations=len(rows), sign=1, kendall=round(found["kendall"] or 0.0, 3))
    SUPERNET.write_text(json.dumps(asdict(told)) + "\n", encoding="utf-8")
    print(told)


if __name__ == "__main__":
    main()
