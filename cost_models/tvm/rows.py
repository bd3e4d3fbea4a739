"""Tensor expressions of the kernels that work row by row: softmax, layer_norm, rms_norm, each one kernel.

A row is kept in vectors (chunks x lanes); reductions run lane by lane and end in a tree of halves, so that every
step is a vector operation. `schedules.py` puts all stages under one loop over the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from tvm import te, tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from cost_models.tiles import Machine, vector_width
from cost_models.tvm.products import OPAQUE
from cost_models.tvm.scalar_math import exp

Lead = tuple[int, ...]
Index = tuple[Expr, ...]
Combine = Callable[[Expr, Expr], Expr]
Value = Callable[[Index, Expr, Expr], Expr]
Reduce = Callable[..., Expr]


def _halve(lead: Lead, lanes: int, vector: te.Tensor, combine: Combine, name: str) -> te.Tensor:
    """Combine the lanes of each row pairwise until one is left: (*lead, 1)."""
    while lanes > 1:
        lanes //= 2
        vector = _half(lead, lanes, vector, combine, f"{name}_halve{lanes}")
    return vector


def _half(lead: Lead, half: int, wide: te.Tensor, combine: Combine, name: str) -> te.Tensor:
    return te.compute((*lead, half), lambda *i: combine(wide[i], wide[(*i[:-1], i[-1] + half)]), name=name)


def _lanes(lead: Lead, chunks: int, lanes: int, value: Value, reduce: Reduce, name: str) -> te.Tensor:
    """Reduce value(row, chunk, lane) over the chunks: (*lead, lanes)."""
    if chunks == 1:
        return te.compute((*lead, lanes), lambda *i: value(i[:-1], 0, i[-1]), name=name)
    axis = te.reduce_axis((0, chunks), name="chunk")
    return te.compute((*lead, lanes), lambda *i: reduce(value(i[:-1], axis, i[-1]), axis=axis), name=name)


def _rowwise(arguments: list[te.Tensor]) -> PrimFunc:
    function = te.create_prim_func(arguments, index_dtype_override="int64")
    return function.without_attr("global_symbol").with_attr("op_pattern", OPAQUE)


@lru_cache(maxsize=4096)
def softmax(lead: Lead, n: int, masks: int, machine: Machine) -> PrimFunc:
    """Softmax over the last axis of (*lead, n); with masks, a mask (lead[-1], n) is added to the logits first."""
    wide = machine.lanes
    chunks = -(-n // wide)
    x = te.placeholder((*lead, n), name="x")
    mask = te.placeholder((masks, n), name="mask") if masks else None

    def logit(*i: Expr) -> Expr:
        column = i[-2] * wide + i[-1]
        value = x[(*i[:-2], column)] if mask is None else x[(*i[:-2], column)] + mask[i[-3], column]
        return value if n % wide == 0 else tirx.if_then_else(column < n, value, tirx.const(-3e38, "float32"))

    logits = te.compute((*lead, chunks, wide), logit, name="load")
    top = _lanes(lead, chunks, wide, lambda r, c, lane: logits[(*r, c, lane)], te.max, "top")
    top = _halve(lead, wide, top, lambda a, b: tirx.max(a, b), "top")
    powers = te.compute((*lead, chunks, wide), lambda *i: exp(logits[i] - top[(*i[:-2], 0)]), name="powers")
    total = _lanes(lead, chunks, wide, lambda r, c, lane: powers[(*r, c, lane)], te.sum, "total")
    total = _halve(lead, wide, total, lambda a, b: a + b, "total")
    inverse = te.compute((*lead, 1), lambda *i: tirx.const(1.0, "float32") / total[(*i[:-1], 0)], name="inverse")
    out = te.compute(
        (*lead, n),
        lambda *i: powers[(*i[:-1], tirx.floordiv(i[-1], wide), tirx.floormod(i[-1], wide))] * inverse[(*i[:-1], 0)],
        name="rowwise_out",
    )
    return _rowwise([x, out] if mask is None else [x, mask, out])


def _mean(lead: Lead, n: int, machine: Machine, value: Callable[[Index, Expr], Expr], name: str) -> te.Tensor:
    lanes = vector_width(n, machine.lanes)  # two or four vectors a step spill: up to 2.6 times slower
    partial = _lanes(lead, n // lanes, lanes, lambda r, c, lane: value(r, c * lanes + lane), te.sum, f"{name}_lanes")
    total = _halve(lead, lanes, partial, lambda a, b: a + b, name)
    return te.compute((*lead, 1), lambda *i: total[(*i[:-1], 0)] * tirx.const(1.0 / n, "float32"), name=name)


def _inverse_root(lead: Lead, square: te.Tensor, epsilon: float) -> te.Tensor:
    return te.compute(
        (*lead, 1),
        lambda *i: tirx.const(1.0, "float32") / tirx.sqrt(square[(*i[:-1], 0)] + tirx.const(epsilon, "float32")),
        name="inverse",
    )


@lru_cache(maxsize=4096)
def layer_norm(lead: Lead, n: int, epsilon: float, machine: Machine) -> PrimFunc:
    """(x - mean) / sqrt(variance + epsilon) * scale + shift over the last axis of (*lead, n)."""
    x = te.placeholder((*lead, n), name="x")
    scale = te.placeholder((n,), name="scale")
    shift = te.placeholder((n,), name="shift")
    mean = _mean(lead, n, machine, lambda r, j: x[(*r, j)], "mean")
    variance = _mean(
        lead, n, machine, lambda r, j: (x[(*r, j)] - mean[(*r, 0)]) * (x[(*r, j)] - mean[(*r, 0)]), "variance"
    )
    inverse = _inverse_root(lead, variance, epsilon)
    out = te.compute(
        (*lead, n),
        lambda *i: (x[i] - mean[(*i[:-1], 0)]) * inverse[(*i[:-1], 0)] * scale[i[-1]] + shift[i[-1]],
        name="rowwise_out",
    )
    return _rowwise([x, scale, shift, out])


@lru_cache(maxsize=4096)
def rms_norm(lead: Lead, n: int, epsilon: float, machine: Machine) -> PrimFunc:
    """X / sqrt(mean(x^2) + epsilon) * scale over the last axis of (*lead, n)."""
    x = te.placeholder((*lead, n), name="x")
    scale = te.placeholder((n,), name="scale")
    inverse = _inverse_root(lead, _mean(lead, n, machine, lambda r, j: x[(*r, j)] * x[(*r, j)], "square"), epsilon)
    out = te.compute((*lead, n), lambda *i: x[i] * inverse[(*i[:-1], 0)] * scale[i[-1]], name="rowwise_out")
    return _rowwise([x, scale, out])
