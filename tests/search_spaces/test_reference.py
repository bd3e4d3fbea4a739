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


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # model.safetensors' own counts; source: config.json and litgpt's entries of the same name
        ("SmolLM2-135M", 134_515_008),
        ("Qwen2.5-0.5B", 494_032_768),
        ("Qwen3-0.6B", 596_049_920),
        ("Llama-3.2-1B", 1_235_814_400),
        ("TinyLlama-1.1B", 1_100_048_384),
        ("MobileLLaMA-1.4B", 1_364_297_728),
        ("Gemma-2B", 2_506_172_416),
        ("Phi-2", 2_779_683_840),
        ("Llama-2-7B", 6_738_415_616),
    ],
)
def test_decoders_have_their_published_parameters(name: str, parameters: int) -> None:
    assert reference_decoder(name).parameters == pytest.approx(parameters, rel=1e-3 if "Phi" in name else 1e-9)


@pytest.mark.parametrize("name", list(reference_decoders()))
def test_a_decode_step_reads_every_matrix_once(name: str) -> None:
    decoder = reference_decoder(name)
    kernels = list(decoder.kernels(1, 64, Precision.FP16))
    weights = sum(kernel.n * kernel.k * count for kernel, count in kernels if kernel.kind is KernelKind.LINEAR)
    stored = decoder.parameters - (0 if decoder.tied else decoder.vocabulary * decoder.width)
    assert weights == pytest.approx(stored, rel=2e-3)
    assert decoder.source


@pytest.mark.parametrize("name", list(reference_encoders()))
def test_an_encoder_takes_each_patch_and_prefix_through_every_block(name: str) -> None:
    encoder = reference_encoder(name)
    kernels = dict(encoder.kernels(None, Precision.FP16))
    tokens = (encoder.image_px // encoder.patch_px) ** 2 + encoder.prefix_tokens
    wide = [kernel for kernel in kernels if kernel.kind is KernelKind.LINEAR and kernel.n == encoder.feed_forward]
    assert {(kernel.m, kernels[kernel]) for kernel in wide} == {(tokens, encoder.depth)}
    assert len(wide) == (2 if encoder.gated else 1)


def test_a_name_may_be_spelt_loosely_and_an_unknown_one_names_the_nearest() -> None:
    assert reference_decoder("smollm2 135m") is reference_decoder("SmolLM2-135M")
    with pytest.raises(ConfigError, match=r"did you mean 'Qwen2\.5-0\.5B'"):
        reference_decoder("Qwen2.5-0.5")


def test_every_row_names_where_its_dimensions_stand() -> None:
    for row in (*reference_decoders().values(), *reference_encoders().values()):
        assert row.basis == "datasheet", row.name
        assert row.source.split(";")[0].strip() not in ("", "assumed"), row.name
