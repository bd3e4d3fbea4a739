"""Whether the gain that more trials promise is gained: python -m experiments.benchmarks.promise [--json].

A made-up problem whose accuracies are known: saturating in some choices, with one interaction and one choice of names,
observed with noise. `cost_aware` searches it; before each twenty trials it is asked what they will add to the front,
and after them what they added, as observed and in truth.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from numpy.typing import NDArray

from nas.promise import NEXT
from nas.samplers import Priced, Task
from nas.samplers.design import Design
from nas.samplers.gain import Gain
from search_spaces import SearchSpace
from search_spaces.space import Factors, Indices

Array = NDArray[np.float64]

SIZES = np.array([5, 4, 6, 3, 5, 4, 3, 6])
NAMED, NAMES = 3, np.array([0.3, -0.2, 0.1])
WEIGHTS = np.array([1.0, 0.2, 0.8, 0.0, 0.3, 0.6, 0.5, 0.4])
CAPS = {"max_latency_ms": 30.0}
TRIALS, SEEDS, NOISES = 120, 5, (0.01, 0.03)


class Prices:
    """Exact costs of every point."""

    space = SearchSpace(
        "made-up",
        {
            f"choice_{at}": tuple(f"kind_{n}" for n in range(size)) if at == NAMED else tuple(range(size))
            for at, size in enumerate(SIZES.tolist())
        },
        lambda point: NotImplemented,
        Factors(),
    )

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `nas.pricing.SpacePricer.columns`."""
        return {"latency_s": np.exp((indices / (SIZES - 1)) @ WEIGHTS) * 1e-3}


def accuracy(points: Indices) -> Array:
    """The truth."""
    share = points / (SIZES - 1)
    inner = share[:, [0, 1, 2, 4]].sum(1) + share[:, 0] * share[:, 5] + NAMES[points[:, NAMED]] - 1.5
    return np.asarray(1 / (1 + np.exp(-inner)))


def searched(seed: int, noise: float) -> list[tuple[float, float, float]]:
    """(promised, gained as observed, gained in truth) of every twenty trials of one search."""
    task = Task((Priced(Prices(), CAPS),), ("accuracy", "latency"))
    rng = np.random.default_rng(seed)
    design, judge = Design(task, rng), Design(task, np.random.default_rng(seed + 1000))
    points, values, seen, promised = np.empty((0, len(SIZES)), np.intp), np.empty(0), set[bytes](), []
    while len(points) < TRIALS + NEXT:
        if len(points) and len(points) % NEXT == 0:
            promised.append(judge.promise(points, values, seen, NEXT))
        new = design.propose(points, values, seen, 4)
        seen |= {row.tobytes() for row in new}
        points = np.vstack([points, new])
        values = np.r_[values, accuracy(new) + rng.normal(0, noise, len(new))]

    def volume(of: Array, count: int, floor: float) -> float:
        gain = Gain(*task.costs(points[:count]), of[:count], *design.span())
        return float(np.maximum(gain.reached - floor, 0).mean())

    found = []
    for at, promise in enumerate(promised):
        count = (at + 1) * NEXT
        floor = float(values[:count].min())
        gains = [volume(of, count + NEXT, floor) / volume(of, count, floor) - 1 for of in (values, accuracy(points))]
        found.append((promise, gains[0], gains[1]))
    return found


def main() -> None:
    """Print the means over seeds by noise and by evaluations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    found = {}
    as_json = parser.parse_args().json
    for noise in NOISES:
        means = np.mean([searched(seed, noise) for seed in range(SEEDS)], axis=0)
        names = ("promised", "gained", "gained_in_truth")
        found[str(noise)] = {
            (at + 1) * NEXT: dict(zip(names, row, strict=True)) for at, row in enumerate(means.tolist())
        }
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for key, rows in found.items():
        for count, row in rows.items():
            print(f"noise {key}, {count:3d} evaluations: " + ", ".join(f"{n} {100 * v:.2f} %" for n, v in row.items()))


if __name__ == "__main__":
    main()
