"""Kernels come from configs; here torch, and fvcore, say whether they are right."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas.count import fvcore_operations, kernel_operations
from search_spaces import (
    PROJECTORS,
    SPACES,
    ImageEncoder,
    LanguageConfig,
    Phase,
    VLMConfig,
    Workload,
)
from search_spaces.hybrid import ConvHybrid
from search_spaces.kernels import MATRIX_KINDS
from search_spaces.language import FAMILIES
from search_spaces.network import DecodeGraph, PrefillGraph, graphs
from search_spaces.staged import EfficientViT, FastViT, MobileNetV4, TinyViT
from search_spaces.systems import with_quant
from search_spaces.vision import STYLES, VisionTransformer

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


def check(config: VLMConfig) -> None:
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
    assert VLMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    # every matrix at two bytes, all else at two: scales aside, half precision is half of what is needed of it
    half = with_quant(config, "fp16")
    assert half.weight_bytes == 2 * (config.parameters - config.vision.idle_parameters)


@pytest.mark.parametrize("batch", BATCHES)
def test_operations_equal_torch_and_parameters_equal_numel(batch: int) -> None:
    for config in sampled(batch):
        check(config)


def full_size() -> list[object]:
    """Some with the fast tests, 200 of each space with the slow ones."""
    names = [name for name, space in SPACES.items() if space.full_size]
    return [pytest.param(name, 6, id=f"{name}-some") for name in names] + [
        pytest.param(name, 200, id=f"{name}-200", marks=pytest.mark.slow) for name in names
    ]


@pytest.mark.parametrize(("name", "count"), full_size())
def test_models_of_full_size_are_what_torch_counts(name: str, count: int) -> None:
    rng, space = random.Random(count), SPACES[name]
    for _ in range(count):
        check(space.decode(space.sample(rng)))


SMALL_VIT = VisionTransformer(image_px=66, grid=8, depth=5, heads=4, head_width=32, feed_forward=256)
SMALL_DECODER = LanguageConfig(
    depth=4, kv_heads=2, queries_per_kv_head=2, head_width=32, feed_forward=256, vocabulary=512
)
ENCODER_EXAMPLES = [
    FastViT(256),
    FastViT(
        256,
        widths=(32, 64, 128, 128, 256),
        depths=(1, 2, 1, 2, 1),
        attended=2,
        excited=0,
        expansion=4,
        branched_stem=0,
        embedding=64,
    ),
    TinyViT(256),
    EfficientViT(192),
    MobileNetV4(256, "medium"),
    MobileNetV4(192, "small"),
    ConvHybrid(image_px=48, grid=6, depth=3, heads=2, head_width=16, feed_forward=64, stem_width=3),
    *(dataclasses.replace(SMALL_VIT, style=style, skipped=1, pooled=1) for style in STYLES),
]
DECODER_EXAMPLES = [
    *(dataclasses.replace(SMALL_DECODER, family=family) for family in FAMILIES),
    dataclasses.replace(SMALL_DECODER, token_width=96, untied=True, adapter_width=8),
    dataclasses.replace(SMALL_DECODER, family="gemma3", window=6, global_every=3),
    dataclasses.replace(SMALL_DECODER, window=6),
    dataclasses.replace(
        SMALL_DECODER,
        family="openelm",
        token_width=512,
        kv_heads=4,
        feed_forward=2048,
        first_heads=4,
        first_feed_forward=256,
    ),
]


@pytest.mark.parametrize("encoder", ENCODER_EXAMPLES, ids=str)
def test_every_encoder_is_what_torch_counts(encoder: ImageEncoder) -> None:
    check(VLMConfig(encoder, PROJECTORS["linear"](), SMALL_DECODER))


@pytest.mark.parametrize("name", ["edge", "assembled"])
def test_tiles_soft_tokens_and_adapters_of_a_space_are_what_torch_counts(name: str) -> None:
    space, rng = SPACES[name], random.Random(3)
    drawn = [
        space.decode({**space.sample(rng), "tiles": tiles, "soft_tokens": soft, "adapter_width": adapter})
        for tiles, soft, adapter in ((5, 16, 64), (1, 16, 0), (5, 0, 64))
    ]
    for config in drawn:
        check(config)


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize("kind", sorted(PROJECTORS))
def test_every_projector_is_what_torch_counts(kind: str, tiles: int) -> None:
    check(VLMConfig(SMALL_VIT, PROJECTORS[kind](), SMALL_DECODER, tiles=tiles, soft_tokens=2 * (tiles - 1)))


@pytest.mark.parametrize("decoder", DECODER_EXAMPLES, ids=str)
def test_every_decoder_is_what_torch_counts(decoder: LanguageConfig) -> None:
    check(VLMConfig(SMALL_VIT, PROJECTORS["linear"](), decoder))


@pytest.mark.parametrize(
    ("encoder", "stored"),
    [  # timm 1.0.31, training branches and all; what it counts of its heads is given apart
        (FastViT(256), 10_882_176),
        (
            FastViT(
                1024,
                widths=(96, 192, 384, 768, 1536),
                depths=(2, 12, 24, 4, 2),
                attended=2,
                excited=0,
                expansion=4,
                branched_stem=0,
                embedding=768,
            ),
            125_235_648,  # FastViTHD, apple/ml-fastvlm@592b4ad
        ),
        (TinyViT(224), 5_071_764),
        (EfficientViT(224), 7_501_024 - (256 * 1536 + 2 * 1536) - (1536 * 1600 + 2 * 1600)),
        (MobileNetV4(256, "medium"), 8_434_512 - (960 * 1280 + 2 * 1280)),
        (MobileNetV4(224, "small"), 2_493_024 - (960 * 1280 + 2 * 1280)),
        (VisionTransformer(336, 24, 24, 16, 64, 4096, style="clip"), 303_507_456),
        (VisionTransformer(384, 27, 27, 16, 72, 4304, pooled=1), 428_225_600),
        (VisionTransformer(384, 27, 27, 16, 72, 4304), 412_987_248),
        (VisionTransformer(518, 37, 12, 6, 64, 1536, style="dinov2"), 22_056_192),
        (VisionTransformer(224, 16, 40, 16, 88, 6144, style="eva"), 1_011_146_112),
        (VisionTransformer(448, 32, 24, 16, 64, 4096, style="intern"), 303_938_560),
    ],
    ids=lambda value: str(value)[:40],
)
def test_encoders_have_their_published_parameters(encoder: ImageEncoder, stored: int) -> None:
    assert encoder.stored_parameters == stored


@pytest.mark.parametrize("encoder", [FastViT(256), VisionTransformer(224, 16, 3, 4, 64, 1024)], ids=str)
def test_a_pruned_encoder_has_narrower_feed_forwards(encoder: FastViT | VisionTransformer) -> None:
    pruned = encoder.pruned(0.5)
    check(VLMConfig(pruned, PROJECTORS["linear"](), SMALL_DECODER))
    assert pruned.parameters < encoder.parameters
    assert (pruned.depth, pruned.width, pruned.grid) == (encoder.depth, encoder.width, encoder.grid)


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
    continues(config, seed)


@pytest.mark.parametrize("decoder", DECODER_EXAMPLES, ids=str)
def test_decode_steps_of_every_decoder_continue_a_prefill_exactly(decoder: LanguageConfig) -> None:
    continues(VLMConfig(SMALL_VIT, PROJECTORS["average_pool"](), decoder), 0)


def continues(config: VLMConfig, seed: int) -> None:
    torch.manual_seed(seed)
    network = config.build().eval()
    tokens = torch.randint(config.language.vocabulary, (1, 6))
    image_tokens = torch.randn(1, config.image_tokens, config.language.width)
    with torch.no_grad():
        rows = config.image_tokens + 6
        logits, *caches = PrefillGraph(network, rows - 2)(image_tokens, tokens[:, :4])
        held = [layer.window or rows for layer in config.language.layers for _ in "kv"]
        padded = [
            torch.nn.functional.pad(cache, (0, 0, 0, min(rows, most) - cache.shape[2]))
            for cache, most in zip(caches, held, strict=True)
        ]
        for step in (4, 5):
            position = torch.tensor([config.image_tokens + step])
            logits, *padded = DecodeGraph(network, rows)(tokens[:, step : step + 1], position, *padded)
        whole, *_ = PrefillGraph(network, rows)(image_tokens, tokens)
    assert torch.allclose(logits, whole, atol=1e-4, rtol=1e-4)
