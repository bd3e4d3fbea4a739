"""Gaussian process regression with a Matern kernel of one length a feature; small, exact, stored as plain numbers.

C. Rasmussen, C. Williams, Gaussian Processes for Machine Learning, MIT Press 2006 (equations 2.23, 2.24, 5.9, 5.12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Points on which lengths and noise are fitted; more cost cubic time and change little.
_FITTED_ON = 500
_NEAREST = 100
_JITTER = 1e-6
_ROOT3 = math.sqrt(3.0)


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """A fitted process: `points` (n, d) are scaled by `scale`, already of those features that vary."""

    used: NDArray[np.int64]
    scale: Array
    points: Array
    weights: Array
    signal: float
    noise: float

    @classmethod
    def fit(cls, x: Array, y: Array, seed: int) -> GaussianProcess:
        """Fit to y (n,) at x (n, d); y should be about zero on average. Lengths maximise the marginal likelihood."""
        spread = x.std(0)
        used = np.flatnonzero(spread > 1e-9)
        z = x[:, used] / spread[used]
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(len(z))[:_FITTED_ON]
        lengths, signal, noise = _fit_lengths(z[chosen], y[chosen])
        scale = 1.0 / (spread[used] * lengths)
        points = x[:, used] * scale
        weights: Array = np.linalg.solve(_covariance(points, points, signal) + noise * np.eye(len(points)), y).astype(
            float
        )
        return cls(used, scale, points, weights, signal, noise)

    def predict(self, x: Array) -> Array:
        """The mean at x (m, d): (m,)."""
        mean = np.empty(len(x))
        for start in range(0, len(x), 2048):  # bounds memory
            part = x[start : start + 2048, self.used] * self.scale
            mean[start : start + 2048] = _covariance(part, self.points, self.signal) @ self.weights
        return mean

    def deviation(self, x: Array) -> Array:
        """The standard deviation of a new observation at x (m, d), from the nearest points alone: (m,).

        Further points could only lower it, and hardly do.
        """
        from scipy.linalg import cho_factor, cho_solve

        asked = x[:, self.used] * self.scale
        across = _covariance(asked, self.points, self.signal)  # falls with distance
        nearest = np.argsort(-across, axis=1)[:, :_NEAREST]
        deviation = np.empty(len(x))
        for index, near in enumerate(nearest):
            points = self.points[near]
            factor = cho_factor(_covariance(points, points, self.signal) + self.noise * np.eye(len(near)))
            explained = across[index, near] @ cho_solve(factor, across[index, near])
            deviation[index] = math.sqrt(max(self.signal - float(explained), 0.0) + self.noise)
        return deviation

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, without the points: whoever stores it has them."""
        return {
            "used": self.used.tolist(),
            "scale": _rounded(self.scale),
            "weights": _rounded(self.weights),
            "signal": self.signal,
            "noise": self.noise,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any], x: Array) -> GaussianProcess:
        """What `to_dict` gave, with the points x (n, d) that it was fitted on; raises ValueError if they do not fit."""
        used, scale = np.array(stored["used"], dtype=np.int64), np.array(stored["scale"], dtype=float)
        weights = np.array(stored["weights"], dtype=float)
        if len(weights) != len(x) or len(used) != len(scale) or (len(used) and used.max() >= x.shape[1]):
            raise ValueError(f"{len(weights)} weights do not belong to {len(x)} points")
        return cls(used, scale, x[:, used] * scale, weights, float(stored["signal"]), float(stored["noise"]))


def _rounded(values: Array) -> list[float]:
    return [float(f"{value:.9g}") for value in values]


def _covariance(a: Array, b: Array, signal: float) -> Array:
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * (a @ b.T)
    distance = np.sqrt(np.maximum(squared, 0.0)) * _ROOT3
    covariance: Array = signal * (1.0 + distance) * np.exp(-distance)
    return covariance


def _fit_lengths(z: Array, y: Array) -> tuple[Array, float, float]:
    """Length of each feature, variance of the signal and of the noise."""
    from scipy.linalg import cho_solve, cholesky
    from scipy.optimize import minimize

    count, features = z.shape
    squares = (z[:, None, :] - z[None, :, :]) ** 2  # (n, n, d)

    def loss(logs: Array) -> tuple[float, Array]:
        lengths, signal, noise = np.exp(logs[:features]), math.exp(logs[features]), math.exp(logs[-1])
        distance = np.sqrt(squares @ lengths**-2) * _ROOT3
        decay = np.exp(-distance)
        covariance = signal * (1.0 + distance) * decay
        try:
            factor = cholesky(covariance + (noise + _JITTER) * np.eye(count), lower=True)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(logs)
        inverse = cho_solve((factor, True), np.eye(count))
        weights = inverse @ y
        outer = np.outer(weights, weights) - inverse
        # lengths are drawn to e, weakly: a feature that says nothing should not matter
        value = (
            0.5 * float(y @ weights)
            + float(np.log(np.diag(factor)).sum())
            + float(((logs[:features] - 1) ** 2).sum()) / 8
        )
        slope = np.empty_like(logs)
        slope[:features] = -1.5 * signal * np.einsum("ij,ijk->k", outer * decay, squares) / lengths**2
        slope[:features] += (logs[:features] - 1.0) / 4
        slope[features] = -0.5 * float((outer * covariance).sum())
        slope[-1] = -0.5 * noise * float(np.trace(outer))
        return value, slope

    start = np.r_[np.ones(features), math.log(max(float(y.var()), 1e-4)), math.log(1e-3)]
    bounds = [(-2.0, 5.0)] * features + [(-9.0, 2.0), (-9.0, -2.0)]
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
    return np.exp(best[:features]), math.exp(best[features]), math.exp(best[-1]) + _JITTER
