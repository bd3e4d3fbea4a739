"""The machine this runs on as a profile: read from the system and measured on one core in a few seconds.

One thread, because kernels are timed on one thread: peak, bandwidth and kernel times then speak of the same thing.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import ValidationError

from hardware_profiles.facts import Basis, Fact
from hardware_profiles.files import user_devices, write
from hardware_profiles.profile import Caches, Cluster, Cpu, Peaks, Power, Profile, ProfileError

HOST = "host"
PROBE_TIMEOUT_S = 60
MIB = 1 << 20

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# Levels of the x86-64 psABI by the flags that Linux prints for what each adds; the most demanding first.
_X86_LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v2": {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"},
}
# Part numbers (MIDR_EL1) of implementer 0x41, Arm Ltd, as LLVM's lib/TargetParser/Host.cpp names them.
_ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd0d": "cortex-a77",
    "0xd40": "neoverse-v1",
    "0xd41": "cortex-a78",
    "0xd42": "cortex-a78ae",
    "0xd44": "cortex-x1",
    "0xd49": "neoverse-n2",
    "0xd4f": "neoverse-v2",
}


def detect_host(llvm_cpu: str | None = None, data_folder: Path | None = None) -> Profile:
    """Measures this machine (under 5 s on a quiet one) and stores its profile in the user's folder.

    `llvm_cpu` is LLVM's name for the processor; None takes one that is sure to run here, if not the best. A system that
    hides its memory, or whose answers contradict each other, raises ProfileError; what else it hides is assumed.
    """
    try:
        profile = _measured(llvm_cpu)
    except (OSError, ValidationError) as error:
        raise ProfileError(
            f"this machine could not be described: {' '.join(str(error).split())}; describe it by what its box says: "
            "nas device new"
        ) from error
    return write(profile, user_devices(data_folder) / HOST)


def _measured(llvm_cpu: str | None) -> Profile:
    chip = chip_name()
    when = datetime.now(UTC).date().isoformat()
    caches = _caches()
    probe = _probe(max(64 * MIB, min(4 * caches.last_level_bytes, 256 * MIB)))
    peak = probe["peak_ops_per_s"]
    llvm_cpu = llvm_cpu or infer_llvm_cpu(_cpuinfo())
    clock = _clock_hz()
    cores = _cores()
    memory = psutil.virtual_memory()

    def measured(value: float, how: str) -> Fact[float]:
        return Fact[float](value=value, basis=Basis.MEASURED, source=f"{how}; {chip}, {when}")

    def reported(value: int, how: str) -> Fact[int]:
        return Fact[int](value=value, basis=Basis.MEASURED, source=f"{how}; {chip}, {when}")

    one_core = Peaks(fp32=measured(peak, "numpy fp32 matrix products of 512 and 1024 on one thread, the fastest run"))
    return Profile(
        schema_version=1,
        name=HOST,
        title=f"This machine ({chip})",
        chip=chip,
        runs_on="cpu",
        llvm_cpu=llvm_cpu,
        tvm_target={"kind": "llvm", "mcpu": llvm_cpu, "num-cores": 1},
        cpu=Cpu(
            clusters=(
                Cluster(
                    uarch=llvm_cpu,
                    cores=reported(cores, "processors that this process may use"),
                    clock_hz=clock,
                    ops_per_cycle_fp32=Fact[float](
                        value=float(2 ** math.ceil(math.log2(max(peak / clock.value, 2.0)))),
                        basis=Basis.ASSUMED,
                        source="the power of two that reaches the measured one-core peak at the clock given here",
                    ),
                ),
            )
        ),
        threads=Fact[int](value=1, basis=Basis.ASSUMED, source="kernels are timed on one thread, so this host is too"),
        peak_ops_per_s=one_core,
        peak_one_core_ops_per_s=one_core,
        memory_bytes=reported(memory.total, "psutil.virtual_memory().total"),
        memory_reserved_bytes=reported(max(memory.total - memory.available, 1), "psutil: total less available"),
        bandwidth_bytes_per_s=measured(
            probe["copy_bytes_per_s"],
            "numpy copy of an array past the last cache on one thread, bytes read plus written, the fastest run "
            f"(a pure read: {probe['read_bytes_per_s'] / 1e9:.1f} GB/s)",
        ),
        caches=caches,
        kernel_overhead_s=Fact[float](
            value=1.8e-7, basis=Basis.ASSUMED, source="a call through TVM's virtual machine: 650 cycles, as on Zen 4"
        ),
        power=Power(
            idle_w=Fact[float](value=5.0, basis=Basis.ASSUMED, source="no power sensor is read on this host"),
            active_w=Fact[float](
                value=15.0, basis=Basis.ASSUMED, source="no power sensor is read here: idle, and 10 W for a busy core"
            ),
        ),
    )


def chip_name() -> str:
    """The processor's own name, with family and model where the name alone is vague (as in virtual machines)."""
    info = _cpuinfo()
    if "model name" in info and "cpu family" in info:
        return f"{info['model name']} (family {info['cpu family']}, model {info.get('model', '?')})"
    if "CPU part" in info:
        name = _arm_cpu(info)
        part = f"implementer {info.get('CPU implementer', '?')}, part {info['CPU part']}"
        return f"{name} ({part}, revision {info.get('CPU revision', '?')})"
    return platform.processor() or platform.machine() or "unknown processor"


def infer_llvm_cpu(info: dict[str, str]) -> str:
    """A name for LLVM's -mcpu that is sure to run on the processor with these lines of /proc/cpuinfo."""
    if "CPU part" in info:
        return _arm_cpu(info)
    machine = platform.machine().lower()
    if not info and machine in ("arm64", "aarch64"):
        return "apple-m1" if sys.platform == "darwin" else "generic"
    flags = set(info.get("flags", "").split())
    needed: set[str] = set().union(*_X86_LEVELS.values())
    for level, added in _X86_LEVELS.items():
        if needed <= flags:
            return level
        needed -= added
    return "x86-64" if machine in ("x86_64", "amd64") else "generic"


def _arm_cpu(info: dict[str, str]) -> str:
    return _ARM_PARTS.get(info["CPU part"], "generic") if info.get("CPU implementer") == "0x41" else "generic"


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where the system has none."""
    try:
        first = _CPUINFO.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _clock_hz() -> Fact[float]:
    try:
        clock = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError, ValueError):  # containers and some Macs hide it
        clock = None
    if clock and (mhz := clock.max or clock.current or 0) > 0:
        return Fact[float](value=mhz * 1e6, basis=Basis.MEASURED, source="psutil.cpu_freq(), highest where known")
    return Fact[float](value=2.0e9, basis=Basis.ASSUMED, source="the system reports no clock")


def _caches() -> Caches:
    found = {}
    for index in sorted(_CACHES.glob("index*")):
        try:
            kind, size, level = ((index / name).read_text().strip() for name in ("type", "size", "level"))
        except (OSError, UnicodeDecodeError):
            continue  # containers hide a part
        amount = re.fullmatch(r"([1-9]\d*)([KM]?)", size)
        if kind != "Instruction" and amount and level.isdecimal():
            found[int(level)] = int(amount[1]) * {"": 1, "K": 1 << 10, "M": MIB}[amount[2]]

    def fact(level: int, assumed: int) -> Fact[int]:
        if level in found:
            return Fact[int](value=found[level], basis=Basis.MEASURED, source=f"{_CACHES}, level {level}")
        return Fact[int](value=assumed, basis=Basis.ASSUMED, source="the system reports no such cache")

    return Caches(
        l1_bytes=fact(1, 32 << 10), l2_bytes=fact(2, 512 << 10), l3_bytes=fact(3, 8 * MIB) if 3 in found else None
    )


def _probe(array_bytes: int) -> dict[str, float]:
    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL", "VECLIB_MAXIMUM", "BLIS")}
    probe = Path(__file__).with_name("probe.py")
    try:
        # -P keeps this folder off the path, where profile.py would hide the standard library's.
        done = subprocess.run(  # noqa: S603  own file, no shell
            [sys.executable, "-P", str(probe), str(array_bytes)],
            env={**os.environ, **one_thread},
            capture_output=True,
            check=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise ProfileError(f"this machine could not be measured: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise ProfileError(f"this machine could not be measured within {PROBE_TIMEOUT_S} s: it is too busy") from error
    try:
        answer = json.loads(done.stdout)
        found = {f"{name}_bytes_per_s": float(rate) for name, rate in answer["bandwidth_bytes_per_s"].items()}
        found["peak_ops_per_s"] = float(answer["peak_ops_per_s"])
        if not all(0 < found[name] < math.inf for name in ("peak_ops_per_s", "copy_bytes_per_s", "read_bytes_per_s")):
            raise ValueError("a rate is no positive number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProfileError(f"this machine could not be measured: {probe.name} said {done.stdout!r}") from error
    return found
