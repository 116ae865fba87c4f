"""Reductions over axes, global pooling and softmax as kernel calls.

A reduction sees its data as (outer, n, inner). Neighbouring axes are reduced as one; axes that are apart are reduced
one run after the other, from the last, so that nothing is transposed. Channels-last data is reduced as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer.kernels import softmax
from minifer.kernels.cast import CAST
from minifer.kernels.reduce import ABSOLUTE, KEEP, LOGARITHM, REDUCE, ROOT, SQUARE
from minifer.kernels.reduce import PLAIN as AS_IT_IS
from minifer.ops.lower_elementwise import (
    SPELLED,
    WIDE,
    Lower,
    Result,
    cast_slot,
    layout_of,
    memory_order,
    no_kernel,
    widened,
)
from minifer.ops.registry import CHANNELS_LAST, PLAIN, Declined
from minifer.ops.shapes import integers
from minifer.record import Record


class Kind(Record):
    """What a reduction does: the kernel's name, what is summed, and what becomes of the sum."""

    kernel: str
    power: int = AS_IT_IS
    finish: int = KEEP
    mean: bool = False
    minimum: int = 0


KINDS = {
    "SUM": Kind("sum"), "MEAN": Kind("sum", mean=True), "PRODUCT": Kind("prod"),
    "MAX": Kind("extreme"), "MIN": Kind("extreme", minimum=1),
    "L1": Kind("sum", ABSOLUTE), "L2": Kind("sum", SQUARE, ROOT), "SUM_OF_SQUARES": Kind("sum", SQUARE),
    "LOG_SUM": Kind("sum", finish=LOGARITHM), "LOG_SUM_EXP": Kind("log_sum_exp"),
}  # fmt: skip


def runs(dims: Sequence[int], reduced: Sequence[bool]) -> list[tuple[int, int, int]]:
    """The (outer, n, inner) of each reduction, in the order to do them in; each sees what the ones before left."""
    joined: list[list[Any]] = []
    for size, gone in zip(dims, reduced):
        if size == 1:
            continue
        if joined and joined[-1][1] == gone:
            joined[-1][0] *= size
        else:
            joined.append([size, gone])
    steps = []
    for at in reversed([i for i, (_, gone) in enumerate(joined) if gone]):
        outer = math.prod(size for size, _ in joined[:at])
        inner = math.prod(size for size, gone in joined[at + 1 :] if not gone)
        steps.append((outer, joined[at][0], inner))
    return steps or [(math.prod(dims), 1, 1)]


def reduce_over(low: Any, kind: Kind, axes: Sequence[int], keepdims: bool) -> Declined | None:
    """Output 0 = input 0 reduced over these (non-negative) axes."""
    dtype, dims = low.dtype(0), low.shape(0)
    wide = WIDE.get(dtype, dtype)
    if dtype == "bool" or (kind.mean and wide == "int32"):
        wide = "int64" if kind.mean else "int32"
    castable = dtype == wide or ((dtype, wide) in CAST and (wide, dtype) in CAST)
    if not castable or f"{kind.kernel}_{SPELLED.get(wide)}" not in REDUCE or (kind.finish and wide != "float32"):
        return no_kernel(low, dtype)
    source, target = _layouts(low, dims, axes, keepdims)
    order = memory_order(len(dims), source)
    x = low.input(0, source)
    x = cast_slot(low, x, wide) if x.dtype != wide else x
    steps = runs([dims[i] for i in order], [i in axes for i in order])
    y = Result(low, target, dtype=wide)
    count = math.prod(dims[i] for i in axes)
    for k, (outer, n, inner) in enumerate(steps):
        last = k + 1 == len(steps)
        made = y.slot if last else low.scratch(outer * inner * np.dtype(wide).itemsize, wide)
        one = kind.with_(power=AS_IT_IS if k else kind.power, finish=kind.finish if last else KEEP)
        _call(low, one, wide, x, made, outer, n, inner, count if last and kind.mean else 1)
        x = made
    y.close()
    return None


def _call(
    low: Any, kind: Kind, wide: str, x: Any, y: Any, outer: int, n: int, inner: int, divisor: int
) -> None:  # fmt: skip
    kernel = REDUCE[f"{kind.kernel}_{SPELLED[wide]}"]
    if kind.kernel == "extreme":
        low.call(kernel, x, y, outer, n, inner, kind.minimum)
    elif kind.kernel == "log_sum_exp":
        low.call(kernel, x, y, outer, n, inner)
    elif kernel is REDUCE["sum_f32"]:
        low.call(kernel, x, y, outer, n, inner, kind.power, kind.finish, divisor)
    else:
        low.call(kernel, x, y, outer, n, inner, kind.power, divisor)


def _layouts(low: Any, dims: tuple[int, ...], axes: Sequence[int], keepdims: bool) -> tuple[str, str]:
    """The layout to read and the one that the result then has."""
    if layout_of(low) == PLAIN:
        return PLAIN, PLAIN
    left = [i for i in memory_order(len(dims), CHANNELS_LAST) if i not in axes and dims[i] != 1]
    if left == sorted(left):  # the result lies in the same order either way
        return CHANNELS_LAST, PLAIN
    if keepdims:
        return CHANNELS_LAST, CHANNELS_LAST
    return PLAIN, PLAIN


def lower_reduce(kind: str) -> Lower:
    """The lowering of a Reduce operator (`kind`: of KINDS), with its axes as an attribute or as an input."""

    def lower(low: Any) -> Declined | None:
        rank = len(low.shape(0))
        given = low.attr("axes")
        if low.has(1):
            given = low.value(1)
            if given is None:
                return Declined("the axes are not constant")
        axes = [] if given is None else [a % rank for a in integers(given)]
        if not axes and not low.attr("noop_with_empty_axes", 0):
            axes = list(range(rank))
        return reduce_over(low, KINDS[kind], axes, bool(low.attr("keepdims", 1)))

    return lower


def lower_global_pool(kind: str) -> Lower:
    """The lowering of a pooling over all of space; `kind`: of KINDS."""
    return lambda low: reduce_over(low, KINDS[kind], range(2, len(low.shape(0))), True)


def lower_global_lp_pool(low: Any) -> Declined | None:
    """GlobalLpPool with p of 1 or 2."""
    p = low.attr("p", 2)
    if p not in (1, 2):
        return Declined(f"no kernel for p = {p}")
    return reduce_over(low, KINDS[f"L{p}"], range(2, len(low.shape(0))), True)


# ---------------------------------------------------------------- softmax


def lower_softmax(logarithm: int, flattened: bool = False) -> Callable[[Any], Declined | None]:
    """Softmax or its logarithm along an axis, or (before opset 13) along all axes from one on."""

    def lower(low: Any) -> Declined | None:
        dtype = low.dtype(0)
        if WIDE.get(dtype, dtype) != "float32":
            return no_kernel(low, dtype)
        if dtype == "bfloat16" and not logarithm:
            return Declined("the official results round each step to bfloat16, which the reference does")
        dims = low.shape(0)
        rank = len(dims)
        layout = PLAIN
        if flattened:
            first = low.attr("axis", 1) % max(rank, 1)
            outer, n, inner = math.prod(dims[:first]), math.prod(dims[first:]), 1
        else:
            layout = layout_of(low)
            order = memory_order(rank, layout)
            at = order.index(low.attr("axis", -1) % rank)
            sizes = [dims[i] for i in order]
            outer, n, inner = math.prod(sizes[:at]), sizes[at], math.prod(sizes[at + 1 :])
        x = widened(low, low.input(0, layout))
        y = Result(low, layout)
        if dtype == "float16" and not logarithm:
            low.call(softmax.softmax_half, x, y.slot, outer, n, inner)
        else:
            low.call(softmax.softmax, x, y.slot, outer, n, inner, logarithm)
        y.close()
        return None

    return lower
