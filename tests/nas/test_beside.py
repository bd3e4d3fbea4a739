"""Published models beside a front: who beats whom, by how much, and what is said of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cost_models.models import cost_model
from hardware_profiles import Basis, load
from nas import beside
from nas.archive import Evaluation
from nas.candidate import Pricer
from nas.count import kernel_operations, torch_operations
from nas.experiment import Experiment, parse_experiment
from nas.objectives import Accuracy
from nas.proxies.published_config import HALVING, lead, mean_score
from search_spaces import SPACES, Precision, Workload
from search_spaces.systems import reference_system, reference_systems, with_quant

EXPERIMENT: Experiment = parse_experiment(
    {
        "name": "beside",
        "space": "edge",
        "device": "orange-pi-5",
        "objectives": ["accuracy", "latency"],
        "proxy": {"cheap": "published", "promote": 0},
    },
    "beside.yaml",
)
POINT = {
    "image_px": 336,
    "tiles": 1,
    "vision_depth": 24,
    "vision_heads": 16,
    "vision_keep": 1.0,
    "projector": "pixel_shuffle",
    "divisor": 2,
    "language_depth": 20,
    "language_kv_heads": 4,
    "language_queries_per_kv_head": 6,
    "language_head_width": 64,
    "language_keep": 1.0,
    "tokenizer": "qwen2.5",
    "vision_precision": "w8a8",
    "projector_precision": "w8a8",
    "language_precision": "w8a8",
    "kv_cache": "fp16",
    "soft_tokens": 0,
    "adapter_width": 0,
}


def member(**changes: Any) -> Evaluation:
    point = POINT | changes
    config = SPACES["edge"].decode(point)
    pricer = Pricer(cost_model("auto", load("orange-pi-5")), EXPERIMENT.workload.workload())
    accuracy = Accuracy(mean_score(config).value, "published", Basis.PREDICTED)
    return Evaluation(config.id, point, pricer.price(config), accuracy)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: reference_systems()[name] for name in ("MobileVLM-1.7B", "LLaVA-1.5-7B")}
    monkeypatch.setattr(beside, "reference_systems", lambda: chosen)


def test_a_front_beats_what_is_worse_in_every_objective(two: None) -> None:
    front = [member(), member(language_depth=24, language_precision="fp16")]
    found = beside.standings(front, EXPERIMENT, load("orange-pi-5"))
    assert len(found) == 2 * 6 * 3  # precisions of the space, of weights and of the KV cache
    for each in found:
        config = with_quant(reference_system(each.name).config, each.quant)
        score = mean_score(dataclasses.replace(config, kv_precision=Precision(str(each.kv_cache))))
        cost = each.cost
        better = [
            one
            for one in front
            if one.accuracy and one.accuracy.value >= score.value and one.cost.latency_s <= cost.latency_s
        ]
        assert each.beaten == bool(better)
        assert each.score == score
        assert each.member in (better or front)
        assert each.ahead.low < each.ahead.value < each.ahead.high
        equal = [one.cost.latency_s for one in front if one.accuracy and one.accuracy.value >= score.value]
        assert each.times_faster == (cost.latency_s / min(equal) if equal else None)
    rows = {each.name: each for each in beside.hardest(found)}
    assert rows["MobileVLM-1.7B"].beaten
    assert not rows["LLaVA-1.5-7B"].fits or rows["LLaVA-1.5-7B"].quant != "fp16"
    assert beside.as_json(rows["MobileVLM-1.7B"])["by"] in {one.id for one in front}


def test_published_models_have_the_caches_that_candidates_may_have(two: None) -> None:
    found = beside.standings([member()], EXPERIMENT, load("orange-pi-5"))
    system, workload = reference_system("LLaVA-1.5-7B").config, EXPERIMENT.workload.workload()
    values = system.language.kv_cache_values(system.context(workload))
    held = {each.kv_cache: each.cost.memory.kv_cache_bytes for each in found if each.name == "LLaVA-1.5-7B"}
    assert held["fp16"] == 2.0 * values  # not the activations' four bytes, which no candidate has
    assert values < held["int8"] < held["fp16"]
    assert {beside.as_json(each)["kv_cache"] for each in found} == {"fp16", "int8", "int4"}
    assert {each.precision for each in found} >= {"w8a8, KV int8", "w4a16, KV fp16"}


def test_what_equals_a_published_model_does_not_beat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own = member()
    config = with_quant(dataclasses.replace(SPACES["edge"].decode(own.point), kv_precision=None), "fp32")
    same = dataclasses.replace(reference_system("MobileVLM-1.7B"), name="same", config=config)
    monkeypatch.setattr(beside, "reference_systems", lambda: {"same": same})
    found = {each.precision: each for each in beside.standings([own], EXPERIMENT, load("orange-pi-5"))}
    assert found["w8a8, KV fp16"].cost.latency_s == own.cost.latency_s
    assert not found["w8a8, KV fp16"].beaten
    assert found["int8, KV fp16"].beaten  # as good, and slower


def test_other_proxies_compare_nothing() -> None:
    other = dataclasses.replace(member(), accuracy=Accuracy(0.9, "synflow", Basis.PREDICTED))
    assert beside.standings([other], EXPERIMENT, load("orange-pi-5")) == []


def test_a_lead_is_surer_than_two_scores() -> None:
    config = reference_system("MobileVLM-3B").config
    other = reference_system("MobileVLM-1.7B").config
    ahead, first, second = lead(config, other), mean_score(config), mean_score(other)
    assert ahead.value == pytest.approx(first.value - second.value, abs=1e-9)
    assert ahead.high - ahead.low < first.high - first.low
    back = lead(other, config)
    assert (back.value, back.low, back.high) == pytest.approx((-ahead.value, -ahead.high, -ahead.low))
    assert lead(config, config).value == pytest.approx(0.0, abs=1e-9)


def test_encoders_smaller_than_any_table_has_cost_score_and_certainty() -> None:
    wide, small = (SPACES["edge"].decode(POINT | {"vision_depth": depth}) for depth in (24, 8))
    assert small.vision.parameters < wide.vision.parameters / 2.5
    covered, halved = mean_score(wide), mean_score(small)
    assert covered.value - halved.value > HALVING / 100
    assert halved.high - halved.low > covered.high - covered.low


def test_large_networks_are_counted_without_their_weights() -> None:
    config = reference_system("SmolVLM-256M").config
    workload = Workload(prompt_tokens=5, new_tokens=2)
    assert torch_operations(config, workload) == kernel_operations(config, workload)
