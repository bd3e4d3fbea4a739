"""Benchmarks of the product's own parts that a user can run: `nas bench predictor`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cost_models.learned import LearnedModel
from cost_models.static import static_seconds
from hardware_profiles import Profile
from nas.errors import NasError
from nas.kernel_table import GRAPH_PHASES
from nas.rivals import geomean, onnx_runner, torch_runner
from nas.search import Progress
from nas.validation import (
    APART,
    TimedKernels,
    TimedModels,
    held_out_kernels,
    held_out_models,
    kernel_agreement,
    model_agreement,
    scaled_error,
)
from search_spaces import Kernel, Phase, SearchSpace, Workload

#: Configs whose kernels the schedules are compared on.
_COMPARED_CONFIGS = 20


def predictor(
    profile: Profile,
    space: SearchSpace,
    workload: Workload,
    *,
    kernels: int,
    models: int,
    compared: int,
    static: bool,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """The predictor of this machine on kernels and models that no fit has seen, beside its limits.

    `static` prices the same kernels and models by static estimation as if the machine were out of reach; `compared`
    kernels (0: none) are timed against torch and onnxruntime too.
    """
    if profile.called != "host":
        raise NasError(f"only host can be timed here; for {profile.called}: nas device validate {profile.called}")
    model = LearnedModel.of(profile)
    timed_kernels = held_out_kernels(profile, space, workload, kernels, seed, progress)
    timed_models = held_out_models(profile, space, workload, models, seed, progress)
    result: dict[str, Any] = {
        "device": profile.name,
        "chip": profile.chip,
        "table": model.error.kernels,
        "seed": seed,
        "kernels": kernel_agreement(model.latencies_s(timed_kernels.kernels), timed_kernels),
        "models": model_agreement(model, timed_models),
    }
    if static:
        result["static"] = static_agreement(profile, timed_kernels, timed_models, progress)
    if compared:
        drawn = config_kernels(space, workload, _COMPARED_CONFIGS, seed)
        against = schedules(profile, drawn, compared, seed, progress)
        result["schedules"] = against
        result["schedules_vs_best_of_torch_and_ort"] = against["all"]["geomean"]
    return result


def static_agreement(
    profile: Profile, timed_kernels: TimedKernels, timed_models: TimedModels, progress: Progress
) -> dict[str, Any]:
    """Static estimates of the same kernels and models, one scale apart from what was timed."""
    from cost_models.tvm.machine import machine_of, tvm_target
    from nas.estimate import count_cycles

    configs, workload = timed_models.configs, timed_models.workload
    drawn = [kernel for config in configs for phase in Phase for kernel, _ in config.kernels(phase, workload)]
    counted, failed = count_cycles(profile, [*timed_kernels.kernels, *drawn], progress)
    if failed:
        raise NasError(f"{len(failed)} kernels could not be estimated, the first: {next(iter(failed.items()))}")
    seconds = static_seconds(counted, profile, machine_of(tvm_target(profile.tvm_target)))
    known = {item.kernel: float(latency_s) for item, latency_s in zip(counted, seconds, strict=True)}
    kernels = scaled_error(np.array([known[kernel] for kernel in timed_kernels.kernels]), timed_kernels.seconds)
    by_phase, predicted, measured = {}, [], []
    for graph, phases in GRAPH_PHASES.items():
        sums = [
            sum(known[kernel] * count for phase in phases for kernel, count in config.kernels(phase, workload))
            for config in configs
        ]
        by_phase[graph] = scaled_error(np.array(sums), timed_models.seconds[graph])
        predicted.append(np.array(sums))
        measured.append(timed_models.seconds[graph])
    every = scaled_error(np.concatenate(predicted), np.concatenate(measured))
    return {
        "kernels_mape_after_one_scale": kernels["mape_after_one_scale"],
        "kernels_spearman": kernels["spearman"],
        "scale": kernels["scale"],
        "models_spearman": min(found["spearman"] for found in by_phase.values()),
        "models_mape_after_one_scale": every["mape_after_one_scale"],
        "models_by_phase": by_phase,
    }


def config_kernels(space: SearchSpace, workload: Workload, configs: int, seed: int) -> list[Kernel]:
    """The kernels of sampled configs, each once."""
    rng = random.Random(seed + APART)
    drawn = [space.decode(space.sample(rng)) for _ in range(configs)]
    return list(
        dict.fromkeys(kernel for config in drawn for phase in Phase for kernel, _ in config.kernels(phase, workload))
    )


def schedules(
    profile: Profile, kernels: Sequence[Kernel], most: int, seed: int, progress: Progress
) -> dict[str, dict[str, float]]:
    """TVM's seconds over the better of torch's and onnxruntime's, by kind: geometric mean, worst, kernels.

    Epilogues are left out on every side, and kernels that neither rival has as one call.
    """
    from dataclasses import replace

    from cost_models.tvm.passes import least_time_s
    from cost_models.tvm.quiet import Canary
    from cost_models.tvm.timing import chain_calls, time_kernels
    from nas.measure import canary_memory

    plain = list(dict.fromkeys(replace(kernel, epilogue=()) for kernel in kernels))
    plain = [kernel for kernel in plain if torch_runner(kernel, 1) is not None]
    random.Random(seed).shuffle(plain)
    plain = plain[:most]
    canary, memory = Canary(profile.tvm_target, canary_memory(profile)), canary_memory(profile)
    ratios: dict[str, list[float]] = {"all": []}
    progress("rivals", 0, len(plain), "compiling")
    for timing in time_kernels(plain, profile.tvm_target, memory=memory):
        calls = chain_calls(timing.kernel)
        best_s = float("inf")
        for runner in (torch_runner(timing.kernel, calls), onnx_runner(timing.kernel, calls)):
            if runner is not None:
                found_s, _ = canary.undisturbed(partial(least_time_s, runner, runs=15, warmup=2))
                best_s = min(best_s, found_s / calls)
        ratio = timing.latency_s / best_s
        large = "best over 20 us" if best_s > 20e-6 else "best under 20 us"
        for name in ("all", timing.kernel.kind.value, large):
            ratios.setdefault(name, []).append(ratio)
        progress("rivals", len(ratios["all"]), len(plain), "timing against torch and onnxruntime")
    return {
        name: {"kernels": len(found), "geomean": geomean(found), "worst": max(found)}
        for name, found in sorted(ratios.items())
    }
