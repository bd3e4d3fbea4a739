"""FBNet's space on CIFAR-100 (arXiv:1812.03443, as in HW-NAS-Bench, arXiv:2103.10584): 22 layers, 9 choices each.

Batch normalisation is folded into the convolutions, as any runtime does. A 1x1 convolution is a matrix product over
pixels; with two groups it is two of half the channels, whose outputs are joined and shuffled. The measured latency of a
network is the sum of its blocks' latencies, each block timed on its own: blocks of equal shape count exactly alike.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from search_spaces import Kernel, KernelKind

DATA = Path(__file__).parents[1] / "data" / "fbnet_raspberry_pi_4.csv.gz"
IMAGE_PX = 32
CLASSES = 100
STEM_CHANNELS = 16
HEAD_CHANNELS = 1504
#: Layers, channels and stride of the first layer of each stage.
STAGES = ((1, 16, 1), (4, 24, 1), (4, 32, 2), (4, 64, 2), (4, 112, 1), (4, 184, 2), (1, 352, 1))
#: Window, expansion and groups of each choice of a layer; None is the identity.
OPERATORS: tuple[tuple[int, int, int] | None, ...] = (
    (3, 1, 1),
    (3, 1, 2),
    (3, 3, 1),
    (3, 6, 1),
    (5, 1, 1),
    (5, 1, 2),
    (5, 3, 1),
    (5, 6, 1),
    None,
)


@dataclass(frozen=True, slots=True)
class FBNet:
    """One network: an index into `OPERATORS` a layer."""

    operators: tuple[int, ...]

    def kernels(self) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one image, and how often each runs."""
        side, channels = IMAGE_PX, STEM_CHANNELS
        yield Kernel(KernelKind.CONV, side**2, channels, 27, window=3, epilogue=("bias", "relu")), 1
        layers = iter(self.operators)
        for depth, wide, first_stride in STAGES:
            for i in range(depth):
                stride = first_stride if i == 0 else 1
                for kernel in block(side, channels, wide, stride, next(layers)):
                    yield kernel, 1
                side, channels = side // stride, wide
        yield _pointwise(side, channels, HEAD_CHANNELS, "bias", "relu"), 1
        yield Kernel(KernelKind.POOLING, 1, HEAD_CHANNELS, side**2, op="average"), 1
        yield Kernel(KernelKind.LINEAR, 1, CLASSES, HEAD_CHANNELS, epilogue=("bias",)), 1


@dataclass(frozen=True, slots=True)
class MeasuredFBNet:
    """A network, what was published of it, and its latency."""

    network: FBNet
    flops: int
    parameters: int
    latency_ms: float


def read() -> list[MeasuredFBNet]:
    """Every measured network."""
    with gzip.open(DATA, "rt", encoding="utf-8", newline="") as file:
        return [
            MeasuredFBNet(
                FBNet(tuple(map(int, row["operators"]))),
                int(row["flops"]),
                int(row["parameters"]),
                float(row["latency_ms"]),
            )
            for row in csv.DictReader(file)
        ]


@cache
def block(side: int, channels: int, wide: int, stride: int, operator: int) -> tuple[Kernel, ...]:
    """Kernels of one layer from `channels` at `side` pixels to `wide` channels."""
    chosen, same = OPERATORS[operator], stride == 1 and channels == wide
    out = side // stride
    if chosen is None:
        return () if same else (_pointwise(out, channels, wide, "bias", "relu"),)
    window, expansion, groups = chosen
    hidden = channels * expansion
    residual = ("residual",) if same else ()
    depthwise = Kernel(
        KernelKind.DEPTHWISE_CONV,
        out**2,
        hidden,
        window**2,
        window=window,
        stride=stride,
        epilogue=("bias", "relu"),
    )
    if groups == 1:
        return (
            _pointwise(side, channels, hidden, "bias", "relu"),
            depthwise,
            _pointwise(out, hidden, wide, "bias", *residual),
        )
    return (
        *(_pointwise(side, channels // groups, hidden // groups, "bias", "relu"),) * groups,
        Kernel(KernelKind.ELEMENTWISE, side**2, hidden // groups, batch=groups, op="transpose"),
        depthwise,
        *(_pointwise(out, hidden // groups, wide // groups, "bias"),) * groups,
        Kernel(KernelKind.ELEMENTWISE, out**2, wide, op="concat", epilogue=residual),
    )


def _pointwise(side: int, inputs: int, outputs: int, *epilogue: str) -> Kernel:
    return Kernel(KernelKind.LINEAR, side**2, outputs, inputs, epilogue=epilogue)
