"""Points of a space priced from tables of their parts: the same costs as of each point's kernels."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cost_models.models import cost_model
from hardware_profiles import load
from nas.candidate import Pricer
from nas.pricing import SpacePricer
from search_spaces import SPACES, Phase, Workload

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


@pytest.mark.parametrize("name", SPACES)
def test_a_part_hangs_on_its_factors_alone(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    factors = space.factors
    for component, names in enumerate((factors.vision, factors.projector, factors.language)):
        for _ in range(150):
            first, other = space.sample(rng), space.sample(rng)
            kept = {*names, *factors.image} if _COMPONENTS[component] == "language" else set(names)
            second = {key: first[key] if key in kept else other[key] for key in other}
            keys = [space.decode(point).keys(WORKLOAD)[component] for point in (first, second)]
            assert keys[0] == keys[1], (_COMPONENTS[component], first, second)
    for _ in range(150):
        first, other = space.sample(rng), space.sample(rng)
        second = {key: first[key] if key in factors.image else other[key] for key in other}
        assert space.decode(first).image_tokens == space.decode(second).image_tokens


@pytest.mark.parametrize("name", SPACES)
def test_indices_stand_for_points(name: str) -> None:
    space, rng = SPACES[name], random.Random(0)
    points = [space.sample(rng) for _ in range(20)]
    indices = space.indices(points)
    assert [space.point(row) for row in indices] == points
    drawn = space.sample_indices(np.random.default_rng(0), 2000)
    assert drawn.min() == 0
    assert (drawn.max(0) == [len(values) - 1 for values in space.choices.values()]).all()
