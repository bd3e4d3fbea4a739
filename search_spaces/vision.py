"""Image encoders as configs: a plain ViT and a hybrid of depthwise convolution and attention blocks.

Both turn an image (B, 3, image_px, image_px) into tokens (B, grid * grid, width).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from search_spaces.errors import ConfigError
from search_spaces.kernels import Kernel, KernelKind, Precision

if TYPE_CHECKING:
    from torch import nn

#: Kernels that always run together, and how often.
KernelGroup = tuple[tuple[Kernel, ...], int]


def split_heads(tokens: int, heads: int, head_width: int, precision: Precision) -> tuple[Kernel, ...]:
    """The copy from (tokens, heads, head_width) to (heads, tokens, head_width); none where it is a mere view."""
    if tokens == 1 or heads == 1:
        return ()
    return (Kernel(KernelKind.ELEMENTWISE, tokens, head_width, batch=heads, op="transpose", precision=precision),)


def join_heads(tokens: int, heads: int, head_width: int, precision: Precision) -> tuple[Kernel, ...]:
    """The copy from (heads, tokens, head_width) to (tokens, heads, head_width); none where it is a mere view."""
    return split_heads(heads, tokens, head_width, precision)


@cache
def attention_block(
    tokens: int, heads: int, head_width: int, feed_forward: int, precision: Precision, gated: bool = False
) -> tuple[Kernel, ...]:
    """Kernels of one pre-norm encoder block over (tokens, heads * head_width): LayerNorm, GELU or SwiGLU, biases."""
    width = heads * head_width
    project = Kernel(KernelKind.LINEAR, tokens, width, width, epilogue=("bias",), precision=precision)

    def up(*epilogue: str) -> Kernel:
        return Kernel(KernelKind.LINEAR, tokens, feed_forward, width, epilogue=epilogue, precision=precision)

    return (
        Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision),
        *(project,) * 3,
        *split_heads(tokens, heads, head_width, precision) * 3,
        Kernel(KernelKind.SCORES, tokens, tokens, head_width, batch=heads, precision=precision),
        Kernel(KernelKind.SOFTMAX, tokens, tokens, batch=heads, op="softmax", precision=precision),
        Kernel(KernelKind.VALUES, tokens, head_width, tokens, batch=heads, precision=precision),
        *join_heads(tokens, heads, head_width, precision),
        Kernel(KernelKind.LINEAR, tokens, width, width, epilogue=("bias", "residual"), precision=precision),
        Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision),
        *((up("bias"), up("bias", "silu", "multiply")) if gated else (up("bias", "gelu"),)),
        Kernel(KernelKind.LINEAR, tokens, width, feed_forward, epilogue=("bias", "residual"), precision=precision),
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


@cache
def stem(image_px: int, channels: int, grid: int, width: int, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels around the blocks: pixels to tokens with positions (behind a 3x3 convolution if channels > 3), norm."""
    patch, tokens = image_px // grid, grid * grid
    first = Kernel(KernelKind.CONV, image_px**2, channels, 27, window=3, epilogue=("bias", "gelu"), precision=precision)
    patches = Kernel(
        KernelKind.CONV,
        tokens,
        width,
        channels * patch * patch,
        window=patch,
        stride=patch,
        epilogue=("bias", "positions"),
        precision=precision,
    )
    last = Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision)
    return (patches, last) if channels == 3 else (first, patches, last)


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """What both encoder families share; `feed_forward` is a width, `grid` the tokens along one side."""

    family: ClassVar[str]

    image_px: int
    grid: int
    depth: int
    heads: int
    head_width: int
    feed_forward: int

    def __post_init__(self) -> None:
        if min(self.image_px, self.grid, self.depth, self.heads, self.head_width, self.feed_forward) < 1:
            raise ConfigError(f"every field of an encoder must be >= 1, but got {self}")
        if self.image_px % self.grid:
            raise ConfigError(f"grid must divide image_px, but got image_px={self.image_px}, grid={self.grid}")

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_width

    @property
    def tokens(self) -> int:
        """Tokens an image becomes."""
        return self.grid * self.grid

    @property
    def patch_px(self) -> int:
        """Side of the square that becomes one token."""
        return self.image_px // self.grid

    @property
    def attention_depth(self) -> int:
        """Attention blocks; the others are depthwise."""
        return self.depth

    @property
    def patch_channels(self) -> int:
        """Channels of the picture from which patches are taken."""
        return 3

    @property
    def stem_parameters(self) -> int:
        """Parameters from pixels to tokens, positions included."""
        raise NotImplementedError

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""
        yield stem(self.image_px, self.patch_channels, self.grid, self.width, precision), 1
        if self.depth > self.attention_depth:
            block = depthwise_block(self.tokens, self.width, self.feed_forward, precision)
            yield block, self.depth - self.attention_depth
        if self.attention_depth:
            block = attention_block(self.tokens, self.heads, self.head_width, self.feed_forward, precision)
            yield block, self.attention_depth

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        width, wide = self.width, self.feed_forward
        feed_forward = 2 * width * wide + wide + width
        attention = 4 * width * width + 4 * width + 4 * width + feed_forward
        depthwise = 9 * width + width + 2 * width + feed_forward
        blocks = self.attention_depth * attention + (self.depth - self.attention_depth) * depthwise
        return self.stem_parameters + blocks + 2 * width

    def build(self) -> nn.Module:
        """The torch module: images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""
        from search_spaces.blocks import VisionEncoder

        return VisionEncoder(self)


@dataclass(frozen=True, slots=True)
class VisionTransformer(VisionConfig):
    """ViT: patch embedding, learned positions, `depth` attention blocks (arXiv:2010.11929)."""

    family: ClassVar[str] = "vit"

    @property
    def stem_parameters(self) -> int:
        """Filter, bias and positions."""
        return self.width * (3 * self.patch_px**2 + 1 + self.tokens)


@dataclass(frozen=True, slots=True)
class ConvHybrid(VisionConfig):
    """Convolutional stem, then depthwise blocks (the first half, rounded up), then attention blocks."""

    family: ClassVar[str] = "hybrid"

    #: Channels of the full-resolution 3x3 convolution before patches are taken.
    stem_width: int = 16

    @property
    def attention_depth(self) -> int:
        """Attention blocks: the second half of the depth, rounded down."""
        return self.depth // 2

    @property
    def patch_channels(self) -> int:
        """Channels of the full-resolution convolution."""
        return self.stem_width

    @property
    def stem_parameters(self) -> int:
        """Both convolutions and the positions."""
        patch = self.width * (self.stem_width * self.patch_px**2 + 1 + self.tokens)
        return self.stem_width * 28 + patch


#: Every encoder family by name.
ENCODERS: dict[str, type[VisionConfig]] = {cls.family: cls for cls in (VisionTransformer, ConvHybrid)}
