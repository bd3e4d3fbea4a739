"""Muon for a supernet: steps orthogonalised for each slice that was trained, not for the shared matrices.

An orthogonalised step of a wide matrix moves each entry little: the narrow slices in its corner would learn several
times slower than alone. Here the momentum of the shared gradients is cut as the slices are, each cut is orthogonalised
as Muon does with a matrix of that size, and an entry takes the mean of the steps of all slices that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from nas.proxies.muon import orthogonalised
from nas.proxies.supernet import Supernet, shared_name
from search_spaces import VLMConfig


class SliceMuon:
    """Momentum of the matrices of a supernet, by name; `step` takes the configs whose slices were trained."""

    def __init__(self, net: Supernet, matrices: Mapping[str, nn.Parameter], momentum: float, decay: float) -> None:
        self.net, self.matrices, self.momentum, self.decay = net, matrices, momentum, decay
        self.state = {name: torch.zeros_like(weight) for name, weight in matrices.items()}

    @torch.no_grad()
    def step(self, configs: Sequence[VLMConfig], rate: float) -> None:
        """Take one step from the gradients that the slices of `configs` left together."""
        updates: dict[str, Tensor] = {}
        for name, weight in self.matrices.items():
            if weight.grad is not None:
                self.state[name].lerp_(weight.grad, 1 - self.momentum)
                updates[name] = weight.grad.lerp(self.state[name], self.momentum).view(-1)  # Nesterov
        sums = {name: torch.zeros_like(update) for name, update in updates.items()}
        counts = {name: torch.zeros_like(update) for name, update in updates.items()}
        for config in configs:
            by_shape: dict[torch.Size, list[tuple[str, Tensor]]] = {}
            for own, shape in _shapes(config):
                name = shared_name(own, config)
                if name in updates:
                    places = self._places(own, name, config, shape)
                    by_shape.setdefault(places.shape, []).append((name, places))
            for (rows, columns), found in by_shape.items():
                steps = orthogonalised(torch.stack([updates[name][places] for name, places in found]))
                scale = max(1.0, rows / columns) ** 0.5
                for (name, places), step in zip(found, steps, strict=True):
                    sums[name].index_put_((places,), step * scale, accumulate=True)
                    counts[name].index_put_((places,), torch.ones_like(step), accumulate=True)
        for name, total in sums.items():
            weight = self.matrices[name]
            change = (total / counts[name].clamp_min(1.0)).view_as(weight)
            weight.mul_(1 - rate * self.decay).sub_(change, alpha=rate)

    def _places(self, own: str, name: str, config: VLMConfig, shape: torch.Size) -> Tensor:
        """Where in the shared weight, flattened, each entry of a slice's weight lies; (rows, columns)."""
        weight = self.matrices[name]
        every = torch.arange(weight.numel(), device=weight.device).view_as(weight)
        if own == "vision.patches.weight":  # it is resized: what a slice holds of it are the outputs
            return every[: shape[0]].flatten(1)
        return self.net.cut(own, config, shape, every).flatten(1)


@lru_cache(maxsize=256)
def _shapes(config: VLMConfig) -> tuple[tuple[str, torch.Size], ...]:
    with torch.device("meta"):
        return tuple((name, weight.shape) for name, weight in config.build().named_parameters())
