"""Bytes that leave a device, against the published shapes of known models."""

from __future__ import annotations

import dataclasses

import pytest

from search_spaces import ConfigError, Phase, Precision, Workload
from search_spaces.placement import Cut, Sent, cuts_named, sent
from search_spaces.projectors import TokenPacker
from search_spaces.systems import reference_system

ASKED = Workload(prompt_tokens=40, new_tokens=64)
TEXT = 40 * 4.0


@pytest.mark.parametrize(
    ("name", "cut", "shape"),
    [
        ("LLaVA-1.5-7B", Cut.AFTER_ENCODER, (576, 1024)),  # arXiv:2310.03744: CLIP-L at 336 px, 24 x 24 patches
        ("LLaVA-1.5-7B", Cut.AFTER_PROJECTOR, (576, 4096)),
        ("MobileVLM-1.7B", Cut.AFTER_ENCODER, (576, 1024)),
        ("MobileVLM-1.7B", Cut.AFTER_PROJECTOR, (144, 2048)),  # arXiv:2312.16886: 144 tokens
        ("SmolVLM-256M", Cut.AFTER_ENCODER, (1024, 768)),  # 512 px in patches of 16
        ("SmolVLM-256M", Cut.AFTER_PROJECTOR, (64, 576)),  # huggingface.co/blog/smolvlm: 64 tokens a tile
    ],
)
def test_features_are_as_large_as_their_shape(name: str, cut: Cut, shape: tuple[int, int]) -> None:
    config, (rows, width) = reference_system(name).config, shape
    for precision, size in (
        (Precision.FP32, 4 * rows * width),
        (Precision.FP16, 2 * rows * width),
        (Precision.INT8, rows * width + 4 * rows),  # a scale a token
        (Precision.INT4, rows * width // 2 + 2 * rows * width // 32),  # a scale for each 32
    ):
        assert sent(config, ASKED, cut, precision, 2.0) == Sent(feature_bytes=size, text_bytes=TEXT)


def test_known_sizes_in_bytes() -> None:
    llava, mobile = reference_system("LLaVA-1.5-7B").config, reference_system("MobileVLM-1.7B").config
    assert sent(llava, ASKED, Cut.AFTER_ENCODER, Precision.FP16, 2.0).feature_bytes == 1_179_648
    assert sent(mobile, ASKED, Cut.AFTER_PROJECTOR, Precision.FP16, 2.0).feature_bytes == 589_824
    assert sent(llava, ASKED, Cut.CLOUD, Precision.FP16, 2.0) == Sent(336 * 336 * 2 / 8, 0.0, TEXT)
    assert sent(llava, ASKED, Cut.DEVICE, Precision.FP16, 2.0).total_bytes == 0


def test_images_tiles_and_levels_multiply() -> None:
    config = reference_system("SmolVLM-256M").config
    tiled = dataclasses.replace(config, tiles=5)
    two = dataclasses.replace(ASKED, images=2)
    for cut, factor in ((Cut.AFTER_ENCODER, 5), (Cut.AFTER_PROJECTOR, 5), (Cut.CLOUD, 4)):  # no overview as pixels
        one, five, twice = (
            sent(*asked, cut, Precision.FP16, 2.0) for asked in ((config, ASKED), (tiled, ASKED), (config, two))
        )
        assert five.total_bytes - TEXT == factor * (one.total_bytes - TEXT)
        assert twice.total_bytes - TEXT == 2 * (one.total_bytes - TEXT)
    llava = reference_system("LLaVA-1.5-7B").config
    packed = dataclasses.replace(llava, projector=TokenPacker())
    levels = sent(packed, ASKED, Cut.AFTER_ENCODER, Precision.FP16, 2.0).feature_bytes / 1_179_648
    assert levels == TokenPacker.levels > 1
    crops = reference_system("Moondream2").config  # its projector joins the tiles: both are features before it
    rows = crops.tiles * crops.vision.tokens
    assert sent(crops, ASKED, Cut.AFTER_ENCODER, Precision.FP16, 2.0).feature_bytes == rows * crops.vision.width * 2


def test_learned_rows_stay_with_the_decoder() -> None:
    config = reference_system("MobileVLM-1.7B").config
    soft = dataclasses.replace(config, soft_tokens=20)
    for cut in Cut:
        assert sent(soft, ASKED, cut, Precision.FP16, 2.0) == sent(config, ASKED, cut, Precision.FP16, 2.0)


def test_a_cut_divides_the_phases() -> None:
    assert Cut.DEVICE.phases == tuple(Phase)
    assert Cut.AFTER_PROJECTOR.phases == (Phase.VISION, Phase.PROJECTOR)
    assert Cut.AFTER_ENCODER.phases == (Phase.VISION,)
    assert Cut.CLOUD.phases == ()


def test_cuts_by_name() -> None:
    assert cuts_named(["cloud", "device", "device"]) == (Cut.DEVICE, Cut.CLOUD)
    assert cuts_named(tuple(Cut), no_pixels_leave=True) == (Cut.DEVICE, Cut.AFTER_PROJECTOR, Cut.AFTER_ENCODER)
    assert cuts_named(["cloud"], no_pixels_leave=True) == ()
    with pytest.raises(ConfigError, match="did you mean 'after_encoder'"):
        cuts_named(["after_encodr"])
