"""The torch modules of decoders. B batch, T rows, D width, H heads, h head width, G queries per KV head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.language import Family, LanguageConfig, Layer
from search_spaces.modules.vision import EPSILON, join_heads, rotate, split_heads

#: Base of the rotary frequencies (arXiv:2104.09864).
ROPE_BASE = 10_000.0
#: Cosines and sines, each (T, h).
Rope = tuple[Tensor, Tensor]
#: K and V of all keys, and a boolean (keys, 1) that marks the row to write.
Written = tuple[Tensor, Tensor, Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}


def rotary(positions: Tensor, head_width: int, turned: float = 1.0) -> Rope:
    """Cosines and sines of RoPE at positions (T,); each half of the `turned` share of h has the same frequencies.

    Channels beside that share come last and stay as they are.
    """
    width = round(head_width * turned / 2) * 2
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * ROPE_BASE ** (-steps / width)  # (T, width / 2)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def causal_mask(tokens: int, group: int, window: int = 0) -> Tensor:
    """Additive mask (G * T, T) for queries stacked group by group: 0 where a row may look, -inf elsewhere.

    With a window, a row sees as many rows, itself included.
    """
    mask = torch.full((tokens, tokens), float("-inf")).triu(1)
    if window:
        mask = mask + torch.full((tokens, tokens), float("-inf")).tril(-window)
    return mask.repeat(group, 1)


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the first channels of (B, H, T, h), as many as `rope` has, by their positions."""
    width = rope[0].shape[-1]
    if width < x.shape[-1]:
        return torch.cat([_rotate(x[..., :width], rope), x[..., width:]], dim=-1)
    return rotate(x, rope)


def _norm(style: Family, width: int) -> nn.Module:
    return nn.LayerNorm(width, EPSILON) if style.norm == "layer_norm" else nn.RMSNorm(width, EPSILON)


class DecoderAttention(nn.Module):
    """Grouped-query attention with RoPE; the queries of a group are stacked in the rows of one product per KV head."""

    def __init__(self, config: LanguageConfig, layer: Layer) -> None:
        super().__init__()
        style = config.style
        self.kv_heads, self.group, self.head_width = layer.kv_heads, config.queries_per_kv_head, config.head_width
        inner, kv_width = self.kv_heads * self.group * self.head_width, self.kv_heads * self.head_width
        self.q = nn.Linear(config.width, inner, bias=style.qkv_bias)
        self.k = nn.Linear(config.width, kv_width, bias=style.qkv_bias)
        self.v = nn.Linear(config.width, kv_width, bias=style.qkv_bias)
        self.out = nn.Linear(inner, config.width, bias=style.bias)
        self.norm_q: nn.Module = nn.RMSNorm(self.head_width, EPSILON) if style.qk_norm else nn.Identity()
        self.norm_k: nn.Module = nn.RMSNorm(self.head_width, EPSILON) if style.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: Written | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D), mask (G * T, keys) -> (B, T, D), K and V (B, KV heads, keys, h).

        Without a `cache` the keys are the new rows.
        """
        batch, tokens, _ = x.shape
        kv, group, head = self.kv_heads, self.group, self.head_width
        q = _rotate(self.norm_q(split_heads(self.q(x), kv * group)), rope).reshape(batch, kv, group * tokens, head)
        k = _rotate(self.norm_k(split_heads(self.k(x), kv)), rope)  # (B, KV, T, h)
        v = split_heads(self.v(x), kv)
        if cache is not None:
            past_k, past_v, write = cache
            k, v = torch.where(write, k, past_k), torch.where(write, v, past_v)  # (B, KV, keys, h)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, KV, G * T, h)
        return self.out(join_heads(y.reshape(batch, kv * group, tokens, head))), k, v


class Adapter(nn.Module):
    """A bottleneck that is added to what passes it (arXiv:1902.00751)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x + self.up(F.gelu(self.down(x)))


class DecoderBlock(nn.Module):
    """Norm, grouped-query attention, norm and feed-forward, as the family has them."""

    def __init__(self, config: LanguageConfig, layer: Layer) -> None:
        super().__init__()
        style, width = config.style, config.width
        self.parallel, self.gated = style.parallel, style.gated
        self.activation = _ACTIVATIONS[style.activation]
        self.norm1 = _norm(style, width)
        self.attention = DecoderAttention(config, layer)
        self.norm2: nn.Module | None = None if style.one_norm else _norm(style, width)
        self.after1: nn.Module = _norm(style, width) if style.post_norms else nn.Identity()
        self.after2: nn.Module = _norm(style, width) if style.post_norms else nn.Identity()
        if self.gated:
            self.gate = nn.Linear(width, layer.feed_forward, bias=style.bias)
        self.up = nn.Linear(width, layer.feed_forward, bias=style.bias)
        self.down = nn.Linear(layer.feed_forward, width, bias=style.bias)
        self.adapter: nn.Module = Adapter(width, config.adapter_width) if config.adapter_width else nn.Identity()

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor, cache: Written | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `DecoderAttention.forward`."""
        normed = self.norm1(x)
        attended, k, v = self.attention(normed, rope, mask, cache)
        added = x + self.after1(attended)
        read = x if self.parallel else added
        y = normed if self.norm2 is None else self.norm2(read)
        y = self.activation(self.gate(y)) * self.up(y) if self.gated else self.activation(self.up(y))
        return self.adapter(added + self.after2(self.down(y))), k, v


class LanguageDecoder(nn.Module):
    """Embedding, blocks, a final norm, and logits by the embedding or a matrix of their own."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        style = config.style
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)  # wider ones learn more slowly
        self.blocks = nn.ModuleList(DecoderBlock(config, layer) for layer in config.layers)
        self.norm = _norm(style, config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False) if config.untied else None
        self.bias = nn.Parameter(torch.zeros(config.vocabulary)) if style.logits_bias else None

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, vocabulary)."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return F.linear(self.norm(x), weight, self.bias)
