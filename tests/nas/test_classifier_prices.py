"""Published models that choose among labels: priced on every shipped device, and on the command line."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from cost_models.models import cost_model
from hardware_profiles import Basis, load, names
from nas.candidate import Pricer
from nas.predict import FULL_SIZE, predict
from search_spaces import Phase, Workload
from search_spaces.classifier_systems import reference_classifiers
from search_spaces.systems import QUANTS, with_quant

DEVICES = [name for name in names() if name != "host"]
SYSTEMS = reference_classifiers()


@pytest.mark.parametrize("device", DEVICES)
def test_every_classifier_is_priced_on_every_device(device: str) -> None:
    pricer = Pricer(cost_model("auto", load(device)), FULL_SIZE)
    for system in SYSTEMS.values():
        costs = dict(zip(QUANTS, pricer.prices([with_quant(system.config, quant) for quant in QUANTS]), strict=True))
        for quant, cost in costs.items():
            assert 1e-4 < cost.latency_s < 1e4
            assert math.isfinite(cost.energy_j)
            assert cost.decode.latency_s == cost.memory.kv_cache_bytes == 0
            assert cost.memory.weight_bytes == with_quant(system.config, quant).weight_bytes
            assert cost.parameters == system.config.parameters
            assert (cost.prefill.latency_s > 0) == (system.config.text is not None)
        assert costs["w8a8"].latency_s < costs["fp32"].latency_s
        assert costs["w8a8"].basis is Basis.ASSUMED  # tables are of kernels in fp32
        tabled = load(device).kernels_csv.is_file()  # server GPUs have none
        assert costs["fp32"].basis is (Basis.STATIC if tabled else Basis.ASSUMED)


def test_labels_that_are_known_beforehand_cost_no_text_and_more_labels_cost_more() -> None:
    profile = load("raspberry-pi-5")
    asked, known = (SYSTEMS[name].config for name in ("APoLLo", "APoLLo-cached"))
    first, second = (predict(config, FULL_SIZE, profile, "auto") for config in (asked, known))
    assert set(first["phases"]) == {"vision", "projector", "prefill"}
    assert set(second["phases"]) == {"vision", "projector"}
    for phase in second["phases"]:
        assert first["phases"][phase]["latency_s"] == pytest.approx(second["phases"][phase]["latency_s"])
    assert first["objectives"]["parameters"]["value"] > second["objectives"]["parameters"]["value"]
    twice = dataclasses.replace(asked, head=dataclasses.replace(asked.head, labels=2 * asked.head.labels))  # type: ignore[type-var]
    third = predict(twice, FULL_SIZE, profile, "auto")
    text = [found["phases"]["prefill"]["latency_s"] for found in (first, third)]
    assert text[1] == pytest.approx(2 * text[0])
    images = [Pricer(cost_model("auto", profile), Workload(images=n)).price(asked) for n in (1, 2)]
    assert images[1].vision.latency_s == pytest.approx(2 * images[0].vision.latency_s)
    assert images[1].prefill.latency_s == pytest.approx(images[0].prefill.latency_s)


def test_the_command_prices_a_classifier_and_expects_no_scores(run: Any, tmp_path: Path) -> None:
    done = run("predict", "edgevl-swin-t", "--device", "raspberry-pi-5", "--json")
    found = json.loads(done.stdout)
    assert found["kind"] == "classifies"
    assert set(found["objectives"]) == {"latency", "peak_memory", "energy", "parameters"}
    assert all(number["basis"] for number in found["objectives"].values())
    assert found["scores"] == {}
    assert "chooses among labels" in found["scores_outside"][0]
    assert found["described"]["basis"] == "assumed"
    shown = run("predict", "edgevl-swin-t", "--device", "raspberry-pi-5", "--quant", "fp32").stdout
    assert "no scores are expected of it" in shown
    assert "assumed: the code calls it Swin-T" in " ".join(shown.split())
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SYSTEMS["EdgeVL-Swin-T"].config.to_dict()))
    again = json.loads(run("predict", file, "--device", "raspberry-pi-5", "--json").stdout)
    assert again["objectives"] == found["objectives"]
    assert "classifies" in run("reference", "list").stdout
    refused = run("supernet", "evaluate", "MiniVLM")
    assert refused.returncode == 2
    assert "chooses among labels" in refused.stderr


def test_every_phase_of_a_classifier_is_priced_by_its_kernels() -> None:
    config = SYSTEMS["MiniVLM"].config
    pricer = Pricer(cost_model("roofline", load("jetson-nano")), FULL_SIZE)
    cost = pricer.price(config)
    for phase, part in ((Phase.VISION, cost.vision), (Phase.PROJECTOR, cost.projector), (Phase.PREFILL, cost.prefill)):
        kernels = pricer.kernel_costs(config, phase)
        assert part.latency_s == pytest.approx(sum(count * seconds for _, count, seconds, _ in kernels))
    assert pricer.kernel_costs(config, Phase.DECODE) == []
    assert cost.latency_s == cost.first_token.latency_s
