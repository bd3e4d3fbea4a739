"""Problems that searches are compared on: every point has a known price, and an accuracy that must be asked for.

Synthetic ones are drawn by seed: an encoder, a projector and a decoder, each with choices of its own. Capacity
saturates, the weakest part holds the others back, pairs of choices help or hinder each other, and what is observed is
noisy. All points are enumerated, so that the front is known exactly. Others are `tiny` with the supernet's accuracies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from cost_models.models import cost_model
from experiments.benchmarks.supernet_table import narrowed, read
from hardware_profiles import load
from nas import pareto
from nas.candidate import Pricer
from nas.objectives import CAPS, OBJECTIVES, excesses
from nas.pricing import SpacePricer
from nas.samplers.task import Prices
from search_spaces import Point, SearchSpace, VLMConfig, Workload
from search_spaces.space import Factors, Indices

Array = NDArray[np.float64]

#: Those that `tiny` is searched on.
DEVICES = ("host", "raspberry-pi-4", "jetson-orin-nano")
#: Standard deviation of what two values do together, beside capacities from 0 to 1.
_PAIR = 0.05
#: A hard cap leaves this share of the points.
_KEPT = 0.1
#: How far behind the worst of the reference front the corner lies from which hypervolume is counted, in its span.
_MARGIN = 0.1


@dataclass(frozen=True, eq=False)
class Problem:
    """A search space with its prices, objectives and caps, and a table of accuracies.

    `accuracy` is the truth of every point, by the indices of its values; an observation adds noise of `noise`, the same
    each time a point is asked for.
    """

    name: str
    space: SearchSpace
    pricer: Prices
    objectives: tuple[str, ...]
    accuracy: Array
    noise: float = 0.0
    noise_seed: int = 0
    caps: Mapping[str, float] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Values of each choice."""
        return tuple(len(values) for values in self.space.choices.values())

    @property
    def ordered(self) -> tuple[bool, ...]:
        """Whether a choice's values are numbers."""
        return tuple(not isinstance(values[0], str) for values in self.space.choices.values())

    def costs(self, points: Indices) -> Array:
        """(points, objectives but the accuracy), to be minimised."""
        columns = self.pricer.columns(points)
        return np.column_stack([columns[OBJECTIVES[name].column] for name in self.objectives if name != "accuracy"])

    def excess(self, points: Indices) -> Array:
        """By how much each point is past the cap that it breaks most, as a share of its limit; 0 or less if by none."""
        past = excesses(self.caps, self.pricer.columns(points))
        return np.max(list(past.values()), axis=0) if past else np.zeros(len(points))

    def keeps(self, points: Indices) -> NDArray[np.bool_]:
        """Whether each point keeps every cap."""
        return self.excess(points) <= 0

    def observed(self, point: Indices) -> float:
        """What an evaluation says."""
        at = int(np.ravel_multi_index(tuple(point), self.sizes))
        drawn = np.random.default_rng([self.noise_seed, at]).standard_normal() if self.noise else 0.0
        return float(self.accuracy[tuple(point)] + self.noise * drawn)

    def minimised(self, points: Indices) -> Array:
        """The true objectives of points, accuracy first and negated."""
        return np.column_stack([-self.accuracy[tuple(points.T)], self.costs(points)])

    def hypervolume(self, points: Indices) -> float:
        """Of the evaluated points that keep the caps, by their true values, as a share of the reference front's."""
        points = points[self.keeps(points)]
        if not len(points):
            return 0.0
        low, corner, whole = self._reference
        scaled = (self.minimised(points) - low) / (corner - low)
        return pareto.hypervolume(np.maximum(scaled, 0.0), np.ones(len(low))) / whole

    @cached_property
    def _reference(self) -> tuple[Array, Array, float]:
        """Best corner and corner of reference of the true front, and its volume between them."""
        front = np.empty((0, len(self.objectives)))
        for part in self._parts():
            front = _front(self.minimised(part[self.keeps(part)]), front)
        low, high = front.min(0), front.max(0)
        corner = high + _MARGIN * np.where(high > low, high - low, 1.0)
        return low, corner, pareto.hypervolume((front - low) / (corner - low), np.ones(len(low)))

    @cached_property
    def digest(self) -> str:
        """Changes with whatever a search of the problem hangs on."""
        drawn = self.space.sample_indices(np.random.default_rng(0), 200)
        told = repr((self.sizes, self.ordered, self.objectives, self.noise, self.noise_seed, sorted(self.caps.items())))
        tables = (self.accuracy.astype(np.float32), self.costs(drawn).astype(np.float32))
        return hashlib.sha256(told.encode() + b"".join(table.tobytes() for table in tables)).hexdigest()

    def _parts(self, most: int = 200_000) -> list[Indices]:
        """Every point of the space, some at a time."""
        count = int(np.prod(self.sizes))
        return [
            np.array(np.unravel_index(np.arange(start, min(start + most, count)), self.sizes)).T
            for start in range(0, count, most)
        ]


def _front(values: Array, known: Array) -> Array:
    """Front of rows and of a known front: whoever has the least sum is on it, and what it dominates is not."""
    left = np.vstack([known, values])
    span = np.maximum(left.max(0) - left.min(0), 1e-300)
    kept = []
    while len(left):
        row = left[(left / span).sum(1).argmin()]
        kept.append(row)
        left = left[~(left >= row).all(1)]
    return np.array(kept)


@dataclass(frozen=True, eq=False)
class PricedTable:
    """Prices of a synthetic space: a sum over its parts of powers of what each choice costs."""

    space: SearchSpace
    parts: tuple[tuple[int, ...], ...]  # the choices of each part
    growth: tuple[Array, ...]  # by choice: logarithm of a value's factor
    memory_growth: tuple[Array, ...]
    scale: tuple[float, ...]

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `SpacePricer.columns`, of seconds and bytes."""
        return {
            "latency_s": self._summed(indices, self.growth) * 1e-3,
            "peak_bytes": self._summed(indices, self.memory_growth) * 1e6,
        }

    def _summed(self, indices: Indices, growth: tuple[Array, ...]) -> Array:
        total = np.zeros(len(indices))
        for part, scale in zip(self.parts, self.scale, strict=True):
            total += scale * np.exp(sum(growth[at][indices[:, at]] for at in part))
        return total


@dataclass(frozen=True, eq=False)
class Drawn:
    """A synthetic space with its prices, and what accuracies are drawn for."""

    space: SearchSpace
    pricer: PricedTable
    sizes: tuple[int, ...]
    ordered: tuple[bool, ...]

    def problem(self, objectives: tuple[str, ...], accuracy: Array, noise: float, seed: int) -> Problem:
        """The problem of finding accuracies, of every point in any unit, which are brought to 0.3 to 0.95."""
        low, high = accuracy.min(), accuracy.max()
        scaled = np.asarray(0.3 + 0.65 * (accuracy - low) / (high - low))
        return Problem(self.space.name, self.space, self.pricer, objectives, scaled, noise=noise, noise_seed=seed)

    def along(self, table: Array, *choices: int) -> Array:
        """A table over values of ascending choices, to be added to one over all points."""
        shape = [1] * len(self.sizes)
        for at in choices:
            shape[at] = self.sizes[at]
        return table.reshape(shape)

    def effects(self, rng: np.random.Generator) -> list[Array]:
        """Of every choice what its values do alone, 0 to 1: saturating where they are ordered."""
        found = []
        for size, order in zip(self.sizes, self.ordered, strict=True):
            bend = rng.uniform(0.5, 4.0)
            rising = (1 - np.exp(-bend * np.linspace(0.0, 1.0, size))) / (1 - np.exp(-bend))
            found.append(rising if order else rng.uniform(0.0, 1.0, size))
        return found


def drawn(rng: np.random.Generator, name: str, choices: int) -> Drawn:
    """A space of that many choices and its prices; a million points or so."""
    sizes = _sizes(rng, choices, 3_000_000)
    ordered = tuple(size > 2 and at % 5 != 4 for at, size in enumerate(sizes))
    named = {
        f"choice_{at}": tuple(range(size)) if order else tuple(f"kind_{n}" for n in range(size))
        for at, (size, order) in enumerate(zip(sizes, ordered, strict=True))
    }
    thirds = np.array_split(rng.permutation(choices), 3)
    parts = tuple(tuple(int(at) for at in part) for part in thirds)
    space = SearchSpace(name, named, _undecoded, Factors())
    growth, memory = [], []
    for size, order in zip(sizes, ordered, strict=True):
        steps = np.linspace(0.0, 1.0, size) if order else rng.uniform(0.0, 0.6, size)
        growth.append(steps * rng.uniform(0.3, 1.5))
        memory.append(steps * rng.uniform(0.0, 1.2))
    pricer = PricedTable(space, parts, tuple(growth), tuple(memory), tuple(rng.uniform(0.5, 2.0, 3)))
    return Drawn(space, pricer, sizes, ordered)


def synthetic(seed: int, choices: int, objectives: tuple[str, ...] = ("accuracy", "latency")) -> Problem:
    """A problem of that many choices, drawn by seed: capacities of parts, the weakest of them, pairs of choices."""
    rng = np.random.default_rng([choices, seed])
    of = drawn(rng, f"synthetic-{choices}-{seed}", choices)
    return of.problem(objectives, _accuracies(rng, of), 0.01, seed)


def _undecoded(point: Point) -> VLMConfig:
    raise TypeError(f"a synthetic point {point} stands for no model")


def _sizes(rng: np.random.Generator, choices: int, most: int) -> tuple[int, ...]:
    """Two to six values each, as many as keep the space enumerable."""
    while True:
        sizes = rng.choice([2, 3, 4, 5, 6], choices, p=[0.25, 0.3, 0.25, 0.1, 0.1])
        if most / 4 <= np.prod(sizes) <= most:
            return tuple(int(size) for size in sizes)


def _accuracies(rng: np.random.Generator, of: Drawn) -> Array:
    effects, along = of.effects(rng), of.along
    weight = rng.gamma(1.5, 1.0, len(of.sizes))
    capacity = []
    for part in of.pricer.parts:
        total = sum(weight[at] for at in part)
        capacity.append(reduce(np.add, [along(effects[at] * weight[at] / total, at) for at in part]))
    mean = reduce(np.add, capacity) / 3
    weakest = np.minimum(np.minimum(capacity[0], capacity[1]), capacity[2])
    found = 0.7 * mean + 0.3 * weakest
    for _ in of.sizes:
        first, second = sorted(int(at) for at in rng.choice(len(of.sizes), 2, replace=False))
        # a table of its own, without what either choice does alone
        table = rng.normal(0, 1, (of.sizes[first], of.sizes[second]))
        table -= table.mean(0, keepdims=True)
        table -= table.mean(1, keepdims=True)
        found = found + _PAIR * along(table, first, second)
    return np.asarray(found)


def tabled(device: str, objectives: tuple[str, ...] = ("accuracy", "latency"), cap: str | None = None) -> Problem:
    """`tiny` narrowed to what the supernet's table holds, on a device; `cap` bounds what a tenth of its points keep."""
    space = narrowed()
    name = f"tiny-{device}" + (f"-{len(objectives)}" if len(objectives) > 2 else "")
    pricer = SpacePricer(space, Pricer(cost_model("auto", load(device)), Workload(prompt_tokens=10, new_tokens=2)))
    problem = Problem(name, space, pricer, objectives, read())
    return capped(problem, cap) if cap else problem


def capped(problem: Problem, cap: str) -> Problem:
    """The same with a hard cap that a tenth of the points keep."""
    bounded = OBJECTIVES[CAPS[cap]]
    values = np.concatenate([problem.pricer.columns(part)[bounded.column] for part in problem._parts()])
    limit = float(np.quantile(values, _KEPT)) * bounded.scale
    return Problem(
        f"{problem.name}-capped",
        problem.space,
        problem.pricer,
        problem.objectives,
        problem.accuracy,
        problem.noise,
        problem.noise_seed,
        {cap: limit},
    )
