"""Tensor expressions of linear kernels with weights of lower precision, packed as packing.py says."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from tvm import te, tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from cost_models.tiles import Machine, product_tile, row_tile
from cost_models.tvm.packing import LANES, Packing, Shape
from cost_models.tvm.products import _annotations, _clamped, _function, _padded
from search_spaces.kernels import INT4_GROUP, Precision


def _tile(rows: int, columns: int, parts: int, machine: Machine) -> tuple[int, int]:
    """(tile rows, tile panels): as `product_tile`, where a row of a panel fills `parts` registers."""
    if parts == 1:
        return product_tile(rows, columns, machine)
    most = max(1, (machine.registers - max(4, 2 * parts)) // parts)  # converted weights fill registers too
    height = row_tile(rows, most)
    fitting = [wide for wide in (1, 2, 3, 4) if columns % wide == 0 and height * wide <= most]
    return height, next((wide for wide in fitting if height * wide * parts >= 12), fitting[-1])


class _Linear:
    """What the tensor expressions of all precisions share: indices, tile, and the copy into the output's shape."""

    def __init__(self, lead: Shape, n: int, k: int, packing: Packing) -> None:
        self.lead, self.n, self.k, self.packing = lead, n, k, packing
        self.m = math.prod(lead)
        self.at = lead.index(self.m)
        count = -(-n // LANES)
        parts = max(1, LANES // packing.machine.lanes // (2 if packing.native else 1))
        self.tile = _tile(self.m, count, parts, packing.machine)
        self.space = (_padded(self.m, self.tile[0]), count * LANES)
        # More terms at once would keep more converted weights than there are registers.
        self.attributes = {**_annotations(*self.tile, LANES), "unroll": max(1, 4 // parts)}
        # Where a panel fills several registers, conversion is dear: many rows share what was converted once.
        self.converts_first = parts > 1 and self.m > 2 * self.tile[0]
        self.operands = [te.placeholder(shape, kind, name=name) for name, shape, kind in packing.operands(lead, n, k)]

    def held(self, i: Expr) -> Expr:
        """The row of the activations for a row of the tiles; those beyond the last one repeat it."""
        return _clamped(i, self.m, self.tile[0])

    def row(self, tensor: te.Tensor, i: Expr, k: Expr) -> Expr:
        """An element of a row of the activations or their scales."""
        return tensor[(*(0,) * self.at, i, *(0,) * (len(self.lead) - self.at - 1), k)]

    def prepared(self, value: Callable[[Callable[[Expr], Expr], Expr], Expr]) -> te.Tensor:
        """What activations are turned into once a call: `value` of a row and a position, whole groups of positions."""
        shape = (self.m, _padded(self.k, INT4_GROUP))
        x = self.operands[0]
        return te.compute(shape, lambda i, at: value(lambda where: self.row(x, i, where), at), name="ready")

    def out(self, value: Callable[[Expr, Expr], Expr]) -> PrimFunc:
        """The function, of the value that stands in row i and column j."""
        out = te.compute((*self.lead, self.n), lambda *index: value(index[self.at], index[-1]), name="out")
        return _function([*self.operands, out])


@lru_cache(maxsize=4096)
def linear(lead: Shape, n: int, k: int, packing: Packing) -> PrimFunc:
    """Linear kernel of the operands that `packing.operands` lists: (*lead, n); lead holds one size above 1."""
    return _PRODUCTS[packing.precision](_Linear(lead, n, k, packing))


def _widened(of: _Linear, weight: Callable[[Expr, Expr, Expr], Expr], scale: te.Tensor | None = None) -> PrimFunc:
    """Weights become fp32, `weight` of (panel, k, lane), in registers or in a copy of the panels in use.

    A column's scale is applied once, behind the sum.
    """
    x = of.operands[0]
    held = te.compute((of.space[1] // LANES, of.k, LANES), weight, name="widened") if of.converts_first else weight
    axis = te.reduce_axis((0, of.k), name="k")
    product = te.compute(
        of.space,
        lambda i, j: te.sum(
            of.row(x, of.held(i), axis) * held(tirx.floordiv(j, LANES), axis, tirx.floormod(j, LANES)), axis=axis
        ),
        name="product",
        attrs=of.attributes,
    )
    return of.out(lambda i, j: product[i, j] if scale is None else product[i, j] * scale[j])


def _int8(of: _Linear) -> PrimFunc:
    _, w, scale = of.operands
    return _widened(of, lambda panel, k, lane: w[panel, k, lane].astype("float32"), scale)


def _fp16(of: _Linear) -> PrimFunc:
    if of.packing.native:
        return _native_fp16(of)
    w = of.operands[1]
    return _widened(of, lambda panel, k, lane: w[panel, k, lane].astype("float32"))


def _native_fp16(of: _Linear) -> PrimFunc:
    """Runs of fp16 sums are short, so that little is lost, and are added in fp32."""
    w = of.operands[1]
    zero = tirx.const(0.0, "float16")
    ready = of.prepared(lambda row, at: tirx.if_then_else(at < of.k, row(at).astype("float16"), zero))

    def term(i: Expr, j: Expr, group: Expr, pair: Expr, half: Expr) -> Expr:
        at = group * INT4_GROUP + pair * 2 + half
        return ready[of.held(i), at] * w[tirx.floordiv(j, LANES), at, tirx.floormod(j, LANES)]

    return _grouped(of, int(w.shape[1]) // INT4_GROUP, term, lambda partial, _j, _group: partial.astype("float32"))


def _int4(of: _Linear) -> PrimFunc:
    """A byte is 16 times a later weight h plus an earlier one l, and shifted up by four bits 16 times l alone.

    So x h + y l = x / 16 byte + (y - x / 16) / 16 (byte << 4), where no half needs to be brought down.
    """
    w, scales = of.operands[1:]
    pairs = INT4_GROUP // 2

    def up(byte: Expr) -> Expr:
        return tirx.shift_left(byte, tirx.const(4, "int8"))

    def scale(panel: Expr, group: Expr, lane: Expr) -> Expr:
        bits = tirx.shift_left(scales[panel, group, lane].astype("uint32"), tirx.const(16, "uint32"))
        return tirx.reinterpret("float32", bits)

    def weight(panel: Expr, k: Expr, lane: Expr) -> Expr:
        group, inside = tirx.floordiv(k, INT4_GROUP), tirx.floormod(k, INT4_GROUP)
        byte = w[panel, group, tirx.floormod(inside, pairs), lane]
        early = up(byte).astype("float32") * 2.0**-4
        late = (byte.astype("float32") - early) * 2.0**-4
        return tirx.Select(inside < pairs, early, late) * scale(panel, group, lane)

    if of.converts_first:
        return _widened(of, weight)

    def factor(row: Callable[[Expr], Expr], at: Expr) -> Expr:
        def known(where: Expr) -> Expr:
            return tirx.if_then_else(where < of.k, row(where), tirx.const(0.0, "float32"))

        late = tirx.floormod(at, INT4_GROUP) >= pairs
        return tirx.if_then_else(late, known(at) * 2.0**-4, (known(at) - known(at + pairs) * 2.0**-4) * 2.0**-4)

    ready = of.prepared(factor)

    def term(i: Expr, j: Expr, group: Expr, pair: Expr, half: Expr) -> Expr:
        byte = w[tirx.floordiv(j, LANES), group, pair, tirx.floormod(j, LANES)]
        factor = ready[of.held(i), group * INT4_GROUP + half * pairs + pair]
        return factor * tirx.Select(half == 0, up(byte), byte).astype("float32")

    def scaled(partial: Expr, j: Expr, group: Expr) -> Expr:
        return partial * scale(tirx.floordiv(j, LANES), group, tirx.floormod(j, LANES))

    return _grouped(of, int(scales.shape[1]), term, scaled)


def _grouped(
    of: _Linear, groups: int, term: Callable[..., Expr], whole: Callable[[Expr, Expr, Expr], Expr]
) -> PrimFunc:
    """Sum terms (row, column, group, pair, half) group by group, and what `whole` makes of each group's sum."""
    pair = te.reduce_axis((0, INT4_GROUP // 2), name="pair")
    half = te.reduce_axis((0, 2), name="half")
    group = te.reduce_axis((0, groups), name="group")
    partial = te.compute(
        (*of.space, groups), lambda i, j, g: te.sum(term(i, j, g, pair, half), axis=[pair, half]), name="partial"
    )
    product = te.compute(
        of.space,
        lambda i, j: te.sum(whole(partial[i, j, group], j, group), axis=group),
        name="product",
        attrs=of.attributes,
    )
    return of.out(lambda i, j: product[i, j])


def _w8a8(of: _Linear) -> PrimFunc:
    """Sums of products of bytes in int32; without an instruction for it, bytes are widened first."""
    x, x_scale, w, w_scale, *sums = of.operands
    dot, terms = of.packing.dot, of.packing.terms
    step = te.reduce_axis((0, int(w.shape[1])), name="step")
    term = te.reduce_axis((0, terms), name="term")
    attributes: dict[str, int | str] = dict(of.attributes)
    if dot:
        attributes |= {"intrinsic": dot.register(), "intrinsic_lanes": dot.lanes}
    product = te.compute(
        of.space,
        lambda i, j: te.sum(
            of.row(x, of.held(i), step * terms + term).astype("int32")
            * w[tirx.floordiv(j, LANES), step, tirx.floormod(j, LANES), term].astype("int32"),
            axis=[step, term],
        ),
        name="product",
        attrs=attributes,
    )

    def value(i: Expr, j: Expr) -> Expr:
        total = product[i, j] - sums[0][j] if sums else product[i, j]
        return total.astype("float32") * w_scale[j] * of.row(x_scale, i, 0)

    return of.out(value)


_PRODUCTS: dict[Precision, Callable[[_Linear], PrimFunc]] = {
    Precision.FP16: _fp16,
    Precision.INT8: _int8,
    Precision.INT4: _int4,
    Precision.W8A8: _w8a8,
}
