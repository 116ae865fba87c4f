"""Constants and what is read off a tensor's type: Constant, ConstantOfShape, Identity, Shape, Size."""

from __future__ import annotations

import numpy as np

from minifer.dtypes import from_numpy
from minifer.errors import ModelError, ShapeError
from minifer.ir import TensorType, type_of_value
from minifer.ops.registry import Op, deferred, register
from minifer.ops.shapes import integers

identity, write = deferred("lower_move", "identity", "write")


def _text(value):
    """An array of `str`; attribute strings that are not UTF-8 come as bytes."""
    if isinstance(value, tuple):
        out = np.empty(len(value), object)
        out[:] = [_text(v).item() for v in value]
        return out
    return np.array(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value, object)


_FORMS = {
    "value": lambda v: v,
    "sparse_value": lambda v: v.dense(),
    "value_float": lambda v: np.array(v, np.float32),
    "value_floats": lambda v: np.array(v, np.float32),
    "value_int": lambda v: np.array(v, np.int64),
    "value_ints": lambda v: np.array(v, np.int64),
    "value_string": _text,
    "value_strings": _text,
}


def _constant(**attrs):
    if len(attrs) != 1 or not attrs.keys() <= _FORMS.keys():
        raise ModelError(f"Constant needs exactly one of {', '.join(_FORMS)}, and has {', '.join(attrs) or 'none'}")
    ((form, value),) = attrs.items()
    return _FORMS[form](value)


def _infer_constant(call):
    return type_of_value(_constant(**call.node.attrs))


register(Op("Constant", since=1, infer=_infer_constant, reference=_constant))


def _fill_value(value, fail):
    """The scalar that ConstantOfShape repeats: float32 zero where the attribute is left out."""
    if value is None:
        return np.zeros((), np.float32)
    if value.size != 1:
        raise fail(f"attribute value has {value.size} elements, and needs one")
    return value.reshape(())


def _sizes(values, fail):
    sizes = integers(values)
    if any(s < 0 for s in sizes):
        raise fail(f"shape {list(sizes)} has a negative size")
    return sizes


def _constant_of_shape(shape, *, value=None):
    fill = _fill_value(value, ShapeError)
    return np.full(_sizes(shape, ShapeError), fill, fill.dtype)


def _infer_constant_of_shape(call):
    dtype = from_numpy(_fill_value(call.attr("value"), call.fail).dtype)
    if call.value(0) is not None:
        return TensorType(dtype, _sizes(call.value(0), call.fail))
    shape = call.shape(0)
    if shape is None:
        return TensorType(dtype)
    if len(shape) != 1:
        raise call.fail("the shape must be a 1-D tensor")
    return TensorType(dtype, (None,) * shape[0] if isinstance(shape[0], int) else None)


def _lower_constant_of_shape(low):
    fill = low.const(_fill_value(low.attr("value"), ShapeError).reshape(1))
    return write(low, fill, 0, [(n, 0) for n in low.out_shape()], low.output(0))


register(
    Op("ConstantOfShape", since=9, infer=_infer_constant_of_shape, reference=_constant_of_shape,
       lower=_lower_constant_of_shape)
)  # fmt: skip
register(Op("Identity", since=1, infer=lambda call: call.types[0], reference=lambda x: x, lower=identity))


def _shape(x, *, start=0, end=None):
    return np.array(x.shape[start:end], np.int64)  # a Python slice clamps as the spec asks


def _infer_shape(call):
    shape = call.shape(0)
    if shape is None:
        return TensorType("int64", (None,))
    return TensorType("int64", (len(shape[call.attr("start", 0) : call.attr("end")]),))


def _known_shape(call):
    """The value of Shape where it follows from the input's type."""
    shape = call.shape(0)
    wanted = () if shape is None else shape[call.attr("start", 0) : call.attr("end")]
    if shape is None or not all(isinstance(d, int) for d in wanted):
        return None
    return np.array(wanted, np.int64)


def _infer_size(call):
    call.tensor(0)
    return TensorType("int64", ())


def _known_size(call):
    """The value of Size where it follows from the input's type."""
    kind = call.tensor(0)
    return np.array(np.prod(kind.dims, dtype=np.int64)) if kind.concrete else None


register(Op("Shape", since=1, infer=_infer_shape, reference=lambda x: _shape(x), known=_known_shape))
register(Op("Shape", since=15, infer=_infer_shape, reference=_shape, known=_known_shape))
register(Op("Size", since=1, infer=_infer_size, reference=lambda x: np.array(x.size, np.int64), known=_known_size))
