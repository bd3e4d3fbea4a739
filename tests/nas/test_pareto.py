"""Fronts and hypervolumes: properties, and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas import pareto

values = st.tuples(st.integers(1, 30), st.integers(1, 4)).flatmap(
    lambda shape: arrays(float, shape, elements=st.integers(0, 9).map(float))
)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(a <= b) and np.any(a < b))


@given(values)
def test_front_is_what_nothing_dominates(rows: np.ndarray) -> None:
    kept = pareto.front(rows)
    assert sorted(kept) == [i for i in range(len(rows)) if not any(dominates(other, rows[i]) for other in rows)]


@given(values, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order(rows: np.ndarray, random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = {tuple(rows[order][i]) for i in pareto.front(rows[order])}
    assert shuffled == {tuple(rows[i]) for i in pareto.front(rows)}


@given(values)
def test_ranks_begin_with_the_front_and_leave_none_out(rows: np.ndarray) -> None:
    ranks = pareto.ranks(rows)
    assert {i for i, rank in enumerate(ranks) if rank == 0} == set(pareto.front(rows))
    assert set(ranks) == set(range(max(ranks) + 1))


@given(values)
def test_hypervolume_is_the_share_of_a_grid_that_is_dominated(rows: np.ndarray) -> None:
    dimensions = rows.shape[1]
    cells = np.stack(np.meshgrid(*[np.arange(10.0)] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    dominated = np.zeros(len(cells), bool)
    for row in rows:
        dominated |= np.all(cells >= row, axis=1)
    assert pareto.hypervolume(rows, [10.0] * dimensions) == pytest.approx(dominated.sum())


def test_hypervolume_by_hand() -> None:
    rows = np.array([[1.0, 3.0], [2.0, 1.0], [5.0, 5.0]])
    assert pareto.hypervolume(rows, [4.0, 4.0]) == pytest.approx(3 * 1 + 2 * 2)
    assert pareto.hypervolume(rows, [1.0, 1.0]) == 0.0
