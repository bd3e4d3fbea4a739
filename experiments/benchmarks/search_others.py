"""Problems whose accuracies are of other kinds than the sampler supposes, each drawn by seed.

They were made when it was finished, to find out whether it is made for its own problems only. Spaces and prices are
those of synthetic problems, `search_problems.drawn`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from experiments.benchmarks.search_problems import Array, Drawn, Problem, drawn

_NOISE = 0.01
_MUCH_NOISE = 0.04
#: Deviations of what choices do together, beside a sum of effects from 0 to 1.
_TOGETHER = 0.05
_UNITS = 12
_BOXES = 60


def other(kind: str, choices: int, seed: int) -> Problem:
    """The problem of that kind and so many choices."""
    rng = np.random.default_rng([choices, seed, list(KINDS).index(kind)])
    of = drawn(rng, f"{kind}-{choices}-{seed}", choices)
    accuracies, noise = KINDS[kind]
    return of.problem(("accuracy", "latency"), accuracies(rng, of), noise, seed)


def _sum_of_effects(rng: np.random.Generator, of: Drawn) -> Array:
    weight = rng.gamma(1.5, 1.0, len(of.sizes))
    parts = [of.along(each * share, at) for at, (each, share) in enumerate(zip(of.effects(rng), weight, strict=True))]
    return np.asarray(reduce(np.add, parts) / weight.sum())


def _together(rng: np.random.Generator, of: Drawn, choices: int, tables: int) -> Array:
    """A sum of tables over so many choices each."""
    found = np.zeros(of.sizes)
    for _ in range(tables):
        among = sorted(int(at) for at in rng.choice(len(of.sizes), choices, replace=False))
        found += _TOGETHER * of.along(rng.normal(0, 1, [of.sizes[at] for at in among]), *among)
    return found


def _triples(rng: np.random.Generator, of: Drawn) -> Array:
    return _sum_of_effects(rng, of) + _together(rng, of, 3, len(of.sizes))


def _pairs(rng: np.random.Generator, of: Drawn) -> Array:
    return _sum_of_effects(rng, of) + _together(rng, of, 2, 2 * len(of.sizes))


def _scaling(rng: np.random.Generator, of: Drawn) -> Array:
    """Errors of three parts that fall exponentially with the logarithm of what each costs, and pairs."""
    found = _together(rng, of, 2, len(of.sizes))
    for part in of.pricer.parts:
        size = reduce(np.add, [of.along(of.pricer.growth[at] * rng.uniform(0.3, 2.0), at) for at in part])
        found = found - rng.uniform(0.5, 1.5) * np.exp(-rng.uniform(1.0, 3.0) * size)
    return found


def _network(rng: np.random.Generator, of: Drawn) -> Array:
    """A random network of one hidden layer over all effects, with units that are nearly steps."""
    found, effects = np.zeros(of.sizes), of.effects(rng)
    for _ in range(_UNITS):
        weights = rng.normal(0, 1.2, len(of.sizes)) * (rng.random(len(of.sizes)) < 0.5)
        entering = [of.along((each - 0.5) * by, at) for at, (each, by) in enumerate(zip(effects, weights, strict=True))]
        found += rng.normal() * np.tanh(4 * (rng.normal(0, 0.5) + reduce(np.add, entering))) / _UNITS
    return found + _sum_of_effects(rng, of)


def _boxes(rng: np.random.Generator, of: Drawn) -> Array:
    """Steps: constants on ranges of one to three choices."""
    found = np.array(np.broadcast_to(_sum_of_effects(rng, of), of.sizes))
    for _ in range(_BOXES):
        where = [slice(None)] * len(of.sizes)
        for at in rng.choice(len(of.sizes), rng.integers(1, 4), replace=False):
            low = int(rng.integers(0, of.sizes[at]))
            where[at] = slice(low, int(rng.integers(low, of.sizes[at])) + 1)
        found[tuple(where)] += _TOGETHER * rng.normal()
    return found


#: Each kind's accuracies, and the deviation of what is observed of them.
KINDS: dict[str, tuple[Callable[[np.random.Generator, Drawn], Array], float]] = {
    "triples": (_triples, _NOISE),
    "noisy": (_pairs, _MUCH_NOISE),
    "scaling": (_scaling, _NOISE),
    "network": (_network, _NOISE),
    "boxes": (_boxes, _NOISE),
}
