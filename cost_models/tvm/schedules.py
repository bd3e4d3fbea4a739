"""One schedule rule a kernel family, applied alike to kernels alone and to whole models.

A fused function is told by the blocks it holds: `product` (sums of products, see products.py; with `partial` where they
are summed group by group, with an annotation where an instruction computes them, see quantised.py), `dot` (scores of
few queries), `rowwise_out` (see rows.py), and otherwise elementwise. Everything runs on one thread.

Products of many rows ask for their weights ahead: between two lines that they read lie so many multiply-adds that a
core does not see the next one coming, and weights that stream from memory made them up to 2.3 times slower.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, IRModule, Var
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target
from tvm.tirx import PrimFunc

from cost_models.tiles import Machine
from cost_models.tvm.machine import machine_of


def schedule(module: IRModule, target: Target) -> IRModule:
    """Schedule every tensor function of a module for one core of the target; other functions stay as they are."""
    machine = machine_of(target)
    result = IRModule(dict(module.functions_items()), global_infos=module.global_infos)
    for variable, function in module.functions_items():
        if isinstance(function, PrimFunc) and "tirx.is_scheduled" not in (function.attrs or {}):
            result.update_func(variable, schedule_function(function, machine))
    return result


def schedule_function(function: PrimFunc, machine: Machine) -> PrimFunc:
    """Schedule one tensor function by the rule of its family."""
    sch, stream = Schedule(function), None
    names = {sch.get(block).name_hint for block in _blocks(sch)}
    if "partial" in names:
        _schedule_groups(sch)
    elif "product" in names and "intrinsic" in sch.get(sch.get_sblock("product")).annotations:
        _schedule_instruction(sch)
    elif "product" in names:
        stream = _schedule_product(sch)
    elif "dot" in names:
        _schedule_dot(sch, machine)
    elif "rowwise_out" in names:
        _schedule_rows(sch, machine)
    else:
        _schedule_elementwise(sch, machine)
    scheduled = sch.mod["main"] if stream is None else _asked_ahead(sch.mod["main"], stream)
    return scheduled.with_attr("tirx.is_scheduled", True)


def _blocks(sch: Schedule) -> list[SBlockRV]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _extent(sch: Schedule, loop: LoopRV) -> int:
    return int(sch.get(loop).extent)


def _vectorize_last(sch: Schedule, block: SBlockRV, width: int, outer: int = 0) -> None:
    """Vectorise a block's innermost loop behind the `outer` first ones by `width`, or what of it divides the loop."""
    loops = sch.get_loops(block)[outer:]
    if not loops:
        return
    width = math.gcd(_extent(sch, loops[-1]), width)
    if width > 1:
        _, inner = sch.split(loops[-1], [None, width])
        sch.vectorize(inner)


def _inline_others(sch: Schedule, *kept: str) -> SBlockRV:
    """Inline every block into the last one, which is returned, but for those whose names start with one of `kept`."""
    *blocks, last = _blocks(sch)
    for block in blocks:
        if not sch.get(block).name_hint.startswith(kept):
            sch.compute_inline(block)
    return last


@dataclass(frozen=True)
class _Stream:
    """Packed weights that a product reads line after line: `terms` are read in front of loop `inner`."""

    weights: Var
    panel: Expr
    vectors: int
    terms: tuple[Expr, ...]
    inner: Var
    lines_ahead: int


def _asked_ahead(function: PrimFunc, stream: _Stream) -> PrimFunc:
    """Have weights fetched into the second cache before they are read; beyond the last one, what follows is."""
    *before, last = stream.terms
    zero = tirx.const(0, "int64")

    def ask(vector: int) -> tirx.Stmt:
        line = (stream.panel + vector, *before, last + stream.lines_ahead // stream.vectors, zero)
        address = tirx.address_of(tirx.BufferLoad(stream.weights, list(line)))
        read, second_cache, data = (tirx.const(value, "int32") for value in (0, 2, 1))
        return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, second_cache, data))

    def with_asking(loop: tirx.For) -> tirx.Stmt:
        if not loop.loop_var.same_as(stream.inner):
            return loop
        return tirx.SeqStmt([*map(ask, range(stream.vectors)), loop])

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, with_asking)))


def _schedule_product(sch: Schedule) -> _Stream | None:
    product = sch.get_sblock("product")
    annotations = sch.get(product).annotations
    rows, vectors, width = (int(annotations[key]) for key in ("tile_rows", "tile_vectors", "vector"))
    unroll = int(annotations.get("unroll", 4))
    out = _inline_others(sch, "product", "pack", "border", "widened")
    loops = sch.get_loops(product)
    reduction = [loop for loop, kind in zip(loops, _kinds(sch, product), strict=True) if kind == "reduce"]
    *outer, i, j = loops[: len(loops) - len(reduction)]
    terms = [_variable(sch, loop) for loop in reduction]
    i0, i1 = sch.split(i, [None, rows])
    j0, jv, jl = sch.split(j, [None, vectors, width])
    unrolled = []
    if math.prod(_extent(sch, loop) for loop in reduction) * rows * vectors > 160:
        k = reduction.pop()
        steps = max(d for d in range(1, unroll + 1) if _extent(sch, k) % d == 0)
        k0, k1 = sch.split(k, [None, steps])
        terms[-1] = _variable(sch, k0) * steps + _variable(sch, k1)
        reduction.append(k0)
        unrolled.append(k1)
    sch.reorder(*outer, j0, i0, *reduction, *unrolled, i1, jv, jl)
    _store_tile(sch, out, i0, width)
    sch.vectorize(jl)
    for loop in (*unrolled, i1, jv):
        sch.unroll(loop)
    _start_tile(sch, product, reduction[0])
    for block in _blocks_named(sch, "pack"):
        sch.compute_at(block, outer[0])
        sch.unroll(sch.get_loops(block)[-1])
    for block in _blocks_named(sch, "border"):
        _vectorize_last(sch, block, width)
    for block in _blocks_named(sch, "widened"):
        sch.compute_at(block, j0)
        _vectorize_last(sch, block, width)
    if "lines_ahead" not in annotations:
        return None
    weights, panel = sch.get(product).reads[-1].source, _variable(sch, j0) * vectors
    return _Stream(weights, panel, vectors, tuple(terms), _variable(sch, i1), int(annotations["lines_ahead"]))


def _variable(sch: Schedule, loop: LoopRV) -> Var:
    return sch.get(loop).loop_var


def _store_tile(sch: Schedule, out: SBlockRV, i0: LoopRV, width: int) -> None:
    """Copy the output tile by tile, where loop `i0` runs over the tiles."""
    sch.reverse_compute_at(out, i0, preserve_unit_loops=True)
    depth = next(at for at, loop in enumerate(sch.get_loops(out), 1) if sch.get(loop).same_as(sch.get(i0)))
    *tile_i, tile_j = sch.get_loops(out)[depth:]
    vector = math.gcd(int(_shape(sch, out)[-1]), width)
    chunk, lane = sch.split(tile_j, [None, vector])
    if vector > 1:
        sch.vectorize(lane)
    for loop in (*tile_i, chunk):
        sch.unroll(loop)


def _start_tile(sch: Schedule, block: SBlockRV, loop: LoopRV) -> None:
    """Set a tile's sums to zero in front of a loop: rows, vectors, lanes."""
    *_, init_i, init_v, init_l = sch.get_loops(sch.decompose_reduction(block, loop))
    sch.unroll(init_i)
    sch.unroll(init_v)
    sch.vectorize(init_l)


def _schedule_groups(sch: Schedule) -> None:
    """A tile's sums over one group of terms stay in registers; the tile's totals need not."""
    product, partial = sch.get_sblock("product"), sch.get_sblock("partial")
    annotations = sch.get(product).annotations
    rows, vectors, width, unroll = (int(annotations[key]) for key in ("tile_rows", "tile_vectors", "vector", "unroll"))
    out = _inline_others(sch, "product", "partial", "ready")
    i, j, group = sch.get_loops(product)
    i0, i1 = sch.split(i, [None, rows])
    j0, jv, jl = sch.split(j, [None, vectors, width])
    sch.reorder(j0, i0, group, i1, jv, jl)
    _store_tile(sch, out, i0, width)
    sch.compute_at(partial, group, preserve_unit_loops=True)
    *_, inner_i, inner_j, _, pair, half = sch.get_loops(partial)
    inner_v, inner_l = sch.split(inner_j, [None, width])
    k0, k1 = sch.split(pair, [None, max(unroll // 2, 1)])
    sch.reorder(k0, k1, half, inner_i, inner_v, inner_l)
    for block_loops in ((i1, jv, jl), (inner_i, inner_v, inner_l)):
        for loop in block_loops[:-1]:
            sch.unroll(loop)
        sch.vectorize(block_loops[-1])
    sch.unroll(k1)
    sch.unroll(half)
    _start_tile(sch, partial, k0)
    _start_tile(sch, product, group)
    for block in _blocks_named(sch, "ready"):
        _vectorize_last(sch, block, width)


def _schedule_instruction(sch: Schedule) -> None:
    """A tile's sums are updated by one instruction for some lanes and a few terms at once."""
    product = sch.get_sblock("product")
    annotations = sch.get(product).annotations
    rows, vectors, width, lanes = (
        int(annotations[key]) for key in ("tile_rows", "tile_vectors", "vector", "intrinsic_lanes")
    )
    intrinsic = str(annotations["intrinsic"])
    for key in ("intrinsic", "intrinsic_lanes"):
        sch.unannotate(product, key)
    out = _inline_others(sch, "product")
    i, j, step, term = sch.get_loops(product)
    i0, i1 = sch.split(i, [None, rows])
    j0, jv, jp, jl = sch.split(j, [None, vectors, width // lanes, lanes])
    s0, s1 = sch.split(step, [None, max(d for d in (1, 2, 3, 4) if _extent(sch, step) % d == 0)])
    sch.reorder(j0, i0, s0, s1, i1, jv, jp, jl, term)
    _store_tile(sch, out, i0, width)
    for loop in (s1, i1, jv, jp):
        sch.unroll(loop)
    _start_tile(sch, product, s0)
    sch.tensorize(jl, intrinsic)


def _blocks_named(sch: Schedule, name: str) -> Iterator[SBlockRV]:
    return (block for block in _blocks(sch) if sch.get(block).name_hint == name)


def _kinds(sch: Schedule, block: SBlockRV) -> list[str]:
    kinds = {tirx.IterVar.CommReduce: "reduce", tirx.IterVar.DataPar: "spatial"}
    return [kinds[var.iter_type] for var in sch.get(block).iter_vars]


def _shape(sch: Schedule, block: SBlockRV) -> list[int]:
    return [int(size) for size in sch.get(block).writes[0].source.shape]


def _schedule_dot(sch: Schedule, machine: Machine) -> None:
    dot = sch.get_sblock("dot")
    stages = [block for block in _blocks(sch) if sch.get(block).name_hint.startswith("halve")]
    out = _inline_others(sch, "dot", "halve")
    depth = len(sch.get_loops(out))
    column = sch.get_loops(out)[-1]
    for block in (*reversed(stages), dot):
        sch.compute_at(block, column)
    for block in stages:
        _vectorize_last(sch, block, machine.lanes, outer=depth)
    if "reduce" in _kinds(sch, dot):
        _reduce_by_lane(sch, dot, depth)
    else:
        _vectorize_last(sch, dot, machine.lanes, outer=depth)


def _schedule_rows(sch: Schedule, machine: Machine) -> None:
    out = sch.get_sblock("rowwise_out")
    depth = len(sch.get_loops(out)) - 1
    row = sch.get_loops(out)[depth - 1]
    for block in reversed(_blocks(sch)[:-1]):
        sch.compute_at(block, row)
    for block in _blocks(sch):
        if "reduce" in _kinds(sch, block):
            _reduce_by_lane(sch, block, depth)
        else:
            _vectorize_last(sch, block, 4 * machine.lanes, outer=depth)


def _reduce_by_lane(sch: Schedule, block: SBlockRV, outer: int) -> None:
    """Order a reduction chunk by chunk, each lane for itself, behind the `outer` first loops."""
    *lanes, chunk = sch.get_loops(block)[outer:]
    sch.reorder(chunk, *lanes)
    for lane in lanes:
        sch.vectorize(lane)  # before the initialisation is split off: what is left then is no reduction block
    for lane in sch.get_loops(sch.decompose_reduction(block, chunk))[outer:]:
        sch.vectorize(lane)


def _schedule_elementwise(sch: Schedule, machine: Machine) -> None:
    """Inline everything into the last block and vectorise its last axis between the points where a condition turns."""
    blocks = _blocks(sch)
    if not blocks or any("reduce" in _kinds(sch, block) for block in blocks):
        return
    for block in blocks[:-1]:
        sch.compute_inline(block)
    out = blocks[-1]
    turns: list[int] = []

    def visit(node: tirx.LT | tirx.LE | tirx.GT | tirx.GE) -> None:
        turns.extend(int(side) for side in (node.a, node.b) if isinstance(side, tirx.IntImm))

    tvm_ffi.structural_walk(sch.get(out).body, ((tirx.LT, tirx.LE, tirx.GT, tirx.GE), visit), order="post")
    _vectorize_last(sch, out, math.gcd(machine.lanes, *turns))
    if any(turns) and (loops := sch.get_loops(out)[:-1]) and 1 < (steps := _extent(sch, loops[-1])) <= 16:
        sch.loop_partition(loops[-1], [1] * (steps - 1))  # each part stands on one side of every condition
