"""A Gaussian process for an accuracy over choices: how sure it is tells a search where to look.

The accuracy is a constant, an effect of each choice and an effect of each pair of choices (Durrande et al.,
arXiv:1111.6233; Duvenaud et al., arXiv:1112.4394): every effect is centred, so that a pair's says only what the single
ones do not. What the mean rank of all choices does is common to them: of models, larger is mostly better. An effect of
ordered values is a mixture of a straight line, a smooth curve and anything; of names anything. How much each choice
matters, the mixtures and the noise maximise the marginal likelihood, found anew as observations grow. All is read from
tables of values by values, so that a thousand points cost a few products of matrices.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nas.samplers.task import Array
from search_spaces.space import Indices

#: Observations that a fit takes at most: those of the fronts and the newest.
MOST = 600
_STEPS = 50
#: Relevances are found anew when observations have grown so much.
_GROWN = 1.15
#: Length scale of a smooth effect, where the first value is at 0 and the last at 1.
_SMOOTH = 0.4
_SHAPES = 3
#: Standard deviation of the constant, in the observations' own.
_CONSTANT = 1.0


class Surrogate:
    """Fitted to observed accuracies of points; predicts mean and deviation. `ordered`: a choice's values have ranks."""

    def __init__(self, sizes: Indices, ordered: NDArray[np.bool_]) -> None:
        self._sizes = sizes
        self._starts = np.r_[0, np.cumsum(sizes)[:-1]]
        self._owner = np.repeat(np.arange(len(sizes)), sizes)  # the choice of each value
        self._shapes = _shapes(sizes, ordered)  # (shapes, values, values), of one choice each
        self._ranks = _ranks(sizes, ordered)
        width = len(sizes)
        own = np.array([0.3, 0.5, 0.2]) / width
        pairs = np.sqrt(np.array([0.3, 0.5, 0.4]) / width**2)
        #: Logarithms believed beforehand, and how firmly: relevances, mixtures of effects and of pairs, rank, noise.
        self._prior = np.r_[np.zeros(width), np.log(own), np.log(pairs), np.log(0.3), np.log(0.02)]
        self._wide = np.r_[np.full(width, 1.0), np.full(2 * _SHAPES, 1.0), 1.5, 1.5]
        self._theta = self._prior
        self._fitted_on = 0

    def fit(self, points: Indices, accuracy: Array, doubt: float = 0.0) -> None:
        """Take points (n, choices) and their accuracies (n,).

        With a doubt, the logarithm of a factor, pairs of choices matter so much more than was found: what was observed
        lies where the search went, and says little of pairs that it never saw.
        """
        from scipy.linalg import cho_factor, cho_solve

        self._known = self._marked(points)
        self._centre, self._scale = float(accuracy.mean()), float(accuracy.std()) or 1.0
        target = (accuracy - self._centre) / self._scale
        if len(points) >= _GROWN * self._fitted_on:
            self._theta = self._found(self._known, target)
            self._fitted_on = len(points)
        theta, pairs = self._theta.copy(), slice(len(self._sizes) + _SHAPES, len(self._sizes) + 2 * _SHAPES)
        theta[pairs] += doubt
        self._tables = self._effects(theta)
        covariance, _ = _covariance(self._known, self._known, *self._tables)
        covariance[np.diag_indices_from(covariance)] += np.exp(self._theta[-1]) + 1e-6
        self._factor = cho_factor(covariance, lower=True)
        self._weights = cho_solve(self._factor, target)

    def predict(self, points: Indices) -> tuple[Array, Array]:
        """Mean and standard deviation of the accuracy at each point, without the noise of observing it."""
        from scipy.linalg import solve_triangular

        marked = self._marked(points)
        across, _ = _covariance(marked, self._known, *self._tables)
        explained = solve_triangular(self._factor[0], across.T, lower=True)
        own, pairs = self._tables
        single = marked @ np.diag(pairs)
        both = 0.5 * (single**2 - marked @ np.diag(pairs) ** 2)
        known = _CONSTANT**2 + ((marked @ own) * marked).sum(1) + both
        deviation = np.sqrt(np.maximum(known - (explained**2).sum(0), 1e-6))
        return self._centre + self._scale * (across @ self._weights), self._scale * deviation

    def _marked(self, points: Indices) -> Array:
        """(points, values): 1 at the values that a point has."""
        found = np.zeros((len(points), len(self._owner)))
        np.put_along_axis(found, points + self._starts, 1.0, 1)
        return found

    def _effects(self, theta: Array) -> tuple[Array, Array]:
        """Covariances of values (values, values): of single effects, and those whose products are the pairs'."""
        width = len(self._sizes)
        relevance = np.exp(theta[:width])[self._owner]
        own, pairs = np.exp(theta[width : width + _SHAPES]), np.exp(theta[width + _SHAPES : width + 2 * _SHAPES])
        return (
            relevance[:, None] * np.tensordot(own, self._shapes, 1)
            + np.exp(theta[-2]) * np.outer(self._ranks, self._ranks),
            relevance[:, None] * np.tensordot(pairs, self._shapes, 1),
        )

    def _found(self, marked: Array, target: Array) -> Array:
        """The logarithms of the highest marginal likelihood, given what is believed of them beforehand."""
        from scipy.linalg import lapack
        from scipy.optimize import minimize

        count, width = len(target), len(self._sizes)

        def loss(theta: Array) -> tuple[float, Array]:
            own, pairs = self._effects(theta)
            covariance, single = _covariance(marked, marked, own, pairs)
            covariance[np.diag_indices(count)] += np.exp(theta[-1]) + 1e-6
            factor, _ = lapack.dpotrf(covariance, lower=1)
            inverse, _ = lapack.dpotri(factor, lower=1)
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            weights = inverse @ target
            value = 0.5 * target @ weights + np.log(np.diag(factor)).sum()
            outer = 0.5 * (inverse - np.outer(weights, weights))
            # slopes of the loss by each covariance of two values of a choice
            by_own = marked.T @ outer @ marked
            by_pairs = marked.T @ (outer * single) @ marked - by_own * pairs
            common = np.exp(theta[-2]) * np.outer(self._ranks, self._ranks)
            of_own, of_pairs = (own - common) * by_own, pairs * by_pairs
            slope = np.empty_like(theta)
            slope[-2] = (common * by_own).sum()
            slope[:width] = np.bincount(self._owner, (of_own + of_pairs).sum(1), width)
            relevance = np.exp(theta[:width])[self._owner][:, None]
            for shape, table in enumerate(self._shapes):
                slope[width + shape] = np.exp(theta[width + shape]) * (relevance * table * by_own).sum()
                at = width + _SHAPES + shape
                slope[at] = np.exp(theta[at]) * (relevance * table * by_pairs).sum()
            slope[-1] = np.exp(theta[-1]) * np.trace(outer)
            off = (theta - self._prior) / self._wide
            return float(value + 0.5 * (off**2).sum()), slope + off / self._wide

        bounds = [(each - 5.0, each + 5.0) for each in self._prior]
        found = minimize(loss, self._theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS})
        return np.asarray(found.x)

    def draws(self, points: Indices, count: int, rng: np.random.Generator) -> Array:
        """What the accuracies of points may be together, (count, points): neighbours are right or wrong together."""
        from scipy.linalg import solve_triangular

        marked = self._marked(points)
        across, _ = _covariance(marked, self._known, *self._tables)
        own, _ = _covariance(marked, marked, *self._tables)
        explained = solve_triangular(self._factor[0], across.T, lower=True)
        left, directions = np.linalg.eigh(own - explained.T @ explained)
        drawn = rng.standard_normal((count, len(points))) @ (directions * np.sqrt(np.maximum(left, 0.0))).T
        return np.asarray(self._centre + self._scale * (across @ self._weights + drawn))


def _covariance(first: Array, second: Array, own: Array, pairs: Array) -> tuple[Array, Array]:
    """(covariance of marked points, sum over choices of what pairs are products of)."""
    single = first @ pairs @ second.T
    both = 0.5 * (single**2 - first @ pairs**2 @ second.T)  # over pairs of choices
    return _CONSTANT**2 + first @ own @ second.T + both, single


def _shapes(sizes: Indices, ordered: NDArray[np.bool_]) -> Array:
    """Covariances of values by the shape of an effect: a line, smooth, anything; centred, one on average."""
    total, start = int(sizes.sum()), 0
    found = np.zeros((_SHAPES, total, total))
    for size, order in zip(sizes.tolist(), ordered, strict=True):
        at = np.linspace(0.0, 1.0, size)
        apart = at[:, None] - at
        shapes = [np.outer(at - at.mean(), at - at.mean()), np.exp(-0.5 * (apart / _SMOOTH) ** 2), np.eye(size)]
        where = slice(start, start + size)
        for shape, table in enumerate(shapes):
            if size > 1:
                found[shape, where, where] = _centred(table if order else np.eye(size))
        start += size
    return found


def _ranks(sizes: Indices, ordered: NDArray[np.bool_]) -> Array:
    """Of each value what it adds to a point's mean rank, whose variance over all points is one."""
    ranks = [np.linspace(-1.0, 1.0, size) * (order and size > 1) for size, order in zip(sizes, ordered, strict=True)]
    variance = sum(float(each.var()) for each in ranks)
    found: Array = np.concatenate(ranks) / np.sqrt(variance or 1.0)
    return found


def _centred(table: Array) -> Array:
    centred = table - table.mean(0) - table.mean(0)[:, None] + table.mean()
    return np.asarray(centred / np.diag(centred).mean())
