"""Samplers by name; one line each."""

from __future__ import annotations

from collections.abc import Callable

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

#: Every sampler by name; called with a seed.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(population_size=30, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(multivariate=True, seed=seed, warn_independent_sampling=False),
}

__all__ = ["SAMPLERS"]
