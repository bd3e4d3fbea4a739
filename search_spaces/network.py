"""The whole network: training forward, prefill, one decode step, and the three static graphs that are exported.

B batch, L text tokens, T image tokens, D decoder width, V vocabulary, h head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from search_spaces.blocks import Rope, causal_mask, rotary
from search_spaces.kernels import Workload

if TYPE_CHECKING:
    from search_spaces.blocks import LanguageDecoder
    from search_spaces.config import VLMConfig

#: K and V of one layer, each (B, KV heads, rows, h).
Cache = tuple[Tensor, Tensor]


class VisionLanguageModel(nn.Module):
    """Image tokens come first, text follows, and every row sees the rows before it."""

    language: LanguageDecoder

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision.build()
        self.projector = config.projector.build(config.vision.grid, config.vision.width, config.language.width)
        self.language = config.language.build()

    def encode(self, images: Tensor) -> Tensor:
        """Vision tokens: (B, 3, image_px, image_px) -> (B, grid * grid, vision width)."""
        return self.vision(images)

    def project(self, vision_tokens: Tensor) -> Tensor:
        """Image tokens: (B, grid * grid, vision width) -> (B, T, D)."""
        return self.projector(vision_tokens)

    def decode(self, image_tokens: Tensor, token_ids: Tensor) -> Tensor:
        """Hidden rows before the final norm: (B, T, D), (B, L) -> (B, T + L, D)."""
        x, _ = self._rows(image_tokens, token_ids)
        return x

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Logits of every row: images (B, 3, image_px, image_px), ids (B, L) -> (B, T + L, V)."""
        return self.language.logits(self.decode(self.project(self.encode(images)), token_ids))

    def prefill(
        self, image_tokens: Tensor, token_ids: Tensor, tables: tuple[Rope, Tensor] | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Logits of the last row (B, V) and K, V of every layer with T + L rows; `tables` as `prefill_tables` gives."""
        x, caches = self._rows(image_tokens, token_ids, tables)
        return self.language.logits(x[:, -1:]).squeeze(1), caches

    def step(
        self, token_id: Tensor, rope: Rope, mask: Tensor, write: Tensor, caches: list[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """One new token (B, 1) over caches of a fixed number of rows -> logits (B, V), new caches.

        rope, for one row, turns it; mask (1, rows) is added to its scores; write (rows, 1) marks where its K and V go.
        """
        x = self.language.embedding(token_id)
        out: list[Cache] = []
        for block, (k, v) in zip(self.language.blocks, caches, strict=True):
            x, k, v = block(x, rope, mask, (k, v, write))
            out.append((k, v))
        return self.language.logits(x).squeeze(1), out

    def prefill_tables(self, rows: int) -> tuple[Rope, Tensor]:
        """RoPE for `rows` positions and causal mask (G * rows, rows) of a prefill."""
        language, device = self.config.language, self.language.embedding.weight.device
        rope = rotary(torch.arange(rows, device=device), language.head_width)
        return rope, causal_mask(rows, language.queries_per_kv_head).to(device)

    def _rows(
        self, image_tokens: Tensor, token_ids: Tensor, tables: tuple[Rope, Tensor] | None = None
    ) -> tuple[Tensor, list[Cache]]:
        x = torch.cat([image_tokens, self.language.embedding(token_ids)], dim=1)  # (B, T + L, D)
        (cosines, sines), mask = self.prefill_tables(x.shape[1]) if tables is None else tables
        rope, mask = (cosines.to(x.dtype), sines.to(x.dtype)), mask.to(x.dtype)
        caches: list[Cache] = []
        for block in self.language.blocks:
            x, k, v = block(x, rope, mask)
            caches.append((k, v))
        return x, caches


class VisionGraph(nn.Module):
    """Static graph: image (1, 3, image_px, image_px) -> image tokens (1, T, D)."""

    def __init__(self, network: VisionLanguageModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Encode and project."""
        return self.network.project(self.network.encode(image))


class _StaticGraph(nn.Module):
    """A network with RoPE and causal mask for `rows` rows as constants."""

    cosines: Tensor
    sines: Tensor
    mask: Tensor
    index: Tensor

    def __init__(self, network: VisionLanguageModel, rows: int) -> None:
        super().__init__()
        self.network = network
        (cosines, sines), mask = network.prefill_tables(rows)
        constants = {"cosines": cosines, "sines": sines, "mask": mask, "index": torch.arange(rows, device=mask.device)}
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)


class PrefillGraph(_StaticGraph):
    """Static graph: image tokens (1, T, D), ids (1, L) -> logits (1, V), then K and V of each layer; rows = T + L."""

    def forward(self, image_tokens: Tensor, token_ids: Tensor) -> tuple[Tensor, ...]:
        """Prefill with the caches flattened."""
        tables = (self.cosines, self.sines), self.mask
        logits, caches = self.network.prefill(image_tokens, token_ids, tables)
        return (logits, *(tensor for cache in caches for tensor in cache))


class DecodeGraph(_StaticGraph):
    """Static graph: id (1, 1), position (1,), K and V of each layer -> logits (1, V), new K and V of each layer.

    K and V of the token are written into row `position` of caches of `rows` rows; rows behind it are not looked at.
    """

    def forward(self, token_id: Tensor, position: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """One decode step with the caches flattened."""
        pairs = list(zip(caches[0::2], caches[1::2], strict=True))
        rope = self.cosines.index_select(0, position), self.sines.index_select(0, position)
        mask = self.mask[: len(self.index)].index_select(0, position)
        write = (self.index == position)[:, None]
        logits, new = self.network.step(token_id, rope, mask, write, pairs)
        return (logits, *(tensor for cache in new for tensor in cache))


def graphs(network: VisionLanguageModel, workload: Workload) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """The graphs of a request with example inputs: vision (with projector), prefill, decode."""
    config, device = network.config, next(network.parameters()).device
    side, rows = config.vision.image_px, config.context(workload)
    image = torch.zeros(1, 3, side, side, device=device)
    image_tokens = torch.zeros(1, workload.images * config.image_tokens, config.language.width, device=device)
    ids = torch.zeros(1, workload.prompt_tokens, dtype=torch.int64, device=device)
    shape = (1, config.language.kv_heads, rows, config.language.head_width)
    # One tensor each: torch.export takes inputs that are the same object for one input.
    caches = tuple(torch.zeros(shape, device=device) for _ in range(2 * config.language.depth))
    position = torch.full((1,), rows - 1, dtype=torch.int64, device=device)
    return {
        "vision": (VisionGraph(network), (image,)),
        "prefill": (PrefillGraph(network, config.prompt_length(workload)), (image_tokens, ids)),
        "decode": (DecodeGraph(network, rows), (ids[:, :1], position, *caches)),
    }
