"""Trains the pilot table of zero-cost proxies where it is out of date, and fits the combination on it.

    python -m experiments.fit_zero_cost [--configs N] [--steps N] [--workers N]

The pilot is drawn with a seed of its own, evenly over the logarithm of the parameters up to the quickstart's cap. Rows
are kept as they come, so a killed run goes on; rows that were trained on other scenes or for other steps are trained
anew. The result is `nas/proxies/zero_cost.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.benchmarks.zero_cost import PILOT, SINGLE, agreement
from nas.experiment import read_experiment
from nas.promotion import worker_pool
from nas.proxies.combined import STORED, Stored, Term, Validated, features
from nas.proxies.digits import digit_scenes
from nas.report.trust import kendall_tau
from search_spaces import SPACES, Point, SearchSpace

Array = NDArray[np.float64]

#: Of the drawing, apart from those of searches and of the table that judges.
SEED = "pilot:1"
#: Log10 of the parameters: the range below the cap, and the parts of it that are drawn in turn.
RANGE, PARTS = 1.4, 6
#: Ridges that are tried, in units of a standardised feature's share; the best at predicting left-out rows is taken.
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
QUICKSTART = Path(__file__).with_name("quickstart.yaml")


def main() -> None:
    """Bring the table up to date, then fit and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=48)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    experiment = read_experiment(QUICKSTART)
    space, most = SPACES[experiment.space], math.log10(experiment.caps["max_parameters_m"] * 1e6)
    rows = pilot(space, most, asked.configs, asked.steps, asked.workers)
    found = [features(space.decode(row["point"]), 0) for row in rows]
    fitted = fit(space.name, found, [float(np.mean(row["accuracy"])) for row in rows])
    STORED.write_text(fitted.to_json(), encoding="utf-8")
    for name, validated in fitted.validated.items():
        print(f"{name}: {validated}")


# ------------------------------------------------------------------------------------------------------ the pilot table


def draw(space: SearchSpace, most: float, count: int) -> list[dict[str, Any]]:
    """Points whose log10 of parameters falls into each part of the range below `most` in turn, the largest first."""
    rng, points = random.Random(SEED), []
    while len(points) < count:
        high = most - RANGE * (len(points) % PARTS) / PARTS
        while not high - RANGE / PARTS <= math.log10(space.decode(point := space.sample(rng)).parameters) < high:
            pass
        points.append(point)
    return points


def pilot(space: SearchSpace, most: float, count: int, steps: int, workers: int) -> list[dict[str, Any]]:
    """Rows of the first `count` points, trained where the table lacks them."""
    about = {
        "space": space.name,
        "made_by": "python -m experiments.fit_zero_cost",
        "steps": steps,
        "scenes": told_scenes(),
    }
    table = json.loads(PILOT.read_text(encoding="utf-8")) if PILOT.is_file() else {}
    known = {_key(row["point"]): row for row in table.get("rows", ()) if {**table, **about} == table}
    points = draw(space, most, count)
    lacking = [point for point in points if _key(point) not in known]
    with worker_pool(workers) as pool:
        jobs = {pool.submit(train, space.name, point, steps): point for point in lacking}
        for done, job in enumerate(as_completed(jobs), 1):
            known[_key(jobs[job])] = {"point": jobs[job], "accuracy": [job.result()]}
            _write({**about, "rows": list(known.values())})
            print(f"trained {done} of {len(lacking)}", file=sys.stderr, flush=True)
    return [known[_key(point)] for point in points]


def train(space: str, point: Point, steps: int) -> float:
    """Validation accuracy of one point after `steps` steps; runs in a worker."""
    from nas.proxies.trained import TrainingRecipe, train_candidate

    recipe = TrainingRecipe(steps=steps)
    return train_candidate(SPACES[space].decode(point), digit_scenes(0), recipe, seed=0).result.accuracy


def told_scenes() -> str:
    """Sixteen hexadecimal digits that change with the questions of the scenes."""
    asked = repr([(q.text, q.answer) for questions in digit_scenes(0).train.questions for q in questions])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _write(table: dict[str, Any]) -> None:
    unfinished = PILOT.with_suffix(".part")
    head = json.dumps({name: value for name, value in table.items() if name != "rows"})[:-1]
    rows = ",\n".join(json.dumps(row) for row in table["rows"])
    unfinished.write_text(f'{head}, "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    unfinished.replace(PILOT)


# -------------------------------------------------------------------------------------------------------------- the fit


def fit(space: str, found: Sequence[dict[str, float]], accuracies: Sequence[float]) -> Stored:
    """The combination, with every single proxy's tau on the same rows and its own on rows left out of the fit."""
    names, target = sorted(found[0]), np.asarray(accuracies)
    matrix = np.array([[one[name] for name in names] for one in found])
    left_out = []
    for i in range(len(target)):
        weights, constant = ridge(np.delete(matrix, i, 0), np.delete(target, i))
        low, high = np.delete(matrix, i, 0).min(0), np.delete(matrix, i, 0).max(0)
        left_out.append(constant + float(np.clip(matrix[i], low, high) @ weights))
    weights, constant = ridge(matrix, target)
    ends = zip(names, weights, matrix.min(0), matrix.max(0), strict=True)
    terms = {name: Term(float(weight), float(low), float(high)) for name, weight, low, high in ends}
    tau = kendall_tau(left_out, accuracies) or 0.0
    validated = {"combined": Validated(space, len(target), 1, tau)}
    for name in SINGLE:
        one = agreement(name, found, accuracies)
        validated[name] = Validated(space, len(target), one["sign"], one["kendall"] or 0.0, one["by_component"])
    return Stored(space, "python -m experiments.fit_zero_cost", constant, terms, validated)


def ridge(matrix: Array, target: Array) -> tuple[Array, float]:
    """Weights of raw features and the constant; the ridge predicts left-out rows best, features count alike."""
    deviation = matrix.std(0)
    scale = np.where(deviation > 1e-12, deviation, np.inf) * math.sqrt(matrix.shape[1])
    standard, apart = (matrix - matrix.mean(0)) / scale, target - target.mean()
    gram, count = standard @ standard.T, len(target)

    def error(size: float) -> float:
        smoother = gram @ np.linalg.inv(gram + size * np.eye(count))
        free = 1.0 - np.diag(smoother) - 1.0 / count  # of a row left out
        return float((((apart - smoother @ apart) / free) ** 2).mean())

    size = min(RIDGES, key=error)
    weights = standard.T @ np.linalg.solve(gram + size * np.eye(count), apart) / scale
    return weights, float(target.mean() - matrix.mean(0) @ weights)


if __name__ == "__main__":
    main()
