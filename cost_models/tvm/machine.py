"""What the schedules need to know of a processor core: its vectors, how many of them it holds, and its order."""

from __future__ import annotations

from collections.abc import Mapping

import tvm_ffi
from tvm.target import Target, codegen

from cost_models.errors import CostError
from cost_models.tiles import Machine
from hardware_profiles.cores import core_types


def host_cpu() -> str:
    """LLVM's name of the processor that this runs on, e.g. znver4."""
    return str(tvm_ffi.get_global_func("target.llvm_get_system_cpu")())


def tvm_target(target: Mapping[str, object]) -> Target:
    """Make a TVM target of its description, e.g. {"kind": "llvm", "mcpu": "znver4"}; kind must be llvm."""
    if target.get("kind") != "llvm":
        raise CostError(f"only TVM targets of kind llvm can be compiled so far, but got kind={target.get('kind')!r}")
    return Target(dict(target))


def machine_of(target: Target) -> Machine:
    """Read the vector unit off a target's feature flags (TVM's own vector width is wrong for x86 without AVX-512).

    A core that cores.yaml does not know is taken for an out-of-order one.
    """
    features, triple = _features(target), str(target.attrs.get("mtriple", ""))
    core = core_types().get(str(target.attrs.get("mcpu", "")))
    in_order = core is not None and core.in_order
    if "avx512f" in features:
        return Machine(16, 32)
    if "avx" in features:
        return Machine(8, 16)
    if triple.startswith(("aarch64", "arm64")):
        return Machine(4, 32, in_order)
    if triple.startswith("riscv"):
        lanes = 8 if "zvl256b" in features else 4 if "v" in features else 1
        return Machine(lanes, 32, in_order)
    return Machine(4, 16)


def _features(target: Target) -> frozenset[str]:
    names = ("avx512f", "avx", "v", "zvl256b")
    return frozenset(name for name in names if codegen.target_has_features(name, target))
