"""The roofline: a kernel takes as long as its arithmetic at peak or its bytes at full bandwidth, plus a dispatch.

S. Williams, A. Waterman, D. Patterson, doi:10.1145/1498765.1498785. A lower bound: real kernels are slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cost_models.cost import Amount
from cost_models.errors import CostError
from hardware_profiles import Basis, Profile
from hardware_profiles.profile import TVM
from search_spaces import Kernel, Phase, Precision

if TYPE_CHECKING:
    from cost_models.columns import Columns

#: Precisions whose weights are widened to half precision to be computed with, where the device computes in it.
WEIGHT_ONLY = (Precision.INT8, Precision.INT4)
#: How much more a second a core computes at most than in fp32: a register holds twice, or four times the values, and
#: matrix instructions for bytes double it again.
MOST_FASTER = dict.fromkeys(Precision, 2.0) | {Precision.FP32: 1.0, Precision.W8A8: 8.0}


def least_s(kernel: Kernel, profile: Profile) -> float:
    """Seconds that no code can undercut: a kernel's operations at the peak that the profile's formula allows."""
    return kernel.ops / (profile.formula_peak_ops_per_s * MOST_FASTER[kernel.precision])


#: Kernels that put rows into a KV cache: compiled by TVM they copy it, runtimes write into it.
_CACHE_WRITES = frozenset({"cache_write", "rope_cache_write"})


class RooflineModel:
    """max(operations / peak, bytes / bandwidth) + kernel overhead, from the profile's facts."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        peaks = profile.peak_ops_per_s
        # fp16, and with it weight-only int8 and int4, fall back to fp32 where it is not native
        self._peak = dict.fromkeys(Precision, (peaks.fp16 or peaks.fp32).value)
        self._peak[Precision.FP32] = peaks.fp32.value
        self._peak[Precision.W8A8] = peaks.int8.value if peaks.int8 else peaks.fp32.value * MOST_FASTER[Precision.W8A8]
        self._bandwidth = profile.bandwidth_bytes_per_s.value
        self._overhead = profile.kernel_overhead_s.value
        used = (peaks.fp32.basis, profile.bandwidth_bytes_per_s.basis, profile.kernel_overhead_s.basis)
        # A bound computed from measured facts is still a prediction.
        self._basis = Basis.weakest(Basis.PREDICTED, *used)
        # that a runtime widens weights to half precision, as llama.cpp does, is no fact of the device
        self._widened = Basis.weakest(self._basis, Basis.ASSUMED) if peaks.fp16 else self._basis
        self._known: dict[Kernel, float] = {}

    def latency_s(self, kernel: Kernel) -> float:
        """Seconds of one run."""
        seconds = self._known.get(kernel)
        if seconds is None:
            in_place = kernel.op in _CACHE_WRITES and self.profile.runtime != TVM
            run = replace(kernel, m=1) if in_place else kernel
            work = (run.ops + run.epilogue_ops) / self._peak[kernel.precision]
            seconds = max(work, run.bytes_moved / self._bandwidth) + self._overhead
            self._known[kernel] = seconds
        return seconds

    def columns_s(self, columns: Columns, rows: NDArray[np.intp], precision: Precision) -> NDArray[np.float64]:
        """As `latency_s` of kernels in a precision, compiled by TVM."""
        work = columns.work(rows) / self._peak[precision]
        return np.asarray(np.maximum(work, columns.bytes_moved(rows, precision) / self._bandwidth) + self._overhead)

    def priced_columns(
        self, columns: Columns, rows: NDArray[np.intp], precision: Precision
    ) -> tuple[NDArray[np.float64], list[Basis]] | None:
        """Seconds and bases of kernels in a precision; None of other runtimes, which write caches in place."""
        if self.profile.runtime != TVM:
            return None
        basis = self._widened if precision in WEIGHT_ONLY else self._basis
        return self.columns_s(columns, rows, precision), [basis] * len(rows)

    def latencies_s(self, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
        """As `CostModel.latencies_s`."""
        _check(kernels)
        return np.fromiter(map(self.latency_s, kernels), float, len(kernels))

    def overhead_s(self, phase: Phase, calls: Amount, kernels_s: Amount, weight_bytes: Amount) -> Amount:
        """As `CostModel.overhead_s`: a kernel's overhead is in its own seconds already."""
        del phase, calls
        return kernels_s * 0.0

    def deviations(self, kernels: Sequence[Kernel]) -> NDArray[np.float64]:
        """As `CostModel.deviations`: a bound has none."""
        return np.full(len(kernels), np.nan)

    def spread_s(self, kernels: Sequence[Kernel], counts: Sequence[int], overhead_s: float = 0.0) -> float:
        """As `CostModel.spread_s`: a bound has none."""
        del kernels, counts, overhead_s
        return math.nan

    def bases(self, kernels: Sequence[Kernel]) -> list[Basis]:
        """As `CostModel.bases`."""
        return [self._widened if kernel.precision in WEIGHT_ONLY else self._basis for kernel in kernels]


def _check(kernels: Sequence[Kernel]) -> None:
    for kernel in kernels:
        if not isinstance(kernel, Kernel):
            raise CostError(f"a cost model prices search_spaces.Kernel, but got {type(kernel).__name__}")
