"""Kernels compiled for an NVIDIA GPU that need not be present, and the seconds that follow from their code.

TVM writes CUDA with its default GPU schedules (dlight); nvcc of the CUDA toolkit compiles it, and says what a thread
and a block occupy. nvcc drops old architectures: for one that it does not know, registers and instructions are those of
the oldest that it does know, while the launch geometry stays the device's own (`GpuCode.arch` tells); registers beyond
what the device gives a block are cut off there, and the spills that this would cost are not counted.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import IRModule
from tvm.target import Target
from tvm.tirx import PrimFunc
from tvm.tirx.build import codegen_build, split_host_device_mods

from cost_models.errors import CostError
from cost_models.static_gpu import GpuCode, Launch, gpu_of, gpu_seconds, limits_of, most_registers
from cost_models.tvm import ptx
from cost_models.tvm.gpu_graph import gpu_function
from cost_models.tvm.gpu_schedules import schedule_for_gpu
from hardware_profiles import Profile
from search_spaces.kernels import Kernel

#: Kernels that one run of nvcc compiles: starting it takes a second, and one broken kernel costs this many runs.
_AT_ONCE = 48
_TIMEOUT_S = 300


def estimate(kernels: Sequence[Kernel], profile: Profile) -> list[float]:
    """Seconds of one run of each kernel on the profile's GPU, of basis `static`; a CostError names what fails."""
    _, arch = gpu_of(profile)
    limits_of(arch)
    return [float(seconds) for seconds in gpu_seconds(compile_cuda(kernels, profile.tvm_target), profile)]


def compile_cuda(kernels: Sequence[Kernel], target: Mapping[str, object]) -> list[GpuCode]:
    """Compile kernels for a TVM target of kind cuda; raises CostError naming a kernel that cannot be compiled."""
    if target.get("kind") != "cuda":
        raise CostError(f"a GPU kernel needs a TVM target of kind cuda, but got kind={target.get('kind')!r}")
    nvcc, described = nvcc_path(), Target(dict(target))
    arch = supported_arch(str(target["arch"]), nvcc)
    codes: list[GpuCode] = []
    for start in range(0, len(kernels), _AT_ONCE):
        part = kernels[start : start + _AT_ONCE]
        lowered = [_lower(kernel, f"k{start + index}", described) for index, kernel in enumerate(part)]
        codes += _compile(part, lowered, arch, described, nvcc)
    return codes


def nvcc_path() -> str:
    """Where nvcc is; raises CostError saying how to get it."""
    path = shutil.which("nvcc")
    if path is None:
        raise CostError(
            "static estimation for an NVIDIA GPU needs nvcc on the PATH (but no GPU); install the CUDA toolkit, "
            "on Debian: apt install nvidia-cuda-toolkit"
        )
    return path


@cache
def supported_arch(arch: str, nvcc: str) -> str:
    """The architecture itself if nvcc compiles for it, else the oldest that it does compile for."""
    told = _run([nvcc, "--list-gpu-code"])
    known = sorted({int(number) for number in re.findall(r"\bsm_(\d+)\b", told)})
    if not known:
        raise CostError(f"{nvcc} --list-gpu-code names no architecture: {told.strip()[:500]}")
    wanted = int(re.sub(r"\D", "", arch))
    if wanted > known[-1]:
        raise CostError(f"{nvcc} compiles up to sm_{known[-1]}, but the device is {arch}; install a newer CUDA toolkit")
    return arch if wanted in known else f"sm_{min(number for number in known if number > wanted)}"


def _lower(kernel: Kernel, name: str, target: Target) -> IRModule:
    """A kernel's GPU functions, scheduled and lowered as far as CUDA source is written from."""
    try:
        module = schedule_for_gpu(gpu_function(kernel, target), name, kernel, target)
        module = tirx.transform.BindTarget(target)(module)
        pipeline, _, finish = tvm.tirx.get_default_tir_pipeline(target)
        _, devices = split_host_device_mods(pipeline(module))
        (device,) = devices.values()
        return finish()(device)
    except CostError:
        raise
    except Exception as error:  # TVM raises whatever its passes raise
        raise CostError(f"{kernel}: TVM cannot compile it for {target.kind.name}: {_last_line(error)}") from error


def _compile(
    kernels: Sequence[Kernel], lowered: Sequence[IRModule], arch: str, target: Target, nvcc: str
) -> list[GpuCode]:
    """Run nvcc once for all; if that fails, once for each, so that the message names the kernel."""
    functions = {variable: function for module in lowered for variable, function in module.functions.items()}
    with tempfile.TemporaryDirectory(prefix="nas-cuda-") as name:
        folder = Path(name)
        try:
            source = codegen_build(IRModule(functions), target).inspect_source("cuda")
            folder.joinpath("kernels.cu").write_text(source, encoding="utf-8")
            command = [nvcc, f"-arch={arch}", "-w", "-cubin", "-Xptxas=-v", "--keep", f"--keep-dir={folder}"]
            log = _run([*command, "-o", str(folder / "kernels.cubin"), str(folder / "kernels.cu")])
            used, work = ptx.resources(log), ptx.executed(folder.joinpath("kernels.ptx").read_text(encoding="utf-8"))
        except Exception as error:
            if len(kernels) > 1:
                pairs = zip(kernels, lowered, strict=True)
                return [code for kernel, module in pairs for code in _compile([kernel], [module], arch, target, nvcc)]
            raise CostError(f"{kernels[0]}: cannot be compiled for {arch}: {_last_line(error)}") from error
    codes = []
    for kernel, module in zip(kernels, lowered, strict=True):
        launches = []
        for variable, function in module.functions.items():
            name = variable.name_hint
            if name not in used or name not in work:
                raise CostError(f"{kernel}: nvcc told nothing of {name}; its log is not as expected")
            blocks, threads, dynamic_bytes = _geometry(function)
            found = used[name]
            shared_bytes = found.shared_bytes + dynamic_bytes
            registers = min(found.registers, most_registers(threads, limits_of(str(target.attrs["arch"]))))
            launches.append(Launch(name, blocks, threads, registers, shared_bytes, found.spill_bytes, work[name]))
        codes.append(GpuCode(kernel, arch, tuple(launches)))
    return codes


def _geometry(function: PrimFunc) -> tuple[int, int, int]:
    """(blocks, threads of a block, bytes of dynamic shared memory of a block) of a lowered GPU function."""
    extents: dict[str, int] = {}
    dynamic_bytes = 0

    def thread(node: tirx.AttrStmt) -> None:
        if node.attr_key == "thread_extent":
            extents[node.node.thread_tag] = int(node.value)

    def buffer(node: tirx.AllocBuffer) -> None:
        nonlocal dynamic_bytes
        if node.buffer.scope() == "shared.dyn":
            lanes = tvm_ffi.dtype(str(node.buffer.dtype))
            dynamic_bytes += math.prod(int(size) for size in node.buffer.shape) * lanes.bits * lanes.lanes // 8

    tvm_ffi.structural_walk(function.body, [(tirx.AttrStmt, thread), (tirx.AllocBuffer, buffer)], order="post")
    blocks = math.prod(size for tag, size in extents.items() if tag.startswith("blockIdx"))
    threads = math.prod(size for tag, size in extents.items() if tag.startswith("threadIdx"))
    return blocks, threads, dynamic_bytes


def _run(command: Sequence[str]) -> str:
    """What a command writes; raises CostError if it fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise CostError(f"{command[0]} did not end within {_TIMEOUT_S} s") from None
    if done.returncode:
        raise CostError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[:1500]}")
    return done.stdout + done.stderr


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
