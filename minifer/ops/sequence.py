"""Sequences (Python lists of tensors) and optionals (the value itself, or None)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ModelError
from minifer.ir import Dim, Graph, OptionalType, SequenceType, TensorType, Type, type_of_value
from minifer.ops.bodies import body_types, check_body, merge_types, single
from minifer.ops.registry import Call, Op, register
from minifer.ops.shapes import axis_of


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        found = "an empty optional" if value is None else str(type_of_value(value))
        raise InputError(f"a sequence is needed, and the input is {found}")
    return value


def _same_dtype(values: Sequence[Any]) -> None:
    kinds = {v.dtype for v in values if isinstance(v, np.ndarray | np.generic)}
    if len(kinds) > 1:
        raise InputError(f"all tensors of a sequence must have one type, and these have {', '.join(map(str, kinds))}")


def _position(value: Any, length: int, last: int) -> int:
    """A position from the front, in [0, last]; negative ones count from the end of `length` elements."""
    position = int(single(value, "the position"))
    if not -length <= position <= last:
        raise InputError(f"position {position} is outside [-{length}, {last}] for a sequence of {length} tensors")
    return position + length if position < 0 else position


def _element(call: Call, i: int) -> Type | None:
    """The element type of a sequence input; None where it is not known."""
    kind = call.types[i] if i < len(call.types) else None
    if isinstance(kind, OptionalType):
        kind = kind.element
    if kind is not None and not isinstance(kind, SequenceType):
        raise call.fail(f"input {i} must be a sequence")
    return kind.element if isinstance(kind, SequenceType) else None


# ----------------------------------------------------------------------------------------------- make and change


def _construct(*tensors):
    _same_dtype(tensors)
    return list(tensors)


def _infer_construct(call: Call) -> Type:
    kinds = [call.tensor(i) for i in range(len(call.node.inputs))]
    if len({k.dtype for k in kinds}) > 1:
        raise call.fail("all tensors of a sequence must have one type")
    merged: Type | None = kinds[0] if kinds else None
    for kind in kinds[1:]:
        merged = merge_types(merged, kind)
    return SequenceType(merged)


def _sequence_empty(*, dtype=1):
    dtypes.name_of_code(dtype)  # an unknown type is an error, though an empty list carries none
    return []


def _infer_sequence_empty(call: Call) -> Type:
    return SequenceType(TensorType(dtypes.name_of_code(call.attr("dtype", 1))))


def _insert(sequence, tensor, position=None):
    values = _list(sequence)
    _same_dtype([*values[:1], tensor])
    at = len(values) if position is None else _position(position, len(values), len(values))
    return [*values[:at], tensor, *values[at:]]


def _infer_insert(call: Call) -> Type:
    element, tensor = _element(call, 0), call.tensor(1)
    if isinstance(element, TensorType) and element.dtype != tensor.dtype:
        raise call.fail(f"a tensor of {tensor.dtype} cannot go into a sequence of {element.dtype}")
    if element is None:
        return SequenceType(TensorType(tensor.dtype))
    return SequenceType(merge_types(element, tensor))


def _erase(sequence, position=None):
    values = _list(sequence)
    if not values:
        raise InputError("nothing can be erased from an empty sequence")
    at = len(values) - 1 if position is None else _position(position, len(values), len(values) - 1)
    return values[:at] + values[at + 1 :]


def _at(sequence, position):
    values = _list(sequence)
    if not values:
        raise InputError("an empty sequence has no element to take")
    return values[_position(position, len(values), len(values) - 1)]


def _length(sequence):
    return np.array(len(_list(sequence)), np.int64)


def _infer_length(call: Call) -> Type:
    _element(call, 0)
    return TensorType("int64", ())


register(Op("SequenceConstruct", since=11, infer=_infer_construct, reference=_construct))
register(Op("SequenceEmpty", since=11, infer=_infer_sequence_empty, reference=_sequence_empty))
register(Op("SequenceInsert", since=11, infer=_infer_insert, reference=_insert))
register(Op("SequenceErase", since=11, infer=lambda call: SequenceType(_element(call, 0)), reference=_erase))
register(Op("SequenceAt", since=11, infer=lambda call: _element(call, 0), reference=_at))
register(Op("SequenceLength", since=11, infer=_infer_length, reference=_length))


# ------------------------------------------------------------------------------------------------------------ map


def _sequence_map(first, *others, body, ctx):
    """Run the body once for each element of the first sequence; tensors among the others go to every run."""
    values = (_list(first), *others)
    check_body(body, len(values), 0)
    for i, value in enumerate(values):
        if isinstance(value, list) and len(value) != len(first):
            raise InputError(f"sequence {i} has {len(value)} elements, and the first has {len(first)}")
    runs = [ctx.run(body, [v[k] if isinstance(v, list) else v for v in values]) for k in range(len(first))]
    return tuple([run[i] for run in runs] for i in range(len(body.outputs)))


def _infer_sequence_map(call: Call) -> list[Type | None]:
    body = call.attr("body")
    if not isinstance(body, Graph):
        raise call.fail("needs the graph body")
    if len(body.inputs) != len(call.node.inputs):
        raise call.fail(f"the body has {len(body.inputs)} inputs, and the node {len(call.node.inputs)}")
    _element(call, 0)
    kinds = [t.element if isinstance(t, SequenceType) else t for t in call.types]
    return [SequenceType(t) for t in body_types(call, body, kinds)]


register(Op("SequenceMap", since=17, infer=_infer_sequence_map, reference=_sequence_map))


# ------------------------------------------------------------------------------------------------ join and split


def _concat_from(sequence, *, axis, new_axis=0):
    values = [np.asarray(v) for v in _list(sequence)]
    if new_axis not in (0, 1):
        raise ModelError(f"new_axis must be 0 or 1, not {new_axis}")
    if not values:
        raise InputError("an empty sequence cannot be concatenated: the result would have no shape")
    _same_dtype(values)
    rank = values[0].ndim + new_axis
    if not -rank <= axis < rank:
        raise InputError(f"axis {axis} is outside [-{rank}, {rank})")
    shapes = [v.shape if new_axis else v.shape[: axis % rank] + v.shape[axis % rank + 1 :] for v in values]
    if len(set(shapes)) > 1 or len({v.ndim for v in values}) > 1:
        found = ", ".join(str(list(v.shape)) for v in values[:8])
        raise InputError(f"shapes {found} do not fit together along axis {axis} (new_axis={new_axis})")
    return np.stack(values, axis) if new_axis else np.concatenate(values, axis)


def _infer_concat_from(call: Call) -> Type | None:
    """The rank is that of the elements; the sizes of the joined axis depend on how many there are."""
    element, new_axis, axis = _element(call, 0), call.attr("new_axis", 0), call.attr("axis")
    if axis is None:
        raise call.fail("needs the attribute axis")
    if not isinstance(element, TensorType):
        return None
    if element.shape is None:
        return element
    axis = axis_of(call, axis, len(element.shape) + (1 if new_axis else 0))
    rest = element.shape[axis:] if new_axis else element.shape[axis + 1 :]
    return TensorType(element.dtype, (*element.shape[:axis], None, *rest))


def _chunks(size: int, split: np.ndarray | None) -> list[int]:
    """Sizes of the parts of an axis of `size`: equal chunks for a scalar, else as listed; ones by default."""
    if split is None:
        return [1] * size
    if split.ndim == 0:
        chunk = int(split)
        if chunk <= 0:
            raise InputError(f"split is {chunk}, and must be positive")
        return [min(chunk, size - start) for start in range(0, size, chunk)]
    sizes = [int(n) for n in split.tolist()] if split.ndim == 1 else None
    if sizes is None:
        raise InputError(f"split must be a scalar or a list of sizes, and has shape {list(split.shape)}")
    if any(n < 0 for n in sizes) or sum(sizes) != size:
        raise InputError(f"split {sizes} must hold sizes that add up to {size}")
    return sizes


def _split_to(tensor, split=None, *, axis=0, keepdims=1):
    rank = tensor.ndim
    if not -rank <= axis < rank:
        raise InputError(f"axis {axis} is outside [-{rank}, {rank})")
    axis %= rank
    sizes = _chunks(tensor.shape[axis], None if split is None else np.asarray(split))
    starts = np.cumsum([0, *sizes], dtype=np.int64)
    parts = [tensor[(slice(None),) * axis + (slice(a, a + n),)] for a, n in zip(starts, sizes)]
    if split is None and not keepdims:
        parts = [part.squeeze(axis) for part in parts]
    return [np.array(part) for part in parts]


def _infer_split_to(call: Call) -> Type:
    """Element type: the joint size of the parts along the axis, or unknown where they differ."""
    tensor = call.tensor(0)
    if tensor.shape is None:
        return SequenceType(tensor)
    axis = axis_of(call, call.attr("axis", 0), len(tensor.shape))
    size, split = tensor.shape[axis], call.value(1)
    before, after = tensor.shape[:axis], tensor.shape[axis + 1 :]
    if not call.has(1):
        return SequenceType(
            TensorType(tensor.dtype, (*before, 1, *after) if call.attr("keepdims", 1) else before + after)
        )
    part: Dim = None
    if split is not None and isinstance(size, int):
        try:
            sizes = set(_chunks(size, np.asarray(split)))
        except InputError as error:
            raise call.fail(str(error)) from None
        part = sizes.pop() if len(sizes) == 1 else None
    return SequenceType(TensorType(tensor.dtype, (*before, part, *after)))


register(Op("ConcatFromSequence", since=11, infer=_infer_concat_from, reference=_concat_from))
register(Op("SplitToSequence", since=11, infer=_infer_split_to, reference=_split_to))


# ------------------------------------------------------------------------------------------------------ optionals


def _optional(value=None, *, type=None):
    return value


def _infer_optional(call: Call) -> Type:
    if call.has(0):
        kind = call.types[0]
        return kind if isinstance(kind, OptionalType) else OptionalType(kind)
    declared = call.attr("type")
    if declared is None:
        raise call.fail("needs an input, or the attribute type of the element that is absent")
    return declared if isinstance(declared, OptionalType) else OptionalType(declared)


def _get_element(value):
    if value is None:
        raise InputError("the optional is empty, and has no element to take; ask OptionalHasElement first")
    return value


def _infer_get_element(call: Call) -> Type | None:
    kind = call.types[0] if call.types else None
    return kind.element if isinstance(kind, OptionalType) else kind


def _has_element(value):
    return np.array(value is not None)


def _has_element18(value=None):
    return np.array(value is not None)


def _infer_has_element(call: Call) -> Type:
    return TensorType("bool", ())


register(Op("Optional", since=15, infer=_infer_optional, reference=_optional))
register(Op("OptionalGetElement", since=15, infer=_infer_get_element, reference=_get_element))
register(Op("OptionalHasElement", since=15, infer=_infer_has_element, reference=_has_element))
register(Op("OptionalHasElement", since=18, infer=_infer_has_element, reference=_has_element18))
