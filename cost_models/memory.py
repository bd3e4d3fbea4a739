"""Activations that live at the same time; with weights and KV cache they are a request's peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from search_spaces import Kernel


def live_activation_bytes(kernels: Iterable[Kernel]) -> float:
    """Largest bytes of activations alive at once: a kernel's inputs and outputs beside the residual stream.

    The residual stream is the output of the kernels that add it; it is alive while every other kernel runs.
    """
    needs = [_needs(kernel) for kernel in kernels]
    held = max((stream for _, stream in needs), default=0.0)
    return max((size if stream else size + held for size, stream in needs), default=0.0)


@lru_cache(maxsize=1 << 16)
def _needs(kernel: Kernel) -> tuple[float, float]:
    """Bytes of a kernel's own activations, and of the residual stream where it adds it."""
    stream = kernel.outputs * kernel.precision.activation_bytes if "residual" in kernel.epilogue else 0.0
    return kernel.activation_bytes, stream
