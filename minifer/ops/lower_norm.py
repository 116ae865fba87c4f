"""Normalisations as kernel calls: by rows, and by channel in whichever layout the data lies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minifer.kernels import lrn, norm
from minifer.kernels.binary import BINARY
from minifer.kernels.elementwise import broadcast_table, dense_strides
from minifer.ops.lower_elementwise import (
    IDENTITY,
    UNBOUNDED,
    WIDE,
    Result,
    activation_after,
    layout_of,
    memory_order,
    no_kernel,
    widened,
)
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.ops.shapes import integers


def wide_type(low: Any, i: int = 0) -> str:
    """The type in which an input is computed."""
    return WIDE.get(low.dtype(i), low.dtype(i))


def vector(low: Any, i: int, size: int) -> Any:
    """Input `i` broadcast to `size` float32 numbers; None where that is not known while planning."""
    if low.value(i) is None:
        fits = math.prod(low.shape(i)) == size and wide_type(low, i) == "float32"
        return widened(low, low.input(i)) if fits else None
    value = np.asarray(low.value(i)).astype(np.float32).reshape(-1)
    return low.const(np.array(np.broadcast_to(value, (size,)))) if value.size in (1, size) else None


# ---------------------------------------------------------------- rows


def _rows(
    low: Any, axis: int, scale: int, bias: int | None, flags: int, statistics: tuple[int, int]
) -> Declined | None:
    """LayerNorm or RMSNorm over the axes from `axis` on; `statistics`: outputs for mean and inverse, -1: none."""
    dims = low.shape(0)
    first = axis % max(len(dims), 1)
    rows, n = math.prod(dims[:first]), math.prod(dims[first:])
    if wide_type(low) != "float32":
        return no_kernel(low, low.dtype(0))
    if any(i is not None and not _trailing(low.shape(i), dims[first:]) for i in (scale, bias)):
        return Declined("scale or bias varies over the batch")
    factor = vector(low, scale, n)
    shift = vector(low, bias, n) if bias is not None else None
    if factor is None or (bias is not None and shift is None):
        return Declined("scale or bias is not constant and has another shape than what is normalised")
    wanted = [i for i in statistics if i >= 0 and low.wants(i)]
    if any(low.out_type(i).dtype != "float32" for i in wanted):
        return Declined("statistics in another type than float32")
    x = widened(low, low.input(0))
    y = Result(low, PLAIN)
    spare = low.scratch(4 * rows, "float32") if wanted else None
    mean, inverse = (low.output(i) if i in wanted else spare for i in statistics)
    flags |= norm.HAS_BIAS * (shift is not None) | norm.STATISTICS * bool(wanted)
    epsilon = low.attr("epsilon", 1e-5)
    low.call(
        norm.layer_norm, x, None, factor, shift, y.slot, None, mean, inverse, rows, n, epsilon, flags
    )  # fmt: skip
    y.close()
    return None


def _trailing(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    """Whether a tensor is one number, or has just the dimensions that are normalised."""
    return math.prod(shape) == 1 or (math.prod(shape) == math.prod(dims) and len(shape) <= len(dims) + _ones(shape))


def _ones(shape: tuple[int, ...]) -> int:
    """How many leading dimensions are 1."""
    return next((i for i, d in enumerate(shape) if d != 1), len(shape))


def lower_layer_norm(low: Any) -> Declined | None:
    """LayerNormalization, with its optional statistics."""
    return _rows(low, low.attr("axis", -1), 1, 2 if low.has(2) else None, 0, (1, 2))


def lower_rms_norm(low: Any) -> Declined | None:
    """RMSNormalization, and SimplifiedLayerNormalization with its optional 1 / root mean square."""
    if low.out_type().dtype != low.dtype(0):
        return Declined("the scale has another element type than the input")
    return _rows(low, low.attr("axis", -1), 1, None, norm.ROOT_MEAN_SQUARE, (-1, 1))


def lower_skip_layer_norm(low: Any) -> Declined | None:
    """SkipLayerNormalization: (input, skip, gamma, beta, bias)."""
    return _skip(low, 3 if low.has(3) else None, 4 if low.has(4) else None, 0)


def lower_skip_rms_norm(low: Any) -> Declined | None:
    """SkipSimplifiedLayerNormalization: (input, skip, gamma, bias)."""
    return _skip(low, None, 3 if low.has(3) else None, norm.ROOT_MEAN_SQUARE)


def _skip(low: Any, beta: int | None, bias: int | None, flags: int) -> Declined | None:
    dims = low.shape(0)
    n = dims[-1]
    rows = math.prod(dims[:-1])
    if low.dtype(0) != "float32":
        return no_kernel(low, low.dtype(0))
    if low.shape(1)[-2:] != dims[-2:] or (bias is not None and low.shape(bias) != (n,)):
        return Declined("skip or bias do not fit the input")
    skip = low.input(1)
    if low.shape(1) != dims or bias is not None:
        skip = _skip_and_bias(low, dims, bias)
        if skip is None:
            return Declined("skip does not broadcast to the input")
    factor = vector(low, 2, n)
    shift = vector(low, beta, n) if beta is not None else None
    if factor is None or (beta is not None and shift is None):
        return Declined("gamma or beta are of another type or size")
    wanted = low.wants(1) or low.wants(2)
    spare = low.scratch(4 * rows, "float32") if wanted else None
    statistics = [low.output(i) if low.wants(i) else spare for i in (1, 2)]
    total = low.output(3) if low.wants(3) else low.scratch(4 * rows * n, "float32")
    flags |= norm.HAS_SKIP | norm.HAS_BIAS * (shift is not None) | norm.STATISTICS * wanted
    low.call(
        norm.layer_norm, low.input(0), skip, factor, shift, low.output(0), total, *statistics, rows, n,
        low.attr("epsilon", 1e-12), flags,
    )  # fmt: skip
    return None


def _skip_and_bias(low: Any, dims: tuple[int, ...], bias: int | None) -> Any:
    """skip (input 1, whose leading axes may be repeated) plus the bias, of the input's shape; None if it cannot be."""
    shape = low.shape(1)
    if len(shape) > len(dims) or any(a not in (1, b) for a, b in zip(reversed(shape), reversed(dims))):
        return None
    own = [0] * (len(dims) - len(shape)) + dense_strides(shape)
    table = broadcast_table(dims, own, [*[0] * (len(dims) - 1), 1])
    if table is None:
        return None
    addend = low.input(bias) if bias is not None else low.const(np.zeros(dims[-1], np.float32))
    made = low.scratch(4 * math.prod(dims), "float32")
    low.call(BINARY["add_f32"], low.input(1), addend, made, low.const(table), *UNBOUNDED)
    return made


# ---------------------------------------------------------------- by channel


def _space(dims: tuple[int, ...]) -> tuple[int, int, int]:
    """(batch, channels, area) of (N, C, D...)."""
    return dims[0], dims[1] if len(dims) > 1 else 1, math.prod(dims[2:])


def _scale(low: Any, x: Any, y: Any, layout: str, numbers: tuple[Any, Any, Any], each: bool, tail: tuple) -> None:
    """y = activate((x - centre) * factor + shift) by channel; `each`: every image has numbers of its own."""
    batch, channels, area = _space(low.shape(0))
    if layout == CHANNELS_LAST:
        together = area if each else batch * area
        low.call(norm.scale_columns, x, *numbers, y, batch * area, channels, together, *tail)
    else:
        low.call(norm.scale_rows, x, *numbers, y, batch * channels, area, channels * (batch if each else 1), *tail)


def _take_affine(low: Any, factor: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absorb the multiplications and additions by channel that follow; returns factor and bias with them."""
    dims = low.out_shape()
    while (found := low.follower()) is not None:
        index, node = found
        if node.op not in ("Mul", "Add") or node.domain or node.version < 7:
            break
        other = node.inputs[1] if node.inputs[0] == low.outputs[0] else node.inputs[0]
        value = low.planner.known.get(other)
        if value is None or value.dtype != np.float32 or value.ndim > len(dims):
            break
        shape = (1,) * (len(dims) - value.ndim) + value.shape
        if any(d not in ((1, dims[1]) if i == 1 else (1,)) for i, d in enumerate(shape)):
            break
        number = np.broadcast_to(value.reshape(-1), (dims[1] if len(dims) > 1 else 1,)).astype(np.float64)
        factor, bias = (factor * number, bias * number) if node.op == "Mul" else (factor, bias + number)
        low.absorb(index)
    return factor, bias


def lower_batch_norm(low: Any) -> Declined | None:
    """BatchNormalization with given statistics."""
    if wide_type(low) != "float32":
        return no_kernel(low, low.dtype(0))
    if low.attr("training_mode", 0) or any(low.wants(i) for i in range(1, 5)) or not low.attr("spatial", 1):
        return Declined("no kernel for training, or statistics of each position")
    channels = _space(low.shape(0))[1]
    epsilon = low.attr("epsilon", 1e-5)
    tail: tuple = IDENTITY
    layout = layout_of(low)
    if all(low.value(i) is not None for i in range(1, 5)):
        scale, bias, mean, variance = (np.asarray(low.value(i)).astype(np.float64) for i in range(1, 5))
        factor = scale / np.sqrt(variance + epsilon)
        if low.dtype(0) == "float32":
            factor, bias = _take_affine(low, factor, bias)
            tail = activation_after(low)
        numbers = tuple(low.const(v.astype(np.float32)) for v in (mean, factor, bias))
    else:
        scale, bias, mean, variance = (vector(low, i, channels) for i in range(1, 5))
        if any(v is None for v in (scale, bias, mean, variance)):
            return Declined("parameters of a type that kernels do not know")
        numbers = tuple(low.scratch(4 * channels, "float32") for _ in range(3))
        low.call(norm.coefficients, mean, variance, scale, bias, *numbers, 1, channels, channels, 0, epsilon, 0)
    x = widened(low, low.input(0, layout))
    y = Result(low, layout)
    _scale(low, x, y.slot, layout, numbers, False, tail)
    y.close()
    return None


def _by_groups(low: Any, groups: int, per_group: bool) -> Declined | None:
    """Normalise groups of channels of each image by their own statistics."""
    if wide_type(low) != "float32":
        return no_kernel(low, low.dtype(0))
    batch, channels, area = _space(low.shape(0))
    own = groups if per_group else channels
    scale, bias = vector(low, 1, own), vector(low, 2, own)
    if scale is None or bias is None:
        return Declined("scale or bias of a type that kernels do not know")
    layout = layout_of(low)
    x = widened(low, low.input(0, layout))
    mean, variance, *numbers = (low.scratch(4 * batch * channels, "float32") for _ in range(5))
    if layout == CHANNELS_LAST:
        low.call(norm.moments, x, mean, variance, batch, area, channels)
    else:
        low.call(norm.moments, x, mean, variance, batch * channels, area, 1)
    epsilon = low.attr("epsilon", 1e-5)
    low.call(
        norm.coefficients, mean, variance, scale, bias, *numbers, batch, channels, groups, int(per_group), epsilon, 0
    )  # fmt: skip
    tail = activation_after(low)
    y = Result(low, layout)
    _scale(low, x, y.slot, layout, tuple(numbers), True, tail)
    y.close()
    return None


def lower_instance_norm(low: Any) -> Declined | None:
    """InstanceNormalization."""
    return _by_groups(low, low.shape(0)[1], False)


def lower_group_norm(per_channel: bool) -> Any:
    """GroupNormalization with scale and bias per channel or per group."""
    return lambda low: _by_groups(low, low.attr("num_groups"), not per_channel)


def lower_mean_variance_norm(low: Any) -> Declined | None:
    """MeanVarianceNormalization over all axes but the channels', or over all of space."""
    dims = low.shape(0)
    rank = len(dims)
    axes = sorted(a % rank for a in integers(low.attr("axes", (0, 2, 3))))
    if wide_type(low) != "float32" or rank < 2 or axes not in ([0, *range(2, rank)], list(range(2, rank))):
        return Declined("axes or an element type that kernels do not know")
    batch, channels, area = _space(dims)
    together = 1 if axes[0] == 0 else batch
    layout = CHANNELS_LAST if together == 1 else layout_of(low)
    x = widened(low, low.input(0, layout))
    mean, variance, *numbers = (low.scratch(4 * together * channels, "float32") for _ in range(5))
    if layout == CHANNELS_LAST:
        low.call(norm.moments, x, mean, variance, together, batch * area // together, channels)
    else:
        low.call(norm.moments, x, mean, variance, batch * channels, area, 1)
    ones, zeros = low.const(np.ones(channels, np.float32)), low.const(np.zeros(channels, np.float32))
    low.call(norm.coefficients, mean, variance, ones, zeros, *numbers, together, channels, channels, 0, 0, 1e-9)
    y = Result(low, layout)
    _scale(low, x, y.slot, layout, tuple(numbers), together > 1, IDENTITY)
    y.close()
    return None


def lower_lp_norm(low: Any) -> Declined | None:
    """LpNormalization."""
    if wide_type(low) != "float32":
        return no_kernel(low, low.dtype(0))
    dims, layout = low.shape(0), layout_of(low)
    order = memory_order(len(dims), layout)
    at = order.index(low.attr("axis", -1) % len(dims))
    sizes = [dims[i] for i in order]
    x = widened(low, low.input(0, layout))
    y = Result(low, layout)
    outer, inner = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
    low.call(norm.lp_normalize, x, y.slot, outer, sizes[at], inner, low.attr("p", 2))
    y.close()
    return None


def lower_lrn(low: Any) -> Declined | None:
    """LRN in either layout."""
    if low.dtype(0) != "float32":
        return no_kernel(low, low.dtype(0))
    batch, channels, area = _space(low.shape(0))
    if low.attr("bias", 1.0) <= 0 or low.attr("alpha", 1e-4) < 0:
        return Declined("powers of numbers that may be negative")
    if low.attr("size") > 2 * channels:
        return Declined("the window is far wider than there are channels")
    layout = layout_of(low)
    x, y = low.input(0, layout), low.output(0, layout)
    outer, inner = (batch * area, 1) if layout == CHANNELS_LAST else (batch, area)
    numbers = low.attr("size"), low.attr("alpha", 1e-4), low.attr("beta", 0.75), low.attr("bias", 1.0)
    low.call(lrn.lrn, x, y, outer, channels, inner, *numbers)
    return None
