"""Prices points of one space by the thousand, from tables of what their parts cost.

A point's cost is a sum over its encoder, projector and decoder, and each hangs on a few of the space's choices
(`Factors`). Each part is priced once, as its kernels' sum, when a point first has it; after that a point costs four
look-ups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        own = space.factors
        grid, widths = _Number(space, own.grid, _grid), (own.vision_width, own.language_width)
        across, along = (_Number(space, names, width) for names, width in zip(widths, (_across, _along), strict=True))
        tokens = _Number(space, own.image_tokens, _tokens)
        self._parts = (
            (_Knobs(space, own.vision), grid),
            (_Knobs(space, own.projector), grid, across, along),
            (_Knobs(space, own.language), tokens),
        )
        self._seen = [np.full(prod(each.size for each in part), -1, np.intp) for part in self._parts]

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `Pricer.columns`, of points as indices, (points, choices)."""
        which = [_combined([(each.size, each.of(indices)) for each in part]) for part in self._parts]
        missing = [
            _first_of_each(of_all, np.flatnonzero(seen[of_all] < 0))
            for seen, of_all in zip(self._seen, which, strict=True)
        ]
        rows = dict.fromkeys(np.concatenate(missing).tolist())
        configs = {row: self.space.decoder(self.space.point(indices[row])) for row in rows}
        for component, first in enumerate(missing):
            if len(first):
                new = [configs[row] for row in first.tolist()]
                keys = [config.keys(self.pricer.workload)[component] for config in new]
                self._seen[component][which[component][first]] = self.pricer.places(component, keys, new)
        return self.pricer.joined(*(seen[of_all] for seen, of_all in zip(self._seen, which, strict=True)))


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


def _combined(parts: Sequence[tuple[int, Places]]) -> Places:
    """Numbers of combinations: of each part how many there are, and which each point has."""
    found = parts[0][1]
    for size, which in parts[1:]:
        found = found * size + which
    return found


def _first_of_each(which: Places, rows: Places) -> Places:
    """Of the points in `rows` the first of every combination."""
    _, first = np.unique(which[rows], return_index=True)
    return rows[first]


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
        sizes = zip(self._columns, self._sizes, strict=True)
        return _combined([(1, np.zeros(len(indices), np.intp)), *((size, indices[:, at]) for at, size in sizes)])

    def rows(self) -> Indices:
        """A point for each combination, in order; all other choices have their first value."""
        found = np.zeros((self.size, self._width), np.intp)
        found[:, self._columns] = np.array(np.unravel_index(np.arange(self.size), self._sizes)).T
        return found


class _Number:
    """A number of a config that hangs on some choices, and which of the space's such numbers each point has."""

    def __init__(self, space: SearchSpace, names: tuple[str, ...], number: Callable[[VLMConfig], int]) -> None:
        self._knobs = _Knobs(space, names)
        found = [number(space.decoder(space.point(row))) for row in self._knobs.rows()] if names else [0]
        numbers, self._which = np.unique(found, return_inverse=True)
        self.size = len(numbers)

    def of(self, indices: Indices) -> Places:
        """Which of the numbers each point has."""
        found: Places = self._which[self._knobs.of(indices)]
        return found


def _grid(config: VLMConfig) -> int:
    return config.vision.grid


def _across(config: VLMConfig) -> int:
    return config.vision.width


def _along(config: VLMConfig) -> int:
    return config.language.width


def _tokens(config: VLMConfig) -> int:
    return config.image_tokens
