"""What is expected of candidates at a dearer fidelity, before they are estimated by it: accuracy and seconds.

Both start from a belief and learn from what was estimated so far, be it nothing: a straight line through what a cheaper
fidelity said, its errors Student's so that one odd training does not turn it, and what the line leaves unexplained by a
Gaussian process over the choices. Shares of right answers are taken as logarithms of their odds: close to the top they
differ little, and what is good cannot be much better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.samplers.surrogate import MOST, Surrogate
from nas.samplers.task import Array
from search_spaces import SearchSpace
from search_spaces.space import Indices

#: Degrees of freedom of the line's errors.
_TAILS = 4.0
#: How many errors the belief about their size counts as.
_FIRMNESS = 4.0
#: Estimates from which on the choices may explain what the line does not.
_ENOUGH = 4
#: Estimates at which what the choices explain is believed by half.
_HALF_TRUSTED = 20


@dataclass(frozen=True, slots=True)
class Belief:
    """Of a line beforehand: level and slopes with their standard deviations, and that of the errors."""

    coefficients: tuple[float, ...]  # the level first
    deviations: tuple[float, ...]
    error: float


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line: level and slopes (1 + k,), their covariance, and the errors' standard deviation."""

    coefficients: Array
    covariance: Array
    error: float

    @classmethod
    def fitted(cls, x: Array, y: Array, belief: Belief) -> Line:
        """Through (n,) values at (n, k), n >= 0; those far off count less."""
        columns = np.column_stack([np.ones(len(x)), x])
        precision = np.diag(np.array(belief.deviations) ** -2)
        believed = precision @ np.array(belief.coefficients)
        weights: Array = np.ones(len(x))
        variance = belief.error**2
        for _ in range(10):
            inverse = np.linalg.inv(precision + (columns.T * weights) @ columns / variance)
            covariance = np.asarray(inverse, np.float64)
            coefficients = covariance @ (believed + columns.T @ (weights * y) / variance)
            squares = (y - columns @ coefficients) ** 2
            variance = (_FIRMNESS * belief.error**2 + float(weights @ squares)) / (_FIRMNESS + len(x))
            weights = (_TAILS + 1) / (_TAILS + squares / variance)
        return cls(coefficients, covariance, float(np.sqrt(variance)))

    def at(self, x: Array) -> tuple[Array, Array]:
        """(values at x (n, k), their standard deviations without the error of a single one)."""
        columns = np.column_stack([np.ones(len(x)), x])
        return columns @ self.coefficients, np.sqrt(np.einsum("ij,jk,ik->i", columns, self.covariance, columns))


class ExpectedAccuracy:
    """Of all candidates at a dearer fidelity: what is expected, and how sure that is.

    `points` (candidates, choices) and `scores` (candidates,) are those of the cheaper fidelity. Where both fidelities
    tell `shares` of right answers, a score is taken by its value with an unknown offset; else by its rank. `dearness`
    (candidates,) is what a candidate costs: of two with one score the dearer tends to be better.
    `target_ranks`: the dearer one only ranks too, in a unit that is not known beforehand.
    """

    def __init__(
        self,
        space: SearchSpace,
        points: Indices,
        scores: Array,
        dearness: Array,
        *,
        shares: bool,
        target_ranks: bool = False,
    ) -> None:
        self._points, self._shares, self._target_ranks = points, shares and not target_ranks, target_ranks
        told = _logit(scores) if self._shares else _normal_scores(scores)
        self._centre = float(told.mean())
        self._x = np.column_stack([told - self._centre, _normal_scores(dearness)])
        values = list(space.choices.values())
        ordered = [all(isinstance(each, int | float) for each in v) and list(v) == sorted(v) for v in values]
        self._surrogate = Surrogate(np.array([len(each) for each in values]), np.array(ordered))

    def predict(self, known: Indices, accuracy: Array) -> tuple[Array, Array]:
        """(means, standard deviations) of all candidates, where those at `known` had this accuracy."""
        if self._target_ranks:
            return self._predict(known, accuracy)
        return _share(*self._predict(known, _logit(accuracy)))

    def _predict(self, known: Indices, accuracy: Array) -> tuple[Array, Array]:
        line = Line.fitted(self._x[known], accuracy, self._belief(accuracy))
        mean, unsure = line.at(self._x)
        deviation = np.hypot(unsure, line.error)
        if len(known) < _ENOUGH:
            return mean, deviation
        some = known[-MOST:]
        left = accuracy[-MOST:] - mean[some]
        if float(left.std()) < 1e-6:  # the line tells all
            return mean, deviation
        self._surrogate.fit(self._points[some], left)
        more, by_choices = self._surrogate.predict(self._points)
        # few residuals look smaller than errors are: the line went through them
        by_choices *= max(1.0, line.error / float(left.std()))
        # a mixture of the line alone and of what the choices explain beside it, trusted as estimates grow in number
        trust = len(known) / (len(known) + _HALF_TRUSTED)
        variance = unsure**2 + (1 - trust) * line.error**2 + trust * by_choices**2 + trust * (1 - trust) * more**2
        return mean + trust * more, np.sqrt(variance)

    def _belief(self, accuracy: Array) -> Belief:
        # before the first estimate, what is unknown of all alike tells none from another
        level_deviation = 1.5 if len(accuracy) else 1e-3
        if self._target_ranks:
            spread = float(accuracy.std()) if len(accuracy) > 1 else 0.0
            spread = spread or 1.0
            level = float(accuracy.mean()) if len(accuracy) else 0.0
            return Belief(
                (level, 0.6 * spread, 0.0), (level_deviation * spread, 0.5 * spread, 0.3 * spread), 0.7 * spread
            )
        if self._shares:
            return Belief((self._centre, 0.8, 0.0), (level_deviation, 0.35, 0.3), 0.4)
        return Belief((0.5, 0.4, 0.2), (level_deviation, 0.4, 0.3), 0.45)


class ExpectedSeconds:
    """Of all candidates at a dearer fidelity, by a power of their operations (candidates,)."""

    def __init__(self, operations: Array) -> None:
        self._log = np.log(np.maximum(operations, 1.0))

    def predict(self, known: Indices, seconds: Array) -> tuple[Array, bool]:
        """(seconds, whether their unit is known), where those at `known` took so many: without any it is not."""
        # part of a step does not grow with the model: the power is below 1
        x = (self._log - self._log.mean())[:, None]
        logs = np.log(np.maximum(seconds, 1e-3))
        belief = Belief((float(logs.mean()) if len(known) else 0.0, 0.7), (3.0, 0.25), 0.3)
        line = Line.fitted(x[known], logs, belief)
        return np.exp(line.at(x)[0]), len(known) > 0


def _normal_scores(scores: Array) -> Array:
    """Expected normal deviates of these ranks; equals have their mean rank, what is no number is last."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    found: Array = ndtri((rankdata(np.where(np.isnan(scores), -np.inf, scores)) - 0.5) / len(scores))
    return found


def _logit(shares: Array) -> Array:
    """The logarithm of the odds, of shares of right answers; none is taken as surely right or wrong."""
    inside = np.clip(shares, 0.005, 0.995)
    return np.asarray(np.log(inside / (1 - inside)))


def _share(mean: Array, deviation: Array) -> tuple[Array, Array]:
    """(mean, standard deviation) of shares whose logarithms of odds are normal, by Gauss-Hermite quadrature."""
    at, weights = np.polynomial.hermite_e.hermegauss(9)
    shares = 1 / (1 + np.exp(-(mean[:, None] + deviation[:, None] * at)))  # (candidates, nodes)
    weights = weights / weights.sum()
    found = shares @ weights
    return found, np.sqrt(np.maximum((shares - found[:, None]) ** 2 @ weights, 1e-8))
