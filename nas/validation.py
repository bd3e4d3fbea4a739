"""Predicted against measured on kernels and whole models that neither a fit nor a choice of method has seen.

One kernel in twenty is kept from every table to judge here (kernel_choice.py); models are drawn with a seed of their
own, those that overheads were fitted on left out. All are timed now.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models import table
from cost_models.features import cached_weight_bytes
from cost_models.learned import LearnedModel
from cost_models.models import CostModel
from hardware_profiles import Profile
from nas.kernel_choice import drawn_kernels
from nas.kernel_table import GRAPH_PHASES, Timer, local_timer, stored_programs, timed_configs
from nas.search import Progress
from search_spaces import Kernel, SearchSpace, VLMConfig, Workload

Array = NDArray[np.float64]

#: Added to seeds here, so that what judges is drawn apart from what was fitted.
APART = 90_000


@dataclass(frozen=True, slots=True)
class TimedKernels:
    """Kernels timed for the judgement alone: seconds, and the difference of two measurements as a share."""

    kernels: tuple[Kernel, ...]
    seconds: Array
    noise: Array


@dataclass(frozen=True, slots=True)
class TimedModels:
    """Whole models timed for the judgement alone: seconds by graph, a value a model."""

    configs: tuple[VLMConfig, ...]
    workload: Workload
    seconds: dict[str, Array]
    undisturbed: Array


def held_out_kernels(
    profile: Profile,
    space: SearchSpace,
    workload: Workload,
    count: int,
    seed: int,
    progress: Progress,
    timer: Timer | None = None,
) -> TimedKernels:
    """Time `count` drawn kernels of those that no table holds (`judges`)."""
    known = table.read(profile.kernels_csv)
    kernels = drawn_kernels(space, workload, count, profile, seed + APART, judging=True)
    kernels = [kernel for kernel in kernels if kernel not in known]  # a table from elsewhere
    random.Random(seed).shuffle(kernels)
    timed = []
    progress("kernels", 0, min(count, len(kernels)), "compiling held-out kernels")
    for timing in (timer or local_timer(profile))(kernels[:count]):
        timed.append(timing)
        progress("kernels", len(timed), min(count, len(kernels)), "timing held-out kernels")
    seconds = np.array([(timing.latency_s + timing.repeat_s) / 2 for timing in timed])
    noise = np.array([timing.disagreement for timing in timed])
    return TimedKernels(tuple(timing.kernel for timing in timed), seconds, noise)


def held_out_models(
    profile: Profile, space: SearchSpace, workload: Workload, count: int, seed: int, progress: Progress
) -> TimedModels:
    """Compile `count` sampled models whole and time each graph end to end."""
    rng, known = random.Random(seed + APART), {stored.config.id for stored in stored_programs(profile)}
    configs: list[VLMConfig] = []
    while len(configs) < count:
        config = space.decode(space.sample(rng))
        if config.id not in known:
            known.add(config.id)
            configs.append(config)
    timed = list(timed_configs(configs, workload, profile, seed, progress))
    seconds = {graph: np.array([found[graph] for _, found, _ in timed]) for graph in GRAPH_PHASES}
    quiet = np.array([float(undisturbed) for _, _, undisturbed in timed])
    return TimedModels(tuple(config for config, _, _ in timed), workload, seconds, quiet)


def kernel_agreement(predicted_s: Array, timed: TimedKernels) -> dict[str, Any]:
    """Shares within 10 % and 5 %, MAPE, and the noise of measuring twice; by kind too."""
    error = np.abs(predicted_s / timed.seconds - 1.0)
    by_kind: defaultdict[str, list[int]] = defaultdict(list)
    for index, kernel in enumerate(timed.kernels):
        by_kind[f"{kernel.kind.value} {kernel.op}".strip()].append(index)
    kinds = {
        kind: {"held_out": len(members), "within_10_percent": _within(error[members]), "mape": _mean(error[members])}
        for kind, members in sorted(by_kind.items())
    }
    return {
        "held_out": len(error),
        "within_10_percent": _within(error),
        "within_5_percent": _within(error, 0.05),
        "mape": _mean(error),
        "noise_within_10_percent": _within(timed.noise),
        "by_kind": kinds,
    }


def model_agreement(model: CostModel, timed: TimedModels) -> dict[str, Any]:
    """Shares within 10 %, MAPE and rank correlation over all graphs, and for vision, prefill and decode each."""
    phases: dict[str, Any] = {}
    each: list[dict[str, Any]] = [{"id": config.id, "config": config.to_dict()} for config in timed.configs]
    errors, ranks = [], []
    for graph, measured_s in timed.seconds.items():
        predicted_s = graph_seconds(model, timed, graph)
        error = np.abs(predicted_s / measured_s - 1.0)
        errors.append(error)
        for told, predicted, measured in zip(each, predicted_s.tolist(), measured_s.tolist(), strict=True):
            told[graph] = {"predicted_s": predicted, "measured_s": measured}
        ranks.append(spearman(predicted_s, measured_s))
        phases[graph] = {
            "within_10_percent": _within(error),
            "mape": _mean(error),
            "worst": float(error.max()),
            "spearman": ranks[-1],
        }
    every = np.concatenate(errors)
    return {
        "held_out": len(timed.configs),
        "within_10_percent": _within(every),
        "mape": _mean(every),
        "spearman": min(ranks),  # the worst of the phases
        "undisturbed": _mean(timed.undisturbed),
        "by_phase": phases,
        "each": each,
    }


def graph_seconds(model: CostModel, timed: TimedModels, graph: str) -> Array:
    """What the model predicts for one graph of each timed model: its kernels and what the program takes beside them."""
    phases, seconds = GRAPH_PHASES[graph], []
    for config in timed.configs:
        counted = [item for phase in phases for item in config.kernels(phase, timed.workload)]
        kernels, counts = zip(*counted, strict=True)
        alone_s = float(model.latencies_s(kernels) @ np.array(counts))
        weight_bytes = sum(count * cached_weight_bytes(kernel) for kernel, count in counted)
        seconds.append(alone_s + model.overhead_s(phases[0], sum(counts), alone_s, weight_bytes))
    return np.array(seconds)


def scaled_error(predicted_s: Array, measured_s: Array) -> dict[str, float]:
    """MAPE after one factor (the geometric mean of measured over predicted), the factor, and rank correlation."""
    factor = float(np.exp(np.mean(np.log(measured_s / predicted_s))))
    return {
        "mape_after_one_scale": _mean(np.abs(predicted_s * factor / measured_s - 1.0)),
        "scale": factor,
        "spearman": spearman(predicted_s, measured_s),
    }


def spearman(a: Array, b: Array) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def validate(
    profile: Profile,
    space: SearchSpace,
    workload: Workload,
    kernels: int,
    models: int,
    seed: int,
    progress: Progress,
    timer: Timer | None = None,
) -> dict[str, Any]:
    """Judge a device's predictor on fresh kernels and, on this machine, fresh whole models."""
    model = LearnedModel.of(profile)
    timed = held_out_kernels(profile, space, workload, kernels, seed, progress, timer)
    result: dict[str, Any] = {
        "device": profile.name,
        "kernels": kernel_agreement(model.latencies_s(timed.kernels), timed),
    }
    if timer is None and models:
        result["models"] = model_agreement(model, held_out_models(profile, space, workload, models, seed, progress))
    return result


def _within(errors: Array, limit: float = 0.1) -> float:
    return float(np.mean(errors <= limit)) if len(errors) else float("nan")


def _mean(errors: Iterable[float] | Sequence[float] | Array) -> float:
    values = np.asarray(errors, dtype=float)
    return float(values.mean()) if len(values) else float("nan")
