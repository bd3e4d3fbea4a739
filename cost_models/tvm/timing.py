"""Times kernels as programs pay for them: chained calls with own weights, dispatch included, in quiet moments.

Protocol: a program of R calls of one kernel, R times its weights reaching 4 MiB beyond the second cache level; its time
is the least of many runs, divided by R, while the canary says that nothing disturbs the core (see quiet.py). Each
kernel is measured twice, on fresh operands; where the two differ by more than 5 %, a third time, and the two closest
must then agree, or the timing is marked unstable. Nothing is compiled while anything is timed.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm

from cost_models.tvm.chains import Array, Chain, chain_module
from cost_models.tvm.machine import tvm_target
from cost_models.tvm.passes import build, least_time_s
from cost_models.tvm.quiet import Canary
from cost_models.tvm.runtime import load_machine, silent
from search_spaces.kernels import Kernel

if TYPE_CHECKING:
    import torch

    from cost_models.tvm.compile import CompiledProgram

#: Largest difference between two measurements that agree, as a share of the smaller.
AGREEMENT = 0.05
#: Fresh loads of a whole program that its time is the mean of: where constants lie in memory matters.
LOADS = 3
_STREAM_BYTES = 5 * 2**20  # 1 MiB of second-level cache, and 4 MiB beyond
_MOST_BYTES = 256 * 2**20
_CHUNK = 12
_BUDGET_S = 0.03  # per measurement

#: Least seconds of so many runs of a loaded program.
Clock = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class KernelTiming:
    """One kernel's time in a chain: the two measurements that agree best, the lower first, in seconds."""

    kernel: Kernel
    latency_s: float
    repeat_s: float
    stable: bool

    @property
    def disagreement(self) -> float:
        """Difference of the two measurements as a share of the smaller."""
        return self.repeat_s / self.latency_s - 1.0


@dataclass(frozen=True, slots=True)
class Library:
    """A file of this program's own making with the chains of several kernels, by the names of their functions."""

    path: Path
    chains: dict[str, Chain]


def noise_floor(timings: Sequence[KernelTiming]) -> float:
    """Median disagreement of repeated measurements: differences below it mean nothing."""
    return statistics.median(timing.disagreement for timing in timings)


def chain_calls(kernel: Kernel) -> int:
    """Calls of a kernel in its timing program: 8 to 64, so that weights stream from beyond the second-level cache."""
    if kernel.weight_bytes == 0:
        return 16
    streaming = math.ceil(_STREAM_BYTES / kernel.weight_bytes)
    return max(1, min(max(streaming, 8), 64, int(_MOST_BYTES / kernel.weight_bytes)))


def time_kernels(
    kernels: Sequence[Kernel],
    target: Mapping[str, object],
    *,
    progress: Callable[[int, int], None] | None = None,
    compile_processes: int = 2,
    seed: int = 0,
    memory: Path | None = None,
) -> Iterator[KernelTiming]:
    """Compile all kernels, then time one after the other; progress(timed, all) is called behind each.

    `memory` is where the canary's best is kept between processes.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        libraries = compile_libraries(kernels, target, Path(folder), compile_processes)
        canary, done = Canary(target, memory), 0
        for library in libraries:
            _, machine = load_machine(library.path)
            for name, chain in library.chains.items():
                yield _time_locally(machine, name, chain, rng, canary)
                done += 1
                if progress is not None:
                    progress(done, len(kernels))


def time_program(
    load: Callable[[], CompiledProgram], inputs: Sequence[Array | torch.Tensor], canary: Canary
) -> tuple[float, bool]:
    """Seconds of one call of a whole program, end to end, and whether nothing disturbed it.

    The mean over fresh loads of the least run.
    """
    held, times, quiet = [], [], True
    for _ in range(LOADS):
        held.append(load())
        seconds, undisturbed = canary.undisturbed(lambda: held[-1].time_s(inputs, runs=20))
        times.append(seconds)
        quiet = quiet and undisturbed
    return statistics.fmean(times), quiet


def compile_libraries(
    kernels: Sequence[Kernel], target: Mapping[str, object], folder: Path, processes: int
) -> list[Library]:
    """Compile the chains of all kernels into libraries in a folder, several at a time in own processes."""
    ordered = sorted(kernels, key=str)
    # dealt like cards, so that chunks take equally long
    count = max(processes, -(-len(ordered) // _CHUNK))
    chunks = [chunk for chunk in (ordered[start::count] for start in range(count)) if chunk]
    paths = [folder / f"chunk{index}.so" for index in range(len(chunks))]
    targets = [dict(target)] * len(chunks)
    if len(chunks) == 1 or processes == 1:
        return list(map(_compile_library, chunks, targets, paths))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=processes, mp_context=context) as pool:
        return list(pool.map(_compile_library, chunks, targets, paths))


def _compile_library(kernels: Sequence[Kernel], target: Mapping[str, object], path: Path) -> Library:
    module, chains = chain_module([(kernel, chain_calls(kernel)) for kernel in kernels], target)
    executable = build(module, tvm_target(target))
    if triple := target.get("mtriple"):
        from cost_models.tvm.compile import CompiledProgram  # imports torch: only where another linker may be needed

        CompiledProgram(executable, None, str(triple), ()).export_library(path)
    else:
        with silent():
            executable.export_library(str(path))
    return Library(path, {f"chain{index}": chain for index, chain in enumerate(chains)})


def _time_locally(machine: Any, name: str, chain: Chain, rng: np.random.Generator, canary: Canary) -> KernelTiming:
    arrays = chain.inputs(rng)
    held = []  # earlier operands stay where they are, so that the next ones come to lie elsewhere

    def load() -> Clock:
        held.append([tvm.runtime.tensor(array) for array in arrays])
        machine.save_function(name, f"timed_{name}", *held[-1], include_return=False)
        run = machine[f"timed_{name}"]
        run()
        return lambda runs: least_time_s(run, runs=runs, warmup=0)

    return time_chain(chain, load, lambda measure: canary.undisturbed(measure)[0])


def time_chain(
    chain: Chain, load: Callable[[], Clock], undisturbed: Callable[[Callable[[], float]], float]
) -> KernelTiming:
    """Time a chain wherever it runs: `load` puts fresh operands in place and gives the clock that times it there."""

    def measure() -> float:
        least_s = load()
        runs = min(40, max(6, int(_BUDGET_S / least_s(1))))
        return undisturbed(lambda: least_s(runs) / chain.calls)

    return KernelTiming(chain.kernel, *_agreeing(measure))


def _agreeing(measure: Callable[[], float]) -> tuple[float, float, bool]:
    """Measure twice, or three times where two disagree: (lower, higher, agreed) of the closest two."""
    times = sorted((measure(), measure()))
    if times[1] > times[0] * (1 + AGREEMENT):
        times = sorted((*times, measure()))
        if times[1] / times[0] > times[2] / times[1]:
            times = times[1:]
    return times[0], times[1], times[1] <= times[0] * (1 + AGREEMENT)
