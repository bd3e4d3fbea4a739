"""Published latencies of models in runtimes: what a line stands for, and how well others predict it."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest

from cost_models.corrected import CorrectedModel
from cost_models.models import plain_model
from experiments.benchmarks import latency
from hardware_profiles import load
from nas.published_latencies import FIGURES, figure
from search_spaces import KernelKind, Phase, Precision, Workload
from search_spaces.systems import reference_system, with_quant


def row(**cells: str) -> dict[str, str]:
    return dict.fromkeys(FIGURES, "") | {"runtime": "any", "precision": "fp16", "value": "100", "unit": "ms"} | cells


def test_a_system_is_encoded_with_its_projector() -> None:
    config = with_quant(reference_system("mobilevlm-1.7b").config, "fp16")
    parts = [item for phase in (Phase.VISION, Phase.PROJECTOR) for item in config.kernels(phase, Workload())]
    expected: Counter[object] = Counter()
    for kernel, count in parts:
        expected[kernel] += count
    merged: Counter[object] = Counter()
    for kernel, count in figure(row(model="MobileVLM-1.7B", phase="encode")).kernels:
        merged[kernel] += count
    assert merged == expected


def test_time_to_first_token_holds_image_and_prompt() -> None:
    found = figure(row(model="smolvlm-256m", phase="ttft", tokens="20", precision="w4a16"))
    config = with_quant(reference_system("SmolVLM-256M").config, "w4a16")
    rows = {kernel.m for kernel, _ in found.kernels if kernel.precision is Precision.INT4}
    assert config.image_tokens + 20 in rows
    convolutions = [kernel for kernel, _ in found.kernels if kernel.kind is KernelKind.CONV]
    assert {kernel.precision for kernel in convolutions} == {Precision.FP16}
    assert found.seconds == pytest.approx(0.1)


def test_a_system_decodes_as_its_decoder() -> None:
    whole = figure(row(model="SmolVLM-256M", phase="decode", tokens="300", precision="w4a16"))
    alone = figure(row(model="SmolLM2-135M", phase="decode", tokens="300", precision="w4a16"))
    assert whole.kernels == alone.kernels
    assert whole.model == alone.model  # left out together
    assert {kernel.op for kernel, _ in whole.kernels if kernel.kind is KernelKind.SCORES} == {"fp16"}  # as runtimes do


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ({"model": "MobileVLM-1.7C", "phase": "ttft"}, "MobileVLM-1.7B"),
        ({"model": "Qwen2.5-0.5C", "phase": "decode"}, "Qwen2.5-0.5B"),
        ({"model": "Qwen2.5-0.5B", "phase": "ttft"}, "system"),
        ({"model": "SmolVLM-256M", "phase": "ttft", "unit": "tokens/s"}, "ms, s"),
        ({"model": "SmolVLM-256M", "phase": "decode", "precision": "w3a16"}, "w4a16"),
        ({"model": "SmolVLM-256M", "phase": "decode", "value": "nan"}, "positive"),
    ],
)
def test_what_is_wrong_in_a_line_is_told(cells: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        figure(row(**cells))


def test_every_published_latency_is_of_a_model_that_is_described() -> None:
    with latency._DATA.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 204
    for each in rows:
        found = figure(each)
        assert found.kernels
        assert each["source"]
    assert {each["like"] for each in rows} <= {load(each["like"]).name for each in rows}


def test_models_left_out_are_predicted_from_the_others() -> None:
    with latency._DATA.open(encoding="utf-8", newline="") as file:
        rows = [each for each in csv.DictReader(file) if each["device"] == "RV1126B"]
    base = plain_model("auto", load("rk3399").in_runtime("rkllm"))
    model, _ = CorrectedModel.fit(base, [figure(each) for each in rows])
    assert model.error.medians["decode"] < 0.2 < model.error.medians_before["prefill"]
    assert model.error.medians["prefill"] < 0.3
    assert model.error.unchecked == []
    # one model alone says nothing of others
    one = [each for each in rows if each["model"] == "Qwen2-0.5B" and each["phase"] == "prefill"]
    others = [each for each in rows if each["phase"] == "decode"]
    model, _ = CorrectedModel.fit(base, [figure(each) for each in one + others])
    assert model.error.unchecked == ["prefill"]
    assert set(model.error.medians) == {"decode"}
    assert "prefill of one model only, not checked" in model.told()


def test_runtimes_write_into_the_cache_where_it_lies() -> None:
    kernels = [
        kernel
        for kernel, _ in figure(row(model="Qwen3-0.6B", phase="decode", tokens="4096")).kernels
        if kernel.op.endswith("cache_write")
    ]
    profile = load("orange-pi-5")
    compiled = plain_model("roofline", profile).latencies_s(kernels)
    in_place = plain_model("roofline", profile.in_runtime("rkllm")).latencies_s(kernels)
    assert kernels
    assert np.all(in_place < compiled / 10)


def test_what_a_token_attends_to_holds_the_prompt() -> None:
    with latency._DATA.open(encoding="utf-8", newline="") as file:
        rows = [each for each in csv.DictReader(file) if each["model"].startswith("MobileVLM")]
    prompts = {(each["device"], each["model"]): int(each["tokens"]) for each in rows if each["phase"] == "prefill"}
    decoded = [each for each in rows if each["phase"] == "decode"]
    assert len(decoded) == len(prompts) == 4
    for each in decoded:
        assert int(each["tokens"]) > prompts[each["device"], each["model"]]
