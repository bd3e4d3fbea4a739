"""The torch modules of classifiers. B batch, T tokens, V vision width, F width of a feature, M labels, R regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_spaces.heads import BOX, Fusion, Matching
from search_spaces.modules.text import TextTransformer
from search_spaces.modules.vision import EPSILON, VisionEncoder, join_heads, split_heads, to_tokens
from search_spaces.text import TextEncoder
from search_spaces.vision import ImageEncoder

if TYPE_CHECKING:
    from search_spaces.classifier import ClassifierConfig


class Adapter(nn.Module):
    """Rows attend to themselves and to others, with the same matrices; then a feed-forward; norms behind both."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)

    def forward(self, x: Tensor, others: Tensor) -> Tensor:
        """(1, rows, F), (1, others, F) -> (1, rows, F)."""
        q, y = split_heads(self.q(x), self.heads), x
        for seen in (x, others):
            k, v = split_heads(self.k(seen), self.heads), split_heads(self.v(seen), self.heads)
            y = y + self.out(join_heads(F.scaled_dot_product_attention(q, k, v)))
        y = self.norm1(y)
        return self.norm2(y + self.down(F.relu(self.up(y))))


class HeadModule(nn.Module):
    """What the modules of all heads have; called with what the encoders gave, they do the work of the projector."""

    def encode(self, vision: nn.Module, images: Tensor) -> Tensor:
        """Vision: (B, 3, image_px, image_px) -> (B, T, V)."""
        return vision(images)

    def read(self, text: TextTransformer, ids: Tensor, regions: Tensor | None) -> Tensor:
        """Prefill: ids (B, L), and rows (B, R, D) of regions, to features or logits."""
        raise NotImplementedError


class MatchingHead(HeadModule):
    """Projection, prompts and adapters; the features of labels too, where no text encoder makes them."""

    def __init__(self, config: Matching, vision: ImageEncoder, text: TextEncoder | None) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.project = nn.Linear(vision.width, width, bias=config.bias)
        self.norm = nn.LayerNorm(width, EPSILON) if config.norm else None
        sides = [Adapter(width, config.adapter_heads, config.adapter) for _ in range(2) if config.adapter]
        self.adapters = nn.ModuleList(sides)
        self.image_prompts = _prompts(config, vision.width)
        self.text_prompts = _prompts(config, text.width) if text else None
        known = torch.randn(config.labels, width) if text is None else torch.zeros(0)
        self.register_buffer("known", known)

    def encode(self, vision: nn.Module, images: Tensor) -> Tensor:
        """(B, 3, image_px, image_px) -> (B, T, V), or (B, 1, V) where the first token stands for all."""
        if self.config.pooled == "first" or self.image_prompts is not None:
            x = with_prompts(vision, images, self.image_prompts)
            return x[:, :1] if self.config.pooled == "first" else x
        return vision(images)

    def read(self, text: TextTransformer, ids: Tensor, regions: Tensor | None) -> Tensor:
        """Labels (M, L) -> features (M, F)."""
        return text(ids, prompts=self.text_prompts)

    def forward(self, tokens: Tensor, features: Tensor | None) -> Tensor:
        """Tokens (1, T, V) and features of the labels (M, F), or those that are known -> shares of labels (1, M)."""
        x = self.project(tokens.mean(1))  # (1, F)
        x = x if self.norm is None else self.norm(x)
        labels = self.get_buffer("known") if features is None else features
        if self.adapters:
            image, text = self.adapters
            adapted = image(x[None], labels[None])[0]
            x, labels = adapted, text(labels[None], x[None])[0]
        return (100.0 * F.normalize(x, dim=-1) @ F.normalize(labels, dim=-1).T).softmax(-1)


def _prompts(config: Matching, width: int) -> nn.Parameter | None:
    rows = (config.prompted, config.prompts, width)
    return nn.Parameter(torch.empty(rows).normal_(std=0.02)) if config.prompts else None


def with_prompts(vision: nn.Module, images: Tensor, prompts: Tensor | None) -> Tensor:
    """All rows of a vision transformer but its prompts: (B, 3, image_px, image_px) -> (B, 1 + T, V), class token first.

    Prompts (layers, rows, V) stand behind the tokens, new ones before each of as many blocks.
    """
    if not isinstance(vision, VisionEncoder) or vision.prefix is None or vision.positions is None:
        raise TypeError(f"a vision transformer with a class token is needed, but got {type(vision).__name__}")
    x = to_tokens(vision.patches(images))
    x = torch.cat([vision.prefix.expand(len(x), -1, -1), x], dim=1) + vision.positions
    own = x.shape[1]
    x = x if vision.norm0 is None else vision.norm0(x)
    for at, block in enumerate(vision.blocks):
        if prompts is not None and at < len(prompts):
            x = torch.cat([x[:, :own], prompts[at].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    x = x[:, :own]
    return x if vision.norm is None else vision.norm(x)


class FusionHead(HeadModule):
    """Features of regions, and the choice that the first row of the text makes."""

    def __init__(self, config: Fusion, vision_width: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.expand = nn.Linear(vision_width, config.region_width)
        self.project = nn.Linear(config.region_width + BOX, width)
        self.choose = nn.Linear(width, config.labels)

    def read(self, text: TextTransformer, ids: Tensor, regions: Tensor | None) -> Tensor:
        """Question and tags (B, L), regions (B, R, D) -> logits (B, M)."""
        return self.choose(text(ids, more=regions))

    def forward(self, tokens: Tensor, boxes: Tensor) -> Tensor:
        """Tokens (1, T, V) and boxes (R, 6), corners first, within 0 to 1 -> rows (1, R, D)."""
        grid, bins = round(tokens.shape[1] ** 0.5), self.config.bins
        at = (torch.arange(bins, device=tokens.device) + 0.5) / bins
        low, size = boxes[:, None, :2], boxes[:, None, 2:4] - boxes[:, None, :2]
        lines = (low + at[:, None] * size) * 2 - 1  # (R, bins, 2): across, down
        across, down = (lines[..., axis] for axis in (0, 1))
        places = torch.stack(
            [across[:, None, :].expand(-1, bins, -1), down[:, :, None].expand(-1, -1, bins)], dim=-1
        ).reshape(1, len(boxes), bins * bins, 2)
        picture = tokens.transpose(1, 2).unflatten(2, (grid, grid))
        sampled = F.grid_sample(picture, places, align_corners=False)[0].permute(1, 2, 0)  # (R, bins * bins, V)
        features = F.silu(self.expand(sampled)).mean(1)  # (R, region width)
        return self.project(torch.cat([features, boxes], dim=1))[None]


class Classifier(nn.Module):
    """Image encoder, head and text encoder. What runs when is said by the phases of its config."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision.build()
        self.head = config.head.build(config.vision, config.text)
        self.text: TextTransformer | None = config.text.build() if config.text else None

    def encode(self, image: Tensor) -> Tensor:
        """Vision: (1, 3, image_px, image_px) -> (1, T, V)."""
        return self.head.encode(self.vision, image)

    def read(self, ids: Tensor, regions: Tensor | None = None) -> Tensor:
        """Prefill: labels (M, L) -> features (M, F), or a question (1, L) and regions (1, R, D) -> logits (1, M)."""
        if self.text is None:
            raise ValueError("features of the labels are known beforehand: there is no text to read")
        return self.head.read(self.text, ids, regions)
