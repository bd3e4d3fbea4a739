"""Zero-cost proxies: scores of an untrained network that rank candidates in a fraction of a second.

A score is not an accuracy: it ranks configs of one space among each other and says nothing across spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from search_spaces import VLMConfig
from search_spaces.network import VisionLanguageModel

#: Text tokens of the probe.
PROBE_TOKENS = 8


def synflow(config: VLMConfig, seed: int) -> float:
    """Log10 of the synaptic flow, the sum of |weight x gradient| over positive weights and an input of ones.

    arXiv:2006.05467. A norm would cancel the very scale that is measured: the last norm of encoder and decoder is the
    identity, those inside blocks divide by a constant, which keeps SwiGLU's products finite. Higher is better.
    """
    network = _initialised(config, seed).double()
    for parameter in network.parameters():
        parameter.data.abs_()
    for block in network.modules():
        for name, child in block.named_children():
            if isinstance(child, nn.LayerNorm | nn.RMSNorm):
                last = block is network.vision or block is network.language
                setattr(block, name, nn.Identity() if last else _ConstantScale())
    images = torch.ones(1, 3, config.vision.image_px, config.vision.image_px, dtype=torch.float64)
    network(images, torch.zeros(1, PROBE_TOKENS, dtype=torch.int64)).sum().backward()
    flow = sum((p.detach() * p.grad).abs().sum().item() for p in network.parameters() if p.grad is not None)
    return math.log10(flow)


class _ConstantScale(nn.Module):
    """Divides by the mean magnitude, taken as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x / x.detach().abs().mean()


def jacobian_rank(config: VLMConfig, seed: int) -> float:
    """Log-determinant of how differently 16 random images excite the image tokens (NASWOT's idea, arXiv:2006.04647).

    The kernel is the correlation of the projected image tokens, as the smooth activations here have no on and off.
    Higher is better.
    """
    network = _initialised(config, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(16, 3, config.vision.image_px, config.vision.image_px, generator=generator)
    with torch.no_grad():
        rows = network.project(network.encode(images)).flatten(1)  # (16, T * D)
    rows = rows - rows.mean(0)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)
    _, logdet = torch.linalg.slogdet((rows @ rows.T).double() + 1e-3 * torch.eye(16, dtype=torch.float64))
    return float(logdet)


def capacity(config: VLMConfig, seed: int) -> float:
    """Log10 of the parameters: the baseline that a proxy must beat. Higher is better."""
    del seed
    return math.log10(config.parameters)


#: Every zero-cost score by name.
ZERO_COST: dict[str, Callable[[VLMConfig, int], float]] = {
    "synflow": synflow,
    "jacobian_rank": jacobian_rank,
    "capacity": capacity,
}


def _initialised(config: VLMConfig, seed: int) -> VisionLanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.build()
