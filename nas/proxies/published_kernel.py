"""What two published values have to do with each other: the covariance that the regression is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from nas.proxies.published_features import FEATURES, KINDS, matrix, names
from nas.proxies.published_rows import BENCHMARKS, COLUMNS, Row

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

#: Variance of levels, so large that the values tell them; the width of curves in units of features; what a benchmark's
#: own curve adds to the shared one. Assumed.
_LEVELS_VARIANCE, _WIDTH, _OWN_CURVE = 25.0, 3.0, 0.5
_CURVED = [
    FEATURES.index(name)
    for name in ("decoder size", "text score", "resolution", "image tokens", "training samples", "release")
]
#: Levels of values: a column each; `mme` sums perception alone, at most 2,000 points, or cognition too, told by a
#: table's median.
_LEVEL_NAMES = (*COLUMNS, "mme sum")
_SUM_FROM = 1700.0  # assumed: no table's median lies between 1,585 and 1,721


@dataclass(frozen=True, slots=True)
class Prior:
    """Variances in units of a benchmark's usual spread within a table.

    `weights` of each feature, shared by everything; `by_benchmark`, `by_group` and `by_both` what is added to one, as
    shares of it. `kinds` of effects of names, shared and by benchmark. `curved` of what is not linear. `rows`, `groups`
    and `columns` of what the facts do not tell of a model, a table, and a benchmark of a table. `expected` is each
    weight's mean: every feature is written so that more should help.
    """

    weights: float = 0.1
    expected: float = 0.25
    by_benchmark: float = 0.25
    by_group: float = 0.15
    by_both: float = 0.1
    kinds: tuple[float, ...] = (0.05, 0.05, 0.3, 0.05, 0.15)
    kinds_by_benchmark: tuple[float, ...] = (0.03, 0.03, 0.3, 0.03, 0.1)
    curved: float = 0.3
    rows: float = 0.05
    groups: float = 0.05
    columns: float = 0.3
    noise: float = 0.08


@dataclass(frozen=True)
class Coded:
    """Rows as numbers: features, and integers that are equal where rows share a group, a column or a name."""

    x: Array
    benchmark: Indices
    level: Indices
    group: Indices
    column: Indices
    row: Indices
    kinds: Indices  # (kinds, rows)

    def expected(self, prior: Prior) -> Array:
        """What is expected of rows before any is read."""
        found: Array = prior.expected * self.x[:, [name != "undisclosed" for name in FEATURES]].sum(1)
        return found

    def levels(self, target: Array) -> Array:
        """The mean of each level's values, all values' where a level has none."""
        counts = np.bincount(self.level, minlength=len(_LEVEL_NAMES))
        sums = np.bincount(self.level, target, minlength=len(_LEVEL_NAMES))
        found: Array = np.where(counts > 0, sums / np.maximum(counts, 1), target.mean())
        return found

    def moved(self, feature: int) -> Coded:
        """The same rows with one feature larger by one."""
        rest = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "x"}
        x = self.x.copy()
        x[:, feature] += 1.0
        return Coded(x, **rest)


@dataclass(frozen=True)
class Codes:
    """Integers for the names of the rows of a fit."""

    known: dict[str, dict[str, int]]
    sums: frozenset[str]  # tables whose MME counts cognition

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Codes:
        """A number for each group, column and name of a kind."""
        values: dict[str, dict[str, None]] = {kind: {} for kind in ("group", "column", *KINDS)}
        points: dict[str, list[float]] = {}
        for row in rows:
            values["group"][row.group] = values["column"][f"{row.group} {row.column}"] = None
            if row.column == "mme":
                points.setdefault(row.group, []).append(row.value)
        for facts in dict.fromkeys(row.facts for row in rows):
            for kind, name in zip(KINDS, names(facts), strict=True):
                values[kind][name] = None
        known = {kind: {name: at for at, name in enumerate(found)} for kind, found in values.items()}
        return cls(known, frozenset(group for group, found in points.items() if np.median(found) > _SUM_FROM))

    def code(self, rows: Sequence[Row]) -> Coded:
        """Rows as numbers; names that the fit did not see equal each other only."""
        fresh: dict[tuple[str, str], int] = {}

        def code(kind: str, name: str) -> int:
            at = self.known[kind].get(name) if name else None
            return fresh.setdefault((kind, name), -1 - len(fresh)) if at is None else at

        named = {facts: names(facts) for facts in dict.fromkeys(row.facts for row in rows)}
        return Coded(
            x=matrix([row.facts for row in rows]),
            benchmark=np.array([BENCHMARKS.index(row.benchmark) for row in rows]),
            level=np.array([_LEVEL_NAMES.index(self._level(row)) for row in rows]),
            group=np.array([code("group", row.group) for row in rows]),
            column=np.array([code("column", f"{row.group} {row.column}") for row in rows]),
            row=np.array([row.row for row in rows]),
            kinds=np.array([[code(kind, named[row.facts][at]) for row in rows] for at, kind in enumerate(KINDS)]),
        )

    def _level(self, row: Row) -> str:
        if row.column == "mme":
            return "mme sum" if row.group in self.sums else "mme_p"
        return row.column


def covariance(a: Coded, b: Coded, prior: Prior, *, of_tables: bool = True) -> Array:
    """Between two lists of rows, without errors; `of_tables` with what tables and rows add."""
    bench, group = _same(a.benchmark, b.benchmark), _same(a.group, b.group)
    shares = 1.0 + prior.by_benchmark * bench + prior.by_group * group + prior.by_both * bench * group
    found: Array = prior.weights * (a.x @ b.x.T) * shares
    one, other = a.x[:, _CURVED], b.x[:, _CURVED]
    apart = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    found += prior.curved * np.exp(-np.maximum(apart, 0.0) / (2 * _WIDTH**2)) * (1.0 + _OWN_CURVE * bench)
    for at, (shared, own) in enumerate(zip(prior.kinds, prior.kinds_by_benchmark, strict=True)):
        found += _same(a.kinds[at], b.kinds[at]) * (shared + own * bench)
    found += _LEVELS_VARIANCE * _same(a.level, b.level)
    if of_tables:
        found += prior.groups * group + prior.columns * _same(a.column, b.column) + prior.rows * _same(a.row, b.row)
    return found


def own_offset(errors: Array, spread: Array) -> tuple[Array, Array]:
    """Errors of a column's rows when each is given the mean error of the others as offset, and their deviations.

    `spread` is the covariance of the errors; what all rows share falls out of it.
    """
    count = len(errors)
    weights = np.eye(count) * (1 + 1 / (count - 1)) - 1 / (count - 1)
    return weights @ errors, np.sqrt(np.einsum("ij,jk,ik->i", weights, spread, weights))


def _same(a: Indices, b: Indices) -> Array:
    return np.asarray(a[:, None] == b[None], dtype=float)
