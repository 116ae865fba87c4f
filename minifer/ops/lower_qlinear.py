"""The quantised elementwise operators and pools of com.microsoft as kernel calls.

A function of one tensor with known scales is a table of 256 bytes; the operator's own reference fills it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import ShapeError
from minifer.kernels import pooling, qlinear, quantize
from minifer.kernels.elementwise import PIECE, piece_count
from minifer.ops.lower_conv import three
from minifer.ops.lower_elementwise import TOO_MANY_AXES, layout_of, operands, table_of
from minifer.ops.lower_integer import BYTES, count, flip
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.ops.window import slide

Lower = Callable[[Any], "Declined | None"]


def _every_byte(dtype: str) -> np.ndarray:
    """All values of an 8-bit type, in the order of their bytes."""
    return np.arange(256).astype(np.uint8).view(dtypes.to_numpy(dtype))


def _scalars(low: Any, scales: tuple[int, ...], zeros: tuple[int, ...], dtype: str) -> Declined | None:
    """Why kernels cannot take these scales and zero points."""
    for i in (*scales, *zeros):
        wanted = "float32" if i in scales else dtype
        if low.has(i) and (low.dtype(i) != wanted or count(low.shape(i)) != 1):
            return Declined(f"input {i} is {low.dtype(i)}{low.shape(i)}, no {wanted} scalar")
    return None


def _zero(low: Any, i: int) -> Any:
    """A zero point; 0 where it is omitted."""
    return low.input(i) if low.has(i) else low.const(np.zeros(1, np.uint8))


# ---------------------------------------------------------------- functions of one tensor


def lower_table(reference: Callable[..., np.ndarray]) -> Lower:
    """The lowering of a function of input 0 whose other inputs are scales and zero points."""

    def lower(low: Any) -> Declined | None:
        others = [low.value(i) if low.has(i) else None for i in range(1, len(low.node.inputs))]
        if low.dtype(0) not in BYTES or any(v is None and low.has(i + 1) for i, v in enumerate(others)):
            return Declined("no kernel but for 8-bit integers with known scales")
        with np.errstate(all="ignore"):
            table = reference(_every_byte(low.dtype(0)), *others, **low.node.attrs)
        x = low.input(0, layout_of(low))
        y = low.output(0, layout_of(low))
        low.call(qlinear.translate, x, low.const(table), y, 1, x.size, x.size, 0)
        return None

    return lower


def lower_concat(reference: Callable[..., np.ndarray]) -> Lower:
    """QLinearConcat: a table for each part."""

    def lower(low: Any) -> Declined | None:
        parts = range(2, len(low.node.inputs), 3)
        needed = [0, 1, *(i for p in parts for i in (p + 1, p + 2))]
        if not all(low.has(i) and low.value(i) is not None for i in needed):
            return Declined("a scale or a zero point is not known")
        if any(low.dtype(p) not in BYTES or 0 in low.shape(p) for p in parts) or low.out_type().dtype not in BYTES:
            return Declined("no kernel but for 8-bit integers that are not empty")
        shape = low.out_shape()
        axis = low.attr("axis") % len(shape)
        last = all(CHANNELS_LAST in low.layouts(p) for p in parts)
        layout = CHANNELS_LAST if last else PLAIN
        place = axis if not last or axis == 0 else (len(shape) - 1 if axis == 1 else axis - 1)
        y = low.output(0, layout)
        rows, step, start = count(y.shape[:place]), count(y.shape[place:]), 0
        for p in parts:
            with np.errstate(all="ignore"):
                given = (_every_byte(low.dtype(p)), low.value(p + 1), low.value(p + 2))
                table = reference(low.value(0), low.value(1), *given, axis=0)
            x = low.input(p, layout)
            low.call(qlinear.translate, x, low.const(table), y, rows, x.size // rows, step, start)
            start += x.size // rows
        return None

    return lower


# ---------------------------------------------------------------- functions of two tensors


def lower_combine(name: str) -> Lower:
    """QLinearAdd and QLinearMul by the name in kernels/qlinear.py.

    Inputs: A, its scale and zero point, B, its scale and zero point, those of C.
    """
    code = getattr(qlinear, name)

    def lower(low: Any) -> Declined | None:
        dtype = low.dtype(0)
        unfit = _scalars(low, (1, 4, 6), (2, 5, 7), dtype)
        if dtype not in BYTES or low.dtype(3) != dtype or unfit is not None:
            return unfit or Declined(f"no kernel for {dtype} with {low.dtype(3)}")
        found = operands(low, (0, 3))
        if found is None:
            return TOO_MANY_AXES
        layout, (a, b) = found
        table = table_of(a, b, low.out_shape(), layout)
        assert table is not None, "operands() admits no others"
        y = low.output(0, layout)
        left = (a.slot, low.input(1), _zero(low, 2))
        right = (b.slot, low.input(4), _zero(low, 5))
        low.call(
            qlinear.combine, *left, *right, low.input(6), _zero(low, 7), y, low.const(table), code, flip(dtype)
        )  # fmt: skip
        return None

    return lower


# ---------------------------------------------------------------- pools


def _pool_layout(low: Any) -> str:
    """Channels last in memory, be it that the shape says so already."""
    return PLAIN if low.attr("channels_last", 0) else CHANNELS_LAST


def lower_global_average_pool(low: Any) -> Declined | None:
    """QLinearGlobalAveragePool."""
    dtype, layout = low.dtype(0), _pool_layout(low)
    unfit = _scalars(low, (1, 3), (2, 4), dtype)
    if dtype not in BYTES or unfit is not None:
        return unfit or Declined(f"no kernel for {dtype}")
    x = low.input(0, layout)
    batch, channels = x.shape[0], x.shape[-1]
    area = count(x.shape[1:-1])
    if area >= 1 << 23:
        return Declined("sums beyond 32 bits")
    y = low.output(0, layout)
    slots = (x, low.input(1), _zero(low, 2), low.input(3), _zero(low, 4), y)
    low.call(qlinear.mean, *slots, batch, area, channels, flip(dtype))
    return None


def lower_average_pool(low: Any) -> Declined | None:
    """QLinearAveragePool: in float32 between, as its reference."""
    dtype, layout = low.dtype(0), _pool_layout(low)
    unfit = _scalars(low, (1, 3), (2, 4), dtype)
    if dtype not in BYTES or unfit is not None or not 3 <= len(low.shape(0)) <= 5:
        return unfit or Declined(f"no kernel for {dtype}{low.shape(0)}")
    kind = {"uint8": "u8", "int8": "i8"}[dtype]
    x = low.input(0, layout)
    batch, *spatial, channels = x.shape
    window = slide(
        ShapeError, spatial, low.attr("kernel_shape"), strides=low.attr("strides"), dilations=low.attr("dilations"),
        pads=low.attr("pads"), auto_pad=low.attr("auto_pad", "NOTSET"), ceil_mode=low.attr("ceil_mode", 0),
    )  # fmt: skip
    padded = bool(low.attr("count_include_pad", 0))
    axes = [*zip(window.kernel, window.strides, window.dilations, *zip(*window.pads))]
    axes = [(1, 1, 1, 0, 0)] * (3 - len(axes)) + axes
    size, out = three(tuple(spatial), 1), three(window.out, 1)
    tables = [pooling.axis_table(size[i], out[i], *axes[i], padded) for i in range(3)]
    y = low.output(0, layout)
    wide, pooled = low.scratch(4 * x.size, "float32"), low.scratch(4 * y.size, "float32")
    _by_tensor(low, quantize.DEQUANTIZE[kind], x, 1, 2, wide)
    table = low.const(np.concatenate(tables))
    low.call(pooling.pool, wide, pooled, table, batch, channels, *size, *out, pooling.AVERAGE)
    _by_tensor(low, quantize.QUANTIZE[kind], pooled, 3, 4, y)
    return None


def _by_tensor(low: Any, kernel: Any, x: Any, scale: int, zero: int, y: Any) -> None:
    """Quantise or dequantise with one scale."""
    slots = (x, low.input(scale), _zero(low, zero), y)
    low.call(kernel, *slots, x.size, piece_count(x.size), PIECE, 1, 1, 0, 0, 1)
