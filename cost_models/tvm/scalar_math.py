"""Transcendental functions of one fp32 expression that LLVM can vectorise.

A call to libm costs one scalar call an element; these are polynomials on plain arithmetic. Error against the
exact function: below 3e-7 relative for exp, below 4e-7 absolute for erf and tanh.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.ir import Expr

# Rational approximations x P(x^2) / Q(x^2) of erf on [-4, 4] and of tanh on [-9, 9], highest power first, as in
# Eigen (unsupported/Eigen/src/SpecialFunctions and Eigen/src/Core/MathFunctionsImpl.h, MPL-2.0).
_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
# exp(r) on [-ln 2 / 2, ln 2 / 2], highest power first (Cephes, expf).
_EXP_P = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _constant(value: float) -> Expr:
    return tirx.const(value, "float32")


def _horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    result = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _constant(coefficient)
    return result


def _clip(x: Expr, low: float, high: float) -> Expr:
    return tirx.max(tirx.min(x, _constant(high)), _constant(low))


def exp(x: Expr) -> Expr:
    """e^x, zero below about -87 (so that a mask of -inf gives 0 to within 1e-38)."""
    x = _clip(x, -87.33, 88.37)
    power = tirx.floor(x * _constant(math.log2(math.e)) + _constant(0.5))
    rest = x - power * _constant(0.693359375) - power * _constant(-2.12194440e-4)
    mantissa = _horner(rest, _EXP_P) * rest * rest + rest + _constant(1.0)
    exponent = (power.astype("int32") + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return mantissa * tirx.reinterpret("float32", exponent)


def erf(x: Expr) -> Expr:
    """The error function."""
    x = _clip(x, -4.0, 4.0)
    return x * _horner(x * x, _ERF_P) / _horner(x * x, _ERF_Q)


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent."""
    x = _clip(x, -9.0, 9.0)
    return x * _horner(x * x, _TANH_P) / _horner(x * x, _TANH_Q)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return _constant(1.0) / (_constant(1.0) + exp(_constant(0.0) - x))


def gelu(x: Expr) -> Expr:
    """X times the normal distribution function of x."""
    return _constant(0.5) * x * (_constant(1.0) + erf(x * _constant(math.sqrt(0.5))))


def gelu_tanh(x: Expr) -> Expr:
    """Gelu's tanh approximation."""
    inner = _constant(math.sqrt(2.0 / math.pi)) * x * (_constant(1.0) + _constant(0.044715) * x * x)
    return _constant(0.5) * x * (_constant(1.0) + tanh(inner))


def silu(x: Expr) -> Expr:
    """X times its sigmoid."""
    return x * sigmoid(x)


def relu(x: Expr) -> Expr:
    """The positive part of x."""
    return tirx.max(x, _constant(0.0))


def hardsigmoid(x: Expr) -> Expr:
    """(x + 3) / 6, clipped to [0, 1]."""
    return _clip(x + _constant(3.0), 0.0, 6.0) * _constant(1.0 / 6.0)


def hardswish(x: Expr) -> Expr:
    """X times its hardsigmoid."""
    return x * hardsigmoid(x)
