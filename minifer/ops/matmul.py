"""Matrix products: MatMul, Gemm, Einsum, Det, and the products of quantized matrices.

Half precision is multiplied in float32, float32 in itself; 8-bit integers in float64, which is exact for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.cast import convert
from minifer.ops.numeric import (
    FLOATS,
    NUMBERS,
    check_count,
    check_fits,
    check_same_type,
    check_type,
    kind_of,
    narrow,
    require,
    require_fits,
    require_same_type,
    widen,
)
from minifer.ops.quantize import QUANTIZED, quantized
from minifer.ops.registry import Call, Op, deferred, register
from minifer.ops.shapes import broadcast

lower_gemm, lower_matmul, rows_of_product = deferred("lower_matmul", "lower_gemm", "lower_matmul", "rows_of_product")

_BYTES = ("int8", "uint8")


def _require_matrices(a: np.ndarray, b: np.ndarray) -> None:
    """ShapeError unless two arrays have a matrix product."""
    if not a.ndim or not b.ndim:
        raise ShapeError("a scalar has no matrix product")
    if a.shape[-1] != b.shape[0 if b.ndim == 1 else -2]:
        raise ShapeError(f"shapes {a.shape} and {b.shape} have no matrix product: the inner sizes differ")


def _product_shape(call: Call, a: tuple[Dim, ...] | None, b: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """The shape of a matrix product by the rules of np.matmul."""
    if () in (a, b):
        raise call.fail("a scalar has no matrix product")
    if a is None or b is None:
        return None
    inner = (a[-1], b[0 if len(b) == 1 else -2])
    if all(isinstance(d, int) for d in inner) and inner[0] != inner[1]:
        raise call.fail(f"the inner sizes {inner[0]} and {inner[1]} differ")
    batch = broadcast(call, a[:-2], b[:-2])
    assert batch is not None
    return batch + (a[-2:-1] if len(a) > 1 else ()) + (b[-1:] if len(b) > 1 else ())


def _matmul(a, b):
    require(a, NUMBERS)
    require_same_type(a, b)
    _require_matrices(a, b)
    return narrow(np.matmul(widen(a), widen(b)), a.dtype)


def _matmul_types(call: Call) -> Type:
    check_count(call, 2, 2)
    check_type(call, 0, NUMBERS)
    return TensorType(check_same_type(call, 0, 1), _product_shape(call, call.shape(0), call.shape(1)))


def _scaled(x: np.ndarray, factor: float) -> np.ndarray:
    """x * factor; an integer result is rounded toward zero."""
    if factor == 1:
        return x
    return x * x.dtype.type(factor) if x.dtype.kind == "f" else convert(x * np.float64(factor), kind_of(x))


def _gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    require(a, NUMBERS)
    require_same_type(*(v for v in (a, b, c) if v is not None))
    if a.ndim != 2 or b.ndim != 2:
        raise ShapeError(f"A and B must be matrices, got shapes {a.shape} and {b.shape}")
    left, right = widen(a.T if transA else a), widen(b.T if transB else b)
    _require_matrices(left, right)
    y = _scaled(np.matmul(left, right), alpha)
    if c is not None:
        require_fits(c.shape, y.shape, "C")
        y = y + _scaled(widen(c), beta) if beta != 0 else y  # as in BLAS, C is not read where beta is 0
    return narrow(y, a.dtype)


def _gemm_1(a, b, c, *, alpha=1.0, beta=1.0, broadcast=0, transA=0, transB=0):
    shape = (a.shape[1 if transA else 0], b.shape[0 if transB else 1]) if a.ndim == b.ndim == 2 else None
    if not broadcast and c.shape != shape:
        raise ShapeError(f"C has shape {c.shape}, the product {shape}, and broadcast is not set")
    return _gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


def _gemm_7(a, b, c, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    return _gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


def _gemm_types(call: Call) -> Type:
    check_count(call, 2, 3)
    check_type(call, 0, NUMBERS)
    kind = check_same_type(call, *(i for i in range(3) if call.has(i)))
    sides: list[tuple[Dim, Dim]] = []
    for i, flag in ((0, "transA"), (1, "transB")):
        shape = call.shape(i) or (None, None)
        if call.shape(i) is not None and len(shape) != 2:
            raise call.fail(f"input {i} must be a matrix")
        sides.append((shape[1], shape[0]) if call.attr(flag, 0) else (shape[0], shape[1]))
    out = _product_shape(call, *sides)
    if call.has(2):
        check_fits(call, call.shape(2), out, "C")
    return TensorType(kind, out)


def _gemm_1_types(call: Call) -> Type:
    kind = _gemm_types(call)
    assert isinstance(kind, TensorType)
    c = call.shape(2)
    if not call.attr("broadcast", 0) and c is not None and kind.shape is not None:
        if len(c) != 2 or any(isinstance(d, int) and isinstance(e, int) and d != e for d, e in zip(c, kind.shape)):
            raise call.fail(f"C has shape {c}, the product {kind.shape}, and broadcast is not set")
    return kind


Labels = list[int]


def _einsum_labels(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """The label of each axis of each operand, and of the result. Letters are labelled by their code, the axes of an
    ellipsis by -1 for the last of them, -2 for the one before, and so on. InputError for a broken equation."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    for term in [*terms, right]:
        if not re.fullmatch(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*", term):
            raise InputError(f"equation {equation!r} has a broken term {term!r}")
    if len(terms) != len(ranks):
        raise InputError(f"equation {equation!r} has {len(terms)} terms for {len(ranks)} operands")
    operands: list[Labels] = []
    dots = 0
    for term, rank in zip(terms, ranks):
        before, ellipsis, after = term.partition("...")
        hidden = rank - len(before) - len(after)
        if hidden < 0 or (hidden and not ellipsis):
            raise InputError(f"term {term!r} of equation {equation!r} does not fit an operand of rank {rank}")
        dots = max(dots, hidden)
        operands.append([*map(ord, before), *range(-hidden, 0), *map(ord, after)])
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        return operands, [*range(-dots, 0), *map(ord, once)]
    before, ellipsis, after = right.partition("...")
    output = [*map(ord, before), *(range(-dots, 0) if ellipsis else ()), *map(ord, after)]
    known = {label for labels in operands for label in labels}
    if len(set(output)) < len(output) or not known.issuperset(output):
        raise InputError(f"the result of equation {equation!r} repeats a letter or has one that no operand has")
    return operands, output


def _einsum(*inputs, equation):
    if not inputs:
        raise InputError("takes at least one input")
    require(inputs[0], NUMBERS)
    require_same_type(*inputs)
    operands, output = _einsum_labels(equation, [x.ndim for x in inputs])
    number = {label: i for i, label in enumerate(sorted({label for labels in operands for label in labels}))}
    arguments: list = []
    for x, labels in zip(inputs, operands):
        wide = x.astype(np.float64) if kind_of(x) in FLOATS else x
        arguments += [wide, [number[label] for label in labels]]
    return narrow(np.einsum(*arguments, [number[label] for label in output], optimize=True), inputs[0].dtype)


def _einsum_types(call: Call) -> Type:
    count = len(call.node.inputs)
    check_count(call, 1)
    kind = check_same_type(call, *range(count))
    check_type(call, 0, NUMBERS)
    equation = call.attr("equation")
    if not isinstance(equation, str):
        raise call.fail("attribute 'equation' is missing")
    shapes = [call.shape(i) for i in range(count)]
    known = [s for s in shapes if s is not None]
    if len(known) < count:
        return TensorType(kind, None)
    try:
        operands, output = _einsum_labels(equation, [len(s) for s in known])
    except InputError as error:
        raise call.fail(str(error)) from error
    dims: dict[int, list[Dim]] = {}
    for labels, shape in zip(operands, known):
        for label, dim in zip(labels, shape):
            dims.setdefault(label, []).append(dim)
    merged = {label: broadcast(call, *((d,) for d in found)) or (None,) for label, found in dims.items()}
    return TensorType(kind, tuple(merged[label][0] for label in output))


def _det(x):
    require(x, FLOATS)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"needs square matrices, got shape {x.shape}")
    return narrow(np.linalg.det(widen(x).astype(np.float64)), x.dtype)


def _det_types(call: Call) -> Type:
    check_count(call, 1, 1)
    kind = check_type(call, 0, FLOATS)
    shape = kind.shape
    if shape is None:
        return TensorType(kind.dtype, None)
    sides = {d for d in shape[-2:] if isinstance(d, int)}
    if len(shape) < 2 or len(sides) > 1:
        raise call.fail("needs square matrices")
    return TensorType(kind.dtype, shape[:-2])


def _by_row(parameter: np.ndarray, matrix: np.ndarray, what: str) -> np.ndarray:
    """A scale or zero point of the left matrix: a scalar, one per row, or laid out like the matrix."""
    if parameter.size == 1:
        return parameter.reshape(())
    shaped = parameter.reshape(-1, 1) if parameter.ndim == 1 else parameter
    require_fits(shaped.shape, matrix.shape[:-1] + (1,), what)
    return shaped


def _by_column(parameter: np.ndarray, matrix: np.ndarray, what: str) -> np.ndarray:
    """A scale or zero point of the right matrix: a scalar, one per column, or laid out like the matrix."""
    if parameter.size == 1:
        return parameter.reshape(())
    require_fits(parameter.shape, matrix.shape[:-2] + (1,) + matrix.shape[-1:] if matrix.ndim > 1 else (), what)
    return parameter


def integer_product(a, b, a_zero=None, b_zero=None):
    """The product of 8-bit matrices less their zero points, as int32 (wrapping around beyond it)."""
    require(a, _BYTES, "A")
    require(b, _BYTES, "B")
    _require_matrices(a, b)
    left, right = a.astype(np.float64), b.astype(np.float64)
    if a_zero is not None:
        require_same_type(a, a_zero)
        left = left - _by_row(a_zero, a, "the zero point of A").astype(np.float64)
    if b_zero is not None:
        require_same_type(b, b_zero)
        right = right - _by_column(b_zero, b, "the zero point of B").astype(np.float64)
    return narrow(np.asarray(np.matmul(left, right)).astype(np.int64), np.dtype(np.int32))


def _integer_types(call: Call) -> Type:
    check_count(call, 2, 4)
    for i in (0, 1):
        check_type(call, i, _BYTES)
        if call.has(i + 2):
            check_same_type(call, i, i + 2)
    return TensorType("int32", _product_shape(call, call.shape(0), call.shape(1)))


def _float(x: np.ndarray) -> np.ndarray:
    return widen(x).astype(np.float32)


def _quantized_matmul(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    for x, zero in ((a, a_zero), (b, b_zero)):
        require(x, QUANTIZED)
        require_same_type(x, zero)
    _require_matrices(a, b)
    left, right = _float(_by_row(a_scale, a, "a_scale")), _float(_by_column(b_scale, b, "b_scale"))
    scale = _float(y_scale)
    rows, columns = (a[None] if a.ndim == 1 else a), (b[:, None] if b.ndim == 1 else b)
    if kind_of(a) in _BYTES and kind_of(b) in _BYTES:
        product = integer_product(rows, columns, a_zero, b_zero).astype(np.float32)
        factor = left * right / scale
    else:
        rows = (_float(rows) - _float(_by_row(a_zero, a, "a_zero_point"))) * left
        columns = (_float(columns) - _float(_by_column(b_zero, b, "b_zero_point"))) * right
        product, factor = np.matmul(rows, columns), 1 / scale
    require_fits(scale.shape, product.shape, "y_scale")
    require_fits(y_zero.shape, product.shape, "y_zero_point")
    y = quantized(product * factor, y_zero, kind_of(y_zero))
    y = y[..., 0, :] if a.ndim == 1 else y
    return np.asarray(y[..., 0] if b.ndim == 1 else y)


def _quantized_types(call: Call) -> Type:
    check_count(call, 8, 8)
    for i in (0, 3):
        check_type(call, i, QUANTIZED)
        check_same_type(call, i, i + 2)
    out = check_type(call, 7, QUANTIZED)
    return TensorType(out.dtype, _product_shape(call, call.shape(0), call.shape(3)))


register(Op("MatMul", since=1, infer=_matmul_types, reference=_matmul, lower=lower_matmul, rows=rows_of_product))
register(Op("Gemm", since=1, infer=_gemm_1_types, reference=_gemm_1, lower=lower_gemm, rows=rows_of_product))
register(Op("Gemm", since=7, infer=_gemm_types, reference=_gemm_7, lower=lower_gemm, rows=rows_of_product))
register(Op("Gemm", since=11, infer=_gemm_types, reference=_gemm, lower=lower_gemm, rows=rows_of_product))
register(Op("Einsum", since=12, infer=_einsum_types, reference=_einsum))
register(Op("Det", since=11, infer=_det_types, reference=_det))
register(Op("MatMulInteger", since=10, infer=_integer_types, reference=integer_product,
            lower=deferred("lower_integer", "lower_matmul_integer")))  # fmt: skip
register(Op("QLinearMatMul", since=10, infer=_quantized_types, reference=_quantized_matmul,
            lower=deferred("lower_integer", "lower_qlinear_matmul")))  # fmt: skip
