"""A Gaussian process for an accuracy over choices: how sure it is tells a search where to look.

Distance is a sum over choices, a length scale each: of ranks where values are ordered, one or none where they are
names; numbers known of every point (its costs) are further coordinates. Beside it a linear trend in the same
coordinates. Scales maximise the marginal likelihood, found anew as observations grow by a third.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Observations that a fit takes at most: the newest, and those of the front.
MOST = 500
_STEPS = 40
#: Least and most of the logarithms that are fitted: length scales, then the shares of trend and noise.
_BOUNDS = ((-2.0, 3.5), (-5.0, 2.0), (-9.0, 0.0))


class Surrogate:
    """Fitted to standardised observations; predicts mean and deviation."""

    def __init__(self, ordered: NDArray[np.bool_]) -> None:
        self._ordered = ordered
        self._theta: Array = np.empty(0)
        self._fitted_on = 0

    def fit(self, points: Array, values: Array) -> None:
        """Take (n, coordinates) and their values; length scales are found anew when there are a third more."""
        from scipy.linalg import cho_factor, cho_solve

        self._points = points
        self._centre, self._scale = float(values.mean()), float(values.std()) or 1.0
        target = (values - self._centre) / self._scale
        apart = self._apart(points, points)
        if not len(self._theta) or len(points) >= 1.33 * self._fitted_on:
            self._theta = self._found(apart, target, self._theta)
            self._fitted_on = len(points)
        covariance, _ = self._covariance(apart, self._theta)
        covariance[np.diag_indices_from(covariance)] += np.exp(self._theta[-1]) + 1e-6
        self._factor = cho_factor(covariance, lower=True)
        self._weights = cho_solve(self._factor, target)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the value at each point, without the noise of observing it."""
        from scipy.linalg import solve_triangular

        across, _ = self._covariance(self._apart(points, self._points), self._theta, points, self._points)
        explained = solve_triangular(self._factor[0], across.T, lower=True)
        trend = np.exp(self._theta[-2])
        own = 1.0 + trend * (1.0 + (self._linear(points) ** 2).sum(1) / points.shape[1])
        deviation = np.sqrt(np.maximum(own - (explained**2).sum(0), 1e-9))
        return self._centre + self._scale * (across @ self._weights), self._scale * deviation

    def _apart(self, first: Array, second: Array) -> Array:
        """Squared distance along each coordinate, (coordinates, first, second)."""
        found = (first.T[:, :, None] - second.T[:, None, :]) ** 2
        found[~self._ordered] = found[~self._ordered] > 0
        return found

    def _linear(self, points: Array) -> Array:
        found = points - 0.5
        found[:, ~self._ordered] = 0.0
        return found

    def _covariance(
        self, apart: Array, theta: Array, first: Array | None = None, second: Array | None = None
    ) -> tuple[Array, Array]:
        """(covariance, its part that hangs on length scales)."""
        rates = np.exp(-2 * theta[:-2])
        smooth = np.exp(-0.5 * np.tensordot(rates, apart, 1))
        rows = self._linear(self._points if first is None else first)
        columns = self._linear(self._points if second is None else second)
        return smooth + np.exp(theta[-2]) * (1.0 + rows @ columns.T / rows.shape[1]), smooth

    def _found(self, apart: Array, target: Array, known: Array) -> Array:
        """Logarithms of length scales, trend and noise of the highest marginal likelihood."""
        from scipy.linalg import cho_factor, cho_solve
        from scipy.optimize import minimize

        count, width = len(target), len(apart)
        linear = self._linear(self._points)
        products = 1.0 + linear @ linear.T / width

        def loss(theta: Array) -> tuple[float, Array]:
            covariance, smooth = self._covariance(apart, theta)
            covariance[np.diag_indices(count)] += np.exp(theta[-1]) + 1e-6
            factor = cho_factor(covariance, lower=True)
            inverse = cho_solve(factor, np.eye(count))
            weights = inverse @ target
            value = 0.5 * target @ weights + np.log(np.diag(factor[0])).sum()
            outer = inverse - np.outer(weights, weights)
            slope = np.empty_like(theta)
            slope[:width] = 0.5 * np.exp(-2 * theta[:width]) * np.tensordot(apart, outer * smooth, ([1, 2], [0, 1]))
            slope[-2] = 0.5 * np.exp(theta[-2]) * (outer * products).sum()
            slope[-1] = 0.5 * np.exp(theta[-1]) * np.trace(outer)
            # length scales are believed to be about one, noise a twentieth: few observations say little
            prior = np.r_[np.full(width, 0.7), -2.0, -4.0]
            wide = np.r_[np.full(width, 1.0), 1.5, 1.5]
            value += 0.5 * (((theta - prior) / wide) ** 2).sum()
            return float(value), slope + (theta - prior) / wide**2

        start = known if len(known) else np.r_[np.full(width, 0.7), -2.0, -4.0]
        bounds = [_BOUNDS[0]] * width + [_BOUNDS[1], _BOUNDS[2]]
        return np.asarray(
            minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}).x
        )
