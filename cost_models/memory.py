"""Activations that live at the same time; with weights and KV cache they are a request's peak memory."""

from __future__ import annotations

from collections.abc import Iterable

from search_spaces import Kernel


def live_activation_bytes(kernels: Iterable[Kernel]) -> float:
    """Largest bytes of activations alive at once: a kernel's inputs and outputs beside the residual stream.

    The residual stream is the output of the kernels that add it; it is alive while every other kernel runs.
    """
    held, needs = 0.0, []
    for kernel in kernels:
        residual = "residual" in kernel.epilogue
        if residual:
            held = max(held, kernel.outputs * kernel.precision.activation_bytes)
        needs.append((kernel.activation_bytes, residual))
    return max((size if residual else size + held for size, residual in needs), default=0.0)
