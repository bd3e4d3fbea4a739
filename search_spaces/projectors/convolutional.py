"""Projectors with convolutions over the token grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.projectors.contract import (
    Projector,
    Shrinking,
    linear,
    mlp,
    mlp_parameters,
    norm,
    pooling,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Ldp(Projector):
    """MobileVLM's lightweight downsample projector: mlp, then two depthwise blocks, the second of stride 2.

    Meituan-AutoML/MobileVLM@688fdec:mobilevlm/model/vision_projector.py, as ldpv2.
    """

    kind: ClassVar[str] = "ldp"

    @property
    def factor(self) -> int:
        """By how much each side of the token grid shrinks."""
        return 2

    @staticmethod
    def squeeze(width: int) -> int:
        """Width of the squeeze-and-excitation bottleneck: a quarter, rounded to a multiple of 8 as MobileNetV3 does."""
        rounded = max(8, (width // 4 + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * (width / 4) else rounded + 8

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        if grid % 2:
            raise ConfigError(f"ldp needs an even grid, but got grid={grid}")
        yield from mlp(grid * grid, vision_width, width, precision)
        squeeze = self.squeeze(width)
        for tokens, stride in ((grid * grid, 1), (self.tokens(grid), 2)):
            yield Kernel(KernelKind.DEPTHWISE_CONV, tokens, width, 9, window=3, stride=stride, precision=precision)
            yield Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
            yield Kernel(KernelKind.ELEMENTWISE, tokens, width, op="hardswish", precision=precision)
            yield Kernel(KernelKind.POOLING, 1, width, tokens, op="average", precision=precision)
            yield linear(1, squeeze, width, precision, "bias", "relu")
            yield linear(1, width, squeeze, precision, "bias", "hardsigmoid")
            yield Kernel(KernelKind.ELEMENTWISE, tokens, width, op="multiply", precision=precision)
            yield linear(tokens, width, width, precision)
            yield Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
            if stride == 1:
                yield Kernel(KernelKind.ELEMENTWISE, tokens, width, 2, op="add", precision=precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        squeeze = self.squeeze(width)
        block = 9 * width + 2 * width + 2 * width * squeeze + squeeze + width + width * width + 2 * width
        return mlp_parameters(vision_width, width) + 2 * block

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import LdpProjector

        return LdpProjector(grid, vision_width, width, self.squeeze(width))


@dataclass(frozen=True, slots=True)
class LdpV2(Shrinking):
    """MobileVLM V2's projector: mlp, average pooling, a 3x3 depthwise convolution added to its input."""

    kind: ClassVar[str] = "ldpv2"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens = self.tokens(grid)
        yield from mlp(grid * grid, vision_width, width, precision)
        yield pooling(tokens, width, self.reduction, precision)
        yield Kernel(
            KernelKind.DEPTHWISE_CONV, tokens, width, 9, window=3, epilogue=("bias", "residual"), precision=precision
        )

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return mlp_parameters(vision_width, width) + 10 * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import LdpV2Projector

        return LdpV2Projector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class CAbstractor(Shrinking):
    """Honeybee's: bottleneck blocks, average pooling, as many blocks, linear, SiLU, linear.

    khanrc/honeybee@68a8d84: projectors.py, c-abs.yaml (three blocks each, 1,024 channels); its positions are left out.
    """

    kind: ClassVar[str] = "c_abstractor"

    hidden: int = 1024
    blocks: int = 3

    def _block(self, tokens: int, precision: Precision) -> Iterator[Kernel]:
        width, squeeze = self.hidden, self.hidden // 4

        def silu() -> Kernel:
            return Kernel(KernelKind.ELEMENTWISE, tokens, width, op="hardswish", precision=precision)

        yield linear(tokens, width, width, precision)
        yield norm(tokens, width, precision)
        yield silu()
        yield Kernel(KernelKind.DEPTHWISE_CONV, tokens, width, 9, window=3, precision=precision)
        yield norm(tokens, width, precision)
        yield silu()
        yield Kernel(KernelKind.POOLING, 1, width, tokens, op="average", precision=precision)
        yield linear(1, squeeze, width, precision, "bias", "silu")
        yield linear(1, width, squeeze, precision, "bias", "hardsigmoid")
        yield Kernel(KernelKind.ELEMENTWISE, tokens, width, op="multiply", precision=precision)
        yield linear(tokens, width, width, precision)
        yield norm(tokens, width, precision)
        yield Kernel(KernelKind.ELEMENTWISE, tokens, width, 2, op="add", precision=precision)

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        rows, tokens = grid * grid, self.tokens(grid)
        if vision_width != self.hidden:
            yield linear(rows, self.hidden, vision_width, precision, "bias")
        for _ in range(self.blocks):
            yield from self._block(rows, precision)
        yield pooling(tokens, self.hidden, self.reduction, precision)
        for _ in range(self.blocks):
            yield from self._block(tokens, precision)
        yield linear(tokens, width, self.hidden, precision, "bias", "silu")
        yield linear(tokens, width, width, precision, "bias")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        hidden, squeeze = self.hidden, self.hidden // 4
        block = 2 * hidden * hidden + 9 * hidden + 6 * hidden + 2 * hidden * squeeze + squeeze + hidden
        first = 0 if vision_width == hidden else vision_width * hidden + hidden
        return first + 2 * self.blocks * block + mlp_parameters(hidden, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.modules.projectors import CAbstractorProjector

        return CAbstractorProjector(grid, vision_width, width, self)
