"""The sampler cost_aware: what it proposes, from what it knows."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from cost_models.models import cost_model
from hardware_profiles import load
from nas import pareto
from nas.candidate import Pricer
from nas.errors import NasError
from nas.experiment import parse_experiment
from nas.pricing import SpacePricer
from nas.samplers import SAMPLERS, Task
from nas.samplers.design import Design
from nas.samplers.surrogate import Surrogate
from search_spaces import SPACES, ConfigError, Workload

SIZES = (5, 4, 6, 3, 5, 4, 3, 6)


def accuracy(points: np.ndarray) -> np.ndarray:
    """Saturating in some choices, with one interaction and one choice of names."""
    share = points / (np.array(SIZES) - 1)
    names = np.array([0.3, -0.2, 0.1])[points[:, 3]]
    return 1 / (1 + np.exp(-(share[:, [0, 1, 2, 4]].sum(1) + share[:, 0] * share[:, 5] + names - 1.5)))


def price(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cost = np.exp((points / (np.array(SIZES) - 1)) @ np.array([1.0, 0.2, 0.8, 0.0, 0.3, 0.6, 0.5, 0.4]))
    return cost[:, None], cost < 30.0


def volume(points: np.ndarray) -> float:
    values = np.column_stack([-accuracy(points), price(points)[0][:, 0]])
    return pareto.hypervolume(values, [0.0, 30.0])


def searched(seed: int, trials: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    design = Design(SIZES, tuple(at != 3 for at in range(len(SIZES))), price, rng)
    points, values, seen = np.empty((0, len(SIZES)), np.intp), np.empty(0), set()
    while len(points) < trials:
        proposed = design.propose(points, values, seen, 4)
        seen |= {row.tobytes() for row in proposed}
        points = np.vstack([points, proposed])
        values = np.r_[values, accuracy(proposed) + rng.normal(0, 0.01, len(proposed))]
    return points


def test_it_reaches_further_than_chance_and_proposes_nothing_twice_or_over_a_cap() -> None:
    found = searched(0, 60)
    assert len({row.tobytes() for row in found}) == len(found)
    assert price(found)[1].all()
    drawn = np.random.default_rng(1).integers(0, SIZES, (600, len(SIZES)))
    drawn = drawn[price(drawn)[1]]
    assert volume(found) > volume(drawn[:60]) * 1.05
    assert volume(found) > volume(drawn) * 0.99  # ten times as many


def test_the_surrogate_learns_and_knows_what_it_does_not_know() -> None:
    rng = np.random.default_rng(0)
    points = rng.integers(0, SIZES, (140, len(SIZES)))
    places = points / (np.array(SIZES) - 1)
    surrogate = Surrogate(np.array([at != 3 for at in range(len(SIZES))]))
    surrogate.fit(places[:100], accuracy(points[:100]))
    mean, deviation = surrogate.predict(places[100:])
    left = mean - accuracy(points[100:])
    assert np.abs(left).mean() < 0.25 * accuracy(points).std()
    assert 0.5 < np.mean(np.abs(left) <= 2 * deviation) <= 1.0
    assert surrogate.predict(places[:1])[1] < deviation.mean()


def task(name: str = "tiny", caps: dict[str, float] | None = None) -> Task:
    pricer = Pricer(cost_model("roofline", load("raspberry-pi-4")), Workload())
    return Task(SpacePricer(SPACES[name], pricer), ("accuracy", "latency"), caps or {})


def test_workers_propose_different_points_and_a_space_can_be_exhausted() -> None:
    space = SPACES["tiny"]
    kept = {name: values[:1] for name, values in space.choices.items()} | {"language_depth": (1, 2, 3)}
    small = space.narrowed(kept)
    about = Task(SpacePricer(small, task().pricer.pricer), ("accuracy", "latency"), {})
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
        cost = about.pricer.pricer.price(space.decode(trial.params))
        assert cost.latency_s <= 3e-3
        assert cost.parameters <= 3e5
        study.tell(trial, [at / 24, cost.latency_s])


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
