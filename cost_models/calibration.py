"""A predictor of a device's latencies from few measurements, and what is known of other devices and of the kernels.

The logarithm of a latency is taken to be a constant, what is expected beforehand (an estimate, other devices' mean),
and a linear function of traits: how other devices deviate from that mean, and how many kernels of each kind a network
has, with their work. Weights of traits are normal, a variance for each block of them; errors have heavy tails. The
variances are not fitted to a handful of measurements but averaged over: each of many draws from a prior, which other
devices gave, counts as much as it explains what was measured. Everything is in closed form: milliseconds, not minutes.

Which networks to measure is chosen beforehand, without any latency: those that make the rest surest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import CostError
from search_spaces import Kernel

Array = NDArray[np.float64]

#: Fewest measurements that say more than a factor.
LEAST_SAMPLES = 3
#: Latencies this many times below what is expected are taken as that: a zero in milliseconds is no logarithm.
_FASTER = 10.0
_CONSTANT = 9.0  # variance of the constant, in units of the spread
_SCALES = (0.5, 0.7, 1.0, 1.4)
_REWEIGHTED = 2


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed before any measurement, in units of the spread of log latencies.

    `variances` by block (their medians; `spread` is the standard deviation of their logarithms), `noise` the range of
    an error's variance, `follow` the weight of what is expected (mean and deviation), `tails` the degrees of freedom
    of errors, `width` the length scale of what is not linear. Samples are chosen for errors of variance
    `expected_noise`.
    """

    variances: Mapping[str, float]
    smooth: float = 0.005
    spread: float = 1.6
    noise: tuple[float, float] = (2e-4, 3.8)
    follow: tuple[float, float] = (1.1, 0.1)
    tails: float = 3.0
    width: float = 1.3
    expected_noise: float = 0.1
    draws: int = 96


#: Chosen on the source devices of seven sets of devices, each predicted from the others (see docs/calibration.md).
PRIOR = Prior(
    variances={
        "devices": 0.137,
        "expected": 0.14,
        "calls": 0.13,
        "ops": 0.055,
        "bytes": 0.041,
        "kernels": 0.077,
        "totals": 0.1,
    }
)


@dataclass(frozen=True)
class Traits:
    """What is known of networks before any is measured: a row each.

    `expected` is the standardised logarithm of what is expected; `blocks` are scaled so that rows have a mean square
    of one. `of` makes them.
    """

    expected: Array
    blocks: Mapping[str, Array]
    spread: float  # of the logarithm of what is expected
    _smooth: Array = field(repr=False)

    @classmethod
    def of(cls, estimates_s: Array, groups: Mapping[str, Array]) -> Traits:
        """From latencies on other devices, (networks, devices), and blocks of traits, (networks, any).

        Devices that resemble each other share one vote on what is expected. A block's columns count as they vary;
        `standard` makes them vary alike.
        """
        logs = standard(np.log(estimates_s))
        alike = np.abs(logs.T @ logs / len(logs)) ** 4
        votes = 1.0 / alike.sum(1)
        votes /= votes.sum()
        expected = standard((logs @ votes)[:, None])[:, 0]
        deviations = (logs - np.outer(expected, logs.T @ expected / len(logs))) * np.sqrt(votes)
        blocks = {"devices": _scaled(deviations), "expected": expected[:, None]}
        blocks |= {name: _scaled(found - found.mean(0)) for name, found in groups.items()}
        smooth = standard(np.column_stack([blocks["devices"], groups["calls"], expected]))
        spread = float(np.log(estimates_s).std(0) @ votes)
        return cls(expected, blocks, spread, smooth / math.sqrt(smooth.shape[1]))

    def __len__(self) -> int:
        return len(self.expected)

    def matrix(self, prior: Prior) -> Array:
        """All blocks side by side, scaled by their variances, with the constant."""
        parts = [
            block * math.sqrt(prior.variances[name]) for name, block in self.blocks.items() if name in prior.variances
        ]
        return np.column_stack([*parts, np.full(len(self), math.sqrt(_CONSTANT))])

    def grams(self, rows: NDArray[np.intp], columns: NDArray[np.intp], prior: Prior) -> tuple[list[str], Array]:
        """Names of the kernels of covariance, and each between two lists of networks."""
        names = [name for name in self.blocks if name in prior.variances]
        found = [self.blocks[name][rows] @ self.blocks[name][columns].T for name in names]
        a, b = self._smooth[rows], self._smooth[columns]
        apart = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        found.append(np.exp(-np.maximum(apart, 0.0) / (2 * prior.width**2)))
        return [*names, "smooth"], np.array(found)


def kernel_blocks(kernels: Sequence[Kernel], counts: Array, seconds: Array) -> dict[str, Array]:
    """Blocks of traits of networks by what they consist of: `counts` of each kernel, (networks, kernels).

    Calls, operations and bytes by kind of kernel; totals and their logarithms; each kernel by its `seconds`.
    """
    of_kind = _by_kind(kernels)
    ops = np.array([float(kernel.ops) for kernel in kernels])
    moved = np.array([kernel.activation_bytes for kernel in kernels])
    weights = np.array([kernel.weight_bytes for kernel in kernels])
    totals = np.stack([counts @ ops, counts @ moved, counts @ weights, counts.sum(1)], 1)
    return {
        "calls": standard(counts @ of_kind),
        "ops": standard((counts * ops) @ of_kind),
        "bytes": standard((counts * moved) @ of_kind),
        "totals": standard(np.column_stack([totals, np.log(totals + totals.mean(0) * 1e-3)])),
        "kernels": counts * seconds,
    }


def share_blocks(kernels: Sequence[Kernel], counts: Array, seconds: Array) -> dict[str, Array]:
    """The blocks of `kernel_blocks` for networks that span orders of magnitude: of what share of a network a kind is.

    Where a device is slower by a factor at one kind, a network's logarithm moves by the kind's share in it; amounts
    would tell the largest networks apart and no others. How much there is in all is in the logarithms of totals.
    """
    of_kind = _by_kind(kernels)
    ops = np.array([float(kernel.ops) for kernel in kernels])
    moved = np.array([kernel.bytes_moved for kernel in kernels])
    weights = np.array([kernel.weight_bytes for kernel in kernels])
    totals = np.stack([counts @ ops, counts @ moved, counts @ weights, counts.sum(1)], 1)

    def shares(amounts: Array) -> Array:
        found: Array = counts * amounts / (counts @ amounts)[:, None]
        return found

    return {
        "calls": standard(shares(np.ones(len(kernels))) @ of_kind),
        "ops": standard(shares(ops) @ of_kind),
        "bytes": standard(shares(moved) @ of_kind),
        "totals": standard(np.log(totals)),
        "kernels": shares(seconds),
    }


def _by_kind(kernels: Sequence[Kernel]) -> Array:
    """(kernels, kinds): ones where a kernel is of a kind."""
    kinds = [(kernel.kind, kernel.op, kernel.window, kernel.stride > 1, kernel.epilogue) for kernel in kernels]
    known = list(dict.fromkeys(kinds))
    found: Array = np.array([[float(kind == one) for one in known] for kind in kinds])
    return found


def choose(traits: Traits, count: int, seed: int, prior: Prior = PRIOR, candidates: int = 1500) -> list[int]:
    """Networks to measure, the one first that makes all others surest; no latency is asked for."""
    rng, size = np.random.default_rng(seed), len(traits)
    if not 1 <= count <= size:
        raise CostError(f"1 to {size} of {size} networks can be chosen, but got {count}")
    features = traits.matrix(prior)
    pool = rng.choice(size, min(candidates, size), replace=False)
    others = features[rng.choice(size, min(candidates, size), replace=False)]
    known = features[pool]
    return [int(pool[index]) for index in most_telling(known, others, count, prior.expected_noise)]


def most_telling(candidates: Array, others: Array, count: int, noise: float) -> list[int]:
    """Rows of `candidates`, (any, features), whose measurement takes most variance from `others`, the first first.

    Features are scaled to weights of variance one; `noise` is the variance of a measurement's error.
    """
    covariance, across = candidates @ candidates.T, others @ candidates.T
    chosen: list[int] = []
    for _ in range(count):
        variance = np.diag(covariance) + noise
        gain = (across**2).sum(0) / variance
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        step = covariance[:, best] / variance[best]
        across = across - np.outer(across[:, best], step)
        covariance = covariance - np.outer(covariance[:, best], step)
    return chosen


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Predictions for all networks: seconds, the standard deviation of their logarithm, and of each sample its weight.

    A weight well below one is a measurement that fits neither what is known nor the others.
    """

    latency_s: Array
    deviation: Array
    weights: Array


def calibrate(
    traits: Traits,
    measured: Sequence[int],
    latency_s: Sequence[float] | Array,
    *,
    resolution_s: float = 0.0,
    prior: Prior = PRIOR,
    seed: int = 0,
) -> Calibrated:
    """Predict all networks of `traits` from those measured; `resolution_s` is the step that seconds were rounded to."""
    at, seconds = np.asarray(measured, dtype=np.intp), np.asarray(latency_s, dtype=float)
    if len(at) != len(seconds) or len(at) < LEAST_SAMPLES:
        raise CostError(
            f"a calibration needs {LEAST_SAMPLES} measurements or more, a latency each, but got {len(at)} networks and "
            f"{len(seconds)} latencies"
        )
    if not (np.isfinite(seconds).all() and (seconds >= 0).all() and seconds.any()):
        raise CostError("latencies must be finite, not negative, and not all zero")
    plain = np.exp(traits.spread * traits.expected[at])
    floor = float(np.median(seconds[seconds > 0] / plain[seconds > 0])) * plain / _FASTER
    logs = np.log(np.maximum(seconds, floor))
    rounding = (resolution_s / math.sqrt(12) / np.maximum(seconds, floor)) ** 2
    centre = float(np.median(logs))
    names, inner = traits.grams(at, at, prior)
    medians = np.array([*(prior.variances[name] for name in names[:-1]), prior.smooth])
    rng = np.random.default_rng(seed)
    variances = medians * np.exp(prior.spread * rng.standard_normal((prior.draws, len(medians))))
    low, high = np.log(prior.noise)
    noises = np.exp(rng.uniform(low, high, prior.draws))
    follows = np.clip(rng.normal(*prior.follow, prior.draws), 0.0, 1.3)
    expected = traits.expected[at]
    spread = _spread(logs, expected, np.tensordot(medians, inner, 1), prior)
    evidence, solved, sums, weighs, scales = [], [], [], [], []
    for variance, noise, follow in zip(variances, noises, follows, strict=True):
        covariance = np.tensordot(variance, inner, 1) + _CONSTANT
        for factor in _SCALES:
            scale = spread * factor
            target = (logs - centre) / scale - follow * expected
            score, alpha, weight = _solve(covariance, target, noise + rounding / scale**2, prior.tails)
            evidence.append(score - len(at) * math.log(scale))
            solved.append(variance[:, None] * alpha * scale)
            sums.append((follow * scale, float(alpha.sum()) * scale))
            weighs.append(weight)
            scales.append((scale**2 * noise, scale**2 * _CONSTANT, *(scale**2 * variance)))
    share = np.exp(np.array(evidence) - max(evidence))
    share /= share.sum()
    mixed = np.tensordot(share, np.array(solved), 1)
    follow, constant = share @ np.array(sums)
    _, outer = traits.grams(np.arange(len(traits)), at, prior)
    predicted = centre + follow * traits.expected + np.einsum("bnk,bk->n", outer, mixed) + _CONSTANT * constant
    mean = share @ np.array(scales)
    deviation = _deviation(traits, outer, inner, mean, prior)
    return Calibrated(np.exp(predicted), deviation, share @ np.array(weighs))


@dataclass(frozen=True, slots=True)
class Averaged:
    """Weights of features: mean and covariance, the mean variance of errors, and the trust in each sample."""

    mean: Array
    covariance: Array
    noise: float
    trust: Array


def average(
    features: Array,
    target: Array,
    sizes: Sequence[int],
    variances: Sequence[float],
    noise: tuple[float, float],
    rounding: Array,
    draws: int,
    seed: int,
) -> Averaged:
    """Regress on features in blocks of `sizes` columns, over draws of the blocks' variances around their medians.

    `noise` is the range of an error's variance, `rounding` what each sample's own adds.
    """
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(len(sizes)), sizes)
    drawn = np.log(variances) + rng.standard_normal((draws, len(sizes)))
    noises = np.exp(rng.uniform(math.log(noise[0]), math.log(noise[1]), draws))
    evidence, means, covariances, trusts = [], [], [], []
    for logs, error in zip(drawn, noises, strict=True):
        own, trust = np.exp(logs)[block], np.ones(len(target))
        for again in range(_REWEIGHTED + 1):
            errors = (error + rounding) / trust
            inverse = np.linalg.inv(np.diag(1.0 / own) + (features.T / errors) @ features)
            weights = inverse @ (features.T @ (target / errors))
            left = target - features @ weights
            if again < _REWEIGHTED:
                free = 1.0 - np.einsum("nk,kl,nl->n", features, inverse, features) / errors  # of a sample left out
                trust = np.clip(5.0 / (4.0 + left**2 / (errors * np.maximum(free, 1e-9))), 0.02, 1.2)
        fit = target @ (left / errors) + np.log(errors).sum() + np.log(own).sum() - np.linalg.slogdet(inverse)[1]
        evidence.append(-0.5 * float(fit))
        means.append(weights)
        covariances.append(inverse)
        trusts.append(trust)
    share = np.exp(np.array(evidence) - max(evidence))
    share /= share.sum()
    mean = share @ np.array(means)
    apart = np.array(means) - mean
    covariance = np.tensordot(share, np.array(covariances), 1) + np.einsum("d,dk,dl->kl", share, apart, apart)
    return Averaged(mean, covariance, float(share @ noises), share @ np.array(trusts))


def _solve(covariance: Array, target: Array, noise: Array, tails: float) -> tuple[float, Array, Array]:
    """(log evidence, weights of the kernel's columns, trust in each sample), errors reweighted for heavy tails."""
    from scipy.linalg import cho_solve

    trust, identity = np.ones(len(target)), np.eye(len(target))
    for again in range(_REWEIGHTED + 1):
        lower = np.linalg.cholesky(covariance + np.diag(noise / trust) + 1e-9 * identity)
        alpha = cho_solve((lower, True), target)
        if again < _REWEIGHTED:
            variance = 1.0 / np.diag(cho_solve((lower, True), identity))  # of a sample left out
            trust = np.clip((tails + 1) / (tails + (alpha * variance) ** 2 / variance), 0.02, 1.2)
    return float(-np.log(np.diag(lower)).sum() - 0.5 * target @ alpha), alpha, trust


def _spread(logs: Array, expected: Array, covariance: Array, prior: Prior) -> float:
    """The unit of everything: the samples' spread over what is believed of it."""
    count = len(logs)
    believed = (prior.follow[0] * expected).var() + np.trace(covariance) / count - covariance.mean()
    low, high = np.percentile(logs, (5, 95))
    return float(np.std(np.clip(logs, low, high)) / math.sqrt(believed) + 1e-6)


def _deviation(traits: Traits, outer: Array, inner: Array, mean: Array, prior: Prior) -> Array:
    """Of the logarithm of each network's latency, from mean variances: of errors, of the constant, of each kernel."""
    from scipy.linalg import solve_triangular

    noise, constant, variances = mean[0], mean[1], mean[2:]
    covariance = np.tensordot(variances, inner, 1) + constant + (noise + 1e-12) * np.eye(inner.shape[1])
    across = np.tensordot(variances, outer, 1) + constant
    lower = np.linalg.cholesky(covariance + 1e-9 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    blocks = [block for name, block in traits.blocks.items() if name in prior.variances]
    *linear, smooth = variances
    own = constant + smooth + sum(size * (block**2).sum(1) for size, block in zip(linear, blocks, strict=True))
    explained = (solve_triangular(lower, across.T, lower=True) ** 2).sum(0)
    found: Array = np.sqrt(np.maximum(own - explained, 0.0) + noise)
    return found


def standard(values: Array) -> Array:
    """Columns with mean zero and variance one; constant ones are left out."""
    values = np.asarray(values, dtype=float)
    deviation = values.std(0)
    kept = deviation > 1e-12 * np.maximum(np.abs(values).max(0), 1e-300)
    found: Array = (values[:, kept] - values[:, kept].mean(0)) / deviation[kept]
    return found


def _scaled(values: Array) -> Array:
    """The same block with a mean square of one a row."""
    found: Array = values / math.sqrt(max(float((values**2).sum(1).mean()), 1e-300))
    return found
