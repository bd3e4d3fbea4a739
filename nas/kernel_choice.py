"""Which kernels of a device are timed: those that a space draws, where a predictor is least sure, and of any width."""

from __future__ import annotations

import math
import random
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from cost_models.learned import LearnedModel
from cost_models.roofline import RooflineModel
from hardware_profiles import Profile
from search_spaces import Kernel, KernelKind, Phase, SearchSpace, Workload
from search_spaces.kernels import MATRIX_KINDS

#: Configs drawn to see which kernels a space has.
SAMPLED_CONFIGS = 1500


#: One kernel in this many is never timed for a table: it judges the predictor instead.
JUDGES_ONE_IN = 20


def judges(kernel: Kernel) -> bool:
    """Whether a kernel is kept from every table, so that what judges a predictor was chosen before any was fitted."""
    return zlib.crc32(str(kernel).encode()) % JUDGES_ONE_IN == 0


def kernel_shares(
    space: SearchSpace, workload: Workload, profile: Profile, seed: int, configs: int = SAMPLED_CONFIGS
) -> Mapping[Kernel, float]:
    """Kernels of drawn configs, and the share of a config's roofline latency that each has, summed over configs."""
    rng, roofline = random.Random(seed), RooflineModel(profile)
    share: defaultdict[Kernel, float] = defaultdict(float)
    for _ in range(configs):
        config = space.decode(space.sample(rng))
        counted = [item for phase in Phase for item in config.kernels(phase, workload)]
        total = sum(times * roofline.latency_s(kernel) for kernel, times in counted)
        for kernel, times in counted:
            share[kernel] += times * roofline.latency_s(kernel) / total
    return share


def drawn_kernels(
    space: SearchSpace, workload: Workload, count: int, profile: Profile, seed: int, *, judging: bool = False
) -> list[Kernel]:
    """`count` kernels that cover what the space draws: strata of kind and work, in each by share of latency.

    Those that judge, or those that may be in a table.

    A stratum is a kind, its variant and a doubling of its work; its part of `count` grows with the root of the share
    of the roofline latency that it accounts for, so that rare large kernels and common small ones are both there.
    """
    rng, share = random.Random(seed), kernel_shares(space, workload, profile, seed)
    strata: defaultdict[tuple[object, ...], list[Kernel]] = defaultdict(list)
    for kernel in share:
        if judges(kernel) is not judging:
            continue
        work = math.floor(math.log2(kernel.ops + kernel.bytes_moved))
        strata[(kernel.kind, kernel.op, kernel.window == kernel.stride, kernel.m == 1, work)].append(kernel)
    weight = {stratum: math.sqrt(sum(share[k] for k in kernels)) for stratum, kernels in strata.items()}
    whole = sum(weight.values())
    chosen: list[Kernel] = []
    for stratum in sorted(strata, key=str):
        kernels = sorted(strata[stratum], key=str)
        wanted = max(1, round(count * weight[stratum] / whole))
        chosen += drawn_by_weight(kernels, share, wanted, rng)
    return chosen


def least_sure(
    model: LearnedModel, share: Mapping[Kernel, float], known: Mapping[Kernel, object], count: int, seed: int
) -> list[Kernel]:
    """`count` kernels that the table lacks, drawn by the variance of their prediction and the root of their share."""
    left = [kernel for kernel in sorted(share, key=str) if kernel not in known and not judges(kernel)]
    if not left:
        return []
    rng, doubts = random.Random(seed), model.deviations(left).tolist()
    weight = {kernel: doubt**2 * math.sqrt(share[kernel]) for kernel, doubt in zip(left, doubts, strict=True)}
    return drawn_by_weight(left, weight, count, rng)


def drawn_by_weight(
    kernels: Sequence[Kernel], weight: Mapping[Kernel, float], count: int, rng: random.Random
) -> list[Kernel]:
    """Draw without replacement by weight (Efraimidis and Spirakis, doi:10.1016/j.ipl.2005.11.003)."""
    return sorted(kernels, key=lambda kernel: math.log(rng.random()) / weight[kernel], reverse=True)[:count]


#: Most tiles of a kernel of `wide_kernels`: walking through more takes seconds each.
_MOST_TILES = 200_000


def wide_kernels(count: int, seed: int) -> list[Kernel]:
    """`count` kernels of sizes that real networks of any width have, log-uniform in each size, no space asked.

    They keep a predictor from extrapolating where someone asks for other networks than a space draws.
    """
    rng = random.Random(seed)

    def size(low: int, high: int, step: int = 1) -> int:
        return max(low, round(math.exp(rng.uniform(math.log(low), math.log(high))) / step) * step)

    def linear() -> Kernel:
        rows = 1 if rng.random() < 0.3 else size(2, 600)
        tails = (
            (),
            ("bias",),
            ("residual",),
            ("bias", "gelu"),
            ("bias", "relu"),
            ("silu", "multiply"),
            ("bias", "residual"),
        )
        columns = size(8192, 50_000, 8) if rows < 8 and rng.random() < 0.15 else size(16, 4096, 8)
        return Kernel(KernelKind.LINEAR, rows, columns, size(16, 4096, 8), epilogue=rng.choice(tails))

    def attention() -> Kernel:
        rows = size(1, 8) if rng.random() < 0.4 else size(9, 400)
        heads, keys, width = size(1, 16), max(rows, size(8, 600)), size(16, 128, 8)
        kind = rng.choice(("scores", "values", "softmax"))
        if kind == "scores":
            return Kernel(KernelKind.SCORES, rows, keys, width, batch=heads)
        if kind == "values":
            return Kernel(KernelKind.VALUES, rows, width, keys, batch=heads)
        return Kernel(KernelKind.SOFTMAX, rows, keys, batch=heads, op="softmax")

    def depthwise() -> Kernel:
        window, stride = rng.choice((3, 3, 5, 7)), rng.choice((1, 1, 2))
        tail = rng.choice((("bias",), ("bias", "relu"), ("bias", "gelu"), ()))
        side, wide = size(3, 112), size(8, 1024, 8)
        return Kernel(KernelKind.DEPTHWISE_CONV, side**2, wide, window**2, window=window, stride=stride, epilogue=tail)

    def conv() -> Kernel:
        patches = rng.random() < 0.5
        window = rng.choice((4, 8, 14, 16, 32) if patches else (3, 3, 5, 7))
        channels = 3 if rng.random() < 0.5 else size(8, 128, 8)
        stride = window if patches else rng.choice((1, 1, 2))
        side = size(3, 24) if patches else size(4, 64)
        tail, depth = rng.choice((("bias",), ("bias", "relu"), ("bias", "gelu"))), channels * window**2
        return Kernel(KernelKind.CONV, side**2, size(8, 512, 8), depth, window=window, stride=stride, epilogue=tail)

    def rowwise() -> Kernel:
        rows, width = size(1, 600), size(16, 4096, 8)
        if rng.random() < 0.4:
            return Kernel(KernelKind.NORM, rows, width, op=rng.choice(("layer_norm", "rms_norm")))
        op = rng.choice(("add", "multiply", "transpose", "concat", "gelu", "hardswish", "rope", "cache_write"))
        heads = 1 if op == "concat" else size(1, 16)
        return Kernel(
            KernelKind.ELEMENTWISE,
            max(rows, 2),
            size(16, 512, 8) if heads > 1 else width,
            2 if op == "add" else 1,
            batch=heads,
            op=op,
        )

    def other() -> Kernel:
        if rng.random() < 0.5:
            return Kernel(KernelKind.GATHER, size(1, 200), size(16, 4096, 8), size(64, 50_000), op="embedding")
        return Kernel(KernelKind.POOLING, size(1, 14) ** 2, size(16, 1024, 8), rng.choice((4, 9, 16, 49)), op="average")

    makers = (linear, linear, linear, attention, attention, depthwise, depthwise, conv, rowwise, other)
    chosen: dict[Kernel, None] = {}
    while len(chosen) < count:
        kernel = rng.choice(makers)()
        work = kernel.outputs * max(kernel.k, 1) if kernel.kind in MATRIX_KINDS else kernel.outputs
        if work <= 2_000_000_000 and kernel.outputs <= 16 * _MOST_TILES and kernel.bytes_moved < 2**28:
            chosen[kernel] = None
    return list(chosen)
