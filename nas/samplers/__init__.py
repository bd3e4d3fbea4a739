"""Samplers by name; one line each."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler


def _multivariate_tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(multivariate=True, seed=seed)


#: Every sampler by name; called with a seed.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(population_size=30, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": _multivariate_tpe,
}

__all__ = ["SAMPLERS"]
