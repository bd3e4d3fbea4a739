"""Samplers by name; one line each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from nas.pricing import PointPricer, SpacePricer
from nas.samplers.cost_aware import CostAwareSampler


@dataclass(frozen=True, slots=True)
class Task:
    """What a sampler may know of a search beforehand: what every point of its space costs, and which are allowed."""

    pricer: SpacePricer | PointPricer
    objectives: tuple[str, ...]
    caps: Mapping[str, float]


def _multivariate_tpe(seed: int, _: Task) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(multivariate=True, seed=seed)


#: Every sampler by name; called with a seed and the task.
SAMPLERS: dict[str, Callable[[int, Task], BaseSampler]] = {
    "cost_aware": lambda seed, task: CostAwareSampler(seed, task.pricer, task.objectives, task.caps),
    "nsga2": lambda seed, _: NSGAIISampler(population_size=30, seed=seed),
    "random": lambda seed, _: RandomSampler(seed=seed),
    "tpe": _multivariate_tpe,
}

__all__ = ["SAMPLERS", "Task"]
