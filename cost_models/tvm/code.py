"""A kernel's machine code as it runs: instructions of each basic block, and the order in which blocks run.

TVM compiles the kernel for any target; LLVM prints the assembly with the names of the blocks of its IR, in which
`walk.py` finds the order. Only the rebuilding of static tables needs this; it needs llvmlite (extra `static`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm
from tvm.ir import IRModule

from cost_models.errors import CostError
from cost_models.tvm.chains import fused_kernel
from cost_models.tvm.machine import machine_of, tvm_target
from cost_models.tvm.walk import functions, walk
from search_spaces.kernels import Kernel

_FUNCTION_LABEL = re.compile(r"^_?(k\d+_compute_):")
_BLOCK_LABEL = re.compile(r"^\.?L?BB\d+_\d+:")
_BLOCK_COMMENT = re.compile(r"^\s*(?:#|//|;) %bb\.\d+:")
_BLOCK_NAME = re.compile(r"(?:#|//|;) %\"?([\w.$-]+)\"?\s*$")
_DEBUG = re.compile(r", !dbg !\d+| !dbg !\d+(?= \{)|^\s+#dbg_.*\n|^!llvm\.dbg\.cu.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class KernelCode:
    """Instructions by block, and (block, times in a row) in the order of one call."""

    kernel: Kernel
    triple: str
    blocks: Mapping[str, tuple[str, ...]]
    trace: tuple[tuple[str, int], ...]
    calls: int  # of the runtime, for workspace

    @property
    def instructions(self) -> int:
        """Instructions of one call of the kernel."""
        return sum(len(self.blocks[block]) * times for block, times in self.trace)


def compile_code(kernels: Sequence[Kernel], target: Mapping[str, object]) -> list[KernelCode]:
    """Compile kernels for a target, which need not be this machine; raises CostError for what cannot be compiled."""
    described = tvm_target(target)
    named = {f"k{index}": kernel for index, kernel in enumerate(kernels)}
    module = IRModule(
        {name: fused_kernel(kernel, described)[0].with_attr("global_symbol", name) for name, kernel in named.items()}
    )
    text = tvm.compile(module, target=described).mod.inspect_source("ll")
    assembly, triple = _assembly(text, str(target["mcpu"]), ",".join(map(str, target.get("mattr", ()))))  # type: ignore[call-overload]
    written = dict(_functions(assembly))
    vscale = max(1, machine_of(described).lanes // 2)
    found = {}
    for function in functions(text):
        if function.name not in written:
            continue
        blocks = written[function.name]
        trace = tuple((block, times) for block, times in walk(function, vscale) if blocks.get(block))
        calls = sum(times * sum(_is_call(line) for line in blocks[block]) for block, times in trace)
        plain = {name: tuple(line for line in lines if not _is_call(line)) for name, lines in blocks.items()}
        name = function.name.removesuffix("_compute_")
        found[name] = KernelCode(named[name], triple, plain, trace, calls)
    missing = named.keys() - found.keys()
    if missing:
        raise CostError(f"no machine code found for {', '.join(str(named[name]) for name in sorted(missing))}")
    return [found[name] for name in named]


@cache
def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError:
        raise CostError("static estimation needs llvmlite; install it: pip install 'edge-vlm-nas[static]'") from None
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm


def _assembly(text: str, cpu: str, features: str) -> tuple[str, str]:
    llvm = _llvm()
    module = llvm.parse_assembly(_DEBUG.sub("", text))
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic"
    )
    machine.set_asm_verbosity(True)
    return machine.emit_assembly(module), module.triple


def _functions(assembly: str) -> list[tuple[str, dict[str, list[str]]]]:
    """Each kernel's instructions by block of the IR; what LLVM splits keeps the name of its block."""
    result: list[tuple[str, dict[str, list[str]]]] = []
    blocks: dict[str, list[str]] | None = None
    block = ""
    for line in assembly.splitlines():
        if found := _FUNCTION_LABEL.match(line):
            blocks, block = defaultdict(list), "entry"
            result.append((found[1], blocks))
        elif blocks is None:
            continue
        elif re.match(r"^\.?Lfunc_end", line):
            blocks = None
        elif _BLOCK_LABEL.match(line) or _BLOCK_COMMENT.match(line):
            if name := _BLOCK_NAME.search(line):
                block = name[1]
        elif line.startswith("\t") and not line.startswith("\t."):
            instruction = re.split(r"\s(?:#|//|;)\s", line.strip())[0].strip()
            if instruction and not instruction.startswith(("#", "//", ";")):
                blocks[block].append(instruction.replace("\t", " "))
    return result


def _is_call(instruction: str) -> bool:
    return instruction.split()[0] in ("call", "callq", "bl", "blr", "jalr", "tail")
