"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear as kernel calls.

They stay in the layout that their input lies in: quantised convolutions run channels-last throughout.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minifer.kernels import quantize
from minifer.kernels.elementwise import PIECE, piece_count
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined

#: element types by the name that kernels have for them
KERNEL_TYPES = {"uint8": "u8", "int8": "i8", "uint16": "u16", "int16": "i16", "int32": "i32"}


def layout_of(low: Any, i: int) -> str:
    """The layout in which input `i` lies already: channels-last where it is held so."""
    return CHANNELS_LAST if CHANNELS_LAST in low.layouts(i) else PLAIN


def lower_quantize(low: Any) -> Declined | None:
    """float32 to 8 or 16 bits."""
    kind = KERNEL_TYPES.get(low.out_type().dtype, "")
    if low.dtype(0) != "float32" or low.dtype(1) != "float32" or kind not in quantize.QUANTIZE:
        return Declined(f"no kernel that quantizes {low.dtype(0)} by {low.dtype(1)} to {low.out_type().dtype}")
    if low.attr("precision", 0) not in (0, 1):
        return Declined("no kernel that quantizes in another precision than float32")
    return _by_runs(low, quantize.QUANTIZE[kind])


def lower_dequantize(low: Any) -> Declined | None:
    """8, 16 or 32 bits to float32."""
    kind = KERNEL_TYPES.get(low.dtype(0), "")
    if low.out_type().dtype != "float32" or low.dtype(1) != "float32" or kind not in quantize.DEQUANTIZE:
        return Declined(f"no kernel that dequantizes {low.dtype(0)} by {low.dtype(1)} to {low.out_type().dtype}")
    if kind == "i32" and low.has(2) and (low.value(2) is None or np.any(low.value(2))):
        return Declined("no kernel that dequantizes int32 with a zero point")
    return _by_runs(low, quantize.DEQUANTIZE[kind])


def _by_runs(low: Any, kernel: Any) -> Declined | None:
    block, size = low.attr("block_size", 0), math.prod(low.shape(1))
    rank = max(len(low.shape(0)), 1)
    if not -rank <= low.attr("axis", 1) < rank and size > 1 and rank > 1:
        return Declined("the axis is out of range")
    layout = PLAIN if block and size > 1 else layout_of(low, 0)
    x = low.input(0, layout)
    runs = _runs(x.shape, _memory_axis(low, layout), size, block)
    if runs is None or (low.has(2) and math.prod(low.shape(2)) != size):
        return Declined(f"no kernel for scales of shape {low.shape(1)} and blocks of {block}")
    scale, zero = low.input(1), low.input(2) if low.has(2) else None
    low.call(kernel, x, scale, zero, low.output(0, layout), x.size, *runs, int(zero is not None))
    return None


def _memory_axis(low: Any, layout: str) -> int:
    """The attribute axis, counted in memory order."""
    rank = len(low.shape(0))
    axis = low.attr("axis", 1) % rank if rank > 1 else 0
    if layout == PLAIN or axis == 0:
        return int(axis)
    return int(rank - 1 if axis == 1 else axis - 1)


def _runs(shape: tuple[int, ...], axis: int, scales: int, block: int) -> tuple[int, ...] | None:
    """(rows, length, repeat, wrap, step, varying) of kernels/quantize.py; None where the scales do not fit."""
    if scales == 1:
        return piece_count(math.prod(shape)), PIECE, 1, 1, 0, 0
    if not shape:
        return None
    outer, size, inner = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    if block:
        if size % block or scales * block != outer * size * inner:
            return None
        if inner == 1:
            return outer * size // block, block, 1, scales, 1, 0
        return outer * size, inner, block, scales, inner, 1
    if scales != size:
        return None
    return (outer, size, 1, 1, 0, 1) if inner == 1 else (outer * size, inner, 1, size, 1, 0)


def lower_dynamic_quantize(low: Any) -> None:
    """float32 to uint8 over the range that the tensor has."""
    layout = layout_of(low, 0)
    x = low.input(0, layout)
    scale = low.output(1) if low.wants(1) else low.scratch(4, "float32")
    zero = low.output(2) if low.wants(2) else low.scratch(1, "uint8")
    y = low.output(0, layout) if low.wants(0) else low.scratch(x.size, "uint8")
    quantized_over_range(low, x, y, scale, zero, flat=0)


def quantized_over_range(low: Any, x: Any, y: Any, scale: Any, zero: Any, flat: int) -> None:
    """Quantise slot x into y; `flat`: a range of 0 has scale 1."""
    partial = low.scratch(8 * piece_count(x.size), "float32")
    low.call(quantize.extremes, x, partial, x.size)
    low.call(quantize.dynamic_quantize, x, partial, y, scale, zero, x.size, flat)
