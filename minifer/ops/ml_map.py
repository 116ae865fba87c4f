"""Maps in ai.onnx.ml, held as Python dicts: CastMap, DictVectorizer, ZipMap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ModelError
from minifer.ir import MapType, SequenceType, TensorType, Type
from minifer.ops.ml_scores import ML, exactly_one, label_type
from minifer.ops.registry import Call, Op, register
from minifer.ops.text import strings


def _need_map(x: Any) -> dict[Any, Any]:
    if not isinstance(x, dict):
        raise InputError(f"a map is needed, and the input is {type(x).__name__}")
    return x


_CASTS = {"TO_FLOAT": "float32", "TO_STRING": "string", "TO_INT64": "int64"}


def _cast_value(value: Any, target: str) -> Any:
    """One map value (str or float) as str, float or int; floats are written with six decimals."""
    if target == "TO_STRING":
        return value if isinstance(value, str) else f"{float(value):f}"
    try:
        return float(value) if target == "TO_FLOAT" else int(float(value))
    except (ValueError, OverflowError):
        raise InputError(f"the map value {value!r} is no number that {target} can take") from None


def _cast_map(x, *, cast_to="TO_FLOAT", map_form="DENSE", max_map=1):
    """Map values in the order of their keys (DENSE), or each at the position of its key (SPARSE): (1, count)."""
    items = sorted(_need_map(x).items())
    if cast_to not in _CASTS or map_form not in ("DENSE", "SPARSE"):
        raise ModelError(f"cast_to {cast_to!r} or map_form {map_form!r} is not known")
    if any(isinstance(key, str) for key, _ in items):
        raise InputError("the keys of the map must be integers")
    values = [_cast_value(value, cast_to) for _, value in items]
    if map_form == "DENSE":
        slots = values
    else:
        if items and not 0 <= items[0][0] <= items[-1][0] < max_map:
            raise InputError(f"the keys of the map must lie in [0, {max_map})")
        slots = ["" if cast_to == "TO_STRING" else 0] * max(max_map, 0)
        for (key, _), value in zip(items, values):
            slots[int(key)] = value
    if cast_to == "TO_STRING":
        return strings(slots, (1, len(slots)))
    return np.array(slots, dtypes.to_numpy(_CASTS[cast_to])).reshape(1, -1)


def _infer_cast_map(call: Call) -> Type:
    dtype = _CASTS.get(call.attr("cast_to", "TO_FLOAT"))
    if dtype is None:
        raise call.fail(f"cast_to must be one of {', '.join(_CASTS)}")
    sparse = call.attr("map_form", "DENSE") == "SPARSE"
    return TensorType(dtype, (1, call.attr("max_map", 1) if sparse else None))


def _map_dtype(values: Sequence[Any]) -> np.dtype:
    """The element type of map values: that of NumPy scalars and arrays, float32 of Python floats."""
    for value in values:
        if isinstance(value, str):
            return np.dtype(object)
        if isinstance(value, np.ndarray | np.generic):
            return value.dtype
        return np.dtype(np.int64 if isinstance(value, int) else np.float32)
    return np.dtype(np.float32)


def _dict_vectorizer(x, *, int64_vocabulary=(), string_vocabulary=()):
    """Map values at the positions that the vocabulary gives their keys: (1, size). Unknown keys are left out."""
    name, words = exactly_one(int64_vocabulary=int64_vocabulary, string_vocabulary=string_vocabulary)
    items = _need_map(x)
    if any(isinstance(key, str) != (name == "string_vocabulary") for key in items):
        raise InputError(f"the keys of the map are of another type than {name}")
    dtype = _map_dtype(list(items.values()))
    out = np.full((1, len(words)), "" if dtype.kind == "O" else 0, dtype)
    for i, word in enumerate(words):
        if word in items:
            out[0, i] = items[word]
    return out


def _infer_dict_vectorizer(call: Call) -> Type | None:
    _, count = label_type(call, "string_vocabulary", "int64_vocabulary")
    kind = call.types[0] if call.types else None
    if kind is not None and not isinstance(kind, MapType):
        raise call.fail("input 0 must be a map")
    value = kind.value if isinstance(kind, MapType) else None
    return TensorType(value.dtype, (1, count)) if isinstance(value, TensorType) else None


def _zip_map(x, *, classlabels_int64s=(), classlabels_strings=()):
    """A list with a dict for each row: label -> value of its column (float32 scalars)."""
    _, labels = exactly_one(classlabels_int64s=classlabels_int64s, classlabels_strings=classlabels_strings)
    if x.ndim not in (1, 2) or x.shape[-1] != len(labels):
        raise InputError(f"the input must have {len(labels)} columns, one for each label, and has {list(x.shape)}")
    return [dict(zip(labels, row)) for row in np.atleast_2d(x)]


def _infer_zip_map(call: Call) -> Type:
    dtype, _ = label_type(call, "classlabels_strings", "classlabels_int64s")
    return SequenceType(MapType(dtype, TensorType("float32", ())))


register(Op("CastMap", since=1, infer=_infer_cast_map, reference=_cast_map, domain=ML))
register(Op("DictVectorizer", since=1, infer=_infer_dict_vectorizer, reference=_dict_vectorizer, domain=ML))
register(Op("ZipMap", since=1, infer=_infer_zip_map, reference=_zip_map, domain=ML))
