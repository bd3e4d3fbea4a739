"""A second, independent count of operations, of the torch network; our own count comes from the config."""

from __future__ import annotations

import math
import warnings
from typing import Any

from search_spaces import Phase, VLMConfig, Workload
from search_spaces.kernels import MATRIX_KINDS

#: What is counted, by graph: the phases of our own count that it covers.
COUNTED: dict[str, tuple[Phase, ...]] = {"vision": (Phase.VISION, Phase.PROJECTOR), "prefill": (Phase.PREFILL,)}
#: Operators of matrix products and convolutions; fvcore counts norms too.
_MATRIX = ("conv", "linear", "addmm", "mm", "bmm", "matmul", "einsum", "scaled_dot_product_attention")


def kernel_operations(config: VLMConfig, workload: Workload) -> dict[str, int]:
    """Operations of matrix products and convolutions in our kernels, by graph; a multiply-add is two."""
    return {
        graph: sum(
            kernel.ops * count
            for phase in phases
            for kernel, count in config.kernels(phase, workload)
            if kernel.kind in MATRIX_KINDS
        )
        for graph, phases in COUNTED.items()
    }


def fvcore_operations(config: VLMConfig, workload: Workload) -> dict[str, int]:
    """The same operations as fvcore counts them in a trace of the network, by graph; a multiply-add is two.

    The network runs once in main memory: torch 2.13 cannot trace a convolution on its meta device.
    """
    import torch

    from search_spaces.network import graphs

    with torch.random.fork_rng(devices=[]):  # the weights do not matter
        traced = graphs(config.build().eval(), workload)
    repeats = {"vision": workload.images, "prefill": 1}  # the vision graph takes one image
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # five times quicker for networks this small
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fvcore uses what torch deprecates; tracing warns of every Python number
            from fvcore.nn import FlopCountAnalysis

            for graph in COUNTED:
                analysis = FlopCountAnalysis(*traced[graph])
                analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
                analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
                by_operator = analysis.by_operator()
                found[graph] = 2 * repeats[graph] * int(sum(by_operator[name] for name in _MATRIX))
    finally:
        torch.set_num_threads(threads)
    return found


def torch_operations(config: VLMConfig, workload: Workload) -> dict[str, int]:
    """The same as torch counts them in a run on its meta device, which holds no weights: for large networks."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from search_spaces.network import graphs

    repeats, found = {"vision": workload.images, "prefill": 1}, {}
    with torch.device("meta"):
        traced = graphs(config.build().eval(), workload)
        for graph in COUNTED:
            network, inputs = traced[graph]
            with FlopCounterMode(display=False) as counter:  # its module tracker needs gradients
                network(*inputs)
            found[graph] = repeats[graph] * int(counter.get_total_flops())
    return found


def _attention(inputs: list[Any], outputs: list[Any]) -> float:
    # fvcore has no handler of its own. Multiply-adds of (B, H, T, d) x (B, H, K, d) and (B, H, T, K) x (B, H, K, v).
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return float(math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]))
