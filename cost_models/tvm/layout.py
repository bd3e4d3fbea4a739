"""The half of the graph rewriter that moves data: looks back at definitions, and removes transposes and reshapes."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax
from tvm.ir import Expr, GenericConst, GlobalVar, IRModule, Op
from tvm.relax.expr_functor import PyExprMutator
from tvm.tirx import PrimFunc

from cost_models.tiles import Machine

Shape = tuple[int, ...]
LAST_TO_FIRST = (0, 3, 1, 2)
FIRST_TO_LAST = (0, 2, 3, 1)


def shape_of(expr: Expr) -> Shape:
    """Sizes of a tensor with static shape."""
    return tuple(int(size) for size in expr.ty.shape)


def axes_of(call: relax.Call) -> Shape:
    """Axes of a permute_dims, all counted from the front."""
    rank = len(shape_of(call.args[0]))
    axes = call.attrs.axes
    return tuple(reversed(range(rank))) if axes is None else tuple(int(axis) % rank for axis in axes)


def is_float(expr: Expr) -> bool:
    """Whether an expression is an fp32 tensor."""
    return isinstance(expr.ty, relax.TensorType) and str(expr.ty.dtype) == "float32"


class LayoutRewriter(PyExprMutator):  # type: ignore[misc]
    """Tools to look back at what an operand was made of, and rules that let transposes meet and vanish."""

    def __init__(self, module: IRModule, machine: Machine) -> None:
        super().__init__(module)
        self._machine = machine
        self._functions: dict[PrimFunc, GlobalVar] = {}

    def _emit(self, expr: Expr) -> Expr:
        return self.builder_.emit(expr)

    def _resolved(self, expr: Expr) -> Expr:
        """Follow a variable that is only a name for another one, or for a constant."""
        while isinstance(expr, relax.Var):
            value = self.lookup_binding(expr)
            if not isinstance(value, (relax.Var, GenericConst)):
                return expr
            expr = value
        return expr

    def _call(self, function: PrimFunc, name: str, arguments: list[Expr], shape: Shape) -> Expr:
        variable = self._functions.get(function)
        if variable is None:
            variable = self._functions[function] = self.builder_.add_func(function, name)
        return self._emit(relax.call_tir(variable, relax.Tuple(arguments), relax.TensorType(shape, "float32")))

    def _definition(self, expr: Expr, *names: str) -> relax.Call | None:
        """The call that made this value, if it is one of these operations."""
        if isinstance(expr, relax.Var):
            expr = self.lookup_binding(expr)
        if isinstance(expr, relax.Call) and isinstance(expr.op, Op) and expr.op.name in names:
            return expr
        return None

    def _made_by(self, expr: Expr, name: str) -> bool:
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        if not isinstance(value, relax.Call) or value.op != Op.get("relax.call_tir"):
            return False
        return bool(value.args[0].name_hint.startswith(name))

    def _scalar(self, expr: Expr) -> float | None:
        if isinstance(expr, GenericConst) and math.prod(expr.value.shape) == 1:
            return float(expr.value.numpy().reshape(()))
        return None

    def _to_shape(self, expr: Expr, shape: Shape) -> Expr:
        inner = self._definition(expr, "relax.reshape")
        expr = expr if inner is None else inner.args[0]
        if shape_of(expr) == shape:
            return expr
        if isinstance(expr, GenericConst):
            return relax.const(expr.value.numpy().reshape(shape))
        return self._emit(relax.op.reshape(expr, shape))

    def _transposed(self, expr: Expr, axes: Shape) -> Expr:
        if isinstance(expr, GenericConst):
            return relax.const(np.ascontiguousarray(expr.value.numpy().transpose(axes)))
        return self._emit(relax.op.permute_dims(expr, axes))

    def _permute(self, call: relax.Call) -> Expr | None:
        x, axes = call.args[0], axes_of(call)
        inner = self._definition(x, "relax.permute_dims")
        if inner is not None:
            axes = tuple(axes_of(inner)[axis] for axis in axes)
            x = inner.args[0]
        shape = shape_of(x)
        if [axis for axis in axes if shape[axis] > 1] == sorted(axis for axis in axes if shape[axis] > 1):
            return self._to_shape(x, tuple(shape[axis] for axis in axes))
        source = self._channels_last_source(x, axes)
        if source is not None:
            return self._to_shape(source, tuple(shape[axis] for axis in axes))
        return self._transposed(x, axes) if inner is not None or isinstance(x, GenericConst) else None

    def _channels_last_source(self, x: Expr, axes: Shape) -> Expr | None:
        """The tensor that this transpose only reshapes, where tokens become an image or an image becomes tokens."""
        reshape = self._definition(x, "relax.reshape")
        if reshape is None:
            return None
        inner = self._definition(reshape.args[0], "relax.permute_dims")
        if inner is None:
            return None
        before, after = shape_of(inner), shape_of(x)
        pattern = (axes_of(inner), axes)
        to_tokens = pattern == (LAST_TO_FIRST, (0, 2, 1)) and after == (*before[:2], before[2] * before[3])
        to_image = pattern == ((0, 2, 1), FIRST_TO_LAST) and before == (*after[:2], after[2] * after[3])
        return inner.args[0] if to_tokens or to_image else None

    def _reshape(self, call: relax.Call) -> Expr | None:
        x, shape = call.args[0], shape_of(call)
        inner = self._definition(x, "relax.reshape")
        if inner is not None or isinstance(x, GenericConst) or shape_of(x) == shape:
            return self._to_shape(x, shape)
        return None

    def _broadcast(self, call: relax.Call) -> Expr | None:
        return call.args[0] if shape_of(call.args[0]) == shape_of(call) else None

    def _behind_transpose(self, call: relax.Call) -> Expr | None:
        """Move an elementwise operation in front of the transpose of its operand from channels-last to -first."""
        flipped = [self._definition(argument, "relax.permute_dims") for argument in call.args]
        if not any(inner is not None and axes_of(inner) == LAST_TO_FIRST for inner in flipped):
            return None
        arguments = []
        for argument, inner in zip(call.args, flipped, strict=True):
            if inner is not None and axes_of(inner) == LAST_TO_FIRST:
                arguments.append(inner.args[0])
            elif isinstance(argument.ty, relax.TensorType) and shape_of(argument):
                if len(shape_of(argument)) != 4:
                    return None
                arguments.append(self._permuted_operand(argument))
            else:
                arguments.append(argument)
        moved = self.visit_call_(relax.Call(call.op, arguments, call.attrs))
        return relax.op.permute_dims(self._emit(moved), LAST_TO_FIRST)

    def _behind_reshape(self, call: relax.Call) -> Expr | None:
        """Move an operation with a whole constant in front of a reshape, so that it fuses with what is reshaped."""
        for index, argument in enumerate(call.args[:2]):
            inner = self._definition(argument, "relax.reshape")
            other = call.args[1 - index] if len(call.args) == 2 else None
            if inner is None or not isinstance(other, GenericConst) or shape_of(other) != shape_of(argument):
                continue
            moved = [inner.args[0], self._to_shape(other, shape_of(inner.args[0]))]
            result = self.builder_.normalize(relax.Call(call.op, moved if index == 0 else moved[::-1], call.attrs))
            return relax.op.reshape(self._emit(result), shape_of(call))
        return None

    def _permuted_operand(self, argument: Expr) -> Expr:
        shape = shape_of(argument)
        if sum(size > 1 for size in shape) <= 1:
            return self._to_shape(argument, tuple(shape[axis] for axis in FIRST_TO_LAST))
        return self._transposed(argument, FIRST_TO_LAST)
