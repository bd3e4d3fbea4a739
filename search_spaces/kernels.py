"""The kernel vocabulary: what one tensor operation is after fusion, and how much work it does.

A kernel is what a compiler emits for one fused group: a *core* operation (`kind`) and the elementwise
operations fused behind it (`epilogue`). All sizes are per single request (batch of one image).

| kind           | batch        | m              | n                | k                      | window, stride |
|----------------|--------------|----------------|------------------|------------------------|----------------|
| linear         | 1            | rows (tokens)  | output features  | input features         |                |
| scores         | KV heads     | query rows     | key rows         | head width             |                |
| values         | KV heads     | query rows     | head width       | key rows               |                |
| conv           | 1            | output pixels  | output channels  | in channels * window^2 | yes            |
| depthwise_conv | 1            | output pixels  | channels         | window^2               | yes            |
| norm           | 1            | rows           | width            | 1                      |                |
| softmax        | KV heads     | query rows     | key rows         | 1                      |                |
| pooling        | 1            | output pixels  | channels         | inputs per output      |                |
| elementwise    | heads or 1   | rows           | width            | number of inputs       |                |
| gather         | 1            | rows fetched   | width            | rows of the table      |                |

`rope` also splits the heads, `transpose` copies (m, batch, n) to (batch, m, n), `concat` joins rows, `cache_write` puts
one row into a KV cache of m rows (`rope_cache_write` turns it first); the epilogue `mask` adds one row to all rows.
`scores` reads K as stored, (batch, n, k); grouped-query attention stacks the queries of a group in m, so that the bytes
of K and V are counted once. Their `op` is the precision in which a cache holds K and V, if it is not the activations'.
Convolutions are square, with padding window // 2 where stride is smaller than the window and none where both are equal
(a patch embedding).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

#: Weights along k that share a scale in int4.
INT4_GROUP = 32


class Precision(StrEnum):
    """Storage format of a kernel's weights; w8a8 also rounds the activations of linear kernels to bytes."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"
    W8A8 = "w8a8"

    __hash__ = str.__hash__  # caches of kernels hash it millions of times

    @property
    def bytes(self) -> float:
        """Bytes per value, without scales."""
        return _PRECISION_BYTES[self]

    def matrix_bytes(self, columns: int, k: int) -> float:
        """Bytes of weights and scales: fp32 for each column in int8 and w8a8, bf16 for each group of 32 in int4."""
        if self is Precision.INT4:
            return columns * -(-k // INT4_GROUP) * (INT4_GROUP * self.bytes + 2.0)
        scales = 4.0 * columns if self in (Precision.INT8, Precision.W8A8) else 0.0
        return columns * k * self.bytes + scales

    @property
    def activation_bytes(self) -> float:
        """Bytes per activation beside such weights: weight-only quantisation computes in fp32 or wider."""
        return 2.0 if self is Precision.FP16 else 4.0


_PRECISION_BYTES = {
    Precision.FP32: 4.0,
    Precision.FP16: 2.0,
    Precision.INT8: 1.0,
    Precision.INT4: 0.5,
    Precision.W8A8: 1.0,
}


class Phase(StrEnum):
    """A part of a request that is priced on its own."""

    VISION = "vision"
    PROJECTOR = "projector"
    PREFILL = "prefill"
    DECODE = "decode"

    __hash__ = str.__hash__


class KernelKind(StrEnum):
    """The core operation of a kernel."""

    LINEAR = "linear"
    SCORES = "scores"
    VALUES = "values"
    CONV = "conv"
    DEPTHWISE_CONV = "depthwise_conv"
    NORM = "norm"
    SOFTMAX = "softmax"
    POOLING = "pooling"
    ELEMENTWISE = "elementwise"
    GATHER = "gather"

    __hash__ = str.__hash__


#: Kinds whose operations torch's FlopCounterMode counts too: the truth test compares exactly these.
MATRIX_KINDS = frozenset(
    {KernelKind.LINEAR, KernelKind.SCORES, KernelKind.VALUES, KernelKind.CONV, KernelKind.DEPTHWISE_CONV}
)

#: Variants a kind may carry in `op`, with the arithmetic operations per output element (exp, rsqrt, tanh = 1).
OPS_PER_ELEMENT: dict[KernelKind, dict[str, int]] = {
    KernelKind.SCORES: {"": 0, "fp16": 0, "int8": 0, "int4": 0},
    KernelKind.VALUES: {"": 0, "fp16": 0, "int8": 0, "int4": 0},
    KernelKind.NORM: {"layer_norm": 7, "rms_norm": 4},
    KernelKind.SOFTMAX: {"softmax": 4, "causal_softmax": 5},
    KernelKind.POOLING: {"average": 1},
    KernelKind.ELEMENTWISE: {
        "add": 1,
        "multiply": 1,
        "rope": 3,
        "transpose": 0,
        "concat": 0,
        "cache_write": 1,
        "rope_cache_write": 4,
        "gelu": 8,
        "hardswish": 4,
    },
    KernelKind.GATHER: {"embedding": 0},
}

#: Elementwise operations that fuse behind a core operation: operations per output element, whole tensors read.
EPILOGUES: dict[str, tuple[int, int]] = {
    "bias": (1, 0),
    "gelu": (8, 0),
    "silu": (4, 0),
    "relu": (1, 0),
    "hardswish": (4, 0),
    "hardsigmoid": (3, 0),
    "residual": (1, 1),
    "multiply": (1, 1),
    "positions": (1, 1),
    "mask": (1, 0),
}


@cache
def _epilogue(names: tuple[str, ...]) -> tuple[int, int]:
    """(operations per output element, whole tensors read as activations) of an epilogue."""
    return sum(EPILOGUES[name][0] for name in names), sum(EPILOGUES[name][1] for name in names if name != "positions")


@dataclass(frozen=True, slots=True)
class Workload:
    """One request: how many images, text tokens in the prompt and generated tokens."""

    images: int = 1
    prompt_tokens: int = 16
    new_tokens: int = 4

    def __post_init__(self) -> None:
        for name in ("images", "prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} >= 1 must hold, but got {name}={getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One fused tensor operation; hashable, so that it can be a table's key. Fields: see the module's table."""

    kind: KernelKind
    m: int
    n: int
    k: int = 1
    batch: int = 1
    window: int = 1
    stride: int = 1
    op: str = ""
    epilogue: tuple[str, ...] = ()
    precision: Precision = Precision.FP32
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        m, n, k = self.m, self.n, self.k  # spelt out: a search makes hundreds of thousands
        if m < 1 or n < 1 or k < 1 or self.batch < 1 or self.window < 1 or self.stride < 1:
            raise ValueError(f"every size of a kernel must be >= 1, but got {self}")
        known = OPS_PER_ELEMENT.get(self.kind)
        if known is None and self.op:
            raise ValueError(f"a {self.kind} kernel has no variants, but got op={self.op!r}")
        if known is not None and self.op not in known:
            raise ValueError(f"unknown {self.kind} variant {self.op!r}; known: {', '.join(sorted(known))}")
        for name in self.epilogue:
            if name not in EPILOGUES:
                raise ValueError(f"unknown epilogue {name!r}; known: {', '.join(sorted(EPILOGUES))}")
        object.__setattr__(self, "_hash", hash(self._key()))  # a search looks kernels up millions of times

    def _key(self) -> tuple[object, ...]:
        return (
            self.kind,
            self.m,
            self.n,
            self.k,
            self.batch,
            self.window,
            self.stride,
            self.op,
            self.epilogue,
            self.precision,
        )

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        return Kernel, self._key()  # another process hashes strings differently

    @property
    def outputs(self) -> int:
        """Elements written."""
        return self.batch * self.m * self.n

    @property
    def ops(self) -> int:
        """Arithmetic operations, a multiply-add counted as two; epilogue excluded (see `epilogue_ops`)."""
        if self.kind in MATRIX_KINDS:
            return 2 * self.outputs * self.k
        if self.kind is KernelKind.POOLING:
            return self.outputs * self.k
        return self.outputs * OPS_PER_ELEMENT[self.kind][self.op]

    @property
    def epilogue_ops(self) -> int:
        """Arithmetic operations of the fused elementwise part."""
        return self.outputs * _epilogue(self.epilogue)[0]

    @property
    def weights(self) -> int:
        """Parameters read: matrix, filter or table rows, norm scale, bias."""
        if self.kind in (KernelKind.LINEAR, KernelKind.CONV, KernelKind.DEPTHWISE_CONV):
            count = self.n * self.k
        elif self.kind is KernelKind.NORM:
            count = self.n * (2 if self.op == "layer_norm" else 1)
        elif self.kind is KernelKind.GATHER:
            count = self.m * self.n
        else:
            count = 0
        if "bias" in self.epilogue:
            count += self.n
        if "positions" in self.epilogue:
            count += self.m * self.n
        return count

    @property
    def weight_bytes(self) -> float:
        """Bytes of parameters read, at their precision; norms and biases stay at activation precision."""
        quantised = self.kind in (KernelKind.LINEAR, KernelKind.CONV, KernelKind.DEPTHWISE_CONV, KernelKind.GATHER)
        if not quantised:
            return self.weights * self.precision.activation_bytes
        # the scales of a table belong to its rows
        columns, k = (self.m, self.n) if self.kind is KernelKind.GATHER else (self.n, self.k)
        rest = self.weights - columns * k
        return self.precision.matrix_bytes(columns, k) + rest * self.precision.activation_bytes

    @property
    def inputs(self) -> int:
        """Activation elements read, without the epilogue's."""
        if self.kind in (KernelKind.SCORES, KernelKind.VALUES):
            return self.batch * (self.m * self.k + self.n * self.k)
        if self.kind is KernelKind.LINEAR:
            return self.m * self.k
        if self.kind is KernelKind.CONV:
            return self.m * self.stride**2 * (self.k // self.window**2)
        if self.kind is KernelKind.DEPTHWISE_CONV:
            return self.m * self.stride**2 * self.n
        if self.kind in (KernelKind.POOLING, KernelKind.ELEMENTWISE):
            return self.batch * self.m * self.n * self.k
        if self.kind is KernelKind.GATHER:
            return self.m
        return self.outputs

    @property
    def fused_reads(self) -> int:
        """Whole tensors of activations that the epilogue reads."""
        return _epilogue(self.epilogue)[1]

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations read and written, each tensor counted once."""
        size = self.precision.activation_bytes
        if self.kind is KernelKind.LINEAR and self.precision is Precision.W8A8:
            read = self.inputs + self.m * size  # bytes, and a scale for each row
        elif self.kind in (KernelKind.SCORES, KernelKind.VALUES) and self.op:
            rows, width = (self.n, self.k) if self.kind is KernelKind.SCORES else (self.k, self.n)
            read = self.batch * (self.m * self.k * size + Precision(self.op).matrix_bytes(rows, width))
        else:
            read = self.inputs * size
        return read + self.outputs * (1 + self.fused_reads) * size

    @property
    def bytes_moved(self) -> float:
        """Bytes read and written, each tensor counted once."""
        return self.weight_bytes + self.activation_bytes

    @property
    def side(self) -> int:
        """Output height and width in pixels of a spatial kernel; m must be a square."""
        side = math.isqrt(self.m)
        if side * side != self.m:
            raise ValueError(f"m of a spatial kernel must be a square number, but got m={self.m}")
        return side

    def __str__(self) -> str:
        size = f"{self.m}x{self.n}" + (f"x{self.k}" if self.k > 1 else "")
        batch = f"{self.batch}x" if self.batch > 1 else ""
        window = f" w{self.window}/{self.stride}" if self.window > 1 or self.stride > 1 else ""
        tail = "".join(f"+{name}" for name in self.epilogue)
        precision = "" if self.precision is Precision.FP32 else f" {self.precision}"
        return f"{self.op or self.kind} {batch}{size}{window}{tail}{precision}"
