"""Image encoders as configs: the contract, what the families of square patches share, and vision transformers.

All turn an image (B, 3, image_px, image_px) into tokens (B, grid * grid, width). The hybrid of depthwise and attention
blocks is in hybrid.py, encoders of convolutional stages are in staged.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Protocol

from search_spaces.errors import ConfigError, unknown
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
    tokens: int,
    heads: int,
    head_width: int,
    feed_forward: int,
    precision: Precision,
    gated: bool = False,
    qkv_bias: bool = True,
    key_bias: bool = True,
    turned: bool = False,
) -> tuple[Kernel, ...]:
    """Kernels of one pre-norm encoder block over (tokens, heads * head_width): LayerNorm, GELU or SwiGLU, biases.

    Queries and keys may be `turned` (RoPE), which splits their heads too.
    """
    width = heads * head_width

    def project(bias: bool) -> Kernel:
        return Kernel(KernelKind.LINEAR, tokens, width, width, epilogue=("bias",) if bias else (), precision=precision)

    split = split_heads(tokens, heads, head_width, precision)
    rope = Kernel(KernelKind.ELEMENTWISE, tokens, head_width, batch=heads, op="rope", precision=precision)

    def up(*epilogue: str) -> Kernel:
        return Kernel(KernelKind.LINEAR, tokens, feed_forward, width, epilogue=epilogue, precision=precision)

    return (
        Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision),
        project(qkv_bias),
        project(key_bias),
        project(qkv_bias),
        *((rope, rope, *split) if turned else split * 3),
        Kernel(KernelKind.SCORES, tokens, tokens, head_width, batch=heads, precision=precision),
        Kernel(KernelKind.SOFTMAX, tokens, tokens, batch=heads, op="softmax", precision=precision),
        Kernel(KernelKind.VALUES, tokens, head_width, tokens, batch=heads, precision=precision),
        *join_heads(tokens, heads, head_width, precision),
        Kernel(KernelKind.LINEAR, tokens, width, width, epilogue=("bias", "residual"), precision=precision),
        Kernel(KernelKind.NORM, tokens, width, op="layer_norm", precision=precision),
        *((up("bias"), up("bias", "silu", "multiply")) if gated else (up("bias", "gelu"),)),
        Kernel(KernelKind.LINEAR, tokens, width, feed_forward, epilogue=("bias", "residual"), precision=precision),
    )


class ImageEncoder(Protocol):
    """The contract of encoders: frozen dataclasses of numbers and names."""

    family: ClassVar[str]

    @property
    def image_px(self) -> int:
        """Side of an image."""

    @property
    def grid(self) -> int:
        """Tokens along one side."""

    @property
    def width(self) -> int:
        """Channels of a token."""

    @property
    def tokens(self) -> int:
        """Tokens an image becomes."""

    @property
    def depth(self) -> int:
        """Blocks in a row."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the torch module."""

    @property
    def idle_parameters(self) -> int:
        """Those of them that no image token needs: skipped blocks, a pooling head."""

    @property
    def stored_parameters(self) -> int:
        """Number of parameters as its authors store it: more where training has branches that are fused for use."""

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""

    def build(self) -> nn.Module:
        """The torch module: images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """What the families of square patches share; `feed_forward` is a width, `grid` the tokens along one side."""

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
        if self.image_px < self.grid or self.image_px // self.patch_px != self.grid:
            raise ConfigError(
                "grid must divide image_px, less than a patch may be left over, but got "
                f"image_px={self.image_px}, grid={self.grid}"
            )

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.heads * self.head_width

    @property
    def tokens(self) -> int:
        """Tokens an image becomes."""
        return self.grid * self.grid

    @property
    def idle_parameters(self) -> int:
        """See `ImageEncoder`."""
        return 0

    @property
    def stored_parameters(self) -> int:
        """See `ImageEncoder`."""
        return self.parameters

    @property
    def patch_px(self) -> int:
        """Side of the square that becomes one token; pixels that make no whole square are cut off."""
        return self.image_px // self.grid

    @property
    def attention_depth(self) -> int:
        """Attention blocks; the others are depthwise."""
        return self.depth

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        raise NotImplementedError

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""
        raise NotImplementedError

    def build(self) -> nn.Module:
        """The torch module: images (B, 3, image_px, image_px) -> tokens (B, grid * grid, width)."""
        from search_spaces.modules.vision import VisionEncoder

        return VisionEncoder(self)


def of_patches(encoder: ImageEncoder) -> VisionConfig:
    """The encoder, if it is one of square patches; another raises ConfigError."""
    if not isinstance(encoder, VisionConfig):
        raise ConfigError(f"this is for encoders of square patches (vit, hybrid), but got {encoder.family}")
    return encoder


@dataclass(frozen=True, slots=True)
class Style:
    """How vision transformers of one origin are written.

    `prefix_tokens`: class token and registers. `normed`: a norm before the blocks. `patch_bias`, `qkv_bias`,
    `key_bias`: which of these have one. `positions`: learned, else turned (RoPE). `scaled`: what a block adds has
    learned scales. `gated`: SwiGLU. `last_norm`: behind the blocks. `frames`: images that a patch spans (Qwen2-VL shows
    each twice).
    """

    prefix_tokens: int = 0
    normed: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    positions: bool = True
    scaled: bool = False
    gated: bool = False
    last_norm: bool = True
    frames: int = 1


#: Every style by name. Sources: timm 1.0.31 and transformers 5, the model of that name.
STYLES: dict[str, Style] = {
    "plain": Style(),  # SigLIP, and Moondream's
    "clip": Style(prefix_tokens=1, normed=True, patch_bias=False),
    "deit": Style(prefix_tokens=1),
    "dinov2": Style(prefix_tokens=1, scaled=True),
    "intern": Style(prefix_tokens=1, scaled=True, qkv_bias=False, key_bias=False, last_norm=False),
    "eva": Style(prefix_tokens=1, key_bias=False),
    "eva02": Style(prefix_tokens=1, key_bias=False, gated=True),
    "aimv2": Style(qkv_bias=False, key_bias=False, gated=True),
    "qwen2_vl": Style(patch_bias=False, positions=False, last_norm=False, frames=2),
}


@dataclass(frozen=True, slots=True)
class VisionTransformer(VisionConfig):
    """ViT: patches, positions, attention blocks (arXiv:2010.11929).

    `skipped`: how many of the last of the `depth` blocks are stored, but not run (LLaVA reads the last but one).
    `pooled`: 1 where a pooling head is stored, but not run (SigLIP's multi-head attention pooling).
    """

    family: ClassVar[str] = "vit"

    style: str = "plain"
    skipped: int = 0
    pooled: int = 0

    def __post_init__(self) -> None:
        VisionConfig.__post_init__(self)
        if self.style not in STYLES:
            raise unknown("style of a vision transformer", self.style, STYLES)
        if not 0 <= self.skipped < self.depth or self.pooled not in (0, 1):
            raise ConfigError(f"0 <= skipped < depth and pooled 0 or 1 must hold, but got {self}")

    @property
    def written(self) -> Style:
        """How it is written."""
        return STYLES[self.style]

    @property
    def last_norm(self) -> bool:
        """Whether a norm runs behind the blocks."""
        return self.written.last_norm and not self.skipped

    @property
    def stem_parameters(self) -> int:
        """Filter, bias, prefix tokens, positions, and the norm behind them."""
        style = self.written
        positions = (self.tokens + style.prefix_tokens) * style.positions
        patch = 3 * style.frames * self.patch_px**2 + style.patch_bias
        return self.width * (patch + style.prefix_tokens + positions + 2 * style.normed)

    @property
    def _block_parameters(self) -> int:
        style, width, wide = self.written, self.width, self.feed_forward
        matrices = 3 if style.gated else 2
        feed_forward = matrices * width * wide + (matrices - 1) * wide + width
        attention = 4 * width * width + width * (2 * style.qkv_bias + style.key_bias + 1)
        return attention + feed_forward + 4 * width + 2 * width * style.scaled

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        head = 0
        if self.pooled:  # a query, attention, a norm and a feed-forward
            head = self.width * (4 * self.width + 4 + 1 + 2)
            head += 2 * self.width * self.feed_forward + self.feed_forward + self.width
        last = 2 * self.width * self.written.last_norm
        return self.stem_parameters + self.depth * self._block_parameters + last + head

    @property
    def idle_parameters(self) -> int:
        """Of skipped blocks and all behind them."""
        run = self.stem_parameters + (self.depth - self.skipped) * self._block_parameters
        return self.parameters - run - 2 * self.width * self.last_norm

    def pruned(self, keep: float) -> VisionTransformer:
        """The encoder with this share of each feed-forward's channels, to a multiple of 32."""
        kept = max(32, round(self.feed_forward * keep / 32) * 32)
        return dataclasses.replace(self, feed_forward=min(kept, self.feed_forward))

    def groups(self, precision: Precision) -> Iterator[KernelGroup]:
        """Kernels of one image's encoding, grouped."""
        style, rows = self.written, self.tokens + self.written.prefix_tokens
        yield _vit_ends(self, precision), 1
        block = attention_block(
            rows,
            self.heads,
            self.head_width,
            self.feed_forward,
            precision,
            style.gated,
            style.qkv_bias,
            style.key_bias,
            not style.positions,
        )
        yield block, self.depth - self.skipped


@cache
def _vit_ends(config: VisionTransformer, precision: Precision) -> tuple[Kernel, ...]:
    """Kernels before and behind the blocks."""
    style, tokens, patch = config.written, config.tokens, config.patch_px
    epilogue = ("bias",) * style.patch_bias + ("positions",) * style.positions
    seen = 3 * style.frames * patch * patch
    norm = Kernel(KernelKind.NORM, tokens + style.prefix_tokens, config.width, op="layer_norm", precision=precision)
    found = [
        Kernel(
            KernelKind.CONV,
            tokens,
            config.width,
            seen,
            window=patch,
            stride=patch,
            epilogue=epilogue,
            precision=precision,
        )
    ]
    if style.prefix_tokens:
        rows = tokens + style.prefix_tokens
        found.append(Kernel(KernelKind.ELEMENTWISE, rows, config.width, op="concat", precision=precision))
    return tuple(found + [norm] * (style.normed + config.last_norm))
