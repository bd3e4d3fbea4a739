"""Kernels come from configs; here torch, and fvcore, say whether they are right."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas.count import fvcore_operations, kernel_operations
from search_spaces import SPACES, Phase, VLMConfig, Workload
from search_spaces.kernels import MATRIX_KINDS
from search_spaces.network import DecodeGraph, PrefillGraph, graphs

WORKLOAD = Workload(prompt_tokens=7, new_tokens=3)
#: 8 batches of 25 configs: 200, in pieces that two workers share.
BATCHES = range(8)


def sampled(batch: int, count: int = 25) -> list[VLMConfig]:
    rng = random.Random(batch)
    space = SPACES["tiny"]
    return [space.decode(space.sample(rng)) for _ in range(count)]


def operations(config: VLMConfig, phase: Phase) -> int:
    counted = config.kernels(phase, WORKLOAD)
    return sum(kernel.ops * count for kernel, count in counted if kernel.kind in MATRIX_KINDS)


@pytest.mark.parametrize("batch", BATCHES)
def test_operations_equal_torch_and_parameters_equal_numel(batch: int) -> None:
    for config in sampled(batch):
        with torch.device("meta"):
            network = config.build().eval()
            counted = {}
            for name, (graph, inputs) in graphs(network, WORKLOAD).items():
                with FlopCounterMode(display=False) as counter:  # its module tracker needs gradients
                    graph(*inputs)
                counted[name] = counter.get_total_flops()
        assert operations(config, Phase.VISION) + operations(config, Phase.PROJECTOR) == counted["vision"], config
        assert operations(config, Phase.PREFILL) == counted["prefill"], config
        assert operations(config, Phase.DECODE) == counted["decode"], config
        assert config.parameters == sum(p.numel() for p in network.parameters()), config
        for component, count in config.component_parameters.items():
            assert count == sum(p.numel() for p in getattr(network, component).parameters()), (component, config)


def fvcore_batches() -> list[object]:
    # About a second a config: a fifth of them with the fast tests, all of them with the slow ones.
    return [pytest.param(batch, 5, id=f"some-{batch}") for batch in BATCHES] + [
        pytest.param(batch, 25, id=f"all-{batch}", marks=pytest.mark.slow) for batch in BATCHES
    ]


@pytest.mark.parametrize(("batch", "count"), fvcore_batches())
def test_fvcore_agrees(batch: int, count: int) -> None:
    for config in sampled(batch, count):
        assert fvcore_operations(config, WORKLOAD) == kernel_operations(config, WORKLOAD), config


@pytest.mark.parametrize("seed", range(4))
def test_decode_steps_continue_a_prefill_exactly(seed: int) -> None:
    (config,) = sampled(100 + seed, count=1)
    torch.manual_seed(seed)
    network = config.build().eval()
    tokens = torch.randint(config.language.vocabulary, (1, 6))
    image_tokens = torch.randn(1, config.image_tokens, config.language.width)
    with torch.no_grad():
        rows = config.image_tokens + 6
        logits, *caches = PrefillGraph(network, rows - 2)(image_tokens, tokens[:, :4])
        padded = [torch.nn.functional.pad(cache, (0, 0, 0, rows - cache.shape[2])) for cache in caches]
        for step in (4, 5):
            position = torch.tensor([config.image_tokens + step])
            logits, *padded = DecodeGraph(network, rows)(tokens[:, step : step + 1], position, *padded)
        whole, *_ = PrefillGraph(network, rows)(image_tokens, tokens)
    assert torch.allclose(logits, whole, atol=1e-4, rtol=1e-4)
