"""Scores of a full-size vision-language model from its architecture, by regression on what papers published.

A published score is taken as a level of its benchmark, plus what its table adds (papers differ in metrics, prompts and
splits), plus a weighted sum of facts, plus effects of names. Weights are partly shared by all benchmarks and tables,
partly a benchmark's or a table's own; they are normal, so that everything is in closed form, and errors have heavy
tails. Ranks are trusted inside a table, less so between two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import Basis
from nas.errors import NasError
from nas.proxies.published_facts import Facts, described
from nas.proxies.published_features import FEATURES, missing
from nas.proxies.published_kernel import Coded, Codes, Prior, covariance, own_offset
from nas.proxies.published_rows import BENCHMARKS, COLUMNS, Row, published_rows, scaled, unscaled

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

#: The share of intervals that should hold the published score.
LEVEL = 0.9
#: Half of such an interval in standard deviations of a normal distribution: 1.645.
HALF = NormalDist().inv_cdf(0.5 + LEVEL / 2)
#: Chosen on published tables, each predicted from the others: see docs/accuracy.md.
PRIOR = Prior()
# The numbers below are assumed: no table was asked for them.
#: Degrees of freedom of the errors (Student's distribution), and the least trust that one value keeps among the others.
_TAILS, _LEAST_TRUST = 4.0, 0.05
#: Fewest values of a fit, and fewest models of a column that give each other an offset.
_LEAST_ROWS, _LEAST_MODELS = 12, 3
#: Ranges of facts end this factor, and dates these years, beyond the outermost published model.
_SLACK, _NEW_YEARS = 1.1, 0.5
#: Standard deviation over mean distance from the median (1.25 of a normal distribution, a bit less as errors have heavy
#: tails), the least spread of a benchmark in percent, that of one with no column of enough values, and how many are.
_SPREAD, _LEAST_SPREAD, _NO_SPREAD, _COLUMN = 1.2, 0.5, 3.0, 4


@dataclass(frozen=True, slots=True)
class Score:
    """A predicted score and the interval that should hold nine in ten: percent, and for MME points."""

    value: float
    low: float
    high: float
    basis: Basis = Basis.PREDICTED


@dataclass(frozen=True)
class PublishedModel:
    """The regression, fitted on rows; `fitted` gives the one on all that is shipped."""

    rows: Sequence[Row]
    prior: Prior
    units: dict[str, float]  # of each benchmark, on the scale that is regressed on
    _codes: Codes = field(repr=False)
    _coded: Coded = field(repr=False)
    _target: Array = field(repr=False)
    _inverse: Array = field(repr=False)
    widening: float = 1.0  # of all intervals, so that groups left out are held as often as they should be

    @staticmethod
    @cache
    def fitted() -> PublishedModel:
        """Fitted on all published results that ship with the product; a fraction of a second, once."""
        return PublishedModel.fit(published_rows())

    @classmethod
    def fit(cls, rows: Sequence[Row], prior: Prior = PRIOR) -> PublishedModel:
        """Fit on rows of any groups."""
        if len(rows) < _LEAST_ROWS:
            raise NasError(f"a fit needs {_LEAST_ROWS} published values or more, but got {len(rows)}")
        units, codes = _units(rows), Codes.of(rows)
        coded = codes.code(rows)
        target = np.array([scaled(row.benchmark, row.value) / units[row.benchmark] for row in rows])
        target -= coded.expected(prior)
        centred = target - coded.levels(target)[coded.level]
        inner, trust = covariance(coded, coded, prior), np.ones(len(rows))
        for again in range(2):
            inverse = _inverted(inner + np.diag(prior.noise / trust))
            if not again:
                left, variance = (inverse @ centred) / np.diag(inverse), 1.0 / np.diag(inverse)
                trust = np.maximum((_TAILS + 1) / (_TAILS + left**2 / variance), _LEAST_TRUST)
        model = cls(rows, prior, units, codes, coded, target, inverse)
        left, deviation, group = model.left_out_groups()
        share = _quantile(np.abs(left) / deviation, 1.0 / np.bincount(group)[group]) if len(left) else HALF
        return replace(model, widening=max(share / HALF, 1.0))

    def left_out(self) -> tuple[Array, Array]:
        """Each value minus its prediction from all others but those of the same row, and its standard deviation.

        In units of `units`. A row is a model of one table, with all its benchmarks.
        """
        alpha = self._inverse @ (self._target - self._levels(self._coded))
        left, deviation = np.empty(len(alpha)), np.empty(len(alpha))
        for row in np.unique(self._coded.row):
            at = np.flatnonzero(self._coded.row == row)
            block = _inverted(self._inverse[np.ix_(at, at)])
            left[at] = block @ alpha[at]
            deviation[at] = np.sqrt(np.maximum(np.diag(block), self.prior.noise))
        return left, deviation

    def left_out_groups(self) -> tuple[Array, Array, Indices]:
        """The same for values predicted from other groups, and the group of each, a number.

        A group is given nothing but its own offset by benchmark, for each model from the others: columns with fewer
        than three models are left out.
        """
        alpha = self._inverse @ (self._target - self._levels(self._coded))
        errors, deviations, groups = [np.empty(0)], [np.empty(0)], [np.empty(0, dtype=np.intp)]
        for group in np.unique(self._coded.group):
            at = np.flatnonzero(self._coded.group == group)
            block = _inverted(self._inverse[np.ix_(at, at)])
            left = block @ alpha[at]
            for column in np.unique(self._coded.column[at]):
                own = np.flatnonzero(self._coded.column[at] == column)
                if len(own) >= _LEAST_MODELS:
                    found, deviation = own_offset(left[own], block[np.ix_(own, own)])
                    errors.append(found)
                    deviations.append(np.maximum(deviation, math.sqrt(self.prior.noise)))
                    groups.append(self._coded.group[at][own])
        return np.concatenate(errors), np.concatenate(deviations), np.concatenate(groups)

    def predict(self, facts: Facts) -> dict[str, Score]:
        """A score by benchmark for a model as one more table might publish it, whatever `outside` says.

        Percent; MME is perception in points, SEED that of its image questions. Errors: see docs/accuracy.md.
        """
        asked = [Row("", -1, column, 0.0, facts) for column in _ASKED.values()]
        means, covariances = self.posterior(asked)
        variances = np.diag(covariances) + self.prior.noise
        for name in missing(facts):  # what is not known may be otherwise by a usual difference
            moved = self._codes.code(asked).moved(FEATURES.index(_FEATURE_OF[name]))
            variances = variances + (self._means(moved, covariance(moved, self._coded, self.prior)) - means) ** 2
        scores = {}
        for row, mean, variance in zip(asked, means, variances, strict=True):
            half = HALF * self.widening * math.sqrt(variance)
            value, low, high = (
                _possible(row, at * self.units[row.benchmark]) for at in (mean, mean - half, mean + half)
            )
            scores[row.benchmark] = Score(value, low, high)
        return scores

    def lead(self, facts: Facts, other: Facts, benchmarks: Sequence[str]) -> Score:
        """By how many points of the benchmarks' mean the first model is ahead, both in one table; not of MME.

        What is uncertain of both alike, as what another decoder would gain, is uncertain of neither's lead.
        """
        asked = [Row("", at, _ASKED[name], 0.0, each) for at, each in ((-1, facts), (-2, other)) for name in benchmarks]
        means, covariances = self.posterior(asked)
        weights = np.array([self.units[row.benchmark] for row in asked]) / len(benchmarks)
        weights[len(benchmarks) :] *= -1
        variance = weights @ covariances @ weights + self.prior.noise * (weights**2).sum()
        value, half = float(weights @ means), HALF * self.widening * math.sqrt(variance)
        return Score(value, value - half, value + half)

    def posterior(self, rows: Sequence[Row], *, of_tables: bool = True) -> tuple[Array, Array]:
        """Means and covariance of rows in units of `units`, their values unread, without the error of each.

        With `of_tables`, what their tables and the rows themselves add is among what is uncertain.
        """
        coded = self._codes.code(rows)
        across = covariance(coded, self._coded, self.prior)
        own = covariance(coded, coded, self.prior, of_tables=of_tables)
        return self._means(coded, across), own - across @ self._inverse @ across.T

    def outside(self, facts: Facts) -> list[str]:
        """Why a prediction for these facts is an extrapolation, in words; empty if the data cover them."""
        every = {row.facts for row in self.rows}
        found = [f"{_SAID[name]} is not known: a usual one is taken, intervals are wider" for name in missing(facts)]
        for name in ("decoder_parameters", "encoder_parameters", "image_px", "image_tokens", "training_samples"):
            value, known = getattr(facts, name), [v for one in every if (v := getattr(one, name)) is not None]
            if value is not None and not min(known) / _SLACK <= value <= max(known) * _SLACK:
                found.append(f"{_SAID[name]} {_short(value)} is outside {_short(min(known))} to {_short(max(known))}")
        for name in ("encoder_family", "decoder_family", "projector"):
            value, kinds = getattr(facts, name), sorted({getattr(one, name) for one in every} - {""})
            if not value:
                found.append(f"{_SAID[name]} is not known: the tables have {', '.join(kinds)}")
            elif value not in kinds:
                found.append(f"{_SAID[name]} {value!r} is in no table: they have {', '.join(kinds)}")
        if facts.weight_bits < (least := min(one.weight_bits for one in every)):
            found.append(f"weights of {facts.weight_bits} bits: no table has less than {least}")
        last = max(one.released or 0.0 for one in every)
        if facts.released is not None and facts.released > last + _NEW_YEARS:
            found.append(f"released {facts.released:.1f}, when the newest of the tables is of {last:.1f}")
        return found

    def _means(self, coded: Coded, across: Array) -> Array:
        known: Array = across @ (self._inverse @ (self._target - self._levels(self._coded)))
        return known + self._levels(coded) + coded.expected(self.prior)

    def _levels(self, coded: Coded) -> Array:
        found: Array = self._coded.levels(self._target)[coded.level]
        return found


#: The column at whose level a benchmark is predicted: MME's perception, SEED's image questions.
_ASKED = {benchmark: column for column, benchmark in reversed(COLUMNS.items())} | {"MME": "mme_p", "SEED": "seed_img"}
_ASKED = {benchmark: _ASKED[benchmark] for benchmark in BENCHMARKS}
_FEATURE_OF = {
    "text_score": "text score",
    "decoder_parameters": "decoder size",
    "encoder_parameters": "encoder size",
    "image_px": "resolution",
    "image_tokens": "image tokens",
    "training_samples": "training samples",
    "released": "release",
}
_SAID = {
    "decoder_parameters": "decoder size",
    "text_score": "the decoder's MMLU",
    "encoder_parameters": "encoder size",
    "image_px": "resolution",
    "image_tokens": "number of image tokens",
    "training_samples": "number of training samples",
    "released": "date of release",
    "encoder_family": "encoder family",
    "decoder_family": "decoder family",
    "projector": "projector",
}


def _units(rows: Sequence[Row]) -> dict[str, float]:
    """The usual spread of a benchmark within a column of a table: its mean distance from the median, a bit more."""
    spread: dict[str, list[float]] = {name: [] for name in BENCHMARKS}
    columns: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        columns.setdefault((row.group, row.column), []).append(scaled(row.benchmark, row.value))
    for (_, column), values in columns.items():
        if len(values) >= _COLUMN:
            spread[COLUMNS[column]] += list(np.abs(np.array(values) - np.median(values)))
    return {
        name: max(_SPREAD * float(np.mean(found)), _LEAST_SPREAD) if found else _NO_SPREAD
        for name, found in spread.items()
    }


def _inverted(covariance_: Array) -> Array:
    return np.asarray(np.linalg.inv(covariance_), dtype=float)


def _quantile(values: Array, weights: Array) -> float:
    """The value that `LEVEL` of the weight lies below: groups count alike, as a new table is one more of them."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(share, LEVEL)])


def _possible(row: Row, value: float) -> float:
    # MME's perception: ten tasks of at most 200 points (arXiv:2306.13394)
    return float(min(max(unscaled(row.benchmark, value), 0.0), 2000.0 if row.benchmark == "MME" else 100.0))


def _short(value: float) -> str:
    return next(
        (f"{value / unit:.3g}{name}" for unit, name in ((1e9, "B"), (1e6, "M")) if value >= unit), f"{value:.0f}"
    )


__all__ = ["BENCHMARKS", "LEVEL", "PRIOR", "Facts", "Prior", "PublishedModel", "Score", "described"]
