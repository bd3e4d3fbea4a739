from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from cost_models.models import cost_model
from experiments.benchmarks import devices
from experiments.benchmarks.networks import fbnet, hat
from hardware_profiles import load
from search_spaces import Kernel, KernelKind

CONVOLUTIONS = frozenset({KernelKind.LINEAR, KernelKind.CONV, KernelKind.DEPTHWISE_CONV})


def published_flops(kernels: list[Kernel]) -> int:
    """As NASFLAT's counter: multiply-adds, two a normalised output, one a ReLU, one an input of the pooling.

    It missed the ReLU before each depthwise kernel: a block calls one ReLU module twice.
    """
    total = sum(kernel.ops // 2 + 2 * kernel.outputs for kernel in kernels if kernel.kind in CONVOLUTIONS)
    total += sum(kernel.ops for kernel in kernels if kernel.kind is KernelKind.POOLING)
    total -= 2 * kernels[-1].outputs  # the classifier is not normalised
    for kernel, following in pairwise(kernels):
        before_depthwise = following == kernel or following.op == "transpose" or following.window > 1
        if "relu" in kernel.epilogue and not (kernel.kind is KernelKind.LINEAR and before_depthwise):
            total += kernel.outputs
    return total


def published_parameters(kernels: list[Kernel]) -> int:
    """Filters, two a normalised channel, and the classifier's weights and biases."""
    return sum(kernel.weights + kernel.n for kernel in kernels if kernel.kind in CONVOLUTIONS) - fbnet.CLASSES


def test_fbnet_counts_equal_the_published_ones() -> None:
    for measured in fbnet.read()[::25]:
        kernels = [kernel for kernel, count in measured.network.kernels() for _ in range(count)]
        assert published_parameters(kernels) == measured.parameters
        assert published_flops(kernels) == measured.flops


def attend(queries: torch.Tensor, keys: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of (rows, time, width) tensors."""

    def split(x: torch.Tensor) -> torch.Tensor:
        rows, time, width = x.shape
        return x.view(rows, time, heads, width // heads).transpose(1, 2).reshape(rows * heads, time, width // heads)

    found = torch.bmm(torch.bmm(split(queries), split(keys).transpose(1, 2)).softmax(-1), split(keys))
    rows, time, width = queries.shape
    return found.view(rows, heads, time, width // heads).transpose(1, 2).reshape(rows, time, width)


def linear(x: torch.Tensor, outputs: int) -> torch.Tensor:
    return F.linear(x, torch.empty(outputs, x.shape[-1], device="meta"))


def translate(encoder: hat.HatEncoder, decoder: hat.HatDecoder) -> tuple[int, int]:
    """Operations of encoder and decoder as torch counts them in a run by the book."""
    with FlopCounterMode(display=False) as encoding:
        x = torch.empty(1, hat.TOKENS, encoder.width, device="meta")
        for heads, feed_forward in zip(encoder.heads, encoder.feed_forwards, strict=True):
            qkv = linear(x, 3 * hat.QKV_WIDTH)
            x = linear(attend(*qkv.chunk(3, -1)[:2], heads), encoder.width)
            x = linear(linear(x, feed_forward), encoder.width)
    with FlopCounterMode(display=False) as decoding:
        sources = [
            linear(torch.empty(hat.BEAM, hat.TOKENS * count, encoder.width, device="meta"), 2 * hat.QKV_WIDTH)
            for count in decoder.attended
        ]
        for step in range(hat.TOKENS):
            x = torch.empty(hat.BEAM, 1, decoder.width, device="meta")
            own = torch.empty(hat.BEAM, step + 1, hat.QKV_WIDTH, device="meta")
            for i, feed_forward in enumerate(decoder.feed_forwards):
                query = linear(x, 3 * hat.QKV_WIDTH).chunk(3, -1)[0]
                x = linear(attend(query, own, decoder.heads[i]), decoder.width)
                source = sources[i].chunk(2, -1)[0]
                x = linear(attend(linear(x, hat.QKV_WIDTH), source, decoder.cross_heads[i]), decoder.width)
                x = linear(linear(x, feed_forward), decoder.width)
            linear(x, hat.VOCABULARY)
    return encoding.get_total_flops(), decoding.get_total_flops()


def test_hat_operations_equal_what_torch_counts() -> None:
    for measured in hat.read()[::1000]:
        encoder, decoder = measured.encoder, measured.decoder
        counted = devices.matrix_ops([list(encoder.kernels()), list(decoder.kernels())])
        assert tuple(counted) == translate(encoder, decoder)


def test_layers_keep_the_published_average() -> None:
    assert hat.likeliest(14, 3, (2, 4, 8)) == (2, 4, 8)
    assert hat.likeliest(12, 3, (2, 4, 8)) == (2, 2, 8)  # three orders, against one of (4, 4, 4)
    with pytest.raises(ValueError, match="sum to 13"):
        hat.likeliest(13, 3, (2, 4, 8))


def test_every_network_has_a_price() -> None:
    model = cost_model("roofline", load(devices.DEVICE))
    networks = [list(measured.network.kernels()) for measured in fbnet.read()[::100]]
    networks += [list(measured.decoder.kernels()) for measured in hat.read()[::100]]
    seconds = devices.priced(networks, model)
    assert np.isfinite(seconds).all()
    assert (seconds > devices.matrix_ops(networks) / model.profile.peak_ops_per_s.fp32.value).all()
