"""The tile rules against an exhaustive search of register tiles, by counted cycles of each core: prints JSON.

    python -m experiments.benchmarks.tiles [PROFILE ...]

A kernel of whole tiles is compiled for each tile of a family, and its cycles a vector multiply-add are counted by
llvm-mca; `rule` is what the tile of tiles.py takes on kernels of that many rows, beside the best of all tiles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any
from unittest import mock

from cost_models.errors import CostError
from cost_models.tiles import Machine, product_tile, values_tile, window_tile
from cost_models.tvm import products
from cost_models.tvm.code import compile_code
from cost_models.tvm.machine import machine_of, tvm_target
from cost_models.tvm.mca import cycles
from hardware_profiles import Profile, load
from hardware_profiles.cores import core_type
from search_spaces import Kernel, KernelKind

#: A profile for each core that shipped static tables count on.
PROFILES = (
    "raspberry-pi-3b-plus",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "snapdragon-888",
    "apple-m1",
    "intel-n100",
    "visionfive-2",
)
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 14)
VECTORS = (1, 2, 3, 4, 6, 8)
_RULES = {KernelKind.LINEAR: "product_tile", KernelKind.VALUES: "values_tile", KernelKind.DEPTHWISE_CONV: "window_tile"}
_DEPTH = 128


def main() -> None:
    """Search every family on every core."""
    found: dict[str, Any] = {}
    with ProcessPoolExecutor() as pool:
        for name in sys.argv[1:] or PROFILES:
            for kind in _RULES:
                tiles = list(_tiles(kind, _machine(load(name))))
                counts = pool.map(partial(cycles_a_multiply_add, name, kind), *zip(*tiles, strict=True))
                by_tile = {tile: count for tile, count in zip(tiles, counts, strict=True) if count is not None}
                found.setdefault(name, {})[kind.value] = agreement(kind, by_tile, _machine(load(name)))
                print(name, kind.value, found[name][kind.value], file=sys.stderr)
    print(json.dumps(found, indent=1))


def cycles_a_multiply_add(name: str, kind: KernelKind, rows: int, vectors: int) -> float | None:
    """Counted cycles of a kernel of whole tiles, by vector multiply-adds; None where it cannot be counted."""
    profile = load(name)
    machine = _machine(profile)
    for cached in (products.linear, products.values, products.depthwise):
        cached.cache_clear()
    columns = vectors * machine.lanes * 2
    kernel = {
        KernelKind.LINEAR: Kernel(kind, rows * 3, columns, _DEPTH),
        KernelKind.VALUES: Kernel(kind, rows * 3, columns, _DEPTH),
        KernelKind.DEPTHWISE_CONV: Kernel(kind, (rows * 2) ** 2, columns, 9, window=3, stride=1),
    }[kind]
    target = {key: value for key, value in profile.tvm_target.items() if key != "num-cores"}
    with mock.patch.object(products, _RULES[kind], return_value=(rows, vectors)):
        try:
            counted = cycles(compile_code([kernel], target), core_type(profile.llvm_cpu).mca)[0]
        except CostError:
            return None
    return counted / (kernel.m * columns / machine.lanes * kernel.k)


def agreement(kind: KernelKind, by_tile: dict[tuple[int, int], float], machine: Machine) -> dict[str, Any]:
    """The best tile of all, and by rows of a kernel what the rule's tile takes over the best that fits them."""
    best = min(by_tile, key=lambda tile: by_tile[tile])
    ratios = {}
    for rows in (4, 8, 12, 24):
        ruled = _ruled(kind, rows, machine)
        if ruled in by_tile:
            fitting = min(count for tile, count in by_tile.items() if rows % tile[0] == 0)
            ratios[rows] = {"tile": ruled, "over_best": round(by_tile[ruled] / fitting, 3)}
    return {"best": best, "cycles": round(by_tile[best], 3), "rule": ratios}


def _ruled(kind: KernelKind, rows: int, machine: Machine) -> tuple[int, int]:
    vectors = 24  # every width divides them
    if kind is KernelKind.LINEAR:
        return product_tile(rows, vectors, machine)
    if kind is KernelKind.VALUES:
        return values_tile(rows, vectors * machine.lanes, machine)
    return window_tile(rows, vectors * machine.lanes, machine)


def _tiles(kind: KernelKind, machine: Machine) -> Iterator[tuple[int, int]]:
    for rows in ROWS:
        for vectors in VECTORS:
            if rows * vectors <= machine.accumulators and (kind is not KernelKind.DEPTHWISE_CONV or rows <= 8):
                yield rows, vectors


def _machine(profile: Profile) -> Machine:
    return machine_of(tvm_target(profile.tvm_target))


if __name__ == "__main__":
    main()
