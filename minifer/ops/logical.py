"""Comparisons, boolean and bitwise operators, Where."""

from __future__ import annotations

import numpy as np

from minifer import dtypes
from minifer.errors import InputError
from minifer.ir import TensorType, Type
from minifer.ops.binary import legacy, legacy_types
from minifer.ops.numeric import (
    NUMBERS,
    broadcast_types,
    check_count,
    check_same_type,
    check_type,
    narrow,
    require,
    require_same_type,
    unary_types,
    widen,
)
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import broadcast

lower_where = deferred("lower_choose", "lower_where")
lower_bits, lower_compare, lower_legacy, lower_not = deferred(
    "lower_elementwise", "lower_bits", "lower_compare", "lower_legacy", "lower_not",
)  # fmt: skip

_BOOL = ("bool",)
_EQUATABLE = (*NUMBERS, "bool", "string")


def _predicate(function, allowed):
    """A reference that compares two tensors of one type."""

    def reference(a, b):
        require(a, allowed)
        require_same_type(a, b)
        return np.asarray(function(widen(a), widen(b))).astype(bool, copy=False)

    return reference


def _bitwise(function):
    def reference(a, b):
        require(a, dtypes.INTEGERS)
        require_same_type(a, b)
        return np.asarray(function(a, b))

    return reference


def _not(x):
    require(x, _BOOL)
    return np.asarray(np.logical_not(x))


def _bitwise_not(x):
    require(x, dtypes.INTEGERS)
    return np.asarray(np.invert(x))


def _bit_shift(x, y, *, direction):
    require(x, dtypes.INTEGERS)
    require_same_type(x, y)
    if direction not in ("LEFT", "RIGHT"):
        raise InputError(f"direction is {direction!r}; it must be 'LEFT' or 'RIGHT'")
    bits = x.dtype.itemsize * 8
    zero = np.zeros((), x.dtype)
    outside = (y < 0) | (y >= bits)
    amount = np.where(outside, zero, y)
    if direction == "LEFT":
        return narrow(np.where(outside, zero, np.left_shift(x, amount)), x.dtype)
    sign = np.where(x < 0, ~zero, zero)  # what is left when all bits are shifted out
    return narrow(np.where(outside, sign, np.right_shift(x, amount)), x.dtype)


def _where(condition, x, y):
    require(condition, _BOOL, "the condition")
    require_same_type(x, y)
    return narrow(np.where(condition, x, y), x.dtype)


def _where_types(call: Call) -> Type:
    check_count(call, 3, 3)
    check_type(call, 0, _BOOL)
    kind = check_same_type(call, 1, 2)
    return TensorType(kind, broadcast(call, call.shape(0), call.shape(1), call.shape(2)))


#: name -> lowering, and that of the limited broadcasting of the first opsets
_LOWER = {
    "And": (lower_bits.of("and"), None), "Or": (lower_bits.of("or"), None), "Xor": (lower_bits.of("xor"), None),
    "Equal": (lower_compare.of("equal"), None),
    "Greater": (lower_compare.of("less", swapped=True), lower_legacy.of("less", swapped=True)),
    "Less": (lower_compare.of("less"), lower_legacy.of("less")),
    "GreaterOrEqual": (lower_compare.of("less_or_equal", swapped=True), None),
    "LessOrEqual": (lower_compare.of("less_or_equal"), None),
    "BitwiseAnd": (lower_bits.of("and"), None), "BitwiseOr": (lower_bits.of("or"), None),
    "BitwiseXor": (lower_bits.of("xor"), None),
}  # fmt: skip

for _name, _function, _allowed in (
    ("And", np.logical_and, _BOOL),
    ("Or", np.logical_or, _BOOL),
    ("Xor", np.logical_xor, _BOOL),
    ("Equal", np.equal, _EQUATABLE),
    ("Greater", np.greater, NUMBERS),
    ("Less", np.less, NUMBERS),
):
    _reference = _predicate(_function, _allowed)
    _kernel, _old = _LOWER[_name]
    register(Op(_name, since=1, infer=legacy_types(_allowed, "bool"), reference=legacy(_reference), lower=_old))
    register(Op(_name, since=7, infer=broadcast_types(_allowed, "bool"), reference=_reference, lower=_kernel))

for _name, _comparison in (("GreaterOrEqual", np.greater_equal), ("LessOrEqual", np.less_equal)):
    _types, _reference = broadcast_types(NUMBERS, "bool"), _predicate(_comparison, NUMBERS)
    register(Op(_name, since=12, infer=_types, reference=_reference, lower=_LOWER[_name][0]))

for _name, _bits in (
    ("BitwiseAnd", np.bitwise_and),
    ("BitwiseOr", np.bitwise_or),
    ("BitwiseXor", np.bitwise_xor),
):
    _types, _kernel = broadcast_types(dtypes.INTEGERS), _LOWER[_name][0]
    register(Op(_name, since=18, infer=_types, reference=_bitwise(_bits), lower=_kernel))

register(Op("Not", since=1, infer=unary_types(_BOOL), reference=_not, lower=lower_not))
_types = unary_types(dtypes.INTEGERS)
register(Op("BitwiseNot", since=18, infer=_types, reference=_bitwise_not, lower=lower_not))
register(Op("BitShift", since=11, infer=broadcast_types(dtypes.INTEGERS), reference=_bit_shift))
register(Op("Where", since=9, infer=_where_types, reference=_where, lower=lower_where))
