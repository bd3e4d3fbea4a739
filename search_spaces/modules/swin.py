"""The torch modules of Swin. B batch, S side in tokens, w window, C channels, H heads, h head width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.modules.vision import EPSILON, FeedForward, join_heads, split_heads
from search_spaces.swin import HEAD_WIDTH, PATCH_PX, Swin


def signed_distances(window: int) -> Tensor:
    """(w * w, w * w): for each pair of tokens of a square, the number of their signed distance, below (2w - 1)^2."""
    at = torch.arange(window)
    apart = at[:, None] - at + window - 1  # (w, w)
    rows = apart[:, None, :, None] * (2 * window - 1)
    return (rows + apart[None, :, None, :]).reshape(window**2, window**2)


def shifted_mask(side: int, window: int, shift: int) -> Tensor:
    """(squares, 1, w * w, w * w): -inf between tokens that only the shift of the picture brought together."""
    marks = torch.zeros(side)
    marks[side - window : side - shift], marks[side - shift :] = 1, 2
    part = to_squares((marks[:, None] * 3 + marks)[None, :, :, None], window)[..., 0]  # (squares, w * w)
    apart = part[:, :, None] != part[:, None, :]
    return torch.zeros(apart.shape).masked_fill(apart, float("-inf"))[:, None]


def to_squares(x: Tensor, window: int) -> Tensor:
    """(B, S, S, C) -> (B * squares, w * w, C)."""
    batch, side, _, width = x.shape
    count = side // window
    x = x.reshape(batch, count, window, count, window, width).transpose(2, 3)
    return x.reshape(batch * count * count, window * window, width)


def to_picture(squares: Tensor, side: int, window: int) -> Tensor:
    """(B * squares, w * w, C) -> (B, S, S, C)."""
    count, width = side // window, squares.shape[-1]
    x = squares.reshape(-1, count, count, window, window, width).transpose(2, 3)
    return x.reshape(-1, side, side, width)


class WindowAttention(nn.Module):
    """Self-attention within squares, shifted by `shift` tokens, with learned biases by distance."""

    def __init__(self, side: int, width: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.heads = width // HEAD_WIDTH
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.biases = nn.Parameter(torch.zeros(self.heads, (2 * window - 1) ** 2))
        self.register_buffer("distances", signed_distances(window), persistent=False)
        mask = shifted_mask(side, window, shift) if shift else torch.zeros(1, 1, 1, 1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, S, S, C)."""
        batch, shift = len(x), self.shift
        x = to_squares(torch.roll(x, (-shift, -shift), (1, 2)) if shift else x, self.window)
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        bias = self.biases[:, self.get_buffer("distances")] + self.get_buffer("mask")  # (squares or 1, H, w^2, w^2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(len(x) // len(bias), 1, 1, 1))
        y = to_picture(self.out(join_heads(y)), self.side, self.window)
        return torch.roll(y, (shift, shift), (1, 2)).view(batch, self.side, self.side, -1) if shift else y


class SwinBlock(nn.Module):
    """Pre-norm attention within squares and feed-forward, both residual."""

    def __init__(self, side: int, width: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.attention = WindowAttention(side, width, window, shift)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, S, S, C)."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Merge(nn.Module):
    """Four tokens side by side, norm, linear to twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width, EPSILON), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, S, C) -> (B, S / 2, S / 2, 2 * C)."""
        four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(torch.cat(four, dim=-1)))


class SwinNetwork(nn.Module):
    """Patches, stages of blocks, a norm."""

    def __init__(self, config: Swin) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, config.first_width, PATCH_PX, PATCH_PX)
        self.norm0 = nn.LayerNorm(config.first_width, EPSILON)
        layers: list[nn.Module] = []
        for at, (side, width, depth) in enumerate(config.stages):
            shift = config.window // 2 if side > config.window else 0
            layers += [SwinBlock(side, width, config.window, shift * (block % 2)) for block in range(depth)]
            if at < 3:
                layers.append(Merge(width))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(config.width, EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, T, C)."""
        x = self.norm0(self.patches(images).permute(0, 2, 3, 1))  # (B, S, S, C)
        return self.norm(self.layers(x)).flatten(1, 2)
