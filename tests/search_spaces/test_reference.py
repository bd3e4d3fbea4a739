"""Published encoders and decoders against their published parameter counts, and their kernels against these."""

from __future__ import annotations

import pytest

from search_spaces import ConfigError, KernelKind, Precision
from search_spaces.reference import (
    reference_decoder,
    reference_decoders,
    reference_encoder,
    reference_encoders,
)
from search_spaces.vision import VisionTransformer


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # model.safetensors' own counts; source: config.json and litgpt's entries of the same name
        ("SmolLM2-135M", 134_515_008),
        ("SmolLM2-1.7B", 1_711_376_384),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen3-0.6B", 596_049_920),
        ("Llama-3.2-1B", 1_235_814_400),
        ("TinyLlama-1.1B", 1_100_048_384),
        ("MobileLLaMA-1.4B", 1_364_297_728),
        ("MobileLLM-125M", 124_635_456),
        ("Gemma-2B", 2_506_172_416),
        ("Gemma-2-2B", 2_614_341_888),
        ("Gemma-3-1B", 999_885_952),
        ("Phi-2", 2_779_683_840),
        ("Phi-1.5", 1_418_270_720),
        ("StableLM-2-1.6B", 1_644_515_328),
        ("pythia-410m", 405_334_016),
        ("OpenELM-270M", 271_527_168),
        ("OpenELM-1.1B", 1_079_891_456),
        ("Llama-2-7B", 6_738_415_616),
    ],
)
def test_decoders_have_their_published_parameters(name: str, parameters: int) -> None:
    assert reference_decoder(name).parameters == parameters


def test_openelm_grows_as_published() -> None:
    # num_query_heads and num_kv_heads of apple/OpenELM-270M's config.json
    layers = reference_decoder("OpenELM-270M").config.layers
    assert [layer.kv_heads for layer in layers] == [3] * 5 + [4] * 7 + [5] * 4
    assert (layers[0].feed_forward, layers[-1].feed_forward) == (768, 5120)


@pytest.mark.parametrize("name", list(reference_decoders()))
def test_a_decode_step_reads_every_matrix_once(name: str) -> None:
    decoder = reference_decoder(name)
    kernels = list(decoder.kernels(1, 64, Precision.FP16))
    weights = sum(kernel.n * kernel.k * count for kernel, count in kernels if kernel.kind is KernelKind.LINEAR)
    config = decoder.config
    stored = decoder.parameters - (config.vocabulary * config.width if config.untied else 0)
    assert weights == pytest.approx(stored, rel=2e-3)
    assert decoder.source


@pytest.mark.parametrize("name", list(reference_encoders()))
def test_an_encoder_takes_each_patch_and_prefix_through_every_block(name: str) -> None:
    encoder = reference_encoder(name)
    kernels = dict(encoder.kernels(None, Precision.FP16))
    config = encoder.config
    assert encoder.source
    if not isinstance(config, VisionTransformer):
        assert sum(kernel.ops * count for kernel, count in kernels.items()) > 1e8
        return
    tokens = config.tokens + config.written.prefix_tokens
    wide = [kernel for kernel in kernels if kernel.kind is KernelKind.LINEAR and kernel.n == config.feed_forward]
    assert {(kernel.m, kernels[kernel]) for kernel in wide} == {(tokens, config.depth)}
    assert len(wide) == (2 if config.written.gated else 1)


def test_a_name_may_be_spelt_loosely_and_an_unknown_one_names_the_nearest() -> None:
    assert reference_decoder("smollm2 135m") is reference_decoder("SmolLM2-135M")
    with pytest.raises(ConfigError, match=r"did you mean 'Qwen2\.5-0\.5B'"):
        reference_decoder("Qwen2.5-0.5")


def test_every_row_names_where_its_dimensions_stand() -> None:
    for row in (*reference_decoders().values(), *reference_encoders().values()):
        assert row.basis == ("assumed" if row.source.startswith("unsourced") else "datasheet"), row.name
        assert row.source.split(";")[0].strip() not in ("", "assumed"), row.name
