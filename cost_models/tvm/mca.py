"""Cycles of a kernel's instructions on a core, by llvm-mca (LLVM's simulator of a core's pipeline).

Data is taken to come from the first cache. A long run is cut: a loop of one block counts its steady rate behind its
first turns, and what is left is sampled by windows.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from cost_models.errors import CostError
from cost_models.tvm.code import KernelCode

#: LLVM older than this has wrong models (24 instead of 12 cycles on Zen 3 in 14).
LEAST_VERSION = 19
_TURNS = 4  # of a loop of one block that are simulated among their neighbours
_RATE_TURNS = (12, 36)  # of the same block alone: the difference is its steady rate
_WINDOW = 1200  # instructions; each window is simulated at this length and at twice it
_WINDOWS = 3
_TIMEOUT_S = 120
#: A core model may lack an instruction or two, which then cost nothing; fewer known ones than this are an error.
_KNOWN_SHARE = 0.95
_LABEL = re.compile(r"(?<![\w.$])\.?L?BB\d+_\d+\b")


def mca_path() -> str:
    """The newest llvm-mca on the PATH; raises CostError if there is none that is new enough."""
    names = [f"llvm-mca-{version}" for version in range(29, LEAST_VERSION - 1, -1)] + ["llvm-mca"]
    for name in names:
        path = shutil.which(name)
        if path and _version(path) >= LEAST_VERSION:
            return path
    raise CostError(
        f"static estimation needs llvm-mca {LEAST_VERSION} or newer; on Debian: apt install llvm-{LEAST_VERSION}"
    )


def _version(path: str) -> int:
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    found = re.search(r"LLVM version (\d+)", told)
    return int(found[1]) if found else 0


def cycles(codes: Sequence[KernelCode], core: str) -> list[float]:
    """Cycles of one call of each kernel on `core` (LLVM's name of a processor whose model is used)."""
    plans = [_plan(code) for code in codes]
    regions = list(dict.fromkeys(lines for plan in plans for _, lines in plan if lines))
    if not regions:
        return [0.0] * len(codes)
    simulated = dict(zip(regions, _simulate(regions, codes[0].triple, core), strict=True))
    return [sum(weight * simulated[lines] for weight, lines in plan if lines) for plan in plans]


Plan = list[tuple[float, tuple[str, ...]]]


def _plan(code: KernelCode) -> Plan:
    """Weighted instruction sequences whose cycles add to the kernel's."""
    plan: Plan = []
    short: list[tuple[str, int]] = []
    beyond: dict[str, int] = {}
    for block, times in code.trace:
        short.append((block, min(times, _TURNS)))
        if times > _TURNS:
            beyond[block] = beyond.get(block, 0) + times - _TURNS
    few, many = _RATE_TURNS
    for block, turns in beyond.items():
        lines = code.blocks[block]
        rate = turns / (many - few)
        plan += [(rate, lines * many), (-rate, lines * few)]
    flat: list[str] = []
    total = sum(len(code.blocks[block]) * times for block, times in short)
    if total <= 2 * _WINDOW * _WINDOWS:
        for block, times in short:
            flat.extend(code.blocks[block] * times)
        return [*plan, (1.0, tuple(flat))]
    for start in range(_WINDOWS):
        window = tuple(_window(code, short, int(total * start / _WINDOWS), 2 * _WINDOW))
        weight = total / _WINDOWS / (len(window) - _WINDOW)
        plan += [(weight, window), (-weight, window[:_WINDOW])]
    return plan


def _window(code: KernelCode, trace: Sequence[tuple[str, int]], start: int, length: int) -> Iterator[str]:
    position, taken = 0, 0
    for block, times in trace:
        lines = code.blocks[block]
        size = len(lines) * times
        if position + size > start:
            for line in lines * times:
                if position >= start:
                    yield line
                    taken += 1
                    if taken == length:
                        return
                position += 1
        else:
            position += size


def _simulate(regions: Sequence[tuple[str, ...]], triple: str, core: str) -> list[float]:
    text = "\n".join(
        "\n".join((f"# LLVM-MCA-BEGIN r{index}", *lines, f"# LLVM-MCA-END r{index}"))
        for index, lines in enumerate(regions)
    )
    labels = sorted({label for lines in regions for line in lines for label in _LABEL.findall(line)})
    text += "\n" + "\n".join(f"{label}:" for label in labels)  # a branch's goal must be there, its place is no matter
    command = [mca_path(), f"-mtriple={triple}", f"-mcpu={core}", "-iterations=1", "-instruction-info=false"]
    command += ["-resource-pressure=false", "-skip-unsupported-instructions=any"]
    try:
        done = subprocess.run(  # noqa: S603
            command, input=text + "\n", capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CostError(f"llvm-mca did not end within {_TIMEOUT_S} s") from None
    found = [float(value) for value in re.findall(r"^Total Cycles:\s+(\d+)$", done.stdout, re.MULTILINE)]
    known = sum(map(int, re.findall(r"^Instructions:\s+(\d+)$", done.stdout, re.MULTILINE)))
    if len(found) != len(regions) or known < _KNOWN_SHARE * sum(map(len, regions)):
        raise CostError(f"llvm-mca failed for {triple}, {core}: {done.stderr.strip()[:2000]}")
    return found
