"""Normalisations: Batch, Instance, Layer, Group and RMS.

All of them are y = (x - mean) / sqrt(variance + epsilon) * scale + bias and differ in what the statistics run over.
Statistics are population statistics, taken in float32 or wider.
Source: the ONNX specification; Ioffe and Szegedy 2015 (batch), Ulyanov et al. 2016 (instance), Ba et al. 2016
(layer), Wu and He 2018 (group), Zhang and Sennrich 2019 (root mean square).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minifer import dtypes
from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import Fail, wrap_axis
from minifer.ops.window import wide

lower_batch_norm, lower_group_norm, lower_instance_norm, lower_layer_norm, lower_rms_norm = deferred(
    "lower_norm", "lower_batch_norm", "lower_group_norm", "lower_instance_norm", "lower_layer_norm",
    "lower_rms_norm",
)  # fmt: skip


def mean_and_variance(x: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Population mean and variance over `axes`, kept as size-1 axes; NaN over nothing, without a warning."""
    count = x.dtype.type(math.prod(x.shape[a] for a in axes))
    mean = x.sum(axis=axes, keepdims=True) / count
    return mean, np.square(x - mean).sum(axis=axes, keepdims=True) / count


def _vector(fail: Fail, shape: Sequence[Dim] | None, length: Dim, name: str) -> None:
    """Raise unless `shape` may be [length]."""
    if shape is None:
        return
    if len(shape) != 1 or (isinstance(shape[0], int) and isinstance(length, int) and shape[0] != length):
        raise fail(f"{name} has shape {list(shape)}; [{length}] is needed")


def _along_channels(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A (C,) vector made to broadcast against x (N, C, D...)."""
    return v if x.ndim < 2 else v.reshape(-1, *(1,) * (x.ndim - 2))


# --- BatchNormalization ---


def _batch_norm(x, params, *, epsilon, momentum, training, spatial=1):
    """y, running mean, running variance, mean, variance; params are scale, bias, mean, variance of shape (C,), or
    (C, D...) where spatial is 0. The four statistics are float32 or wider and have the shape of the parameters."""
    channels = x.shape[1] if x.ndim > 1 else 1
    shape = (channels,) if spatial else x.shape[1:]
    for name, p in zip(("scale", "bias", "mean", "variance"), params):
        if p.shape != shape and not (not spatial and p.size == math.prod(shape)):
            raise ShapeError(f"{name} has shape {list(p.shape)}; {list(shape)} is needed")
    data = wide(x)
    scale, bias, mean, var = (wide(p).reshape(shape) for p in params)
    saved_mean, saved_var = mean, var
    if training:
        axes = (0,) if x.ndim < 2 or not spatial else (0, *range(2, x.ndim))
        saved_mean, saved_var = (s.reshape(shape) for s in mean_and_variance(data, axes))
        mean = mean * momentum + saved_mean * (1 - momentum)
        var = var * momentum + saved_var * (1 - momentum)
    factor = scale / np.sqrt(saved_var + saved_var.dtype.type(epsilon))
    if spatial:
        y = (data - _along_channels(saved_mean, x)) * _along_channels(factor, x) + _along_channels(bias, x)
    else:
        y = (data - saved_mean) * factor + bias
    return y.astype(x.dtype, copy=False), mean, var, saved_mean, saved_var


def _batch_norm_old(x, params, ctx, training, **options):
    """Versions 1 to 9, where all tensors have one dtype."""
    results = _batch_norm(x, params, training=training, **options)
    return tuple(r.reshape(p.shape).astype(x.dtype) if i else r for i, (r, p) in enumerate(zip(results, (x, *params))))


def _batch_norm_1(x, scale, b, mean, var, *, ctx, epsilon=1e-5, is_test=0, momentum=0.9, spatial=1):
    training = not is_test and ctx.outputs > 1  # one output alone is test mode
    params = (scale, b, mean, var)
    return _batch_norm_old(x, params, ctx, training, epsilon=epsilon, momentum=momentum, spatial=spatial)


def _batch_norm_7(x, scale, b, mean, var, *, ctx, epsilon=1e-5, momentum=0.9, spatial=1):
    params = (scale, b, mean, var)
    return _batch_norm_old(x, params, ctx, ctx.outputs > 1, epsilon=epsilon, momentum=momentum, spatial=spatial)


def _batch_norm_9(x, scale, b, mean, var, *, ctx, epsilon=1e-5, momentum=0.9):
    return _batch_norm_old(x, (scale, b, mean, var), ctx, ctx.outputs > 1, epsilon=epsilon, momentum=momentum)


def _batch_norm_14(x, scale, b, input_mean, input_var, *, epsilon=1e-5, momentum=0.9, training_mode=0):
    params = (scale, b, input_mean, input_var)
    y, mean, var, _, _ = _batch_norm(x, params, epsilon=epsilon, momentum=momentum, training=training_mode)
    return y, mean.astype(input_mean.dtype, copy=False), var.astype(input_var.dtype, copy=False)


def _infer_batch_norm(outputs: int):
    def infer(call: Call) -> list[TensorType]:
        x = call.tensor(0)
        if x.shape is not None and call.attr("spatial", 1):
            if not x.shape:
                raise call.fail("the input is a scalar; (batch, channels, ...) is needed")
            channels = x.shape[1] if len(x.shape) > 1 else 1
            for i, name in enumerate(("scale", "bias", "mean", "variance"), 1):
                _vector(call.fail, call.shape(i), channels, name)
        return [x, call.tensor(3), call.tensor(4), call.tensor(3), call.tensor(4)][:outputs]

    return infer


_LEGACY = ("consumed_inputs",)
register(
    Op(
        "BatchNormalization",
        since=1,
        infer=_infer_batch_norm(5),
        reference=_batch_norm_1,
        lower=lower_batch_norm,
        ignore=_LEGACY,
    )
)
register(Op("BatchNormalization", since=7, infer=_infer_batch_norm(5), reference=_batch_norm_7, lower=lower_batch_norm))
register(Op("BatchNormalization", since=9, infer=_infer_batch_norm(5), reference=_batch_norm_9, lower=lower_batch_norm))
register(
    Op("BatchNormalization", since=14, infer=_infer_batch_norm(3), reference=_batch_norm_14, lower=lower_batch_norm)
)


# --- InstanceNormalization ---


def _check_channels(fail: Fail, x: Sequence[Dim] | None, scale, bias) -> None:
    if x is None:
        return
    if len(x) < 3:
        raise fail(f"the input has rank {len(x)}; (batch, channels, spatial...) of rank 3 or more is needed")
    _vector(fail, scale, x[1], "scale")
    _vector(fail, bias, x[1], "bias")


def _instance_norm(x, scale, b, *, epsilon=1e-5):
    _check_channels(ShapeError, x.shape, scale.shape, b.shape)
    data = wide(x)
    mean, var = mean_and_variance(data, tuple(range(2, x.ndim)))
    y = (data - mean) / np.sqrt(var + data.dtype.type(epsilon))
    return (y * _along_channels(wide(scale), x) + _along_channels(wide(b), x)).astype(x.dtype, copy=False)


def _infer_instance_norm(call: Call) -> TensorType:
    _check_channels(call.fail, call.shape(0), call.shape(1), call.shape(2))
    return call.tensor(0)


register(
    Op(
        "InstanceNormalization",
        since=1,
        infer=_infer_instance_norm,
        reference=_instance_norm,
        lower=lower_instance_norm,
        ignore=_LEGACY,
    )
)


# --- GroupNormalization ---


def _check_groups(fail: Fail, x: Sequence[Dim] | None, groups: int, scale, bias, per_channel: bool) -> None:
    if groups < 1:
        raise fail(f"num_groups {groups} is below 1")
    if x is None:
        return
    if len(x) < 2:
        raise fail(f"the input has rank {len(x)}; (batch, channels, ...) is needed")
    if isinstance(x[1], int) and x[1] % groups:
        raise fail(f"{x[1]} channels do not divide into num_groups {groups}")
    for name, shape in (("scale", scale), ("bias", bias)):
        _vector(fail, shape, x[1] if per_channel else groups, name)


def _group_norm(x, scale, bias, epsilon, groups, per_channel):
    _check_groups(ShapeError, x.shape, groups, scale.shape, bias.shape, per_channel)
    split = wide(x).reshape(x.shape[0], groups, x.shape[1] // groups, math.prod(x.shape[2:]))
    mean, var = mean_and_variance(split, (2, 3))
    y = (split - mean) / np.sqrt(var + split.dtype.type(epsilon))
    shape = (groups, -1, 1) if per_channel else (groups, 1, 1)
    return (y * wide(scale).reshape(shape) + wide(bias).reshape(shape)).reshape(x.shape).astype(x.dtype, copy=False)


def _group_norm_18(x, scale, bias, *, num_groups, epsilon=1e-5):
    return _group_norm(x, scale, bias, epsilon, num_groups, per_channel=False)


def _group_norm_21(x, scale, bias, *, num_groups, epsilon=1e-5, stash_type=1):
    # stash_type may ask for less than float32 in the first stage; float32 serves both
    return _group_norm(x, scale, bias, epsilon, num_groups, per_channel=True)


def _infer_group_norm(per_channel: bool):
    def infer(call: Call) -> TensorType:
        groups = call.attr("num_groups", 0)
        _check_groups(call.fail, call.shape(0), groups, call.shape(1), call.shape(2), per_channel)
        return call.tensor(0)

    return infer


register(
    Op(
        "GroupNormalization",
        since=18,
        infer=_infer_group_norm(False),
        reference=_group_norm_18,
        lower=lower_group_norm.of(False),
    )
)
register(
    Op(
        "GroupNormalization",
        since=21,
        infer=_infer_group_norm(True),
        reference=_group_norm_21,
        lower=lower_group_norm.of(True),
    )
)


# --- LayerNormalization and RMSNormalization ---


def _stash_type(code: int, fail: Fail) -> str:
    """The element type of the statistics."""
    names = {dtypes.code_of_name(name): name for name in dtypes.FLOATS}
    if code not in names:
        raise fail(f"stash_type {code} is no floating-point type; 1 (float32) is the usual one")
    return names[code]


def _broadcasts(fail: Fail, shape: Sequence[Dim] | None, x: Sequence[Dim], name: str) -> None:
    """Raise unless `shape` broadcasts to x without enlarging it."""
    if shape is None:
        return
    pairs = zip(reversed(shape), reversed(x))
    clash = any(isinstance(a, int) and isinstance(b, int) and a != b and a != 1 for a, b in pairs)
    if len(shape) > len(x) or clash:
        raise fail(f"{name} of shape {list(shape)} does not broadcast to the input's {list(x)}")


def layer_norm(x, scale, bias, axis: int, epsilon: float):
    """y in the input's dtype; mean and 1 / standard deviation in float32 or wider, over the axes from `axis` on."""
    axes = tuple(range(wrap_axis(axis, x.ndim), x.ndim))
    _broadcasts(ShapeError, scale.shape, x.shape, "scale")
    data = wide(x)
    mean, var = mean_and_variance(data, axes)
    inverse = 1 / np.sqrt(var + data.dtype.type(epsilon))
    y = (data - mean) * inverse * wide(scale)
    if bias is not None:
        _broadcasts(ShapeError, bias.shape, x.shape, "bias")
        y = y + wide(bias)
    return y.astype(x.dtype, copy=False), mean, inverse


def _layer_norm(x, scale, b=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    stash = dtypes.to_numpy(_stash_type(stash_type, ShapeError))
    y, mean, inverse = layer_norm(x, scale, b, axis, epsilon)
    return y, mean.astype(stash, copy=False), inverse.astype(stash, copy=False)


def statistics_type(call: Call, x: TensorType, stash: str) -> TensorType:
    """Type of the mean: the input's shape with 1 from the attribute `axis` on."""
    if x.shape is None:
        return TensorType(stash)
    axis = wrap_axis(call.attr("axis", -1), len(x.shape), call.fail)
    return TensorType(stash, x.shape[:axis] + (1,) * (len(x.shape) - axis))


def _infer_layer_norm(call: Call) -> list[TensorType]:
    x, stash = call.tensor(0), _stash_type(call.attr("stash_type", 1), call.fail)
    if x.shape is not None:
        _broadcasts(call.fail, call.shape(1), x.shape, "scale")
        _broadcasts(call.fail, call.shape(2) if call.has(2) else None, x.shape, "bias")
    return [x, statistics_type(call, x, stash), statistics_type(call, x, stash)]


# ONNX Runtime's exports carry LayerNormalization under older opsets than 17, with the same meaning
register(Op("LayerNormalization", since=1, infer=_infer_layer_norm, reference=_layer_norm, lower=lower_layer_norm))


def rms_norm(x, scale, axis: int, epsilon: float):
    """y (float32 or wider) and 1 / root mean square over the axes from `axis` on."""
    axes = tuple(range(wrap_axis(axis, x.ndim), x.ndim))
    _broadcasts(ShapeError, scale.shape, x.shape, "scale")
    data = wide(x)
    count = data.dtype.type(math.prod(x.shape[a] for a in axes))
    mean = np.square(data).sum(axis=axes, keepdims=True) / count
    inverse = 1 / np.sqrt(mean + data.dtype.type(epsilon))
    return data * inverse * wide(scale), inverse


def _rms_norm(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    y, _ = rms_norm(x, scale, axis, epsilon)
    return y.astype(scale.dtype, copy=False)


def _infer_rms_norm(call: Call) -> TensorType:
    x = call.shape(0)
    if x is not None:
        wrap_axis(call.attr("axis", -1), len(x), call.fail)
        _broadcasts(call.fail, call.shape(1), x, "scale")
    return TensorType(call.dtype(1), x)


register(Op("RMSNormalization", since=23, infer=_infer_rms_norm, reference=_rms_norm, lower=lower_rms_norm))


def _simplified_layer_norm(x, scale, *, axis=-1, epsilon=1e-5, stash_type=1):
    y, inverse = rms_norm(x, scale, axis, epsilon)
    stash = dtypes.to_numpy(_stash_type(stash_type, ShapeError))
    return y.astype(scale.dtype, copy=False), inverse.astype(stash, copy=False)


def _infer_simplified(call: Call) -> list[TensorType]:
    y, stash = _infer_rms_norm(call), _stash_type(call.attr("stash_type", 1), call.fail)
    return [y, statistics_type(call, call.tensor(0), stash)]


# what ONNX Runtime exported before RMSNormalization existed, in either domain
for _domain in ("", "com.microsoft"):
    register(
        Op(
            "SimplifiedLayerNormalization",
            since=1,
            domain=_domain,
            infer=_infer_simplified,
            reference=_simplified_layer_norm,
            lower=lower_rms_norm,
        )
    )
