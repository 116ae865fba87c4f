"""Products of bytes with known weights and scales: one kernel call each, with what follows (kernels/qproduct.py).

A QLinearAdd that alone reads a quantised product is taken over: the product is rounded to its own scale first, as the
graph says, then added and quantised anew. A product that becomes floats takes over bias, residual and activation.
What does not fit returns None, and the general lowering of lower_integer.py does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.kernels import activation, qproduct, quads, unary
from minifer.kernels.simd import EXACT, NR, SUM_ROWS
from minifer.kernels.target import host
from minifer.ops.registry import CHANNELS_LAST, PLAIN

#: by the element type of the results; those of quads.py where the machine multiplies bytes
KERNELS = {"uint8": qproduct.product_u8, "int8": qproduct.product_i8, "float32": qproduct.product_f32}
QUADS = {"uint8": quads.quads_u8, "int8": quads.quads_i8, "float32": quads.quads_f32}
INFINITY = float("inf")
RANGE = {"uint8": (0, 255), "int8": (-128, 127)}


def number(low: Any, i: int) -> Any:
    """The one value of a known input, else None."""
    value = low.value(i)
    return None if value is None or value.size != 1 else value.reshape(())


def symmetric(low: Any, w: int, zero: int | None) -> bool:
    """Whether known weights have a zero point of 0 (of 128 where they are unsigned), so that they pack as they are."""
    if zero is None or not low.has(zero):
        return bool(low.dtype(w) == "int8")
    value = low.value(zero)
    return value is not None and not np.any(value.astype(np.int32) - (128 if value.dtype == np.uint8 else 0))


def flip(dtype: str) -> int:
    """What is added to bytes of an element type when they are read as uint8."""
    return 0x80 if dtype == "int8" else 0


def packed(low: Any, i: int, key: Any, groups: int, filters_first: Callable[[np.ndarray], np.ndarray]) -> tuple:
    """The weights as the kernel wants them: one slot, or two for quads. filters_first: makes ONNX conv weights."""
    if not host().bytes_at_once or not quads.worth(filters_first(low.value(i))):
        return (low.pack(i, ("int8 dense", key, int(NR)), lambda v: qproduct.pack(filters_first(v), groups)),)
    made: list[np.ndarray] = []

    def part(which: int, value: np.ndarray) -> np.ndarray:
        if not made:
            made.extend(quads.pack(filters_first(value), groups))
        return made[which]

    parts = ("data", "table")
    form = (int(NR), int(EXACT))
    return tuple(low.pack(i, ("quads", name, key, *form), lambda v, j=j: part(j, v)) for j, name in enumerate(parts))


def call(
    low: Any, x: Any, zero: Any, weight: tuple, columns: Sequence[np.ndarray], end: Any, residual: Any, y: Any,
    geometry: tuple[Any, ...], sign: int, mode: int, tail: Sequence[Any],
) -> None:  # fmt: skip
    """Add the kernel call; columns: bias and factors, one for each filter; geometry: the arguments of `geometry`."""
    sizes: tuple[tuple[str, int], ...]
    if len(weight) == 2:
        g, kernel = quads.geometry(*geometry, low.threads), QUADS[y.dtype]
        sizes = (("uint8", quads.block_bytes(g)), ("int32", quads.strip_words(g)))
    else:
        g, kernel = qproduct.geometry(*geometry, low.threads), KERNELS[y.dtype]
        sizes = (("int16", qproduct.block_elements(g)), ("int32", int(SUM_ROWS) * int(NR) + 8))
    filters = int(g[qproduct.FILTERS])
    bias, factors = (low.const(qproduct.padded(v, filters)) for v in columns)
    scratch = [low.scratch(low.threads * count * dtypes.bits(dtype) // 8, dtype) for dtype, count in sizes]
    slots = (x, zero, *weight, bias, factors, end, residual, y, *scratch, low.const(g))
    low.call(kernel, *slots, sign, mode, *tail)


def of_product(m: int, n: int, k: int) -> tuple[Any, ...]:
    """The arguments of `geometry` for a matrix product (m, k) @ (k, n)."""
    one, none = (1, 1, 1), (0, 0, 0)
    return 1, k, n, 1, (1, 1, m), (1, 1, m), one, one, none, one


# ---------------------------------------------------------------- results of bytes


def quantised_end(low: Any, zero: int, scale: np.ndarray, layout: str) -> tuple[np.ndarray, Any, int]:
    """What follows a quantised product: (the kernel's `end`, the residual's slot, its mode). Absorbs a QLinearAdd.

    Call before low.output. `zero`: the input that holds the zero point of the product, whose scale is `scale`.
    """
    least, most = RANGE[low.out_type().dtype]
    shift = int(number(low, zero))
    end = np.zeros(qproduct.END, np.float32)
    end[[qproduct.LOW, qproduct.HIGH, qproduct.ZERO]] = least - shift, most - shift, shift
    found = _following_add(low, scale, shift)
    if found is None:
        return end, None, 0
    index, other, numbers, mode = found
    other_scale, other_zero, divisor, last = numbers
    end[qproduct.SCALE], end[qproduct.OTHER_SCALE], end[qproduct.DIVISOR] = scale, other_scale, divisor
    end[qproduct.OTHER_ZERO], end[qproduct.ZERO] = other_zero, last
    end[qproduct.LAST_LOW], end[qproduct.LAST_HIGH] = least - last, most - last
    low.absorb(index)
    if mode == qproduct.ROW:
        return end, low.const(np.ascontiguousarray(low.planner.known[other]).reshape(-1)), mode
    return end, low.planner.slot(other, layout), mode


def _following_add(low: Any, scale: np.ndarray, zero: int) -> tuple[int, str, tuple[Any, ...], int] | None:
    """(index, other operand, its scale and zero point with those of the sum, mode) of a QLinearAdd to take over."""
    follower = low.follower()
    if follower is None:
        return None
    index, node = follower
    planner, kind = low.planner, low.out_type()
    if (node.op, node.domain) != ("QLinearAdd", "com.microsoft") or len(node.inputs) != 8:
        return None
    known: list[Any] = [planner.known.get(n) if n else None for n in node.inputs]
    mine, theirs = (0, 3) if node.inputs[0] == low.outputs[0] else (3, 0)
    wanted = (mine + 1, mine + 2, theirs + 1, theirs + 2, 6, 7)
    if any(known[i] is None or known[i].size != 1 for i in wanted):
        return None
    own_scale, own_zero, *rest = (np.asarray(known[i]).reshape(()) for i in wanted)
    if own_scale != scale or own_zero != zero:
        return None
    other = node.inputs[theirs]
    value, numbers = known[theirs], (rest[0], int(rest[1]), rest[2], int(rest[3]))
    if value is not None:
        columns = kind.dims[-1]
        if value.shape not in ((columns,), (1, columns), (1, 1, columns)) or value.ndim > len(kind.dims):
            return None
        return (index, other, numbers, qproduct.ROW) if low.node.op != "QLinearConv" else None
    if planner.types.get(other) != kind or not planner.in_memory(other):
        return None
    return index, other, numbers, qproduct.FULL


def factors_of(low: Any, a: int, b: int, c: int, count: int) -> np.ndarray | None:
    """a * b / c for each of `count` filters, where the scales are known and fit."""
    values = [low.value(i) for i in (a, b, c)]
    if any(v is None or v.dtype != np.float32 for v in values):
        return None
    if values[0].size != 1 or values[2].size != 1 or values[1].size not in (1, count):
        return None
    return np.broadcast_to(values[0].reshape(-1) * values[1].reshape(-1) / values[2].reshape(-1), (count,))


def integer_bias(low: Any, i: int, count: int) -> np.ndarray | None:
    """A known int32 bias for each filter; zeros where it is omitted; None where it does not fit."""
    if not low.has(i):
        return np.zeros(count, np.int32)
    value = low.value(i)
    if value is None or value.dtype != np.int32 or value.size not in (1, count) or value.ndim > 2:
        return None
    return np.broadcast_to(value.reshape(-1), (count,))


def quantised_conv(low: Any, spatial: Sequence[Sequence[int]], groups: int) -> bool:
    """QLinearConv; `spatial` is (input, output, taps, strides, pads, dilations), three numbers each."""
    batch, channels = low.shape(0)[:2]
    filters = low.shape(3)[0]
    factors, bias = factors_of(low, 1, 4, 6, filters), integer_bias(low, 8, filters)
    if factors is None or bias is None or not symmetric(low, 3, 5) or number(low, 7) is None:
        return False
    x = low.input(0, CHANNELS_LAST)
    weight = packed(low, 3, groups, groups, lambda v: v)
    zero, sign = low.input(2), flip(low.dtype(0))
    end, residual, mode = quantised_end(low, 7, number(low, 6), CHANNELS_LAST)
    y = low.output(0, CHANNELS_LAST, over=residual)
    geometry = (batch, channels, filters, groups, *spatial)
    call(low, x, zero, weight, (bias, factors), low.const(end), residual, y, geometry, sign, mode, (0.0, 0.0))
    return True


def quantised_product(
    low: Any, m: int, n: int, k: int, flipped: bool, bias_at: int | None, scale_at: int, alpha: float = 1.0
) -> bool:
    """QLinearMatMul or QGemm with quantised result and known B; `flipped`: B is (n, k); scale_at: the input that is
    the scale of Y, before its zero point."""
    factors = factors_of(low, 1, 4, scale_at, n)
    bias = np.zeros(n, np.int32) if bias_at is None else integer_bias(low, bias_at, n)
    if factors is None or bias is None or low.value(3) is None or not symmetric(low, 3, 5):
        return False
    if number(low, scale_at + 1) is None or low.shape(2) not in ((), (1,)) or alpha != 1.0:
        return False
    x, zero, sign = low.input(0), low.input(2), flip(low.dtype(0))
    weight = _packed(low, 3, flipped)
    end, residual, mode = quantised_end(low, scale_at + 1, number(low, scale_at), PLAIN)
    y = low.output(0, over=residual)
    geometry = of_product(m, n, k)
    call(low, x, zero, weight, (bias, factors), low.const(end), residual, y, geometry, sign, mode, (0.0, 0.0))
    return True


def _packed(low: Any, i: int, flipped: bool) -> tuple:
    def filters_first(b: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(b if flipped else b.reshape(b.shape[-2:]).T)

    return packed(low, i, ("matrix", flipped), 1, filters_first)


# ---------------------------------------------------------------- results of floats


def float_product(
    low: Any, m: int, n: int, k: int, b: int, x: Any, zero: Any, sign: int, scale: Any, scale_at: int, bias_at: int
) -> bool:
    """Integer product scaled to floats: x (m, k) of bytes with `zero` and `scale` (slots), B and its scale known."""
    factors = low.value(scale_at)
    if low.value(b) is None or factors is None or factors.size not in (1, n) or factors.dtype != np.float32:
        return False
    if low.has(bias_at) and low.value(bias_at) is None:
        return False
    bias = low.value(bias_at).reshape(-1) if low.has(bias_at) else np.zeros(n, np.float32)
    rank = len(low.out_shape())
    tail = low.epilogue(rank - 1 if rank and low.out_shape()[-1] == n else None)
    if tail.bias is not None:
        bias = bias + tail.bias
    residual = tail.residual_slot(low, PLAIN)
    y = low.output(0, over=residual)
    bounds = (tail.first, tail.second) if tail.code == activation.CLAMP else (-INFINITY, INFINITY)
    columns = (np.broadcast_to(bias, (n,)).astype(np.float32), np.broadcast_to(factors.reshape(-1), (n,)))
    mode = 0 if residual is None else qproduct.FULL
    weight = _packed(low, b, False)
    call(low, x, zero, weight, columns, scale, residual, y, of_product(m, n, k), sign, mode, bounds)
    if tail.code != activation.CLAMP:  # its constants would take registers from the product
        low.call(unary.activation, y, y, m * n, tail.code, tail.first, tail.second)
    return True
