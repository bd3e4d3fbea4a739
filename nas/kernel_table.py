"""The timed kernels of a device: which ones a space draws, and timing those that its table lacks."""

from __future__ import annotations

import math
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from cost_models.roofline import RooflineModel
from hardware_profiles import Profile
from nas.search import Progress
from search_spaces import Kernel, Phase, SearchSpace, Workload

if TYPE_CHECKING:
    from cost_models.learned import LearnedModel, TimedProgram

#: Configs drawn to see which kernels a space has.
SAMPLED_CONFIGS = 1500
#: Whole models that are timed to learn what a program takes beside its kernels.
TIMED_CONFIGS = 6
#: The phases that each exported graph covers; its overhead counts with the first.
GRAPH_PHASES = {
    "vision": (Phase.VISION, Phase.PROJECTOR),
    "prefill": (Phase.PREFILL,),
    "decode": (Phase.DECODE,),
}


def drawn_kernels(space: SearchSpace, workload: Workload, count: int, profile: Profile, seed: int) -> list[Kernel]:
    """`count` kernels that cover what the space draws: strata of kind and work, in each by share of latency.

    A stratum is a kind, its variant and a doubling of its work; its part of `count` grows with the root of the share
    of the roofline latency that it accounts for, so that rare large kernels and common small ones are both there.
    """
    rng, roofline = random.Random(seed), RooflineModel(profile)
    share: defaultdict[Kernel, float] = defaultdict(float)
    for _ in range(SAMPLED_CONFIGS):
        config = space.decode(space.sample(rng))
        counted = [item for phase in Phase for item in config.kernels(phase, workload)]
        total = sum(times * roofline.latency_s(kernel) for kernel, times in counted)
        for kernel, times in counted:
            share[kernel] += times * roofline.latency_s(kernel) / total
    strata: defaultdict[tuple[object, ...], list[Kernel]] = defaultdict(list)
    for kernel in share:
        work = math.floor(math.log2(kernel.ops + kernel.bytes_moved))
        strata[(kernel.kind, kernel.op, kernel.window == kernel.stride, kernel.m == 1, work)].append(kernel)
    weight = {stratum: math.sqrt(sum(share[k] for k in kernels)) for stratum, kernels in strata.items()}
    whole = sum(weight.values())
    chosen: list[Kernel] = []
    for stratum in sorted(strata, key=str):
        kernels = sorted(strata[stratum], key=str)
        wanted = max(1, round(count * weight[stratum] / whole))
        # Weighted draw without replacement (Efraimidis and Spirakis, doi:10.1016/j.ipl.2005.11.003).
        keyed = sorted(kernels, key=lambda k: math.log(rng.random()) / share[k], reverse=True)
        chosen += keyed[:wanted]
    return chosen


def complete_table(
    profile: Profile, space: SearchSpace, workload: Workload, count: int, seed: int, progress: Progress
) -> int:
    """Time drawn kernels until the device's table has `count`, and refit its predictor; returns how many were timed.

    A table that is full serves other workloads and spaces too: its predictor prices what they draw. Each kernel is in
    the table as soon as it is timed, so a killed run continues.
    """
    from cost_models import table
    from cost_models.learned import LearnedModel

    known = table.read(profile.kernels_csv)
    missing: list[Kernel] = []
    if len(known) < count:
        missing = [k for k in drawn_kernels(space, workload, count, profile, seed) if k not in known]
    if missing:
        from cost_models.tvm.timing import time_kernels
        from nas.measure import canary_memory

        progress("kernels", 0, len(missing), "compiling TVM kernels for this machine, once")
        for done, timing in enumerate(time_kernels(missing, profile.tvm_target, memory=canary_memory(profile))):
            table.append(profile.kernels_csv, table.TableRow(timing.kernel, timing.latency_s, timing.repeat_s))
            progress("kernels", done + 1, len(missing), "timing TVM kernels on this machine, once")
    if missing or not LearnedModel.is_fitted(profile):
        LearnedModel.fit(profile).save()
    model = LearnedModel.of(profile)
    if not model.has_overheads:
        model.fit_overheads(time_programs(model, space, workload, seed, progress))
        model.save()
    return len(missing)


def time_programs(
    model: LearnedModel, space: SearchSpace, workload: Workload, seed: int, progress: Progress
) -> list[TimedProgram]:
    """Time whole programs of sampled configs, small to middling, beside what their kernels take on their own."""
    from cost_models.learned import TimedProgram
    from nas.candidate import Pricer
    from nas.measure import compile_graphs, time_graphs
    from nas.promotion import worker_pool

    rng, profile = random.Random(seed), model.profile
    pricer = Pricer(model, workload)
    drawn = [space.decode(space.sample(rng)) for _ in range(40)]
    drawn.sort(key=lambda config: pricer.price(config).latency_s)
    configs = drawn[: 4 * TIMED_CONFIGS : 4]
    programs = []
    with tempfile.TemporaryDirectory(prefix="nas-programs-") as name:
        folders = [Path(name) / str(i) for i in range(len(configs))]
        with worker_pool(2) as pool:
            jobs = [
                pool.submit(compile_graphs, config, workload, dict(profile.tvm_target), folder)
                for config, folder in zip(configs, folders, strict=True)
            ]
            for done, job in enumerate(jobs):
                progress("programs", done, len(jobs), "compiling and timing whole models, once")
                job.result()
        for config, folder in zip(configs, folders, strict=True):
            timed, _ = time_graphs(config, workload, profile, folder, seed)
            for graph, phases in GRAPH_PHASES.items():
                counted = [item for phase in phases for item in config.kernels(phase, workload)]
                kernels, counts = zip(*counted, strict=True)
                alone_s = float(model.latencies_s(kernels) @ counts)
                programs.append(TimedProgram(phases[0], timed[graph], alone_s, sum(counts)))
    progress("programs", len(configs), len(configs))
    return programs
