"""NAS-Bench-201's space on CIFAR-10 (arXiv:2001.00326): a cell of six edges, fifteen times, five choices an edge.

Batch normalisation is folded into the convolutions. What no live path from the cell's input to its output runs through
is not computed: compilers drop it; a framework that runs edge by edge computes it all the same (`every_edge`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search_spaces import Kernel, KernelKind

IMAGE_PX = 32
CLASSES = 10
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, pixels along a side
CELLS = 5
#: (from, to) of each edge in the order of the architectures' indices; nodes 0 to 3, 0 is the cell's input.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
_LAST = 3


@dataclass(frozen=True, slots=True)
class NB201:
    """One network: an index into `OPERATORS` an edge."""

    operators: tuple[int, ...]

    def live(self) -> tuple[bool, ...]:
        """Whether each edge lies on a path from the cell's input to its output."""
        reached, used = {0}, {_LAST}
        for edge, operator in zip(EDGES, self.operators, strict=True):
            if operator and edge[0] in reached:
                reached.add(edge[1])
        for edge, operator in reversed(list(zip(EDGES, self.operators, strict=True))):
            if operator and edge[1] in used:
                used.add(edge[0])
        return tuple(
            bool(operator) and edge[0] in reached and edge[1] in used
            for edge, operator in zip(EDGES, self.operators, strict=True)
        )

    def kernels(self, *, every_edge: bool = False) -> Iterator[tuple[Kernel, int]]:
        """Kernels of one image, and how often each runs."""
        channels, side = STAGES[0]
        yield _conv(side, channels, 3, 3), 1
        for stage, (wide, pixels) in enumerate(STAGES):
            if stage:
                yield _conv(pixels, wide, channels, 3, stride=2), 1
                yield _conv(pixels, wide, wide, 3, epilogue=("bias", "residual")), 1
                yield Kernel(KernelKind.POOLING, pixels**2, channels, 4, window=2, stride=2, op="average"), 1
                yield Kernel(KernelKind.LINEAR, pixels**2, wide, channels), 1
            for kernel, count in self._cell(wide, pixels, every_edge=every_edge):
                yield kernel, count * CELLS
            channels, side = wide, pixels
        yield Kernel(KernelKind.POOLING, 1, channels, side**2, op="average"), 1
        yield Kernel(KernelKind.LINEAR, 1, CLASSES, channels, epilogue=("bias",)), 1

    def _cell(self, channels: int, side: int, *, every_edge: bool) -> Iterator[tuple[Kernel, int]]:
        runs = [bool(operator) for operator in self.operators] if every_edge else self.live()
        arriving = [0] * (_LAST + 1)
        for (_, node), operator, on in zip(EDGES, self.operators, runs, strict=True):
            if not on:
                continue
            arriving[node] += 1
            if OPERATORS[operator] == "nor_conv_3x3":
                yield _conv(side, channels, channels, 3), 1
            elif OPERATORS[operator] == "nor_conv_1x1":
                yield Kernel(KernelKind.LINEAR, side**2, channels, channels, epilogue=("bias", "relu")), 1
            elif OPERATORS[operator] == "avg_pool_3x3":
                yield Kernel(KernelKind.POOLING, side**2, channels, 9, window=3, stride=1, op="average"), 1
        sums = sum(max(count - 1, 0) for count in arriving)
        if sums:
            yield Kernel(KernelKind.ELEMENTWISE, side**2, channels, 2, op="add"), sums


def _conv(
    side: int, wide: int, channels: int, window: int, stride: int = 1, epilogue: tuple[str, ...] = ("bias", "relu")
) -> Kernel:
    depth = channels * window**2
    return Kernel(KernelKind.CONV, side**2, wide, depth, window=window, stride=stride, epilogue=epilogue)
