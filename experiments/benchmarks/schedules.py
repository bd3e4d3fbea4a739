"""TVM's kernels against torch's on the shapes that the space `tiny` draws, both on one thread: prints JSON.

Both run a row of calls with weights of their own, so that weights come from beyond the second cache level on both
sides. torch's time holds its own dispatch, so the kernels under 20 us are shown apart: there the ratio flatters TVM.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial

os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = "1"

import torch
from torch import Tensor
from torch.nn import functional as F

from cost_models.tvm.passes import least_time_s
from cost_models.tvm.quiet import Canary
from cost_models.tvm.timing import chain_calls, time_kernels
from nas.kernel_choice import drawn_kernels
from nas.measure import canary_memory
from nas.workflow import device
from search_spaces import SPACES, Kernel, KernelKind, Workload

KERNELS = 120
SEED = 1  # the predictor's table is drawn with 0
#: Below this many seconds torch mostly pays its dispatch.
DISPATCH_S = 20e-6


def torch_calls(kernel: Kernel, count: int) -> list[Callable[[], Tensor]]:
    """Calls of the kernel in torch, without its epilogue: activations shared, weights a call's own.

    Empty for kinds that torch has no single call for.
    """
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
        window, stride = kernel.window, kernel.stride
        groups = n if kernel.kind is KernelKind.DEPTHWISE_CONV else 1
        channels = n if groups > 1 else k // window**2
        x = torch.randn(1, channels, kernel.side * stride, kernel.side * stride)
        options = {"stride": stride, "padding": 0 if window == stride else window // 2, "groups": groups}
        shape = (n, channels // groups, window, window)
        return [partial(F.conv2d, x, torch.randn(shape), **options) for _ in range(count)]
    return []


def main() -> None:
    """Print the ratio of times by kind: geometric mean, worst, and share within 1.3 x."""
    torch.set_num_threads(1)
    profile, workload = device("host"), Workload(prompt_tokens=10, new_tokens=2)
    drawn = drawn_kernels(SPACES["tiny"], workload, KERNELS, profile, SEED)
    plain = [kernel for kernel in drawn if torch_calls(kernel, 1)]
    canary = Canary(profile.tvm_target, canary_memory(profile))
    ratios: defaultdict[str, list[float]] = defaultdict(list)
    for timing in time_kernels(plain, profile.tvm_target, memory=canary_memory(profile)):
        calls = torch_calls(timing.kernel, chain_calls(timing.kernel))

        def run_all(calls: list[Callable[[], Tensor]] = calls) -> None:
            for call in calls:
                call()

        with torch.inference_mode():
            torch_s, _ = canary.undisturbed(lambda run=run_all: least_time_s(run, runs=15, warmup=2))
        ratio = timing.latency_s / (torch_s / len(calls))
        ratios[timing.kernel.kind.value].append(ratio)
        ratios["large, over 20 us" if torch_s / len(calls) > DISPATCH_S else "small, under 20 us"].append(ratio)
        ratios["all"].append(ratio)
    told = {
        kind: {
            "kernels": len(found),
            "geomean": math.exp(statistics.fmean(map(math.log, found))),
            "worst": max(found),
            "within_1.3": sum(ratio <= 1.3 for ratio in found) / len(found),
        }
        for kind, found in sorted(ratios.items())
    }
    print(json.dumps({"tvm_over_torch": told}, indent=2))


if __name__ == "__main__":
    main()
