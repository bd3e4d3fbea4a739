"""Timed kernels where the table has them, and a learned predictor of all others.

Two stages, each fitted on relative error. Per family of kernels, seconds as a sum of non-negative prices: of a call,
of padded operations, of weight bytes, of activation bytes, of transcendental epilogues. Then boosted trees (LightGBM)
on the logarithm of what is left: tails of tiles, odd sizes, caches. Stored as text in the profile's folder, beside the
error on kernels that a fold had not seen.

A whole program takes longer than its kernels: it checks inputs, makes views and hands out outputs. That overhead is
fitted by phase on whole compiled programs (`fit_overheads`): a constant, and a price a call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models import table
from cost_models.errors import CostError
from hardware_profiles import Basis, Profile
from search_spaces import Kernel, KernelKind, Phase
from search_spaces.kernels import OPS_PER_ELEMENT

#: Fewer timed kernels than this make no predictor.
LEAST_KERNELS = 40
FOLDS = 5
#: No call of a kernel is quicker than this.
LEAST_S = 5e-8
_TREES: dict[str, Any] = {
    "objective": "l2",
    "num_leaves": 8,
    "min_data_in_leaf": 3,
    "learning_rate": 0.05,
    "feature_fraction": 0.8,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
    "seed": 0,
}
_ROUNDS = 400
_KINDS = list(KernelKind)
#: Columns that one packed panel of weights holds: fp32 values of the widest vectors.
_PANEL = 16
#: Epilogues with an exponential inside.
_TRANSCENDENTAL = frozenset({"gelu", "silu"})
_READS_ANOTHER = frozenset({"residual", "multiply", "positions"})


@dataclass(frozen=True, slots=True)
class PredictorError:
    """Error on kernels that a fold did not see, beside the noise of measuring the same kernel twice."""

    kernels: int
    within_10_percent: float
    mape: float
    noise_within_10_percent: float


@dataclass(frozen=True, slots=True)
class TimedProgram:
    """A phase's program timed whole: its seconds, and how many kernels it calls that take `kernels_s` on their own."""

    phase: Phase
    latency_s: float
    kernels_s: float
    calls: int


class LearnedModel:
    """The table's seconds for timed kernels (basis measured), the predictor's for others (basis predicted)."""

    def __init__(
        self,
        profile: Profile,
        rows: Mapping[Kernel, table.TableRow],
        prices: Mapping[str, Sequence[float]],
        trees: str,
        error: PredictorError,
        overheads: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        import lightgbm

        self.profile, self.error = profile, error
        self._rows, self._prices, self._text = rows, prices, trees
        self._trees = lightgbm.Booster(model_str=trees)
        self._overheads = dict(overheads or {})
        self._peak = profile.formula_peak_ops_per_s

    @classmethod
    def of(cls, profile: Profile) -> LearnedModel:
        """The stored model of a profile; raises CostError where it has none or a broken one."""
        rows = table.read(profile.kernels_csv)
        if not cls.is_fitted(profile):
            raise CostError(
                f"{profile.name} has no learned predictor ({len(rows)} timed kernels); use the cost model roofline, "
                "or run `nas search` on it, which times its kernels first"
            )
        path = _predictor_path(profile)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            error = PredictorError(**stored["error"])
            return cls(profile, rows, stored["prices"], stored["trees"], error, stored["overheads"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CostError(f"{path}: not a predictor of this release ({error}); delete it to fit it anew") from None

    @staticmethod
    def is_fitted(profile: Profile) -> bool:
        """Whether the profile's folder holds a predictor."""
        return _predictor_path(profile).is_file()

    @classmethod
    def fit(cls, profile: Profile) -> LearnedModel:
        """Fit on the profile's table; raises CostError for too few kernels. `save` stores it."""
        rows = table.read(profile.kernels_csv)
        if len(rows) < LEAST_KERNELS:
            raise CostError(
                f"{profile.kernels_csv}: a predictor needs {LEAST_KERNELS} timed kernels, but the table has {len(rows)}"
            )
        kernels = list(rows)
        latency = np.array([row.mean_s for row in rows.values()])
        fold = np.random.default_rng(0).permutation(len(kernels)) % FOLDS
        held_out = np.empty(len(kernels))
        for i in range(FOLDS):
            seen, unseen = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
            prices, trees = _fit([kernels[j] for j in seen], latency[seen])
            held_out[unseen] = _predict([kernels[j] for j in unseen], prices, trees)
        relative = np.abs(held_out / latency - 1.0)
        noise = np.array([row.repeat_error for row in rows.values()])
        error = PredictorError(
            kernels=len(kernels),
            within_10_percent=float(np.mean(relative <= 0.1)),
            mape=float(relative.mean()),
            noise_within_10_percent=float(np.mean(noise <= 0.1)),
        )
        prices, trees = _fit(kernels, latency)
        return cls(profile, rows, prices, trees.model_to_string(), error)

    def fit_overheads(self, programs: Sequence[TimedProgram]) -> None:
        """Fit overheads by phase, on relative error, to programs that were timed whole; `save` stores them."""
        from scipy.optimize import nnls

        for phase in sorted({program.phase for program in programs}):
            timed = [program for program in programs if program.phase is phase]
            whole = np.array([program.latency_s for program in timed])
            beside = np.maximum(whole - [program.kernels_s for program in timed], 0.0)
            terms = np.array([_overhead_terms(program.calls) for program in timed])
            self._overheads[phase.value] = nnls(terms / whole[:, None], beside / whole)[0].tolist()

    def overhead_s(self, phase: Phase, calls: int) -> float:
        """As `CostModel.overhead_s`."""
        prices = self._overheads.get(phase.value)
        return float(np.dot(prices, _overhead_terms(calls))) if prices else 0.0

    @property
    def has_overheads(self) -> bool:
        """Whether overheads were fitted."""
        return bool(self._overheads)

    def told(self) -> str:
        """The predictor and its held-out error in a few words."""
        error = self.error
        return (
            f"{error.kernels} timed kernels; others predicted, {error.within_10_percent:.0%} within 10 % "
            f"(MAPE {error.mape:.1%}, held out)"
        )

    def save(self) -> None:
        """Write the predictor and its error into the profile's folder."""
        stored: dict[str, Any] = {"error": asdict(self.error), "prices": dict(self._prices), "trees": self._text}
        stored["overheads"] = self._overheads
        path = _predictor_path(self.profile)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(stored) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def latencies_s(self, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
        """As `CostModel.latencies_s`; a kind that was never timed raises CostError."""
        for kernel in kernels:
            if kernel not in self._rows and _family(kernel) not in self._prices:
                known = ", ".join(sorted(self._prices))
                raise CostError(f"{self.profile.name} has no timed kernels like {kernel} (known kinds: {known})")
        seconds = np.array([self._rows[k].mean_s if k in self._rows else 0.0 for k in kernels])
        unseen = np.flatnonzero(seconds == 0.0)
        if len(unseen):
            asked = [kernels[int(i)] for i in unseen]
            predicted = _predict(asked, self._prices, self._trees)
            seconds[unseen] = np.maximum(predicted, [kernel.ops / self._peak for kernel in asked])
        return seconds

    def bases(self, kernels: Sequence[Kernel]) -> list[Basis]:
        """As `CostModel.bases`."""
        return [self._rows[kernel].basis if kernel in self._rows else Basis.PREDICTED for kernel in kernels]


def _fit(kernels: Sequence[Kernel], latency_s: NDArray[np.float64]) -> tuple[dict[str, list[float]], Any]:
    import lightgbm
    from scipy.optimize import nnls

    terms, families = _terms(kernels), np.array([_family(kernel) for kernel in kernels])
    prices = {}
    for family in sorted(set(families)):
        members = families == family
        weighted = terms[members] / latency_s[members, None]  # relative error: every kernel counts alike
        prices[str(family)] = nnls(weighted, np.ones(len(weighted)))[0].tolist()
    left = np.log(latency_s / _priced(kernels, prices))
    return prices, lightgbm.train(_TREES, lightgbm.Dataset(features(kernels), left), _ROUNDS)


def _predict(kernels: Sequence[Kernel], prices: Mapping[str, Sequence[float]], trees: Any) -> NDArray[np.float64]:
    seconds: NDArray[np.float64] = _priced(kernels, prices) * np.exp(trees.predict(features(kernels)))
    return seconds


def _priced(kernels: Sequence[Kernel], prices: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    matrix = np.array([prices[_family(kernel)] for kernel in kernels])
    priced: NDArray[np.float64] = np.maximum((_terms(kernels) * matrix).sum(1), LEAST_S)
    return priced


def _family(kernel: Kernel) -> str:
    return f"{kernel.kind.value} {kernel.op}".strip()


def _terms(kernels: Sequence[Kernel]) -> NDArray[np.float64]:
    """What the first stage prices: (n, 6), scaled to be of order one for a microsecond of work."""
    return np.array([_terms_of(kernel) for kernel in kernels])


@lru_cache(maxsize=1 << 16)
def _terms_of(kernel: Kernel) -> tuple[float, ...]:
    padded = -(-kernel.n // _PANEL) * _PANEL / kernel.n
    exponentials = sum(name in _TRANSCENDENTAL for name in kernel.epilogue)
    return (
        1e-6,
        kernel.ops * padded * 1e-11,
        kernel.weight_bytes * 1e-10,
        kernel.activation_bytes * 1e-10,
        kernel.outputs * exponentials * 1e-9,
        kernel.outputs * 1e-9,
    )


def features(kernels: Sequence[Kernel]) -> NDArray[np.float64]:
    """What the trees see of each kernel: (n, features)."""
    return np.array([_features(kernel) for kernel in kernels], dtype=float)


@lru_cache(maxsize=1 << 16)
def _features(kernel: Kernel) -> tuple[float, ...]:
    shape = (kernel.m, kernel.n, kernel.k, kernel.batch)
    epilogue = set(kernel.epilogue)
    variants = sorted(OPS_PER_ELEMENT.get(kernel.kind, {"": 0}))
    return (
        _KINDS.index(kernel.kind),
        variants.index(kernel.op),
        *map(math.log, shape),
        *(math.log2(math.gcd(size, _PANEL)) for size in shape[:3]),
        kernel.n % _PANEL or _PANEL,
        -(-kernel.n // _PANEL),
        *(kernel.m % tile for tile in (2, 4, 6)),
        kernel.window,
        kernel.stride,
        len(epilogue),
        float(bool(epilogue & _TRANSCENDENTAL)),
        float(bool(epilogue & _READS_ANOTHER)),
        float("mask" in epilogue),
        math.log(max(kernel.ops, 1)),
        math.log(max(kernel.weight_bytes, 1.0)),
        math.log(kernel.activation_bytes),
    )


def _overhead_terms(calls: int) -> tuple[float, float]:
    return 1e-6, calls * 1e-7


def _predictor_path(profile: Profile) -> Path:
    return profile.folder / "predictor.json"
