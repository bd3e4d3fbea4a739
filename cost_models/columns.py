"""Many kernels as columns of numbers, and their bytes and seconds in any precision.

A space has each kernel in four precisions or more. What a kernel computes is the same in all, so that it is made once,
in fp32, and the rest is arithmetic on columns; `Kernel`'s own properties say the same of one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cost_models.features import TIMED_IN_CACHE
from cost_models.models import CostModel
from hardware_profiles import Basis
from search_spaces import Kernel, KernelKind, Precision

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

_QUANTISED = frozenset({KernelKind.LINEAR, KernelKind.CONV, KernelKind.DEPTHWISE_CONV, KernelKind.GATHER})
_ATTENTION = frozenset({KernelKind.SCORES, KernelKind.VALUES})


class Columns:
    """Kernels in fp32, numbered as they come, and arrays of what `Kernel` tells of them."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self._row_of: dict[Kernel, int] = {}
        self._numbers = np.empty((_NUMBERS, 0))

    def rows(self, kernels: Sequence[Kernel]) -> list[int]:
        """The number of each kernel; those seen first get new ones."""
        known = self._row_of
        found = []
        for kernel in kernels:
            row = known.get(kernel)
            if row is None:
                row = known[kernel] = len(self.kernels)
                self.kernels.append(kernel)
            found.append(row)
        return found

    def cached_weight_bytes(self, rows: Rows, precision: Precision) -> Array:
        """As `features.cached_weight_bytes`."""
        found = self._weight_bytes(rows, precision)
        return np.where(found < TIMED_IN_CACHE, found, 0.0)

    def live(self, rows: Rows, precision: Precision) -> Array:
        """As `memory.live` of each kernel alone: (own, stream, adding) bytes, (3, rows)."""
        moved, adds = self._activation_bytes(rows, precision), self._at(rows)[_ADDS] > 0
        outputs = self._at(rows)[_OUTPUTS] * precision.activation_bytes
        return np.array([np.where(adds, 0.0, moved), np.where(adds, outputs, 0.0), np.where(adds, moved, 0.0)])

    def ops(self, rows: Rows) -> Array:
        """As `Kernel.ops`."""
        return np.asarray(self._at(rows)[_OPS])

    def work(self, rows: Rows) -> Array:
        """Operations, those of the epilogue included."""
        return np.asarray(self._at(rows)[_OPS] + self._at(rows)[_EPILOGUE])

    def bytes_moved(self, rows: Rows, precision: Precision) -> Array:
        """As `Kernel.bytes_moved`."""
        return self._weight_bytes(rows, precision) + self._activation_bytes(rows, precision)

    def _weight_bytes(self, rows: Rows, precision: Precision) -> Array:
        at = self._at(rows)
        columns, k = at[_COLUMNS], at[_K]
        groups = np.ceil(k / 32.0) * 32.0 if precision is Precision.INT4 else k
        matrix = columns * groups * precision.bytes + columns * _scale_bytes(precision, groups)
        return np.asarray(matrix + (at[_WEIGHTS] - columns * k) * precision.activation_bytes)

    def _activation_bytes(self, rows: Rows, precision: Precision) -> Array:
        at, size = self._at(rows), precision.activation_bytes
        read = at[_INPUTS] * size + at[_CACHED]
        if precision is Precision.W8A8:
            read = np.where(at[_LINEAR] > 0, at[_INPUTS] + at[_LINEAR] * size, read)
        return np.asarray(read + at[_OUTPUTS] * (1 + at[_FUSED]) * size)

    def _at(self, rows: Rows) -> Array:
        known = self._numbers.shape[1]
        if known < len(self.kernels):
            new = np.array([_numbers(kernel) for kernel in self.kernels[known:]], dtype=float).T
            self._numbers = np.hstack([self._numbers, new])
        return self._numbers[:, rows]


_OPS, _EPILOGUE, _OUTPUTS, _INPUTS, _WEIGHTS, _COLUMNS, _K, _FUSED, _CACHED, _LINEAR, _ADDS = range(11)
_NUMBERS = 11


def _scale_bytes(precision: Precision, k: Array) -> Array | float:
    """Bytes of the scales of one column; see `Precision.matrix_bytes`."""
    if precision is Precision.INT4:
        return k / 16.0
    return 4.0 if precision in (Precision.INT8, Precision.W8A8) else 0.0


def _numbers(kernel: Kernel) -> tuple[float, ...]:
    """Of one kernel, but for its rows of `_LINEAR`, which say where a w8a8 one has scales."""
    kind, m, n, k = kernel.kind, kernel.m, kernel.n, kernel.k
    columns, inner = 0, 0
    if kind in _QUANTISED:
        columns, inner = (m, n) if kind is KernelKind.GATHER else (n, k)
    inputs, cached = float(kernel.inputs), 0.0
    if kind in _ATTENTION and kernel.op:
        inputs = float(kernel.batch * m * k)
        rows, width = (n, k) if kind is KernelKind.SCORES else (k, n)
        cached = kernel.batch * Precision(kernel.op).matrix_bytes(rows, width)
    linear = m if kind is KernelKind.LINEAR else 0
    adds = "residual" in kernel.epilogue
    fused = kernel.fused_reads
    return (
        kernel.ops,
        kernel.epilogue_ops,
        kernel.outputs,
        inputs,
        kernel.weights,
        columns,
        inner,
        fused,
        cached,
        linear,
        adds,
    )


def seconds_and_bases(
    model: CostModel, columns: Columns, rows: Rows, precision: Precision
) -> tuple[Array, list[Basis]]:
    """What `latencies_s` and `bases` say of kernels in a precision; a model that prices columns is asked for these."""
    priced = getattr(model, "priced_columns", None)
    found: tuple[Array, list[Basis]] | None = priced(columns, rows, precision) if priced else None
    if found is not None:
        return found
    plain = [columns.kernels[row] for row in rows.tolist()]
    asked = plain if precision is Precision.FP32 else [replace(kernel, precision=precision) for kernel in plain]
    return model.latencies_s(asked), model.bases(asked)
