"""Operators that give the same elements another shape: Reshape, Flatten, Squeeze, Unsqueeze.

Each has one shape rule, used by the type rule on symbolic shapes and by the reference on real ones.
"""

from __future__ import annotations

from minifer.errors import ShapeError
from minifer.ir import TensorType
from minifer.ops.registry import Declined, Op, deferred, register
from minifer.ops.shapes import integers, product, wrap_axes

reshape = deferred("lower_move", "reshape")


def _inferred(given, wanted, fail):
    """The size that -1 stands for: the product of `given` over that of `wanted`, equal symbols cancelled."""
    given, wanted = list(given), list(wanted)
    for dim in list(wanted):
        if isinstance(dim, str) and dim in given:
            given.remove(dim)
            wanted.remove(dim)
    top, bottom = product(given), product(wanted)
    if bottom == 0:
        raise fail("the size for -1 is undetermined, since another size is 0")
    if isinstance(top, int) and isinstance(bottom, int):
        if top % bottom:
            raise fail(f"{top} elements do not divide into the other sizes {wanted}")
        return top // bottom
    symbols = [d for d in given if not isinstance(d, int)]
    if isinstance(bottom, int) and len(symbols) == 1 and product([d for d in given if isinstance(d, int)]) == bottom:
        return symbols[0]
    return None


def _reshaped(shape, wanted, allowzero, fail):
    """The output shape of Reshape for a data shape (None: unknown rank) and the wanted sizes."""
    if any(w < -1 for w in wanted) or list(wanted).count(-1) > 1:
        raise fail(f"new shape {list(wanted)} may hold one -1 and no other negative size")
    if allowzero and 0 in wanted and -1 in wanted:
        raise fail(f"new shape {list(wanted)} holds both 0 and -1, which allowzero=1 forbids")
    copied = [] if allowzero else [i for i, w in enumerate(wanted) if w == 0]
    if shape is None:
        return tuple(None if w == -1 or i in copied else w for i, w in enumerate(wanted))
    if any(i >= len(shape) for i in copied):
        raise fail(f"new shape {list(wanted)} copies a size that the input of rank {len(shape)} does not have")
    out = [shape[i] if i in copied else w for i, w in enumerate(wanted)]
    if -1 in wanted:
        hole = list(wanted).index(-1)
        rest = [w for i, w in enumerate(wanted) if i != hole and i not in copied]
        out[hole] = _inferred([d for i, d in enumerate(shape) if i not in copied], rest, fail)
    have, need = product(shape), product(out)
    if isinstance(have, int) and isinstance(need, int) and have != need:
        raise fail(f"{have} elements of shape {list(shape)} do not fit the new shape {list(wanted)}")
    return tuple(out)


def _reshape(x, shape, *, allowzero=0):
    return x.reshape(_reshaped(x.shape, integers(shape), allowzero, ShapeError))


def _reshape_1(x, *, shape=()):
    return _reshape(x, shape)


def _infer_reshape(call):
    wanted = call.value(1)
    if wanted is not None:
        out = _reshaped(call.shape(0), integers(wanted), call.attr("allowzero", 0), call.fail)
        return TensorType(call.dtype(0), out)
    rank = call.shape(1)
    if rank is not None and len(rank) != 1:
        raise call.fail("the new shape must be a 1-D tensor")
    known = rank is not None and isinstance(rank[0], int)
    return TensorType(call.dtype(0), (None,) * rank[0] if known else None)


def _infer_reshape_1(call):
    return TensorType(call.dtype(0), _reshaped(call.shape(0), call.attr("shape", ()), 0, call.fail))


register(Op("Reshape", since=1, infer=_infer_reshape_1, reference=_reshape_1, lower=reshape,
            ignore=("consumed_inputs",)))  # fmt: skip
register(Op("Reshape", since=5, infer=_infer_reshape, reference=lambda x, shape: _reshape(x, shape), lower=reshape))
register(Op("Reshape", since=14, infer=_infer_reshape, reference=_reshape, lower=reshape))


def _flattened(shape, axis, fail):
    if not -len(shape) <= axis <= len(shape):
        raise fail(f"axis {axis} is outside [-{len(shape)}, {len(shape)}]")
    cut = axis + len(shape) if axis < 0 else axis
    return product(shape[:cut]), product(shape[cut:])


def _flatten(x, *, axis=1):
    return x.reshape(_flattened(x.shape, axis, ShapeError))


def _infer_flatten(call):
    shape = call.shape(0)
    out = (None, None) if shape is None else _flattened(shape, call.attr("axis", 1), call.fail)
    return TensorType(call.dtype(0), out)


register(Op("Flatten", since=1, infer=_infer_flatten, reference=_flatten, lower=reshape))


def _squeezed(shape, axes, fail):
    """The shape without the axes given, or (None) without all axes of size 1; None where the rank is unknown."""
    if axes is None:
        return tuple(d for d in shape if d != 1) if all(isinstance(d, int) for d in shape) else None
    drop = wrap_axes(axes, len(shape), fail)
    for axis in drop:
        if isinstance(shape[axis], int) and shape[axis] != 1:
            raise fail(f"axis {axis} has size {shape[axis]}, and only axes of size 1 can be squeezed")
    return tuple(d for i, d in enumerate(shape) if i not in drop)


def _squeeze(x, axes=None):
    return x.reshape(_squeezed(x.shape, None if axes is None else integers(axes), ShapeError))


def _squeeze_1(x, *, axes=None):
    return _squeeze(x, axes)


def _infer_squeezed(call, axes):
    shape = call.shape(0)
    return TensorType(call.dtype(0), None if shape is None else _squeezed(shape, axes, call.fail))


def _infer_squeeze(call):
    if not call.has(1):
        return _infer_squeezed(call, None)
    if call.value(1) is not None:
        return _infer_squeezed(call, integers(call.value(1)))
    shape, count = call.shape(0), call.shape(1)
    if shape is None or count is None or len(count) != 1 or not isinstance(count[0], int):
        return TensorType(call.dtype(0))
    if count[0] > len(shape):
        raise call.fail(f"{count[0]} axes cannot be squeezed out of rank {len(shape)}")
    return TensorType(call.dtype(0), (None,) * (len(shape) - count[0]))


register(
    Op("Squeeze", since=1, infer=lambda call: _infer_squeezed(call, call.attr("axes")), reference=_squeeze_1,
       lower=reshape)
)  # fmt: skip


def _lower_with_axes(low):
    """Axes that only the run tells are checked there, even where the result could have one shape only."""
    if low.has(1) and low.value(1) is None:
        return Declined("the axes are not constant")
    return reshape(low)


register(Op("Squeeze", since=13, infer=_infer_squeeze, reference=_squeeze, lower=_lower_with_axes))


def _unsqueezed(shape, axes, fail):
    """The shape with ones inserted so that they stand at `axes` of the output."""
    new = wrap_axes(axes, len(shape) + len(axes), fail)
    rest = iter(shape)
    return tuple(1 if i in new else next(rest) for i in range(len(shape) + len(axes)))


def _unsqueeze(x, axes):
    return x.reshape(_unsqueezed(x.shape, integers(axes), ShapeError))


def _unsqueeze_1(x, *, axes):
    return _unsqueeze(x, axes)


def _infer_unsqueeze(call):
    shape, count = call.shape(0), call.shape(1)
    if shape is None:
        return TensorType(call.dtype(0))
    if call.value(1) is not None:
        return TensorType(call.dtype(0), _unsqueezed(shape, integers(call.value(1)), call.fail))
    if count == ():
        return TensorType(call.dtype(0), (None,) * (len(shape) + 1))
    known = count is not None and isinstance(count[0], int)
    return TensorType(call.dtype(0), (None,) * (len(shape) + count[0]) if known else None)


def _infer_unsqueeze_1(call):
    shape, axes = call.shape(0), call.attr("axes")
    if axes is None:
        raise call.fail("attribute axes is missing")
    return TensorType(call.dtype(0), None if shape is None else _unsqueezed(shape, axes, call.fail))


register(Op("Unsqueeze", since=1, infer=_infer_unsqueeze_1, reference=_unsqueeze_1, lower=reshape))
register(Op("Unsqueeze", since=13, infer=_infer_unsqueeze, reference=_unsqueeze, lower=_lower_with_axes))
