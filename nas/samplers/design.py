"""Which points to evaluate next where costs are known exactly and only the accuracy is modelled.

A pool of points (neighbours of the front, crossovers within it, random ones) is priced; those that no device affords or
that were evaluated are dropped; of the others those are taken whose expected gain is largest, one after the other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.samplers.gain import Gain
from nas.samplers.surrogate import MOST, Surrogate
from nas.samplers.task import Array, Task
from search_spaces.space import Indices

#: Points of a pool: neighbours, half as many crossovers, as many at random.
_POOL = 1500
#: Points before the first fit.
_START = 12
#: Rounds in which the most promising of a pool have descendants, and how many have.
_ROUNDS = 2
_PARENTS = 150
#: Points that a search starts among, and whose costs tell what counts as dear.
_DRAWN = 4000
#: From so many evaluated points on, every other fit doubts what it found of pairs: by the logarithm of a factor.
_DOUBTED, _DOUBT = 60, 1.5
#: Draws that an expected gain of several points is the mean of.
_DRAWS = 64


def one_thread() -> AbstractContextManager[object]:
    """Of linear algebra: its matrices are small, and threads that wait for each other cost more than they save."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


@dataclass
class Design:
    """Proposes rows of indices of a task's space."""

    task: Task
    rng: np.random.Generator

    def __post_init__(self) -> None:
        choices = self.task.space.choices
        self.sizes = np.array([len(values) for values in choices.values()])
        self.ordered = np.array(
            [
                all(isinstance(value, int | float) for value in values) and list(values) == sorted(values)
                for values in choices.values()
            ]
        )
        self._surrogate = Surrogate(self.sizes, self.ordered)
        self._ends = np.array([np.zeros(len(self.sizes), np.intp), self.sizes - 1])
        self._sample = self._random(_DRAWN)
        self._span: tuple[Array, Array] | None = None
        self._fits = 0  # of `_DOUBTED` points or more

    def start(self, points: Indices, seen: set[bytes], count: int) -> Indices:
        """Corners and references of the space, then a space-filling set, all within the caps.

        Of that set each is as far from what was evaluated and from the others as can be.
        """
        space = self.task.space
        first = np.vstack([self._ends, space.indices(list(space.references.values()))])
        pool, _, _ = self._fresh(np.vstack([first, self._sample]), seen)
        if not len(pool):
            pool, _, _ = self._fresh(self._random(_DRAWN), seen)
        places, far = self._places(pool), np.full(len(pool), np.inf)
        for place in self._places(points):
            far = np.minimum(far, np.abs(places - place).sum(1))
        known = {row.tobytes() for row in first}
        chosen = [at for at, row in enumerate(pool[: len(first)]) if row.tobytes() in known][:count]
        for at in chosen:
            far = np.minimum(far, np.abs(places - places[at]).sum(1))
        while len(chosen) < min(count, len(pool)):
            chosen.append(int(far.argmax()))
            far = np.minimum(far, np.abs(places - places[chosen[-1]]).sum(1))
        return pool[chosen]

    def propose(self, points: Indices, accuracy: Array, seen: set[bytes], count: int) -> Indices:
        """Up to `count` points that are neither evaluated nor `seen`, the most promising first."""
        if len(points) < _START:
            return self.start(points, seen, count)
        if len(points) >= _DOUBTED:
            self._fits += 1
        doubt = _DOUBT if self._fits and self._fits % 2 == 0 else 0.0
        with one_thread():
            return self._promising(points, accuracy, seen, count, doubt)

    def _promising(self, points: Indices, accuracy: Array, seen: set[bytes], count: int, doubt: float = 0.0) -> Indices:
        known = self.worth_keeping(points, accuracy)
        points, accuracy = points[known], accuracy[known]
        costs, kept = self.task.costs(points)
        self._surrogate.fit(points, accuracy, doubt)
        believed, _ = self._surrogate.predict(points)  # an observed front is made of lucky ones
        front = self._on_a_front(costs, kept, believed)
        gain = Gain(costs, kept, believed, *self.span())
        pool, priced, keeps = self._fresh(self._pool(points, front), seen)
        if not len(pool):
            return self.start(points, seen, count)
        mean, deviation = self._surrogate.predict(pool)
        for _ in range(_ROUNDS):
            expected = gain.expected(gain.affordable(priced, keeps), mean, deviation)
            parents = pool[np.argsort(-expected)[:_PARENTS]]
            more = self._fresh(self._varied(parents, parents, _POOL), seen | {row.tobytes() for row in pool})
            predicted = self._surrogate.predict(more[0])
            pool, priced, keeps = np.vstack([pool, more[0]]), np.hstack([priced, more[1]]), np.hstack([keeps, more[2]])
            mean, deviation = np.r_[mean, predicted[0]], np.r_[deviation, predicted[1]]
        affordable = gain.affordable(priced, keeps)
        hopeful = np.flatnonzero(
            (affordable & ((mean + 3 * deviation)[None, :, None] > gain.reached[:, None, :])).any((0, 2))
        )
        chosen: list[int] = []
        while len(chosen) < min(count, len(hopeful)):
            expected = gain.expected(affordable[:, hopeful], mean[hopeful], deviation[hopeful])
            best = int(hopeful[expected.argmax()])
            chosen.append(best)
            gain.add(affordable[:, best], mean[best])
            hopeful = hopeful[hopeful != best]
        if len(chosen) < count:  # nothing can improve the fronts: what is least known
            rest = np.setdiff1d(np.argsort(-deviation), chosen, assume_unique=True)
            chosen += [int(at) for at in rest[: count - len(chosen)]]
        return pool[chosen]

    def span(self) -> tuple[Array, Array]:
        """(least, greatest) of each cost among the points that each device affords, (devices, costs)."""
        if self._span is None:
            costs, kept = self.task.costs(np.vstack([self._ends, self._sample]))
            fit = [each[keeps] if keeps.any() else each for each, keeps in zip(costs, kept, strict=True)]
            self._span = np.array([each.min(0) for each in fit]), np.array([each.max(0) for each in fit])
        return self._span

    def _on_a_front(self, costs: Array, kept: NDArray[np.bool_], accuracy: Array) -> Indices:
        """Which evaluated points are on the front of a device."""
        from nas import pareto

        found = set[int]()
        for each, keeps in zip(costs, kept, strict=True):
            which = np.flatnonzero(keeps)
            if len(which):
                found |= set(which[pareto.front(np.column_stack([-accuracy, each])[which])].tolist())
        return np.array(sorted(found), np.intp) if found else np.arange(len(accuracy))

    def worth_keeping(self, points: Indices, accuracy: Array) -> Indices:
        """Which evaluated points a fit takes: those of the fronts, and the newest."""
        if len(points) <= MOST:
            return np.arange(len(points))
        front = self._on_a_front(*self.task.costs(points), accuracy)[: MOST // 2]
        newest = np.setdiff1d(np.arange(len(points)), front)[len(front) - MOST :]
        return np.sort(np.concatenate([front, newest]))

    def _pool(self, points: Indices, front: Indices) -> Indices:
        """Neighbours of the front, crossovers within it, and random points."""
        return np.vstack([self._varied(points[front], points[front], _POOL), self._random(_POOL)])

    def _varied(self, first: Indices, second: Indices, count: int) -> Indices:
        """Points of `first` with one to three choices changed, and half as many crossovers with points of `second`."""
        parents = first[self.rng.integers(0, len(first), count)]
        changed = self.rng.random(parents.shape) < (self.rng.integers(1, 4, (count, 1)) / len(self.sizes))
        near = self.rng.random(parents.shape) < 0.5
        stepped = np.clip(parents + self.rng.choice([-1, 1], parents.shape), 0, self.sizes - 1)
        moved = np.where(near & self.ordered, stepped, self._random(count))
        neighbours = np.where(changed, moved, parents)
        others = second[self.rng.integers(0, len(second), count)]
        crossed = np.where(self.rng.random(parents.shape) < 0.5, parents, others)
        return np.vstack([neighbours, crossed[: count // 2]])

    def _random(self, count: int) -> Indices:
        return self.rng.integers(0, self.sizes, (count, len(self.sizes)))

    def _fresh(self, pool: Indices, seen: set[bytes]) -> tuple[Indices, Array, NDArray[np.bool_]]:
        """Of a pool each point once that was not seen and that a device affords, with costs and where they keep."""
        _, first = np.unique(pool, axis=0, return_index=True)
        pool = pool[np.sort(first)]
        pool = pool[[row.tobytes() not in seen for row in pool]]
        costs, kept = self.task.costs(pool)
        some = kept.any(0)
        return pool[some], costs[:, some], kept[:, some]

    def _places(self, points: Indices) -> Array:
        found: Array = points / np.maximum(self.sizes - 1, 1)
        return found

    def promise(self, points: Indices, accuracy: Array, seen: set[bytes], count: int) -> float:
        """The gain that the next `count` points are expected to bring, as a share of the fronts' volume.

        Infinite before there are enough points to say anything; 0 where all of the space was seen. It is rather too
        high than too low: points are chosen for what the surrogate expects of them, and it errs (see docs/choosing.md).
        """
        if len(points) < _START:
            return float("inf")
        with one_thread():
            chosen = self._promising(points, accuracy, seen, count)
            if not len(chosen):
                return 0.0
            points = points[self.worth_keeping(points, accuracy)]  # those of the fit
            gain = Gain(*self.task.costs(points), self._surrogate.predict(points)[0], *self.span())
            where, found = gain.affordable(*self.task.costs(chosen)), []
            before, reached = gain.volume, gain.reached
            for drawn in self._surrogate.draws(chosen, _DRAWS, self.rng):
                for at, value in enumerate(drawn):
                    gain.add(where[:, at], value)
                found.append(gain.volume - before)
                gain.reached = reached
            return float(np.mean(found)) / max(before, 1e-9)
