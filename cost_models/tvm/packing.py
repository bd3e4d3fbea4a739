"""How linear weights of lower precision lie in memory: what a kernel reads on a target, and rounding and packing.

| precision | weights                     | scales           | arithmetic                                              |
|-----------|-----------------------------|------------------|---------------------------------------------------------|
| fp16      | (panels, k, 16)             |                  | fp32; where native, fp16 in runs of 32, summed in fp32  |
| int8      | (panels, k, 16)             | fp32 a column    | fp32                                                    |
| int4      | (panels, groups, 16, 16)    | bf16 a group     | fp32; a byte is 16 times one weight plus another        |
| w8a8      | (panels, k / 4, 16, 4) int8 | fp32 column, row | int32, four terms at once; else (panels, k, 16, 1)      |

Activations are fp32 in and out but for w8a8, so that these kernels stand between the others, which compute in fp32.
Panels are 16 columns wide on every machine: as many bytes fill the smallest vector register.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.target import Target

from cost_models.errors import CostError
from cost_models.tiles import Machine
from cost_models.tvm.instructions import TERMS, Dot, computes_fp16, converts_fp16, dot_of, has_scalable_vectors_only
from cost_models.tvm.machine import machine_of
from cost_models.tvm.products import _padded
from search_spaces.kernels import INT4_GROUP, Precision

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

#: Columns of a panel.
LANES = 16


@dataclass(frozen=True, slots=True)
class Packing:
    """How linear weights of one precision are packed and multiplied on one target; hashable."""

    precision: Precision
    machine: Machine
    dot: Dot | None = None
    native: bool = False  # fp16 arithmetic

    @classmethod
    def of(cls, precision: Precision, target: Target) -> Packing:
        """The packing that kernels compiled for a target read."""
        if precision is Precision.FP32:
            raise CostError("fp32 weights have no packing of this kind; see products.py")
        if precision is Precision.FP16 and not converts_fp16(target):
            raise CostError(
                f"this target has no instruction that converts fp16, so that fp16 is not compiled: {target}"
            )
        if has_scalable_vectors_only(target):
            raise CostError(
                f"only fp32 is compiled for RISC-V's vectors so far, but got {precision}; with mattr: [-v] it compiles"
            )
        dot = dot_of(target) if precision is Precision.W8A8 else None
        native = precision is Precision.FP16 and computes_fp16(target)
        return cls(precision, machine_of(target), dot, native)

    @property
    def terms(self) -> int:
        """Terms along k that lie next to each other within a column: four where an instruction multiplies them."""
        return TERMS if self.dot else 1

    def operands(self, lead: Shape, n: int, k: int) -> list[tuple[str, Shape, str]]:
        """(name, shape, type) of what the kernel reads: activations, then weights and what belongs to them (w...)."""
        count = -(-n // LANES)
        x = ("x", (*lead, k), "float32")
        if self.precision is Precision.FP16:
            depth = _padded(k, INT4_GROUP) if self.native else k
            return [x, ("w", (count, depth, LANES), "float16")]
        if self.precision is Precision.INT8:
            return [x, ("w", (count, k, LANES), "int8"), ("w_scale", (count * LANES,), "float32")]
        if self.precision is Precision.INT4:
            groups = -(-k // INT4_GROUP)
            scales = ("w_scale", (count, groups, LANES), "uint16")
            return [x, ("w", (count, groups, INT4_GROUP // 2, LANES), "int8"), scales]
        steps = -(-k // self.terms)
        operands = [
            ("x", (*lead, steps * self.terms), self.dot.activation if self.dot else "int8"),
            ("x_scale", (*lead, 1), "float32"),
            ("w", (count, steps, LANES, self.terms), "int8"),
            ("w_scale", (count * LANES,), "float32"),
        ]
        if self.dot and self.dot.zero:
            operands.append(("w_sum", (count * LANES,), "int32"))
        return operands

    def pack(self, weights: Array) -> list[Array]:
        """Quantise and pack fp32 weights (n, k): the kernel's operands of its own, in order."""
        n, k = weights.shape
        padded = np.zeros((_padded(n, LANES), k), np.float32)
        padded[:n] = weights
        if self.precision is Precision.FP16:
            depth = _padded(k, INT4_GROUP) if self.native else k
            return [_panels(np.pad(padded, ((0, 0), (0, depth - k))).astype(np.float16))]
        if self.precision is Precision.INT4:
            return _pack_int4(padded)
        scale = _scales(padded, 127.0)
        rounded = np.rint(padded / scale[:, None]).astype(np.int8)
        if self.precision is Precision.INT8:
            return [_panels(rounded), scale]
        rounded = np.pad(rounded, ((0, 0), (0, -k % self.terms)))
        packed = rounded.reshape(-1, LANES, rounded.shape[1] // self.terms, self.terms).transpose(0, 2, 1, 3)
        arrays = [np.ascontiguousarray(packed), scale]
        if self.dot and self.dot.zero:
            arrays.append(rounded.sum(1, dtype=np.int32) * self.dot.zero)
        return arrays

    def quantise_rows(self, x: Array) -> tuple[Array, Array]:
        """Activations (..., k) of a w8a8 kernel as bytes, padded along k, and their scales (..., 1)."""
        scale = _scales(x, 127.0)[..., None]
        zero = self.dot.zero if self.dot else 0
        rounded = np.rint(x / scale).astype(np.int16)
        padded = np.pad(rounded, (*((0, 0),) * (x.ndim - 1), (0, -x.shape[-1] % self.terms)))
        return (padded + zero).astype(np.uint8 if zero else np.int8), scale


def _scales(values: Array, most: float) -> Array:
    """What the largest magnitude along the last axis is divided by to become `most`; 1 where all are zero."""
    largest = np.abs(values).max(-1)
    return np.where(largest > 0, largest / most, 1.0).astype(np.float32)


def _panels(weights: Array) -> Array:
    """(n, k) to (panels, k, lanes), n a multiple of the lanes."""
    return np.ascontiguousarray(weights.reshape(-1, LANES, weights.shape[1]).transpose(0, 2, 1))


def _pack_int4(weights: Array) -> list[Array]:
    n, k = weights.shape
    groups = -(-k // INT4_GROUP)
    grouped = np.pad(weights, ((0, 0), (0, groups * INT4_GROUP - k))).reshape(n, groups, INT4_GROUP)
    # The upper half of an fp32 is a bf16; rounded before the weights are divided by it, it adds no error of its own.
    halves = ((_scales(grouped, 7.0).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    scale = (halves.astype(np.uint32) << 16).view(np.float32)
    rounded = np.clip(np.rint(grouped / scale[..., None]), -7, 7).astype(np.int8)
    both = rounded[..., : INT4_GROUP // 2] + 16 * rounded[..., INT4_GROUP // 2 :]
    packed = both.reshape(-1, LANES, groups, INT4_GROUP // 2).transpose(0, 2, 3, 1)
    scales = halves.reshape(-1, LANES, groups).transpose(0, 2, 1)
    return [np.ascontiguousarray(packed), np.ascontiguousarray(scales)]
