"""Arithmetic of two or more tensors: Add, Sub, Mul, Div, Mod, Pow, Max, Min, Sum, Mean.

Before opset 7 (8 for Max, Min, Sum and Mean) shapes must be equal, except that Add and its like take `broadcast=1`
with an optional `axis`: the second tensor then lies along the axes of the first from `axis` on.
"""

from __future__ import annotations

import functools

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.numeric import (
    FLOATS,
    NUMBERS,
    broadcast_types,
    check_count,
    check_fits,
    check_same_type,
    check_type,
    equal_shape,
    kind_of,
    narrow,
    require,
    require_fits,
    require_same_type,
    widen,
)
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import broadcast

lower_binary, lower_legacy, lower_mod, lower_pow, lower_variadic = deferred(
    "lower_elementwise", "lower_binary", "lower_legacy", "lower_mod", "lower_pow", "lower_variadic",
)  # fmt: skip


def _aligned_shape(first: tuple, second: tuple, axis: int | None) -> tuple:
    """The second shape with ones behind it, so that it lies along the axes of the first from `axis` on."""
    if axis is None or not second:
        return second
    start = axis + len(first) if axis < 0 else axis
    behind = len(first) - start - len(second)
    if start < 0 or behind < 0:
        raise ShapeError(f"shape {second} does not fit into {first} at axis {axis}")
    return second + (1,) * behind


def legacy(reference):
    """`reference(a, b)` with the limited broadcasting of the first opsets."""

    def old(a, b, *, broadcast=0, axis=None):
        if broadcast:
            b = b.reshape(_aligned_shape(a.shape, b.shape, axis if b.size != 1 else None))
            require_fits(b.shape if b.size != 1 else (), a.shape, "the second input")
            b = b.reshape(()) if b.size == 1 else b
        elif a.shape != b.shape:
            raise ShapeError(f"shapes {a.shape} and {b.shape} differ, and broadcast is not set")
        return reference(a, b)

    return old


def legacy_types(allowed, out: str | None = None):
    """The types of an operator with the limited broadcasting of the first opsets."""

    def infer(call: Call) -> Type:
        check_count(call, 2, 2)
        check_type(call, 0, allowed)
        kind = check_same_type(call, 0, 1)
        first, second = call.shape(0), call.shape(1)
        shape: tuple[Dim, ...] | None = first
        if not call.attr("broadcast", 0):
            shape = equal_shape(call, first, second)
        elif first is not None and second is not None and any(d != 1 for d in second):
            try:
                check_fits(call, _aligned_shape(first, second, call.attr("axis")), first, "the second input")
            except ShapeError as error:
                raise call.fail(str(error)) from error
        return TensorType(out or kind, shape)

    return infer


def arithmetic(function, allowed=NUMBERS):
    """A reference that applies a NumPy function to two tensors of one type."""

    def reference(a, b):
        require(a, allowed)
        require_same_type(a, b)
        return narrow(function(widen(a), widen(b)), a.dtype)

    return reference


def _no_zero(b):
    """InputError where an integer divisor is zero."""
    if b.dtype.kind in "iu" and not np.all(b):
        raise InputError("integer division by zero")


def truncated_quotient(a, b):
    """a / b; for integers rounded toward zero, as in C."""
    if a.dtype.kind not in "iu":
        return np.true_divide(a, b)
    _no_zero(b)
    if a.dtype.kind == "u":
        return np.floor_divide(a, b)
    quotient = np.floor_divide(a, b)
    inexact = (quotient * b != a) & ((a < 0) != (b < 0))
    return quotient + inexact.astype(quotient.dtype)


def _mod(a, b, *, fmod=0, floats=True):
    require(a, NUMBERS)
    require_same_type(a, b)
    if fmod not in (0, 1):
        raise InputError(f"fmod is {fmod}; it must be 0 or 1")
    if not fmod and not floats and kind_of(a) in FLOATS:
        raise InputError("fmod must be 1 for floats before opset 28")
    _no_zero(b)
    return narrow((np.fmod if fmod else np.mod)(widen(a), widen(b)), a.dtype)


def _mod_10(a, b, *, fmod=0):
    return _mod(a, b, fmod=fmod, floats=False)


def _mod_28(a, b, *, fmod=0):
    return _mod(a, b, fmod=fmod)


def _integer_power(x, y):
    """Integer power with wrap-around; a negative exponent gives the quotient 1 / x^|y| rounded toward zero."""
    x, y = np.broadcast_arrays(x, y)
    negative = y < 0
    if np.any(negative & (x == 0)):
        raise InputError("0 to a negative power has no integer value")
    exponent = np.where(negative, y % 2, y).astype(np.uint64)
    result = np.ones(x.shape, x.dtype)
    square = x.copy()
    while np.any(exponent):  # square and multiply, at most 64 rounds
        result = np.where(exponent & np.uint64(1), result * square, result).astype(x.dtype)
        square = square * square
        exponent = exponent >> np.uint64(1)
    return np.where(negative & (np.abs(x) != 1), result.dtype.type(0), result)


def _pow(x, y):
    require(x, NUMBERS, "the base")
    require(y, NUMBERS, "the exponent")
    base, exponent = widen(x), widen(y)
    if base.dtype.kind in "iu" and exponent.dtype.kind in "iu":
        return narrow(_integer_power(base, exponent), x.dtype)
    if base.dtype == exponent.dtype:
        return narrow(np.power(base, exponent), x.dtype)
    result = np.power(base.astype(np.float64), exponent.astype(np.float64))
    if base.dtype.kind in "iu":
        from minifer.ops.cast import convert

        return convert(np.asarray(result), kind_of(x))
    return narrow(result, x.dtype)


def _pow_of_one_type(x, y):
    require(x, FLOATS)
    require_same_type(x, y)
    return _pow(x, y)


def variadic(function, allowed=NUMBERS):
    """A reference that folds any number of tensors of one type."""

    def reference(*inputs):
        if not inputs:
            raise InputError("takes at least one input")
        require(inputs[0], allowed)
        require_same_type(*inputs)
        return narrow(function([widen(x) for x in inputs]), inputs[0].dtype)

    return reference


def _equal_shapes(reference):
    """The variadic operators before opset 8: no broadcasting."""

    def old(*inputs):
        if len({x.shape for x in inputs}) > 1:
            raise ShapeError(f"shapes {', '.join(str(x.shape) for x in inputs)} must be equal before opset 8")
        return reference(*inputs)

    return old


def _pow_types(call: Call) -> Type:
    check_count(call, 2, 2)
    kind = check_type(call, 0, NUMBERS)
    check_type(call, 1, NUMBERS)
    return TensorType(kind.dtype, broadcast(call, kind.shape, call.shape(1)))


def _mod_types(floats: bool):
    infer_numbers = broadcast_types(NUMBERS)

    def infer(call: Call) -> Type:
        if call.attr("fmod", 0) not in (0, 1):
            raise call.fail(f"fmod is {call.attr('fmod')}; it must be 0 or 1")
        if not floats and not call.attr("fmod", 0) and call.dtype(0) in FLOATS:
            raise call.fail("fmod must be 1 for floats before opset 28")
        return infer_numbers(call)

    return infer


_LEGACY = ("consumed_inputs",)
for _name, _function in (("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", truncated_quotient)):
    _reference = arithmetic(_function)
    _types, _kernel = legacy_types(NUMBERS), lower_legacy.of(_name.lower())
    register(Op(_name, since=1, infer=_types, reference=legacy(_reference), lower=_kernel, ignore=_LEGACY))
    _types, _kernel = broadcast_types(NUMBERS), lower_binary.of(_name.lower())
    register(Op(_name, since=7, infer=_types, reference=_reference, lower=_kernel))

register(Op("Pow", since=1, infer=legacy_types(FLOATS), reference=legacy(_pow_of_one_type)))
register(Op("Pow", since=7, infer=broadcast_types(FLOATS), reference=_pow_of_one_type, lower=lower_pow))
register(Op("Pow", since=12, infer=_pow_types, reference=_pow, lower=lower_pow))
register(Op("Mod", since=10, infer=_mod_types(False), reference=_mod_10, lower=lower_mod))
register(Op("Mod", since=28, infer=_mod_types(True), reference=_mod_28, lower=lower_mod))

for _name, _fold, _allowed in (
    ("Max", lambda xs: functools.reduce(np.maximum, xs), NUMBERS),
    ("Min", lambda xs: functools.reduce(np.minimum, xs), NUMBERS),
    ("Sum", lambda xs: functools.reduce(np.add, xs), FLOATS),
    ("Mean", lambda xs: functools.reduce(np.add, xs) / len(xs), FLOATS),
):
    _reference = variadic(_fold, _allowed)
    _equal = broadcast_types(_allowed, count=None, equal=True)
    _kernel = lower_variadic.of("add" if _name in ("Sum", "Mean") else _name.lower(), mean=_name == "Mean")
    _old = _equal_shapes(_reference)
    register(Op(_name, since=1, infer=_equal, reference=_old, lower=_kernel, ignore=_LEGACY))
    _types = broadcast_types(_allowed, count=None)
    register(Op(_name, since=8, infer=_types, reference=_reference, lower=_kernel))
