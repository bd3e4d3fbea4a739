"""Dominance, fronts and hypervolume. Values are minimised: callers flip the sign of what is maximised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def front(values: Values) -> list[int]:
    """Indices of the non-dominated rows of (n, objectives), ascending by the first objective; equal rows all stay."""
    left = np.lexsort(values.T[::-1])
    rows, kept = values[left], list[int]()
    while len(left):
        first = rows[0]  # nothing that is left can dominate it
        equal, stays = (rows == first).all(1), ~(rows >= first).all(1)
        equal[0], stays[0] = True, False  # one that is not a number equals nothing
        kept += left[equal].tolist()
        left, rows = left[stays], rows[stays]
    return kept


def ranks(values: Values) -> list[int]:
    """Rank of every row: 0 for the front, 1 for the front of the rest, and so on."""
    left, result, rank = list(range(len(values))), [0] * len(values), 0
    while left:
        layer = {left[i] for i in front(values[left])}
        for index in layer:
            result[index] = rank
        left = [index for index in left if index not in layer]
        rank += 1
    return result


def hypervolume(values: Values, reference: Sequence[float] | Values) -> float:
    """Volume that (n, objectives) dominates up to `reference`; rows outside it count nothing.

    By slicing along the last objective; exact, and quick for the sizes of a front.
    """
    reference_row = np.asarray(reference, dtype=float)
    inside = values[np.all(values < reference_row, axis=1)]
    if not len(inside):
        return 0.0
    if values.shape[1] == 1:
        return float(reference_row[0] - inside[:, 0].min())
    if values.shape[1] == 2:
        first, second = inside[np.lexsort(inside.T[::-1])].T
        lowest = np.minimum.accumulate(second)
        return float(np.diff(first, append=reference_row[0]) @ (reference_row[1] - lowest))
    inside = inside[front(inside)]
    inside = inside[np.argsort(inside[:, -1])]
    edges = [*inside[:, -1], reference_row[-1]]
    return math.fsum(
        float(edges[i + 1] - edges[i]) * hypervolume(inside[: i + 1, :-1], reference_row[:-1])
        for i in range(len(inside))
        if edges[i + 1] > edges[i]
    )
