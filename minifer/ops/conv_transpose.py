"""ConvTranspose: every input element adds its multiple of the kernel into the output.

Shapes: x (N, C, D1..Dn), w (C, M/group, k1..kn), y (N, M, o1..on). The products of one image are one matrix product
per group; they are added up tap by tap on a canvas, of which the padding is cropped off.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType
from minifer.ops.conv import add_bias, check_bias, kernel_of, known
from minifer.ops.registry import Call, Declined, Op, deferred, register
from minifer.ops.shapes import Fail
from minifer.ops.window import AUTO_PADS, Window, per_axis, split_pads, wide

lower_conv_transpose = deferred("lower_conv", "lower_conv_transpose")


def _transpose_axis(fail: Fail, i: int, size: Dim, extent: int, step: int, more: int, pad, want: Dim, auto_pad: str):
    """(output size, cropped before, cropped behind) of one axis of a transposed convolution."""
    if want is None and not auto_pad.startswith("SAME"):
        if not isinstance(size, int):
            return size if step == 1 and extent - 1 + more == sum(pad) else None, *pad
        out = step * (size - 1) + more + extent - sum(pad) if size else 0
        if out < 0:
            raise fail(f"pads {pad} on spatial axis {i} crop more than the {out + sum(pad)} that there is")
        return out, *pad
    if not isinstance(size, int):
        return (want if want is not None else size if step == 1 else None), None, None
    out = want if isinstance(want, int) else size * step
    total = max(0, step * (size - 1) + more + extent - out)
    small, large = total // 2, total - total // 2
    return (out, small, large) if auto_pad == "SAME_UPPER" else (out, large, small)


def _transpose_window(
    fail: Fail, spatial, kernel, *, strides, dilations, pads, auto_pad, output_padding, output_shape
) -> Window:
    """The window of a transposed convolution; its `out` is the output's spatial shape, its pads are cropped off."""
    rank = len(spatial)
    kernel = per_axis(kernel, rank, "kernel_shape", 1, fail)
    strides = per_axis(strides, rank, "strides", 1, fail)
    dilations = per_axis(dilations, rank, "dilations", 1, fail)
    more = per_axis(output_padding, rank, "output_padding", 0, fail)
    if auto_pad not in AUTO_PADS:
        raise fail(f"auto_pad '{auto_pad}' is not one of {', '.join(AUTO_PADS)}")
    begin, end = split_pads(pads if auto_pad == "NOTSET" and not output_shape else None, rank, fail)
    want: Sequence[Dim] = (None,) * rank
    if output_shape:
        shape = output_shape[2:] if len(output_shape) == rank + 2 else output_shape  # old exporters give all axes
        want = per_axis(shape, rank, "output_shape", 0, fail)
    axes = []
    for i in range(rank):
        extent = (kernel[i] - 1) * dilations[i] + 1
        axes.append(
            _transpose_axis(fail, i, spatial[i], extent, strides[i], more[i], (begin[i], end[i]), want[i], auto_pad)
        )
    outs, befores, behinds = zip(*axes)
    return Window(kernel, strides, dilations, befores, behinds, outs)


def _check_transpose(fail: Fail, x: Sequence[Dim], w: Sequence[Dim], group: int) -> None:
    if len(x) < 3:
        raise fail(f"the input has rank {len(x)}; (batch, channels, spatial...) of rank 3 or more is needed")
    if len(w) != len(x):
        raise fail(f"the weight has rank {len(w)} and the input {len(x)}; they must be equal")
    if group < 1:
        raise fail(f"group {group} is below 1")
    if isinstance(x[1], int) and isinstance(w[0], int) and x[1] != w[0]:
        raise fail(f"the input has {x[1]} channels and the weight {w[0]}; they must be equal")
    if isinstance(w[0], int) and w[0] % group:
        raise fail(f"{w[0]} input channels do not divide into {group} groups")


def conv_transpose(x: np.ndarray, w: np.ndarray, window: Window, group: int) -> np.ndarray:
    """y (N, M, o...): every input element adds its multiple of the kernel into the output."""
    batch, channels = x.shape[:2]
    spatial = x.shape[2:]
    per_group = w.shape[1]
    out: tuple[int, ...] = window.out  # type: ignore[assignment]
    y = np.zeros((batch, per_group * group, *out), x.dtype)
    if not y.size or not x.size:
        return y
    # the canvas is wide enough for every product and for the part of it that is kept
    reach = [
        (d - 1) * s + (k - 1) * g + 1 for d, s, k, g in zip(spatial, window.strides, window.kernel, window.dilations)
    ]
    canvas_shape = tuple(max(r, b + o) for r, (b, _), o in zip(reach, window.pads, out))
    kept = tuple(slice(b, b + o) for (b, _), o in zip(window.pads, out))
    weight = w.reshape(group, channels // group, -1).transpose(0, 2, 1)
    for n in range(batch):
        columns = np.matmul(weight, x[n].reshape(group, channels // group, -1))
        columns = columns.reshape(per_group * group, *window.kernel, *spatial)
        canvas = np.zeros((per_group * group, *canvas_shape), x.dtype)
        for tap in itertools.product(*map(range, window.kernel)):
            place = tuple(
                slice(t * g, t * g + (d - 1) * s + 1, s)
                for t, g, d, s in zip(tap, window.dilations, spatial, window.strides)
            )
            canvas[(slice(None),) + place] += columns[(slice(None),) + tap]
        y[n] = canvas[(slice(None),) + kept]
    return y


def _conv_transpose_reference(
    x, w, b=None, *, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None,
    output_shape=None, pads=None, strides=None,
):  # fmt: skip
    _check_transpose(ShapeError, x.shape, w.shape, group)
    kernel = kernel_of(ShapeError, w.shape, kernel_shape)
    window = _transpose_window(
        ShapeError, x.shape[2:], kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad,
        output_padding=output_padding, output_shape=output_shape,
    )  # fmt: skip
    y = conv_transpose(wide(x), wide(w), window, group)
    return add_bias(y, None if b is None else wide(b)).astype(x.dtype, copy=False)


def _infer_conv_transpose(call: Call) -> TensorType:
    x, w, group = call.shape(0), call.shape(1), call.attr("group", 1)
    if x is None or w is None:
        return TensorType(call.dtype(0))
    _check_transpose(call.fail, x, w, group)
    kernel = kernel_of(call.fail, w, call.attr("kernel_shape"))
    channels = w[1] * group if isinstance(w[1], int) else (w[1] if group == 1 else None)
    check_bias(call.fail, call.shape(2) if call.has(2) else None, channels)
    spatial: tuple[Dim, ...] = (None,) * len(kernel)
    if known(kernel):
        names = ("strides", "dilations", "pads", "output_padding", "output_shape")
        options = {name: call.attr(name) for name in names}
        window = _transpose_window(call.fail, x[2:], kernel, auto_pad=call.attr("auto_pad", "NOTSET"), **options)
        spatial = window.out
    return TensorType(call.dtype(0), (x[0], channels, *spatial))


def _lower_conv_transpose(low: Any) -> Declined | None:
    names = ("strides", "dilations", "pads", "output_padding", "output_shape")
    kernel = kernel_of(ShapeError, low.shape(1), low.attr("kernel_shape"))
    options = {name: low.attr(name) for name in names}
    window = _transpose_window(ShapeError, low.shape(0)[2:], kernel, auto_pad=low.attr("auto_pad", "NOTSET"), **options)
    return lower_conv_transpose(low, window)


register(
    Op(
        "ConvTranspose",
        since=1,
        infer=_infer_conv_transpose,
        reference=_conv_transpose_reference,
        lower=_lower_conv_transpose,
    )
)
