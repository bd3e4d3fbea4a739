"""The torch modules of projectors. B batch, T tokens, D width of the decoder, Dv of the encoder, Q queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.modules.vision import EPSILON, join_heads, split_heads, to_image, to_tokens

if TYPE_CHECKING:
    from search_spaces.projectors import CAbstractor, QFormer


def mlp(vision_width: int, width: int) -> nn.Sequential:
    """LLaVA-1.5's projector: linear, GELU, linear."""
    return nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))


def space_to_depth(x: Tensor, grid: int, factor: int) -> Tensor:
    """(B, grid * grid, Dv) -> (B, (grid / factor)^2, factor^2 * Dv)."""
    batch, _, width = x.shape
    side = grid // factor
    x = x.view(batch, side, factor, side, factor, width).transpose(2, 3)  # (B, side, side, f, f, Dv)
    return x.reshape(batch, side * side, factor * factor * width)


class PixelShuffleProjector(nn.Module):
    """Space to depth by `factor`, then a linear layer without bias."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.linear = nn.Linear(vision_width * factor**2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        return self.linear(space_to_depth(x, self.grid, self.factor))


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


class ShuffledMlpProjector(nn.Module):
    """Space to depth, LayerNorm, linear, GELU, linear."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        self.norm = nn.LayerNorm(vision_width * factor**2, EPSILON)
        self.mlp = mlp(vision_width * factor**2, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        return self.mlp(self.norm(space_to_depth(x, self.grid, self.factor)))


class PatchMergerProjector(nn.Module):
    """LayerNorm, space to depth, linear of equal width, GELU, linear."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor
        merged = vision_width * factor**2
        self.norm = nn.LayerNorm(vision_width, EPSILON)
        self.up, self.down = nn.Linear(merged, merged), nn.Linear(merged, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        return self.down(F.gelu(self.up(space_to_depth(self.norm(x), self.grid, self.factor))))


class XdpProjector(nn.Module):
    """`joined` tokens that follow each other side by side, linear, Mish, linear."""

    def __init__(self, vision_width: int, width: int, joined: int) -> None:
        super().__init__()
        self.joined = joined
        self.up, self.down = nn.Linear(vision_width * joined, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, Dv) -> (B, T / joined, D)."""
        batch, tokens, width = x.shape
        return self.down(F.mish(self.up(x.reshape(batch, tokens // self.joined, self.joined * width))))


class CropMlpProjector(nn.Module):
    """Tokens of the whole image beside the mean of those of its crops, linear, GELU, linear."""

    def __init__(self, vision_width: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2 * vision_width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(tiles, T, Dv), the whole image first -> (1, T, D)."""
        crops = x[1:].mean(0, keepdim=True) if len(x) > 1 else x
        return self.down(F.gelu(self.up(torch.cat([x[:1], crops], dim=-1))))


class CAbstractorBlock(nn.Module):
    """Pointwise, depthwise 3x3, squeeze-and-excitation, pointwise over (B, T, D), each normed; residual."""

    def __init__(self, grid: int, width: int) -> None:
        super().__init__()
        self.grid = grid
        self.first = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.squeeze, self.excite = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.last = nn.Linear(width, width, bias=False)
        self.norm3 = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, D) -> (B, grid * grid, D)."""
        y = F.silu(self.norm1(self.first(x)))
        y = F.silu(self.norm2(to_tokens(self.depthwise(to_image(y, self.grid)))))
        y = y * torch.sigmoid(self.excite(F.silu(self.squeeze(y.mean(1, keepdim=True)))))
        return F.silu(x + self.norm3(self.last(y)))


class CAbstractorProjector(nn.Module):
    """Blocks, average pooling, blocks, linear, SiLU, linear."""

    def __init__(self, grid: int, vision_width: int, width: int, config: CAbstractor) -> None:
        super().__init__()
        self.grid, self.factor = grid, config.reduction
        same = vision_width == config.hidden
        self.input: nn.Module = nn.Identity() if same else nn.Linear(vision_width, config.hidden)
        self.before = nn.Sequential(*(CAbstractorBlock(grid, config.hidden) for _ in range(config.blocks)))
        side = grid // config.reduction
        self.after = nn.Sequential(*(CAbstractorBlock(side, config.hidden) for _ in range(config.blocks)))
        self.up, self.down = nn.Linear(config.hidden, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, Dv) -> (B, (grid / factor)^2, D)."""
        x = self.before(self.input(x))
        x = self.after(to_tokens(F.avg_pool2d(to_image(x, self.grid), self.factor)))
        return self.down(F.silu(self.up(x)))


class Attention(nn.Module):
    """Queries (B, Q, D) attend to keys (B, K, Dk), all projections with biases."""

    def __init__(self, width: int, key_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(key_width, width), nn.Linear(key_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor | None = None) -> Tensor:
        """-> (B, Q, D)."""
        values = keys if values is None else values
        q, k, v = (split_heads(y, self.heads) for y in (self.q(queries), self.k(keys), self.v(values)))
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))


class CrossAttentionProjector(nn.Module):
    """Learned queries attend once to the tokens, then a norm and a linear layer."""

    def __init__(self, queries: int, vision_width: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, queries, width).normal_(std=0.02))
        self.input = nn.Linear(vision_width, width, bias=False)
        self.norm_tokens, self.norm_queries = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attention = Attention(width, width, max(1, width // 128))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, Dv) -> (B, Q, D)."""
        queries = self.norm_queries(self.queries).expand(len(x), -1, -1)
        return self.output(self.norm(self.attention(queries, self.norm_tokens(self.input(x)))))


class QFormerBlock(nn.Module):
    """BERT's block, norms behind what is added; attention to the tokens where they have a width."""

    def __init__(self, width: int, vision_width: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, width, width // 64), nn.LayerNorm(width, EPSILON)
        self.across: Attention | None = None
        if vision_width:
            self.across, self.norm2 = Attention(width, vision_width, width // 64), nn.LayerNorm(width, EPSILON)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm3 = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, Q, h), (B, T, Dv) -> (B, Q, h)."""
        x = self.norm1(x + self.attention(x, x))
        if self.across is not None:
            x = self.norm2(x + self.across(x, tokens))
        return self.norm3(x + self.down(F.gelu(self.up(x))))


class QFormerProjector(nn.Module):
    """Learned queries through the blocks, then a linear layer."""

    def __init__(self, config: QFormer, vision_width: int, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, config.queries, config.hidden).normal_(std=0.02))
        self.norm = nn.LayerNorm(config.hidden, EPSILON)
        self.blocks = nn.ModuleList(
            QFormerBlock(config.hidden, 0 if at % 2 else vision_width) for at in range(config.depth)
        )
        self.output = nn.Linear(config.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, Dv) -> (B, Q, D)."""
        queries = self.norm(self.queries).expand(len(x), -1, -1)
        for block in self.blocks:
            queries = block(queries, x)
        return self.output(queries)


class TokenPackerProjector(nn.Module):
    """Pooled tokens of the last layer attend to their own square of tokens of four layers."""

    def __init__(self, grid: int, vision_width: int, width: int, factor: int) -> None:
        super().__init__()
        inner = vision_width
        self.grid, self.factor = grid, factor
        self.query, self.norm_query = nn.Linear(inner, inner, bias=False), nn.LayerNorm(inner, EPSILON)
        self.key, self.value = (
            nn.Sequential(nn.Linear(4 * inner, inner), nn.GELU(), nn.Linear(inner, inner), nn.LayerNorm(inner, EPSILON))
            for _ in "kv"
        )
        self.attention = Attention(inner, inner, 8)
        self.mlp = mlp(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, grid * grid, 4 * Dv), the last layer last -> (B, (grid / factor)^2, D)."""
        batch, inner = x.shape[0], x.shape[-1] // 4
        pooled = to_tokens(F.avg_pool2d(to_image(x[..., -inner:], self.grid), self.factor))
        queries = self.norm_query(self.query(pooled))  # (B, tokens, Dv)
        tokens, square = queries.shape[1], self.factor**2
        keys, values = (
            space_to_depth(part(x), self.grid, self.factor).view(batch * tokens, square, inner)
            for part in (self.key, self.value)
        )
        found = self.attention(queries.reshape(batch * tokens, 1, inner), keys, values)
        return self.mlp(found.view(batch, tokens, inner))


class TokenMergingProjector(nn.Module):
    """Every second token is merged into the one most alike among the others, as often as `rounds`."""

    def __init__(self, vision_width: int, width: int, rounds: int) -> None:
        super().__init__()
        self.rounds = rounds
        self.mlp = mlp(vision_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, Dv) -> (B, T / 2^rounds, D)."""
        for _ in range(self.rounds):
            merged, kept = x[:, 0::2], x[:, 1::2]  # each (B, T / 2, Dv)
            alike = F.normalize(kept, dim=-1) @ F.normalize(merged, dim=-1).transpose(1, 2)  # (B, kept, merged)
            goes = (alike == alike.amax(1, keepdim=True)).to(x.dtype)
            x = (kept + goes @ merged) / (1 + goes.sum(-1, keepdim=True))
        return self.mlp(x)
