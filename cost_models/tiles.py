"""The register tile that a kernel's product gets on a core: one rule for schedules and for what predicts their time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from search_spaces import Kernel, KernelKind

#: Sums of a depthwise tile on an out-of-order NEON core.
_NEON_WINDOW = 14


@dataclass(frozen=True, slots=True)
class Machine:
    """One core's vector unit: `lanes` fp32 values a register, `registers` of them; an in-order core likes small tiles.

    The rules below are within 5 % of an exhaustive search of tiles by counted cycles, but for a few depthwise ones
    (experiments/benchmarks/tiles.py).
    """

    lanes: int
    registers: int
    in_order: bool = False

    @property
    def accumulators(self) -> int:
        """Registers a tile may occupy: the rest holds weights, a broadcast value and addresses."""
        return self.registers - 4


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel is cut: `steps` tiles of rows x vectors x width results, each summed over `depth` terms."""

    rows: int
    vectors: int
    width: int
    row_tiles: int
    column_tiles: int
    depth: int

    @property
    def steps(self) -> int:
        """Tiles in all."""
        return self.row_tiles * self.column_tiles

    @property
    def multiply_adds(self) -> int:
        """Vector multiply-adds, those of padding included."""
        return self.steps * self.rows * self.vectors * self.depth


def panels(n: int, machine: Machine) -> int:
    """Number of column panels of packed weights: a vector of columns each, the last one padded with zeros."""
    return -(-n // machine.lanes)


def vector_width(n: int, lanes: int) -> int:
    """The widest vector, a power of two up to `lanes`, that divides n."""
    return math.gcd(n, lanes)


def row_tile(rows: int, limit: int) -> int:
    """Rows of the register tile, up to `limit`, that waste least: padded rows and, a little, tile starts."""
    return min(range(1, max(limit, 1) + 1), key=lambda tile: (-(-rows // tile) * (tile + 1.0), -tile))


def product_tile(rows: int, vectors: int, machine: Machine) -> tuple[int, int]:
    """Choose (tile rows, tile vectors): enough sums in flight to hide the latency of a multiply-add."""
    most_rows = 4 if machine.in_order else 14
    enough = 8 if machine.lanes == 16 else 16 if machine.in_order and machine.lanes > 1 else 12
    best = (row_tile(rows, min(machine.accumulators, most_rows)), 1)
    for wide in (w for w in (2, 3, 4, 6, 8) if vectors % w == 0):
        narrow_enough = machine.lanes < 16 and best[1] < 2
        if best[0] * best[1] >= enough and not narrow_enough:
            break
        best = (row_tile(rows, min(machine.accumulators // wide, most_rows)), wide)
    return best


def values_tile(m: int, n: int, machine: Machine) -> tuple[int, int]:
    """Choose (tile rows, tile vectors) of an attention product with V, which is not packed."""
    columns = n // vector_width(n, machine.lanes)
    most_rows, most_vectors = (4, 4 if machine.lanes > 1 else 3) if machine.in_order else (14, 6)
    vectors = max(v for v in range(1, most_vectors + 1) if columns % v == 0)
    return row_tile(m, min(machine.accumulators // vectors, most_rows)), vectors


def window_tile(out_x: int, n: int, machine: Machine) -> tuple[int, int]:
    """Choose (tile pixels, tile vectors) of a kernel whose channels do not mix."""
    columns = n // vector_width(n, machine.lanes)
    pixels = row_tile(out_x, 1 if machine.in_order else 8)
    most_vectors = 4 if out_x == 1 else _NEON_WINDOW // pixels if machine.lanes == 4 and not machine.in_order else 1
    return pixels, max(v for v in (1, 2, 3, 4) if columns % v == 0 and v <= max(most_vectors, 1))


def takes_dots(m: int, k: int, machine: Machine) -> bool:
    """Whether scores of few queries are dot products along the head width: packing K would cost more.

    Timed on Zen 4 (dots take 0.3 to 1.0 of the time up to 16 queries); counted on AVX2 and NEON cores.
    """
    return m <= machine.lanes and vector_width(k, machine.lanes) >= 4


def tiling(kernel: Kernel, machine: Machine) -> Tiling:
    """The tiles of any kernel; row by row for those that are no products."""
    m, n, batch = kernel.m, kernel.n, kernel.batch
    if kernel.kind is KernelKind.SCORES and takes_dots(m, kernel.k, machine):
        return Tiling(1, 1, vector_width(kernel.k, machine.lanes), batch * m, n, kernel.k)
    if kernel.kind in (KernelKind.LINEAR, KernelKind.CONV, KernelKind.SCORES):
        across = kernel.side if kernel.kind is KernelKind.CONV and kernel.window * kernel.stride > 1 else m
        columns = panels(n, machine)
        rows, vectors = product_tile(across, columns, machine)
        tiles = -(-across // rows) * (m // across) * batch
        return Tiling(rows, vectors, machine.lanes, tiles, -(-columns // vectors), kernel.k)
    width = vector_width(n, machine.lanes)
    if kernel.kind is KernelKind.VALUES:
        rows, vectors = values_tile(m, n, machine)
        return Tiling(rows, vectors, width, -(-m // rows) * batch, n // width // vectors, kernel.k)
    if kernel.kind in (KernelKind.DEPTHWISE_CONV, KernelKind.POOLING):
        side = math.isqrt(m)
        rows, vectors = window_tile(side, n, machine)
        return Tiling(rows, vectors, width, -(-side // rows) * side, n // width // vectors, kernel.k)
    return Tiling(1, 1, width, batch * m, n // width, 1)
