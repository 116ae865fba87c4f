"""Softmax, LogSoftmax and Hardmax."""

from __future__ import annotations

import numpy as np

from minifer.ops.registry import Op, register
from minifer.ops.shapes import same_as


def _softmax(x, *, axis=-1):
    wide = x if x.dtype.kind == "f" and x.dtype.itemsize >= 4 else x.astype(np.float32)
    e = np.exp(wide - wide.max(axis=axis, keepdims=True, initial=-np.inf))
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


for _name, _reference in (("Softmax", _softmax), ("LogSoftmax", _log_softmax), ("Hardmax", _hardmax)):
    register(Op(_name, since=1, infer=same_as(0), reference=_flattened(_reference)))
    register(Op(_name, since=13, infer=same_as(0), reference=_reference))
