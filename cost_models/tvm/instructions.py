"""Instructions for numbers narrower than fp32: which ones a target has, and those that schedules must name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.target import Target, codegen
from tvm.tirx import PrimFunc

#: Bytes that one step of such an instruction multiplies and adds for each 32-bit lane.
TERMS = 4


@dataclass(frozen=True, slots=True)
class Dot:
    """Dot products of four bytes, activations (u8 or s8) times weights (s8), added to each of some 32-bit lanes."""

    intrinsic: str
    lanes: int
    unsigned: bool  # activations

    @property
    def activation(self) -> str:
        """Type of the activations."""
        return "uint8" if self.unsigned else "int8"

    @property
    def zero(self) -> int:
        """The byte that stands for an activation of zero."""
        return 128 if self.unsigned else 0

    def register(self) -> str:
        """Make the instruction known to schedules; returns its name there."""
        return _register(self)


def dot_of(target: Target) -> Dot | None:
    """The widest instruction for dot products of bytes that a target has."""
    if codegen.target_has_features("avx512vnni", target):
        return Dot("llvm.x86.avx512.vpdpbusd.512", 16, unsigned=True)
    if codegen.target_has_features("avxvnni", target):
        return Dot("llvm.x86.avx512.vpdpbusd.256", 8, unsigned=True)
    if codegen.target_has_features("dotprod", target):
        return Dot("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, unsigned=False)
    return None


def computes_fp16(target: Target) -> bool:
    """Whether a target multiplies and adds fp16 numbers, rather than only store them."""
    return any(codegen.target_has_features(name, target) for name in ("fullfp16", "avx512fp16"))


def converts_fp16(target: Target) -> bool:
    """Whether a target turns fp16 into fp32 in an instruction, rather than in a function call a number."""
    if str(target.attrs.get("mtriple", "")).startswith(("aarch64", "arm64")):
        return True
    return any(codegen.target_has_features(name, target) for name in ("f16c", "avx512f", "zfhmin", "zfh"))


def has_scalable_vectors_only(target: Target) -> bool:
    """Whether LLVM lowers vectors to RISC-V's, where it ends the process over those of bytes."""
    riscv = str(target.attrs.get("mtriple", "")).startswith("riscv")
    return riscv and bool(codegen.target_has_features("v", target))


@cache
def _register(dot: Dot) -> str:
    name = f"edge_vlm_nas.{dot.intrinsic}"
    TensorIntrin.register(name, _meaning(dot), _instruction(dot), override=True)
    return name


def _meaning(dot: Dot) -> PrimFunc:
    lanes, activation = dot.lanes, dot.activation

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator, unused-ignore]
    def meaning(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), activation, offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), "int8", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i, k in T.grid(lanes, 4):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return meaning


def _instruction(dot: Dot) -> PrimFunc:
    lanes, activation = dot.lanes, dot.activation
    intrinsic = codegen.llvm_lookup_intrinsic_id(dot.intrinsic)
    sums, four, weights = f"int32x{lanes}", f"{activation}x4", f"int8x{4 * lanes}"
    # LLVM's declaration of vpdpbusd took vectors of 32-bit integers up to version 21, and takes bytes since.
    by_words = dot.unsigned and codegen.llvm_version_major() < 22
    left = sums if by_words else f"{activation}x{4 * lanes}"
    right = sums if by_words else weights

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator, unused-ignore]
    def instruction(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), activation, offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), "int8", offset_factor=1)
        C = T.match_buffer(c, (lanes,), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                intrinsic,
                C.vload([0], sums),
                T.reinterpret(T.broadcast(T.reinterpret(A.vload([0], four), dtype="int32"), lanes), dtype=left),
                T.reinterpret(B.vload([0, 0], weights), dtype=right),
                dtype=sums,
            )

    return instruction
