"""A folder that times kernels on a board without Python or TVM: compiled here, run there with a C library alone."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm.ir import IRModule

from cost_models import table
from cost_models.errors import CostError
from cost_models.tvm.chains import Operand, fused_kernel
from cost_models.tvm.machine import tvm_target
from cost_models.tvm.timing import chain_calls
from search_spaces.kernels import Kernel

#: The program that times, and what it writes.
PROGRAM, RESULTS = "time_kernels", "results.csv"
_RUNNER = Path(__file__).with_name("kit_runner.c")
#: Weights of all calls of one kernel: small boards have little memory.
_MOST_BYTES = 48 * 2**20
#: DLPack's type codes by numpy's kind of a type.
_CODES = {"i": 0, "u": 1, "f": 2}

_README = """Times {count} kernels on {title}, for the search's latency predictor.

On the board, with nothing else running and the power supply it will have:

    ./{program}

It takes some minutes, writes {results}, and goes on where it was stopped. Then, where the search is installed:

    nas device calibrate {name} --measurements {results}
"""


def write_kit(kernels: Sequence[Kernel], target: Mapping[str, object], name: str, title: str, path: Path) -> None:
    """Write a tar archive with the compiled kernels, linked with their runner; raises CostError without a compiler."""
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        program = compile_kit(kernels, target, Path(folder))
        readme = _README.format(count=len(kernels), title=title, name=name, program=PROGRAM, results=RESULTS)
        unfinished = path.with_name(f".{path.name}.unfinished")
        with tarfile.open(unfinished, "w") as archive:
            for member, content, mode in (
                ("README.txt", readme.encode(), 0o644),
                (PROGRAM, program.read_bytes(), 0o755),
            ):
                entry = tarfile.TarInfo(f"{name}-kit/{member}")
                entry.size, entry.mode = len(content), mode
                archive.addfile(entry, io.BytesIO(content))
        unfinished.replace(path)


def compile_kit(kernels: Sequence[Kernel], target: Mapping[str, object], folder: Path) -> Path:
    """Compile and link the program into a folder; it runs on the target's processor under Linux."""
    compiler = _compiler(str(target.get("mtriple", "")))
    described = tvm_target({name: value for name, value in target.items() if name != "num-cores"})
    functions, entries = {}, []
    for index, kernel in enumerate(kernels):
        function, operands, output = fused_kernel(kernel, described)
        functions[f"k{index}"] = function.with_attr("global_symbol", f"k{index}")
        entries.append(_entry(index, kernel, (*operands, Operand("out", output, own=False))))
    tvm.compile(IRModule(functions), target=described).mod.write_to_file(str(folder / "kernels.o"))
    shutil.copy(_RUNNER, folder)
    declared = "".join(
        f"extern int __tvm_ffi_k{index}(void *, any_t *, int, any_t *);\n" for index in range(len(kernels))
    )
    (folder / "entries.c").write_text(
        f'#include "{_RUNNER.name}"\n{declared}const entry_t entries[] = {{\n{"".join(entries)}}};\n'
        f"const int entry_count = {len(kernels)};\n"
        f'const char table_header[] = "{",".join(table.COLUMNS)}";\n',
        encoding="utf-8",
    )
    command = [compiler, "-O2", "-static", "-o", PROGRAM, "entries.c", "kernels.o", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise CostError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return folder / PROGRAM


def _compiler(triple: str) -> str:
    processor = triple.split("-")[0] or "x86_64"
    name = f"{processor}-linux-gnu-gcc"
    if shutil.which(name) is None:
        raise CostError(
            f"a kit for {processor} needs the cross compiler {name}; on Debian: apt install gcc-{processor}-linux-gnu"
        )
    return name


def _entry(index: int, kernel: Kernel, operands: Sequence[Operand]) -> str:
    cells = ",".join(table.cells(kernel).values())
    calls = max(1, min(chain_calls(kernel), int(_MOST_BYTES / max(kernel.weight_bytes, 1))))
    described = ", ".join(map(_operand, operands))
    return f'{{"{cells}", __tvm_ffi_k{index}, {calls}, {len(operands)}, {{{described}}}}},\n'


def _operand(operand: Operand) -> str:
    dtype = np.dtype("int32" if operand.below else operand.dtype)
    shape = ", ".join(map(str, operand.shape))
    return (
        f"{{{int(operand.own)}, {operand.below}, {_CODES[dtype.kind]}, {dtype.itemsize * 8}, "
        f"{len(operand.shape)}, {{{shape}}}}}"
    )
