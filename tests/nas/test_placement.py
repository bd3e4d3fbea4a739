"""Where a model runs: sums of phases and link, what changes the best cut, and the commands that tell it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cost_models.cost import Away, RequestCost
from cost_models.models import cost_model
from hardware_profiles import Basis, ProfileError, load
from nas.archive import Evaluation
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import PlacementSpec, parse_experiment
from nas.objectives import OBJECTIVES, objectives_of
from nas.place import place
from nas.placement import CHOSEN_BY, Link, PlacedPricer, Placement, placed
from search_spaces import SPACES, ConfigError, Precision, VLMConfig, Workload
from search_spaces.placement import Cut
from search_spaces.systems import reference_system, with_quant

ASKED = Workload(prompt_tokens=40, new_tokens=64)
AT_ONCE = Link(math.inf, math.inf, 0.0)
SPLIT = (Cut.AFTER_PROJECTOR, Cut.AFTER_ENCODER)


def pricer(link: Link = AT_ONCE, device: str = "raspberry-pi-5", **asked: Any) -> PlacedPricer:
    own, cloud = (Pricer(cost_model("roofline", load(name)), ASKED) for name in (device, "nvidia-l4"))
    more = {name: asked.pop(name) for name in ("caps", "by") if name in asked}
    return PlacedPricer(own, cloud, Placement(link, **asked), **more)


def link(uplink_mbit: float) -> Link:
    return Link(uplink_mbit * 1e6, 10e6, 0.04)


def model(name: str, quant: str = "w4a16") -> VLMConfig:
    return with_quant(reference_system(name).config, quant)


def away(cost: RequestCost) -> Away:
    assert cost.away is not None
    return cost.away


MODELS = [model("MobileVLM-1.7B"), model("LLaVA-1.5-7B"), model("SmolVLM-256M", "w8a16")]


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.language.width)
def test_without_a_link_a_cut_costs_the_sum_of_its_parts(config: VLMConfig) -> None:
    asked = pricer()
    costs, here, there = asked.every([config])[0], asked.device.price(config), asked.cloud.price(config)
    first = {
        Cut.DEVICE: here.time_to_first_token_s,
        Cut.AFTER_PROJECTOR: here.vision.latency_s + here.projector.latency_s + there.prefill.latency_s,
        Cut.AFTER_ENCODER: here.vision.latency_s + there.projector.latency_s + there.prefill.latency_s,
        Cut.CLOUD: there.time_to_first_token_s,
    }
    for cut, cost in costs.items():
        decode_s = (here if cut is Cut.DEVICE else there).decode.latency_s
        assert cost.time_to_first_token_s == pytest.approx(first[cut], rel=1e-12)
        assert cost.latency_s == pytest.approx(first[cut] + ASKED.new_tokens * decode_s, rel=1e-12)
    assert asked.price(config).latency_s == min(cost.latency_s for cost in costs.values())


def test_on_the_device_nothing_is_added() -> None:
    asked = pricer(link(10))
    alone, whole = asked.device.price(MODELS[0]), asked.every([MODELS[0]])[0][Cut.DEVICE]
    assert dataclasses.replace(whole, away=None) == alone
    assert (whole.latency_s, whole.energy_j, whole.basis) == (alone.latency_s, alone.energy_j, alone.basis)


def test_the_link_takes_bytes_over_bandwidth_and_one_round_trip() -> None:
    costs, free = (pricer(each).every([MODELS[0]])[0] for each in (Link(10e6, 1e9, 0.04), AT_ONCE))
    for cut in SPLIT:
        sent_s = 8 * away(costs[cut]).sent.total_bytes / 10e6
        assert away(costs[cut]).link.latency_s == pytest.approx(sent_s + 0.04 + 32 / 1e9)
        assert costs[cut].latency_s - free[cut].latency_s == pytest.approx(away(costs[cut]).link.latency_s)
    narrow = pricer(Link(10e6, 1000.0, 0.04)).every([MODELS[0]])[0][Cut.CLOUD]
    assert narrow.decode.latency_s == 0.032  # four bytes a token at 1 kbit/s: slower than the decoder


def test_more_uplink_is_never_slower_and_less_never_faster() -> None:
    rows = [pricer(link(mbit)).every(MODELS) for mbit in (0.01, 0.1, 1, 10, 100, 1e4)]
    for slower, faster in pairwise(rows):
        for before, after in zip(slower, faster, strict=True):
            assert all(after[cut].latency_s <= before[cut].latency_s for cut in Cut)
            assert all(after[cut].latency_s < before[cut].latency_s for cut in Cut if cut is not Cut.DEVICE)


def test_extreme_links() -> None:
    slow = pricer(Link(1.0, 1e6, 0.0))
    assert {away(cost).cut for cost in slow.prices(MODELS)} == {Cut.DEVICE}
    far = pricer(Link(1e9, 1e9, 3600.0))
    assert {away(cost).cut for cost in far.prices(MODELS)} == {Cut.DEVICE}
    whole = model("LLaVA-1.5-7B", "fp16")  # 14 GB
    small = pricer(Link(1.0, 1e6, 0.0), device="raspberry-pi-4")
    assert small.too_large(small.every([whole])[0][Cut.DEVICE])
    assert away(small.price(whole)).cut is Cut.CLOUD  # the fewest bytes of what fits


@pytest.mark.parametrize("by", CHOSEN_BY)
@pytest.mark.parametrize("cuts", [tuple(Cut), tuple(Cut)[:3]])
def test_ranges_of_the_uplink_say_which_cut_is_best(by: str, cuts: tuple[Cut, ...]) -> None:
    asked = pricer(link(10), device="pixel-6", by=by, cuts=cuts)
    for config in MODELS:
        ranges = asked.ranges(config)
        assert ranges[0][1] == 0
        assert ranges[-1][2] == math.inf
        assert [high for _, _, high in ranges[:-1]] == [low for _, low, _ in ranges[1:]]
        value = OBJECTIVES[by].value
        for cut, low, high in ranges:
            inside = math.sqrt(max(low, 1.0) * min(high, 1e12))
            costs = asked.through(inside).every([config])[0]
            fit = [value(cost, None) for cost in costs.values() if not asked.too_large(cost)]
            assert value(costs[cut], None) == pytest.approx(min(fit), rel=1e-9)
        for _, _, high in ranges[:-1]:  # where two meet, both cost the same
            below, above = (value(asked.through(high * factor).price(config), None) for factor in (1 - 1e-9, 1 + 1e-9))
            assert below == pytest.approx(above, rel=1e-6)


def test_memory_is_of_what_runs_there() -> None:
    rng = random.Random(0)
    spaces = [SPACES[name] for name in ("tiny", "edge", "assembled")]
    configs = [space.decode(space.sample(rng)) for space in spaces for _ in range(8)]
    asked = pricer()
    for config, costs in zip(configs, asked.every(configs), strict=True):
        whole = asked.device.price(config).memory
        assert away(costs[Cut.CLOUD]).cloud_bytes == pytest.approx(whole.peak_bytes, rel=1e-12)
        for cut in SPLIT:
            part, there = costs[cut].memory, away(costs[cut]).cloud_bytes
            assert part.kv_cache_bytes == 0
            assert part.weight_bytes < whole.weight_bytes
            held = part.weight_bytes + whole.kv_cache_bytes + (whole.weight_bytes - part.weight_bytes)
            assert held <= part.peak_bytes + there <= held + 2 * whole.activation_bytes + 1e-6
        assert costs[Cut.CLOUD].memory.peak_bytes == away(costs[Cut.CLOUD]).sent.total_bytes
    encoder = model("LLaVA-1.5-7B", "fp16")
    held_bytes = pricer().every([encoder])[0][Cut.AFTER_ENCODER].memory.weight_bytes
    assert held_bytes == 2 * (encoder.vision.parameters - encoder.vision.idle_parameters)


def test_a_waiting_device_draws_its_idle_power() -> None:
    asked = pricer(link(10))
    power, costs = load("raspberry-pi-5").power, asked.every([MODELS[0]])[0]
    for cut in (*SPLIT, Cut.CLOUD):
        cost = costs[cut]
        own_s = sum(getattr(cost, phase.value).latency_s for phase in cut.phases)
        waited_s = cost.latency_s - own_s
        assert cost.energy_j == pytest.approx(own_s * power.active_w.value + waited_s * power.idle_w.value)


def test_caps_are_kept_where_some_cut_keeps_them() -> None:
    free = pricer(link(10), cuts=tuple(Cut)[:3]).every([MODELS[1]])[0]
    least = min(away(cost).sent.total_bytes for cost in free.values() if away(cost).cut is not Cut.DEVICE)
    caps = {"max_sent_mb": least * 1e-6 / 2}
    assert away(pricer(link(10), cuts=tuple(Cut)[:3], caps=caps).price(MODELS[1])).cut is Cut.DEVICE
    for by in CHOSEN_BY:
        chosen = pricer(link(10), by=by).price(MODELS[1])
        every = pricer(link(10), by=by).every([MODELS[1]])[0].values()
        assert OBJECTIVES[by].value(chosen, None) == min(OBJECTIVES[by].value(cost, None) for cost in every)


def test_the_cloud_may_run_another_precision() -> None:
    halved = pricer(cloud_quant="fp16")
    config = MODELS[1]
    assert halved.in_cloud(config) == with_quant(config, "fp16")
    ours, theirs = halved.every([config])[0], pricer().every([config])[0]
    assert ours[Cut.AFTER_ENCODER].vision == theirs[Cut.AFTER_ENCODER].vision
    assert ours[Cut.CLOUD].prefill.latency_s == halved.cloud.price(with_quant(config, "fp16")).prefill.latency_s
    assert away(ours[Cut.CLOUD]).cloud_bytes > away(theirs[Cut.CLOUD]).cloud_bytes


def test_basis_and_objectives_of_a_placed_request() -> None:
    costs, profile = pricer(link(10)).every([MODELS[0]])[0], load("raspberry-pi-5")
    assert costs[Cut.AFTER_ENCODER].basis is Basis.ASSUMED
    assert OBJECTIVES["sent"].basis(costs[Cut.AFTER_ENCODER], None, profile) is Basis.STATIC
    assert OBJECTIVES["sent"].basis(costs[Cut.CLOUD], None, profile) is Basis.ASSUMED  # the size of a JPEG
    assert {"sent", "cloud_memory"} <= objectives_of(costs[Cut.DEVICE], None).keys()
    assert not {"sent", "cloud_memory", "accuracy"} & objectives_of(pricer().device.price(MODELS[0]), None).keys()


def test_the_link_is_the_profiles_unless_it_is_given() -> None:
    phone = load("pixel-6")
    own = Link.of(phone, None, None, None)
    assert phone.link is not None
    assert phone.link.downlink_bits_per_s is not None
    assert own == Link(9.98e6, 91.62e6, 0.057, Basis.ASSUMED)
    assert Link.of(phone, 2, None, None) == Link(2e6, 91.62e6, 0.057)
    assert Link.of(load("raspberry-pi-4"), 2, None, 10) == Link(2e6, 2e6, 0.01)
    for given in ((None, None, None), (2, None, None), (None, None, 10)):
        with pytest.raises(NasError, match="--uplink-mbit and --round-trip-ms"):
            Link.of(load("raspberry-pi-4"), *given)


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"uplink_mbit": -3}, NasError, "uplink > 0"),
        ({"uplink_mbit": math.nan}, NasError, "uplink > 0"),
        ({"downlink_mbit": 0}, NasError, "downlink > 0"),
        ({"round_trip_ms": -1}, NasError, "round trip >= 0"),
        ({"cloud": "nvidia-l5"}, ProfileError, "did you mean 'nvidia-l4'"),
        ({"cuts": ["after_encodr"]}, ConfigError, "did you mean 'after_encoder'"),
        ({"cuts": ["cloud"], "no_pixels_leave": True}, NasError, "no cut is left"),
        ({"features": "w8a8"}, ConfigError, "unknown precision of features 'w8a8'"),
        ({"bits_per_pixel": 0}, NasError, "bits_per_pixel > 0"),
        ({"cloud_quant": "w4a61"}, ConfigError, "did you mean 'w4a16'"),
        ({"by": "latancy"}, ConfigError, "did you mean 'latency'"),
    ],
)
def test_what_is_wrong_names_its_mend(asked: dict[str, Any], error: type[Exception], told: str) -> None:
    given: dict[str, Any] = {"cloud": "nvidia-l4", "uplink_mbit": 10, "round_trip_ms": 40, **asked}
    device = Pricer(cost_model("roofline", load("raspberry-pi-4")), ASKED)
    with pytest.raises(error, match=told):
        placed(device, given.pop("cloud"), **given)


def test_an_evaluation_is_stored_with_its_cut_and_older_ones_have_none() -> None:
    cost = pricer(link(10)).price(MODELS[0])
    kept = Evaluation("a", {}, cost, None).to_dict()
    assert Evaluation.from_dict(json.loads(json.dumps(kept))).cost == cost
    kept["cost"].pop("away")
    assert Evaluation.from_dict(kept).cost == dataclasses.replace(cost, away=None)


def test_the_answer_says_what_does_not_fit() -> None:
    asked = pricer(link(10), device="raspberry-pi-4", cuts=(Cut.DEVICE,))
    found = place(model("LLaVA-1.5-7B", "fp16"), asked)
    assert found["best"] is None
    assert found["best_by_uplink"] == []
    assert found["why"].startswith("no cut fits: needs 14.")
    assert "raspberry-pi-4 has 3.76 GB left" in found["cuts"][0]["refused"][0]
    small = PlacedPricer(asked.device, Pricer(cost_model("roofline", load("jetson-nano")), ASKED), asked.placement)
    split = PlacedPricer(small.device, small.cloud, dataclasses.replace(asked.placement, cuts=SPLIT))
    assert "jetson-nano has" in place(model("LLaVA-1.5-7B", "fp16"), split)["why"]


def test_the_command_compares_cuts(run: Any) -> None:
    words = ("place", "mobilevlm-1.7b", "-d", "raspberry-pi-5", "--quant", "w4a16", "--round-trip-ms", "40")
    found = json.loads(run(*words, "--uplink-mbit", "10", "--json").stdout)
    assert (found["device"], found["cloud"], found["by"]) == ("raspberry-pi-5", "nvidia-l4", "latency")
    assert found["workload"] == {"images": 1, "prompt_tokens": 40, "new_tokens": 64}
    assert found["link"] == {
        "uplink_bits_per_s": 10e6,
        "downlink_bits_per_s": 10e6,
        "round_trip_s": 0.04,
        "basis": "assumed",
    }
    assert [row["cut"] for row in found["cuts"]] == ["device", "after_projector", "after_encoder", "cloud"]
    sent = {row["cut"]: row["placement"]["sent_bytes"]["total_bytes"] for row in found["cuts"]}
    assert sent == {"device": 0, "after_projector": 589_984, "after_encoder": 1_179_808, "cloud": 28_384}
    assert found["best"] == min(found["cuts"], key=lambda row: row["objectives"]["latency"]["value"])["cut"]
    assert found["best_by_uplink"][-1]["to_bits_per_s"] is None
    shown = run(*words, "--uplink-mbit", "10", "--no-pixels-leave", "--features", "int8").stdout
    assert "after_projector is best" in shown
    assert "best by uplink" in shown
    assert not any(line.startswith("cloud ") for line in shown.splitlines())
    missed = run(*words)
    assert missed.returncode == 2
    assert "--uplink-mbit" in missed.stderr


def test_a_server_of_ones_own_is_a_cloud(run: Any) -> None:
    made = run("device", "new", "my-server", "--like", "nvidia-l4", "--memory-gb", "48")
    assert made.returncode == 0, made.stderr
    words = ("place", "llava-1.5-7b", "-d", "pixel-6", "--cloud", "my-server", "--quant", "fp32", "--by", "energy")
    found = json.loads(run(*words, "--json").stdout)  # 28 GB; the phone's profile has a link
    assert found["best"] == "cloud"
    assert found["link"]["round_trip_s"] == 0.057
    assert found["cuts"][0]["refused"]


def test_a_prediction_is_of_the_cut_that_is_named(run: Any) -> None:
    words = ("predict", "mobilevlm-1.7b", "-d", "raspberry-pi-5", "--quant", "w4a16")
    link_words = ("--uplink-mbit", "10", "--round-trip-ms", "40", "--cloud", "nvidia-h100")
    found = json.loads(run(*words, "--placement", "after_encoder", *link_words, "--json").stdout)
    assert {name: phase["device"] for name, phase in found["phases"].items()} == {
        "vision": "raspberry-pi-5",
        **dict.fromkeys(("projector", "prefill", "decode"), "nvidia-h100"),
    }
    first_s = sum(found["phases"][name]["latency_s"] for name in ("vision", "projector", "prefill"))
    expected = first_s + found["placement"]["link_s"]
    assert found["objectives"]["time_to_first_token"]["value"] == pytest.approx(expected)
    for phase in found["phases"].values():
        kernels_s = sum(row["total_s"] for row in phase["kernels"])
        assert phase["latency_s"] == pytest.approx(kernels_s + phase["overhead_s"])
    assert "leave the device" in run(*words, "--placement", "cloud", *link_words).stdout
    assert json.loads(run(*words, "--json").stdout)["placement"] is None
    missed = run(*words, *link_words)
    assert missed.returncode == 2
    assert "give --placement too" in missed.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"placement": {}}, "cloud"),
        ({"placement": {"cloud": "nvidia-l4", "uplnk_mbit": 3}}, "did you mean 'uplink_mbit'"),
        ({"placement": {"cloud": "nvidia-l4", "uplink_mbit": -3}}, "greater than 0"),
        ({"placement": {"cloud": "nvidia-l4", "cuts": ["devise"]}}, "did you mean 'device'"),
        ({"placement": {"cloud": "nvidia-l4", "cuts": ["cloud"], "no_pixels_leave": True}}, "leave no cut"),
        ({"placement": {"cloud": "nvidia-l4", "cloud_quant": "w4a61"}}, "did you mean 'w4a16'"),
        ({"objectives": ["accuracy", "sent"]}, "add `placement`"),
        ({"caps": {"max_sent_mb": 1}}, "add `placement`"),
    ],
)
def test_a_bad_placement_of_an_experiment_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises((NasError, ConfigError), match=told):
        parse_experiment({"name": "x", **changes}, "x.yaml")


def test_an_experiments_keys_are_what_placing_takes() -> None:
    spec = PlacementSpec(cloud="nvidia-l4", uplink_mbit=10, round_trip_ms=40)
    asked = placed(Pricer(cost_model("roofline", load("raspberry-pi-4")), ASKED), **spec.model_dump())
    assert asked.placement == Placement(Link(10e6, 10e6, 0.04), features=Precision.FP16)


def test_a_search_places_every_candidate(run: Any, experiment: Callable[..., Path], tmp_path: Path) -> None:
    placement = {"cloud": "nvidia-l4", "uplink_mbit": 10, "round_trip_ms": 0.02, "no_pixels_leave": True}
    file = experiment(placement=placement, objectives=["accuracy", "latency", "sent"], caps={"max_sent_mb": 0.5})
    done = run("search", file, "--json")
    assert done.returncode == 0, done.stderr
    members = json.loads(done.stdout)["front"]
    assert members
    for member in members:
        assert member["placement"]["cut"] in ("device", "after_projector", "after_encoder")
        assert member["objectives"]["sent"]["value"] == member["placement"]["sent_bytes"]["total_bytes"] <= 0.5e6
        assert f"cut: {member['placement']['cut']}" in member["description"]
    report = (tmp_path / "runs" / "small" / "report.html").read_text()
    assert "best cut of device, after_projector, after_encoder" in report
    shown = run("front").stdout
    assert "sent" in shown.splitlines()[1]
    elsewhere = json.loads(run("front", "--device", "raspberry-pi-5", "--json").stdout)
    assert all(member["placement"] for member in elsewhere)
    best = run("best")
    assert "latency of the link" in best.stdout
    measured = run("measure", members[0]["id"])
    assert measured.returncode == 2
