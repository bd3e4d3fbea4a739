"""The same kernels in torch and onnxruntime, one thread: what the schedules of this product are measured against.

All run a row of calls with weights of their own, so that weights come from beyond the second cache level on every
side, and without epilogues, which only this product fuses. A rival's time holds its own dispatch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from search_spaces import Kernel, KernelKind

if TYPE_CHECKING:
    from torch import Tensor

_OPSET = 18


def torch_calls(kernel: Kernel, count: int) -> list[Callable[[], Tensor]]:
    """Calls of the kernel in torch, activations shared, weights a call's own; empty where torch has no single call."""
    import torch
    from torch.nn import functional as F

    m, n, k, batch = kernel.m, kernel.n, kernel.k, kernel.batch
    if kernel.kind is KernelKind.LINEAR:
        x = torch.randn(m, k)
        return [partial(F.linear, x, torch.randn(n, k)) for _ in range(count)]
    if kernel.kind is KernelKind.SCORES:
        return [partial(torch.matmul, torch.randn(batch, m, k), torch.randn(batch, n, k).mT)] * count
    if kernel.kind is KernelKind.VALUES:
        return [partial(torch.matmul, torch.randn(batch, m, k), torch.randn(batch, k, n))] * count
    if kernel.kind is KernelKind.SOFTMAX and kernel.op == "softmax":
        return [partial(torch.softmax, torch.randn(batch, m, n), -1)] * count
    if kernel.kind is KernelKind.NORM and kernel.op == "layer_norm":
        return [partial(F.layer_norm, torch.randn(m, n), (n,), torch.randn(n), torch.randn(n))] * count
    if kernel.kind is KernelKind.NORM:
        return [partial(F.rms_norm, torch.randn(m, n), (n,), torch.randn(n))] * count
    if kernel.kind in (KernelKind.CONV, KernelKind.DEPTHWISE_CONV):
        channels, groups, padding = _conv_shape(kernel)
        x = torch.randn(1, channels, kernel.side * kernel.stride, kernel.side * kernel.stride)
        shape = (n, channels // groups, kernel.window, kernel.window)
        options = {"stride": kernel.stride, "padding": padding, "groups": groups}
        return [partial(F.conv2d, x, torch.randn(shape), **options) for _ in range(count)]
    return []


def torch_runner(kernel: Kernel, count: int) -> Callable[[], None] | None:
    """One function that makes `count` calls, on one thread; None where torch has no such kernel."""
    import torch

    torch.set_num_threads(1)
    calls = torch_calls(kernel, count)
    if not calls:
        return None

    def run() -> None:
        with torch.inference_mode():
            for call in calls:
                call()

    return run


def onnx_runner(kernel: Kernel, count: int) -> Callable[[], None] | None:
    """One session of `count` nodes with weights of their own, on one thread; None where ONNX has no such operator."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    made = _onnx_node(kernel)
    if made is None:
        return None
    operator, inputs, weights, options, output = made
    rng = np.random.default_rng(0)
    nodes, initializers, outputs = [], [], []
    for index in range(count):
        own = []
        for position, shape in enumerate(weights):
            own.append(f"w{index}_{position}")
            initializers.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), own[-1]))
        names = [f"x{position}" for position in range(len(inputs))]
        domain = "com.microsoft" if operator == "FusedMatMul" else ""
        nodes.append(helper.make_node(operator, names + own, [f"y{index}"], domain=domain, **options))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, output))
    given = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(inputs)]
    graph = helper.make_graph(nodes, "kernel", given, outputs, initializers)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = session_options.inter_op_num_threads = 1
    session_options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), session_options, providers=["CPUExecutionProvider"])
    binding, held = session.io_binding(), []
    for i, shape in enumerate(inputs):
        held.append(ort.OrtValue.ortvalue_from_numpy(rng.standard_normal(shape).astype(np.float32)))
        binding.bind_ortvalue_input(f"x{i}", held[-1])
    for index in range(count):
        held.append(ort.OrtValue.ortvalue_from_numpy(np.empty(output, np.float32)))
        binding.bind_ortvalue_output(f"y{index}", held[-1])

    def run(keep: Sequence[Any] = held) -> None:
        del keep
        session.run_with_iobinding(binding)

    return run


_Node = tuple[str, list[tuple[int, ...]], list[tuple[int, ...]], dict[str, Any], tuple[int, ...]]


def _onnx_node(kernel: Kernel) -> _Node | None:
    """(operator, shapes of shared inputs, of own weights, attributes, shape of the output)."""
    m, n, k, batch = kernel.m, kernel.n, kernel.k, kernel.batch
    if kernel.kind is KernelKind.LINEAR:
        return "MatMul", [(m, k)], [(k, n)], {}, (m, n)
    if kernel.kind is KernelKind.SCORES:
        return "FusedMatMul", [(batch, m, k), (batch, n, k)], [], {"transB": 1}, (batch, m, n)
    if kernel.kind is KernelKind.VALUES:
        return "MatMul", [(batch, m, k), (batch, k, n)], [], {}, (batch, m, n)
    if kernel.kind is KernelKind.SOFTMAX and kernel.op == "softmax":
        return "Softmax", [(batch, m, n)], [], {"axis": -1}, (batch, m, n)
    if kernel.kind is KernelKind.NORM and kernel.op == "layer_norm":
        return "LayerNormalization", [(m, n)], [(n,), (n,)], {"axis": -1}, (m, n)
    if kernel.kind in (KernelKind.CONV, KernelKind.DEPTHWISE_CONV):
        channels, groups, padding = _conv_shape(kernel)
        size = kernel.side * kernel.stride
        window = (kernel.window, kernel.window)
        options = {"strides": [kernel.stride] * 2, "pads": [padding] * 4, "group": groups, "kernel_shape": window}
        return (
            "Conv",
            [(1, channels, size, size)],
            [(n, channels // groups, *window)],
            options,
            (1, n, kernel.side, kernel.side),
        )
    return None


def _conv_shape(kernel: Kernel) -> tuple[int, int, int]:
    """(channels in, groups, padding)."""
    groups = kernel.n if kernel.kind is KernelKind.DEPTHWISE_CONV else 1
    padding = 0 if kernel.window == kernel.stride else kernel.window // 2
    return (kernel.n if groups > 1 else kernel.k // kernel.window**2), groups, padding


def geomean(values: Sequence[float]) -> float:
    """Geometric mean of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))
