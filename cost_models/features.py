"""What a predictor of a kernel's seconds knows: families, what each is priced by, and what the rest may hang on.

Both know how the kernel is cut into register tiles (tiles.py) and from which cache its operands come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cost_models.tiles import Machine, Tiling, takes_dots, tiling
from hardware_profiles import Profile
from search_spaces import Kernel, KernelKind

#: Epilogues with an exponential inside.
_TRANSCENDENTAL = frozenset({"gelu", "silu"})
_PACKED = frozenset({KernelKind.LINEAR, KernelKind.CONV})
_LINE_VALUES = 16  # fp32 values of a 64-byte cache line


@dataclass(frozen=True)
class Core:
    """What features need of a device: its vector unit and the bytes of each cache level."""

    machine: Machine
    cache_bytes: tuple[int, ...]
    _known: dict[Kernel, tuple[tuple[float, ...], tuple[float, ...]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def of(cls, profile: Profile, machine: Machine) -> Core:
        """The core of a profile."""
        caches = profile.caches
        levels = [caches.l1_bytes.value, caches.l2_bytes.value]
        return cls(machine, (*levels, caches.l3_bytes.value) if caches.l3_bytes else tuple(levels))

    def level(self, size_bytes: float) -> int:
        """The cache level that holds this many bytes, 0 is the first; past the last it is the memory's number."""
        return sum(size_bytes > size for size in self.cache_bytes)

    def matrices(self, kernels: Sequence[Kernel]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(terms, features) of kernels, a row each."""
        for kernel in kernels:
            if kernel not in self._known:
                tiles = tiling(kernel, self.machine)
                self._known[kernel] = _terms(kernel, tiles, self), _features(kernel, tiles)
        terms, features = zip(*(self._known[kernel] for kernel in kernels), strict=True)
        return np.array(terms), np.array(features)


def family(kernel: Kernel, machine: Machine) -> str:
    """Kernels that one code path computes: they share prices and a process."""
    words = [kernel.kind.value, kernel.op]
    if kernel.kind is KernelKind.LINEAR:
        words.append("one row" if kernel.m == 1 else "")
    if kernel.kind is KernelKind.SCORES:
        words.append("few rows" if takes_dots(kernel.m, kernel.k, machine) else "")
    if kernel.kind is KernelKind.VALUES:
        words.append("few rows" if kernel.m <= 4 else "")
    if kernel.kind is KernelKind.CONV:
        words.append("patches" if kernel.window == kernel.stride else "")
    if kernel.precision.value != "fp32":
        words.append(kernel.precision.value)
    return " ".join(filter(None, words))


#: Kernels with fewer bytes of weights are timed with these in a cache (see timing.py), those with more from memory.
TIMED_IN_CACHE = 2**20


def cached_weight_bytes(kernel: Kernel) -> float:
    """Weights that a call reads, where the kernel's own seconds say what that takes from a cache, not from memory."""
    return kernel.weight_bytes if kernel.weight_bytes < TIMED_IN_CACHE else 0.0


def traffic_bytes(kernel: Kernel, tiles: Tiling, core: Core) -> list[float]:
    """Bytes that a call moves from each cache level, the first first and memory last; weights read first excluded.

    A tile re-reads its panel of weights for each row tile, and its rows for each panel: from the smallest level that
    holds what is read between.
    """
    moved = [0.0] * (len(core.cache_bytes) + 1)

    def move(size_bytes: float, held_bytes: float) -> None:
        moved[core.level(held_bytes)] += size_bytes

    move(kernel.activation_bytes, kernel.activation_bytes)
    if kernel.kind in _PACKED:
        panel_bytes = kernel.k * tiles.width * tiles.vectors * kernel.precision.bytes
        input_bytes = kernel.inputs * kernel.precision.activation_bytes
        tile_bytes = tiles.rows * kernel.k * kernel.precision.activation_bytes
        move(kernel.weight_bytes * (tiles.row_tiles - 1), panel_bytes + tile_bytes)
        move(input_bytes * (tiles.column_tiles - 1), input_bytes + panel_bytes)
    return moved


def _terms(kernel: Kernel, tiles: Tiling, core: Core) -> tuple[float, ...]:
    """What a call is priced by, scaled to be of order one for a microsecond of work; each has a price of at least 0."""
    _, second, *beyond = traffic_bytes(kernel, tiles, core)
    exponentials = sum(name in _TRANSCENDENTAL for name in kernel.epilogue)
    return (
        1e-6,
        tiles.multiply_adds * 1e-9,
        tiles.steps * tiles.depth * 1e-9,
        tiles.steps * 1e-8,
        kernel.weight_bytes * 1e-10,
        second * 1e-10,
        sum(beyond) * 1e-10,
        kernel.outputs * exponentials * 1e-9,
        kernel.outputs * 1e-9,
    )


def _features(kernel: Kernel, tiles: Tiling) -> tuple[float, ...]:
    epilogue = set(kernel.epilogue)
    padded_rows = tiles.row_tiles * tiles.rows / (kernel.m * kernel.batch)
    padded_columns = max(tiles.column_tiles * tiles.vectors * tiles.width / kernel.n, 1.0)
    return (
        *map(math.log, (kernel.m, kernel.n, kernel.k, kernel.batch)),
        *map(math.log, (tiles.rows, tiles.vectors, tiles.width)),
        math.log(padded_rows) if kernel.kind in (KernelKind.LINEAR, KernelKind.SCORES, KernelKind.VALUES) else 0.0,
        math.log(padded_columns),
        math.log(kernel.window),
        math.log(kernel.stride),
        *(float(name in epilogue) for name in ("bias", "gelu", "silu", "multiply", "mask")),
        float(bool(epilogue & {"residual", "positions"})),
        float(kernel.k % 4),
        math.log(max(kernel.weight_bytes, 1024.0)),
        math.log(kernel.activation_bytes),
        kernel.n % _LINE_VALUES / _LINE_VALUES,
        kernel.k % _LINE_VALUES / _LINE_VALUES,
    )
