"""Seconds of a kernel on a device out of reach: cycles of its machine code, bytes of its traffic, the device's sheet.

Cycles come from llvm-mca (tvm/mca.py), for data in the first cache. Each byte from a further level costs that level's
rate: an out-of-order core hides part of it behind arithmetic (the root of the sum of squares), an in-order core waits
(the sum). Weights stream from beyond the second level, as in a whole model. Several threads share the tiles evenly and
the memory between them; what starts and joins them is in the profile's kernel_overhead_s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.features import Core, traffic_bytes
from cost_models.roofline import least_s
from cost_models.tiles import Machine, tiling
from hardware_profiles import Profile
from hardware_profiles.cores import core_type
from search_spaces import Kernel

#: Bytes that pass between two uses of a weight in a whole model, at least (assumed: more than second caches hold).
_BETWEEN_USES_BYTES = 5 * 2**20
#: Cycles of a workspace taken from and given back to TVM's pool (or of a copied block), a call (assumed).
_WORKSPACE_CYCLES = 60.0


@dataclass(frozen=True, slots=True)
class Counted:
    """What the compiled code of a kernel takes on one core: cycles with data at hand, and calls of the runtime."""

    kernel: Kernel
    cycles: float
    runtime_calls: int


def static_seconds(counted: Sequence[Counted], profile: Profile, machine: Machine) -> NDArray[np.float64]:
    """Seconds of one call of each kernel on the profile's fastest cores."""
    core, fastest = Core.of(profile, machine), profile.cpu.fastest
    kind, clock_hz, threads = core_type(profile.llvm_cpu), fastest.clock_hz.value, profile.threads.value
    bandwidth = profile.bandwidth_bytes_per_s.value
    rates = [math.inf, kind.l2_bytes_per_cycle.value * clock_hz]
    if profile.caches.l3_bytes:
        third = kind.l3_bytes_per_cycle or kind.l2_bytes_per_cycle
        rates.append(third.value * clock_hz)
    power = 1.0 if kind.in_order else 2.0
    seconds = []
    for item in counted:
        tiles = tiling(item.kernel, machine)
        shared = min(threads, max(tiles.steps, 1))
        moved = traffic_bytes(item.kernel, tiles, core)
        streamed = core.level(max(item.kernel.weight_bytes, _BETWEEN_USES_BYTES))
        moved[streamed] += item.kernel.weight_bytes
        cached_s = sum(size / rate for size, rate in zip(moved[:-1], rates, strict=True)) / shared
        memory_s = cached_s + moved[-1] / bandwidth
        busy_s = (item.cycles + _WORKSPACE_CYCLES * item.runtime_calls) / clock_hz / shared
        seconds.append(profile.kernel_overhead_s.value + (busy_s**power + memory_s**power) ** (1.0 / power))
    return np.maximum(seconds, [least_s(item.kernel, profile) for item in counted])
