"""The passes that whole programs and single kernels share: fusion, lowering, and the clock (torch is not needed)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.target import Target

from cost_models.tvm.graph import use_kernels
from cost_models.tvm.machine import machine_of


def fuse(module: IRModule, target: Target) -> IRModule:
    """Turn a Relax module into calls of fused, not yet scheduled tensor functions."""
    module = relax.transform.CanonicalizeBindings()(module)
    module = use_kernels(module, machine_of(target))
    passes = tvm.transform.Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.DeadCodeElimination(),
            relax.transform.RewriteDataflowReshape(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )
    with target:
        return passes(module)


def build(module: IRModule, target: Target) -> Any:
    """Lower a module of scheduled functions to an executable of Relax's virtual machine."""
    lowering = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    return tvm.compile(module, target, relax_pipeline=lowering)


def least_time_s(call: Callable[[], object], *, runs: int, warmup: int) -> float:
    """Least wall time in seconds of `runs` calls behind `warmup` uncounted ones."""
    least = float("inf")
    for index in range(warmup + runs):
        start = time.perf_counter()
        call()
        if index >= warmup:
            least = min(least, time.perf_counter() - start)
    return least
