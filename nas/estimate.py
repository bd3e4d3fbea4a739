"""Static tables of devices out of reach: kernels compiled for the target, their cycles counted, a predictor fitted.

Counted cycles are kept in the user's data folder by target, core model and the code of the schedules: a killed run
continues, and devices with the same core share them. Those of the shipped devices come with the product
(cost_models/cycles), so that a new device with such a core has its table in seconds and needs no LLVM tools.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cost_models
from cost_models import table
from cost_models.errors import CostError
from cost_models.learned import LearnedModel
from cost_models.static import Counted, static_seconds
from cost_models.tiles import Machine
from cost_models.tvm.version import code_version
from hardware_profiles import Basis, Profile
from hardware_profiles.cores import core_type
from hardware_profiles.files import user_devices
from nas.promotion import worker_pool
from nas.search import Progress
from search_spaces import Kernel

#: Counted cycles that come with the product.
CYCLES = Path(cost_models.__path__[0]) / "cycles"
_CHUNK = 10
_GPU_CHUNK = 24
#: The predictor's features want tiles; on a GPU they say how sizes divide into warps, no more.
GPU_TILES = Machine(lanes=32, registers=64)


@dataclass(frozen=True)
class Estimated:
    """What an estimation ended with; `failed` are kernels that could not be counted, with the reason."""

    profile: Profile
    kernels: int
    failed: dict[str, str]
    model: LearnedModel


def estimate(profile: Profile, kernels: Sequence[Kernel], progress: Progress, processes: int = 2) -> Estimated:
    """Write the profile's table with basis static and fit its predictor; what the table held is replaced."""
    if profile.runs_on == "gpu":
        seconds, failed = _gpu_seconds(profile, kernels, progress)
        return _store_table(profile, seconds, failed, GPU_TILES)
    return _fill(profile, *count_cycles(profile, kernels, progress, processes))


def _fill(profile: Profile, counted: Sequence[Counted], failed: dict[str, str]) -> Estimated:
    from cost_models.tvm.machine import machine_of, tvm_target

    machine = machine_of(tvm_target(profile.tvm_target))
    found = static_seconds(counted, profile, machine).tolist()
    seconds = {item.kernel: latency_s for item, latency_s in zip(counted, found, strict=True)}
    return _store_table(profile, seconds, failed, machine)


def _store_table(
    profile: Profile, seconds: Mapping[Kernel, float], failed: dict[str, str], machine: Machine
) -> Estimated:
    unfinished = profile.kernels_csv.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    for kernel, latency_s in seconds.items():
        table.append(unfinished, table.TableRow(kernel, latency_s, latency_s, Basis.STATIC))
    unfinished.replace(profile.kernels_csv)
    model = LearnedModel.fit(profile, machine)
    model.save()
    return Estimated(profile, len(seconds), failed, model)


def _gpu_seconds(
    profile: Profile, kernels: Sequence[Kernel], progress: Progress
) -> tuple[dict[Kernel, float], dict[str, str]]:
    """Seconds of what nvcc compiles, and why not of the rest."""
    asked, found, failed = list(dict.fromkeys(kernels)), {}, {}
    for start in range(0, len(asked), _GPU_CHUNK):
        progress("estimate", start, len(asked), f"compiling CUDA kernels of {profile.name}")
        for kernel, latency_s, reason in _gpu_chunk(profile, asked[start : start + _GPU_CHUNK]):
            if reason:
                failed[str(kernel)] = reason
            else:
                found[kernel] = latency_s
    progress("estimate", len(asked), len(asked))
    return found, failed


def _gpu_chunk(profile: Profile, kernels: Sequence[Kernel]) -> list[tuple[Kernel, float, str]]:
    from cost_models.tvm import cuda

    try:
        return [
            (kernel, latency_s, "") for kernel, latency_s in zip(kernels, cuda.estimate(kernels, profile), strict=True)
        ]
    except CostError as error:
        if len(kernels) == 1:
            return [(kernels[0], 0.0, str(error))]
        half = len(kernels) // 2
        return _gpu_chunk(profile, kernels[:half]) + _gpu_chunk(profile, kernels[half:])


def count_cycles(
    profile: Profile, kernels: Sequence[Kernel], progress: Progress, processes: int = 2
) -> tuple[list[Counted], dict[str, str]]:
    """Cycles of each kernel on the profile's core, and what failed with its reason."""
    from cost_models.tvm.mca import mca_path

    target = described(profile)
    core = core_type(profile.llvm_cpu).mca
    store = Store(target, core)
    known = store.read()
    missing = [kernel for kernel in dict.fromkeys(kernels) if kernel not in known]
    failed: dict[str, str] = {}
    if missing:
        mca_path()  # raises before an hour is spent
        chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
        done = 0
        progress("estimate", 0, len(missing), f"counting cycles of {profile.name}")
        with worker_pool(processes) as pool:
            for job in as_completed([pool.submit(_count, chunk, target, core) for chunk in chunks]):
                for kernel, cycles, calls, reason in job.result():
                    done += 1
                    if reason:
                        failed[str(kernel)] = reason
                    else:
                        known[kernel] = Counted(kernel, cycles, calls)
                        store.append(known[kernel])
                progress("estimate", done, len(missing), f"counting cycles of {profile.name}")
    return [known[kernel] for kernel in dict.fromkeys(kernels) if kernel in known], failed


def _count(kernels: Sequence[Kernel], target: Mapping[str, object], core: str) -> list[tuple[Kernel, float, int, str]]:
    """(kernel, cycles, calls of the runtime, why not) of each; runs in a worker."""
    from cost_models.tvm.code import compile_code
    from cost_models.tvm.mca import cycles

    try:
        codes = compile_code(kernels, target)
        found = zip(kernels, cycles(codes, core), codes, strict=True)
        return [(kernel, count, code.calls, "") for kernel, count, code in found]
    except CostError as error:
        if len(kernels) == 1:
            return [(kernels[0], 0.0, 0, str(error))]
        return [row for kernel in kernels for row in _count([kernel], target, core)]


def shipped_counts(profile: Profile) -> list[Counted]:
    """Cycles that come with the product for the profile's core and target; none where no shipped device has them."""
    return list(Store(described(profile), core_type(profile.llvm_cpu).mca).shipped())


def estimate_from_shipped(profile: Profile) -> Estimated | None:
    """As `estimate`, of the kernels whose cycles come with the product; None where there are none for this core."""
    if profile.runs_on == "gpu" or not (counted := shipped_counts(profile)):
        return None
    return _fill(profile, counted, {})


def described(profile: Profile) -> dict[str, object]:
    """The profile's TVM target but for its number of cores, which changes no kernel."""
    return {name: value for name, value in profile.tvm_target.items() if name != "num-cores"}


def _digest(*told: object) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


class Store:
    """Counted cycles on disk, a JSON line a kernel: in the user's folder, and compressed with the product."""

    def __init__(self, target: Mapping[str, object], core: str) -> None:
        self._stem = f"{core}-{_digest(dict(target))}"
        self._name = f"{self._stem}-{code_version('tvm/mca.py', 'tvm/walk.py', 'tvm/code.py')}.jsonl"
        self.path = user_devices().parent / "static" / self._name

    def read(self) -> dict[Kernel, Counted]:
        """What was counted of the schedules as they are."""
        found = {item.kernel: item for item in self._lines(CYCLES / f"{self._name}.gz")}
        return found | {item.kernel: item for item in self._lines(self.path)}

    def shipped(self) -> Iterator[Counted]:
        """What comes with the product, also where schedules have changed since."""
        for path in self.shipped_files():
            yield from self._lines(path)

    def shipped_files(self) -> list[Path]:
        """Files of the product with counts of this core and target."""
        return sorted(CYCLES.glob(f"{self._stem}-*.jsonl.gz"))

    def append(self, item: Counted) -> None:
        """Keep a count in the user's folder."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table.append_line(self.path, self.line(item))

    @staticmethod
    def line(item: Counted) -> str:
        """A count as a line of its file."""
        cells: dict[str, Any] = {"kernel": table.cells(item.kernel), "cycles": item.cycles, "calls": item.runtime_calls}
        return json.dumps(cells) + "\n"

    def _lines(self, path: Path) -> Iterator[Counted]:
        if not path.is_file():
            return
        packed = path.read_bytes()
        text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8")
        for line in text.splitlines():
            try:
                cells = json.loads(line)
                yield Counted(table.kernel_of(cells["kernel"]), float(cells["cycles"]), int(cells["calls"]))
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a killed run
