"""How much a point may add to the fronts of all devices, where its costs are known and its accuracy is a normal.

A front's hypervolume is an integral over the costs: of the accuracy that is reached there. A point of known costs adds,
wherever it is affordable, what its accuracy is expected to be better by. The integral is a sum over nodes, half of them
spread evenly over the costs and half over their logarithms: fronts span orders of magnitude.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.samplers.task import Array

_NODES = 256


class Gain:
    """Fronts of devices, and what points are expected to add to them.

    costs (devices, points, costs), kept (devices, points) and accuracy (points,) are those of what was evaluated; `low`
    and `high` (devices, costs) span the costs that count, `floor` is the accuracy that anything reaches.
    """

    def __init__(self, costs: Array, kept: NDArray[np.bool_], accuracy: Array, low: Array, high: Array) -> None:
        self.nodes = np.array([_spread(*each) for each in zip(low, high, strict=True)])  # (devices, nodes, costs)
        self.floor = float(accuracy.min())
        self.span = max(float(accuracy.max()) - self.floor, 1e-9)
        affordable = self.affordable(costs, kept)
        reached = np.where(affordable, accuracy[:, None], self.floor)
        self.reached: Array = reached.max(1)  # (devices, nodes)

    def affordable(self, costs: Array, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """At which nodes each point is affordable, (devices, points, nodes)."""
        found = kept[:, :, None] & (costs[:, :, 0, None] <= self.nodes[:, None, :, 0])
        for cost in range(1, costs.shape[2]):
            found &= costs[:, :, cost, None] <= self.nodes[:, None, :, cost]
        return found

    @property
    def volume(self) -> float:
        """The fronts' mean share of the box between the best and the worst that counts."""
        return float((self.reached - self.floor).mean()) / self.span

    def expected(self, affordable: NDArray[np.bool_], mean: Array, deviation: Array) -> Array:
        """Of each point the expected gain in `volume`, (points,)."""
        from scipy.special import ndtr

        found = np.zeros(len(mean))
        for reached, where in zip(self.reached, affordable, strict=True):
            levels, at = np.unique(reached, return_inverse=True)  # fewer than nodes
            counted = where.astype(np.float32) @ np.eye(len(levels), dtype=np.float32)[at]  # (points, levels)
            z = (mean[:, None] - levels) / deviation[:, None]
            better = z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
            found += deviation * (counted * better).sum(1)
        return found / (self.reached.size * self.span)

    def add(self, affordable: NDArray[np.bool_], accuracy: float) -> None:
        """Take in a point, affordable at nodes (devices, nodes)."""
        self.reached = np.where(affordable, np.maximum(self.reached, accuracy), self.reached)


def _spread(low: Array, high: Array) -> Array:
    """Nodes (nodes, costs) in a box of costs: half even in the costs, half in their logarithms."""
    from scipy.stats import qmc

    width = len(low)
    if width == 1:
        even = (np.arange(_NODES // 2)[:, None] + 0.5) / (_NODES // 2)
    else:
        even = qmc.Sobol(width, scramble=False).random(_NODES)[: _NODES // 2] + 0.5 / _NODES
    low, high = np.maximum(low, 1e-30), np.maximum(high, 1e-30)
    return np.vstack([low + even * (high - low), low * (high / low) ** even])
