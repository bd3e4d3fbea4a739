"""Activations that live at the same time; with weights and KV cache they are a request's peak memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from search_spaces import Kernel


class Live(NamedTuple):
    """Bytes of activations of kernels that run in turn; `merge` joins groups."""

    own_bytes: float
    stream_bytes: float
    adding_bytes: float

    @property
    def peak_bytes(self) -> float:
        """A kernel's inputs and outputs beside the residual stream, which is alive while every kernel runs."""
        return max(self.own_bytes + self.stream_bytes, self.adding_bytes)


def live(kernels: Iterable[Kernel]) -> Live:
    """Largest activations of kernels that leave the residual stream alone, of the stream, and of those that add it."""
    own = stream = adding = 0.0
    for kernel in kernels:
        if "residual" in kernel.epilogue:
            stream = max(stream, kernel.outputs * kernel.precision.activation_bytes)
            adding = max(adding, kernel.activation_bytes)
        else:
            own = max(own, kernel.activation_bytes)
    return Live(own, stream, adding)


def merge(parts: Iterable[Live]) -> Live:
    """Groups of one phase, run in turn."""
    return Live(*map(max, zip(*parts, strict=True)))
