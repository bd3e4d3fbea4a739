"""The torch modules that configs build. B batch, T tokens, D width, H heads, h head width, G queries per KV head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.language import LanguageConfig
from search_spaces.vision import ConvHybrid, VisionConfig

#: Added to the variance by every norm.
EPSILON = 1e-6
#: Base of the rotary frequencies (arXiv:2104.09864).
ROPE_BASE = 10_000.0


class FeedForward(nn.Module):
    """Linear, GELU, linear with biases over (..., D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(x)))


class VisionAttention(nn.Module):
    """Full self-attention over (B, T, D). Q, K and V apart: a fused projection would be sliced apart by copies."""

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        width = heads * head_width
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H * h) -> (B, H, T, h)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, h) -> (B, T, H * h)."""
    return x.transpose(1, 2).flatten(2)


class AttentionBlock(nn.Module):
    """Pre-norm attention and feed-forward, both residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, EPSILON)
        self.attention = VisionAttention(config.heads, config.head_width)
        self.norm2 = nn.LayerNorm(config.width, EPSILON)
        self.feed_forward = FeedForward(config.width, config.feed_forward)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


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
    """Stem, positions, blocks and a final norm of either encoder family."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.stem: nn.Module = nn.Identity()
        channels = 3
        if isinstance(config, ConvHybrid):
            channels = config.stem_width
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.GELU())
        self.patches = nn.Conv2d(channels, config.width, config.patch_px, config.patch_px)
        self.positions = nn.Parameter(torch.empty(1, config.tokens, config.width).normal_(std=0.02))
        depthwise = config.depth - config.attention_depth
        self.blocks = nn.Sequential(
            *(DepthwiseBlock(config) for _ in range(depthwise)),
            *(AttentionBlock(config) for _ in range(config.attention_depth)),
        )
        self.norm = nn.LayerNorm(config.width, EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, T, D)."""
        x = to_tokens(self.patches(self.stem(images))) + self.positions
        return self.norm(self.blocks(x))


def mlp(vision_width: int, width: int) -> nn.Sequential:
    """LLaVA-1.5's projector: linear, GELU, linear."""
    return nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))


class PixelShuffleProjector(nn.Module):
    """Space to depth by `factor`, then a linear layer without bias."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.linear = nn.Linear(vision_width * factor**2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        batch, _, width = x.shape
        side, factor = self.grid // self.factor, self.factor
        x = x.view(batch, side, factor, side, factor, width).transpose(2, 3)  # (B, side, side, f, f, Dv)
        return self.linear(x.reshape(batch, side * side, factor * factor * width))


class AveragePoolProjector(nn.Module):
    """Average pooling over the token grid, then linear, GELU, linear."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.mlp = mlp(vision_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        return self.mlp(to_tokens(F.avg_pool2d(to_image(x, self.grid), self.factor)))


class ResamplerProjector(nn.Module):
    """Learned queries attend to vision tokens and to themselves, then a feed-forward of twice the width."""

    def __init__(self, queries: int, vision_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.input = nn.Linear(vision_width, width)
        self.queries = nn.Parameter(torch.empty(1, queries, width).normal_(std=0.02))
        self.norm_tokens = nn.LayerNorm(width, EPSILON)
        self.norm_queries = nn.LayerNorm(width, EPSILON)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, EPSILON)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, Dv) -> (B, queries, D)."""
        batch = x.shape[0]
        latents = self.queries.expand(batch, -1, -1)
        queries = self.norm_queries(latents)
        keys = torch.cat([self.norm_tokens(self.input(x)), queries], dim=1)  # (B, T + Q, D)
        q, k, v = (split_heads(y, self.heads) for y in (self.q(queries), self.k(keys), self.v(keys)))
        latents = latents + self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))
        return latents + self.down(F.gelu(self.up(self.norm(latents))))


class LdpBlock(nn.Module):
    """Depthwise 3x3, norm, Hardswish, squeeze-and-excitation, pointwise, norm over (B, T, D); residual at stride 1."""

    def __init__(self, grid: int, width: int, squeeze: int, stride: int) -> None:
        super().__init__()
        self.grid, self.stride = grid, stride
        self.depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.squeeze = nn.Linear(width, squeeze)
        self.excite = nn.Linear(squeeze, width)
        self.pointwise = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, D) -> (B, (grid / stride)^2, D)."""
        y = to_tokens(self.depthwise(to_image(x, self.grid)))
        y = F.hardswish(self.norm1(y))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean(1, keepdim=True)))))  # (B, 1, D)
        y = self.norm2(self.pointwise(y * gate))
        return x + y if self.stride == 1 else y


class LdpProjector(nn.Module):
    """MobileVLM's LDP: mlp, a block of stride 1, a block of stride 2."""

    def __init__(self, grid: int, vision_width: int, width: int, squeeze: int) -> None:
        super().__init__()
        self.mlp = mlp(vision_width, width)
        self.blocks = nn.Sequential(LdpBlock(grid, width, squeeze, 1), LdpBlock(grid, width, squeeze, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, grid * grid / 4, D)."""
        return self.blocks(self.mlp(x))


class LdpV2Projector(nn.Module):
    """MobileVLM V2's LDPv2: mlp, average pooling, depthwise 3x3 added to its input."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.mlp = mlp(vision_width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        y = F.avg_pool2d(to_image(self.mlp(x), self.grid), self.factor)
        return to_tokens(self.depthwise(y) + y)


#: Cosines and sines, each (T, h).
Rope = tuple[Tensor, Tensor]


def rotary(positions: Tensor, head_width: int) -> Rope:
    """Cosines and sines of RoPE at positions (T,); each half of h has the same frequencies."""
    steps = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * ROPE_BASE ** (-steps / head_width)  # (T, h / 2)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def causal_mask(tokens: int, group: int) -> Tensor:
    """Additive mask (G * T, T) for queries stacked group by group: 0 where a row may look, -inf elsewhere."""
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)
    return mask.repeat(group, 1)


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn (B, H, T, h) by its positions."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * rope[0] + turned * rope[1]


class DecoderAttention(nn.Module):
    """Grouped-query attention with RoPE; the queries of a group are stacked in the rows of one product per KV head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.kv_heads, self.group, self.head_width = config.kv_heads, config.queries_per_kv_head, config.head_width
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, config.kv_width, bias=False)
        self.v = nn.Linear(config.width, config.kv_width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D), mask (G * T, keys) -> (B, T, D), K and V (B, KV heads, keys, h).

        `cache` is K and V of all keys and a boolean (keys, 1) that marks the row to write; without it the keys are
        the new rows.
        """
        batch, tokens, _ = x.shape
        kv, group, head = self.kv_heads, self.group, self.head_width
        q = _rotate(split_heads(self.q(x), kv * group), rope).reshape(batch, kv, group * tokens, head)
        k = _rotate(split_heads(self.k(x), kv), rope)  # (B, KV, T, h)
        v = split_heads(self.v(x), kv)
        if cache is not None:
            past_k, past_v, write = cache
            k, v = torch.where(write, k, past_k), torch.where(write, v, past_v)  # (B, KV, keys, h)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, KV, G * T, h)
        return self.out(join_heads(y.reshape(batch, kv * group, tokens, head))), k, v


class DecoderBlock(nn.Module):
    """RMSNorm, grouped-query attention, RMSNorm, SwiGLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, EPSILON)
        self.attention = DecoderAttention(config)
        self.norm2 = nn.RMSNorm(config.width, EPSILON)
        self.gate = nn.Linear(config.width, config.feed_forward, bias=False)
        self.up = nn.Linear(config.width, config.feed_forward, bias=False)
        self.down = nn.Linear(config.feed_forward, config.width, bias=False)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `DecoderAttention.forward`."""
        attended, k, v = self.attention(self.norm1(x), rope, mask, cache)
        x = x + attended
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), k, v


class LanguageDecoder(nn.Module):
    """Tied embedding, blocks and a final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # wider ones learn more slowly
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, EPSILON)

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, vocabulary)."""
        return F.linear(self.norm(x), self.embedding.weight)
