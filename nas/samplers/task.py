"""What a sampler may know of a search beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nas.objectives import CAPS, OBJECTIVES, excesses
from search_spaces import SearchSpace
from search_spaces.space import Indices

Array = NDArray[np.float64]


class Prices(Protocol):
    """What prices points of a space as a batch: `nas.pricing` has two."""

    @property
    def space(self) -> SearchSpace:
        """The space whose points are priced."""

    def columns(self, indices: Indices) -> dict[str, Array]:
        """Costs of points, (points, choices), by the objectives' columns, an array (points,) each."""


@dataclass(frozen=True, slots=True)
class Priced:
    """A device: what prices every point there, and the caps that its points must keep."""

    pricer: Prices
    caps: Mapping[str, float]

    def costs(self, indices: Indices, objectives: tuple[str, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """(the objectives but the accuracy, to be minimised, (points, costs); whether each point keeps every cap)."""
        columns = self.pricer.columns(indices)
        caps = {cap: limit for cap, limit in self.caps.items() if CAPS[cap] != "accuracy"}
        past = excesses(caps, columns)
        keeps = np.all([each <= 0 for each in past.values()], axis=0) if past else np.ones(len(indices), bool)
        found = [columns[OBJECTIVES[name].column] for name in objectives if name != "accuracy"]
        return np.column_stack(found), keeps


@dataclass(frozen=True, slots=True)
class Task:
    """A search beforehand: what every point costs on each of its devices, and which points are allowed there."""

    devices: tuple[Priced, ...]
    objectives: tuple[str, ...]

    @property
    def space(self) -> SearchSpace:
        """The space that is searched."""
        return self.devices[0].pricer.space

    def costs(self, indices: Indices) -> tuple[Array, NDArray[np.bool_]]:
        """(costs (devices, points, costs), kept (devices, points)): as `Priced.costs` on every device."""
        costs, keeps = zip(*(device.costs(indices, self.objectives) for device in self.devices), strict=True)
        return np.array(costs), np.array(keeps)
