"""Products of 8-bit integers as kernel calls: MatMulInteger, QLinearMatMul, ConvInteger, QLinearConv, and the like.

All of them become: widen the left side, multiply with packed weights, finish (see kernels/integer.py). Scales and
zero points may be constants or known at run time alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import ShapeError
from minifer.kernels import depthwise_int8, integer, quantize
from minifer.kernels.simd import NR
from minifer.ops.lower_conv import FEW_CHANNELS, three
from minifer.ops.lower_qproduct import float_product, quantised_conv, quantised_product, symmetric
from minifer.ops.lower_quantize import quantized_over_range
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.ops.window import Window, slide
from minifer.record import Record

BYTES = ("int8", "uint8")
KERNELS = {
    "int32": integer.convolution_i32, "float32": integer.convolution_f32, "uint8": integer.convolution_u8,
    "int8": integer.convolution_i8,
}  # fmt: skip
DEPTHWISE = {
    "int32": depthwise_int8.depthwise_i32, "uint8": depthwise_int8.depthwise_u8, "int8": depthwise_int8.depthwise_i8,
}  # fmt: skip
#: products of a batch with right sides of their own, up to which each is a kernel call
MOST_PRODUCTS = 64


def count(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    return math.prod(shape)


def flip(dtype: str) -> int:
    """What is added to bytes of an element type when they are read as uint8."""
    return 0x80 if dtype == "int8" else 0


class Finish(Record, frozen=False):
    """What becomes of the sums: the slots and numbers that a kernel's finish takes."""

    bias: Any = None
    factors: Any = None
    step: int = 0
    shift: Any = None


# ---------------------------------------------------------------- the left side


def zero_of(low: Any, i: int | None) -> Any:
    """The slot of a zero point, or None where it is omitted or zero."""
    if i is None or not low.has(i) or (low.value(i) is not None and not np.any(low.value(i))):
        return None
    return low.input(i)


def widened(low: Any, x: Any, zero: Any, m: int, k: int, strides: tuple[int, int], dtype: str, by_row: bool) -> Any:
    """A matrix (m, k) of bytes, whose elements lie `strides` apart, as the left side of a product."""
    room = integer.even(k)
    out = low.scratch(2 * m * room, "int16")
    numbers = (1, k, 1, room, 1, 1, m, 1, 1, m, 0, 0, 0, *strides)
    low.call(integer.widen, x, zero, out, flip(dtype), int(zero is not None), int(by_row), *numbers)
    return out


# ---------------------------------------------------------------- the right side


def zeros_of_columns(low: Any, b: int, zero: int | None, n: int) -> Any:
    """The zero point of each column of a packed right side as i32, or None where all are zero."""
    unsigned = low.dtype(b) == "uint8"
    if zero is None or not low.has(zero):
        return low.const(np.full(n, -128, np.int32)) if unsigned else None
    known = low.value(zero)
    if known is None:
        out = low.scratch(4 * n, "int32")
        low.call(quantize.widen_bytes, low.input(zero), out, n, int(count(low.shape(zero)) > 1), 0x80 * unsigned)
        return out
    values = known.astype(np.int32).reshape(-1) - 128 * unsigned
    return low.const(np.broadcast_to(values, (n,))) if values.any() else None


def packed_matrices(low: Any, i: int, k: int, n: int, transposed: bool = False) -> list[Any]:
    """Input `i`, matrices (k, n) or (n, k) of bytes, as right sides of products: one slot for each."""
    size, batch = integer.packed_bytes(k, n), count(low.shape(i)) // (k * n)
    shape = (n, k) if transposed else (k, n)
    if low.value(i) is not None:

        def pack(b: np.ndarray) -> np.ndarray:
            matrices = b.reshape(batch, *shape)
            return np.stack([integer.pack_matrix(m.T if transposed else m).reshape(-1) for m in matrices])

        packed = low.pack(i, ("int8", int(NR), k, transposed), pack)
    else:
        packed = low.scratch(batch * size, "int8")
        strides = (1, k) if transposed else (n, 1)
        low.call(integer.pack_panels, low.input(i), packed, batch, k, n, *strides, flip(low.dtype(i)))
    return [packed.view((size,), j * size) for j in range(batch)]


def per_column(low: Any, i: int, n: int) -> int | None:
    """How input `i` steps with the n columns: 0 for one value, 1 for one per column, None for anything else."""
    size, shape = count(low.shape(i)), low.shape(i)
    if size == 1:
        return 0
    return 1 if size == n and shape[-1] == n else None


def scales(low: Any, a: Any, b: int, c: int | None, n: int, alpha: float = 1.0) -> tuple[Any, int] | None:
    """alpha * a * b / c for n columns as (slot, step); None where shapes or types do not fit.

    `b` and `c` are inputs, and `a` is one or a slot; `b` may have one value per column.
    """
    given = [i for i in (a, b, c) if isinstance(i, int)]
    step = per_column(low, b, n)
    if step is None or any(low.dtype(i) != "float32" for i in given):
        return None
    if any(count(low.shape(i)) != 1 for i in given if i != b):
        return None
    known = [low.value(i).reshape(-1) for i in given if low.value(i) is not None]
    if len(known) == 2 + (c is not None):
        factor = np.float32(alpha) * known[0] * known[1]
        return low.const(factor if c is None else factor / known[2]), step
    out = low.scratch(4 * n, "float32")
    slots = [low.input(i) if isinstance(i, int) else i for i in (a, b, c)]
    low.call(quantize.product_scales, *slots, out, n, step, alpha, int(c is not None))
    return out, 1


# ---------------------------------------------------------------- matrix products


class Matrices(Record):
    """A product of stacks of matrices, (m, k) by (k, n): which of the left and right ones belong together."""

    m: int
    k: int
    n: int
    pairs: tuple[tuple[int, int], ...]  # (index of the left matrix, of the right one)

    @property
    def rows(self) -> int:
        """Rows of all results."""
        return self.m * len(self.pairs)


def matrices(a: tuple[int, ...], b: tuple[int, ...]) -> Matrices:
    """What np.matmul makes of two shapes; one right side for all left ones makes a single tall product."""
    a = (1, *a) if len(a) == 1 else a
    b = (*b, 1) if len(b) == 1 else b
    m, k, n = a[-2], a[-1], b[-1]
    if count(b[:-2]) == 1:
        return Matrices(count(a[:-1]), k, n, ((0, 0),))
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    left, right = (np.arange(count(s[:-2])).reshape(s[:-2]) for s in (a, b))
    both = [np.broadcast_to(v, batch).reshape(-1).tolist() for v in (left, right)]
    return Matrices(m, k, n, tuple(zip(*both)))


def multiply(low: Any, shape: Matrices, left: Any, rights: list[Any], zeros: Any, y: Any, end: Finish) -> None:
    """Call the product's kernel for each pair of matrices; `left` is widened, `rights` are packed."""
    m, k, n = shape.m, shape.k, shape.n
    g = integer.product_geometry(m, n, k)
    table = low.scratch(8 * low.threads * integer.table_words(g), "int64")
    work = low.scratch(4 * low.threads * integer.work_words(g), "int32")
    flags = (int(zeros is not None), int(end.bias is not None), end.step)
    itemsize = y.nbytes // y.size
    for i, (a, b) in enumerate(shape.pairs):
        x = left.view((m, integer.even(k)), 2 * a * m * integer.even(k))
        result = y.view((m, n), i * m * n * itemsize)
        slots = (x, rights[b], zeros, end.bias, end.factors, end.shift, result, table, work, low.const(g))
        low.call(KERNELS[y.dtype], *slots, *flags)


def _unfit(low: Any, a: int, b: int, a_zero: int, b_zero: int, shape: Matrices) -> Declined | None:
    """Why kernels cannot take these operands and zero points."""
    if low.dtype(a) not in BYTES or low.dtype(b) not in BYTES:
        return Declined(f"no integer product of {low.dtype(a)} and {low.dtype(b)}")
    if len(shape.pairs) > MOST_PRODUCTS:
        return Declined(f"{len(shape.pairs)} products with right sides of their own")
    for x, zero in ((a, a_zero), (b, b_zero)):
        if low.has(zero) and low.dtype(zero) != low.dtype(x):
            return Declined(f"a zero point of {low.dtype(zero)} for {low.dtype(x)}")
    if low.has(a_zero) and count(low.shape(a_zero)) not in (1, count(low.shape(a)) // shape.k):
        return Declined("the zero points of the left side are neither one nor one per row")
    if low.has(b_zero) and per_column(low, b_zero, shape.n) is None:
        return Declined("the zero points of the right side are neither one nor one per column")
    return None


def _left(low: Any, i: int, zero: int, shape: Matrices) -> Any:
    rows = count(low.shape(i)) // shape.k
    by_row = low.has(zero) and count(low.shape(zero)) > 1
    return widened(low, low.input(i), zero_of(low, zero), rows, shape.k, (shape.k, 1), low.dtype(i), by_row)


def lower_matmul_integer(low: Any) -> Declined | None:
    """MatMulInteger: int32 sums."""
    shape = matrices(low.shape(0), low.shape(1))
    unfit = _unfit(low, 0, 1, 2, 3, shape)
    if unfit is not None:
        return unfit
    rights = packed_matrices(low, 1, shape.k, shape.n)
    left, zeros = _left(low, 0, 2, shape), zeros_of_columns(low, 1, 3, shape.n)
    multiply(low, shape, left, rights, zeros, low.output(0), Finish())
    return None


def lower_qlinear_matmul(low: Any) -> Declined | None:
    """QLinearMatMul of 8-bit integers, with one scale for the left side and for the result."""
    shape = matrices(low.shape(0), low.shape(3))
    unfit = _unfit(low, 0, 3, 2, 5, shape)
    if unfit is not None:
        return unfit
    if low.out_type().dtype not in BYTES or count(low.shape(7)) != 1:
        return Declined(f"no requantisation to {low.out_type().dtype} with zero points of shape {low.shape(7)}")
    found = scales(low, 1, 4, 6, shape.n)
    if found is None:
        return Declined("a scale that is neither one number nor one per column")
    if len(shape.pairs) == 1 and count(low.shape(3)) == shape.k * shape.n:
        if quantised_product(low, shape.m, shape.n, shape.k, False, None, 6):
            return None
    rights = packed_matrices(low, 3, shape.k, shape.n)
    left, zeros = _left(low, 0, 2, shape), zeros_of_columns(low, 3, 5, shape.n)
    multiply(low, shape, left, rights, zeros, low.output(0), Finish(None, *found, low.input(7)))
    return None


def lower_matmul_integer_to_float(low: Any) -> Declined | None:
    """com.microsoft MatMulIntegerToFloat: inputs A, B, their scales, their zero points, bias."""
    shape = matrices(low.shape(0), low.shape(1))
    unfit, bad = _unfit(low, 0, 1, 4, 5, shape), _bad_bias(low, 6, shape.n)
    if unfit is not None or bad is not None:  # (a Declined is false, so no `or`)
        return bad if unfit is None else unfit
    if low.out_type().dtype != "float32" or (low.has(4) and count(low.shape(4)) != 1):
        return Declined("no kernel for this element type, or for zero points of columns of the left side")
    if len(shape.pairs) == 1 and symmetric(low, 1, 5) and count(low.shape(2)) == 1:
        zero = low.input(4) if low.has(4) else low.const(np.zeros(1, low.dtype(0)))
        sign, x = flip(low.dtype(0)), low.input(0)
        if float_product(low, shape.m, shape.n, shape.k, 1, x, zero, sign, low.input(2), 3, 6):
            return None
    found = scales(low, 2, 3, None, shape.n)
    if found is None:
        return Declined("a scale that is neither one number nor one per column")
    rights = packed_matrices(low, 1, shape.k, shape.n)
    left, zeros = _left(low, 0, 4, shape), zeros_of_columns(low, 1, 5, shape.n)
    bias = low.input(6) if low.has(6) else None
    multiply(low, shape, left, rights, zeros, low.output(0), Finish(bias, *found))
    return None


def _bad_bias(low: Any, i: int, n: int) -> Declined | None:
    if low.has(i) and (low.dtype(i) != "float32" or low.shape(i) != (n,)):
        return Declined(f"the bias is {low.dtype(i)}{low.shape(i)}")
    return None


def lower_dynamic_quantize_matmul(low: Any) -> Declined | None:
    """com.microsoft DynamicQuantizeMatMul: inputs A (float32), B, its scale, its zero point, bias."""
    shape = matrices(low.shape(0), low.shape(1))
    n = shape.n
    if low.dtype(0) != "float32" or low.dtype(1) not in BYTES or len(shape.pairs) > MOST_PRODUCTS:
        return Declined(f"no dynamically quantised product of {low.dtype(0)} and {low.dtype(1)}")
    unfit = (low.has(3) and per_column(low, 3, n) is None) or per_column(low, 2, n) is None
    if unfit or _bad_bias(low, 4, n) is not None or low.dtype(2) != "float32":
        return Declined("scales, zero points or bias that do not fit the columns")
    x = low.input(0)
    q = low.scratch(x.size, "uint8")
    scale, zero = low.scratch(4, "float32"), low.scratch(1, "uint8")
    quantized_over_range(low, x, q, scale, zero, flat=1)
    if len(shape.pairs) == 1 and symmetric(low, 1, 3):
        if float_product(low, shape.m, n, shape.k, 1, q, zero, 0, scale, 2, 4):
            return None
    found = scales(low, scale, 2, None, n)
    assert found is not None
    left = widened(low, q, zero, x.size // shape.k, shape.k, (shape.k, 1), "uint8", False)
    rights, zeros = packed_matrices(low, 1, shape.k, n), zeros_of_columns(low, 1, 3, n)
    bias = low.input(4) if low.has(4) else None
    multiply(low, shape, left, rights, zeros, low.output(0), Finish(bias, *found))
    return None


def lower_qgemm(low: Any) -> Declined | None:
    """com.microsoft QGemm: A, its scale and zero point, B, its scale and zero point, C, scale and zero point of Y."""
    flip_a, flip_b = low.attr("transA", 0), low.attr("transB", 0)
    m, n = low.out_shape()
    k = low.shape(0)[0 if flip_a else 1]
    shape = Matrices(m, k, n, ((0, 0),))
    unfit = _unfit(low, 0, 3, 2, 5, shape)
    if unfit is not None:
        return unfit
    quantised = low.has(7)
    if count(low.shape(2)) != 1 or (quantised and (not low.has(8) or count(low.shape(8)) != 1)):
        return Declined("zero points that are no scalars")
    if low.out_type().dtype not in (BYTES if quantised else ("float32",)):
        return Declined(f"no result of {low.out_type().dtype}")
    bias = _row_of_integers(low, 6, n)
    if isinstance(bias, Declined):
        return bias
    found = scales(low, 1, 4, 7 if quantised else None, n, low.attr("alpha", 1.0))
    if found is None:
        return Declined("a scale that is neither one number nor one per column")
    if quantised and not flip_a:
        if quantised_product(low, m, n, k, bool(flip_b), 6, 7, low.attr("alpha", 1.0)):
            return None
    strides = (1, m) if flip_a else (k, 1)
    left = widened(low, low.input(0), zero_of(low, 2), m, k, strides, low.dtype(0), False)
    rights = packed_matrices(low, 3, k, n, bool(flip_b))
    zeros, y = zeros_of_columns(low, 3, 5, n), low.output(0)
    if quantised:
        multiply(low, shape, left, rights, zeros, y, Finish(bias, *found, low.input(8)))
        return None
    sums = low.scratch(4 * m * n, "int32")
    multiply(low, shape, left, rights, zeros, sums, Finish(bias))
    factors, step = found
    low.call(quantize.DEQUANTIZE["i32"], sums, factors, None, y, m * n, m, n, 1, 1, 0, step, 0)
    return None


def _row_of_integers(low: Any, i: int, n: int) -> Any:
    """An int32 addend that is the same for all rows as a slot (n,); None where omitted."""
    if not low.has(i):
        return None
    if low.dtype(i) != "int32" or low.shape(i) not in ((n,), (1, n), (1,), (), (1, 1)):
        return Declined(f"the addend is {low.dtype(i)}{low.shape(i)}")
    if count(low.shape(i)) == n:
        return low.input(i)
    if low.value(i) is None:
        return Declined("the addend is a scalar that only the run knows")
    return low.const(np.full(n, low.value(i).reshape(()), np.int32))


# ---------------------------------------------------------------- convolutions


def lower_conv_integer(low: Any) -> Declined | None:
    """ConvInteger with known weights: int32 sums."""
    return _conv(low, 0, 1, 2, 3, None)


def lower_qlinear_conv(low: Any) -> Declined | None:
    """QLinearConv with known weights."""
    filters = low.shape(3)[0]
    if low.out_type().dtype not in BYTES or count(low.shape(7)) != 1:
        return Declined(f"no requantisation to {low.out_type().dtype} with zero points of shape {low.shape(7)}")
    bias = _row_of_integers(low, 8, filters) if low.has(8) else None
    if isinstance(bias, Declined):
        return bias
    found = scales(low, 1, 4, 6, filters)
    if found is None:
        return Declined("a scale that is neither one number nor one per filter")
    return _conv(low, 0, 3, 2, 5, Finish(bias, *found, low.input(7)))


def _conv(low: Any, x: int, w: int, x_zero: int, w_zero: int, end: Finish | None) -> Declined | None:
    x_shape, w_shape = low.shape(x), low.shape(w)
    rank, filters = len(x_shape) - 2, w_shape[0]
    if not 1 <= rank <= 3 or low.dtype(x) not in BYTES or low.dtype(w) not in BYTES:
        return Declined(f"no integer convolution of {low.dtype(x)} in {rank} spatial dimensions")
    for i, zero in ((x, x_zero), (w, w_zero)):
        if low.has(zero) and low.dtype(zero) != low.dtype(i):
            return Declined(f"a zero point of {low.dtype(zero)} for {low.dtype(i)}")
    if low.value(w) is None or (low.has(w_zero) and low.value(w_zero) is None):
        return Declined("the weights are not constant")
    if low.has(x_zero) and count(low.shape(x_zero)) != 1:
        return Declined("several zero points of the input")
    if low.has(w_zero) and low.value(w_zero).size not in (1, filters):
        return Declined("zero points of the weights that are neither one nor one per filter")
    window = slide(
        ShapeError, x_shape[2:], low.attr("kernel_shape") or w_shape[2:], strides=low.attr("strides"),
        dilations=low.attr("dilations"), pads=low.attr("pads"), auto_pad=low.attr("auto_pad", "NOTSET"),
    )  # fmt: skip
    groups = low.attr("group", 1)
    if groups == x_shape[1] == filters and groups > 1:
        _depthwise(low, x, w, x_zero, w_zero, window, end or Finish())
        return None
    if end is not None:
        begin = three([b for b, _ in window.pads], 0)
        spatial = (
            three(x_shape[2:], 1), three(window.out, 1), three(window.kernel, 1), three(window.strides, 1), begin,
            three(window.dilations, 1),
        )  # fmt: skip
        if quantised_conv(low, spatial, groups):
            return None
    _implicit_gemm(low, x, w, x_zero, w_zero, window, groups, end or Finish())
    return None


def _implicit_gemm(
    low: Any, x: int, w: int, x_zero: int, w_zero: int, window: Window, groups: int, end: Finish
) -> None:
    batch, channels = low.shape(x)[:2]
    filters = low.shape(w)[0]
    image, size = _image(low, x, x_zero, window, groups, integer.even(channels // groups))
    g = integer.geometry(
        batch, channels, filters, groups, size, three(window.out, 1), three(window.kernel, 1),
        three(window.strides, 1), three(window.dilations, 1),
    )  # fmt: skip
    weight = low.pack(w, ("int8 conv", groups, int(NR)), lambda v: integer.pack_filters(v, groups))
    zeros = zeros_of_columns(low, w, w_zero, filters)
    y = low.output(0, CHANNELS_LAST)
    table = low.scratch(8 * low.threads * integer.table_words(g), "int64")
    work = low.scratch(4 * low.threads * integer.work_words(g), "int32")
    slots = (image, weight, zeros, end.bias, end.factors, end.shift, y, table, work, low.const(g))
    low.call(KERNELS[y.dtype], *slots, int(zeros is not None), int(end.bias is not None), end.step)


def _depthwise(low: Any, x: int, w: int, x_zero: int, w_zero: int, window: Window, end: Finish) -> None:
    batch, channels = low.shape(x)[:2]
    image, size = _image(low, x, x_zero, window, 1, depthwise_int8.room(channels))
    g = depthwise_int8.depthwise_geometry(
        batch, channels, size, three(window.out, 1), three(window.kernel, 1), three(window.strides, 1),
        three(window.dilations, 1),
    )  # fmt: skip
    zero = np.zeros(1, np.int16) if not low.has(w_zero) else low.value(w_zero).astype(np.int16)
    key = ("int8 depthwise", depthwise_int8.room(channels), zero.tobytes())
    weight = low.pack(w, key, lambda v: depthwise_int8.pack_depthwise(v, zero))
    y = low.output(0, CHANNELS_LAST)
    slots = (image, weight, end.bias, end.factors, end.shift, y, low.const(g))
    low.call(DEPTHWISE[y.dtype], *slots, int(end.bias is not None), end.step)


def _image(low: Any, i: int, zero: int, window: Window, groups: int, room: int) -> tuple[Any, tuple[int, ...]]:
    """(the widened input with its padding, its spatial size), read in the layout that it has or will be needed in."""
    batch, channels, *spatial = low.shape(i)
    size = three(tuple(spatial), 1)
    begin, end = three([b for b, _ in window.pads], 0), three([e for _, e in window.pads], 0)
    padded = tuple(s + b + e for s, b, e in zip(size, begin, end))
    last = CHANNELS_LAST in low.layouts(i) or channels > FEW_CHANNELS
    x, shift = low.input(i, CHANNELS_LAST if last else PLAIN), zero_of(low, zero)
    out = low.scratch(2 * batch * padded[0] * padded[1] * padded[2] * groups * room, "int16")
    strides = (channels, 1) if last else (1, count(size))
    numbers = (batch, channels, groups, room, *size, *padded, *begin, *strides)
    low.call(integer.widen, x, shift, out, flip(low.dtype(i)), int(shift is not None), 0, *numbers)
    return out, padded
