"""MaxPool and AveragePool as kernel calls on channels-last tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from minifer.errors import ShapeError
from minifer.kernels import pooling, qlinear
from minifer.ops.lower_conv import three
from minifer.ops.registry import CHANNELS_LAST, Declined
from minifer.ops.window import slide


def lower_max_pool(low: Any) -> Declined | None:
    """MaxPool of float32 or bytes, without indices."""
    if low.wants(1):
        return Declined("no kernel for the Indices output")
    if low.dtype(0) in ("int8", "uint8"):
        return _max_of_bytes(low)
    return _pool(low, pooling.MAX)


def lower_average_pool(low: Any) -> Declined | None:
    """float32 AveragePool."""
    return _pool(low, pooling.AVERAGE)


def _max_of_bytes(low: Any) -> Declined | None:
    if not 3 <= len(low.shape(0)) <= 5:
        return Declined(f"no pooling kernel in {len(low.shape(0)) - 2} spatial dimensions")
    size, out, tables = _windows(low)
    x, y = low.input(0, CHANNELS_LAST), low.output(0, CHANNELS_LAST)
    flip = 0x80 if low.dtype(0) == "int8" else 0
    low.call(qlinear.max_pool, x, y, low.const(tables), *low.shape(0)[:2], *size, *out, flip)
    return None


def _pool(low: Any, mode: int) -> Declined | None:
    shape = low.shape(0)
    rank = len(shape) - 2
    if low.dtype(0) != "float32" or not 1 <= rank <= 3:
        return Declined(f"no pooling kernel for {low.dtype(0)} in {rank} spatial dimensions")
    size, out, tables = _windows(low)
    x = low.input(0, CHANNELS_LAST)
    y = low.output(0, CHANNELS_LAST)
    low.call(pooling.pool, x, y, low.const(tables), shape[0], shape[1], *size, *out, mode)
    return None


def _windows(low: Any) -> tuple[tuple[int, ...], tuple[int, ...], np.ndarray]:
    """(input sizes, output sizes, the axis tables that kernels take)."""
    shape = low.shape(0)
    window = slide(
        ShapeError, shape[2:], low.attr("kernel_shape"), strides=low.attr("strides"), dilations=low.attr("dilations"),
        pads=low.attr("pads"), auto_pad=low.attr("auto_pad", "NOTSET"), ceil_mode=low.attr("ceil_mode", 0),
    )  # fmt: skip
    padded = bool(low.attr("count_include_pad", 0))
    size, out = three(shape[2:], 1), three(window.out, 1)
    taps, strides, dilations = three(window.kernel, 1), three(window.strides, 1), three(window.dilations, 1)
    begin, end = three([b for b, _ in window.pads], 0), three([e for _, e in window.pads], 0)
    tables = [
        pooling.axis_table(size[i], out[i], taps[i], strides[i], dilations[i], begin[i], end[i], padded)
        for i in range(3)
    ]
    return size, out, np.concatenate(tables)
