"""Seconds of a kernel on an NVIDIA GPU out of reach: what its compiled code takes of a multiprocessor, and the sheet.

A launch's blocks are dealt evenly; the multiprocessor with most of them ends last. It takes the longer of

- its throughput: of issue slots, arithmetic lanes, special functions, tensor cores and load-store bytes the busiest,
  divided by the share of it that the resident warps keep busy (warps x independent instructions / latency);
- its latency: waves of resident blocks one after the other, each as long as one block alone: a global load's latency
  for each round of loads that wait for each other, barriers, shuffles, and the block's own work.

The kernel takes the longest of that, its bytes through the second cache and its bytes from memory (weights, and
activations where they are more than half of the second cache), plus the profile's overhead a launch; never less than
operations / peak, but it can undercut the roofline where the second cache holds its activations.

Assumed, and measured on none of the devices: the constants below, the same for every GPU; coalesced loads; no bank
conflicts; a load costs each lane its bytes, also where lanes share an address; no reuse in the first cache between
threads; every thread takes the longer way where a condition is unknown; spills cost nothing; tensor cores reach the
profile's fp16 peak; the GPU does nothing else and holds its clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cost_models.errors import CostError
from hardware_profiles import Profile
from hardware_profiles.profile import Accelerator
from search_spaces import Kernel, Precision

WARP = 32
#: Cycles from a global load to its value, assumed: an idle A100 takes 290 (arXiv:2208.11174), boards have slower DRAM.
GLOBAL_LATENCY_CYCLES = 400.0
#: Cycles of a barrier with what is read from shared memory behind it, and of a shuffle; assumed.
BARRIER_CYCLES, SHUFFLE_CYCLES = 30.0, 25.0
#: Bytes a cycle of one multiprocessor: shared memory or first cache (32 banks of 4 bytes), second cache.
_SHARED_BYTES_PER_CYCLE, _L2_BYTES_PER_CYCLE = 128.0, 64.0
#: Lanes a cycle for exponentials, roots and reciprocals (CUDA C++ Programming Guide, throughput of arithmetic).
_SPECIAL_LANES = 16.0
_SCHEDULERS = 4
_REGISTER_UNIT = 256  # registers are given to warps in such units
#: Share of the second cache that activations find free between two kernels.
_RESIDENT = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What one multiprocessor of a compute capability holds, and the cycles until a sum can be added to again."""

    cores: int
    threads: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int = 0  # of shared memory, taken by the driver from each block
    shared_unit_bytes: int = 256
    registers: int = 65536
    block_registers: int = 65536
    latency_cycles: float = 4.0


_K = 1024
#: CUDA C++ Programming Guide, technical specifications per compute capability; units as in CUDA's cuda_occupancy.h.
LIMITS: dict[str, Limits] = {
    "5.3": Limits(128, 2048, 32, 64 * _K, block_registers=32 * _K, latency_cycles=6.0),
    "6.2": Limits(128, 2048, 32, 64 * _K, block_registers=32 * _K, latency_cycles=6.0),
    "7.0": Limits(64, 2048, 32, 96 * _K),
    "7.2": Limits(64, 2048, 32, 96 * _K),
    "7.5": Limits(64, 1024, 16, 64 * _K),
    "8.0": Limits(64, 2048, 32, 164 * _K, _K, 128),
    "8.6": Limits(128, 1536, 16, 100 * _K, _K, 128),
    "8.7": Limits(128, 1536, 16, 164 * _K, _K, 128),
    "8.9": Limits(128, 1536, 24, 100 * _K, _K, 128),
    "9.0": Limits(128, 2048, 32, 228 * _K, _K, 128),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one thread executes in one launch; `tensor_ops` and `arithmetic` count instructions of their pipes."""

    instructions: float
    depth: float = 1.0  # instructions that wait for each other within the blocks of the code, one after the other
    arithmetic: float = 0.0
    special: float = 0.0
    tensor_ops: float = 0.0  # operations of the whole warp's matrix instructions
    shared_bytes: float = 0.0
    global_bytes: float = 0.0
    load_rounds: float = 0.0  # groups of global loads that wait for what came before
    barriers: float = 0.0
    shuffles: float = 0.0

    @property
    def independent(self) -> float:
        """Instructions that a thread has at hand at a time, on average."""
        return max(1.0, self.instructions / max(self.depth, 1.0))


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of a GPU function: its geometry, what a thread and a block occupy, what a thread executes."""

    name: str
    grid_blocks: int
    block_threads: int
    registers: int  # of a thread
    shared_bytes: int  # of a block
    spill_bytes: int
    work: Work

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return -(-self.block_threads // WARP)


@dataclass(frozen=True, slots=True)
class GpuCode:
    """A compiled kernel: its launches, and the architecture that its registers were counted for."""

    kernel: Kernel
    arch: str
    launches: tuple[Launch, ...]


def limits_of(arch: str) -> Limits:
    """The limits of an architecture such as sm_87; raises CostError with the known ones."""
    found = re.fullmatch(r"sm_(\d+)(\d)[a-z]?", arch)
    capability = f"{found[1]}.{found[2]}" if found else arch
    if capability not in LIMITS:
        raise CostError(f"no limits known for {arch!r}; known compute capabilities: {', '.join(LIMITS)}")
    return LIMITS[capability]


def resident_blocks(launch: Launch, limits: Limits) -> int:
    """Blocks of a launch that one multiprocessor holds at once; 0 if a block asks for more than there is."""
    warp_registers = _up(launch.registers * WARP, _REGISTER_UNIT)
    if warp_registers * _up(launch.warps, _SCHEDULERS) > limits.block_registers:
        return 0
    by_registers = limits.registers // _SCHEDULERS // warp_registers * _SCHEDULERS // launch.warps
    shared = _up(launch.shared_bytes + limits.reserved_bytes, limits.shared_unit_bytes)
    by_shared = limits.shared_bytes // shared if shared else limits.blocks
    return min(limits.blocks, limits.threads // WARP // launch.warps, by_registers, by_shared)


def most_registers(block_threads: int, limits: Limits) -> int:
    """Registers a thread that a block of so many threads may have: a compiler for the device spills the rest."""
    warps = _up(-(-block_threads // WARP), _SCHEDULERS)
    return limits.block_registers // warps // _REGISTER_UNIT * _REGISTER_UNIT // WARP


def occupancy(launch: Launch, limits: Limits) -> float:
    """Resident warps as a share of those that a multiprocessor could hold."""
    return resident_blocks(launch, limits) * launch.warps * WARP / limits.threads


def gpu_seconds(codes: Sequence[GpuCode], profile: Profile) -> NDArray[np.float64]:
    """Seconds of one run of each compiled kernel on the profile's GPU; of basis `static`."""
    gpu, arch = gpu_of(profile)
    limits = limits_of(arch)
    if gpu.cores.value % limits.cores:
        raise CostError(f"{profile.name}: {gpu.cores.value} cores are no multiple of the {limits.cores} of {arch}")
    return np.array([_seconds(code, profile, gpu, limits) for code in codes], float)


def gpu_of(profile: Profile) -> tuple[Accelerator, str]:
    """The profile's GPU and its CUDA architecture; raises CostError where it has none."""
    if profile.accelerator is None or profile.tvm_target.get("kind") != "cuda":
        raise CostError(f"{profile.name} has no TVM target of kind cuda: this estimates NVIDIA's GPUs only")
    return profile.accelerator, str(profile.tvm_target.get("arch"))


def _seconds(code: GpuCode, profile: Profile, gpu: Accelerator, limits: Limits) -> float:
    kernel, clock_hz = code.kernel, gpu.clock_hz.value
    multiprocessors = gpu.cores.value // limits.cores
    tensor_ops_per_cycle = _peak_ops_per_s(Precision.FP16, profile) / clock_hz / multiprocessors
    cycles, l2_bytes = 0.0, 0.0
    for launch in code.launches:
        try:
            cycles += _cycles(launch, limits, multiprocessors, tensor_ops_per_cycle)
        except CostError as error:
            raise CostError(f"{kernel}: {error}") from None
        l2_bytes += launch.grid_blocks * launch.block_threads * launch.work.global_bytes
    fits = kernel.activation_bytes <= _RESIDENT * profile.caches.l2_bytes.value
    memory_bytes = kernel.weight_bytes + (0.0 if fits else kernel.activation_bytes)
    busy_s = max(
        cycles / clock_hz,
        l2_bytes / (_L2_BYTES_PER_CYCLE * multiprocessors * clock_hz),
        memory_bytes / profile.bandwidth_bytes_per_s.value,
        (kernel.ops + kernel.epilogue_ops) / _peak_ops_per_s(kernel.precision, profile),
    )
    return len(code.launches) * profile.kernel_overhead_s.value + busy_s


def _cycles(launch: Launch, limits: Limits, multiprocessors: int, tensor_ops_per_cycle: float) -> float:
    """Cycles of the multiprocessor with most blocks."""
    fitting = resident_blocks(launch, limits)
    if fitting == 0:
        raise CostError(f"a block of {launch.name} asks for more registers or shared memory than a multiprocessor has")
    blocks = -(-launch.grid_blocks // multiprocessors)
    resident = min(fitting, blocks)
    waves = -(-blocks // resident)
    work = launch.work
    block_cycles = launch.warps * max(
        (work.instructions + work.shuffles) / _SCHEDULERS,
        work.arithmetic * WARP / limits.cores,
        work.special * WARP / _SPECIAL_LANES,
        work.tensor_ops / tensor_ops_per_cycle,
        (work.shared_bytes + work.global_bytes) * WARP / _SHARED_BYTES_PER_CYCLE,
    )
    waiting = work.load_rounds * GLOBAL_LATENCY_CYCLES + work.barriers * BARRIER_CYCLES + work.shuffles * SHUFFLE_CYCLES
    alone = block_cycles / _busy(launch.warps, work, limits)
    throughput = blocks * block_cycles / _busy(resident * launch.warps, work, limits)
    return max(throughput, waves * (waiting + alone))


def _busy(warps: int, work: Work, limits: Limits) -> float:
    """Share of a multiprocessor's pipes that so many resident warps keep busy, each value waiting for its latency."""
    return min(1.0, warps * work.independent / (_SCHEDULERS * limits.latency_cycles))


def _peak_ops_per_s(precision: Precision, profile: Profile) -> float:
    peaks = profile.peak_ops_per_s
    return (peaks.fp16 or peaks.fp32).value if precision is Precision.FP16 else profile.formula_peak_ops_per_s


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
