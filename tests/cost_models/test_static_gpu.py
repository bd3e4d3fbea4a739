"""Static estimation for NVIDIA GPUs: what nvcc says is read right, occupancy is NVIDIA's, seconds keep the laws."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cost_models.errors import CostError
from cost_models.static_gpu import (
    LIMITS,
    GpuCode,
    Launch,
    Work,
    gpu_seconds,
    limits_of,
    most_registers,
    occupancy,
    resident_blocks,
)
from cost_models.tvm import ptx
from hardware_profiles import Profile, load
from search_spaces import Kernel, KernelKind, Precision

DEVICES = ("jetson-nano", "jetson-orin-nano", "jetson-agx-orin")
NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on the PATH: install the CUDA toolkit")

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k1_kernel' for 'sm_87'
ptxas info    : Function properties for k1_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compile time = 20.642 ms
ptxas info    : Compiling entry function 'k0_kernel' for 'sm_87'
ptxas info    : Function properties for k0_kernel
    64 bytes stack frame, 48 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 70 registers, used 1 barriers, 6912 bytes smem, 376 bytes cmem[0]
"""

PTX = """\
.visible .entry k0_kernel(
	.param .u64 k0_kernel_param_0
)
.maxntid 128
{
	.reg .pred 	%p<3>;
	ld.param.u64 	%rd1, [k0_kernel_param_0];
	mov.u32 	%r1, %tid.x;
	mov.b32 	%r9, 0;
	mov.f32 	%f9, 0f00000000;
$L__BB0_1:
	mov.u32 	%r2, %r9;
	bar.sync 	0;
	ld.global.nc.v2.f32 	{%f1, %f2}, [%rd1];
	ld.global.nc.f32 	%f3, [%rd1+8];
	st.shared.v2.f32 	[%r1], {%f1, %f2};
	bar.sync 	0;
	ld.shared.v4.f32 	{%f4, %f5, %f6, %f7}, [%r1];
	fma.rn.f32 	%f8, %f4, %f3, %f9;
	fma.rn.f32 	%f9, %f5, %f3, %f8;
	add.s32 	%r9, %r2, 1;
	setp.lt.u32 	%p1, %r9, 12;
	@%p1 bra 	$L__BB0_1;
	setp.gt.s32 	%p2, %r1, 31;
	@%p2 bra 	$L__BB0_3;
	bra.uni 	$L__BB0_2;
$L__BB0_3:
	ex2.approx.ftz.f32 	%f10, %f9;
	st.global.f32 	[%rd1], %f10;
$L__BB0_2:
	ret;
}
"""


def launch(threads: int = 256, registers: int = 64, block_bytes: int = 0, grid: int = 1, **work: float) -> Launch:
    return Launch("k", grid, threads, registers, block_bytes, 0, Work(**({"instructions": 100.0} | work)))


def test_the_log_of_ptxas_is_read() -> None:
    assert ptx.resources(LOG) == {"k1_kernel": ptx.Resources(12, 0, 0), "k0_kernel": ptx.Resources(70, 6912, 64)}
    assert ptx.resources("nvcc fatal: something") == {}


def test_executed_instructions_are_counted_through_loops_and_conditions() -> None:
    work = ptx.executed(PTX)["k0_kernel"]
    assert work.arithmetic == 24
    assert work.barriers == work.load_rounds * 2 == 24
    assert work.global_bytes == 12 * (8 + 4) + 4  # what a condition may skip counts
    assert work.shared_bytes == 12 * (8 + 16)
    assert work.special == 1
    assert 1 < work.independent < 4


def test_a_loop_that_nothing_decides_is_told() -> None:
    with pytest.raises(CostError, match=r"k0_kernel: nothing decides how often the loop at \$L__BB0_1 runs"):
        ptx.executed(PTX.replace("%r9, 12;", "%r1, 12;"))


# Blocks that NVIDIA's cuda_occupancy.h (CUDA 13.0) gives: (capability, registers, threads, shared bytes, blocks).
@pytest.mark.parametrize(
    ("capability", "registers", "threads", "shared_bytes", "blocks"),
    [
        ("8.7", 64, 256, 0, 4),
        ("8.7", 16, 1024, 0, 1),
        ("8.7", 16, 128, 0, 12),
        ("8.7", 16, 32, 0, 16),
        ("8.7", 72, 128, 6912, 7),
        ("8.7", 98, 512, 0, 1),
        ("8.7", 32, 256, 33000, 4),
        ("8.6", 32, 256, 33000, 3),
        ("8.0", 32, 256, 0, 8),
        ("9.0", 255, 320, 0, 0),
        ("7.5", 40, 128, 12000, 5),
        ("5.3", 64, 256, 6912, 4),
        ("5.3", 72, 512, 0, 0),
    ],
)
def test_occupancy_is_nvidias(capability: str, registers: int, threads: int, shared_bytes: int, blocks: int) -> None:
    asked, limits = launch(threads, registers, shared_bytes), LIMITS[capability]
    assert resident_blocks(asked, limits) == blocks
    assert occupancy(asked, limits) == blocks * math.ceil(threads / 32) * 32 / limits.threads
    fitting = min(registers, most_registers(threads, limits))
    assert resident_blocks(replace(asked, registers=fitting), limits) >= min(blocks, 1)
    if not shared_bytes:
        assert resident_blocks(replace(asked, registers=fitting), limits) > 0


def code(kernel: Kernel, *launches: Launch) -> GpuCode:
    return GpuCode(kernel, "sm_87", launches)


@pytest.mark.parametrize("name", DEVICES)
def test_seconds_are_finite_positive_and_never_faster_than_the_peak(name: str) -> None:
    profile = load(name)
    kernels = [Kernel(KernelKind.LINEAR, m, n, 64) for m in (1, 64, 4096) for n in (64, 4096)]
    seconds = gpu_seconds([code(kernel, launch(registers=32)) for kernel in kernels], profile)
    assert seconds.shape == (len(kernels),)
    assert np.all(np.isfinite(seconds))
    assert np.all(seconds >= [kernel.ops / profile.formula_peak_ops_per_s for kernel in kernels])
    assert np.all(seconds > profile.kernel_overhead_s.value)


def test_more_blocks_and_more_work_take_longer() -> None:
    profile, kernel = load("jetson-orin-nano"), Kernel(KernelKind.NORM, 8, 8, op="layer_norm")

    def seconds(*launches: Launch) -> float:
        return float(gpu_seconds([code(kernel, *launches)], profile)[0])

    by_grid = [seconds(launch(grid=grid, load_rounds=4.0)) for grid in (1, 8, 32, 33, 64, 256, 257, 10_000)]
    assert by_grid[0] == by_grid[1] == by_grid[2] < by_grid[3]  # eight multiprocessors hold four blocks each
    assert by_grid == sorted(by_grid)
    for field in ("instructions", "arithmetic", "special", "shared_bytes", "global_bytes", "load_rounds", "barriers"):
        few, many = (seconds(launch(grid=64, **{field: value})) for value in (1e4, 2e4))
        assert few < many, field
    once = launch(grid=64)
    assert seconds(once, once) - seconds(once) > profile.kernel_overhead_s.value
    # Values that wait for each other keep a multiprocessor busy only with many warps.
    assert seconds(launch(64, depth=100.0, grid=8)) > seconds(launch(64, depth=10.0, grid=8))


def test_what_cannot_be_priced_is_told() -> None:
    kernel = Kernel(KernelKind.LINEAR, 8, 8, 8)
    with pytest.raises(CostError, match=r"linear 8x8x8: a block of k asks for more registers or shared memory"):
        gpu_seconds([code(kernel, launch(block_bytes=200_000))], load("jetson-orin-nano"))
    with pytest.raises(CostError, match="raspberry-pi-4 has no TVM target of kind cuda"):
        gpu_seconds([code(kernel, launch())], load("raspberry-pi-4"))
    with pytest.raises(CostError, match=r"no limits known for 'sm_20'; known compute capabilities: 5\.3"):
        limits_of("sm_20")


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from cost_models.tvm.cuda import estimate

    monkeypatch.setenv("PATH", "")
    with pytest.raises(CostError, match=r"needs nvcc on the PATH .* apt install nvidia-cuda-toolkit"):
        estimate([Kernel(KernelKind.LINEAR, 8, 8, 8)], load("jetson-orin-nano"))


def estimated(kernels: list[Kernel], profile: Profile) -> list[float]:
    from cost_models.tvm.cuda import estimate

    seconds = estimate(kernels, profile)
    assert all(math.isfinite(value) for value in seconds)
    assert all(value >= k.ops / profile.formula_peak_ops_per_s for value, k in zip(seconds, kernels, strict=True))
    return seconds


@NEEDS_NVCC
def test_kernels_are_compiled_and_priced() -> None:
    from cost_models.tvm.cuda import compile_cuda

    profile = load("jetson-orin-nano")
    rows = [Kernel(KernelKind.LINEAR, m, 96, 64, epilogue=("bias", "gelu")) for m in (32, 256, 2048)]
    seconds = estimated(rows, profile)
    assert seconds == sorted(seconds)
    assert seconds[0] < seconds[2]
    (compiled,) = compile_cuda(rows[1:2], profile.tvm_target)
    (started,) = compiled.launches
    assert compiled.arch == "sm_87"
    assert started.grid_blocks * started.block_threads * started.work.arithmetic >= rows[1].ops / 2
    assert 16 <= started.registers <= 255
    with pytest.raises(CostError, match=r"linear 8x8x8 int8: only fp32, fp16 kernels"):
        estimated([Kernel(KernelKind.LINEAR, 8, 8, 8, precision=Precision.INT8)], profile)


@NEEDS_NVCC
def test_an_architecture_that_nvcc_dropped_gets_the_oldest() -> None:
    from cost_models.tvm.cuda import nvcc_path, supported_arch

    nvcc = nvcc_path()
    oldest = supported_arch("sm_10", nvcc)
    assert int(oldest[3:]) > 10
    assert supported_arch(oldest, nvcc) == oldest
    with pytest.raises(CostError, match="install a newer CUDA toolkit"):
        supported_arch("sm_999", nvcc)


@NEEDS_NVCC
@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_every_kind_that_a_space_draws_compiles(name: str) -> None:
    from nas.kernel_table import drawn_kernels
    from search_spaces import SPACES, Workload

    profile = load(name)
    drawn = drawn_kernels(SPACES["tiny"], Workload(prompt_tokens=10, new_tokens=2), 40, profile, 1)
    kernels = list({(kernel.kind, kernel.op, kernel.m == 1, kernel.epilogue): kernel for kernel in drawn}.values())
    assert {kernel.kind for kernel in kernels} == set(KernelKind)
    estimated(kernels, profile)


@NEEDS_NVCC
@pytest.mark.slow
def test_halves_compile_and_use_tensor_cores() -> None:
    from cost_models.tvm.cuda import compile_cuda

    profile = load("jetson-orin-nano")
    kernels = [
        Kernel(KernelKind.LINEAR, 128, 256, 128, precision=Precision.FP16),
        Kernel(KernelKind.NORM, 16, 64, op="layer_norm", precision=Precision.FP16),
        Kernel(KernelKind.ELEMENTWISE, 16, 64, op="hardswish", precision=Precision.FP16),
    ]
    linear, *_ = compile_cuda(kernels, profile.tvm_target)
    assert linear.launches[0].work.tensor_ops > 0
    assert linear.launches[0].shared_bytes > 0
    estimated(kernels, profile)
