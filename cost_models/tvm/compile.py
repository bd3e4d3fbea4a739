"""Compiles whole programs, from torch, to something that can be called, timed and exported."""

from __future__ import annotations

import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.relax.frontend.torch import from_exported_program

from cost_models.errors import CostError
from cost_models.tvm.machine import tvm_target
from cost_models.tvm.passes import build, fuse, least_time_s
from cost_models.tvm.runtime import load_machine, machine_for, silent
from cost_models.tvm.schedules import schedule

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """A compiled program: call it with arrays or torch tensors in the order of its inputs.

    `machine` is None where it was compiled for another processor: then it can only be exported.
    """

    executable: Any
    machine: Any
    triple: str
    counts: tuple[tuple[str, int], ...]

    def __call__(self, *inputs: Array | torch.Tensor) -> list[Array]:
        """Run once; every output as an array."""
        return [output.numpy() for output in _flat(self._main()(*_tensors(inputs)))]

    def kernel_counts(self) -> tuple[tuple[str, int], ...]:
        """(name of a fused function, calls of it) after fusion, most called first."""
        return self.counts

    def time_s(self, inputs: Sequence[Array | torch.Tensor], *, runs: int = 20, warmup: int = 2) -> float:
        """Least wall time of one call, in seconds; copies of inputs and outputs are not counted."""
        main, arguments = self._main(), _tensors(inputs)
        return least_time_s(lambda: main(*arguments), runs=runs, warmup=warmup)

    def export_library(self, path: Path | str) -> None:
        """Write a shared library that the TVM runtime loads; another processor needs a cross compiler to link it."""
        if _is_native(self.triple):
            with silent():
                self.executable.export_library(str(path))
            return
        name = f"{self.triple.split('-')[0]}-linux-gnu"
        if shutil.which(f"{name}-gcc") is None:
            raise CostError(f"linking for {self.triple} needs {name}-gcc; on Debian: apt install gcc-{name}")
        with silent():
            self.executable.export_library(str(path), cc=f"{name}-gcc")

    def _main(self) -> Any:
        if self.machine is None:
            raise CostError(f"a program for {self.triple} cannot run on this machine ({platform.machine()})")
        return self.machine["main"]


def _is_native(triple: str) -> bool:
    return not triple or triple.startswith(platform.machine())


def load_program(path: Path | str) -> CompiledProgram:
    """Load what `export_library` wrote, from a file of this program's own making: a library is code."""
    return CompiledProgram(*load_machine(path), "", ())


def compile_program(exported_program: torch.export.ExportedProgram, target: Mapping[str, object]) -> CompiledProgram:
    """Compile an exported torch program with static shapes; its parameters become packed constants."""
    module = from_exported_program(
        _decomposed(exported_program), keep_params_as_input=False, run_ep_decomposition=False
    )
    return compile_module(module, target)


def compile_module(module: IRModule, target: Mapping[str, object]) -> CompiledProgram:
    """Compile a Relax module with a function `main`."""
    described = tvm_target(target)
    with silent():
        fused = fuse(module, described)
        executable = build(schedule(fused, described), described)
    counts = _calls(fused)
    triple = str(target.get("mtriple", ""))
    return CompiledProgram(executable, machine_for(executable) if _is_native(triple) else None, triple, counts)


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Decompose what the importer does not know, but keep linear whole: it need not flatten its rows."""
    table = dict(torch.export.default_decompositions())
    del table[torch.ops.aten.linear.default]
    decomposed: torch.export.ExportedProgram = program.run_decompositions(table)
    return decomposed


def _calls(module: IRModule) -> tuple[tuple[str, int], ...]:
    counts: Counter[str] = Counter()

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == "relax.call_tir":
            counts[expr.args[0].name_hint] += 1

    relax.analysis.post_order_visit(module["main"], visit)
    return tuple(counts.most_common())


def _tensors(inputs: Sequence[Array | torch.Tensor]) -> list[Any]:
    arrays = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x for x in inputs)
    return [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]


def _flat(outputs: Any) -> list[Any]:
    return [outputs] if hasattr(outputs, "numpy") else [output for item in outputs for output in _flat(item)]
