"""A device's predictor corrected by few measurements of it: kernels timed alone, or phases of whole models.

The logarithm of what was measured over what was predicted is taken to be linear in shares of the predicted time: of all
kernels (one factor for the device), of each kind of kernel, of the large among these, of starting calls. The regression
is that of calibration.py: variances of the weights are averaged over, errors have heavy tails. Corrected seconds
of a kernel are its predicted ones times a factor, so that they stay additive and as fast to price.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.calibration import Averaged, average, most_telling
from cost_models.cost import Amount
from cost_models.errors import CostError
from hardware_profiles import Basis, Profile
from hardware_profiles.profile import TVM
from search_spaces import Kernel, KernelKind, Phase, Precision

if TYPE_CHECKING:
    from cost_models.models import CostModel

Array = NDArray[np.float64]

#: Fewest measurements that a correction is made of.
LEAST_OBSERVATIONS = 3
_VERSION = 4
#: Kinds whose kernels are corrected alike.
_GROUPS = {
    KernelKind.LINEAR: "linear",
    KernelKind.CONV: "conv",
    KernelKind.DEPTHWISE_CONV: "window",
    KernelKind.POOLING: "window",
    KernelKind.SCORES: "attention",
    KernelKind.VALUES: "attention",
    KernelKind.NORM: "rows",
    KernelKind.SOFTMAX: "rows",
    KernelKind.ELEMENTWISE: "moves",
    KernelKind.GATHER: "moves",
}
_NAMES = ("one row", *sorted(set(_GROUPS.values())))
_PRECISIONS = tuple(Precision)
#: Weights of the device, of groups of kernels, of their size, of calls, of precisions where one row reads weights and
#: where many do.
_SIZES = (1, len(_NAMES), len(_NAMES), 1, 2 * len(_PRECISIONS))
#: Their median variances for kernels compiled by TVM, set by hand (assumed): a device may be off by a factor of two, a
#: group by a quarter, the cost of a call by much more.
_VARIANCES = (0.5, 0.06, 0.01, 1.0, 0.06)
#: For other runtimes, of which a roofline knows little. Chosen on figures of devices that, but for one, are not shipped
#: (see docs/calibration.md).
_RUNTIME_VARIANCES = (0.5, 0.3, 0.02, 1.0, 0.3)
_NOISE = (1e-5, 0.05)
_DRAWS = 64
#: Shares hang on the factors, which hang on shares.
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Observation:
    """Seconds of kernels that ran in a row, with how often each ran; `resolution_s` is the step of the clock.

    Observations of one `model`, where it is named, are left out together; errors are told by `part`.
    """

    label: str
    kernels: tuple[tuple[Kernel, int], ...]
    seconds: float
    overhead_s: float = 0.0
    resolution_s: float = 0.0
    part: str = "kernels"
    model: str = ""


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Errors of each measurement predicted from all others, before and after; within the interval it should be 68 %.

    `medians_before` and `medians` are median errors by part: kernels, or phases of models; where models are named, each
    is predicted from all `models` but itself. Parts that were measured of one model alone are `unchecked`, and in none
    of the errors. `seen` are the precisions of the measured kernels, for each kind.
    """

    measurements: int
    models: int
    mape_before: float
    mape_after: float
    within_interval: float
    medians_before: dict[str, float]
    medians: dict[str, float]
    unchecked: list[str]
    seen: dict[str, list[str]]

    @property
    def precisions(self) -> list[str]:
        """Those of any kernel."""
        return sorted({precision for found in self.seen.values() for precision in found})


class CorrectedModel:
    """A cost model whose kernels take a factor more or less; basis calibrated where such kernels were measured."""

    def __init__(self, base: CostModel, mean: Array, covariance: Array, noise: float, error: CalibrationError) -> None:
        self.base, self.error = base, error
        self._mean, self._covariance, self._noise = mean, covariance, noise

    @property
    def profile(self) -> Profile:
        """The device."""
        return self.base.profile

    @classmethod
    def fit(cls, base: CostModel, observations: Sequence[Observation], seed: int = 0) -> tuple[CorrectedModel, Array]:
        """(the corrected model, how far each observation is trusted: well below 1 does not fit the others)."""
        if len(observations) < LEAST_OBSERVATIONS:
            raise CostError(
                f"a correction needs {LEAST_OBSERVATIONS} measurements or more, but got {len(observations)}"
            )
        found = _fit(base, observations, seed)
        error = _left_out(base, observations, seed)
        return cls(base, found.mean, found.covariance, found.noise, error), found.trust

    @classmethod
    def of(cls, base: CostModel) -> CostModel:
        """The stored correction of the base's device around the base; the base itself where there is none."""
        path = base.profile.calibration_json
        if not path.is_file():
            if base.profile.runtime != TVM:
                raise CostError(f"{base.profile.name} is not calibrated for the runtime {base.profile.runtime!r}")
            return base
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["version"] != _VERSION:
                raise ValueError(f"version {stored['version']}, but {_VERSION} is read")
            mean, covariance = np.array(stored["mean"], dtype=float), np.array(stored["covariance"], dtype=float)
            width = _width()
            if mean.shape != (width,) or covariance.shape != (width, width):
                raise ValueError(f"{mean.shape} weights, but {width} are read")
            return cls(base, mean, covariance, float(stored["noise"]), CalibrationError(**stored["error"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CostError(
                f"{path}: not a calibration of this release ({error}); delete it, and calibrate the device anew"
            ) from None

    def save(self, observations: Sequence[Observation]) -> Path:
        """Write the correction into the profile's folder, with what it was made of."""
        path = self.profile.calibration_json
        stored = {
            "version": _VERSION,
            "mean": [float(f"{value:.9g}") for value in self._mean],
            "covariance": [[float(f"{value:.9g}") for value in row] for row in self._covariance],
            "noise": float(f"{self._noise:.9g}"),
            "error": asdict(self.error),
            "measurements": [[one.label, one.seconds] for one in observations],
        }
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(stored) + "\n", encoding="utf-8")
        unfinished.replace(path)
        return path

    def latencies_s(self, kernels: Sequence[Kernel]) -> Array:
        """As `CostModel.latencies_s`."""
        seconds = self.base.latencies_s(kernels)
        corrected: Array = seconds * np.exp(_traits(kernels, seconds, self.profile) @ self._mean)
        return corrected

    def overhead_s(self, phase: Phase, calls: Amount, kernels_s: Amount, weight_bytes: Amount) -> Amount:
        """As `CostModel.overhead_s`."""
        return self.base.overhead_s(phase, calls, kernels_s, weight_bytes)

    def deviations(self, kernels: Sequence[Kernel]) -> Array:
        """As `CostModel.deviations`: what the weights leave open, and the errors of measurements."""
        traits = _traits(kernels, self.base.latencies_s(kernels), self.profile)
        open_weights = np.einsum("nk,kl,nl->n", traits, self._covariance, traits)
        found: Array = np.sqrt(np.maximum(open_weights, 0.0) + self._noise)
        return found

    def spread_s(self, kernels: Sequence[Kernel], counts: Sequence[int], overhead_s: float = 0.0) -> float:
        """As `CostModel.spread_s`: what the weights leave open is common to all kernels, an error that of the whole."""
        row = Observation("", tuple(zip(kernels, counts, strict=True)), 1.0, overhead_s)
        whole_s, gain = _observed(self.base, row, self._mean)
        return whole_s * self._deviation(gain)

    def _deviation(self, gain: Array) -> float:
        return math.sqrt(max(float(gain @ self._covariance @ gain), 0.0) + self._noise)

    def bases(self, kernels: Sequence[Kernel]) -> list[Basis]:
        """As `CostModel.bases`: of kinds and precisions that nobody measured, the base's."""
        seen = self.error.seen
        return [
            Basis.CALIBRATED if kernel.precision.value in seen.get(_kind(kernel), ()) else own
            for kernel, own in zip(kernels, self.base.bases(kernels), strict=True)
        ]

    def told(self) -> str:
        """The correction and its error in a few words."""
        error = self.error
        runtime = "" if self.profile.runtime == TVM else f" of {self.profile.runtime}"
        if error.models:
            parts = ", ".join(
                f"{part} {median:.0%} ({error.medians_before[part]:.0%} before)"
                for part, median in error.medians.items()
            )
            return (
                f"calibrated on {error.measurements} figures{runtime} for {error.models} models in "
                f"{', '.join(error.precisions)}: median error of a model predicted from the others: {parts}"
                + "".join(f"; {part} of one model only, not checked" for part in error.unchecked)
            )
        return (
            f"calibrated on {error.measurements} measurements{runtime}: MAPE {error.mape_after:.1%} of each predicted "
            f"from the others ({error.mape_before:.1%} before)"
        )


def choose_observations(base: CostModel, candidates: Sequence[Observation], count: int) -> list[int]:
    """Which candidates to measure, the first first, so that all become surest; their seconds are not looked at."""
    variances = np.repeat(_variances(base), _SIZES)
    known = _shares(base, candidates, np.zeros(_width())) * np.sqrt(variances)
    return most_telling(known, known, min(count, len(candidates)), math.sqrt(_NOISE[0] * _NOISE[1]))


def _width() -> int:
    return sum(_SIZES)


def _variances(base: CostModel) -> tuple[float, ...]:
    return _VARIANCES if base.profile.runtime == TVM else _RUNTIME_VARIANCES


def _kind(kernel: Kernel) -> str:
    return "one row" if kernel.kind is KernelKind.LINEAR and kernel.m == 1 else _GROUPS[kernel.kind]


def _traits(kernels: Sequence[Kernel], seconds: Array, profile: Profile) -> Array:
    """What a kernel's factor hangs on, (kernels, weights)."""
    found = np.zeros((len(kernels), _width()))
    for row, kernel in enumerate(kernels):
        name = _kind(kernel)
        at = _NAMES.index(name)
        found[row, 0] = 1.0
        found[row, 1 + at] = 1.0
        found[row, 1 + len(_NAMES) + at] = math.log10((kernel.ops + kernel.bytes_moved) / 1e6)
        precision = _PRECISIONS.index(kernel.precision) + (name == "one row") * len(_PRECISIONS)
        found[row, 2 + 2 * len(_NAMES) + precision] = 1.0
    found[:, 1 + 2 * len(_NAMES)] = np.minimum(profile.kernel_overhead_s.value / seconds, 1.0)
    return found


def _shares(base: CostModel, observations: Sequence[Observation], weights: Array) -> Array:
    """Traits of each observation: those of its kernels by their share of its corrected seconds."""
    return np.array([_observed(base, one, weights)[1] for one in observations])


def _observed(base: CostModel, observation: Observation, weights: Array) -> tuple[float, Array]:
    """(corrected seconds, what the logarithm of these gains with each weight)."""
    kernels, counts = zip(*observation.kernels, strict=True)
    seconds = base.latencies_s(kernels)
    traits = _traits(kernels, seconds, base.profile)
    each = np.array(counts) * seconds * np.exp(traits @ weights)
    whole = float(each.sum()) + observation.overhead_s
    return whole, each @ traits / whole


def _fit(base: CostModel, observations: Sequence[Observation], seed: int) -> Averaged:
    measured = np.log([one.seconds for one in observations])
    rounding = np.array([(one.resolution_s / one.seconds) ** 2 / 12 for one in observations])
    weights = np.zeros(_width())
    for _ in range(_ROUNDS):
        seconds, gains = zip(*(_observed(base, one, weights) for one in observations), strict=True)
        features = np.array(gains)
        target = measured - np.log(seconds) + features @ weights
        found = average(features, target, _SIZES, _variances(base), _NOISE, rounding, _DRAWS, seed)
        weights = found.mean
    return found


def _left_out(base: CostModel, observations: Sequence[Observation], seed: int) -> CalibrationError:
    """Each model (or, where none is named, each measurement; in ten parts, where there are many) from the others."""
    count = len(observations)
    models = list(dict.fromkeys(one.model for one in observations))
    if len(models) > 1:
        part = np.array([models.index(one.model) for one in observations])
    else:
        part = np.random.default_rng(seed).permutation(count) % min(count, 10)
    before, after, inside = np.empty(count), np.empty(count), np.empty(count)
    for index in range(int(part.max()) + 1):
        others = [one for one, where in zip(observations, part, strict=True) if where != index]
        found = _fit(base, others, seed) if len(others) >= LEAST_OBSERVATIONS - 1 else None
        for at in np.flatnonzero(part == index):
            one = observations[int(at)]
            plain_s, _ = _observed(base, one, np.zeros(_width()))
            before[at] = abs(plain_s / one.seconds - 1.0)
            if found is None:
                after[at], inside[at] = before[at], 0.0
                continue
            seconds, gain = _observed(base, one, found.mean)
            after[at] = abs(seconds / one.seconds - 1.0)
            deviation = math.sqrt(gain @ found.covariance @ gain + found.noise)
            inside[at] = abs(math.log(seconds / one.seconds)) <= deviation
    parts = np.array([one.part for one in observations])
    of_part = {name: len(set(part[parts == name].tolist())) for name in sorted(set(parts.tolist()))}
    unchecked = [name for name, several in of_part.items() if len(models) > 1 and several < 2]
    checked = ~np.isin(parts, unchecked)
    medians_before, medians = (
        {name: float(np.median(errors[parts == name])) for name in of_part if name not in unchecked}
        for errors in (before, after)
    )
    seen: dict[str, set[str]] = {}
    for kernel in {kernel for one in observations for kernel, _ in one.kernels}:
        seen.setdefault(_kind(kernel), set()).add(kernel.precision.value)
    return CalibrationError(
        measurements=count,
        models=len(models) if len(models) > 1 else 0,
        mape_before=float(before[checked].mean()),
        mape_after=float(after[checked].mean()),
        within_interval=float(inside[checked].mean()),
        medians_before=medians_before,
        medians=medians,
        unchecked=unchecked,
        seen={name: sorted(found) for name, found in sorted(seen.items())},
    )
