"""Published models against their published parameter counts, and torch's counts of their networks."""

from __future__ import annotations

import pytest
from test_truth import check

from search_spaces import SPACES, ConfigError, Precision, SearchSpace, VLMConfig
from search_spaces.systems import QUANTS, reference_system, reference_systems, with_quant

#: From the papers' repositories, model cards and configs; sums of their parts' weights.
PUBLISHED = {
    "MobileVLM-1.7B": 1_686_742_016,
    "MobileVLM_V2-1.7B": 1_674_121_216,
    "MobileVLM-3B": 3_033_981_696,
    "MobileVLM_V2-3B": 3_014_273_536,
    "SmolVLM-256M": 256_484_928,
    "SmolVLM-500M": 507_482_304,
    "SmolVLM-2.2B": 2_246_272_880,
    "nanoVLM-222M": 222_082_176,
    "FastVLM-0.5B": 758_960_192,
    "FastVLM-1.5B": 1_676_030_912,
    "Qwen2-VL-2B": 2_208_985_600,
    "PaliGemma-3B": 2_923_466_480,
    "LLaVA-1.5-7B": 7_062_902_784,
    "TinyLLaVA-3.1B": 3_217_417_280,
    "InternVL2-1B": 802_454_144,
    "LLaVA-OneVision-0.5B": 924_095_168,
}
NAMES = list(reference_systems())


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_models_have_their_published_parameters(name: str, parameters: int) -> None:
    assert reference_system(name).parameters == parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_published_model_is_what_torch_counts(name: str) -> None:
    system = reference_system(name)
    check(system.config)
    assert system.source
    # TinyGPT-V's figure leaves out 32 queries of 768 and the linear layer to 2,560 channels
    left_out = 32 * 768 + 768 * 2560 + 2560 if name == "TinyGPT-V" else 0
    assert system.published_parameters in (None, system.parameters - left_out)


@pytest.mark.parametrize("quant", QUANTS)
def test_quantised_weights_are_as_large_as_their_formats(quant: str) -> None:
    system = reference_system("MobileVLM-1.7B")
    config = with_quant(system.config, quant)
    bits = {"w4a16": 4.5, "int4": 4.5, "w8a16": 8, "int8": 8, "w8a8": 8, "fp16": 16, "fp32": 32}[quant]
    decoder = config.stored_bytes  # group scales of two bytes for 32 weights: half a bit
    from search_spaces import Phase

    assert decoder(Phase.DECODE) == pytest.approx(system.config.language.parameters * bits / 8, rel=0.005)
    assert config.vision_precision == (Precision.FP16 if "a16" in quant else None)
    assert VLMConfig.from_dict(config.to_dict()) == config


def test_names_may_be_spelt_loosely_and_unknown_ones_name_the_nearest() -> None:
    assert reference_system("mobilevlm-v2-1.7b").name == "MobileVLM_V2-1.7B"
    with pytest.raises(ConfigError, match=r"did you mean 'MobileVLM-1\.7B'"):
        reference_system("MobileVLM-1.7")
    with pytest.raises(ConfigError, match="did you mean 'w4a16'"):
        with_quant(reference_system("SmolVLM-256M").config, "w4a17")


@pytest.mark.parametrize(
    ("space", "name"), [(space, name) for space in SPACES.values() if space.full_size for name in space.references]
)
def test_references_of_a_space_are_like_the_published_systems(space: SearchSpace, name: str) -> None:
    own, published = space.decode(space.references[name]), reference_system(name).config
    assert own.image_tokens == published.image_tokens
    assert own.vision.parameters == pytest.approx(published.vision.parameters, rel=0.04)
    # those with untied vocabularies keep theirs twice
    assert own.language.depth == pytest.approx(published.language.depth, rel=0.25)
    assert own.language.width == pytest.approx(published.language.width, rel=0.15)
    assert own.parameters == pytest.approx(published.parameters, rel=0.22)


def test_a_narrowed_space_keeps_the_references_that_are_left() -> None:
    space = SPACES["assembled"].narrowed({"encoder": ["siglip-b-512", "clip-b-224"]})
    assert set(space.references) == {"SmolVLM-256M", "SmolVLM-500M"}
    assert all(space.decode(point) for point in space.references.values())
