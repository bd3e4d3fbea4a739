"""Every kernel kind, compiled alone and in whole programs, computes what torch computes; timings are positive."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tvm import cpu, relax, runtime
from tvm.target import codegen

from cost_models.tiles import Machine
from cost_models.tvm import chains, compile, quiet, timing
from cost_models.tvm.machine import machine_of, tvm_target
from search_spaces.kernels import Kernel, KernelKind

# torch's own FutureWarnings inside torch.export (pytree specs), not ours to mend
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]

TARGET = {"kind": "llvm", "num-cores": 1, "mcpu": codegen.llvm_get_system_cpu()}
K = KernelKind


def unpacked(weight: Tensor, n: int) -> Tensor:
    """(panels, *k, lanes) back to (n, *k)."""
    return weight.movedim(-1, 1).flatten(0, 1)[:n]


def linear(kernel: Kernel, x: Tensor, w: Tensor) -> Tensor:
    return x @ unpacked(w, kernel.n).T


def conv(kernel: Kernel, x: Tensor, w: Tensor) -> Tensor:
    embedding = kernel.window == kernel.stride
    filters = unpacked(w, kernel.n).permute(0, 3, 1, 2)
    image = x if embedding else x.permute(0, 3, 1, 2)
    padding = 0 if embedding else kernel.window // 2
    return F.conv2d(image, filters, stride=kernel.stride, padding=padding).permute(0, 2, 3, 1)


def depthwise(kernel: Kernel, x: Tensor, w: Tensor) -> Tensor:
    filters = w.permute(2, 0, 1)[:, None]
    image = x.permute(0, 3, 1, 2)
    out = F.conv2d(image, filters, stride=kernel.stride, padding=kernel.window // 2, groups=kernel.n)
    return out.permute(0, 2, 3, 1)


def pooling(kernel: Kernel, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), kernel.side).permute(0, 2, 3, 1)


def norm(kernel: Kernel, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    if kernel.op == "rms_norm":
        return F.rms_norm(x, (kernel.n,), scale, 1e-5)
    return F.layer_norm(x, (kernel.n,), scale, shift, 1e-5)


def rope(kernel: Kernel, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    left, right = x.chunk(2, -1)
    return x * cosines + torch.cat([-right, left], -1) * sines


def transpose(kernel: Kernel, x: Tensor) -> Tensor:
    return x.transpose(1, 2)


ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "add": lambda _, *xs: sum(xs),
    "multiply": lambda _, *xs: math.prod(xs),
    "gelu": lambda _, x: F.gelu(x),
    "hardswish": lambda _, x: F.hardswish(x),
    "rope": rope,
    "transpose": transpose,
    "concat": lambda _, x, y: torch.cat([x, y], 2),
}
REFERENCES: dict[KernelKind, Callable[..., Tensor]] = {
    K.LINEAR: linear,
    K.SCORES: lambda kernel, q, k: q @ k.transpose(-1, -2) / math.sqrt(kernel.k),
    K.VALUES: lambda _, p, v: p @ v,
    K.CONV: conv,
    K.DEPTHWISE_CONV: depthwise,
    K.NORM: norm,
    K.SOFTMAX: lambda _, x, mask=0.0: (x + mask).softmax(-1),
    K.POOLING: pooling,
    K.ELEMENTWISE: lambda kernel, *xs: ELEMENTWISE[kernel.op](kernel, *xs),
    K.GATHER: lambda _, table, ids: table[ids.long()],
}
EPILOGUES: dict[str, Callable[..., Tensor]] = {
    "bias": torch.add,
    "residual": torch.add,
    "positions": torch.add,
    "multiply": torch.mul,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}
WITH_OPERAND = frozenset({"bias", "residual", "positions", "multiply"})

KERNELS = [
    Kernel(K.LINEAR, 64, 96, 48, epilogue=("bias", "gelu")),
    Kernel(K.LINEAR, 9, 72, 40, epilogue=("bias", "residual")),
    Kernel(K.LINEAR, 37, 33, 31, epilogue=("relu",)),
    Kernel(K.LINEAR, 1, 192, 64, epilogue=("silu", "multiply")),
    Kernel(K.LINEAR, 1, 36, 50),
    Kernel(K.LINEAR, 11, 192, 160, epilogue=("bias",)),  # asks for its weights ahead
    Kernel(K.SCORES, 12, 45, 24, batch=2),
    Kernel(K.SCORES, 17, 23, 24, batch=3),
    Kernel(K.SCORES, 2, 41, 32, batch=2),
    Kernel(K.SCORES, 1, 9, 16),
    Kernel(K.SCORES, 3, 7, 18, batch=2),
    Kernel(K.VALUES, 17, 24, 23, batch=3),
    Kernel(K.VALUES, 1, 40, 33, batch=2),
    Kernel(K.CONV, 36, 40, 3 * 16, window=4, stride=4, epilogue=("bias", "positions")),
    Kernel(K.CONV, 49, 24, 8 * 9, window=3, stride=1, epilogue=("bias", "hardswish")),
    Kernel(K.CONV, 64, 16, 3 * 9, window=3, stride=2, epilogue=("bias", "relu")),
    Kernel(K.CONV, 49, 24, 8, epilogue=("bias",)),
    Kernel(K.DEPTHWISE_CONV, 64, 24, 9, window=3, stride=1, epilogue=("bias", "hardswish")),
    Kernel(K.DEPTHWISE_CONV, 36, 20, 25, window=5, stride=2),
    Kernel(K.NORM, 9, 72, op="layer_norm"),
    Kernel(K.NORM, 2, 37, op="layer_norm"),
    Kernel(K.NORM, 9, 128, op="rms_norm"),
    Kernel(K.SOFTMAX, 17, 64, batch=3, op="softmax"),
    Kernel(K.SOFTMAX, 5, 7, op="softmax"),
    Kernel(K.SOFTMAX, 18, 41, batch=2, op="causal_softmax"),
    Kernel(K.POOLING, 16, 24, 4, op="average"),
    Kernel(K.POOLING, 1, 40, 36, op="average", epilogue=("hardsigmoid",)),
    Kernel(K.ELEMENTWISE, 9, 40, 2, op="add"),
    Kernel(K.ELEMENTWISE, 9, 33, 3, op="multiply"),
    Kernel(K.ELEMENTWISE, 9, 40, op="gelu"),
    Kernel(K.ELEMENTWISE, 9, 40, op="hardswish"),
    Kernel(K.ELEMENTWISE, 9, 24, 3, batch=3, op="rope"),
    Kernel(K.ELEMENTWISE, 1, 32, 3, batch=2, op="rope"),
    Kernel(K.ELEMENTWISE, 9, 24, batch=3, op="transpose"),
    Kernel(K.ELEMENTWISE, 9, 24, op="transpose"),
    Kernel(K.ELEMENTWISE, 9, 24, batch=2, op="concat"),
    Kernel(K.GATHER, 7, 40, 50, op="embedding"),
]


def relative_error(value: np.ndarray, reference: Tensor) -> float:
    wanted = reference.detach().numpy()
    assert value.size == wanted.size
    return float(abs(value.reshape(wanted.shape) - wanted).max() / abs(wanted).max())


@pytest.fixture(scope="module")
def compiled() -> tuple[relax.VirtualMachine, list[chains.Chain]]:
    module, made = chains.chain_module([(kernel, 2) for kernel in KERNELS], TARGET)
    return relax.VirtualMachine(chains.build(module, tvm_target(TARGET)), cpu()), made


@pytest.mark.parametrize("index", range(len(KERNELS)), ids=map(str, KERNELS))
def test_kernel_agrees_with_torch(compiled: tuple[relax.VirtualMachine, list[chains.Chain]], index: int) -> None:
    machine, made = compiled
    chain, kernel = made[index], KERNELS[index]
    inputs = chain.inputs(np.random.default_rng(index))
    got = machine[f"chain{index}"](*map(runtime.tensor, inputs)).numpy()
    shared = [operand for operand in chain.operands if not operand.own]
    own = [operand for operand in chain.operands if operand.own]
    # the last call of the chain is the one whose output comes back
    names = [operand.name for operand in shared + own]
    arrays = inputs[: len(shared)] + inputs[len(inputs) - len(own) :] if own else inputs
    by_name = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
    # names end in the order in which the kernel's definition asked for them: the core's operands, then the epilogue's
    ordered = [by_name[name] for name in sorted(by_name, key=lambda name: int(name.lstrip(ascii_lowercase)))]
    count = len(ordered) - sum(name in WITH_OPERAND for name in kernel.epilogue)
    reference = linear if kernel.kind is K.CONV and kernel.window == 1 else REFERENCES[kernel.kind]
    wanted, rest = reference(kernel, *ordered[:count]), iter(ordered[count:])
    for name in kernel.epilogue:
        wanted = EPILOGUES[name](wanted, *([next(rest)] if name in WITH_OPERAND else []))
    assert relative_error(got, wanted) < 1e-5


def test_every_kind_is_tested() -> None:
    assert {kernel.kind for kernel in KERNELS} == set(KernelKind)


def test_a_kernel_that_only_reshapes_raises() -> None:
    with pytest.raises(ValueError, match="gives a reshape"):
        chains.chain_module([(Kernel(K.ELEMENTWISE, 1, 32, batch=4, op="transpose"), 1)], TARGET)


def test_targets_of_other_kinds_raise() -> None:
    with pytest.raises(ValueError, match="kind llvm"):
        tvm_target({"kind": "cuda"})


@pytest.mark.parametrize(
    ("target", "machine"),
    [
        ({"kind": "llvm", "mcpu": "znver3"}, Machine(8, 16)),
        ({"kind": "llvm", "mcpu": "znver4"}, Machine(16, 32)),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}, Machine(4, 32)),
        ({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"}, Machine(4, 32, in_order=True)),
        ({"kind": "llvm", "mtriple": "riscv64-linux-gnu", "mcpu": "sifive-u74", "mabi": "lp64d"}, Machine(1, 32, True)),
    ],
)
def test_vector_units_and_schedules_for_other_targets(target: dict[str, object], machine: Machine) -> None:
    assert machine_of(tvm_target(target)) == machine
    single = Kernel(K.LINEAR, 1, 49, 3)  # a tile of one sum on a core without vectors
    module, made = chains.chain_module([(KERNELS[0], 1), (KERNELS[1], 1), (single, 1)], target)
    assert len(made) == 3
    assert chains.build(module, tvm_target(target)) is not None


def test_products_of_many_rows_ask_for_large_weights_ahead() -> None:
    asking = {
        (rows, n): "llvm.prefetch" in str(chains.fused_kernel(Kernel(K.LINEAR, rows, n, 160), tvm_target(TARGET))[0])
        for rows, n in ((1, 192), (4, 192), (16, 192), (16, 16))
    }
    assert asking == {(1, 192): False, (4, 192): False, (16, 192): True, (16, 16): False}


class Network(nn.Module):
    """One attention block with rotary positions behind a patch embedding, and a convolutional tail."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.up, self.gate, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        self.scale = nn.Parameter(torch.rand(32))
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.register_buffer("mask", torch.full((16, 16), float("-inf")).triu(1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(image).flatten(2).transpose(1, 2)  # (1, 16, 32)
        y = self.norm(x)
        q, k, v = (layer(y).reshape(1, 16, 2, 16).transpose(1, 2) for layer in self.qkv)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        x = x + attended.transpose(1, 2).reshape(1, 16, 32)
        y = F.rms_norm(x, (32,), self.scale, 1e-5)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        grid = x.transpose(1, 2).reshape(1, 32, 4, 4)
        grid = F.hardswish(self.depthwise(grid))
        grid = grid * F.hardsigmoid(F.adaptive_avg_pool2d(grid, 1))
        return F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2), F.gelu(x)


@pytest.fixture(scope="module")
def program() -> tuple[compile.CompiledProgram, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    network, image = Network().eval(), torch.randn(1, 3, 16, 16)
    exported = torch.export.export(network, (image,))
    with torch.no_grad():
        return compile.compile_program(exported, TARGET), image, network(image)


def test_a_whole_program_agrees_with_torch(
    program: tuple[compile.CompiledProgram, Tensor, tuple[Tensor, ...]],
) -> None:
    compiled_program, image, wanted = program
    outputs = compiled_program(image)
    assert [output.shape for output in outputs] == [tuple(value.shape) for value in wanted]
    for got, value in zip(outputs, wanted, strict=True):
        assert relative_error(got, value) < 1e-5


def test_a_whole_program_is_made_of_our_kernels(
    program: tuple[compile.CompiledProgram, Tensor, tuple[Tensor, ...]],
) -> None:
    names = " ".join(name for name, _ in program[0].kernel_counts())
    for kernel in ("linear", "scores", "values", "softmax", "layer_norm", "rms_norm", "conv", "depthwise", "pooling"):
        assert kernel in names
    assert "matmul" not in names
    assert "where" not in names


def test_a_program_exports_a_library(
    program: tuple[compile.CompiledProgram, Tensor, tuple[Tensor, ...]], tmp_path: object
) -> None:
    path = f"{tmp_path}/program.so"
    program[0].export_library(path)
    machine = relax.VirtualMachine(runtime.load_module(path), cpu())
    outputs = machine["main"](runtime.tensor(program[1].numpy()))
    assert relative_error(outputs[0].numpy(), program[2][0]) < 1e-5


def test_timings_arrive_for_every_kernel() -> None:
    kernels = [KERNELS[0], Kernel(K.NORM, 9, 72, op="layer_norm"), Kernel(K.SOFTMAX, 5, 7, op="softmax")]
    seen: list[tuple[int, int]] = []
    timings = list(timing.time_kernels(kernels, TARGET, progress=lambda *at: seen.append(at), compile_processes=1))
    assert {item.kernel for item in timings} == set(kernels)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all(0 < item.latency_s <= item.repeat_s for item in timings)
    assert timing.noise_floor(timings) >= 0


@pytest.mark.parametrize("times", [(1.0, 1.01), (1.0, 2.0, 1.02)])
def test_agreeing_measurements_are_stable(times: tuple[float, ...]) -> None:
    left = iter(times)
    assert timing._agreeing(lambda: next(left)) == (1.0, times[-1], True)


def test_disagreeing_measurements_are_unstable() -> None:
    left = iter((1.0, 2.0, 1.5))
    assert timing._agreeing(lambda: next(left))[2] is False


def test_the_canary_remembers_and_tells_a_disturbed_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "canary.json"
    first = quiet.Canary(TARGET, memory)
    assert json.loads(memory.read_text())["best_s"] == first.best_s
    monkeypatch.setattr(quiet, "PATIENCE_S", 0.05)
    tries = iter(range(10, 0, -1))
    canary = quiet.Canary(TARGET, memory)
    assert canary.best_s <= first.best_s
    canary.best_s /= 10  # it has been ten times as fast: everything is disturbed now
    value, undisturbed = canary.undisturbed(lambda: float(next(tries)))
    assert not undisturbed
    assert value == 10.0
    memory.write_text("{")
    assert quiet.Canary(TARGET, memory).best_s > 0
    canary.best_s = 1.0  # slower than anything: always quiet
    assert canary.undisturbed(lambda: 7.0) == (7.0, True)
