"""An image encoder of depthwise and attention blocks behind a convolutional stem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

from search_spaces.kernels import Kernel, KernelKind, Precision
from search_spaces.vision import KernelGroup, VisionConfig, attention_block


@cache
def stem(image_px: int, channels: int, grid: int, width: int, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels around the blocks: a 3x3 convolution, pixels to tokens with positions; the last norm."""
    patch, tokens = image_px // grid, grid * grid
    return (
        Kernel(KernelKind.CONV, image_px**2, channels, 27, window=3, epilogue=("bias", "gelu"), precision=precision),
        Kernel(
            KernelKind.CONV,
            tokens,
            width,
            channels * patch * patch,
            window=patch,
            stride=patch,
            epilogue=("bias", "positions"),
            precision=precision,
        ),
        Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision),
    )


@cache
def depthwise_block(tokens: int, width: int, feed_forward: int, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels of one depthwise block in ConvNeXt's order: 3x3 depthwise, LayerNorm, pointwise up, GELU, down."""
    return (
        Kernel(KernelKind.DEPTHWISE_CONV, tokens, width, 9, window=3, epilogue=("bias",), precision=precision),
        Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision),
        Kernel(KernelKind.LINEAR, tokens, feed_forward, width, epilogue=("bias", "gelu"), precision=precision),
        Kernel(KernelKind.LINEAR, tokens, width, feed_forward, epilogue=("bias", "residual"), precision=precision),
    )


@dataclass(frozen=True, slots=True)
class ConvHybrid(VisionConfig):
    """Convolutional stem, then depthwise blocks (the first half, rounded up), then attention blocks."""

    family: ClassVar[str] = "hybrid"

    #: Channels of the full-resolution 3x3 convolution before patches are taken.
    stem_width: int = field(default=16, metadata={"told": True})

    @property
    def attention_depth(self) -> int:
        """Attention blocks: the second half of the depth, rounded down."""
        return self.depth // 2

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""
        yield stem(self.image_px, self.stem_width, self.grid, self.width, precision), 1
        block = depthwise_block(self.tokens, self.width, self.feed_forward, precision)
        yield block, self.depth - self.attention_depth
        if self.attention_depth:
            block = attention_block(self.tokens, self.heads, self.head_width, self.feed_forward, precision)
            yield block, self.attention_depth

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        width, wide = self.width, self.feed_forward
        before = self.stem_width * 28 + width * (self.stem_width * self.patch_px**2 + 1 + self.tokens)
        feed_forward = 2 * width * wide + wide + width
        attention = 4 * width * width + 4 * width + 4 * width + feed_forward
        depthwise = 9 * width + width + 2 * width + feed_forward
        blocks = self.attention_depth * attention + (self.depth - self.attention_depth) * depthwise
        return before + blocks + 2 * width
