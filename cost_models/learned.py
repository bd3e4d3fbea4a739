"""Timed kernels where the table has them, and a learned predictor of all others.

Boosted trees (LightGBM) predict log(latency / roofline): the roofline carries the scale, the trees the efficiency.
The model is stored as LightGBM's own text in the profile's folder, beside its error on kernels it had not seen.
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
from cost_models.roofline import RooflineModel
from hardware_profiles import Basis, Profile
from search_spaces import Kernel, KernelKind

#: Fewer timed kernels than this make no predictor.
LEAST_KERNELS = 40
FOLDS = 5
_PARAMETERS: dict[str, Any] = {
    "objective": "l1",
    "num_leaves": 15,
    "min_data_in_leaf": 4,
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
#: Vector and register tiles whose remainders make a kernel slower.
_TILES = (4, 6, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class PredictorError:
    """Error on kernels that a fold did not see, beside the noise of measuring the same kernel twice."""

    kernels: int
    within_10_percent: float
    mape: float
    noise_within_10_percent: float


class LearnedModel:
    """The table's seconds for timed kernels (basis measured), the trees' for others (basis predicted)."""

    def __init__(self, profile: Profile, rows: Mapping[Kernel, table.TableRow], model_text: str, error: PredictorError):
        import lightgbm

        self.profile, self.error = profile, error
        self._rows, self._text = rows, model_text
        self._booster = lightgbm.Booster(model_str=model_text)
        self._roofline = RooflineModel(profile)
        self._kinds = {kernel.kind for kernel in rows}
        self._peak = profile.formula_peak_ops_per_s

    @classmethod
    def of(cls, profile: Profile) -> LearnedModel:
        """The stored model of a profile; raises CostError where it has none."""
        rows = table.read(profile.kernels_csv)
        if not cls.is_fitted(profile):
            raise CostError(
                f"{profile.name} has no learned predictor ({len(rows)} timed kernels); use the cost model roofline, "
                "or run `nas search` on it, which times its kernels first"
            )
        error = PredictorError(**json.loads(_error_path(profile).read_text(encoding="utf-8")))
        return cls(profile, rows, _model_path(profile).read_text(encoding="utf-8"), error)

    @staticmethod
    def is_fitted(profile: Profile) -> bool:
        """Whether the profile's folder holds a predictor."""
        return _model_path(profile).is_file() and _error_path(profile).is_file()

    @classmethod
    def fit(cls, profile: Profile) -> LearnedModel:
        """Fit on the profile's table; raises CostError for too few kernels. `save` stores it."""
        import lightgbm

        rows = table.read(profile.kernels_csv)
        if len(rows) < LEAST_KERNELS:
            raise CostError(
                f"a predictor needs {LEAST_KERNELS} timed kernels, but {profile.kernels_csv} has {len(rows)}"
            )
        kernels = list(rows)
        x, base = features(kernels), RooflineModel(profile).latencies_s(kernels)
        latency = np.array([rows[kernel].latency_s for kernel in kernels])
        y = np.log(latency / base)
        fold = np.random.default_rng(0).permutation(len(kernels)) % FOLDS
        held_out = np.empty(len(kernels))
        for i in range(FOLDS):
            trees = lightgbm.train(_PARAMETERS, lightgbm.Dataset(x[fold != i], y[fold != i]), _ROUNDS)
            held_out[fold == i] = trees.predict(x[fold == i])
        relative = np.abs(np.exp(held_out - y) - 1.0)
        noise = np.array([rows[kernel].repeat_error for kernel in kernels])
        error = PredictorError(
            kernels=len(kernels),
            within_10_percent=float(np.mean(relative <= 0.1)),
            mape=float(relative.mean()),
            noise_within_10_percent=float(np.mean(noise <= 0.1)),
        )
        trees = lightgbm.train(_PARAMETERS, lightgbm.Dataset(x, y), _ROUNDS)
        return cls(profile, rows, trees.model_to_string(), error)

    def told(self) -> str:
        """The predictor and its held-out error in a few words."""
        error = self.error
        return (
            f"{error.kernels} timed kernels; others predicted, {error.within_10_percent:.0%} within 10 % "
            f"(MAPE {error.mape:.1%}, held out)"
        )

    def save(self) -> None:
        """Write the trees and their error into the profile's folder."""
        _model_path(self.profile).write_text(self._text, encoding="utf-8")
        _error_path(self.profile).write_text(json.dumps(asdict(self.error)) + "\n", encoding="utf-8")

    def latencies_s(self, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
        """As `CostModel.latencies_s`; a kind that was never timed raises CostError."""
        for kernel in kernels:
            if kernel.kind not in self._kinds:
                known = ", ".join(sorted(self._kinds))
                raise CostError(f"{self.profile.name} has no timed kernels like {kernel} (known kinds: {known})")
        seconds = self._roofline.latencies_s(kernels)
        unseen = [i for i, kernel in enumerate(kernels) if kernel not in self._rows]
        if unseen:
            seconds[unseen] *= np.exp(self._booster.predict(features([kernels[i] for i in unseen])))
            bound = [kernels[i].ops / self._peak for i in unseen]
            seconds[unseen] = np.maximum(seconds[unseen], bound)
        for i, kernel in enumerate(kernels):
            if kernel in self._rows:
                seconds[i] = self._rows[kernel].latency_s
        return seconds

    def bases(self, kernels: Sequence[Kernel]) -> list[Basis]:
        """As `CostModel.bases`."""
        return [self._rows[kernel].basis if kernel in self._rows else Basis.PREDICTED for kernel in kernels]


def features(kernels: Sequence[Kernel]) -> NDArray[np.float64]:
    """What the trees see of each kernel: (n, features)."""
    return np.array([_features(kernel) for kernel in kernels], dtype=float)


@lru_cache(maxsize=1 << 16)
def _features(kernel: Kernel) -> tuple[float, ...]:
    shape = (kernel.m, kernel.n, kernel.k, kernel.batch)
    return (
        _KINDS.index(kernel.kind),
        float(kernel.op in ("rms_norm", "causal_softmax", "rope", "transpose")),
        float(kernel.op in ("concat", "multiply", "transpose")),
        *map(math.log, shape),
        *(min(size, 64) for size in shape),
        kernel.window,
        kernel.stride,
        len(kernel.epilogue),
        float("gelu" in kernel.epilogue or "silu" in kernel.epilogue),
        float("residual" in kernel.epilogue or "multiply" in kernel.epilogue or "positions" in kernel.epilogue),
        math.log(max(kernel.ops, 1)),
        math.log(max(kernel.weight_bytes, 1.0)),
        math.log(kernel.activation_bytes),
        math.log(max(kernel.ops, 1) / kernel.bytes_moved),
        *(-kernel.m % tile / kernel.m for tile in _TILES[:3]),
        *(-kernel.n % tile / kernel.n for tile in _TILES[2:]),
    )


def _model_path(profile: Profile) -> Path:
    return profile.folder / "predictor.txt"


def _error_path(profile: Profile) -> Path:
    return profile.folder / "predictor_error.json"
