"""Zero-cost proxies: scores of an untrained network that rank candidates in a fraction of a second.

A score is not an accuracy: it ranks configs of one space among each other and says nothing across spaces. Each comes as
`Parts`: of the whole model and of its components. Where they were validated, and how well they rank there, stands with
the stored combination (`nas.proxies.combined`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nas.proxies import architecture
from nas.proxies.probe import COMPONENTS, answer_loss, batch_of, components, untrained
from search_spaces import VLMConfig

#: A score of the whole model ("whole") and of each component.
Parts = dict[str, float]

#: Scenes whose activations are compared.
_SCENES = 16
#: Batches whose gradients are compared, and the scenes of each; four batches and twice the scenes rank no better.
_BATCHES, _BATCH = 2, 4
#: Text tokens of the synaptic flow's input.
_FLOW_TOKENS = 8
_LEAST = 1e-30  # keeps logarithms finite


def synaptic_flow(config: VLMConfig, seed: int) -> Parts:
    """Log10 of the sum of |weight x gradient| over positive weights and an input of ones (arXiv:2006.05467).

    A norm would cancel the very scale that is measured: the last norm of encoder and decoder is the identity, those
    inside blocks divide by a constant, which keeps SwiGLU's products finite. Higher is better.
    """
    network = untrained(config, seed).double()
    for parameter in network.parameters():
        parameter.data.abs_()
    for block in network.modules():
        for name, child in block.named_children():
            if isinstance(child, nn.LayerNorm | nn.RMSNorm):
                last = block is network.vision or block is network.language
                setattr(block, name, nn.Identity() if last else _ConstantScale())
    images = torch.ones(1, 3, config.vision.image_px, config.vision.image_px, dtype=torch.float64)
    network(images, torch.zeros(1, _FLOW_TOKENS, dtype=torch.int64)).sum().backward()
    flows = {
        name: sum((p.detach() * p.grad).abs().sum().item() for p in module.parameters() if p.grad is not None)
        for name, module in components(network).items()
    }
    flows["whole"] = sum(flows.values())
    return {name: math.log10(max(flow, _LEAST)) for name, flow in flows.items()}


class _ConstantScale(nn.Module):
    """Divides by the mean magnitude, taken as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x / x.detach().abs().mean()


def activations(config: VLMConfig, seed: int) -> tuple[Parts, Parts]:
    """NASWOT (arXiv:2006.04647) and expressivity (AZ-NAS, arXiv:2403.19232), from one pass over a few scenes.

    NASWOT: log-determinant of how often the units of two scenes are open together or closed together. A unit of a
    smooth activation counts as open where its input is positive, as its ReLU would be; a component without activations
    (a linear projector) is read at the signs of its outputs. Expressivity: entropy (nats) of the shares of variance
    along the principal axes of the rows that a component hands on. Higher is better for both.
    """
    network = untrained(config, seed).eval()
    batch = batch_of(config, range(_SCENES), seed)
    handed_on: list[Tensor] = []
    network.language.norm.register_forward_pre_hook(lambda _, rows: handed_on.append(rows[0]))
    with torch.no_grad():
        with _Gates() as vision:
            tokens = network.encode(batch.images)
        with _Gates() as projector:
            image_tokens = network.project(tokens)
        with _Gates() as language:
            answer_loss(network, image_tokens, batch)
    codes = {"vision": vision.codes, "projector": projector.codes or [image_tokens > 0], "language": language.codes}
    kernels = {name: _agreement(found) for name, found in codes.items()}
    kernels["whole"] = sum(kernels.values(), torch.zeros(()))
    outputs = zip(COMPONENTS, (tokens, image_tokens, handed_on[0]), strict=True)
    entropies = {name: _entropy(rows.flatten(0, 1)) for name, rows in outputs}
    entropies["whole"] = sum(entropies.values())
    return {name: _log_determinant(kernel) for name, kernel in kernels.items()}, entropies


def _entropy(rows: Tensor) -> float:
    # Of the shares of variance along the principal axes of rows (N, D).
    apart = (rows - rows.mean(0)).double()
    variances = torch.linalg.eigvalsh(apart.T @ apart).clamp_min(_LEAST)
    shares = variances / variances.sum()
    return float(-(shares * shares.log()).sum())


class _Gates(TorchFunctionMode):
    """Collects for every activation function which of its inputs are positive: each (B, ...)."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.gelu, F.silu, F.hardswish, F.relu):
            self.codes.append(args[0] > 0)
        return func(*args, **(kwargs or {}))


def _agreement(codes: Iterable[Tensor]) -> Tensor:
    # (B, B): units at which two scenes agree.
    flat = torch.cat([code.flatten(1) for code in codes], dim=1).double()
    return flat @ flat.T + (1 - flat) @ (1 - flat).T


def _log_determinant(kernel: Tensor) -> float:
    # Of a kernel with `units` on its diagonal; equal scenes make it singular, which the small term forgives.
    units = kernel.diagonal().mean()
    jitter = 1e-6 * units * torch.eye(len(kernel), dtype=kernel.dtype)
    return float(torch.linalg.slogdet(kernel + jitter)[1])


def gradients(config: VLMConfig, seed: int) -> tuple[Parts, Parts]:
    """Gradient norm (arXiv:2101.08134) and ZiCo (arXiv:2301.11300) of the answers' cross-entropy, from one pass.

    Gradient norm: log10 of the gradient's length over all parameters. ZiCo: the sum over matrices of the logarithm of
    the sum of mean |gradient| over its standard deviation between batches. Higher is better for both.
    """
    network = untrained(config, seed)
    named = [(name, p) for name, module in components(network).items() for p in module.parameters()]
    found: list[list[Tensor]] = [[] for _ in named]
    for start in range(0, _BATCHES * _BATCH, _BATCH):
        batch = batch_of(config, range(start, start + _BATCH), seed)
        loss = answer_loss(network, network.project(network.encode(batch.images)), batch)
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        for kept, grad, (_, p) in zip(found, grads, named, strict=True):
            kept.append(torch.zeros_like(p) if grad is None else grad)
    squares, ratios = dict.fromkeys(COMPONENTS, 0.0), dict.fromkeys(COMPONENTS, 0.0)
    for (name, p), kept in zip(named, found, strict=True):
        stacked = torch.stack(kept)  # (batches, ...)
        squares[name] += float(stacked.mean(0).square().sum())
        if p.dim() > 1:
            deviation = stacked.std(0, correction=0)
            varied = deviation > 0
            told = stacked.abs().mean(0)[varied] / deviation[varied]
            ratios[name] += math.log(max(float(told.sum()), _LEAST))
    squares["whole"], ratios["whole"] = sum(squares.values()), sum(ratios.values())
    return {name: 0.5 * math.log10(max(square, _LEAST)) for name, square in squares.items()}, ratios


def scores(config: VLMConfig, seed: int) -> dict[str, Parts]:
    """Every zero-cost score by name, the two baselines included."""
    patterns, entropies = activations(config, seed)
    norms, ratios = gradients(config, seed)
    return {
        "synflow": synaptic_flow(config, seed),
        "naswot": patterns,
        "expressivity": entropies,
        "gradient_norm": norms,
        "zico": ratios,
        "parameters": architecture.parameters(config),
        "flops": architecture.flops(config),
    }


# ------------------------------------------------------------------------------------- of the whole model, for a search


def synflow(config: VLMConfig, seed: int) -> float:
    """Synaptic flow of the whole model. Higher is better."""
    return synaptic_flow(config, seed)["whole"]


def naswot(config: VLMConfig, seed: int) -> float:
    """NASWOT of the whole model. Higher is better."""
    return activations(config, seed)[0]["whole"]


def expressivity(config: VLMConfig, seed: int) -> float:
    """Expressivity of the whole model. Higher is better."""
    return activations(config, seed)[1]["whole"]


def gradient_norm(config: VLMConfig, seed: int) -> float:
    """Gradient norm of the whole model. Higher is better."""
    return gradients(config, seed)[0]["whole"]


def zico(config: VLMConfig, seed: int) -> float:
    """ZiCo of the whole model. Higher is better."""
    return gradients(config, seed)[1]["whole"]


def parameters(config: VLMConfig, seed: int) -> float:
    """Log10 of the parameters: the baseline that a proxy must beat. Higher is better."""
    del seed
    return architecture.parameters(config)["whole"]


def flops(config: VLMConfig, seed: int) -> float:
    """Log10 of the operations of one request: the other baseline. Higher is better."""
    del seed
    return architecture.flops(config)["whole"]
