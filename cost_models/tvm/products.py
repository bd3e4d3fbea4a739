"""Tensor expressions of the sums of products: linear, attention products, convolutions, average pooling.

Each is one reduction block named `product`, with its register tile as block annotations, in front of a copy into
the output's shape; what FuseOps adds behind the copy is the epilogue. `schedules.py` reads the annotations.
Tile rows beyond the shape recompute the last row and are not stored: no shape falls to a slow path.
"""

from __future__ import annotations

import math
from functools import lru_cache

from tvm import te, tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc

from cost_models.tiles import Machine, panels, product_tile, takes_dots, values_tile, vector_width, window_tile

#: FuseOps' pattern kinds (tvm/relax/op_attr_types.h).
OUT_ELEMENTWISE_FUSABLE = 4
OPAQUE = 8
#: Cache lines between the weights that a product reads and those that it asks for: tried from 16 to 512 on Zen 4.
LINES_AHEAD = 256


def _clamped(index: Expr, extent: int, tile: int) -> Expr:
    return index if extent % tile == 0 else tirx.min(index, extent - 1)


def _padded(extent: int, tile: int) -> int:
    return -(-extent // tile) * tile


def _annotations(rows: int, vectors: int, width: int) -> dict[str, int]:
    return {"tile_rows": rows, "tile_vectors": vectors, "vector": width}


def _lines_ahead(rows: int, weights: te.Tensor) -> dict[str, int]:
    """How far ahead to ask for packed weights, a line each term and vector; few rows wait for memory either way."""
    size_bytes = 4 * math.prod(int(size) for size in weights.shape)
    return {"lines_ahead": LINES_AHEAD} if rows > 4 and size_bytes > 64 * LINES_AHEAD else {}


def _function(arguments: list[te.Tensor]) -> PrimFunc:
    function = te.create_prim_func(arguments, index_dtype_override="int64")
    return function.without_attr("global_symbol").with_attr("op_pattern", OUT_ELEMENTWISE_FUSABLE)


@lru_cache(maxsize=4096)
def linear(lead: tuple[int, ...], n: int, k: int, machine: Machine) -> PrimFunc:
    """(*lead, k) times weights packed as (panels, k, lanes) gives (*lead, n); lead holds one size above 1."""
    m = math.prod(lead)
    lanes = machine.lanes
    rows, vectors = product_tile(m, panels(n, machine), machine)
    x = te.placeholder((*lead, k), name="x")
    w = te.placeholder((panels(n, machine), k, lanes), name="w")
    axis = te.reduce_axis((0, k), name="k")
    at = lead.index(m)
    before, after = (0,) * at, (0,) * (len(lead) - at - 1)
    product = te.compute(
        (_padded(m, rows), panels(n, machine) * lanes),
        lambda i, j: te.sum(
            x[(*before, _clamped(i, m, rows), *after, axis)]
            * w[tirx.floordiv(j, lanes), axis, tirx.floormod(j, lanes)],
            axis=axis,
        ),
        name="product",
        attrs=_annotations(rows, vectors, lanes) | _lines_ahead(rows, w),
    )
    out = te.compute((*lead, n), lambda *index: product[index[at], index[-1]], name="out")
    return _function([x, w, out])


@lru_cache(maxsize=4096)
def scores(lead: tuple[int, ...], m: int, n: int, k: int, scale: float, machine: Machine) -> PrimFunc:
    """Queries (*lead, m, k) times stored keys (*lead, n, k), transposed, times scale: (*lead, m, n)."""
    queries = te.placeholder((*lead, m, k), name="queries")
    keys = te.placeholder((*lead, n, k), name="keys")
    batch = math.prod(lead)

    def lead_index(b: Expr) -> tuple[Expr, ...]:
        index = []
        for size in reversed(lead):
            index.append(tirx.floormod(b, size) if size > 1 else 0)
            b = tirx.floordiv(b, size)
        return tuple(reversed(index))

    if takes_dots(m, k, machine):
        return _dot_scores(queries, keys, lead, scale, machine)
    lanes = machine.lanes
    count = panels(n, machine)
    rows, vectors = product_tile(m, count, machine)
    packed = te.compute(
        (batch, count, k, lanes),
        lambda b, p, kk, j: keys[(*lead_index(b), tirx.min(p * lanes + j, n - 1), kk)],
        name="pack",
    )
    axis = te.reduce_axis((0, k), name="k")
    product = te.compute(
        (batch, _padded(m, rows), count * lanes),
        lambda b, i, j: te.sum(
            queries[(*lead_index(b), _clamped(i, m, rows), axis)]
            * packed[b, tirx.floordiv(j, lanes), axis, tirx.floormod(j, lanes)],
            axis=axis,
        ),
        name="product",
        attrs=_annotations(rows, vectors, lanes),
    )
    out = te.compute(
        (*lead, m, n), lambda *index: product[_flat(index[:-2], lead), index[-2], index[-1]] * scale, name="out"
    )
    return _function([queries, keys, out])


def _flat(index: tuple[Expr, ...], lead: tuple[int, ...]) -> Expr:
    flat: Expr = 0
    for position, size in zip(index, lead, strict=True):
        flat = flat * size + position if size > 1 else flat
    return flat


def _dot_scores(queries: te.Tensor, keys: te.Tensor, lead: tuple[int, ...], scale: float, machine: Machine) -> PrimFunc:
    """Scores of few queries: dot products along the head width, as packing the keys would cost more than it saves."""
    m, k = (int(size) for size in queries.shape[-2:])
    n = int(keys.shape[-2])
    width = vector_width(k, machine.lanes)
    axis = te.reduce_axis((0, k // width), name="k")

    def term(index: tuple[Expr, ...], step: Expr) -> Expr:
        at = step * width + index[-1]
        return queries[(*index[:-2], at)] * keys[(*index[:-3], index[-2], at)]

    partial = te.compute(
        (*lead, m, n, width),
        lambda *index: te.sum(term(index, axis), axis=axis) if k > width else term(index, 0),
        name="dot",
    )
    while width > 1:
        width //= 2
        partial = _halve((*lead, m, n), width, partial)
    out = te.compute((*lead, m, n), lambda *index: partial[(*index, 0)] * scale, name="out")
    return _function([queries, keys, out])


def _halve(lead: tuple[int, ...], half: int, wide: te.Tensor) -> te.Tensor:
    return te.compute(
        (*lead, half), lambda *index: wide[index] + wide[(*index[:-1], index[-1] + half)], name=f"halve{half}"
    )


@lru_cache(maxsize=4096)
def values(lead: tuple[int, ...], m: int, n: int, k: int, machine: Machine) -> PrimFunc:
    """Probabilities (*lead, m, k) times values (*lead, k, n): (*lead, m, n)."""
    weights = te.placeholder((*lead, m, k), name="probabilities")
    stored = te.placeholder((*lead, k, n), name="values")
    width = vector_width(n, machine.lanes)
    rows, vectors = values_tile(m, n, machine)
    axis = te.reduce_axis((0, k), name="k")
    product = te.compute(
        (*lead, _padded(m, rows), n),
        lambda *index: te.sum(
            weights[(*index[:-2], _clamped(index[-2], m, rows), axis)] * stored[(*index[:-2], axis, index[-1])],
            axis=axis,
        ),
        name="product",
        attrs=_annotations(rows, vectors, width),
    )
    out = te.compute((*lead, m, n), lambda *index: product[index], name="out")
    return _function([weights, stored, out])


def _image(x: te.Tensor, padding: int) -> te.Tensor:
    """Give an image (1, height, width, channels) a border of zeros."""
    if padding == 0:
        return x
    _, height, width, channels = (int(size) for size in x.shape)
    return te.compute(
        (1, height + 2 * padding, width + 2 * padding, channels),
        lambda b, y, z, c: tirx.if_then_else(
            tirx.all(y >= padding, y < height + padding, z >= padding, z < width + padding),
            x[b, y - padding, z - padding, c],
            tirx.const(0.0, "float32"),
        ),
        name="border",
    )


def output_size(size: int, window: int, stride: int, padding: int) -> int:
    """Pixels of a convolution's output along one side."""
    return (size + 2 * padding - window) // stride + 1


def reads_channels_first(channels: int, window: tuple[int, int], stride: int, padding: int) -> bool:
    """Whether a convolution is a patch embedding of the picture, which arrives channels-first and is not transposed."""
    return window == (stride, stride) and padding == 0 and channels <= 4


@lru_cache(maxsize=4096)
def conv(
    height: int, width: int, channels: int, n: int, window: tuple[int, int], stride: int, padding: int, machine: Machine
) -> PrimFunc:
    """Image (1, height, width, channels) and weights (panels, wy, wx, channels, lanes): (1, height', width', n).

    A patch embedding of the picture itself (see `reads_channels_first`) reads (1, channels, height, width).
    """
    lanes = machine.lanes
    channels_first = reads_channels_first(channels, window, stride, padding)
    x = te.placeholder((1, channels, height, width) if channels_first else (1, height, width, channels), name="x")
    w = te.placeholder((panels(n, machine), *window, channels, lanes), name="w")
    out_y = output_size(height, window[0], stride, padding)
    out_x = output_size(width, window[1], stride, padding)
    rows, vectors = product_tile(out_x, panels(n, machine), machine)
    image = x if channels_first else _image(x, padding)
    dy = te.reduce_axis((0, window[0]), name="dy")
    dx = te.reduce_axis((0, window[1]), name="dx")
    channel = te.reduce_axis((0, channels), name="channel")

    def pixel(y: Expr, z: Expr) -> Expr:
        row, column = y * stride + dy, _clamped(z, out_x, rows) * stride + dx
        return image[0, channel, row, column] if channels_first else image[0, row, column, channel]

    product = te.compute(
        (out_y, _padded(out_x, rows), panels(n, machine) * lanes),
        lambda y, z, j: te.sum(
            pixel(y, z) * w[tirx.floordiv(j, lanes), dy, dx, channel, tirx.floormod(j, lanes)],
            axis=[channel, dy, dx] if channels_first else [dy, dx, channel],
        ),
        name="product",
        attrs=_annotations(rows, vectors, lanes) | ({} if channels_first else _lines_ahead(rows, w)),
    )
    out = te.compute((1, out_y, out_x, n), lambda _, y, z, j: product[y, z, j], name="out")
    return _function([x, w, out])


@lru_cache(maxsize=4096)
def depthwise(
    height: int, width: int, n: int, window: tuple[int, int], stride: int, padding: int, machine: Machine
) -> PrimFunc:
    """Image (1, height, width, n) and filters (wy, wx, n): (1, height', width', n)."""
    x = te.placeholder((1, height, width, n), name="x")
    w = te.placeholder((*window, n), name="w")
    return _windows(x, w, window, (stride, stride), padding, machine)


@lru_cache(maxsize=4096)
def average(height: int, width: int, n: int, window: tuple[int, int], machine: Machine) -> PrimFunc:
    """Image (1, height, width, n), averaged over windows that do not overlap."""
    return _windows(te.placeholder((1, height, width, n), name="x"), None, window, window, 0, machine)


def _windows(
    x: te.Tensor, w: te.Tensor | None, window: tuple[int, int], stride: tuple[int, int], padding: int, machine: Machine
) -> PrimFunc:
    _, height, width, n = (int(size) for size in x.shape)
    out_y = output_size(height, window[0], stride[0], padding)
    out_x = output_size(width, window[1], stride[1], padding)
    lanes = vector_width(n, machine.lanes)
    rows, vectors = window_tile(out_x, n, machine)
    image = _image(x, padding)
    dy = te.reduce_axis((0, window[0]), name="dy")
    dx = te.reduce_axis((0, window[1]), name="dx")

    def term(y: Expr, z: Expr, j: Expr) -> Expr:
        pixel = image[0, y * stride[0] + dy, _clamped(z, out_x, rows) * stride[1] + dx, j]
        return pixel if w is None else pixel * w[dy, dx, j]

    product = te.compute(
        (out_y, _padded(out_x, rows), n),
        lambda y, z, j: te.sum(term(y, z, j), axis=[dy, dx]),
        name="product",
        attrs=_annotations(rows, vectors, lanes),
    )
    factor = 1.0 if w is not None else 1.0 / math.prod(window)
    out = te.compute((1, out_y, out_x, n), lambda _, y, z, j: product[y, z, j] * factor, name="out")
    return _function([x, out] if w is None else [x, w, out])
