"""The whole network: training forward, prefill, one decode step, and the three static graphs that are exported.

B batch, L text tokens, T image tokens, D decoder width, V vocabulary, h head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from search_spaces.kernels import Workload
from search_spaces.modules.language import Rope, causal_mask, rotary

if TYPE_CHECKING:
    from search_spaces.config import VLMConfig
    from search_spaces.modules.language import LanguageDecoder

#: K and V of one layer, each (B, KV heads, rows, h).
Cache = tuple[Tensor, Tensor]
#: RoPE of rows, and masks by window.
Tables = tuple[Rope, dict[int, Tensor]]


class VisionLanguageModel(nn.Module):
    """Image tokens come first, text follows, and every row sees the rows before it."""

    language: LanguageDecoder

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision.build()
        self.projector = config.projector.build(config.vision.grid, config.vision.width, config.language.width)
        self.language = config.language.build()
        if config.projector.levels > 1:
            self.vision.levels = config.projector.levels  # type: ignore[assignment]
        soft = (1, config.soft_tokens, config.language.width)
        self.prompt = nn.Parameter(torch.empty(soft).normal_(std=0.02)) if config.soft_tokens else None

    def encode(self, images: Tensor) -> Tensor:
        """Vision tokens: (B * tiles, 3, image_px, image_px) -> (B * tiles, grid * grid, levels * vision width)."""
        return self.vision(images)

    def project(self, vision_tokens: Tensor) -> Tensor:
        """Image tokens: (B * tiles, grid * grid, levels * vision width) -> (B, T, D); B is 1 where tiles are joined."""
        tokens = self.projector(vision_tokens)
        if self.config.tiles == 1 or self.config.projector.joins_tiles:
            return tokens
        return tokens.reshape(-1, self.config.image_tokens, tokens.shape[-1])

    def decode(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Hidden rows before the final norm: (B, T, D), (B, L) -> (B, T + L, D)."""
        x, _ = self._rows(image_tokens, token_ids)
        return x

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Logits of every row: images (B, 3, image_px, image_px), ids (B, L) -> (B, T + L, V)."""
        return self.language.logits(self.decode(self.project(self.encode(images)), token_ids))

    def prefill(
        self, image_tokens: Tensor, token_ids: Tensor, tables: Tables | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Logits of the last row (B, V) and K, V of every layer with T + L rows; `tables` as `prefill_tables` gives."""
        x, caches = self._rows(image_tokens, token_ids, tables)
        return self.language.logits(x[:, -1:]).squeeze(1), caches

    def step(
        self, token_id: Tensor, rope: Rope, seen: dict[int, tuple[Tensor, Tensor]], caches: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """One new token (B, 1) over caches of fixed numbers of rows -> logits (B, V), new caches.

        rope, for one row, turns it. `seen` by window: a mask (1, rows) that is added to its scores, and marks (rows, 1)
        of where its K and V go.
        """
        x = self.language.embedding(token_id)
        out: list[Cache] = []
        windows = [layer.window for layer in self.config.language.layers]
        for block, window, (k, v) in zip(self.language.blocks, windows, caches, strict=True):
            mask, write = seen[window]
            x, k, v = block(x, rope, mask, (k, v, write))
            out.append((k, v))
        return self.language.logits(x).squeeze(1), out

    def prefill_tables(self, rows: int) -> Tables:
        """RoPE for `rows` positions, and by window the mask (G * rows, rows) of a prefill."""
        language, device = self.config.language, self.language.embedding.weight.device
        rope = rotary(torch.arange(rows, device=device), language.head_width, language.style.turned)
        group = language.queries_per_kv_head
        return rope, {window: causal_mask(rows, group, window).to(device) for window in self.windows}

    @property
    def windows(self) -> list[int]:
        """The windows of its layers, each once; 0 sees all rows."""
        return sorted({layer.window for layer in self.config.language.layers})

    def _rows(
        self, image_tokens: Tensor, token_ids: Tensor, tables: Tables | None = None
    ) -> tuple[Tensor, list[Cache]]:
        x = torch.cat([image_tokens, self.language.embedding(token_ids)], dim=1)  # (B, T + L, D)
        if self.prompt is not None:
            x = torch.cat([self.prompt.expand(len(x), -1, -1), x], dim=1)
        (cosines, sines), masks = self.prefill_tables(x.shape[1]) if tables is None else tables
        rope = (cosines.to(x.dtype), sines.to(x.dtype))
        masks = {window: mask.to(x.dtype) for window, mask in masks.items()}
        caches: list[Cache] = []
        for block, layer in zip(self.language.blocks, self.config.language.layers, strict=True):
            x, k, v = block(x, rope, masks[layer.window])
            caches.append((k, v))
        return x, caches


class VisionGraph(nn.Module):
    """Static graph: the tiles of an image (tiles, 3, image_px, image_px) -> image tokens (1, T, D)."""

    def __init__(self, network: VisionLanguageModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Encode and project."""
        return self.network.project(self.network.encode(image))


class _StaticGraph(nn.Module):
    """A network with RoPE and causal masks for `rows` rows as constants."""

    cosines: Tensor
    sines: Tensor
    index: Tensor

    def __init__(self, network: VisionLanguageModel, rows: int) -> None:
        super().__init__()
        self.network, self.rows = network, rows
        (cosines, sines), masks = network.prefill_tables(rows)
        constants = {"cosines": cosines, "sines": sines, "index": torch.arange(rows, device=cosines.device)}
        constants |= {_mask_name(window): mask for window, mask in masks.items()}
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def masks(self) -> dict[int, Tensor]:
        """Of a prefill, by window."""
        return {window: self.get_buffer(_mask_name(window)) for window in self.network.windows}


def _mask_name(window: int) -> str:
    return f"mask{window or ''}"


class PrefillGraph(_StaticGraph):
    """Static graph: image tokens (1, T, D), ids (1, L) -> logits (1, V), then K and V of each layer; rows = T + L.

    A layer with a window hands on its last rows, row p in place p modulo the window.
    """

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
        """Prefill with the caches flattened."""
        tables = (self.cosines, self.sines), self.masks()
        logits, caches = self.network.prefill(image_tokens, token_ids, tables)
        layers = self.network.config.language.layers
        kept = [
            tuple(_in_places(tensor, layer.window) for tensor in cache)
            for cache, layer in zip(caches, layers, strict=True)
        ]
        return (logits, *(tensor for cache in kept for tensor in cache))


def _in_places(cache: Tensor, window: int) -> Tensor:
    """K or V (1, KV heads, rows, h) as a cache of at most `window` rows."""
    rows = cache.shape[2]
    if not window or rows <= window:
        return cache
    return cache[:, :, rows - window :].roll(rows % window, 2)


class DecodeGraph(_StaticGraph):
    """Static graph: id (1, 1), position (1,), K and V of each layer -> logits (1, V), new K and V of each layer.

    K and V of the token are written into row `position` of caches of `rows` rows; rows behind it are not looked at. A
    cache of a layer with a window has at most its rows: new ones take the place of the oldest.
    """

    def forward(self, token_id: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """One decode step with the caches flattened."""
        pairs = list(zip(caches[0::2], caches[1::2], strict=True))
        rope = self.cosines.index_select(0, position), self.sines.index_select(0, position)
        seen = {window: self._seen(position, window, mask) for window, mask in self.masks().items()}
        logits, new = self.network.step(token_id, rope, seen, pairs)
        return (logits, *(tensor for cache in new for tensor in cache))

    def _seen(self, position: Tensor, window: int, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not window or window >= self.rows:
            row = mask[: len(self.index)].index_select(0, position)
            return row, (self.index == position)[:, None]
        held = self.index[:window]
        # once the places are full, all of them hold rows of the window
        row = torch.where(held <= position, 0.0, float("-inf"))[None]
        return row, (held == position % window)[:, None]


def graphs(network: VisionLanguageModel, workload: Workload) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """The graphs of a request with example inputs: vision (with projector), prefill, decode."""
    config, device = network.config, next(network.parameters()).device
    side, rows = config.vision.image_px, config.context(workload)
    image = torch.zeros(config.tiles, 3, side, side, device=device)
    image_tokens = torch.zeros(1, workload.images * config.image_tokens, config.language.width, device=device)
    ids = torch.zeros(1, workload.prompt_tokens, dtype=torch.int64, device=device)
    # One tensor each: torch.export takes inputs that are the same object for one input.
    caches = tuple(
        torch.zeros(1, layer.kv_heads, min(rows, layer.window or rows), config.language.head_width, device=device)
        for layer in config.language.layers
        for _ in "kv"
    )
    position = torch.full((1,), rows - 1, dtype=torch.int64, device=device)
    return {
        "vision": (VisionGraph(network), (image,)),
        "prefill": (PrefillGraph(network, config.prompt_length(workload)), (image_tokens, ids)),
        "decode": (DecodeGraph(network, rows), (ids[:, :1], position, *caches)),
    }
