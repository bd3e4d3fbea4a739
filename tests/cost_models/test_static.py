"""Static estimation: the walk through compiled code, cycles, and what is made of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from cost_models.errors import CostError
from cost_models.static import Counted, static_seconds
from cost_models.tiles import Machine
from cost_models.tvm import mca
from cost_models.tvm.code import KernelCode, compile_code
from cost_models.tvm.machine import machine_of, tvm_target
from cost_models.tvm.walk import functions, walk
from hardware_profiles import ProfileError, load, names
from hardware_profiles.cores import core_type, core_types
from search_spaces import Kernel, KernelKind

NEON = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
AVX512 = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"}

NESTED = """
define i32 @nested(i32 %dev, ptr noalias %x) {
entry:
  %got = tail call ptr @alloc(i32 1)
  %none = icmp eq ptr %got, null
  br i1 %none, label %fail, label %outer
fail:
  ret i32 -1
outer:                                            ; preds = %outer.end, %entry
  %i = phi i64 [ 0, %entry ], [ %i.next, %outer.end ]
  br label %inner
inner:
  %j = phi i64 [ 0, %outer ], [ %j.next, %inner ]
  %j.next = add nuw nsw i64 %j, 2
  %done = icmp eq i64 %j.next, 14
  br i1 %done, label %middle, label %inner
middle:
  %odd = and i64 %i, 1
  %is.odd = icmp ne i64 %odd, 0
  br i1 %is.odd, label %rare, label %outer.end
rare:
  br label %outer.end
outer.end:
  %i.next = add nuw nsw i64 %i, 1
  %last = icmp ult i64 %i.next, 3
  br i1 %last, label %outer, label %end
end:
  %freed = tail call i32 @free(ptr %got)
  %bad = icmp ne i32 %freed, 0
  br i1 %bad, label %fail, label %fine
fine:
  switch i64 %i.next, label %fail [
    i64 2, label %fail
    i64 3, label %out
  ], !prof !1
out:
  ret i32 0
}
"""


def walked(text: str) -> list[tuple[str, int]]:
    (function,) = functions(text)
    return walk(function)


def test_the_walk_counts_what_runs() -> None:
    turn = [("outer", 1), ("inner", 7), ("middle", 1)]
    even, odd = [*turn, ("outer.end", 1)], [*turn, ("rare", 1), ("outer.end", 1)]
    assert walked(NESTED) == [("entry", 1), *even, *odd, *even, ("end", 1), ("fine", 1), ("out", 1)]


def test_integers_in_memory_are_zero_and_a_branch_on_other_data_is_refused() -> None:
    text = NESTED.replace("%odd = and i64 %i, 1", "%odd = load i64, ptr %x, align 8")
    assert ("rare", 1) not in walked(text)
    text = NESTED.replace("%odd = and i64 %i, 1", "%f = load float, ptr %x\n  %odd = fptosi float %f to i64")
    with pytest.raises(CostError, match="nothing decides the branch behind middle"):
        walked(text)


@pytest.mark.parametrize("target", [AVX512, NEON], ids=["avx512", "neon"])
def test_multiply_adds_of_the_code_are_those_of_the_kernel(target: dict[str, object]) -> None:
    """The truth is the shape: padded multiply-adds over the vector's width."""
    kernel = Kernel(KernelKind.LINEAR, 16, 96, 40)
    (code,) = compile_code([kernel], target)
    lanes = machine_of(tvm_target(target)).lanes
    mnemonics = ("vfmadd", "fmla")
    found = sum(times * sum(line.startswith(mnemonics) for line in code.blocks[block]) for block, times in code.trace)
    assert found == 16 * 96 * 40 / lanes


def test_padding_is_counted() -> None:
    counts = []
    for n in (16, 17, 32):
        (code,) = compile_code([Kernel(KernelKind.LINEAR, 8, n, 64)], AVX512)
        counts.append(sum(times * sum(line.startswith("vfmadd") for line in code.blocks[b]) for b, times in code.trace))
    assert counts == [8 * 64, 2 * 8 * 64, 2 * 8 * 64]  # a panel holds 16 columns


def test_llvm_mca_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CostError, match="apt install llvm-19"):
        mca.mca_path()


def has_mca() -> bool:
    try:
        mca.mca_path()
    except CostError:
        return False
    return True


@pytest.mark.skipif(not has_mca(), reason="llvm-mca 19 is not installed")
def test_cycles_are_near_the_cores_peak() -> None:
    """A Cortex-A72 computes 8 operations a cycle at best; a large product should come near."""
    kernel = Kernel(KernelKind.LINEAR, 32, 128, 128)
    codes = compile_code([kernel, Kernel(KernelKind.SOFTMAX, 9, 9, op="softmax")], NEON)
    product, softmax = mca.cycles(codes, "cortex-a72")
    assert 6.5 <= kernel.ops / product <= 8.0
    assert 200 < softmax < 20_000


def test_a_long_trace_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a simulator that takes a cycle an instruction, the plan must give the number of instructions."""
    blocks = {"a": ("x",) * 7, "b": ("y",) * 11, "c": ("z",) * 3}
    trace = (("c", 1), *((("a", 1), ("b", 90)) * 400), ("c", 1))
    code = KernelCode(Kernel(KernelKind.LINEAR, 1, 1, 1), "x86_64", blocks, trace, 0)
    monkeypatch.setattr(mca, "_simulate", lambda regions, triple, core: [float(len(lines)) for lines in regions])
    assert mca.cycles([code], "any")[0] == pytest.approx(code.instructions, rel=1e-9)


def test_static_seconds_keep_the_laws() -> None:
    profile = load("raspberry-pi-4")
    machine = Machine(lanes=4, registers=32)
    small, large = Kernel(KernelKind.LINEAR, 8, 64, 64), Kernel(KernelKind.LINEAR, 1, 2048, 2048)
    few, many, streamed = static_seconds(
        [Counted(small, 1e4, 0), Counted(small, 1e6, 0), Counted(large, 1.0, 0)], profile, machine
    )
    assert few < many
    assert many > 1e6 / profile.cpu.fastest.clock_hz.value / profile.threads.value
    # its 16 MiB of weights come from memory, and no kernel is faster than the peak
    assert streamed >= large.weight_bytes / profile.bandwidth_bytes_per_s.value
    assert streamed >= large.ops / profile.formula_peak_ops_per_s
    assert np.all(np.isfinite([few, many, streamed]))


def test_every_cpu_profile_has_a_core_type() -> None:
    for name in names():
        profile = load(name)
        if profile.runs_on == "cpu" and name != "host":
            core = core_type(profile.llvm_cpu)
            assert (core.l3_bytes_per_cycle is not None) or profile.caches.l3_bytes is None, name
    assert all(math.isfinite(core.l2_bytes_per_cycle.value) for core in core_types().values())
    with pytest.raises(ProfileError, match="did you mean 'cortex-a72'"):
        core_type("cortex-a722")
