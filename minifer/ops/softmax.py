"""Softmax, LogSoftmax and Hardmax."""

from __future__ import annotations

import numpy as np

from minifer.ir import Type
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import axis_of

lower_softmax = deferred("lower_reduce", "lower_softmax")


def _sum_by_eights(e: np.ndarray, axis: int) -> np.ndarray:
    """Sum bfloat16 as float32: runs of eight are added in bfloat16, as the official cases have it for short rows, and
    the runs in float32, for a long sum in bfloat16 would stay at 256."""
    rows = np.moveaxis(e, axis, -1)
    rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], -rows.shape[-1] % 8), e.dtype)], -1)
    runs = rows.reshape(*rows.shape[:-1], rows.shape[-1] // 8, 8)
    total = runs[..., 0]
    for i in range(1, 8):
        total = total + runs[..., i]
    return np.expand_dims(total.astype(np.float32).sum(-1), axis)


def _softmax_by_steps(x, axis):
    """Softmax of float16 or bfloat16, each step rounded to that type; a sum that overflows it stays float32."""
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    wide = e.astype(np.float32)
    total = _sum_by_eights(e, axis) if x.dtype.kind == "V" else wide.sum(axis=axis, keepdims=True)
    rounded = total.astype(x.dtype).astype(np.float32)
    return (wide / np.where(np.isinf(rounded), total, rounded)).astype(x.dtype)


def _softmax(x, *, axis=-1):
    if x.dtype.itemsize < 4:
        return _softmax_by_steps(x, axis)
    e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
    return (e / e.sum(axis=axis, keepdims=True)).astype(x.dtype)


def _log_softmax(x, *, axis=-1):
    wide = x if x.dtype.kind == "f" and x.dtype.itemsize >= 4 else x.astype(np.float32)
    shifted = wide - wide.max(axis=axis, keepdims=True, initial=-np.inf)
    return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(x.dtype)


def _hardmax(x, *, axis=-1):
    y = np.zeros_like(x)
    if x.size:
        np.put_along_axis(y, np.expand_dims(x.argmax(axis), axis), x.dtype.type(1), axis)
    return y


def _flattened(reference):
    """Before opset 13 the input is taken as a matrix: the axes before `axis` are rows, the rest columns."""

    def old(x, *, axis=1):
        rows = int(np.prod(x.shape[: axis % max(x.ndim, 1)], dtype=np.int64))
        return reference(x.reshape(rows, -1) if x.size else x.reshape(rows, 0), axis=1).reshape(x.shape)

    return old


def _types(default: int):
    """The type of input 0; the axis must be one of its axes."""

    def infer(call: Call) -> Type:
        kind = call.tensor(0)
        if kind.shape is not None:
            axis_of(call, call.attr("axis", default), max(len(kind.shape), 1))
        return kind

    return infer


for _name, _reference, _logarithm in (("Softmax", _softmax, 0), ("LogSoftmax", _log_softmax, 1)):
    _old, _new = lower_softmax.of(_logarithm, flattened=True), lower_softmax.of(_logarithm)
    register(Op(_name, since=1, infer=_types(1), reference=_flattened(_reference), lower=_old))
    register(Op(_name, since=13, infer=_types(-1), reference=_reference, lower=_new))
register(Op("Hardmax", since=1, infer=_types(1), reference=_flattened(_hardmax)))
register(Op("Hardmax", since=13, infer=_types(-1), reference=_hardmax))
