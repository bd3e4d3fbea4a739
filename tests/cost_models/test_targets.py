"""Every shipped device's TVM target is one that TVM's own LLVM compiles for, not one that it quietly replaces."""

from __future__ import annotations

import pytest
import tvm
from tvm import te
from tvm.target import Target, codegen

from cost_models.tvm.machine import tvm_target
from hardware_profiles import Profile, load
from hardware_profiles.catalog import SHIPPED

DEVICES = sorted(folder.name for folder in SHIPPED.iterdir())


def cpu_target(profile: Profile) -> Target:
    """The target of the device's processor, which hosts the GPU where there is one."""
    if profile.runs_on == "cpu":
        return tvm_target(profile.tvm_target)
    host = Target(dict(profile.tvm_target)).host
    assert host is not None
    return host


def compile_for(target: Target) -> str:
    x = te.placeholder((64,), name="x")
    doubled = te.create_prim_func([x, te.compute((64,), lambda i: x[i] * 2.0, name="doubled")])
    return str(tvm.compile(doubled, target=target).mod.inspect_source("asm"))


@pytest.mark.parametrize("name", DEVICES)
def test_llvm_knows_the_processor_and_compiles_for_it(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert "main" in compile_for(cpu_target(load(name)))
    assert "is not valid" not in capfd.readouterr().err


def test_an_unknown_processor_would_be_told(capfd: pytest.CaptureFixture[str]) -> None:
    compile_for(Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a7600"}))
    assert "is not valid" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["snapdragon-8-gen-2", "snapdragon-8-gen-3"])
def test_withheld_vectors_are_off(name: str) -> None:
    features = set(codegen.llvm_get_cpu_features(cpu_target(load(name))))
    assert {"i8mm", "dotprod", "fullfp16"} <= features
    assert not {"sve", "sve2"} & features
