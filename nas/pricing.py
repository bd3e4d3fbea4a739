"""Prices points of one space by the thousand, from tables of what their parts cost.

A point's cost is a sum over its encoder, projector and decoder, and each hangs on a few of the space's choices
(`Factors`). Each part is priced once, as its kernels' sum, when a point first has it; after that a point costs four
look-ups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np

from nas.candidate import Array, Places, Pricer
from nas.objectives import OBJECTIVES, excesses
from nas.placement import Columns, PlacedPricer
from search_spaces import Point, SearchSpace, VLMConfig
from search_spaces.placement import Cut
from search_spaces.space import Indices


class SpacePricer:
    """Prices rows of indices of a space; shares what a pricer of configs knows."""

    def __init__(self, space: SearchSpace, pricer: Pricer) -> None:
        self.space, self.pricer = space, pricer
        own = space.factors
        grid, tokens = _Number(space, own.grid, _grid), _Number(space, own.image_tokens, _tokens)
        across, along = _Number(space, own.vision_width, _across), _Number(space, own.language_width, _along)
        self._parts = (
            (_Knobs(space, own.vision), grid),
            (_Knobs(space, own.projector), grid, across, along),
            (_Knobs(space, own.language), tokens),
        )
        self._seen = [np.full(count, -1, np.intp) for count in self.combinations]

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `Pricer.columns`, of points as indices, (points, choices)."""
        return self.pricer.joined(*self._places(indices, self.which(indices)))

    def phases(self, indices: Indices, which: Sequence[Places]) -> Columns:
        """(`columns`, and what each phase holds as `Pricer.held` tells it) of points whose parts are known."""
        places = self._places(indices, which)
        return self.pricer.joined(*places), self.pricer.held(*places)

    @property
    def combinations(self) -> list[int]:
        """How many visions, projectors and languages there may be."""
        return [prod(each.size for each in part) for part in self._parts]

    def which(self, indices: Indices) -> list[Places]:
        """Which vision, projector and language each point has of all that there may be."""
        return [_combined([(each.size, each.of(indices)) for each in part]) for part in self._parts]

    def _places(self, indices: Indices, which: Sequence[Places]) -> list[Places]:
        """Where the parts of each point, of which `which` is known, stand in the pricer's tables."""
        parts = list(zip(self._seen, which, strict=True))
        missing = [_first_of_each(of_all, np.flatnonzero(seen[of_all] < 0)) for seen, of_all in parts]
        rows = dict.fromkeys(np.concatenate(missing).tolist())
        configs = {row: self.space.decoder(self.space.point(indices[row])) for row in rows}
        for component, ((seen, of_all), first) in enumerate(zip(parts, missing, strict=True)):
            if len(first):
                new = [configs[row] for row in first.tolist()]
                keys = [config.keys(self.pricer.workload)[component] for config in new]
                seen[of_all[first]] = self.pricer.places(component, keys, new)
        return [seen[of_all] for seen, of_all in parts]


class PlacedSpacePricer:
    """Prices rows of indices of a space, each at its best cut between device and cloud."""

    def __init__(self, space: SearchSpace, pricer: PlacedPricer) -> None:
        self.space, self.pricer = space, pricer
        in_cloud = dataclasses.replace(space, decoder=partial(_in_cloud, space, pricer))
        self._here, self._there = SpacePricer(space, pricer.device), SpacePricer(in_cloud, pricer.cloud)
        self._sent = {
            cut: np.full(self._here.combinations[_SENDS[cut]], np.nan) for cut in pricer.placement.cuts if cut in _SENDS
        }

    def columns(self, indices: Indices) -> dict[str, Array]:
        """As `SpacePricer.columns`, of the objectives alone."""
        which = self._here.which(indices)
        here, there = (each.phases(indices, which) for each in (self._here, self._there))
        found = [
            self.pricer.at_cut(cut, here, there, self._sent_bytes(cut, indices, which))
            for cut in self.pricer.placement.cuts
        ]
        broken = [np.maximum(list(excesses(self.pricer.caps, cut).values()), 0.0).sum(0) for cut in found]
        value = np.array([cut[OBJECTIVES[self.pricer.by].column] for cut in found])
        best = np.where(broken == np.min(broken, 0), value, np.inf).argmin(0)
        return {name: np.choose(best, [cut[name] for cut in found]) for name in found[0]}

    def _sent_bytes(self, cut: Cut, indices: Indices, which: Sequence[Places]) -> Array:
        """Bytes that leave the device: of an image by the encoder that sees it, of features by the projector."""
        if cut not in _SENDS:
            return np.zeros(len(indices))
        table, of_all = self._sent[cut], which[_SENDS[cut]]
        for row in _first_of_each(of_all, np.flatnonzero(np.isnan(table[of_all]))).tolist():
            config = self.space.decoder(self.space.point(indices[row]))
            table[of_all[row]] = self.pricer.sent(config, cut).total_bytes
        found: Array = table[of_all]
        return found


#: The component that the bytes sent at a cut hang on, beside the request.
_SENDS = {Cut.AFTER_PROJECTOR: 1, Cut.AFTER_ENCODER: 1, Cut.CLOUD: 0}


def _in_cloud(space: SearchSpace, pricer: PlacedPricer, point: Point) -> VLMConfig:
    return pricer.in_cloud(space.decoder(point))


def tabled(space: SearchSpace, pricer: Pricer | PlacedPricer) -> SpacePricer | PlacedSpacePricer:
    """What prices points of a space as a pricer prices configs."""
    return PlacedSpacePricer(space, pricer) if isinstance(pricer, PlacedPricer) else SpacePricer(space, pricer)


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
