"""What published results lead to expect of a config."""

from __future__ import annotations

import dataclasses

import pytest

from nas.proxies.published_config import facts_of, lead, mean_score, outside, published, scores
from search_spaces import PROJECTORS, Precision
from search_spaces.systems import reference_system, with_quant


def test_a_published_decoder_is_known_and_another_one_counts_by_its_size() -> None:
    config = reference_system("TinyLLaVA-3.1B").config
    facts = facts_of(config)
    assert (facts.decoder, facts.text_score, facts.encoder_family) == ("phi-2", 56.3, "siglip")
    assert facts.image_tokens == 729
    pruned = dataclasses.replace(config, language=config.language.pruned(0.5))
    assert facts_of(pruned).decoder == ""
    assert facts_of(pruned).decoder_parameters < facts.decoder_parameters  # type: ignore[operator]
    assert outside(config) == []
    assert any("MMLU is not known" in why for why in outside(pruned))


def test_decoders_of_one_shape_are_told_apart_by_their_vocabulary() -> None:
    found = {name: facts_of(reference_system(name).config).decoder for name in ("SmolVLM-256M", "SmolVLM-500M")}
    assert found == {"SmolVLM-256M": "smollm2-135m", "SmolVLM-500M": "smollm2-360m"}


@pytest.mark.parametrize(
    ("worse", "better"),
    [("MobileVLM-1.7B", "MobileVLM-3B"), ("SmolVLM-256M", "SmolVLM-500M"), ("SmolVLM-500M", "SmolVLM-2.2B")],
)
def test_larger_models_of_one_maker_are_expected_to_be_better(worse: str, better: str) -> None:
    assert published(reference_system(worse).config, 0) < published(reference_system(better).config, 0)


def test_fewer_bits_and_fewer_tokens_cost_score() -> None:
    config = reference_system("LLaVA-1.5-7B").config
    assert mean_score(with_quant(config, "w4a16")).value < mean_score(config).value
    fewer = dataclasses.replace(config, projector=PROJECTORS["average_pool"](reduction=4))  # type: ignore[call-arg]
    assert mean_score(fewer).value < mean_score(config).value


def test_a_score_has_an_interval_and_its_benchmarks() -> None:
    config = reference_system("LLaVA-1.5-7B").config
    found, mean = scores(config), mean_score(config)
    assert mean.low < mean.value < mean.high
    assert mean.high - mean.low < 0.25
    assert found["GQA"].low < 62.0 < found["GQA"].high  # arXiv:2310.03744, table 3
    assert mean.value == pytest.approx(sum(s.value for n, s in found.items() if n != "MME") / 8 / 100)


def test_what_no_table_tells_is_assumed_and_told() -> None:
    config = with_quant(reference_system("TinyLLaVA-3.1B").config, "fp16")
    score = mean_score(config)
    for changes, word in (
        ({"vision_precision": Precision.INT4}, "precisions beside the decoder's"),
        ({"kv_precision": Precision.INT4}, "precisions beside the decoder's"),
        ({"soft_tokens": 16}, "soft tokens"),
        ({"language": dataclasses.replace(config.language, adapter_width=64)}, "adapters"),
    ):
        changed = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
        found, (why,) = mean_score(changed), outside(changed)
        assert why.startswith(word)
        assert why.endswith("(assumed)")
        if word in ("soft tokens", "adapters"):
            assert found == score
        else:
            assert found.value < score.value
            assert found.high - found.low > score.high - score.low
            assert lead(config, changed).value == pytest.approx(score.value - found.value)


def test_larger_pictures_in_tiles_are_expected_to_help() -> None:
    config = reference_system("LLaVA-1.5-7B").config
    assert mean_score(dataclasses.replace(config, tiles=5)).value > mean_score(config).value
