"""Samplers by name; one line each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler

from nas.samplers.cost_aware import CostAwareSampler
from nas.samplers.several import ForAll
from nas.samplers.task import Priced, Task


def _quiet(make: Callable[..., BaseSampler], **options: Any) -> Callable[[int, Task], BaseSampler]:
    """A sampler of Optuna's, without its remark that it is an experimental one; for all devices of a task."""

    def made(seed: int, task: Task) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = make(seed=seed, **options)
        return ForAll(sampler, task) if len(task.devices) > 1 else sampler

    return made


#: Every sampler by name; called with a seed and the task.
SAMPLERS: dict[str, Callable[[int, Task], BaseSampler]] = {
    "cost_aware": CostAwareSampler,
    "gp": _quiet(GPSampler),
    "nsga2": _quiet(NSGAIISampler, population_size=30),
    "nsga3": _quiet(NSGAIIISampler, population_size=30),
    "random": _quiet(RandomSampler),
    "tpe": _quiet(TPESampler, multivariate=True),
}

__all__ = ["SAMPLERS", "Priced", "Task"]
