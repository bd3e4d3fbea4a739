"""Points of a space priced from tables of their parts: the same costs as of each point's kernels."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cost_models.models import cost_model
from hardware_profiles import load
from nas.candidate import Pricer
from nas.objectives import OBJECTIVES
from nas.placement import CHOSEN_BY, Link, PlacedPricer, Placement
from nas.pricing import SpacePricer, tabled
from search_spaces import SPACES, Phase, Precision, VLMConfig, Workload
from search_spaces.placement import Cut

WORKLOAD = Workload(prompt_tokens=20, new_tokens=8)
_COMPONENTS = ("vision", "projector", "language")


@pytest.mark.parametrize("name", SPACES)
def test_tables_price_as_kernels_do(name: str) -> None:
    space, model = SPACES[name], cost_model("auto", load("raspberry-pi-5"))
    indices = space.sample_indices(np.random.default_rng(1), 60)
    tabled = SpacePricer(space, Pricer(model, WORKLOAD))
    tabled.columns(space.sample_indices(np.random.default_rng(2), 60))  # tables have other points in them
    found = tabled.columns(indices)
    configs = [space.decode(space.point(row)) for row in indices]
    single = Pricer(model, WORKLOAD).prices(configs)
    for column, numbers in {
        "latency_s": [cost.latency_s for cost in single],
        "time_to_first_token_s": [cost.time_to_first_token_s for cost in single],
        "decode_s": [cost.decode.latency_s for cost in single],
        "energy_j": [cost.energy_j for cost in single],
        "peak_bytes": [cost.memory.peak_bytes for cost in single],
        "parameters": [config.parameters for config in configs],
    }.items():
        np.testing.assert_allclose(found[column], numbers, rtol=1e-12, err_msg=column)
    kernels, counts = zip(*configs[0].kernels(Phase.PREFILL, WORKLOAD), strict=True)
    calls, alone_s = sum(counts), float(model.latencies_s(kernels) @ np.array(counts))
    beside_s = model.overhead_s(Phase.PREFILL, calls, alone_s, 0.0)
    assert found["prefill_s"][0] == pytest.approx(alone_s + beside_s, rel=1e-9)


@pytest.mark.parametrize("by", CHOSEN_BY)
@pytest.mark.parametrize("name", SPACES)
def test_tables_place_as_configs_are_placed(name: str, by: str) -> None:
    space = SPACES[name]
    own, cloud = (Pricer(cost_model("roofline", load(device)), WORKLOAD) for device in ("raspberry-pi-5", "nvidia-l4"))
    caps = {"max_latency_ms": 30_000.0, "max_sent_mb": 0.05}
    for asked in (
        Placement(Link(8e6, 20e6, 0.03), features=Precision.INT8, cloud_quant="w8a8"),
        Placement(Link(1e6, 1e6, 0.3), cuts=(Cut.AFTER_PROJECTOR, Cut.AFTER_ENCODER)),
        Placement(Link(1e9, 1e9, 0.001), cuts=(Cut.CLOUD, Cut.DEVICE)),
    ):
        pricer = PlacedPricer(own, cloud, asked, caps, by)
        indices = space.sample_indices(np.random.default_rng(1), 40)
        placed = tabled(space, pricer)
        placed.columns(space.sample_indices(np.random.default_rng(2), 40))
        found = placed.columns(indices)
        costs = pricer.prices([space.decode(space.point(row)) for row in indices])
        for each in OBJECTIVES.values():
            if each.of is not None:
                expected = [each.of(cost) for cost in costs]
                np.testing.assert_allclose(found[each.column], expected, rtol=1e-12, err_msg=each.column)


@pytest.mark.parametrize("name", SPACES)
def test_a_part_hangs_on_its_factors_alone(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    own = space.factors
    hangs_on: dict[str, tuple[str, ...]] = {
        "grid": own.grid,
        "vision_width": own.vision_width,
        "language_width": own.language_width,
        "image_tokens": own.image_tokens,
    }
    through = (("grid",), ("grid", "vision_width", "language_width"), ("image_tokens",))
    for component, (names, numbers) in enumerate(zip((own.vision, own.projector, own.language), through, strict=True)):
        compared = 0
        for _ in range(4000):
            first, other = space.sample(rng), space.sample(rng)
            if rng.random() < 0.5:  # equal numbers are rare where many choices differ
                other |= {key: first[key] for number in numbers for key in hangs_on[number]}
            second = {key: first[key] if key in names else other[key] for key in other}
            configs = [space.decode(point) for point in (first, second)]
            if len({tuple(_numbers(config)[number] for number in numbers) for config in configs}) == 1:
                keys = [config.keys(WORKLOAD)[component] for config in configs]
                assert keys[0] == keys[1], (_COMPONENTS[component], first, second)
                compared += 1
        assert compared > 1000
    for number, names in hangs_on.items():
        for _ in range(150):
            first, other = space.sample(rng), space.sample(rng)
            second = {key: first[key] if key in names else other[key] for key in other}
            assert _numbers(space.decode(first))[number] == _numbers(space.decode(second))[number]


def _numbers(config: VLMConfig) -> dict[str, int]:
    return {
        "grid": config.vision.grid,
        "vision_width": config.vision.width,
        "language_width": config.language.width,
        "image_tokens": config.image_tokens,
    }


@pytest.mark.parametrize("name", SPACES)
def test_indices_stand_for_points(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    points = [space.sample(rng) for _ in range(20)]
    indices = space.indices(points)
    assert [space.point(row) for row in indices] == points
    drawn = space.sample_indices(np.random.default_rng(0), 2000)
    assert drawn.min() == 0
    assert (drawn.max(0) == [len(values) - 1 for values in space.choices.values()]).all()
