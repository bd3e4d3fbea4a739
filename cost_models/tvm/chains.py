"""Programs that call one kernel many times in a row, as a whole model would: for timing kernels alone.

Each call gets its own weights, so that these stream from beyond the second cache level, while activations stay
warm. Layouts are those of whole programs: images channels-last, weights packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Expr, GlobalVar, IRModule
from tvm.target import Target
from tvm.tirx import PrimFunc

from cost_models.errors import CostError
from cost_models.tiles import panels
from cost_models.tvm import products, quantised, rows
from cost_models.tvm.machine import machine_of, tvm_target
from cost_models.tvm.packing import Packing
from cost_models.tvm.passes import build, fuse
from cost_models.tvm.schedules import schedule_function
from search_spaces.kernels import Kernel, KernelKind, Precision

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """One tensor a kernel reads: `own` if each call of a chain has its own (weights, token ids)."""

    name: str
    shape: Shape
    own: bool
    below: int = 0  # row numbers in [0, below); 0: values
    dtype: str = "float32"

    def example(self, rng: np.random.Generator) -> Array:
        """Random contents: normal values scaled to unit sums, row numbers, bytes, or the bits of bf16 scales."""
        if self.below:
            return rng.integers(0, self.below, self.shape, dtype=np.int32)
        if self.dtype in _EXAMPLES:
            return rng.integers(*_EXAMPLES[self.dtype], self.shape).astype(self.dtype)
        scale = 1.0 / math.sqrt(self.shape[-2]) if self.own and len(self.shape) > 2 else 1.0
        return (rng.standard_normal(self.shape) * scale).astype(self.dtype)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def variable(self) -> relax.Var:
        """A Relax variable of this type."""
        return relax.Var(self.name, relax.TensorType(self.shape, self.dtype))


#: Bounds of random integers by type; of the bits of a bf16, for scales near 1/128.
_EXAMPLES = {"int8": (-127, 128), "uint8": (1, 256), "int32": (-1000, 1000), "uint16": (0x3C00, 0x3C80)}


@dataclass(frozen=True, slots=True)
class Chain:
    """A program of `calls` calls of one kernel; inputs are every shared operand, then call by call the own ones."""

    kernel: Kernel
    operands: tuple[Operand, ...]
    calls: int
    output: Shape

    def inputs(self, rng: np.random.Generator) -> list[Array]:
        """Random inputs of the program, in order."""
        shared = [operand.example(rng) for operand in self.operands if not operand.own]
        return shared + [op.example(rng) for _ in range(self.calls) for op in self.operands if op.own]


class _Scope:
    """Collects the operands of one kernel while its Relax function is written."""

    def __init__(self, builder: relax.BlockBuilder, target: Target) -> None:
        self.builder = builder
        self.target = target
        self.machine = machine_of(target)
        self.operands: list[Operand] = []
        self.variables: list[relax.Var] = []

    def operand(
        self, name: str, shape: Shape, *, own: bool = False, below: int = 0, dtype: str = "float32"
    ) -> relax.Var:
        operand = Operand(f"{name}{len(self.operands)}", shape, own, below, "int32" if below else dtype)
        self.operands.append(operand)
        self.variables.append(operand.variable())
        return self.variables[-1]

    def call(self, function: PrimFunc, name: str, arguments: Sequence[Expr], shape: Shape) -> Expr:
        variable = self.builder.add_func(function, name)
        return relax.call_tir(variable, relax.Tuple(list(arguments)), relax.TensorType(shape, "float32"))


def _linear(kernel: Kernel, scope: _Scope) -> Expr:
    m, n, k = kernel.m, kernel.n, kernel.k
    if kernel.precision is not Precision.FP32:
        packing = Packing.of(kernel.precision, scope.target)
        listed = packing.operands((1, m), n, k)
        operands = [scope.operand(name, shape, own=name[0] == "w", dtype=dtype) for name, shape, dtype in listed]
        return scope.call(quantised.linear((1, m), n, k, packing), "linear", operands, (1, m, n))
    x = scope.operand("x", (1, m, k))
    w = scope.operand("w", (panels(n, scope.machine), k, scope.machine.lanes), own=True)
    return scope.call(products.linear((1, m), n, k, scope.machine), "linear", [x, w], (1, m, n))


def _scores(kernel: Kernel, scope: _Scope) -> Expr:
    m, n, k = kernel.m, kernel.n, kernel.k
    lead = (1, kernel.batch)
    operands = [scope.operand("queries", (*lead, m, k)), scope.operand("keys", (*lead, n, k))]
    function = products.scores(lead, m, n, k, 1.0 / math.sqrt(k), scope.machine)
    return scope.call(function, "scores", operands, (*lead, m, n))


def _values(kernel: Kernel, scope: _Scope) -> Expr:
    m, n, k = kernel.m, kernel.n, kernel.k
    lead = (1, kernel.batch)
    operands = [scope.operand("probabilities", (*lead, m, k)), scope.operand("values", (*lead, k, n))]
    return scope.call(products.values(lead, m, n, k, scope.machine), "values", operands, (*lead, m, n))


def _only_fp32(kernel: Kernel) -> None:
    if kernel.precision is not Precision.FP32:
        raise CostError(
            f"the weights of {kernel.kind} kernels can be compiled in fp32 only so far, those of linear kernels in any "
            f"precision, but got {kernel}"
        )


def _conv(kernel: Kernel, scope: _Scope) -> Expr:
    window, stride, side, n = kernel.window, kernel.stride, kernel.side, kernel.n
    if window == stride == 1:
        return _linear(kernel, scope)
    _only_fp32(kernel)
    channels = kernel.k // window**2
    size = side * stride
    padding = 0 if window == stride else window // 2
    first = products.reads_channels_first(channels, (window, window), stride, padding)
    x = scope.operand("x", (1, channels, size, size) if first else (1, size, size, channels))
    lanes = scope.machine.lanes
    w = scope.operand("w", (panels(n, scope.machine), window, window, channels, lanes), own=True)
    function = products.conv(size, size, channels, n, (window, window), stride, padding, scope.machine)
    return scope.call(function, "conv", [x, w], (1, side, side, n))


def _depthwise(kernel: Kernel, scope: _Scope) -> Expr:
    _only_fp32(kernel)
    window, stride, side, n = kernel.window, kernel.stride, kernel.side, kernel.n
    size = side * stride
    x = scope.operand("x", (1, size, size, n))
    w = scope.operand("w", (window, window, n), own=True)
    padding = 0 if window == stride else window // 2
    function = products.depthwise(size, size, n, (window, window), stride, padding, scope.machine)
    return scope.call(function, "depthwise_conv", [x, w], (1, side, side, n))


def _pooling(kernel: Kernel, scope: _Scope) -> Expr:
    window = math.isqrt(kernel.k)
    sides, windows = (kernel.side, kernel.side), (window, window)
    if window * window != kernel.k:
        if kernel.m != 1:
            raise CostError(f"k of a pooling kernel must be a square number where m > 1, but got {kernel}")
        windows = (kernel.k, 1)
    height, width = (side * size for side, size in zip(sides, windows, strict=True))
    x = scope.operand("x", (1, height, width, kernel.n))
    return scope.call(
        products.average(height, width, kernel.n, windows, scope.machine), "pooling", [x], (1, *sides, kernel.n)
    )


def _norm(kernel: Kernel, scope: _Scope) -> Expr:
    m, n = kernel.m, kernel.n
    operands = [scope.operand("x", (1, m, n)), scope.operand("scale", (n,), own=True)]
    if kernel.op == "layer_norm":
        operands.append(scope.operand("shift", (n,), own=True))
        return scope.call(rows.layer_norm((1, m), n, 1e-5, scope.machine), "layer_norm", operands, (1, m, n))
    return scope.call(rows.rms_norm((1, m), n, 1e-5, scope.machine), "rms_norm", operands, (1, m, n))


def _softmax(kernel: Kernel, scope: _Scope) -> Expr:
    lead, n = (1, kernel.batch, kernel.m), kernel.n
    operands = [scope.operand("x", (*lead, n))]
    masks = kernel.m if kernel.op == "causal_softmax" else 0
    if masks:
        operands.append(scope.operand("mask", (masks, n)))
    return scope.call(rows.softmax(lead, n, masks, scope.machine), "softmax", operands, (*lead, n))


def _hardswish(x: Expr) -> Expr:
    return relax.op.multiply(x, _hardsigmoid(x))


def _hardsigmoid(x: Expr) -> Expr:
    shifted = relax.op.clip(relax.op.add(x, relax.const(3.0, "float32")), 0.0, 6.0)
    return relax.op.multiply(shifted, relax.const(1.0 / 6.0, "float32"))


def _rope(x: Expr, cosines: Expr, sines: Expr, width: int) -> Expr:
    half = width // 2
    left = relax.op.strided_slice(x, [3], [0], [half])
    right = relax.op.strided_slice(x, [3], [half], [width])
    turned = relax.op.concat([relax.op.negative(right), left], 3)
    return relax.op.add(relax.op.multiply(x, cosines), relax.op.multiply(turned, sines))


def _elementwise(kernel: Kernel, scope: _Scope) -> Expr:
    batch, m, n = kernel.batch, kernel.m, kernel.n
    heads = (0, 2, 1, 3)
    if kernel.op == "rope":
        only_reshaped = min(m, batch) == 1
        x = scope.operand("x", (1, batch, m, n) if only_reshaped else (1, m, batch, n))
        x = x if only_reshaped else relax.op.permute_dims(x, heads)
        return _rope(x, scope.operand("cosines", (m, n)), scope.operand("sines", (m, n)), n)
    if kernel.op == "transpose":
        if batch > 1:
            return relax.op.permute_dims(scope.operand("x", (1, m, batch, n)), heads)
        return relax.op.permute_dims(scope.operand("x", (1, n, m)), (0, 2, 1))
    if kernel.op == "concat":
        if m < 2:
            raise CostError(f"a concat kernel joins rows to at least two, but got {kernel}")
        parts = [scope.operand("x", (1, batch, size, n)) for size in (m - 1, 1)]
        return relax.op.concat(parts, 2)
    x = scope.operand("x", (1, batch, m, n))
    if kernel.op in ("cache_write", "rope_cache_write"):
        new: Expr = scope.operand("new", (1, batch, 1, n))
        if kernel.op == "rope_cache_write":
            new = _rope(new, scope.operand("cosines", (1, n)), scope.operand("sines", (1, n)), n)
        write = scope.operand("write", (m, 1), below=2)
        return relax.op.where(relax.op.astype(write, "bool"), new, x)
    if kernel.op in ("gelu", "hardswish"):
        return relax.op.nn.gelu(x) if kernel.op == "gelu" else _hardswish(x)
    combine = relax.op.add if kernel.op == "add" else relax.op.multiply
    others = [scope.operand("y", (1, batch, m, n)) for _ in range(kernel.k - 1)]
    for other in others or [relax.const(0.5, "float32")]:
        x = combine(x, other)
    return x


def _gather(kernel: Kernel, scope: _Scope) -> Expr:
    _only_fp32(kernel)
    table = scope.operand("table", (kernel.k, kernel.n))
    return relax.op.take(table, scope.operand("ids", (kernel.m,), own=True, below=kernel.k), axis=0, mode="clip")


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

_UNARY_EPILOGUES: dict[str, Callable[[Expr], Expr]] = {
    "gelu": relax.op.nn.gelu,
    "silu": relax.op.nn.silu,
    "relu": relax.op.nn.relu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
}
_BINARY_EPILOGUES: dict[str, Callable[[Expr, Expr], Expr]] = {
    "bias": relax.op.add,
    "residual": relax.op.add,
    "mask": relax.op.add,
    "positions": relax.op.add,
    "multiply": relax.op.multiply,
}


def _epilogue(name: str, x: Expr, shape: Shape, scope: _Scope) -> Expr:
    if name in _UNARY_EPILOGUES:
        return _UNARY_EPILOGUES[name](x)
    if name not in _BINARY_EPILOGUES:
        known = ", ".join(sorted((*_UNARY_EPILOGUES, *_BINARY_EPILOGUES)))
        raise CostError(f"no schedule for epilogue {name!r}; known: {known}")
    own = name in ("bias", "positions")
    size = {"bias": shape[-1:], "mask": (1, shape[-1])}.get(name, shape)
    return _BINARY_EPILOGUES[name](x, scope.operand(name, size, own=own))


def fused_kernel(kernel: Kernel, target: Target) -> tuple[PrimFunc, tuple[Operand, ...], Shape]:
    """One call of a kernel, through the passes that a whole program goes through: (function, operands, output)."""
    if kernel.kind not in _KINDS:
        raise CostError(f"no schedule for kernel kind {kernel.kind!r}; known: {', '.join(sorted(_KINDS))}")
    builder = relax.BlockBuilder()
    scope = _Scope(builder, target)
    with builder.function("main"):
        with builder.dataflow():
            out = builder.emit(_KINDS[kernel.kind](kernel, scope))
            shape = tuple(int(size) for size in out.ty.shape)
            for name in kernel.epilogue:
                out = builder.emit(_epilogue(name, out, shape, scope))
            output = builder.emit_output(out)
        builder.emit_func_output(output, scope.variables)
    module = fuse(builder.get(), target)
    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    calls = [binding.value for binding in bindings if isinstance(binding.value, relax.Call)]
    names = [call.args[0].name_hint for call in calls if isinstance(call.args[0], GlobalVar)]
    if len(calls) != 1 or len(names) != 1:
        raise CostError(f"a kernel must fuse into one function, but {kernel} gives {', '.join(names) or 'a reshape'}")
    by_name = {operand.name: operand for operand in scope.operands}
    operands = tuple(by_name[argument.name] for argument in calls[0].args[1])
    return schedule_function(module[names[0]], machine_of(target)), operands, shape


def chain_module(kernels: Sequence[tuple[Kernel, int]], target: Mapping[str, object]) -> tuple[IRModule, list[Chain]]:
    """One module with a function `chain<i>` for each (kernel, calls), lowered as far as memory planning."""
    described = tvm_target(target)
    builder = relax.BlockBuilder()
    chains = []
    for index, (kernel, calls) in enumerate(kernels):
        function, operands, shape = fused_kernel(kernel, described)
        variable = builder.add_func(function.without_attr("global_symbol"), f"kernel{index}")
        chain = Chain(kernel, operands, calls, shape)
        _write_chain(builder, f"chain{index}", variable, chain)
        chains.append(chain)
    return builder.get(), chains


def _write_chain(builder: relax.BlockBuilder, name: str, kernel: GlobalVar, chain: Chain) -> None:
    """Write the calls as they stand in a program behind CallTIRRewrite, where nothing removes a call any more."""
    # Untyped, because a program checks the types of its inputs at every run, and those of a model are constants.
    shared = {op.name: relax.Var(op.name, relax.ObjectType()) for op in chain.operands if not op.own}
    own = [
        {op.name: relax.Var(f"{op.name}_{call}", relax.ObjectType()) for op in chain.operands if op.own}
        for call in range(chain.calls)
    ]
    parameters = [*shared.values(), *(variable for variables in own for variable in variables.values())]
    with builder.function(name, parameters, pure=False):
        for variables in own:
            shape = relax.ShapeExpr(chain.output)
            out = builder.emit(relax.op.builtin.alloc_tensor(shape, "float32", 0))
            arguments = [(shared | variables)[operand.name] for operand in chain.operands]
            called = relax.ExternFunc(kernel.name_hint)  # a call by name takes untyped operands
            builder.emit(relax.Call(called, [*arguments, out], None, [relax.TupleType([])]))
        builder.emit_func_output(out)


def kernel_module(kernel: Kernel, target: Mapping[str, object], calls: int) -> tuple[Any, Chain]:
    """Compile a program `chain0` that calls a kernel `calls` times in a row: (executable, what it takes)."""
    module, (chain,) = chain_module([(kernel, calls)], target)
    return build(module, tvm_target(target)), chain
