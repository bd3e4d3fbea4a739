"""Keeps timings to quiet moments: a small fixed kernel, the canary, tells when something else slows this core down.

On a shared machine a neighbour on the same physical core makes everything up to a third slower for seconds at a time,
and repeating a measurement at once repeats the error. So each measurement stands between two runs of the canary, and
counts only where both are as fast as the canary has ever been; otherwise it waits, and tries the other cores. What
was measured in a disturbed moment is told as such.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tvm

from cost_models.tvm.chains import kernel_module
from cost_models.tvm.passes import least_time_s
from cost_models.tvm.runtime import machine_for
from search_spaces.kernels import Kernel, KernelKind

#: A canary this much slower than its best means that the core is disturbed.
TOLERANCE = 0.05
#: Longest wait for a quiet moment of one measurement, and of all measurements of one canary together, in seconds.
PATIENCE_S, PATIENCE_IN_ALL_S = 4.0, 90.0
_CANARY = Kernel(KernelKind.SOFTMAX, 96, 96, batch=1, op="softmax")  # computes in the first cache, 5 to 50 us


class Canary:
    """The fixed kernel, compiled for the target, and the fastest that it has ever been on this machine.

    `memory` is a JSON file that keeps that between processes: a whole run may fall into a disturbed spell.
    """

    def __init__(self, target: Mapping[str, object], memory: Path | None = None) -> None:
        executable, chain = kernel_module(_CANARY, target, 4)
        machine = machine_for(executable)
        inputs = [tvm.runtime.tensor(array) for array in chain.inputs(np.random.default_rng(0))]
        machine.save_function("chain0", "canary", *inputs, include_return=False)
        self._run = machine["canary"]
        self._memory, self._key = (
            memory,
            f"tvm {tvm.__version__}, {_CANARY}, {json.dumps(dict(target), sort_keys=True)}",
        )
        self._waited_s = 0.0
        self.best_s = min([*self._remembered(), *(self._time_s() for _ in range(50))])
        self._remember()

    def slowdown(self) -> float:
        """How much slower than its best the canary is now: 0 is quiet."""
        now = self._time_s()
        if now < self.best_s:
            self.best_s = now
            self._remember()
        return now / self.best_s - 1.0

    def undisturbed(self, measure: Callable[[], float]) -> tuple[float, bool]:
        """What `measure` gives in a quiet moment, and whether it was one; out of patience, the least of all tries."""
        started, least = time.monotonic(), float("inf")
        patience_s = min(PATIENCE_S, max(PATIENCE_IN_ALL_S - self._waited_s, 0.0))
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        with _restored_affinity():
            for attempt in itertools.count():
                if self.slowdown() <= TOLERANCE:
                    value = measure()
                    if self.slowdown() <= TOLERANCE:
                        return value, True
                    least = min(least, value)
                if time.monotonic() > started + patience_s:
                    self._waited_s += time.monotonic() - started
                    return min(least, measure()), False
                if cores:
                    os.sched_setaffinity(0, {cores[attempt % len(cores)]})
                time.sleep(0.02)
        raise AssertionError("unreachable: the loop ends by returning")

    def _time_s(self) -> float:
        return least_time_s(self._run, runs=8, warmup=1)

    def _remembered(self) -> list[float]:
        if self._memory is None or not self._memory.is_file():
            return []
        try:
            stored = json.loads(self._memory.read_text(encoding="utf-8"))
            return [float(stored["best_s"])] if stored["canary"] == self._key else []
        except (ValueError, KeyError, TypeError):
            return []  # a broken memory is no memory

    def _remember(self) -> None:
        if self._memory is not None:
            text = json.dumps({"canary": self._key, "best_s": self.best_s})
            self._memory.write_text(text + "\n", encoding="utf-8")


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
