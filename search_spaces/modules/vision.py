"""The torch modules of image encoders. B batch, T tokens, D width, H heads, h head width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.hybrid import ConvHybrid
from search_spaces.vision import STYLES, Style, VisionConfig, VisionTransformer

#: Added to the variance by every norm.
EPSILON = 1e-6
PLAIN = STYLES["plain"]


class FeedForward(nn.Module):
    """Linear, GELU, linear with biases over (..., D); or SwiGLU."""

    def __init__(self, width: int, hidden: int, gated: bool = False) -> None:
        super().__init__()
        self.gated = gated
        if gated:
            self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(F.silu(self.gate(x)) * self.up(x) if self.gated else F.gelu(self.up(x)))


class VisionAttention(nn.Module):
    """Full self-attention over (B, T, D). Q, K and V apart: a fused projection would be sliced apart by copies."""

    def __init__(self, heads: int, head_width: int, style: Style = PLAIN) -> None:
        super().__init__()
        self.heads, self.turned = heads, not style.positions
        width = heads * head_width
        biases = (style.qkv_bias, style.key_bias, style.qkv_bias)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for bias in biases)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        if self.turned:
            tables = grid_rotary(math.isqrt(x.shape[1]), q.shape[-1], x.device)
            q, k = rotate(q, tables), rotate(k, tables)
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn (B, H, T, h) by its positions: cosines and sines, each (T, h)."""
    half = x.shape[-1] // 2
    return x * rope[0] + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * rope[1]


def grid_rotary(grid: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (grid * grid, h) of two-dimensional RoPE: half of the channels turn by row, half by column."""
    steps = 10_000.0 ** -(torch.arange(0, head_width // 2, 2, device=device) / (head_width / 2))
    angles = torch.arange(grid, device=device)[:, None] * steps  # (grid, h / 4)
    rows, columns = angles.repeat_interleave(grid, 0), angles.repeat(grid, 1)
    turned = torch.cat([rows, columns, rows, columns], dim=1)  # (grid * grid, h)
    return turned.cos(), turned.sin()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H * h) -> (B, H, T, h)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, h) -> (B, T, H * h)."""
    return x.transpose(1, 2).flatten(2)


class AttentionBlock(nn.Module):
    """Pre-norm attention and feed-forward, both residual, each with learned scales where the style has them."""

    def __init__(self, config: VisionConfig, style: Style = PLAIN) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, EPSILON)
        self.attention = VisionAttention(config.heads, config.head_width, style)
        self.norm2 = nn.LayerNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config.width, config.feed_forward, style.gated)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(config.width)) if style.scaled else None for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y = self.attention(self.norm1(x))
        x = x + (y if self.scale1 is None else y * self.scale1)
        y = self.feed_forward(self.norm2(x))
        return x + (y if self.scale2 is None else y * self.scale2)


class DepthwiseBlock(nn.Module):
    """3x3 depthwise convolution over the token grid, LayerNorm and feed-forward, residual (ConvNeXt's order)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.depthwise = nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width)
        self.norm = nn.LayerNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config.width, config.feed_forward)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D) with T = grid * grid."""
        y = to_tokens(self.depthwise(to_image(x, self.grid)))
        return x + self.feed_forward(self.norm(y))


def to_image(tokens: Tensor, grid: int) -> Tensor:
    """(B, grid * grid, D) -> (B, D, grid, grid)."""
    return tokens.transpose(1, 2).unflatten(2, (grid, grid))


def to_tokens(image: Tensor) -> Tensor:
    """(B, D, grid, grid) -> (B, grid * grid, D)."""
    return image.flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """Stem, positions, blocks and a final norm of either family of square patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        vit = config if isinstance(config, VisionTransformer) else None
        style = vit.written if vit else PLAIN
        self.frames = style.frames
        #: Blocks whose tokens are handed on side by side, the last one last.
        self.levels = 1
        self.stem: nn.Module = nn.Identity()
        channels = 3 * style.frames
        if isinstance(config, ConvHybrid):
            channels = config.stem_width
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.GELU())
        patch = config.patch_px
        self.patches = nn.Conv2d(channels, config.width, patch, patch, bias=style.patch_bias)
        rows = config.tokens + style.prefix_tokens
        self.positions = nn.Parameter(torch.empty(1, rows, config.width).normal_(std=0.02)) if style.positions else None
        prefix = (1, style.prefix_tokens, config.width)
        self.prefix = nn.Parameter(torch.empty(prefix).normal_(std=0.02)) if style.prefix_tokens else None
        self.norm0 = nn.LayerNorm(config.width, EPSILON) if style.normed else None
        depthwise = config.depth - config.attention_depth
        self.blocks = nn.Sequential(
            *(DepthwiseBlock(config) for _ in range(depthwise)),
            *(AttentionBlock(config, style) for _ in range(config.attention_depth)),
        )
        self.norm = nn.LayerNorm(config.width, EPSILON) if style.last_norm else None
        self.run = config.depth - (vit.skipped if vit else 0)
        self.pool = PoolingHead(config) if vit and vit.pooled else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, T, levels * D)."""
        if self.frames > 1:
            images = images.repeat(1, self.frames, 1, 1)
        x = to_tokens(self.patches(self.stem(images)))
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        if self.positions is not None:
            x = x + self.positions
        if self.norm0 is not None:
            x = self.norm0(x)
        handed, step = [], max(1, self.run // self.levels)
        for at in range(self.run):
            x = self.blocks[at](x)
            if (self.run - 1 - at) % step == 0:
                handed.append(x)
        handed = handed[-self.levels :]
        if self.norm is not None and self.run == len(self.blocks):
            handed[-1] = self.norm(x)
        tokens = torch.cat(handed, dim=-1) if self.levels > 1 else handed[-1]
        return tokens if self.prefix is None else tokens[:, self.prefix.shape[1] :]


class PoolingHead(nn.Module):
    """SigLIP's: a query attends to all tokens. Stored with the encoder; image tokens need none of it."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.attention = VisionAttention(config.heads, config.head_width)
        self.norm = nn.LayerNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config.width, config.feed_forward)
