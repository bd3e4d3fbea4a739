from __future__ import annotations

import numpy as np
import pytest

from experiments.benchmarks import fewshot
from experiments.benchmarks.networks import vit
from search_spaces import KernelKind
from search_spaces.kernels import MATRIX_KINDS


@pytest.fixture(scope="module")
def published() -> vit.Published:
    return vit.read()


def test_every_network_has_the_published_parameters_and_multiply_adds(published: vit.Published) -> None:
    parameters, macs = [], []
    for network in published.networks:
        kernels = list(network.kernels())
        parameters.append(sum(k.weights * count for k, count in kernels if k.kind is not KernelKind.GATHER) / 1e6)
        macs.append(sum(k.ops * count for k, count in kernels if k.kind in MATRIX_KINDS) / 2e9)
    apart = np.abs(np.array([parameters, macs]) / [published.params_m, published.gmacs] - 1)
    assert apart.max(1) == pytest.approx(0, abs=0.03)
    # what the published count of multiply-adds has beyond matrices shows in the four smallest hybrids alone
    assert (apart < 0.01).sum(1).tolist() == [171, 167]


@pytest.mark.parametrize(
    ("name", "pixels", "tokens", "counted"),
    [
        ("vit_base_patch16_224", 224, 197, {"scores": 12, "norm": 25, "rope": 0}),
        ("vit_base_patch16_18x2_224", 224, 197, {"scores": 36, "norm": 73, "multiply": 72}),
        ("vit_base_patch16_siglip_256", 256, 256, {"scores": 13, "rope": 0}),
        ("eva02_small_patch14_336", 336, 577, {"scores": 12, "rope": 24}),
        ("vit_base_resnet50d_224", 224, 50, {"scores": 12, "conv": 19}),
    ],
)
def test_a_name_stands_for_its_parts(name: str, pixels: int, tokens: int, counted: dict[str, int]) -> None:
    network = vit.VisionTransformer.named(name, pixels)
    assert network.tokens == tokens
    for what, count in counted.items():
        assert sum(c for kernel, c in network.kernels() if what in (kernel.kind, kernel.op)) == count, what


def test_a_name_without_a_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no size in 'vit_unheard_patch16_224'; known: tiny, .* gigantic"):
        vit.VisionTransformer.named("vit_unheard_patch16_224", 224)


def test_twenty_latencies_predict_vision_transformers_within_ten_percent() -> None:
    found = fewshot.timm_errors(3, lambda *_: None)
    assert found["i7-12700h"]["mape_20"] < 6.5
    assert found["i9-10940x"]["mape_20"] < 10.0
