"""Times this machine's one-core peak and bandwidth; run as a script, prints JSON. Argument: bytes of the array.

A script of its own because OpenBLAS reads its number of threads when numpy is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

SIZES = (512, 1024)


def fastest_s(run: Callable[[], object], repeats: int) -> float:
    """Shortest of several runs, after one that is not counted."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def peak_ops_per_s() -> float:
    """Highest fp32 rate of square matrix products."""
    rates = []
    for size in SIZES:
        a = np.full((size, size), 0.5, dtype=np.float32)
        b, out = a.copy(), np.empty_like(a)
        rates.append(2.0 * size**3 / fastest_s(lambda a=a, b=b, out=out: np.matmul(a, b, out=out), 12))  # type: ignore[misc]
    return max(rates)


def bandwidth_bytes_per_s(array_bytes: int) -> dict[str, float]:
    """Traffic of a copy (bytes read plus written) and of a pure read."""
    source = np.ones(array_bytes // 4, dtype=np.float32)
    target = np.zeros_like(source)
    target.fill(1.0)  # touch every page: the first write pays for them
    copy_s = fastest_s(lambda: np.copyto(target, source), 5)
    read_s = fastest_s(lambda: np.dot(source, source), 5)
    return {"copy": 2.0 * source.nbytes / copy_s, "read": source.nbytes / read_s}


if __name__ == "__main__":
    json.dump(
        {"peak_ops_per_s": peak_ops_per_s(), "bandwidth_bytes_per_s": bandwidth_bytes_per_s(int(sys.argv[1]))},
        sys.stdout,
    )
