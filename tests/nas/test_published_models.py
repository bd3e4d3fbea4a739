"""Published models on the command line, and priced on every shipped device."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from cost_models.models import cost_model
from cost_models.roofline import RooflineModel
from hardware_profiles import Basis, load, names
from nas.candidate import Pricer
from nas.predict import FULL_SIZE, predict
from search_spaces import Kernel, KernelKind, Precision
from search_spaces.classifier_systems import reference_classifiers
from search_spaces.systems import QUANTS, reference_system, reference_systems, with_quant

DEVICES = [name for name in names() if name != "host"]


@pytest.mark.parametrize("device", DEVICES)
def test_every_published_model_is_priced_on_every_device(device: str) -> None:
    pricer = Pricer(cost_model("auto", load(device)), FULL_SIZE)
    configs = [with_quant(system.config, quant) for system in reference_systems().values() for quant in QUANTS]
    costs = pricer.prices(configs)
    assert all(math.isfinite(cost.latency_s) and cost.decode.latency_s > 1e-4 for cost in costs)
    by_quant = dict(zip(QUANTS, costs, strict=False))  # those of the first model
    assert by_quant["w4a16"].decode.latency_s < by_quant["fp16"].decode.latency_s < by_quant["fp32"].decode.latency_s
    assert by_quant["w4a16"].basis is Basis.ASSUMED  # tables are of kernels in fp32
    tabled = load(device).kernels_csv.is_file()  # servers have a sheet, and no table
    assert by_quant["fp32"].basis is (Basis.STATIC if tabled else Basis.ASSUMED)


@pytest.mark.parametrize("device", ["orange-pi-5", "jetson-orin-nano"])
def test_weight_only_schemes_compute_in_half_precision(device: str) -> None:
    pricer, system = Pricer(cost_model("auto", load(device)), FULL_SIZE), reference_system("MobileVLM-1.7B")
    half, bytes_, fours = (pricer.price(with_quant(system.config, quant)) for quant in ("fp16", "w8a16", "w4a16"))
    for cost in (bytes_, fours):
        assert cost.prefill.latency_s == pytest.approx(half.prefill.latency_s, rel=0.2)
        assert cost.prefill.basis is Basis.ASSUMED
        assert cost.memory.kv_cache_bytes == half.memory.kv_cache_bytes
    assert fours.decode.latency_s < bytes_.decode.latency_s < half.decode.latency_s
    roofline = RooflineModel(load(device))
    kernels = [Kernel(KernelKind.LINEAR, 512, 2048, 2048, precision=precision) for precision in Precision]
    bases = dict(zip(Precision, roofline.bases(kernels), strict=True))
    assert bases[Precision.INT8] is bases[Precision.INT4] is Basis.ASSUMED
    assert bases[Precision.FP16] is bases[Precision.FP32]


def test_a_model_that_does_not_fit_says_what_would() -> None:
    config = reference_system("MobileVLM-3B").config
    found = predict(config, FULL_SIZE, load("raspberry-pi-4"), "auto")
    assert not found["fits_in_memory"]
    assert found["usable_memory_bytes"] == load("raspberry-pi-4").usable_memory_bytes
    assert {"w4a16", "int4"} <= set(found["would_fit"])
    assert "fp32" not in found["would_fit"]
    for quant, needed in found["would_fit"].items():
        again = predict(with_quant(config, quant), FULL_SIZE, load("raspberry-pi-4"), "auto")
        assert again["fits_in_memory"]
        assert again["would_fit"] == {}
        assert sum(again["memory_bytes"].values()) <= needed * 1.2


def test_the_commands_list_and_price_published_models(run: Any) -> None:
    listed = json.loads(run("reference", "list", "--json").stdout)
    assert {row["name"] for row in listed if row["kind"] == "generates"} == set(reference_systems())
    assert {row["name"] for row in listed if row["kind"] == "classifies"} == set(reference_classifiers())
    assert all(row["basis"] in ("datasheet", "assumed") and row["source"] for row in listed)
    assert {row["name"]: row["parameters"] for row in listed}["MobileVLM-1.7B"] == 1_686_742_016
    shown = run("reference", "list").stdout
    assert "SmolVLM-256M" in shown
    assert "256 M" in shown
    done = run("predict", "mobilevlm-1.7b", "--device", "snapdragon-888", "--quant", "w4a16", "--json")
    found = json.loads(done.stdout)
    assert (found["workload"]["prompt_tokens"], found["workload"]["new_tokens"]) == (40, 64)
    assert 0.005 < found["objectives"]["decode_s_per_token"]["value"] < 0.2
    assert found["objectives"]["parameters"]["value"] == 1_686_742_016
    # 56.1 on GQA before quantisation: Meituan-AutoML/MobileVLM@688fdec:README.md
    assert found["scores"]["GQA"]["low"] < 56.1 < found["scores"]["GQA"]["high"]
    assert found["scores_outside"] == []
    assert found["kind"] == "generates"
    assert found["described"]["source"].startswith("Meituan-AutoML/MobileVLM")
    missed = run("predict", "mobilevlm-1.8b", "--device", "snapdragon-888")
    assert missed.returncode == 2
    assert "did you mean 'MobileVLM-1.7B'" in missed.stderr
