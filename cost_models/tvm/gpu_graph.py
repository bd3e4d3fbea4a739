"""Kernels as tensor functions for a GPU: plain Relax operations, fused with their epilogues, not yet scheduled.

Unlike the processor's kernels they read weights as torch stores them, rows of input features, and images channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import tvm
from tvm import relax, te, topi
from tvm.ir import Expr, GlobalVar
from tvm.target import Target
from tvm.tirx import PrimFunc

from cost_models.errors import CostError
from search_spaces.kernels import Kernel, KernelKind, Precision

_DTYPES = {Precision.FP32: "float32", Precision.FP16: "float16"}


class _Scope:
    """Collects the operands of one kernel, of its own precision, while its Relax function is written."""

    def __init__(self, builder: relax.BlockBuilder, dtype: str) -> None:
        self.builder = builder
        self.dtype = dtype
        self.variables: list[relax.Var] = []

    def operand(self, name: str, shape: tuple[int, ...], dtype: str = "") -> relax.Var:
        kind = relax.TensorType(shape, dtype or self.dtype)
        self.variables.append(relax.Var(f"{name}{len(self.variables)}", kind))
        return self.variables[-1]

    def constant(self, value: float) -> Expr:
        return relax.const(value, self.dtype)


def _rows_by_rows(x: te.Tensor, w: te.Tensor) -> te.Tensor:
    """The last axes' product with the second operand's rows: (..., m, k) and (..., n, k) give (..., m, n)."""
    axis = te.reduce_axis((0, int(x.shape[-1])), name="k")

    def term(*at: Expr) -> Expr:
        *lead, i, j = at
        return te.sum(x[(*lead, i, axis)] * w[(*lead[: len(w.shape) - 2], j, axis)], axis=axis)

    return te.compute((*x.shape[:-1], w.shape[-2]), term, name="product")


def _masked_softmax(x: te.Tensor, mask: te.Tensor) -> te.Tensor:
    return topi.nn.softmax(topi.add(x, mask), axis=-1)


def _linear(kernel: Kernel, scope: _Scope) -> Expr:
    x = scope.operand("x", (1, kernel.m, kernel.k))
    w = scope.operand("w", (kernel.n, kernel.k))
    return scope.builder.call_te(_rows_by_rows, x, w)


def _scores(kernel: Kernel, scope: _Scope) -> Expr:
    queries = scope.operand("queries", (1, kernel.batch, kernel.m, kernel.k))
    keys = scope.operand("keys", (1, kernel.batch, kernel.n, kernel.k))
    product = scope.builder.call_te(_rows_by_rows, queries, keys)
    return relax.op.multiply(product, scope.constant(1.0 / math.sqrt(kernel.k)))


def _values(kernel: Kernel, scope: _Scope) -> Expr:
    lead = (1, kernel.batch)
    probabilities = scope.operand("probabilities", (*lead, kernel.m, kernel.k))
    return relax.op.matmul(probabilities, scope.operand("values", (*lead, kernel.k, kernel.n)))


def _conv(kernel: Kernel, scope: _Scope) -> Expr:
    window, stride, side = kernel.window, kernel.stride, kernel.side
    if window == stride == 1:
        return _linear(kernel, scope)
    channels, size = kernel.k // window**2, side * stride
    x = scope.operand("x", (1, size, size, channels))
    w = scope.operand("w", (kernel.n, window, window, channels))
    padding = 0 if window == stride else window // 2
    return relax.op.nn.conv2d(x, w, stride, padding, data_layout="NHWC", kernel_layout="OHWI")


def _depthwise(kernel: Kernel, scope: _Scope) -> Expr:
    window, stride, size = kernel.window, kernel.stride, kernel.side * kernel.stride
    x = scope.operand("x", (1, size, size, kernel.n))
    w = scope.operand("w", (window, window, kernel.n, 1))
    padding = 0 if window == stride else window // 2
    layouts = {"data_layout": "NHWC", "kernel_layout": "HWOI"}
    return relax.op.nn.conv2d(x, w, stride, padding, groups=kernel.n, **layouts)


def _pooling(kernel: Kernel, scope: _Scope) -> Expr:
    window = math.isqrt(kernel.k)
    windows = (window, window)
    if window * window != kernel.k:
        if kernel.m != 1:
            raise CostError(f"k of a pooling kernel must be a square number where m > 1, but got {kernel}")
        windows = (kernel.k, 1)
    height, width = (kernel.side * size for size in windows)
    x = scope.operand("x", (1, height, width, kernel.n))
    return relax.op.nn.avg_pool2d(x, list(windows), list(windows), layout="NHWC")


def _norm(kernel: Kernel, scope: _Scope) -> Expr:
    x, scale = scope.operand("x", (1, kernel.m, kernel.n)), scope.operand("scale", (kernel.n,))
    if kernel.op == "layer_norm":
        return relax.op.nn.layer_norm(x, scale, scope.operand("shift", (kernel.n,)), [2], 1e-5)
    return relax.op.nn.rms_norm(x, scale, [2], 1e-5)


def _softmax(kernel: Kernel, scope: _Scope) -> Expr:
    x: Expr = scope.operand("x", (1, kernel.batch, kernel.m, kernel.n))
    if kernel.op == "causal_softmax":
        return scope.builder.call_te(_masked_softmax, x, scope.operand("mask", (kernel.m, kernel.n)))
    return relax.op.nn.softmax(x, -1)


def _hardsigmoid(x: Expr, scope: _Scope) -> Expr:
    shifted = relax.op.clip(relax.op.add(x, scope.constant(3.0)), 0.0, 6.0)
    return relax.op.multiply(shifted, scope.constant(1.0 / 6.0))


def _hardswish(x: Expr, scope: _Scope) -> Expr:
    return relax.op.multiply(x, _hardsigmoid(x, scope))


def _rope(x: Expr, rows: int, width: int, scope: _Scope) -> Expr:
    cosines, sines = (scope.operand(name, (rows, width)) for name in ("cosines", "sines"))
    left = relax.op.strided_slice(x, [3], [0], [width // 2])
    right = relax.op.strided_slice(x, [3], [width // 2], [width])
    turned = relax.op.concat([relax.op.negative(right), left], 3)
    return relax.op.add(relax.op.multiply(x, cosines), relax.op.multiply(turned, sines))


def _elementwise(kernel: Kernel, scope: _Scope) -> Expr:
    batch, m, n = kernel.batch, kernel.m, kernel.n
    heads = (0, 2, 1, 3)
    if kernel.op == "rope":
        if min(m, batch) == 1:
            return _rope(scope.operand("x", (1, batch, m, n)), m, n, scope)
        return _rope(relax.op.permute_dims(scope.operand("x", (1, m, batch, n)), heads), m, n, scope)
    if kernel.op == "transpose":
        if batch > 1:
            return relax.op.permute_dims(scope.operand("x", (1, m, batch, n)), heads)
        return relax.op.permute_dims(scope.operand("x", (1, n, m)), (0, 2, 1))
    if kernel.op == "concat":
        if m < 2:
            raise CostError(f"a concat kernel joins rows to at least two, but got {kernel}")
        return relax.op.concat([scope.operand("x", (1, batch, size, n)) for size in (m - 1, 1)], 2)
    x: Expr = scope.operand("x", (1, batch, m, n))
    if kernel.op in ("cache_write", "rope_cache_write"):
        new: Expr = scope.operand("new", (1, batch, 1, n))
        if kernel.op == "rope_cache_write":
            new = _rope(new, 1, n, scope)
        return relax.op.where(relax.op.astype(scope.operand("write", (m, 1), "int32"), "bool"), new, x)
    if kernel.op in ("gelu", "hardswish"):
        return relax.op.nn.gelu(x) if kernel.op == "gelu" else _hardswish(x, scope)
    combine = relax.op.add if kernel.op == "add" else relax.op.multiply
    for other in [scope.operand("y", (1, batch, m, n)) for _ in range(kernel.k - 1)] or [scope.constant(0.5)]:
        x = combine(x, other)
    return x


def _gather(kernel: Kernel, scope: _Scope) -> Expr:
    ids = scope.operand("ids", (kernel.m,), "int32")
    return relax.op.take(scope.operand("table", (kernel.k, kernel.n)), ids, axis=0, mode="clip")


_KINDS: dict[KernelKind, Callable[[Kernel, _Scope], Expr]] = {
    KernelKind.LINEAR: _linear,
    KernelKind.SCORES: _scores,
    KernelKind.VALUES: _values,
    KernelKind.CONV: _conv,
    KernelKind.DEPTHWISE_CONV: _depthwise,
    KernelKind.NORM: _norm,
    KernelKind.SOFTMAX: _softmax,
    KernelKind.POOLING: _pooling,
    KernelKind.ELEMENTWISE: _elementwise,
    KernelKind.GATHER: _gather,
}


_UNARY_EPILOGUES: dict[str, Callable[[Expr, _Scope], Expr]] = {
    "gelu": lambda x, _: relax.op.nn.gelu(x),
    "silu": lambda x, _: relax.op.nn.silu(x),
    "relu": lambda x, _: relax.op.nn.relu(x),
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
}


def _epilogue(name: str, x: Expr, shape: tuple[int, ...], scope: _Scope) -> Expr:
    if name in _UNARY_EPILOGUES:
        return _UNARY_EPILOGUES[name](x, scope)
    size = {"bias": shape[-1:], "mask": (1, shape[-1])}.get(name, shape)
    combine = relax.op.multiply if name == "multiply" else relax.op.add
    return combine(x, scope.operand(name, size))


def gpu_function(kernel: Kernel, target: Target) -> PrimFunc:
    """The tensor function that one call of a kernel runs."""
    if kernel.precision not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise CostError(f"{kernel}: only {known} kernels can be compiled for a GPU so far")
    builder = relax.BlockBuilder()
    scope = _Scope(builder, _DTYPES[kernel.precision])
    with builder.function("main"):
        with builder.dataflow():
            out = builder.emit(_KINDS[kernel.kind](kernel, scope))
            shape = tuple(int(size) for size in out.ty.shape)
            for name in kernel.epilogue:
                out = builder.emit(_epilogue(name, out, shape, scope))
            output = builder.emit_output(out)
        builder.emit_func_output(output, scope.variables)
    passes = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    with target:
        module = passes(builder.get())
    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    calls = [binding.value for binding in bindings if isinstance(binding.value, relax.Call)]
    names = [call.args[0] for call in calls if isinstance(call.args[0], GlobalVar)]
    if len(calls) != 1 or len(names) != 1:
        told = ", ".join(name.name_hint for name in names)
        raise CostError(f"a kernel must fuse into one function, but {kernel} gives {told or 'a reshape'}")
    return cast(PrimFunc, module[names[0]])
