"""Projectors: from vision tokens (B, grid * grid, vision_width) to image tokens (B, tokens, width) of the decoder.

One class a projector; `PROJECTORS` lists them. Structures of ldp and ldpv2 follow MobileVLM
(Meituan-AutoML/MobileVLM@688fdec:mobilevlm/model/vision_projector.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import join_heads, split_heads

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Projector:
    """The contract: every method takes the encoder's grid and width and the decoder's width."""

    kind: ClassVar[str]
    #: By how much each side of the token grid shrinks.
    reduction: ClassVar[int] = 1

    def tokens(self, grid: int) -> int:
        """Image tokens that the decoder sees."""
        if grid % self.reduction:
            raise ConfigError(f"{self.kind} needs a grid divisible by {self.reduction}, but got grid={grid}")
        return (grid // self.reduction) ** 2

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        """Kernels for one image, in order."""
        raise NotImplementedError

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        """Number of parameters."""
        raise NotImplementedError

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        """The torch module: (B, grid * grid, vision_width) -> (B, tokens(grid), width)."""
        raise NotImplementedError


def _linear(m: int, n: int, k: int, precision: Precision, *epilogue: str) -> Kernel:
    return Kernel(KernelKind.LINEAR, m, n, k, epilogue=epilogue, precision=precision)


def _mlp(tokens: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
    yield _linear(tokens, width, vision_width, precision, "bias", "gelu")
    yield _linear(tokens, width, width, precision, "bias")


def _mlp_parameters(vision_width: int, width: int) -> int:
    return vision_width * width + width + width * width + width


@dataclass(frozen=True, slots=True)
class Linear(Projector):
    """One linear layer with bias; every token stays (LLaVA-1)."""

    kind: ClassVar[str] = "linear"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield _linear(grid * grid, width, vision_width, precision, "bias")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return vision_width * width + width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from torch import nn

        return nn.Linear(vision_width, width)


@dataclass(frozen=True, slots=True)
class Mlp(Projector):
    """Linear, GELU, linear; every token stays (LLaVA-1.5's mlp2x_gelu)."""

    kind: ClassVar[str] = "mlp"

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield from _mlp(grid * grid, vision_width, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return _mlp_parameters(vision_width, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.blocks import mlp

        return mlp(vision_width, width)


@dataclass(frozen=True, slots=True)
class PixelShuffle(Projector):
    """Space to depth by 2, then one linear layer without bias (nanoVLM, SmolVLM)."""

    kind: ClassVar[str] = "pixel_shuffle"
    reduction: ClassVar[int] = 2

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens, merged = self.tokens(grid), vision_width * self.reduction**2
        yield Kernel(KernelKind.ELEMENTWISE, tokens, merged, op="transpose", precision=precision)
        yield _linear(tokens, width, merged, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return self.reduction**2 * vision_width * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.blocks import PixelShuffleProjector

        return PixelShuffleProjector(grid, vision_width, width, self.reduction)


@dataclass(frozen=True, slots=True)
class AveragePool(Projector):
    """2x2 average pooling, then linear, GELU, linear (DeCo, arXiv:2405.20985)."""

    kind: ClassVar[str] = "average_pool"
    reduction: ClassVar[int] = 2

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        yield _pooling(self.tokens(grid), vision_width, self.reduction, precision)
        yield from _mlp(self.tokens(grid), vision_width, width, precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return _mlp_parameters(vision_width, width)

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.blocks import AveragePoolProjector

        return AveragePoolProjector(grid, vision_width, width, self.reduction)


def _pooling(tokens: int, width: int, window: int, precision: Precision) -> Kernel:
    return Kernel(
        KernelKind.POOLING, tokens, width, window**2, window=window, stride=window, op="average", precision=precision
    )


@dataclass(frozen=True, slots=True)
class Resampler(Projector):
    """Perceiver resampler of one layer: learned queries attend to tokens and queries (Flamingo, arXiv:2204.14198).

    Tokens are first brought to the decoder's width; heads are at most 64 wide, one query an image token.
    """

    kind: ClassVar[str] = "resampler"
    reduction: ClassVar[int] = 2

    @staticmethod
    def heads(width: int) -> int:
        """Attention heads: the fewest that divide the width and keep a head at most 64 wide."""
        return next(heads for heads in range(1, width + 1) if width % heads == 0 and width // heads <= 64)

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        queries, tokens, heads = self.tokens(grid), grid * grid, self.heads(width)
        keys, head_width = tokens + queries, width // heads
        yield _linear(tokens, width, vision_width, precision, "bias")
        yield Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
        yield Kernel(KernelKind.NORM, queries, width, op="layer_norm", precision=precision)
        yield Kernel(KernelKind.ELEMENTWISE, keys, width, op="concat", precision=precision)
        yield _linear(queries, width, width, precision)
        yield _linear(keys, width, width, precision)
        yield _linear(keys, width, width, precision)
        yield from split_heads(queries, heads, head_width, precision)
        yield from split_heads(keys, heads, head_width, precision) * 2
        yield Kernel(KernelKind.SCORES, queries, keys, head_width, batch=heads, precision=precision)
        yield Kernel(KernelKind.SOFTMAX, queries, keys, batch=heads, op="softmax", precision=precision)
        yield Kernel(KernelKind.VALUES, queries, head_width, keys, batch=heads, precision=precision)
        yield from join_heads(queries, heads, head_width, precision)
        yield _linear(queries, width, width, precision, "residual")
        yield Kernel(KernelKind.NORM, queries, width, op="layer_norm", precision=precision)
        yield _linear(queries, 2 * width, width, precision, "gelu")
        yield _linear(queries, width, 2 * width, precision, "residual")

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        latents = self.tokens(grid) * width
        return vision_width * width + width + latents + 3 * 2 * width + 8 * width * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.blocks import ResamplerProjector

        return ResamplerProjector(self.tokens(grid), vision_width, width, self.heads(width))


@dataclass(frozen=True, slots=True)
class Ldp(Projector):
    """MobileVLM's lightweight downsample projector: mlp, then two depthwise blocks, the second of stride 2."""

    kind: ClassVar[str] = "ldp"
    reduction: ClassVar[int] = 2

    @staticmethod
    def squeeze(width: int) -> int:
        """Width of the squeeze-and-excitation bottleneck: a quarter, rounded to a multiple of 8 as MobileNetV3 does."""
        rounded = max(8, (width // 4 + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * (width / 4) else rounded + 8

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        if grid % self.reduction:
            raise ConfigError(f"ldp needs an even grid, but got grid={grid}")
        yield from _mlp(grid * grid, vision_width, width, precision)
        squeeze = self.squeeze(width)
        for tokens, stride in ((grid * grid, 1), (self.tokens(grid), 2)):
            yield Kernel(KernelKind.DEPTHWISE_CONV, tokens, width, 9, window=3, stride=stride, precision=precision)
            yield Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
            yield Kernel(KernelKind.ELEMENTWISE, tokens, width, op="hardswish", precision=precision)
            yield Kernel(KernelKind.POOLING, 1, width, tokens, op="average", precision=precision)
            yield _linear(1, squeeze, width, precision, "bias", "relu")
            yield _linear(1, width, squeeze, precision, "bias", "hardsigmoid")
            yield Kernel(KernelKind.ELEMENTWISE, tokens, width, op="multiply", precision=precision)
            yield _linear(tokens, width, width, precision)
            yield Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
            if stride == 1:
                yield Kernel(KernelKind.ELEMENTWISE, tokens, width, 2, op="add", precision=precision)

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        squeeze = self.squeeze(width)
        block = 9 * width + 2 * width + 2 * width * squeeze + squeeze + width + width * width + 2 * width
        return _mlp_parameters(vision_width, width) + 2 * block

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.blocks import LdpProjector

        return LdpProjector(grid, vision_width, width, self.squeeze(width))


@dataclass(frozen=True, slots=True)
class LdpV2(Projector):
    """MobileVLM V2's projector: mlp, 2x2 average pooling, a 3x3 depthwise convolution added to its input."""

    kind: ClassVar[str] = "ldpv2"
    reduction: ClassVar[int] = 2

    def kernels(self, grid: int, vision_width: int, width: int, precision: Precision) -> Iterator[Kernel]:
        tokens = self.tokens(grid)
        yield from _mlp(grid * grid, vision_width, width, precision)
        yield _pooling(tokens, width, self.reduction, precision)
        yield Kernel(
            KernelKind.DEPTHWISE_CONV, tokens, width, 9, window=3, epilogue=("bias", "residual"), precision=precision
        )

    def parameters(self, grid: int, vision_width: int, width: int) -> int:
        return _mlp_parameters(vision_width, width) + 10 * width

    def build(self, grid: int, vision_width: int, width: int) -> nn.Module:
        from search_spaces.blocks import LdpV2Projector

        return LdpV2Projector(grid, vision_width, width, self.reduction)


#: Every projector by name.
PROJECTORS: dict[str, type[Projector]] = {
    cls.kind: cls for cls in (Linear, Mlp, PixelShuffle, AveragePool, Resampler, Ldp, LdpV2)
}
