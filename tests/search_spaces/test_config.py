"""Configs: strict JSON, stable ids, published parameter counts, and a space in which every point is valid."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import ENCODERS, PROJECTORS, SPACES, ConfigError, Kernel, KernelKind, Phase, VLMConfig, Workload
from search_spaces.projectors import Ldp, LdpV2

TINY = SPACES["tiny"]
seeds = st.integers(0, 2**32 - 1)


def config_of(seed: int) -> VLMConfig:
    return TINY.decode(TINY.sample(random.Random(seed)))


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_json_round_trip(seed: int) -> None:
    config = config_of(seed)
    again = VLMConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.id == config.id


@given(seeds, seeds)
@settings(max_examples=200, deadline=None)
def test_different_points_are_different_models(first: int, second: int) -> None:
    a, b = (TINY.sample(random.Random(seed)) for seed in (first, second))
    assert (TINY.decode(a).id == TINY.decode(b).id) == (a == b)


def test_id_is_the_same_in_another_process() -> None:
    code = (
        "import random; from search_spaces import SPACES; s = SPACES['tiny']\n"
        "print(s.decode(s.sample(random.Random(5))).id)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == config_of(5).id


def test_space_is_large_enough() -> None:
    assert TINY.size >= 10**8


@given(seeds, st.integers(1, 2), st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=150, deadline=None)
def test_every_point_has_work_in_every_phase(seed: int, images: int, prompt: int, new: int) -> None:
    config = config_of(seed)
    workload = Workload(images, prompt, new)
    for phase in Phase:
        for kernel, count in config.kernels(phase, workload):
            assert count >= 1
            assert kernel.bytes_moved > 0
            assert kernel.ops >= 0
    assert config.kv_cache_bytes(workload) > 0


# MobileVLM, Meituan-AutoML/MobileVLM@688fdec:mobilevlm/model/vision_projector.py; counts verified by instantiation
# at 1024 vision channels and 24 x 24 tokens in, 144 out.
@pytest.mark.parametrize(("width", "count"), [(576, 1934496), (2048, 18936832), (2560, 28913920), (4096, 71428096)])
def test_ldp_has_its_published_parameters(width: int, count: int) -> None:
    assert Ldp().parameters(24, 1024, width) == count
    assert sum(p.numel() for p in Ldp().build(24, 1024, width).parameters()) == count
    assert Ldp().tokens(24) == 144


@pytest.mark.parametrize(
    ("width", "count"), [(576, 928512), (1536, 3950592), (2048, 6316032), (2560, 9205760), (4096, 21020672)]
)
def test_ldpv2_has_its_published_parameters(width: int, count: int) -> None:
    assert LdpV2().parameters(24, 1024, width) == count
    assert sum(p.numel() for p in LdpV2().build(24, 1024, width).parameters()) == count
    assert LdpV2().tokens(24) == 144


@pytest.mark.parametrize(
    ("projector", "grid", "vision_width", "width", "count"),
    [
        ("linear", 24, 1024, 2048, 2099200),  # LLaVA-1, MobileVLM's vision_projector.py
        ("mlp", 24, 1024, 2048, 6295552),  # LLaVA-1.5's mlp2x_gelu, haotian-liu/LLaVA@c121f04
        ("pixel_shuffle", 14, 768, 1536, 4718592),  # nanoVLM-222M, huggingface/nanoVLM@4e0c096
        ("shuffled_mlp", 32, 1024, 896, 4482816),  # OpenGVLab/InternVL@2410d1d
        ("xdp", 24, 1024, 2048, 12587008),  # XiaoduoAILab/XmodelVLM@1eb41d0
        ("token_packer", 24, 1024, 2048, 22038528),  # CircleRadon/TokenPacker@771a16e
        ("c_abstractor", 24, 1024, 2048, 22124032),  # khanrc/honeybee@68a8d84, c-abs.yaml, without positions
        ("c_abstractor", 24, 1024, 2560, 25008640),
        ("q_former", 16, 1408, 2560, 105137664 + 32 * 768 + 768 * 2560 + 2560),  # Blip2QFormerModel, queries, linear
    ],
)
def test_other_projectors_have_their_published_parameters(
    projector: str, grid: int, vision_width: int, width: int, count: int
) -> None:
    assert PROJECTORS[projector]().parameters(grid, vision_width, width) == count


@pytest.mark.parametrize("kind", sorted(PROJECTORS))
def test_every_projector_gives_the_tokens_it_says(kind: str) -> None:
    import torch

    projector = PROJECTORS[kind]()
    module = projector.build(6, 24, 28)
    out = module(torch.randn(2, 36, 24 * projector.levels))
    assert out.shape == (1 if projector.joins_tiles else 2, projector.tokens(6), 28)


@pytest.mark.parametrize("family", sorted(ENCODERS))
def test_every_encoder_gives_the_tokens_it_says(family: str) -> None:
    import torch

    sizes = {"grid": 4, "depth": 3, "heads": 2, "head_width": 10, "feed_forward": 30}
    side = 224 if family in ("swin", "dat") else 64  # the least that their squares fill
    config = ENCODERS[family](image_px=side, **sizes if family in ("vit", "hybrid") else {})  # type: ignore[call-arg]
    out = config.build()(torch.randn(2, 3, side, side))
    assert out.shape == (2, config.tokens, config.width)
    assert torch.isfinite(out).all()


def broken(**changes: Any) -> dict[str, Any]:
    data = config_of(0).to_dict()
    for path, value in changes.items():
        *parents, key = path.split("__")
        inner = data
        for parent in parents:
            inner = inner[parent]
        if value is None:
            inner.pop(key)
        else:
            inner[key] = value
    return data


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (broken(version=2), "version 2"),
        (broken(version=None), "version None"),
        (broken(langauge={}), "did you mean 'language'"),
        (broken(language__depth="4"), "language.depth must be a whole number"),
        (broken(language__depth=True), "language.depth must be a whole number"),
        (broken(language__depth=0), ">= 1"),
        (broken(language__head_width=7), "even"),
        (broken(language__kv_head=2), "did you mean 'kv_heads'"),
        (broken(vision__family="vlt"), "did you mean 'vit'"),
        (broken(projector__kind="ldp2"), "did you mean 'ldpv2'"),
        (broken(vision__grid=11), "must divide"),
        (broken(precision="fp23"), "did you mean 'fp32'"),
        (broken(vision__depth=None), "lacks depth"),
        ([1], "must be a mapping"),
        ("config", "must be a mapping"),
    ],
)
def test_bad_json_says_what_is_wrong(data: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        VLMConfig.from_dict(data)


def test_bad_points_say_what_is_wrong() -> None:
    point = TINY.sample(random.Random(0))
    with pytest.raises(ConfigError, match="did you mean 'image_px'"):
        TINY.decode({**point, "image_pix": 48})
    with pytest.raises(ConfigError, match="must be one of 24, 48"):
        TINY.decode({**point, "image_px": 50})
    point.pop("encoder")
    with pytest.raises(ConfigError, match="lacks encoder"):
        TINY.decode(point)


def test_unknown_variants_and_sizes_of_kernels_raise() -> None:
    with pytest.raises(ValueError, match="unknown norm variant"):
        Kernel(KernelKind.NORM, 4, 4, op="batch_norm")
    with pytest.raises(ValueError, match="unknown epilogue"):
        Kernel(KernelKind.LINEAR, 4, 4, 4, epilogue=("swish",))
    with pytest.raises(ValueError, match="no variants"):
        Kernel(KernelKind.LINEAR, 4, 4, 4, op="layer_norm")
    with pytest.raises(ValueError, match=">= 1"):
        Kernel(KernelKind.LINEAR, 0, 4, 4)


def test_kernels_survive_another_process() -> None:
    import pickle

    kernel = Kernel(KernelKind.LINEAR, 4, 8, 16, epilogue=("bias",))
    assert pickle.loads(pickle.dumps(kernel)) == kernel  # noqa: S301
    code = (
        "import pickle, sys; from search_spaces import Kernel, KernelKind\n"
        "k = Kernel(KernelKind.LINEAR, 4, 8, 16, epilogue=('bias',))\n"
        "sys.stdout.buffer.write(pickle.dumps(k))"
    )
    sent = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert {pickle.loads(sent): 1}[kernel] == 1  # noqa: S301


def test_a_linear_kernel_by_hand() -> None:
    kernel = Kernel(KernelKind.LINEAR, 4, 8, 16, epilogue=("bias", "residual"))
    assert kernel.ops == 2 * 4 * 8 * 16
    assert kernel.weight_bytes == 4 * (8 * 16 + 8)
    assert kernel.activation_bytes == 4 * (4 * 16 + 4 * 8 + 4 * 8)
