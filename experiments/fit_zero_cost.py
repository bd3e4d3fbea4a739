"""Trains the pilot table of zero-cost proxies where it is out of date, and fits the combination on it.

    python -m experiments.fit_zero_cost [--configs N] [--steps N] [--workers N] [--as-is | --anew]

The pilot is drawn with a seed of its own, evenly over the logarithm of the parameters up to the quickstart's cap. Rows
are kept as they come, so a killed run goes on; a table of other scenes, steps or points is replaced only with `--anew`;
`--as-is` trains nothing and fits on the table as it stands. The result is `nas/proxies/zero_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import average
from experiments.benchmarks.zero_cost import PILOT, SINGLE, agreement, read_pilot, scenes_id
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
#: Variance of the accuracies that the vote of all scores is believed to explain, and that of all blocks together, in
#: units of the accuracies' own.
VOTE, TRUST = 0.3, 0.1
#: Variance of an accuracy's error, in the same units, and how many draws of variances are averaged.
NOISE, DRAWS = (0.05, 1.5), 200
QUICKSTART = Path(__file__).with_name("quickstart.yaml")


def main() -> None:
    """Bring the table up to date, then fit and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--as-is", action="store_true")
    either.add_argument("--anew", action="store_true")
    asked = parser.parse_args()
    experiment = read_experiment(QUICKSTART)
    space, most = SPACES[experiment.space], math.log10(experiment.caps["max_parameters_m"] * 1e6)
    if PILOT.is_file() and not (asked.as_is or asked.anew):
        table, points = read_pilot(), {_key(point) for point in draw(space, most, asked.configs)}
        same = (table["steps"], table["scenes"]) == (asked.steps, scenes_id())
        if not (same and points & {_key(row["point"]) for row in table["rows"]}):
            parser.error(
                f"the table's {len(table['rows'])} rows are of other scenes, steps or points: --as-is fits on them, "
                "--anew trains all of them again"
            )
    rows = read_pilot()["rows"] if asked.as_is else pilot(space, most, asked.configs, asked.steps, asked.workers)
    found = [features(space.decode(row["point"]), 0) for row in rows]
    fitted = fit(space.name, found, [float(np.mean(row["accuracy"])) for row in rows])
    STORED.write_text(fitted.to_json(), encoding="utf-8")
    for name, validated in fitted.validated.items():
        print(f"{name}: {validated}")


# ------------------------------------------------------------------------------------------------------ the pilot table


def draw(space: SearchSpace, most: float, count: int) -> list[dict[str, Any]]:
    """Points whose log10 of parameters falls into each part of the range below `most` in turn, the largest first."""
    rng, points = random.Random(SEED), list[dict[str, Any]]()
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
        "scenes": scenes_id(),
    }
    table = read_pilot() if PILOT.is_file() else {}
    known = {_key(row["point"]): row for row in table.get("rows", ()) if {**table, **about} == table}
    points = {_key(point): point for point in draw(space, most, count)}

    def rows() -> list[dict[str, Any]]:
        return [known[key] for key in points if key in known]

    with worker_pool(workers) as pool:
        jobs = {pool.submit(train, space.name, points[key], steps): key for key in points if key not in known}
        for done, job in enumerate(as_completed(jobs), 1):
            known[jobs[job]] = {"point": points[jobs[job]], "accuracy": [job.result()]}
            _write({**about, "rows": rows()})
            print(f"trained {done} of {len(jobs)}", file=sys.stderr, flush=True)
    _write({**about, "rows": rows()})
    return rows()


def train(space: str, point: Point, steps: int) -> float:
    """Validation accuracy of one point after `steps` steps; runs in a worker."""
    from nas.proxies.trained import TrainingRecipe, train_candidate

    recipe = TrainingRecipe(steps=steps)
    # what diverged answers nothing
    return train_candidate(SPACES[space].decode(point), digit_scenes(0), recipe, seed=0).result.accuracy or 0.0


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
    names, target = sorted(found[0], key=lambda name: (block_of(name), name)), np.asarray(accuracies)
    matrix = np.array([[one[name] for name in names] for one in found])
    left_out = []
    for i in range(len(target)):
        others = np.delete(matrix, i, 0)
        weights, constant = regress(names, others, np.delete(target, i))
        left_out.append(constant + float(np.clip(matrix[i], *limits(others)) @ weights))
    weights, constant = regress(names, matrix, target)
    ends = zip(names, weights, *limits(matrix), strict=True)
    terms = {name: Term(float(weight), float(low), float(high)) for name, weight, low, high in ends}
    tau = kendall_tau(left_out, accuracies) or 0.0
    validated = {"combined": Validated(space, len(target), 1, tau)}
    for name in SINGLE:
        one = agreement(name, found, accuracies)
        validated[name] = Validated(space, len(target), one["sign"], one["kendall"] or 0.0, one["by_component"])
    return Stored(space, "python -m experiments.fit_zero_cost", constant, terms, validated)


def limits(matrix: Array) -> tuple[Array, Array]:
    """Least and most of each feature that a fit on these rows is asked about: half its range beyond them."""
    low, high = matrix.min(0), matrix.max(0)
    return low - (high - low) / 2, high + (high - low) / 2


def block_of(name: str) -> str:
    """The block of traits that a feature belongs to: its proxy, the sizes, or the kinds of projectors."""
    if "." in name:
        return name.split(".")[0]
    return "kinds" if name.startswith("projector_") else "sizes"


def regress(names: Sequence[str], matrix: Array, target: Array) -> tuple[Array, float]:
    """Weights of raw features, sorted by block, and the constant.

    Beforehand every score is believed to be better the higher, as it was published: their vote, the mean of all scores,
    carries most. What each block adds to it counts alike whatever its number of columns; how much each turns out to
    count is averaged over.
    """
    deviation = matrix.std(0)
    varies = deviation > 1e-12
    sizes = Counter(map(block_of, names))
    columns = Counter(block_of(name) for name, one in zip(names, varies, strict=True) if one)
    roots = np.sqrt([max(1, columns[block_of(name)]) for name in names])  # a block has a mean square of one a row
    scale = np.where(varies, deviation, np.inf) * roots
    spread = float(target.std()) or 1.0
    standard, apart = (matrix - matrix.mean(0)) / scale, (target - target.mean()) / spread
    votes = np.where(["." in name for name in names], roots, 0.0)
    votes /= max(float((standard @ votes).std()), 1e-12)
    traits = np.column_stack([standard @ votes, standard])
    variances = [VOTE, *[TRUST / len(sizes)] * len(sizes)]
    mean = average(traits, apart, [1, *sizes.values()], variances, NOISE, np.zeros(len(target)), DRAWS, 0).mean
    weights = spread * (mean[0] * votes + mean[1:]) / scale
    return weights, float(target.mean() - matrix.mean(0) @ weights)


if __name__ == "__main__":
    main()
