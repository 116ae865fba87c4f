"""Shape rules that many operators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer.errors import ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.registry import Call


def same_as(i: int) -> Callable[[Call], Type]:
    """Output 0 has the type of input `i`."""

    def infer(call: Call) -> Type:
        return call.tensor(i)

    return infer


def broadcast(call: Call, *shapes: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """Multidirectional broadcasting (spec: Broadcasting.md). A symbol against another is unknown, against 1 itself."""
    if any(s is None for s in shapes):
        return None
    known = [s for s in shapes if s is not None]
    rank = max((len(s) for s in known), default=0)
    out: list[Dim] = []
    for column in range(rank):
        dims = [s[column - rank + len(s)] for s in known if column - rank + len(s) >= 0]
        sizes = {d for d in dims if isinstance(d, int) and d != 1}
        symbols = {d for d in dims if not isinstance(d, int)}
        if len(sizes) > 1:
            raise call.fail(f"shapes {', '.join(map(str, known))} do not broadcast")
        if sizes:
            out.append(sizes.pop())  # a symbol here must equal it, or be 1
        elif not symbols:
            out.append(1)
        else:
            out.append(symbols.pop() if len(symbols) == 1 else None)
    return tuple(out)


def elementwise(dtype: str | None = None) -> Callable[[Call], Type]:
    """All inputs broadcast; element type `dtype`, or that of input 0."""

    def infer(call: Call) -> Type:
        shapes = [call.shape(i) for i in range(len(call.node.inputs)) if call.has(i)]
        return TensorType(dtype or call.dtype(0), broadcast(call, *shapes))

    return infer


def axis_of(call: Call, axis: int, rank: int) -> int:
    """A non-negative axis, or ShapeError."""
    if not -rank <= axis < rank:
        raise call.fail(f"axis {axis} is outside [-{rank}, {rank})")
    return axis % rank


def product(dims: Sequence[Dim]) -> Dim:
    """The product of sizes; a lone symbol among ones stays itself; None where it is unknown."""
    if any(d == 0 and isinstance(d, int) for d in dims):
        return 0
    rest = [d for d in dims if d != 1]
    if all(isinstance(d, int) for d in rest):
        out = 1
        for d in rest:
            out *= d  # type: ignore[operator, assignment]
        return out
    return rest[0] if len(rest) == 1 else None


#: Makes the error to raise: `call.fail` in a type rule, ShapeError itself in a reference.
Fail = Callable[[str], Exception]


def integers(values: Any) -> tuple[int, ...]:
    """The plain integers of an attribute or of a tensor of any shape, in order."""
    return tuple(int(v) for v in np.asarray(values).reshape(-1))


def wrap_axis(axis: int, rank: int, fail: Fail = ShapeError) -> int:
    """A non-negative axis; `axis_of` for use in references too."""
    if not -rank <= axis < rank:
        raise fail(f"axis {axis} is outside [-{rank}, {rank})")
    return axis % rank


def wrap_axes(axes: Sequence[int], rank: int, fail: Fail = ShapeError) -> tuple[int, ...]:
    """Non-negative axes in the given order, none of them twice."""
    out = tuple(wrap_axis(axis, rank, fail) for axis in axes)
    if len(set(out)) < len(out):
        raise fail(f"axes {list(axes)} name an axis twice")
    return out
