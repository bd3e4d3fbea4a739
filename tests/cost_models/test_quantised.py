"""Linear kernels of lower precision compute what numpy computes with their rounded weights, on any shape and target."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping

import numpy as np
import pytest
import tvm
from tvm import cpu, relax, runtime
from tvm.ir import IRModule
from tvm.target import codegen

from cost_models.errors import CostError
from cost_models.tvm import chains, timing
from cost_models.tvm.instructions import Dot, dot_of
from cost_models.tvm.machine import tvm_target
from cost_models.tvm.packing import LANES, Packing
from search_spaces.kernels import INT4_GROUP, Kernel, KernelKind, Precision

TARGET = {"kind": "llvm", "num-cores": 1, "mcpu": codegen.llvm_get_system_cpu()}
#: Neither AVX-512 nor dot products of bytes.
PLAIN = {"kind": "llvm", "num-cores": 1, "mcpu": "x86-64-v3"}
A76 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
A72 = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
K = KernelKind
LOWER = [precision for precision in Precision if precision is not Precision.FP32]
# n and k that divide into lanes and groups, and that do not; rows that fill a tile, and that do not
SHAPES = [(1, 96, 64), (1, 33, 31), (5, 50, 47), (16, 33, 70), (37, 200, 96)]


def rounded(weights: np.ndarray, precision: Precision) -> np.ndarray:
    """The weights (n, k) as numpy rounds them, column by column or group by group."""
    if precision is Precision.FP16:
        return weights.astype(np.float16).astype(np.float32)
    k = weights.shape[1]
    size, most = (INT4_GROUP, 7) if precision is Precision.INT4 else (k, 127)
    result = np.empty_like(weights)
    for start in range(0, k, size):
        part = weights[:, start : start + size]
        scale = abs(part).max(1, keepdims=True) / most
        if precision is Precision.INT4:
            scale = ((scale.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)  # to bf16
        result[:, start : start + size] = np.clip(np.rint(part / scale), -most, most) * scale
    return result


def random(m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m)
    x, weights, bias = rng.standard_normal((1, m, k)), rng.standard_normal((n, k)) / np.sqrt(k), rng.standard_normal(n)
    return x.astype(np.float32), weights.astype(np.float32), bias.astype(np.float32)


@pytest.mark.parametrize(
    "target",
    [TARGET, pytest.param(PLAIN, marks=pytest.mark.skipif(platform.machine() != "x86_64", reason="runs on x86 only"))],
    ids=["host", "plain"],
)
@pytest.mark.parametrize("precision", LOWER)
def test_kernels_agree_with_numpy(precision: Precision, target: Mapping[str, object]) -> None:
    kernels = [Kernel(K.LINEAR, *shape, precision=precision, epilogue=("bias", "relu")) for shape in SHAPES]
    module, made = chains.chain_module([(kernel, 1) for kernel in kernels], target)
    machine = relax.VirtualMachine(chains.build(module, tvm_target(target)), cpu())
    packing = Packing.of(precision, tvm_target(target))
    for index, (chain, shape) in enumerate(zip(made, SHAPES, strict=True)):
        x, weights, bias = random(*shape)
        activations = packing.quantise_rows(x) if precision is Precision.W8A8 else (x,)
        arrays = [*activations, *packing.pack(weights), bias]
        # operands' names end in the order in which the kernel's definition asked for them
        named = {int(re.sub(r"\D", "", operand.name)): operand for operand in chain.operands}
        given = {named[at].name: array for at, array in enumerate(arrays)}
        assert all(given[operand.name].shape == operand.shape for operand in chain.operands)
        assert all(given[operand.name].dtype == operand.dtype for operand in chain.operands)
        ordered = sorted(chain.operands, key=lambda operand: operand.own)
        got = machine[f"chain{index}"](*(runtime.tensor(given[operand.name]) for operand in ordered)).numpy()[0]
        if precision is Precision.W8A8:
            x = rounded(x[0], Precision.W8A8)[None]
        wanted = np.maximum(x[0] @ rounded(weights, precision).T + bias, 0)
        # processors that compute in fp16 sum runs of 32 in it: eleven bits
        assert abs(got - wanted).max() < (2e-3 if packing.native else 2e-5) * abs(wanted).max(), shape


@pytest.mark.parametrize(("precision", "largest"), [("fp16", 1e-3), ("int8", 0.01), ("w8a8", 0.01), ("int4", 0.15)])
def test_rounding_loses_little(precision: str, largest: float) -> None:
    weights = random(1, 64, 96)[1]
    assert abs(rounded(weights, Precision(precision)) - weights).max() < largest * abs(weights).max()


def test_columns_of_zeros_stay_zeros() -> None:
    for precision in LOWER:
        arrays = Packing.of(precision, tvm_target(TARGET)).pack(np.zeros((3, 40), np.float32))
        assert not arrays[0].any()
        assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4, Precision.W8A8, Precision.FP16])
def test_kernels_count_the_bytes_that_are_packed(precision: Precision) -> None:
    kernel = Kernel(K.LINEAR, 1, 4 * LANES, 2 * INT4_GROUP, precision=precision)
    arrays = Packing.of(precision, tvm_target(PLAIN)).pack(np.ones((kernel.n, kernel.k), np.float32))
    assert kernel.weight_bytes == sum(array.nbytes for array in arrays)


def test_example_operands_have_the_shapes_of_packed_weights() -> None:
    for precision in LOWER:
        (chain,) = chains.chain_module([(Kernel(K.LINEAR, 2, 33, 50, precision=precision), 3)], TARGET)[1]
        packed = Packing.of(precision, tvm_target(TARGET)).pack(random(2, 33, 50)[1])
        own = [operand for operand in chain.operands if operand.own]
        assert [(operand.shape, operand.dtype) for operand in own] == [(array.shape, array.dtype) for array in packed]
        assert [operand.bytes for operand in own] == [array.nbytes for array in packed]
        rng = np.random.default_rng(0)
        assert all(operand.example(rng).dtype == operand.dtype for operand in chain.operands)


def assembly(kernel: Kernel, target: Mapping[str, object]) -> str:
    described = tvm_target(target)
    function = chains.fused_kernel(kernel, described)[0].with_attr("global_symbol", "kernel")
    return str(tvm.compile(IRModule({"kernel": function}), target=described).mod.inspect_source("s"))


@pytest.mark.parametrize(
    ("target", "precision", "instruction"),
    [
        (A76, "w8a8", r"\bsdot\b"),
        (A76, "fp16", r"\bfmla\s+v\d+\.8h"),
        (A76, "int8", r"\bfmla\s+v\d+\.4s"),
        (A76, "int4", r"\bfmla\s+v\d+\.4s"),
        (A72, "w8a8", r"\bsmull|smlal"),
        (A72, "fp16", r"\bfcvtl\b"),
        ({"kind": "llvm", "mcpu": "znver4"}, "w8a8", r"vpdpbusd.*zmm"),
        ({"kind": "llvm", "mcpu": "alderlake"}, "w8a8", r"vpdpbusd.*ymm"),
        ({"kind": "llvm", "mcpu": "znver3"}, "fp16", r"vcvtph2ps"),
    ],
)
def test_targets_compute_with_what_they_have(target: Mapping[str, object], precision: str, instruction: str) -> None:
    text = assembly(Kernel(K.LINEAR, 5, 64, 64, precision=Precision(precision)), target)
    assert re.search(instruction, text)
    assert ("sdot" in text) == (instruction == r"\bsdot\b")


def test_dots_of_targets() -> None:
    assert dot_of(tvm_target(A76)) == Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, unsigned=False)
    assert dot_of(tvm_target(A72)) is None


def test_timings_arrive_for_every_precision() -> None:
    kernels = [Kernel(K.LINEAR, 1, 64, 64, precision=precision) for precision in Precision]
    timings = list(timing.time_kernels(kernels, TARGET, compile_processes=1))
    assert {item.kernel for item in timings} == set(kernels)
    assert all(item.latency_s > 0 for item in timings)


@pytest.mark.parametrize("precision", LOWER)
def test_kernels_without_weights_compute_in_fp32(precision: Precision) -> None:
    kernels = [
        Kernel(K.SCORES, 3, 9, 16, precision=precision),
        Kernel(K.SOFTMAX, 3, 9, op="softmax", precision=precision),
    ]
    _, made = chains.chain_module([(kernel, 1) for kernel in kernels], TARGET)
    assert all(operand.dtype == "float32" for chain in made for operand in chain.operands)


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel(K.CONV, 36, 40, 3 * 16, window=4, stride=4, precision=Precision.INT8),
        Kernel(K.DEPTHWISE_CONV, 64, 24, 9, window=3, precision=Precision.FP16),
        Kernel(K.GATHER, 7, 40, 50, op="embedding", precision=Precision.INT4),
    ],
    ids=str,
)
def test_other_weights_of_lower_precision_raise(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="fp32 only so far"):
        chains.chain_module([(kernel, 1)], TARGET)


@pytest.mark.parametrize(
    ("target", "precision", "match"),
    [
        (
            {"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "sifive-u74", "mabi": "lp64d"},
            "fp16",
            "converts fp16",
        ),
        ({"kind": "llvm", "mcpu": "x86-64"}, "fp16", "converts fp16"),
        ({"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "spacemit-x60", "mabi": "lp64d"}, "int8", "RISC-V"),
        (TARGET, "fp32", "no packing"),
    ],
)
def test_what_a_target_cannot_compute_raises(target: Mapping[str, object], precision: str, match: str) -> None:
    with pytest.raises(CostError, match=match):
        Packing.of(Precision(precision), tvm_target(target))
