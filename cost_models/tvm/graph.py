"""Rewrites a whole Relax program so that its operations become the kernels of products.py and rows.py.

Matrix products with constant weights get prepacked weights; attention products, softmax and norms (also where they
arrive decomposed) become one kernel each; convolutions and pooling run channels-last, with the transposes between
them removed; gelu, silu and their kin become vectorisable polynomials. What is not recognised keeps Relax's own
definition: correct, but not scheduled as one of these kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax, te
from tvm.ir import Expr, GenericConst, IRModule, Op
from tvm.relax.expr_functor import mutator

from cost_models.tiles import Machine, panels
from cost_models.tvm import products, rows, scalar_math
from cost_models.tvm.layout import FIRST_TO_LAST, LAST_TO_FIRST, LayoutRewriter, axes_of, is_float, shape_of

#: Unary operations that get an own, vectorisable definition.
UNARY: dict[str, Callable[[Expr], Expr]] = {
    "relax.erf": scalar_math.erf,
    "relax.exp": scalar_math.exp,
    "relax.nn.gelu": scalar_math.gelu,
    "relax.nn.gelu_tanh": scalar_math.gelu_tanh,
    "relax.nn.silu": scalar_math.silu,
    "relax.sigmoid": scalar_math.sigmoid,
    "relax.tanh": scalar_math.tanh,
}
_PASSIVE_UNARY = frozenset({"relax.nn.relu", "relax.clip", "relax.negative", *UNARY})
_BINARY = frozenset({"relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.maximum", "relax.minimum"})


def use_kernels(module: IRModule, machine: Machine) -> IRModule:
    """Rewrite the function `main` of a Relax module."""
    rewriter = _KernelRewriter(module, machine)
    function = rewriter.visit_expr(module["main"])
    rewriter.builder_.update_func(module.get_global_var("main"), function)
    return relax.transform.DeadCodeElimination()(rewriter.builder_.get())


def pack_linear(weight: np.ndarray, machine: Machine) -> np.ndarray:
    """Pack weights (n, k) as (panels, k, lanes), the last panel padded with zeros."""
    n, k = weight.shape
    padded = np.zeros((panels(n, machine) * machine.lanes, k), weight.dtype)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, machine.lanes, k).transpose(0, 2, 1))


def pack_conv(weight: np.ndarray, machine: Machine) -> np.ndarray:
    """Pack filters (n, channels, wy, wx) as (panels, wy, wx, channels, lanes)."""
    n, channels, wy, wx = weight.shape
    packed = pack_linear(weight.transpose(0, 2, 3, 1).reshape(n, -1), machine)
    return packed.reshape(-1, wy, wx, channels, machine.lanes)


def apply_unary(name: str, x: te.Tensor) -> te.Tensor:
    """Tensor expression of a unary operation of UNARY."""
    return te.compute(x.shape, lambda *i: UNARY[name](x[i]), name=name.rsplit(".", 1)[-1])


@mutator
class _KernelRewriter(LayoutRewriter):
    """Rewrites calls one by one, in order; `_definition` looks back at what an operand was made of."""

    def __init__(self, module: IRModule, machine: Machine) -> None:
        super().__init__(module, machine)
        self._rules: dict[str, Callable[[relax.Call], Expr | None]] = {
            "relax.permute_dims": self._permute,
            "relax.reshape": self._reshape,
            "relax.broadcast_to": self._broadcast,
            "relax.matmul": self._matmul,
            "relax.multiply": self._multiply,
            "relax.where": self._where,
            "relax.nn.softmax": self._softmax,
            "relax.nn.layer_norm": self._layer_norm,
            "relax.nn.conv2d": self._conv,
            "relax.nn.avg_pool2d": self._average,
            "relax.nn.adaptive_avg_pool2d": self._average,
            "relax.mean": self._mean,
        }

    def visit_call_(self, call: relax.Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call.op, Op):
            return call
        call = relax.Call(call.op, [self._resolved(arg) for arg in call.args], call.attrs, call.ty_args, call.span)
        call = self.builder_.normalize(call)
        rule = self._rules.get(call.op.name)
        result = rule(call) if rule is not None else None
        if result is None and (call.op.name in _BINARY or call.op.name in _PASSIVE_UNARY):
            result = self._behind_transpose(call)
            result = self._behind_reshape(call) if result is None else result
        return self._unary(call) if result is None else result

    # -- products ------------------------------------------------------------------------------------------------

    def _matmul(self, call: relax.Call) -> Expr | None:
        a, b = call.args
        if not (is_float(a) and is_float(b)) or len(shape_of(a)) < 2:
            return None
        if isinstance(b, GenericConst) and len(shape_of(b)) == 2:
            return self._linear(a, b.value.numpy().T)
        a, scale_a = self._unscaled(a)
        b, scale_b = self._unscaled(b)
        if shape_of(a)[:-2] != shape_of(b)[:-2]:
            return None
        *outer, m, k = shape_of(a)
        n = shape_of(b)[-1]
        lead = (1,) * (2 - len(outer)) + tuple(outer)  # as attention has it: torch drops and restores the batch of one
        a = self._to_shape(a, (*lead, m, k))
        keys = self._keys(b)
        if keys is not None:
            function = products.scores(lead, m, n, k, scale_a * scale_b, self._machine)
            out = self._call(function, "scores", [a, self._to_shape(keys, (*lead, n, k))], (*lead, m, n))
        elif scale_a * scale_b == 1.0:
            function = products.values(lead, m, n, k, self._machine)
            out = self._call(function, "values", [a, self._to_shape(b, (*lead, k, n))], (*lead, m, n))
        else:
            return None
        return self._to_shape(out, (*outer, m, n))

    def _linear(self, x: Expr, weight: np.ndarray) -> Expr:
        n, k = weight.shape
        wanted = shape_of(x)[:-1]
        lead = wanted if sum(size > 1 for size in wanted) <= 1 else (math.prod(wanted),)
        packed = relax.const(pack_linear(weight, self._machine))
        function = products.linear(lead, n, k, self._machine)
        return self._to_shape(
            self._call(function, "linear", [self._to_shape(x, (*lead, k)), packed], (*lead, n)), (*wanted, n)
        )

    def _unscaled(self, expr: Expr) -> tuple[Expr, float]:
        """Take a factor off a tensor: (tensor, factor)."""
        reshape = self._definition(expr, "relax.reshape")
        product = self._definition(expr if reshape is None else reshape.args[0], "relax.multiply")
        if product is None:
            return expr, 1.0
        x, factor = product.args
        scale = self._scalar(factor)
        return (expr, 1.0) if scale is None else (self._to_shape(x, shape_of(expr)), scale)

    def _keys(self, transposed: Expr) -> Expr | None:
        """The keys (..., n, k) that a tensor (..., k, n) is the transpose of."""
        *lead, k, n = shape_of(transposed)
        reshape = self._definition(transposed, "relax.reshape")
        x = transposed if reshape is None else reshape.args[0]
        permute = self._definition(x, "relax.permute_dims")
        if permute is None or shape_of(x)[-2:] != (k, n):
            return None
        axes = axes_of(permute)
        if axes[-2] != len(axes) - 1:
            return None
        swapped = (*axes[:-2], axes[-1], axes[-2])
        return self._to_shape(
            self._emit(self.visit_call_(relax.op.permute_dims(permute.args[0], swapped))), (*lead, n, k)
        )

    # -- rows ----------------------------------------------------------------------------------------------------

    def _softmax(self, call: relax.Call) -> Expr | None:
        x = call.args[0]
        shape = shape_of(x)
        if not is_float(x) or int(call.attrs.axis) not in (-1, len(shape) - 1):
            return None
        masked = self._definition(x, "relax.add")
        if masked is not None:
            logits, mask = masked.args
            mask_shape = shape_of(mask)
            one_mask = len(shape) >= 2 and shape_of(logits) == shape and math.prod(mask_shape) == shape[-2] * shape[-1]
            if one_mask and mask_shape[-2:] == shape[-2:]:
                function = rows.softmax(shape[:-1], shape[-1], shape[-2], self._machine)
                return self._call(function, "softmax", [logits, self._to_shape(mask, shape[-2:])], shape)
        return self._call(rows.softmax(shape[:-1], shape[-1], 0, self._machine), "softmax", [x], shape)

    def _where(self, call: relax.Call) -> Expr | None:
        """Drop torch's guard, which zeroes the rows that mask every key: attention of ours always sees one."""
        no_key, zero, probabilities = call.args
        filled = self._definition(zero, "relax.full_like", "relax.full")
        value = self._scalar(zero if filled is None else filled.args[1])
        guard = self._definition(no_key, "relax.logical_not") is not None and value == 0.0
        return probabilities if guard and self._made_by(probabilities, "softmax") else None

    def _layer_norm(self, call: relax.Call) -> Expr | None:
        x, scale, shift = call.args
        shape = shape_of(x)
        axes = [int(axis) % len(shape) for axis in call.attrs.axes]
        if not is_float(x) or axes != [len(shape) - 1] or not (call.attrs.center and call.attrs.scale):
            return None
        function = rows.layer_norm(shape[:-1], shape[-1], float(call.attrs.epsilon), self._machine)
        return self._call(function, "layer_norm", [x, scale, shift], shape)

    def _multiply(self, call: relax.Call) -> Expr | None:
        """Recognise x / sqrt(mean(x^2) + epsilon) * scale."""
        for scaled, scale in (call.args, tuple(reversed(call.args))):
            normed = self._definition(scaled, "relax.multiply", "relax.divide")
            if normed is None or len(shape_of(scale)) != 1 or shape_of(scale)[0] != shape_of(call)[-1]:
                continue
            x, root = normed.args
            epsilon = self._rms_epsilon(x, root)
            if epsilon is not None:
                shape = shape_of(x)
                function = rows.rms_norm(shape[:-1], shape[-1], epsilon, self._machine)
                return self._call(function, "rms_norm", [x, scale], shape)
        return None

    def _rms_epsilon(self, x: Expr, root: Expr) -> float | None:
        """Epsilon if `root` is rsqrt(mean(x^2) + epsilon), 1 / sqrt(...) or sqrt(...), else None."""
        inverse = self._definition(root, "relax.divide")
        if inverse is not None and self._scalar(inverse.args[0]) == 1.0:
            root = inverse.args[1]
        root_call = self._definition(root, "relax.rsqrt", "relax.sqrt")
        total = self._definition(root_call.args[0], "relax.add") if root_call is not None else None
        mean = self._definition(total.args[0], "relax.mean") if total is not None else None
        square = self._definition(mean.args[0], "relax.power", "relax.multiply") if mean is not None else None
        if total is None or square is None or not square.args[0].same_as(x):
            return None
        return self._scalar(total.args[1])

    # -- images --------------------------------------------------------------------------------------------------

    def _conv(self, call: relax.Call) -> Expr | None:
        x, weight = call.args
        attrs = call.attrs
        strides, padding = ({int(value) for value in values} for values in (attrs.strides, attrs.padding))
        plain = isinstance(weight, GenericConst) and str(attrs.data_layout) == "NCHW"
        if not plain or len(strides) > 1 or len(padding) > 1 or {int(d) for d in attrs.dilation} != {1}:
            return None
        (stride,), (pad,) = strides, padding
        _, channels, height, width = shape_of(x)
        filters = weight.value.numpy()
        n, per_group, *window = filters.shape
        shape = tuple(shape_of(call)[axis] for axis in FIRST_TO_LAST)
        groups = int(attrs.groups)
        if groups == channels == n and per_group == 1:
            image = self._channels_last(x)
            function = products.depthwise(height, width, n, tuple(window), stride, pad, self._machine)
            packed = relax.const(np.ascontiguousarray(filters[:, 0].transpose(1, 2, 0)))
            out = self._call(function, "depthwise_conv", [image, packed], shape)
        elif groups == 1 and window == [1, 1] and (stride, pad) == (1, 0):
            out = self._linear(self._channels_last(x), filters[:, :, 0, 0])
        elif groups == 1:
            first = products.reads_channels_first(channels, tuple(window), stride, pad)
            image = x if first else self._channels_last(x)
            function = products.conv(height, width, channels, n, tuple(window), stride, pad, self._machine)
            out = self._call(function, "conv", [image, relax.const(pack_conv(filters, self._machine))], shape)
        else:
            return None
        return relax.op.permute_dims(out, LAST_TO_FIRST)

    def _channels_last(self, x: Expr) -> Expr:
        return self._emit(self.visit_call_(relax.op.permute_dims(x, FIRST_TO_LAST)))

    def _average(self, call: relax.Call) -> Expr | None:
        x = call.args[0]
        _, channels, height, width = shape_of(x)
        _, _, out_height, out_width = shape_of(call)
        window = (height // out_height, width // out_width)
        if height % out_height or width % out_width or str(call.attrs.layout) != "NCHW":
            return None
        if call.op.name == "relax.nn.avg_pool2d":
            strides = tuple(int(stride) for stride in call.attrs.strides)
            pool = tuple(int(size) for size in call.attrs.pool_size)
            if strides != pool or pool != window or any(int(pad) for pad in call.attrs.padding):
                return None
        function = products.average(height, width, channels, window, self._machine)
        out = self._call(function, "pooling", [self._channels_last(x)], (1, out_height, out_width, channels))
        return relax.op.permute_dims(out, LAST_TO_FIRST)

    def _mean(self, call: relax.Call) -> Expr | None:
        x = call.args[0]
        axes = sorted(int(axis) % len(shape_of(x)) for axis in call.attrs.axis or ())
        if axes != [2, 3] or not call.attrs.keepdims or len(shape_of(x)) != 4 or not is_float(x):
            return None
        _, channels, height, width = shape_of(x)
        function = products.average(height, width, channels, (height, width), self._machine)
        out = self._call(function, "pooling", [self._channels_last(x)], (1, 1, 1, channels))
        return relax.op.permute_dims(out, LAST_TO_FIRST)

    def _unary(self, call: relax.Call) -> Expr:
        name = call.op.name
        if name not in UNARY or not is_float(call.args[0]):
            return call
        return self.builder_.call_te(apply_unary, name, call.args[0], primfunc_name_hint=name.rsplit(".", 1)[-1])
