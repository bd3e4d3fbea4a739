"""The timing kit: what it computes on another processor, what it writes, and how it goes on."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cost_models import table
from cost_models.errors import CostError
from cost_models.tvm.kit import PROGRAM, RESULTS, compile_kit, write_kit
from search_spaces import Kernel, KernelKind

KERNELS = [
    Kernel(KernelKind.LINEAR, 9, 48, 96, epilogue=("bias", "gelu")),
    Kernel(KernelKind.LINEAR, 1, 64, 32),
    Kernel(KernelKind.SCORES, 3, 20, 16, batch=2),
    Kernel(KernelKind.SCORES, 40, 40, 16, batch=2),
    Kernel(KernelKind.VALUES, 9, 16, 20, batch=2),
    Kernel(KernelKind.SOFTMAX, 9, 20, batch=2, op="softmax"),
    Kernel(KernelKind.NORM, 9, 48, op="rms_norm"),
    Kernel(KernelKind.CONV, 36, 16, 27, window=3, epilogue=("bias", "relu")),
    Kernel(KernelKind.DEPTHWISE_CONV, 36, 16, 9, window=3),
    Kernel(KernelKind.GATHER, 5, 16, 40, op="embedding"),
]
HOST = {"kind": "llvm", "mcpu": "x86-64-v2", "mtriple": "x86_64-linux-gnu"}  # packs weights by four, as NEON
#: Weights of these are packed by the width of vectors, and operands are filled in the order of memory.
PACKED = (KernelKind.LINEAR, KernelKind.CONV)
BOARDS = {
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"},
    "riscv64": {"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "sifive-u74", "mabi": "lp64d"},
}

needs_compiler = pytest.mark.skipif(shutil.which("x86_64-linux-gnu-gcc") is None, reason="needs gcc for this machine")


def sums(program: Path, *before: str) -> np.ndarray:
    done = subprocess.run([*before, str(program), "--check"], capture_output=True, text=True, check=True)
    rows = list(csv.reader(done.stdout.splitlines()))
    assert [row[0] for row in rows] == [kernel.kind.value for kernel in KERNELS]
    return np.array([[float(cell) for cell in row[-2:]] for row in rows])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kit(KERNELS, HOST, tmp_path_factory.mktemp("here"))


@needs_compiler
@pytest.mark.parametrize("processor", BOARDS)
def test_a_board_computes_what_this_machine_does(processor: str, here: Path, tmp_path: Path) -> None:
    emulator = shutil.which(f"qemu-{processor}-static") or shutil.which(f"qemu-{processor}")
    if emulator is None or shutil.which(f"{processor}-linux-gnu-gcc") is None:
        pytest.skip(f"needs qemu-user and gcc-{processor}-linux-gnu")
    expected = sums(here)
    assert (expected[:, 1] > 0).all()
    found = sums(compile_kit(KERNELS, BOARDS[processor], tmp_path), emulator)
    if processor == "riscv64":  # no vectors here
        alike = [kernel.kind not in PACKED for kernel in KERNELS]
        expected, found = expected[alike], found[alike]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@needs_compiler
def test_a_kit_writes_a_table_of_kernels_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    archive = tmp_path / "kit.tar"
    write_kit(KERNELS[:3], HOST, "my-board", "My board", archive)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    folder = tmp_path / "my-board-kit"
    assert "nas device calibrate my-board" in (folder / "README.txt").read_text()
    subprocess.run([folder / PROGRAM], cwd=folder, check=True, capture_output=True)
    results = folder / RESULTS
    rows = table.read(results)
    assert list(rows) == KERNELS[:3]
    assert all(1e-8 < row.latency_s <= row.repeat_s < 1e-2 for row in rows.values())

    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:2]) + lines[2][:30])  # killed within a line
    subprocess.run([folder / PROGRAM], cwd=folder, check=True, capture_output=True)
    again = results.read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2]
    assert len(again) == 5  # the cut line stays, its kernel is timed anew


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CostError, match="apt install gcc-aarch64-linux-gnu"):
        compile_kit(KERNELS, BOARDS["aarch64"], tmp_path)
