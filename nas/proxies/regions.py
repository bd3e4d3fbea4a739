"""Dense supervision where the data has region labels: what stands in each cell of an image, asked of its tokens."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.proxies.data import DataError, Dataset, Vocabulary
from search_spaces.network import VisionLanguageModel


class RegionSupervision(nn.Module):
    """Two losses on region labels: of a linear head on vision tokens, and of the decoder's own embedding.

    The head is as wide as the widest vision tokens; narrower ones use its first columns.
    """

    labels: Tensor
    words: Tensor

    def __init__(self, width: int, data: Dataset, vocabulary: Vocabulary) -> None:
        super().__init__()
        regions = data.regions
        if regions is None:
            raise DataError(f"{data.name} has no region labels")
        self.grid = regions.grid
        self.sizes = [len(names) for names in regions.attributes]
        self.heads = nn.Linear(width, sum(self.sizes))
        labels = torch.from_numpy(regions.labels)
        first = [[vocabulary.encode(name)[0] for name in names] for names in regions.attributes]
        words = torch.stack([torch.tensor(ids)[labels[..., a]] for a, ids in enumerate(first)], -1)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("words", words, persistent=False)

    def regions(self, vision_tokens: Tensor, indices: list[int]) -> Tensor:
        """Cross-entropy of each cell's attributes, summed over attributes, from tokens (B, T, D)."""
        cells = self._cells(vision_tokens) @ vision_tokens
        scores = F.linear(cells, self.heads.weight[:, : cells.shape[-1]], self.heads.bias)
        labels = self.labels[indices]
        losses = [
            F.cross_entropy(z.flatten(0, 1), labels[..., a].flatten())
            for a, z in enumerate(torch.split(scores, self.sizes, -1))  # each (B, cells, classes)
        ]
        return torch.stack(losses).sum()

    def alignment(self, network: VisionLanguageModel, image_tokens: Tensor, indices: list[int]) -> Tensor:
        """Cross-entropy of each cell's words against the pooled image tokens (B, T, D) read as decoder output."""
        if math.isqrt(image_tokens.shape[1]) ** 2 != image_tokens.shape[1]:
            return torch.zeros((), device=image_tokens.device)
        read = network.language.logits(self._cells(image_tokens) @ image_tokens)
        scores = F.log_softmax(read, -1)  # (B, cells, V)
        return -scores.gather(2, self.words[indices]).mean()

    def _cells(self, tokens: Tensor) -> Tensor:
        return cell_weights(math.isqrt(tokens.shape[1]), self.grid).to(tokens)


@functools.cache
def cell_weights(side: int, grid: int) -> Tensor:
    """Weights (grid * grid, side * side) that average a token grid over the cells it overlaps."""
    tokens, cells = np.arange(side + 1) / side, np.arange(grid + 1) / grid
    ends = np.minimum(tokens[1:], cells[1:, None]) - np.maximum(tokens[:-1], cells[:-1, None])
    overlap = np.maximum(0.0, ends)  # (grid, side)
    weights = np.einsum("ai,bj->abij", overlap, overlap).reshape(grid**2, side**2)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))
