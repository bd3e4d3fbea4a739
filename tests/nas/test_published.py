"""The regression on published results: what names say, what it must not do, and when it says that it guesses."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from nas.errors import NasError
from nas.proxies.published import BENCHMARKS, HALF, Facts, Prior, PublishedModel, described
from nas.proxies.published_facts import PRUNINGS, decoders, encoders, models
from nas.proxies.published_features import FEATURES, features, missing
from nas.proxies.published_rows import COLUMNS, published_rows, scaled, unscaled
from search_spaces.errors import ConfigError

SMALL = Facts.of(
    "qwen2.5-0.5b", "siglip-so400m", projector="mlp", recipe="tinyllava", training_samples=1.2e6, released=2024.4
)


@pytest.fixture(scope="module")
def model() -> PublishedModel:
    return PublishedModel.fitted()


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        (
            "apple/OpenELM-450M-Instruct",
            "VT (HF Path)=openai/clip-vit-large-patch14-336; Recipe=base",
            {"decoder": "openelm-450m", "encoder": "clip-l", "image_px": 336, "image_tokens": 576},
        ),
        (
            "microsoft/phi-2",
            "VT (HF Path)=google/siglip-so400m-patch14-384; Recipe=base&lora",
            {"decoder": "phi-2", "image_tokens": 729, "low_rank_tuned": True, "training_samples": 1.2e6},
        ),
        ("MobileVLM V2 3B", "LLM=MobileLLaMA 2.7B", {"decoder": "mobilellama-2.7b", "image_tokens": 144}),
        ("MobileVLM", "Size=3B; Visual Tokens=144", {"decoder": "mobilellama-2.7b", "recipe": "mobilevlm"}),
        ("MoE-LLaVA-2.7B×4-Top2-384", "Activated Param=3.6B", {"decoder": "phi-2", "encoder": "siglip-so400m"}),
        ("MGM-13B-HD", "LLM=Vicuna-13B-v1.5; Res.=672", {"decoder": "vicuna-13b", "image_px": 1536}),
        ("Qwen2-VL-7B-Instruct", "Quantization=GPTQ-Int4(🤗🤖)", {"decoder": "qwen2-7b", "weight_bits": 4}),
        ("Qwen2-VL-7B-Instruct", "Quantization=BF16", {"weight_bits": 16}),
        (
            "VisionZip-ft",
            "tokens=64; projector tuned",
            {"pruning": "tuned", "image_tokens": 64, "unpruned_tokens": 576},
        ),
        ("FastV", "tokens=64; training-free", {"pruning": "decoder", "recipe": "llava-1.5"}),
        ("LLaVA-Mini", "prefusion=3; tokens=1; res=672", {"fusion_layers": 3, "image_tokens": 1, "image_px": 672}),
        ("ALLaVA-Phi2", "Vicuna-80=49.4; MLLM-Bench=43.6", {"decoder": "phi-2", "trained_on_vqa": False}),
        ("ShareGPT4V-13B", "Vicuna-80=17.5; TouchStone=648.7", {"decoder": "vicuna-13b", "recipe": "sharegpt4v"}),
        ("LLaVA-NeXT Llama-3-8B", "Size=8.4B; LLaVA Bench=80.1", {"decoder": "llama-3-8b", "image_tokens": 2880}),
        ("InternVL2_5-2B", "", {"decoder": "internlm2.5-1.8b", "encoder": "internvit-300m"}),
        ("TinyLLaVA-Phi-2-SigLIP-3.1B", "", {"recipe": "tinyllava", "encoder": "siglip-so400m"}),
        ("GPT-4V (2023.11.06)", "Size=-; LLaVA Bench=93.1", {"recipe": "undisclosed", "decoder_parameters": None}),
        ("nanoVLM-222M", "SigLIP-B/16-224 + SmolLM2-135M; 1.7M samples", {"image_tokens": 49, "image_px": 224}),
        (
            "own-3B",
            "LLM=Qwen2.5-3B; Image Encoder=CLIP-B/16; #Visual Tokens=49",
            {"encoder": "clip-b", "image_tokens": 49},
        ),
        ("bunny-phi-1.5-eva-lora", "", {"encoder": "eva-l", "decoder": "phi-1.5", "low_rank_tuned": True}),
        ("Bunny-v1.0-3B-zh/bunny-minicpm-siglip", "", {"decoder": "minicpm-2b", "encoder": "siglip-so400m"}),
        ("Imp-v1.5-2B-Qwen1.5", "", {"decoder": "qwen1.5-1.8b", "recipe": "imp"}),
        ("unheard-of-3B", "", {"decoder_parameters": 3e9, "decoder": "", "encoder": ""}),
    ],
)
def test_names_say(name: str, config: str, said: dict[str, object]) -> None:
    found = described(name, config)
    assert {key: getattr(found, key) for key in said} == said


def test_the_groups_name_tells_the_base_of_pruned_models() -> None:
    found = described("SparseVLM", "tokens=320", "ablation:visual_token_reduction_LLaVA-NeXT-7B")
    assert (found.unpruned_tokens, found.image_px, found.decoder) == (2880, 672, "vicuna-7b")


def test_every_shipped_row_is_recognised() -> None:
    for row in published_rows():
        assert row.facts.recipe, row
        if row.facts.recipe != "undisclosed":
            assert row.facts.encoder, row
            assert row.facts.decoder, row


def test_tables_name_parts_that_exist_and_have_sources() -> None:
    known = {row["name"] for row in decoders()}, {row["name"] for row in encoders()}
    for row in models():
        assert set(row["decoder"].split("|")) - {""} <= known[0], row
        assert row["encoder"] in known[1] | {""}, row
    assert all(row["source"] for row in (*decoders(), *encoders(), *models()))
    assert len(known[0]) == len(decoders())
    assert {row["basis"] for row in decoders()} == {"datasheet", "assumed"}


def test_scores_lie_in_their_intervals(model: PublishedModel) -> None:
    found = model.predict(SMALL)
    assert tuple(found) == BENCHMARKS
    assert 1.644 < HALF < 1.646
    for name, score in found.items():
        assert json.loads(json.dumps(asdict(score)))["basis"] == "predicted"
        assert 0 <= score.low < score.value < score.high <= (2000 if name == "MME" else 100)
    assert abs(found["GQA"].value - 59.5) < 3  # TinyLLaVA_Factory's README, Qwen2.5-0.5B: 59.5, 1253 points
    assert abs(found["MME"].value - 1253) < 130


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("qwen2.5-0.5b", "qwen2.5-1.5b"),
        ("qwen2.5-1.5b", "qwen2.5-3b"),
        ("qwen2-0.5b", "qwen2.5-0.5b"),
        ("mobilellama-1.4b", "mobilellama-2.7b"),
        ("vicuna-7b", "vicuna-13b"),
        ("yi-6b", "yi-34b"),
    ],
)
def test_a_better_decoder_scores_no_worse(model: PublishedModel, smaller: str, larger: str) -> None:
    less, more = (model.predict(_with(decoder)) for decoder in (smaller, larger))
    assert all(more[name].value > less[name].value - 0.3 for name in BENCHMARKS)


def _with(decoder: str) -> Facts:
    return Facts.of(decoder, "siglip-so400m", projector="mlp", training_samples=1.2e6, released=2024.4)


def test_more_pixels_help_reading_and_fewer_bits_or_tokens_do_not(model: PublishedModel) -> None:
    scores = model.predict(SMALL)
    sharper = model.predict(replace(SMALL, image_px=768, image_tokens=2916))
    assert sharper["TextVQA"].value > scores["TextVQA"].value + 1
    for worse in (
        replace(SMALL, weight_bits=4),
        replace(SMALL, pruning="decoder", unpruned_tokens=729, image_tokens=64),
        replace(SMALL, image_tokens=16),
    ):
        assert model.predict(worse)["GQA"].value < scores["GQA"].value


def test_what_is_not_known_widens_intervals(model: PublishedModel) -> None:
    known, unknown = model.predict(SMALL), model.predict(replace(SMALL, training_samples=None, released=None))
    assert all(_width(unknown[name]) > _width(known[name]) for name in BENCHMARKS)


def _width(score: object) -> float:
    return score.high - score.low  # type: ignore[attr-defined, no-any-return]


def test_inside_the_data_nothing_is_said(model: PublishedModel) -> None:
    assert model.outside(SMALL) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"decoder_parameters": 3e8}, "decoder size 300M is outside 457M to"),
        ({"decoder_parameters": 4e11}, "decoder size 400B is outside"),
        ({"image_px": 96.0}, "resolution 96 is outside 224 to"),
        ({"image_tokens": 20_000.0}, "number of image tokens 20000 is outside"),
        ({"encoder_family": "resnet"}, "encoder family 'resnet' is in no table: they have clip,"),
        ({"decoder_family": ""}, "decoder family is not known"),
        ({"projector": "tokenpacker"}, "projector 'tokenpacker' is in no table"),
        ({"weight_bits": 2}, "weights of 2 bits: no table has less than 4"),
        ({"released": 2027.0}, "released 2027.0, when the newest"),
        ({"text_score": None}, "the decoder's MMLU is not known"),
    ],
)
def test_outside_the_data_it_says_so(model: PublishedModel, changed: dict[str, object], says: str) -> None:
    found = model.outside(replace(SMALL, **changed))  # type: ignore[arg-type]
    assert len(found) == 1
    assert says in found[0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"decoder_parameters": -1.0}, "decoder_parameters must be more than 0"),
        ({"image_px": math.inf}, "image_px must be more than 0"),
        ({"text_score": 0.56}, "MMLU in percent, between 1 and 100, but is 0.56"),
        ({"text_score": 120.0}, "MMLU in percent"),
        ({"weight_bits": 1}, "weight_bits must be 2 to 32"),
        ({"pruning": "some"}, "pruning must be one of"),
    ],
)
def test_facts_that_no_model_has_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(NasError, match=says):
        Facts(**wrong)  # type: ignore[arg-type]


def test_unknown_parts_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'qwen2\.5-0\.5b'"):
        Facts.of("qwen2.5-0.6b")
    with pytest.raises(ConfigError, match="unknown encoder 'siglip-x'"):
        Facts.of("phi-2", "siglip-x")


def test_features_grow_with_what_helps() -> None:
    base = features(SMALL)
    for changed, name in (
        ({"decoder_parameters": 1e9}, "decoder size"),
        ({"image_px": 512.0}, "resolution"),
        ({"image_tokens": 900.0}, "image tokens"),
        ({"training_samples": 9e6}, "training samples"),
    ):
        at = FEATURES.index(name)
        assert features(replace(SMALL, **changed))[at] > base[at]  # type: ignore[arg-type]
    assert len(base) == len(FEATURES)
    assert missing(SMALL) == ()
    assert "decoder_parameters" in missing(Facts())
    assert np.isfinite(features(Facts())).all()
    assert PRUNINGS[0] == ""


def test_a_fit_needs_values() -> None:
    with pytest.raises(NasError, match="needs 12 published values"):
        PublishedModel.fit(published_rows()[:11])


@pytest.fixture(scope="module")
def small() -> PublishedModel:
    rows = [row for row in published_rows() if row.column in ("gqa", "mmb")]
    return PublishedModel.fit(rows, Prior(curved=0.0))


def predicted(model: PublishedModel, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of values predicted from all others by conditioning once more, and their covariance."""
    known, coded = np.linalg.inv(model._inverse), model._coded
    rest = np.setdiff1d(np.arange(len(model.rows)), at)
    centred = model._target - coded.levels(model._target)[coded.level]
    weights = np.linalg.solve(known[np.ix_(rest, rest)], known[np.ix_(rest, at)]).T
    return centred[at] - weights @ centred[rest], known[np.ix_(at, at)] - weights @ known[np.ix_(rest, at)]


def test_rows_left_out_are_predicted_from_the_others_alone(small: PublishedModel) -> None:
    left, deviation = small.left_out()
    rows = small._coded.row
    for row in np.unique(rows)[::10]:
        at = np.flatnonzero(rows == row)
        errors, spread = predicted(small, at)
        np.testing.assert_allclose(left[at], errors, atol=1e-6)
        np.testing.assert_allclose(deviation[at], np.sqrt(np.diag(spread)), atol=1e-6)


def test_groups_left_out_are_given_their_own_offset_and_nothing_else(small: PublishedModel) -> None:
    left, deviation, groups = small.left_out_groups()
    assert len(left) == len(deviation) == len(groups) > 100
    for group in np.unique(groups):
        at = np.flatnonzero(small._coded.group == group)
        errors, spread = predicted(small, at)
        expected, spreads = [], []
        for column in np.unique(small._coded.column[at]):
            own = np.flatnonzero(small._coded.column[at] == column)
            if len(own) < 3:
                continue
            for one in own:  # each less the mean of the others
                others = own[own != one]
                weights = np.zeros(len(at))
                weights[one], weights[others] = 1.0, -1.0 / len(others)
                expected.append(weights @ errors)
                spreads.append(max(weights @ spread @ weights, small.prior.noise))
        np.testing.assert_allclose(left[groups == group], expected, atol=1e-6)
        np.testing.assert_allclose(deviation[groups == group], np.sqrt(spreads), atol=1e-6)


def held(model: PublishedModel) -> float:
    left, deviation, groups = model.left_out_groups()
    inside = np.abs(left) <= HALF * model.widening * deviation
    return float(np.mean([inside[groups == group].mean() for group in np.unique(groups)]))  # groups count alike


def test_intervals_are_widened_where_too_few_of_the_groups_left_out_are_held(small: PublishedModel) -> None:
    assert (small.widening, held(small) >= 0.9) == (1.0, True)
    little = (0.01,) * 5
    sure = PublishedModel.fit(
        small.rows, Prior(curved=0.0, noise=0.005, rows=0.005, kinds=little, kinds_by_benchmark=little)
    )
    assert held(replace(sure, widening=1.0)) < 0.8
    assert held(sure) == pytest.approx(0.9, abs=0.01)


def test_a_table_held_out_is_ranked() -> None:
    from experiments.benchmarks.published import correlations, held_out

    group = "ablation:TinyLLaVA_encoder_x_LLM_x_recipe"
    found = correlations(*held_out(published_rows(), group, unshared=True))
    assert np.mean(list(found.values())) > 0.85


def test_a_table_of_no_fit_is_ranked_and_held(model: PublishedModel) -> None:
    from experiments.benchmarks.published import UNSEEN, correlations

    rows = published_rows(UNSEEN)
    assert np.mean(list(correlations(model, rows).values())) > 0.8
    scores = {row.facts: model.predict(row.facts) for row in rows if row.column != "seed"}
    held = [scores[row.facts][row.benchmark] for row in rows if row.column != "seed"]
    values = [row.value for row in rows if row.column != "seed"]
    inside = [score.low <= value <= score.high for score, value in zip(held, values, strict=True)]
    assert np.mean(inside) > 0.85


def test_scales_invert() -> None:
    assert unscaled("MME", scaled("MME", 1500.0)) == pytest.approx(1500.0)
    assert scaled("GQA", 60.0) == 60.0
    assert set(COLUMNS.values()) == set(BENCHMARKS)
