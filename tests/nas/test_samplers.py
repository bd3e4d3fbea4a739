"""The sampler cost_aware: what it proposes, from what it knows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest
import scipy.optimize
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from cost_models.models import cost_model
from hardware_profiles import load
from nas import pareto
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import parse_experiment
from nas.pricing import SpacePricer
from nas.samplers import SAMPLERS, Priced, Task
from nas.samplers.design import Design
from nas.samplers.gain import Gain
from nas.samplers.surrogate import Surrogate
from search_spaces import SPACES, ConfigError, SearchSpace, Workload
from search_spaces.space import Factors

SIZES = (5, 4, 6, 3, 5, 4, 3, 6)
NAMED = 3
SPACE = SearchSpace(
    "made-up",
    {
        f"choice_{at}": tuple(f"kind_{n}" for n in range(size)) if at == NAMED else tuple(range(size))
        for at, size in enumerate(SIZES)
    },
    lambda point: pytest.fail(f"{point} is decoded"),
    Factors(),
)


def accuracy(points: np.ndarray) -> np.ndarray:
    """Saturating in some choices, with one interaction and one choice of names."""
    share = points / (np.array(SIZES) - 1)
    names = np.array([0.3, -0.2, 0.1])[points[:, NAMED]]
    return 1 / (1 + np.exp(-(share[:, [0, 1, 2, 4]].sum(1) + share[:, 0] * share[:, 5] + names - 1.5)))


class Prices:
    """Of two devices, which differ in what is dear; `scale` is the second's."""

    space = SPACE

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = np.array(weights)

    def columns(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        cost = np.exp((indices / (np.array(SIZES) - 1)) @ self.weights)
        return {"latency_s": cost * 1e-3, "peak_bytes": cost**0.5 * 1e6}


FIRST, SECOND = Prices((1.0, 0.2, 0.8, 0.0, 0.3, 0.6, 0.5, 0.4)), Prices((0.1, 1.2, 0.3, 0.0, 0.9, 0.2, 0.8, 0.1))
CAPS = {"max_latency_ms": 30.0}
TWO = ("accuracy", "latency")


def volume(points: np.ndarray, prices: Prices = FIRST) -> float:
    values = np.column_stack([-accuracy(points), prices.columns(points)["latency_s"]])
    return pareto.hypervolume(values, [0.0, 30e-3])


def searched(about: Task, seed: int, trials: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    design = Design(about, rng)
    points, values, seen = np.empty((0, len(SIZES)), np.intp), np.empty(0), set()
    while len(points) < trials:
        proposed = design.propose(points, values, seen, 4)
        seen |= {row.tobytes() for row in proposed}
        points = np.vstack([points, proposed])
        values = np.r_[values, accuracy(proposed) + rng.normal(0, 0.01, len(proposed))]
    return points


@pytest.mark.parametrize("objectives", [TWO, (*TWO, "peak_memory")])
def test_it_reaches_further_than_chance_and_proposes_nothing_twice_or_over_a_cap(objectives: tuple[str, ...]) -> None:
    found = searched(Task((Priced(FIRST, CAPS),), objectives), 0, 60)
    assert len({row.tobytes() for row in found}) == len(found)
    assert (FIRST.columns(found)["latency_s"] <= 30e-3).all()
    drawn = np.random.default_rng(1).integers(0, SIZES, (600, len(SIZES)))
    drawn = drawn[FIRST.columns(drawn)["latency_s"] <= 30e-3]
    assert volume(found) > volume(drawn[:60]) * 1.05
    assert volume(found) > volume(drawn) * 0.99  # ten times as many


def test_the_fronts_of_two_devices_are_searched_at_once() -> None:
    both = searched(Task((Priced(FIRST, CAPS), Priced(SECOND, {"max_latency_ms": 8.0})), TWO), 0, 60)
    kept = [FIRST.columns(both)["latency_s"] <= 30e-3, SECOND.columns(both)["latency_s"] <= 8e-3]
    assert (kept[0] | kept[1]).all()  # a device affords it
    assert not kept[0].all() or not kept[1].all()
    alone = searched(Task((Priced(FIRST, CAPS),), TWO), 0, 60)
    assert volume(both, SECOND) > volume(alone, SECOND)
    assert volume(both, FIRST) > 0.95 * volume(alone, FIRST)


def test_the_surrogate_learns_and_knows_what_it_does_not_know() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, SIZES, (140, len(SIZES)))
    surrogate = Surrogate(np.array(SIZES), np.array([at != NAMED for at in range(len(SIZES))]))
    surrogate.fit(points[:100], accuracy(points[:100]))
    mean, deviation = surrogate.predict(points[100:])
    left = mean - accuracy(points[100:])
    assert np.abs(left).mean() < 0.1 * accuracy(points).std()
    assert 0.5 < np.mean(np.abs(left) <= 2 * deviation) <= 1.0
    assert surrogate.predict(points[:1])[1] < deviation.mean()


def test_the_surrogate_finds_the_scales_of_the_highest_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, SIZES, (30, len(SIZES)))
    surrogate = Surrogate(np.array(SIZES), np.array([at != NAMED for at in range(len(SIZES))]))
    found = []

    def checked(loss, start, **options):  # type: ignore[no-untyped-def]
        at = start + rng.normal(0, 0.3, len(start))
        numeric = scipy.optimize.approx_fprime(at, lambda theta: loss(theta)[0], 1e-6)
        found.append((loss(at)[1], numeric))
        return minimize(loss, start, **options)

    minimize = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", checked)
    surrogate.fit(points, accuracy(points))
    np.testing.assert_allclose(*found[0], rtol=1e-3, atol=1e-3)


def test_an_expected_gain_is_what_is_gained_on_average() -> None:
    rng = np.random.default_rng(0)
    costs, scores = rng.uniform(1.0, 9.0, (1, 20, 1)), rng.uniform(0.2, 0.8, 20)
    kept = np.ones((1, 20), bool)
    low, high = np.array([[1.0]]), np.array([[10.0]])
    gain = Gain(costs, kept, scores, low, high)
    new, mean, deviation = np.array([[[3.0], [6.0], [10.0]]]), np.array([0.6, 0.8, 0.9]), np.array([0.1, 0.05, 0.2])
    affordable = gain.affordable(new, np.ones((1, 3), bool))
    expected = gain.expected(affordable, mean, deviation)
    for at in range(3):
        gained = []
        for drawn in rng.normal(mean[at], deviation[at], 4000):
            more = Gain(costs, kept, scores, low, high)
            more.add(affordable[:, at], drawn)
            gained.append(more.volume - gain.volume)
        assert expected[at] == pytest.approx(np.mean(gained), rel=0.08)
    # volume is the area under what is reached, half of the nodes even in costs
    even = gain.reached[0, :128]
    best = np.array([scores[costs[0, :, 0] <= node].max(initial=scores.min()) for node in gain.nodes[0, :128, 0]])
    np.testing.assert_allclose(even, best)


def task(name: str = "tiny", caps: dict[str, float] | None = None) -> Task:
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), Workload())
    return Task((Priced(SpacePricer(SPACES[name], pricer), caps or {}),), TWO)


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's own, which every sampler of its keeps."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: SAMPLERS["cost_aware"](0, task())


def test_workers_propose_different_points_and_a_space_can_be_exhausted() -> None:
    space = SPACES["tiny"]
    kept = {name: values[:1] for name, values in space.choices.items()} | {"language_depth": (1, 2, 3)}
    small = space.narrowed(kept)
    about = Task((Priced(SpacePricer(small, task().devices[0].pricer.pricer), {}),), TWO)
    choices = {name: CategoricalDistribution(values) for name, values in small.choices.items()}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SAMPLERS["cost_aware"](0, about))
    running = [study.ask(dict(choices)) for _ in range(3)]  # none is told
    assert len({str(trial.params) for trial in running}) == 3
    again = study.ask(dict(choices))
    assert again.params in [trial.params for trial in running]


def test_caps_are_kept_before_anything_is_evaluated() -> None:
    about = task(caps={"max_latency_ms": 3.0, "max_parameters_m": 0.3})
    sampler = SAMPLERS["cost_aware"](1, about)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    space = SPACES["tiny"]
    choices = {name: CategoricalDistribution(values) for name, values in space.choices.items()}
    for at in range(24):
        trial = study.ask(dict(choices))
        cost = about.devices[0].pricer.pricer.price(space.decode(trial.params))
        assert cost.latency_s <= 3e-3
        assert cost.parameters <= 3e5
        study.tell(trial, [at / 24, cost.latency_s])


def test_a_search_starts_from_corners_and_from_what_is_published() -> None:
    space = SPACES["assembled"]
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-5")), Workload())
    caps = {"max_parameters_m": 1000.0}
    design = Design(Task((Priced(SpacePricer(space, pricer), caps),), TWO), np.random.default_rng(0))
    points = [space.point(row) for row in design.propose(space.indices([]), np.empty(0), set(), 8)]
    small = {name: dict(point) for name, point in space.references.items() if space.decode(point).parameters <= 1e9}
    assert sorted(small) == ["FastVLM-0.5B", "SmolVLM-256M", "SmolVLM-500M"]
    assert points[0] == {name: values[0] for name, values in space.choices.items()}
    assert all(point in points[:4] for point in small.values())
    assert all(space.decode(point).parameters <= 1e9 for point in points)
    assert len({str(point) for point in points}) == 8
    # one by one they are the same, and none comes again
    seen = {space.indices([point])[0].tobytes() for point in points[:2]}
    (third,) = design.propose(space.indices(points[:2]), np.zeros(2), seen, 1)
    assert space.point(third) == points[2]


def test_an_experiment_may_narrow_its_space() -> None:
    data = {"name": "narrow", "only": {"projector": ["ldpv2"], "vision_expansion": [2, 4.0]}}
    found = parse_experiment(data, "narrow.yaml")
    assert found.searched.choices["projector"] == ("ldpv2",)
    assert found.searched.choices["vision_expansion"] == (2.0, 4.0)
    assert found.searched.size == SPACES["tiny"].size // 7 * 2 // 7
    with pytest.raises(NasError, match=r"^narrow.yaml: unknown value of projector 'ldpv3'; did you mean 'ldpv2'"):
        parse_experiment({"name": "narrow", "only": {"projector": ["ldpv3"]}}, "narrow.yaml")
    with pytest.raises(NasError, match="did you mean 'projector'"):
        parse_experiment({"name": "narrow", "only": {"projectr": ["ldpv2"]}}, "narrow.yaml")
    with pytest.raises(ConfigError, match="needs a value"):
        SPACES["tiny"].narrowed({"projector": []})
