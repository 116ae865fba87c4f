"""DeformConv, which reads its input where an offset says, and CausalConvWithState, which carries a line's end along."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.conv import add_bias, check_bias, conv_shape, conv_window, known, may_equal
from minifer.ops.registry import Call, Op, register
from minifer.ops.shapes import Fail
from minifer.ops.window import Window, wide, window_of_call

# --- DeformConv ---


def _deform_shapes(fail: Fail, offset, mask, window: Window, batch: Dim, channels: Dim, groups: int) -> None:
    """Check the shapes of offset (N, G*taps*n, o...) and mask (N, G*taps, o...)."""
    taps, rank = math.prod(window.kernel), len(window.kernel)
    if groups < 1 or (isinstance(channels, int) and channels % groups):
        raise fail(f"{channels} input channels do not divide into offset_group {groups}")
    for name, shape, width in (("offset", offset, groups * taps * rank), ("mask", mask, groups * taps)):
        want = (batch, width, *window.out)
        if shape is not None and not may_equal(shape, want):
            raise fail(f"{name} has shape {list(shape)}; {list(want)} is needed")


def _sample(x: np.ndarray, where: Sequence[np.ndarray]) -> np.ndarray:
    """Linear interpolation of x (N, G, C/G, D...) at coordinates `where`, n arrays (N, G, o...); zero outside.

    Returns (N, G, C/G, o...).
    """
    spatial = x.shape[3:]
    flat = x.reshape(*x.shape[:3], -1)
    out = np.zeros((*x.shape[:3], *where[0].shape[2:]), x.dtype)
    # far outside everything is zero, so coordinates may be clipped there; NaN counts as outside
    near = [np.where(np.isnan(p), -2.0, np.clip(p, -2, d + 1)) for p, d in zip(where, spatial)]
    low = [np.floor(p).astype(np.int64) for p in near]
    for corner in itertools.product((0, 1), repeat=len(spatial)):
        weight = np.ones(where[0].shape, x.dtype)
        index = np.zeros(where[0].shape, np.int64)
        for p, start, up, size in zip(near, low, corner, spatial):
            at = start + up
            share = p - start if up else 1 - (p - start)
            weight *= np.where((at >= 0) & (at < size), share, 0).astype(x.dtype)
            index = index * size + np.clip(at, 0, size - 1)
        picked = np.take_along_axis(flat, index.reshape(*index.shape[:2], 1, -1), axis=3)
        out += picked.reshape(out.shape) * weight[:, :, None]
    return out


def _deform_conv(
    x, w, offset, b=None, mask=None, *, dilations=None, group=1, kernel_shape=None, offset_group=1, pads=None,
    strides=None,
):  # fmt: skip
    window = conv_window(x, w, group, kernel_shape, strides, dilations, pads, "NOTSET")
    batch, channels = x.shape[:2]
    mask_shape = None if mask is None else mask.shape
    _deform_shapes(ShapeError, offset.shape, mask_shape, window, batch, channels, offset_group)
    rank = x.ndim - 2
    out: tuple[int, ...] = window.out  # type: ignore[assignment]
    both = (slice(None), slice(None))
    data = wide(x).reshape(batch, offset_group, channels // offset_group, *x.shape[2:])
    shift = wide(offset).reshape(batch, offset_group, *window.kernel, rank, *out)
    factor = None if mask is None else wide(mask).reshape(batch, offset_group, *window.kernel, *out)
    weight = wide(w).reshape(group, w.shape[0] // group, w.shape[1], *window.kernel)
    y = np.zeros((batch, group, w.shape[0] // group, math.prod(out)), data.dtype)
    if data.size and y.size:
        places = np.indices(out)
        for tap in itertools.product(*map(range, window.kernel)):
            where = [
                places[i] * window.strides[i] - window.begin[i] + tap[i] * window.dilations[i]
                + shift[both + tap + (i,)]
                for i in range(rank)
            ]  # fmt: skip
            sample = _sample(data, where)
            if factor is not None:
                sample = sample * factor[both + tap][:, :, None]
            y += np.matmul(weight[(...,) + tap], sample.reshape(batch, group, channels // group, -1))
    return add_bias(y.reshape(batch, w.shape[0], *out), None if b is None else wide(b)).astype(x.dtype, copy=False)


def _infer_deform_conv(call: Call) -> TensorType:
    shape = conv_shape(call, 0, 1, 3)
    x, w = call.shape(0), call.shape(1)
    if shape is not None and x is not None and w is not None:
        kernel = call.attr("kernel_shape") or w[2:]
        if known(kernel):
            mask = call.shape(4) if call.has(4) else None
            window = window_of_call(call, x[2:], kernel)  # type: ignore[arg-type]
            _deform_shapes(call.fail, call.shape(2), mask, window, x[0], x[1], call.attr("offset_group", 1))
    return TensorType(call.dtype(0), shape)


register(Op("DeformConv", since=19, infer=_infer_deform_conv, reference=_deform_conv))


# --- CausalConvWithState ---

_ACTIVATIONS = ("none", "silu", "swish")


def _check_causal(fail: Fail, x: Sequence[Dim], w: Sequence[Dim], past: Sequence[Dim] | None, activation: str) -> None:
    if activation not in _ACTIVATIONS:
        raise fail(f"activation '{activation}' is not one of {', '.join(_ACTIVATIONS)}")
    if len(x) != 3 or len(w) != 3:
        raise fail(f"input and weight have ranks {len(x)} and {len(w)}; both must have 3")
    if isinstance(w[1], int) and w[1] != 1:
        raise fail(f"the weight has shape {list(w)}; (channels, 1, k) is needed")
    if isinstance(x[1], int) and isinstance(w[0], int) and x[1] != w[0]:
        raise fail(f"the input has {x[1]} channels and the weight {w[0]}; they must be equal")
    if isinstance(w[2], int) and w[2] < 1:
        raise fail("the kernel has no taps")
    if past is not None:
        want = (x[0], x[1], w[2] - 1 if isinstance(w[2], int) else None)
        if not may_equal(past, want):
            raise fail(f"past_state has shape {list(past)}; {list(want)} is needed")


def _causal_conv(x, w, bias=None, past_state=None, *, activation="none"):
    _check_causal(ShapeError, x.shape, w.shape, None if past_state is None else past_state.shape, activation)
    batch, channels, length = x.shape
    taps = w.shape[2]
    past = np.zeros((batch, channels, taps - 1), x.dtype) if past_state is None else past_state
    line = np.concatenate([past, x], axis=2)
    data, weight = wide(line), wide(w)
    y = np.zeros((batch, channels, length), data.dtype)
    for t in range(taps):
        y += data[:, :, t : t + length] * weight[:, 0, t, None]
    add_bias(y, None if bias is None else wide(bias))
    if activation != "none":
        y = y / (1 + np.exp(-y))
    return y.astype(x.dtype, copy=False), np.ascontiguousarray(line[:, :, length:])


def _infer_causal_conv(call: Call) -> list[TensorType]:
    x, w, dtype = call.shape(0), call.shape(1), call.dtype(0)
    if x is None or w is None:
        return [TensorType(dtype, x), TensorType(dtype)]
    past = call.shape(3) if call.has(3) else None
    _check_causal(call.fail, x, w, past, call.attr("activation", "none"))
    check_bias(call.fail, call.shape(2) if call.has(2) else None, x[1])
    state = (x[0], x[1], w[2] - 1 if isinstance(w[2], int) else None)
    return [TensorType(dtype, x), TensorType(dtype, state)]


register(Op("CausalConvWithState", since=27, infer=_infer_causal_conv, reference=_causal_conv))
