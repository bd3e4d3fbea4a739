"""Which points to evaluate next where costs are known exactly and only the accuracy is modelled.

A pool of points (neighbours of the front, crossovers within it, random ones) is priced; those that break a cap or were
evaluated are dropped; of the others those are taken whose expected gain of hypervolume is largest, one after the other.
The gain is an average over directions from the worst corner (Golovin and Zhang, arXiv:2006.04655): along each the front
reaches so far, and a point with known costs and a normal accuracy beyond it by an expected volume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.samplers.surrogate import MOST, Array, Surrogate
from search_spaces.space import Indices

#: (costs to be minimised, (points, costs); whether each point keeps every cap).
Price = Callable[[Indices], tuple[Array, NDArray[np.bool_]]]

_POOL = 1500
_DIRECTIONS = 96
#: Equally likely values of a standard normal.
_QUANTILES = np.array([-1.28, -0.52, 0.0, 0.52, 1.28])
_START = 16


@dataclass
class Design:
    """Proposes rows of indices of a space; `sizes` and `ordered` tell each choice's values, `price` their costs."""

    sizes: tuple[int, ...]
    ordered: tuple[bool, ...]
    price: Price
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self._surrogate: Surrogate | None = None

    def start(self, points: Indices, seen: set[bytes], count: int) -> Indices:
        """A space-filling set within the caps: each as far from what was evaluated and from the others as can be."""
        ends = np.array([np.zeros(len(self.sizes), np.intp), np.array(self.sizes) - 1])
        pool, _ = self._fresh(np.vstack([ends, self._random(2000)]), seen)
        places, far = self._places(pool), np.full(len(pool), np.inf)
        for place in self._places(points):
            far = np.minimum(far, np.abs(places - place).sum(1))
        chosen: list[int] = []
        while len(chosen) < min(count, len(pool)):
            chosen.append(int(far.argmax()))  # the first, a corner, where nothing was evaluated
            far = np.minimum(far, np.abs(places - places[chosen[-1]]).sum(1))
        return pool[chosen]

    def propose(self, points: Indices, accuracy: Array, seen: set[bytes], count: int) -> Indices:
        """Up to `count` points that are neither evaluated nor `seen`, the most promising first."""
        if len(points) < _START:
            return self.start(points, seen, count)
        costs, _ = self.price(points)
        front = _front(np.column_stack([-accuracy, costs]))
        pool, priced = self._fresh(self._pool(points, front), seen)
        if not len(pool):
            return self.start(points, seen, count)
        kept = self._kept(len(points), front)
        features = self._features(points, costs)
        low, high = features.min(0), features.max(0)
        span = np.where(high > low, high - low, 1.0)
        ordered = np.r_[np.array(self.ordered), np.ones(costs.shape[1], bool)]
        if self._surrogate is None:
            self._surrogate = Surrogate(ordered)
        self._surrogate.fit((features[kept] - low) / span, accuracy[kept])
        mean, deviation = self._surrogate.predict((self._features(pool, priced) - low) / span)
        return pool[self._best(accuracy[front], costs[front], mean, deviation, priced, accuracy, costs, count)]

    def _best(
        self,
        front_accuracy: Array,
        front_costs: Array,
        mean: Array,
        deviation: Array,
        priced: Array,
        accuracy: Array,
        costs: Array,
        count: int,
    ) -> list[int]:
        """Greedy: the largest expected gain, then the largest beyond it taken at its mean."""
        worst, best = costs.max(0), costs.min(0)
        cost_span = np.where(worst > best, worst - best, 1.0)
        floor, span = accuracy.min(), max(accuracy.max() - accuracy.min(), 1e-12)
        directions = np.abs(self.rng.standard_normal((_DIRECTIONS, 1 + costs.shape[1]))) + 1e-3
        directions /= np.linalg.norm(directions, axis=1)[:, None]

        def along_costs(values: Array) -> Array:
            share = (worst - values) / cost_span
            found: Array = np.min(share[:, None, :] / directions[None, :, 1:], axis=2)
            return found

        def along_accuracy(values: Array) -> Array:
            found: Array = ((values - floor) / span)[..., None] / directions[:, 0]
            return found

        power = directions.shape[1]
        reached = np.minimum(along_costs(front_costs), along_accuracy(front_accuracy))
        reached = np.maximum(reached.max(0), 0.0)
        bound = along_costs(priced)
        hopeful = np.minimum(bound, along_accuracy(mean + 2.5 * deviation)) > reached
        left = np.flatnonzero(hopeful.any(1))
        chosen: list[int] = []
        while len(chosen) < count and len(left):
            gain = np.zeros(len(left))
            for quantile in _QUANTILES:
                at = np.minimum(bound[left], along_accuracy(mean[left] + quantile * deviation[left]))
                gain += np.maximum(np.maximum(at, 0.0) ** power - reached**power, 0.0).mean(1)
            pick = int(gain.argmax())
            chosen.append(int(left[pick]))
            one = left[pick : pick + 1]
            reached = np.maximum(reached, np.minimum(bound[one], along_accuracy(mean[one]))[0])
            left = np.delete(left, pick)
        if len(chosen) < count:  # nothing can improve the front: what is least known
            rest = np.setdiff1d(np.argsort(-deviation), chosen, assume_unique=True)
            chosen += [int(at) for at in rest[: count - len(chosen)]]
        return chosen

    def _kept(self, count: int, front: Indices) -> Indices:
        if count <= MOST:
            return np.arange(count)
        newest = np.setdiff1d(np.arange(count), front)[-(MOST - min(len(front), MOST // 2)) :]
        return np.concatenate([front[: MOST // 2], newest])

    def _pool(self, points: Indices, front: Indices) -> Indices:
        """Neighbours of the front with one to three choices changed, crossovers within it, and random points."""
        parents = points[self.rng.choice(front, _POOL)]
        changed = self.rng.random(parents.shape) < (self.rng.integers(1, 4, (_POOL, 1)) / len(self.sizes))
        near = self.rng.random(parents.shape) < 0.5
        stepped = np.clip(parents + self.rng.choice([-1, 1], parents.shape), 0, np.array(self.sizes) - 1)
        moved = np.where(near & np.array(self.ordered), stepped, self._random(_POOL))
        neighbours = np.where(changed, moved, parents)
        others = points[self.rng.choice(front, _POOL)]
        crossed = np.where(self.rng.random(parents.shape) < 0.5, parents, others)
        return np.vstack([neighbours, crossed[: _POOL // 2], self._random(_POOL)])

    def _random(self, count: int) -> Indices:
        return self.rng.integers(0, self.sizes, (count, len(self.sizes)))

    def _fresh(self, pool: Indices, seen: set[bytes]) -> tuple[Indices, Array]:
        """Of a pool each point once that was not seen and keeps the caps, and their costs."""
        _, first = np.unique(pool, axis=0, return_index=True)
        pool = pool[np.sort(first)]
        pool = pool[[row.tobytes() not in seen for row in pool]]
        if not len(pool):
            return pool, np.empty((0, 1))
        costs, keeps = self.price(pool)
        return pool[keeps], costs[keeps]

    def _places(self, points: Indices) -> Array:
        found: Array = points / np.maximum(np.array(self.sizes) - 1, 1)
        return found

    def _features(self, points: Indices, costs: Array) -> Array:
        return np.column_stack([self._places(points), np.log(np.maximum(costs, 1e-30))])


def _front(values: Array) -> Indices:
    from nas import pareto

    return np.array(pareto.front(values), dtype=np.intp)
