"""The torch modules of DAT++. B batch, S side in tokens, C channels, H heads, h head width, G groups, K samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.dat import HEAD_WIDTH, Dat, DatStage
from search_spaces.modules.vision import EPSILON, join_heads, split_heads, to_tokens


class NormedChannels(nn.Module):
    """LayerNorm over the channels of a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def neighbourhoods(side: int, window: int) -> tuple[Tensor, Tensor]:
    """For each token its window * window neighbours (T, seen), and the numbers of their signed distances, alike.

    At an edge the square is moved inwards, so that every token has as many neighbours (NATTEN, arXiv:2204.07143).
    """
    at = torch.arange(side)
    first = (at - window // 2).clamp(0, side - window)
    near = first[:, None] + torch.arange(window)  # (S, window)
    apart = near - at[:, None] + window - 1
    tokens = near[:, None, :, None] * side + near[None, :, None, :]  # (S, S, window, window)
    distances = apart[:, None, :, None] * (2 * window - 1) + apart[None, :, None, :]
    return tokens.reshape(side**2, -1), distances.reshape(side**2, -1)


def mesh(side: int, first: float, device: torch.device) -> Tensor:
    """(S, S, 2): rows and columns from `first` on, so that side - 1 is 1 and 0 is -1."""
    at = (torch.arange(side, device=device) + first) * 2 / max(side - 1, 1) - 1
    return torch.stack(torch.meshgrid(at, at, indexing="ij"), dim=-1)


class NeighbourAttention(nn.Module):
    """Each token attends to the square around it."""

    def __init__(self, stage: DatStage) -> None:
        super().__init__()
        self.heads, self.side = stage.heads, stage.side
        self.q, self.k, self.v, self.out = (nn.Linear(stage.width, stage.width) for _ in range(4))
        self.biases = nn.Parameter(torch.zeros(stage.heads, (2 * stage.neighbours - 1) ** 2))
        tokens, distances = neighbourhoods(stage.side, stage.neighbours)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        rows, tokens = to_tokens(x), self.get_buffer("tokens")
        q, k, v = (split_heads(layer(rows), self.heads) for layer in (self.q, self.k, self.v))
        near_k, near_v = k[:, :, tokens], v[:, :, tokens]  # (B, H, T, seen, h)
        bias = self.biases[:, self.get_buffer("distances")].unsqueeze(2)  # (H, T, 1, seen)
        scores = q.unsqueeze(3) @ near_k.transpose(3, 4) / HEAD_WIDTH**0.5 + bias
        y = (scores.softmax(-1) @ near_v).squeeze(3)  # (B, H, T, h)
        return self.out(join_heads(y)).transpose(1, 2).reshape(x.shape)


class SampledAttention(nn.Module):
    """All tokens attend to samples of the picture, taken where a small convolution of the queries says."""

    def __init__(self, stage: DatStage) -> None:
        super().__init__()
        self.heads, self.groups, self.side = stage.heads, stage.groups, stage.side
        width, group, window = stage.width, stage.width // stage.groups, stage.offset_window
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.offsets = nn.Sequential(
            nn.Conv2d(group, group, window, stage.offset_stride, window // 2, groups=group),
            NormedChannels(group),
            nn.GELU(),
            nn.Conv2d(group, 2, 1, bias=False),
        )
        self.biases = nn.Parameter(torch.zeros(stage.heads, 2 * stage.side - 1, 2 * stage.side - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        batch, width, side, _ = x.shape
        q = self.q(to_tokens(x))  # (B, T, C)
        groups = batch * self.groups
        offsets = self.offsets(q.transpose(1, 2).reshape(groups, -1, side, side)).permute(0, 2, 3, 1)
        samples = (offsets + mesh(offsets.shape[1], 0.5, x.device)).clamp(-1, 1)  # (B * G, s, s, 2)
        taken = F.grid_sample(x.reshape(groups, -1, side, side), samples.flip(-1), align_corners=True)
        rows = taken.reshape(batch, width, -1).transpose(1, 2)  # (B, K, C)
        k, v = split_heads(self.k(rows), self.heads), split_heads(self.v(rows), self.heads)
        apart = mesh(side, 0.0, x.device).reshape(1, -1, 1, 2) - samples.reshape(groups, 1, -1, 2)
        tables = self.biases.reshape(self.groups, -1, *self.biases.shape[1:]).repeat(batch, 1, 1, 1)
        bias = F.grid_sample(tables, apart.flip(-1) / 2, align_corners=True)  # (B * G, H / G, T, K)
        y = F.scaled_dot_product_attention(
            split_heads(q, self.heads), k, v, attn_mask=bias.reshape(batch, self.heads, side**2, -1)
        )
        return self.out(join_heads(y)).transpose(1, 2).reshape(x.shape)


class DatBlock(nn.Module):
    """Depthwise convolution, attention, feed-forward, each residual."""

    def __init__(self, stage: DatStage, kind: str) -> None:
        super().__init__()
        width, wide = stage.width, 4 * stage.width
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = NormedChannels(width), NormedChannels(width)
        self.attention = NeighbourAttention(stage) if kind == "neighbours" else SampledAttention(stage)
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
        self.middle = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, C, S, S)."""
        x = x + self.local(x)
        x = x + self.attention(self.norm1(x))
        y = self.up(self.norm2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = F.gelu(y + self.middle(y))
        return x + self.down(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DatNetwork(nn.Module):
    """Two convolutions, stages of blocks with one between them, a norm."""

    def __init__(self, config: Dat) -> None:
        super().__init__()
        first, half = config.first_width, config.first_width // 2
        layers: list[nn.Module] = [
            nn.Conv2d(3, half, 3, 2, 1),
            NormedChannels(half),
            nn.GELU(),
            nn.Conv2d(half, first, 3, 2, 1),
            NormedChannels(first),
        ]
        for at, stage in enumerate(config.stages):
            layers += [DatBlock(stage, kind) for kind in stage.blocks]
            if at < 3:
                layers += [
                    nn.Conv2d(stage.width, 2 * stage.width, 3, 2, 1, bias=False),
                    NormedChannels(2 * stage.width),
                ]
        self.layers = nn.Sequential(*layers, NormedChannels(config.width))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, T, C)."""
        return to_tokens(self.layers(images))
