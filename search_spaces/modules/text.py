"""The torch modules of text encoders. B batch, L rows, D width, F width of a feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.modules.language import causal_mask
from search_spaces.modules.vision import EPSILON, FeedForward, join_heads, split_heads
from search_spaces.text import TextEncoder


class TextBlock(nn.Module):
    """Attention and feed-forward, both residual, with norms before or behind them."""

    def __init__(self, config: TextEncoder) -> None:
        super().__init__()
        width = config.width
        self.heads, self.before = config.heads, config.written.last_norm
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.feed_forward = FeedForward(width, config.feed_forward)

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        return self.out(join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if self.before:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.feed_forward(self.norm2(x))
        x = self.norm1(x + self.attend(x, mask))
        return self.norm2(x + self.feed_forward(x))


class TextTransformer(nn.Module):
    """Embedding, positions, blocks, and the row that stands for the text."""

    def __init__(self, config: TextEncoder) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(config.context, width).normal_(std=0.01))
        segments = config.written.segments
        self.segments = nn.Parameter(torch.empty(segments, width).normal_(std=0.02)) if segments else None
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.project = nn.Linear(width, config.feature_width, bias=not config.written.projected)

    def forward(self, ids: Tensor, more: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Ids (B, L), rows (B, more, D) behind them -> (B, F), from the last token in style clip, else the first.

        Prompts (layers, rows, D) take the place of the rows behind the first one before as many blocks.
        """
        style, batch = self.config.written, len(ids)
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        if self.segments is not None:
            x = x + self.segments[0]
        x = x if style.last_norm else self.norm(x)
        if more is not None:
            x = torch.cat([x, more], dim=1)
        mask = causal_mask(x.shape[1], 1).to(x) if style.causal else None
        for at, block in enumerate(self.blocks):
            if prompts is not None and at < len(prompts):
                rows = prompts[at].expand(batch, -1, -1)
                x = torch.cat([x[:, :1], rows, x[:, 1 + rows.shape[1] :]], dim=1)
            x = block(x, mask)
        if style.last_norm:
            return self.project(self.norm(x)[:, ids.shape[1] - 1])
        return torch.tanh(self.project(x[:, 0]))
