"""Training and evaluation under the precision of a config: weights as its kernels store them, in fp32.

Every matrix is rounded as `cost_models.tvm.packing` rounds it: int8 and w8a8 with one scale an output, int4 with a
bf16 scale for 32 inputs of an output, fp16 as such; norms, biases and positions stay. Under w8a8 each row that enters
a linear layer is rounded to bytes of its own scale too. Gradients pass as if nothing were rounded (arXiv:1308.3432).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from search_spaces.kernels import INT4_GROUP, Precision
from search_spaces.network import VisionLanguageModel

_MATRICES = (nn.Linear, nn.Conv2d, nn.Embedding)


@contextmanager
def rounded(network: VisionLanguageModel) -> Iterator[None]:
    """Within, the network computes under its config's precision; behind it, its weights are the rounded ones."""
    precision = network.config.precision
    if precision is Precision.FP32:
        yield
        return
    matrices = [module for module in network.modules() if isinstance(module, _MATRICES)]
    hooks = []
    for module in matrices:
        parametrize.register_parametrization(module, "weight", _Stored(precision))
    if precision is Precision.W8A8:
        linear = [module for module in matrices if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_pre_hook(lambda _, inputs: (_through(inputs[0]),)) for module in linear]
        # what the final norm puts out enters the logits' product only
        hooks.append(network.language.norm.register_forward_hook(lambda _, inputs, out: _through(out)))
    try:
        yield
    finally:
        for module in matrices:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for hook in hooks:
            hook.remove()


def stored(weight: Tensor, precision: Precision) -> Tensor:
    """A weight (outputs, ...) as the precision keeps it."""
    if precision is Precision.FP32:
        return weight
    if precision is Precision.FP16:
        return weight.half().float()
    rows = weight.flatten(1)
    if precision is not Precision.INT4:
        return _bytes(rows).view_as(weight)
    inputs = rows.shape[1]
    groups = F.pad(rows, (0, -inputs % INT4_GROUP)).view(len(rows), -1, INT4_GROUP)
    scale = _scale(groups, 7.0)
    # the nearest bf16, halves away from zero
    scale = ((scale.view(torch.int32) + 0x8000) & -0x10000).view(torch.float32)
    kept: Tensor = (groups / scale).round().clamp(-7, 7) * scale
    return kept.flatten(1)[:, :inputs].reshape(weight.shape)


def _bytes(rows: Tensor) -> Tensor:
    scale = _scale(rows, 127.0)
    return (rows / scale).round() * scale


def _scale(values: Tensor, most: float) -> Tensor:
    largest = values.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest / most, 1.0)


def _through(rows: Tensor) -> Tensor:
    return rows + (_bytes(rows) - rows).detach()


class _Stored(nn.Module):
    """A weight as stored, its gradient that of the weight itself."""

    def __init__(self, precision: Precision) -> None:
        super().__init__()
        self.precision = precision

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (stored(weight, self.precision) - weight).detach()
