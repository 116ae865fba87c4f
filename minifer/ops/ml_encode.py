"""Encoding of features in ai.onnx.ml: look-ups, one-hot, imputation (maps have a file of their own).

Numbers are looked up by binary search over all elements at once, strings in a dict.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ModelError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.ml_scores import ML, exactly_one, label_type, same_shape_as_input
from minifer.ops.registry import Call, Op, register
from minifer.ops.shapes import product
from minifer.ops.text import strings


def _look_up(x: np.ndarray, keys: np.ndarray, last: bool = True) -> np.ndarray:
    """Positions of the elements of `x` in `keys`, -1 where they are missing. NaN finds NaN.

    Of equal keys the last one is found, or the first.
    """
    if len(keys) == 0:
        return np.full(x.shape, -1, np.int64)
    if x.dtype == object:
        pairs = list(enumerate(keys.tolist()))
        table = {key: i for i, key in (pairs if last else reversed(pairs))}
        found = np.array([table.get(key, -1) for key in x.reshape(-1).tolist()], np.int64)
        return found.reshape(x.shape)
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    at = np.searchsorted(ranked, x, side="right") - 1 if last else np.searchsorted(ranked, x, side="left")
    at = at.clip(0, len(keys) - 1)
    same = (ranked[at] == x) | ((ranked[at] != ranked[at]) & (x != x))
    return np.where(same, order[at], -1)


def _choose(positions: np.ndarray, values: np.ndarray, default: Any) -> np.ndarray:
    """values[positions], and `default` where a position is -1."""
    table = np.empty(len(values) + 1, values.dtype)
    table[:-1] = values
    table[-1] = default
    out = np.empty(positions.shape, values.dtype)
    out[...] = table[positions]
    return out


def _array(values: Any) -> np.ndarray:
    """A list attribute of strings, integers or floats (or a tensor attribute) as an array of rank 1."""
    if isinstance(values, np.ndarray):
        return values.reshape(-1)
    if len(values) and isinstance(values[0], str):
        return strings(values, (len(values),))
    return np.array(values, np.int64 if all(isinstance(v, int) for v in values) else np.float32)


def _of_type(name: str, values: Any) -> np.ndarray:
    """An attribute whose name ends in _floats, _int64s, _strings or _tensor as an array."""
    return np.array(values, np.float32) if name.endswith("_floats") else _array(values)


# ------------------------------------------------------------------------------------------------------- encoders


def _both_ways(x: np.ndarray, integers: np.ndarray, words: np.ndarray, default_int64: int, default_string: str):
    """int64 -> string or string -> int64, whichever way the input asks."""
    if x.dtype == object:
        return _choose(_look_up(x, words), integers, default_int64)
    if x.dtype == np.int64:
        return _choose(_look_up(x, integers), words, default_string)
    raise InputError(f"the input must hold strings or int64, not {x.dtype}")


def _infer_both_ways(call: Call) -> Type:
    kind = call.tensor(0)
    if kind.dtype not in ("string", "int64"):
        raise call.fail("the input must hold strings or int64")
    return TensorType("int64" if kind.dtype == "string" else "string", kind.shape)


def _category_mapper(x, *, cats_int64s=(), cats_strings=(), default_int64=-1, default_string="_Unused"):
    if len(cats_int64s) != len(cats_strings):
        raise ModelError(f"cats_int64s has {len(cats_int64s)} entries and cats_strings {len(cats_strings)}")
    integers, words = np.array(cats_int64s, np.int64), strings(cats_strings, (len(cats_strings),))
    return _both_ways(x, integers, words, default_int64, default_string)


def _label_encoder1(x, *, classes_strings=(), default_int64=-1, default_string="_Unused"):
    words = strings(classes_strings, (len(classes_strings),))
    return _both_ways(x, np.arange(len(words)), words, default_int64, default_string)


def _encode(x: np.ndarray, keys: tuple[str, Any], values: tuple[str, Any], default: Any, last: bool) -> np.ndarray:
    sources, targets = _of_type(*keys), _of_type(*values)
    if len(sources) != len(targets):
        raise ModelError(f"{keys[0]} has {len(sources)} entries and {values[0]} {len(targets)}")
    if sources.dtype != x.dtype:
        wanted, found = dtypes.from_numpy(sources.dtype), dtypes.from_numpy(x.dtype)
        raise InputError(f"{keys[0]} holds {wanted}, so the input must, and it is {found}")
    return _choose(_look_up(x, sources, last), targets, default)


def _default(dtype: np.dtype, default_int64: int, default_float: float, default_string: str) -> Any:
    if dtype.kind == "O":
        return default_string
    return default_float if dtype.kind == "f" else default_int64


def _label_encoder2(
    x,
    *,
    keys_floats=(),
    keys_int64s=(),
    keys_strings=(),
    values_floats=(),
    values_int64s=(),
    values_strings=(),
    default_float=-0.0,
    default_int64=-1,
    default_string="_Unused",
):
    """Of keys that are listed twice the first counts (version 4: the last)."""
    keys = exactly_one(keys_floats=keys_floats, keys_int64s=keys_int64s, keys_strings=keys_strings)
    values = exactly_one(values_floats=values_floats, values_int64s=values_int64s, values_strings=values_strings)
    default = _default(_of_type(*values).dtype, default_int64, default_float, default_string)
    return _encode(x, keys, values, default, last=False)


def _label_encoder4(
    x,
    *,
    keys_floats=(),
    keys_int64s=(),
    keys_strings=(),
    keys_tensor=None,
    values_floats=(),
    values_int64s=(),
    values_strings=(),
    values_tensor=None,
    default_float=-0.0,
    default_int64=-1,
    default_string="_Unused",
    default_tensor=None,
):
    keys = exactly_one(
        keys_floats=keys_floats, keys_int64s=keys_int64s, keys_strings=keys_strings, keys_tensor=keys_tensor
    )
    values = exactly_one(
        values_floats=values_floats,
        values_int64s=values_int64s,
        values_strings=values_strings,
        values_tensor=values_tensor,
    )
    default = _default(_of_type(*values).dtype, default_int64, default_float, default_string)
    if default_tensor is not None:
        if default_tensor.size != 1 or default_tensor.dtype != _of_type(*values).dtype:
            raise ModelError(f"default_tensor must hold one value of the type of {values[0]}")
        default = default_tensor.reshape(-1)[0]
    return _encode(x, keys, values, default, last=True)


_SUFFIXES = {"floats": "float32", "int64s": "int64", "strings": "string"}


def _infer_label_encoder(call: Call) -> Type:
    for suffix, dtype in _SUFFIXES.items():
        if call.attr(f"values_{suffix}"):
            return TensorType(dtype, call.shape(0))
    tensor = call.attr("values_tensor")
    if tensor is None:
        raise call.fail("needs one of values_floats, values_int64s, values_strings, values_tensor")
    return TensorType(dtypes.from_numpy(tensor.dtype), call.shape(0))


def _one_hot(x, *, cats_int64s=(), cats_strings=(), zeros=1):
    """A new last axis with a one at the position of the category (the last, of equal ones).

    Numbers are truncated to integers; those that are none (NaN, infinity) are in no category.
    """
    name, categories = exactly_one(cats_int64s=cats_int64s, cats_strings=cats_strings)
    if (x.dtype == object) != (name == "cats_strings"):
        raise InputError(f"{name} is given, and the input is {dtypes.from_numpy(x.dtype)}")
    whole = x
    valid = np.ones(x.shape, np.bool_)
    if x.dtype.kind == "f":
        valid = np.isfinite(x) & (np.abs(x) < 2.0**63)
        whole = np.where(valid, x, 0).astype(np.int64)
    at = np.where(valid, _look_up(whole, _array(categories)), -1)
    if not zeros and (at < 0).any():
        missing = x[at < 0].reshape(-1)[0]
        raise InputError(f"{missing!s} is in no category, and the attribute zeros=0 forbids that")
    return (at[..., None] == np.arange(len(categories))).astype(np.float32)


def _infer_one_hot(call: Call) -> Type:
    shape = call.shape(0)
    _, count = label_type(call, "cats_strings", "cats_int64s")
    return TensorType("float32", None if shape is None else (*shape, count))


register(Op("CategoryMapper", since=1, infer=_infer_both_ways, reference=_category_mapper, domain=ML))
register(Op("LabelEncoder", since=1, infer=_infer_both_ways, reference=_label_encoder1, domain=ML))
register(Op("LabelEncoder", since=2, infer=_infer_label_encoder, reference=_label_encoder2, domain=ML))
register(Op("LabelEncoder", since=4, infer=_infer_label_encoder, reference=_label_encoder4, domain=ML))
register(Op("OneHotEncoder", since=1, infer=_infer_one_hot, reference=_one_hot, domain=ML))


# ----------------------------------------------------------------------------------------------- choose and change


def _array_feature_extractor(x, indices):
    """x[..., indices]; a tensor of rank 1 counts as one row."""
    if x.ndim == 0:
        raise InputError("the data must have at least one axis")
    at, size = indices.reshape(-1), x.shape[-1]
    outside = at[(at < 0) | (at >= size)]
    if len(outside):
        raise InputError(f"index {int(outside[0])} is outside [0, {size}), the last axis of the data")
    return np.atleast_2d(x)[..., at]


def _infer_array_feature_extractor(call: Call) -> Type:
    data, indices = call.tensor(0), call.shape(1)
    count = None if indices is None else product(indices)
    if data.shape is None:
        return TensorType(data.dtype, None)
    if not data.shape:
        raise call.fail("the data must have at least one axis")
    return TensorType(data.dtype, ((1,) if len(data.shape) == 1 else data.shape[:-1]) + (count,))


def _binarizer(x, *, threshold=0.0):
    return np.asarray(x > threshold).astype(x.dtype)


def _feature_vectorizer(*inputs, inputdimensions=()):
    """Inputs (rows, ...) side by side as float32; each is cut, or filled with zeros, to the length that is listed."""
    if not inputs:
        raise InputError("at least one input is needed")
    parts = [x.reshape(1, -1) if x.ndim < 2 else x.reshape(len(x), int(np.prod(x.shape[1:]))) for x in inputs]
    if inputdimensions and len(inputdimensions) != len(parts):
        raise ModelError(f"inputdimensions has {len(inputdimensions)} entries for {len(parts)} inputs")
    if len({len(p) for p in parts}) > 1:
        raise InputError(f"the inputs have {', '.join(str(len(p)) for p in parts)} rows, and must have equally many")
    sizes = list(inputdimensions) or [p.shape[1] for p in parts]
    if min(sizes) < 0:
        raise ModelError(f"inputdimensions {sizes} must not be negative")
    out = np.zeros((len(parts[0]), sum(sizes)), np.float32)
    start = 0
    for part, size in zip(parts, sizes):
        used = min(size, part.shape[1])
        out[:, start : start + used] = part[:, :used]
        start += size
    return out


def _infer_feature_vectorizer(call: Call) -> Type:
    shapes = [call.shape(i) for i in range(len(call.node.inputs))]
    rows: Dim = None
    widths: list[Dim] = []
    for shape in shapes:
        if shape is None:
            widths.append(None)
            continue
        here: Dim = shape[0] if len(shape) > 1 else 1
        if isinstance(rows, int) and isinstance(here, int) and rows != here:
            raise call.fail(f"the inputs have {rows} and {here} rows, and must have equally many")
        rows = here if isinstance(here, int) or rows is None else rows
        widths.append(product(shape[1:]) if len(shape) > 1 else product(shape))
    widths = list(call.attr("inputdimensions", ())) or widths
    if len(widths) != len(shapes):
        raise call.fail(f"inputdimensions has {len(widths)} entries for {len(shapes)} inputs")
    known = [w for w in widths if isinstance(w, int)]
    return TensorType("float32", (rows, sum(known) if len(known) == len(widths) else None))


def _imputer(x, *, imputed_value_floats=(), imputed_value_int64s=(), replaced_value_float=0.0, replaced_value_int64=0):
    """Elements equal to the replaced value (NaN too) become the imputed one, of all features or of their own."""
    if x.dtype.kind == "f":
        imputed, replaced = imputed_value_floats, replaced_value_float
    else:
        imputed, replaced = imputed_value_int64s, replaced_value_int64
    features = x.shape[-1] if x.ndim else 1
    if len(imputed) not in (1, features):
        raise InputError(
            f"there are {len(imputed)} imputed values for {dtypes.from_numpy(x.dtype)} input of {features} features; "
            "1 or one for each is needed"
        )
    values = np.array(imputed, np.float64 if x.dtype.kind == "f" else np.int64)
    if x.dtype.kind != "f" and not np.array_equal(values, values.astype(x.dtype)):
        raise ModelError(f"imputed_value_int64s does not fit into {x.dtype}")
    hit = np.isnan(x) if replaced != replaced else x == replaced
    return np.where(hit, values.astype(x.dtype), x).reshape(x.shape)


register(
    Op(
        "ArrayFeatureExtractor",
        since=1,
        infer=_infer_array_feature_extractor,
        reference=_array_feature_extractor,
        domain=ML,
    )
)
register(Op("Binarizer", since=1, infer=same_shape_as_input(), reference=_binarizer, domain=ML))
register(Op("FeatureVectorizer", since=1, infer=_infer_feature_vectorizer, reference=_feature_vectorizer, domain=ML))
register(Op("Imputer", since=1, infer=same_shape_as_input(), reference=_imputer, domain=ML))
