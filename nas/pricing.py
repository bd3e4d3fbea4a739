"""Prices points of one space by the thousand, from tables of what their parts cost.

A point's cost is a sum over its encoder, projector and decoder, and each hangs on a few of the space's choices
(`Factors`). Each part is priced once, as its kernels' sum, when a point first has it; after that a point costs four
look-ups.
"""

from __future__ import annotations

from math import prod

import numpy as np

from nas.candidate import Array, Places, Pricer
from nas.objectives import OBJECTIVES
from nas.placement import PlacedPricer
from search_spaces import SearchSpace, VLMConfig
from search_spaces.space import Indices


class SpacePricer:
    """Prices rows of indices of a space; shares what a pricer of configs knows."""

    #: Points that a second or two are enough for.
    handful = 10_000

    def __init__(self, space: SearchSpace, pricer: Pricer) -> None:
        self.space, self.pricer = space, pricer
        factors = space.factors
        self._vision, self._image, self._projector, self._language = (
            _Knobs(space, names) for names in (factors.vision, factors.image, factors.projector, factors.language)
        )
        self._seen = [np.full(knobs.size, -1, np.intp) for knobs in (self._vision, self._projector)]
        tokens = [self._config(row).image_tokens for row in self._image.rows()]
        self._counts, self._count_of = np.unique(tokens, return_inverse=True)
        self._seen.append(np.full(self._language.size * len(self._counts), -1, np.intp))

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `Pricer.columns`, of points as indices, (points, choices)."""
        language = self._language.of(indices) * len(self._counts) + self._count_of[self._image.of(indices)]
        at = (self._vision.of(indices), self._projector.of(indices), language)
        return self.pricer.joined(*(self._places(part, which, indices) for part, which in enumerate(at)))

    def _places(self, component: int, which: Places, indices: Indices) -> Places:
        """Where a component of each point stands in the pricer's tables; `which` it is of all that the space has."""
        seen = self._seen[component]
        found = seen[which]
        missing = np.flatnonzero(found < 0)
        if len(missing):
            new, first = np.unique(which[missing], return_index=True)
            configs = [self._config(row) for row in indices[missing[first]]]
            keys = [config.keys(self.pricer.workload)[component] for config in configs]
            seen[new] = self.pricer.places(component, keys, configs)
            found = seen[which]
        return found

    def _config(self, row: Indices) -> VLMConfig:
        return self.space.decoder(self.space.point(row))


class PointPricer:
    """Prices rows of indices one by one, each at its best cut between device and cloud: a thousand a second."""

    handful = 1_000

    def __init__(self, space: SearchSpace, pricer: PlacedPricer) -> None:
        self.space, self.pricer = space, pricer

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `SpacePricer.columns`, of the objectives alone."""
        costs = self.pricer.prices([self.space.decoder(self.space.point(row)) for row in indices])
        return {
            each.column: np.array([each.of(cost) for cost in costs])
            for each in OBJECTIVES.values()
            if each.of is not None
        }


def tabled(space: SearchSpace, pricer: Pricer | PlacedPricer) -> SpacePricer | PointPricer:
    """What prices points of a space as a pricer prices configs."""
    return PointPricer(space, pricer) if isinstance(pricer, PlacedPricer) else SpacePricer(space, pricer)


class _Knobs:
    """Some choices of a space, and the number of each combination of their values."""

    def __init__(self, space: SearchSpace, names: tuple[str, ...]) -> None:
        order = list(space.choices)
        self._columns = [order.index(name) for name in names]
        self._sizes = [len(space.choices[name]) for name in names]
        self._width = len(order)

    @property
    def size(self) -> int:
        """Combinations."""
        return prod(self._sizes)

    def of(self, indices: Indices) -> Places:
        """Which combination each point has."""
        found = np.zeros(len(indices), np.intp)
        for column, size in zip(self._columns, self._sizes, strict=True):
            found = found * size + indices[:, column]
        return found

    def rows(self) -> Indices:
        """A point for each combination, in order; all other choices have their first value."""
        found = np.zeros((self.size, self._width), np.intp)
        found[:, self._columns] = np.array(np.unravel_index(np.arange(self.size), self._sizes)).T
        return found
