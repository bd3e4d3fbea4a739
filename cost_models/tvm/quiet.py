"""Keeps timings to quiet moments: a small fixed kernel, the canary, tells when something else slows this core down.

On a shared machine a neighbour on the same physical core makes everything up to a third slower for seconds at a time,
and repeating a measurement at once repeats the error. So each measurement stands between two runs of the canary, and
counts only where both are as fast as the canary has ever been; otherwise it waits, and tries the other cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import tvm

from cost_models.tvm.chains import kernel_module
from cost_models.tvm.passes import least_time_s
from cost_models.tvm.runtime import machine_for
from search_spaces.kernels import Kernel, KernelKind

#: A canary this much slower than its best means that the core is disturbed.
TOLERANCE = 0.05
#: Longest wait for a quiet moment before a measurement is taken as it comes, in seconds.
PATIENCE_S = 4.0
_CANARY = Kernel(KernelKind.SOFTMAX, 96, 96, batch=1, op="softmax")  # computes in the first cache, 5 to 50 us


class Canary:
    """The fixed kernel, compiled for the target, and the fastest that it has been."""

    def __init__(self, target: Mapping[str, object]) -> None:
        executable, chain = kernel_module(_CANARY, target, 4)
        machine = machine_for(executable)
        inputs = [tvm.runtime.tensor(array) for array in chain.inputs(np.random.default_rng(0))]
        machine.save_function("chain0", "canary", *inputs, include_return=False)
        self._run = machine["canary"]
        self.best_s = min(self._time_s() for _ in range(50))

    def slowdown(self) -> float:
        """How much slower than its best the canary is now: 0 is quiet."""
        now = self._time_s()
        self.best_s = min(self.best_s, now)
        return now / self.best_s - 1.0

    def undisturbed(self, measure: Callable[[], float]) -> tuple[float, bool]:
        """What `measure` gives in a quiet moment, and whether it was one; the least of all tries after `PATIENCE_S`."""
        deadline, least = time.monotonic() + PATIENCE_S, float("inf")
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        with _restored_affinity():
            attempt = 0
            while True:
                if self.slowdown() <= TOLERANCE:
                    value = measure()
                    if self.slowdown() <= TOLERANCE:
                        return value, True
                    least = min(least, value)
                if time.monotonic() > deadline:
                    return min(least, measure()), False
                if cores:
                    os.sched_setaffinity(0, {cores[attempt % len(cores)]})
                    attempt += 1
                time.sleep(0.02)

    def _time_s(self) -> float:
        return least_time_s(self._run, runs=8, warmup=1)


@contextmanager
def _restored_affinity() -> Iterator[None]:
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
