"""Number rules that operators share: in which type to compute, how to come back, which types are allowed.

Half precision and the 8-bit and smaller floats are computed in float32 and rounded once at the end; float32 and
float64 are computed in themselves, integers in themselves with the wrap-around of two's complement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, ShapeError
from minifer.ir import Dim, TensorType, Type
from minifer.ops.registry import Call
from minifer.ops.shapes import broadcast

FLOATS = dtypes.FLOATS
NUMBERS = dtypes.FLOATS + dtypes.INTEGERS
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
SIGNED = tuple(n for n in NUMBERS if n not in UNSIGNED)
_NARROW_INTEGERS = {"int4": np.int8, "int2": np.int8, "uint4": np.uint8, "uint2": np.uint8}


def kind_of(x: np.ndarray) -> str:
    """The element type name of an array."""
    return dtypes.from_numpy(x.dtype)


def widen(x: np.ndarray) -> np.ndarray:
    """`x` in the type to compute in: float32 for the small floats, 8-bit integers for those below 8 bits."""
    kind = kind_of(x)
    if kind in _NARROW_INTEGERS:
        return x.astype(_NARROW_INTEGERS[kind])
    if kind == "float16" or x.dtype.kind == "V":
        return x.astype(np.float32)
    return x


def narrow(y: Any, dtype: np.dtype) -> np.ndarray:
    """A result as an array of `dtype`. NumPy turns 0-d results into scalars: they become arrays again."""
    return np.asarray(y).astype(dtype, copy=False)


def require(x: np.ndarray, allowed: Sequence[str], what: str = "the input") -> None:
    """InputError unless the element type of `x` is among `allowed`."""
    if kind_of(x) not in allowed:
        raise InputError(f"{what} has element type {kind_of(x)}; it must be one of {', '.join(allowed)}")


def require_same_type(*arrays: np.ndarray) -> None:
    """InputError unless all arrays have one element type."""
    kinds = {kind_of(a) for a in arrays}
    if len(kinds) > 1:
        raise InputError(f"inputs have element types {', '.join(sorted(kinds))}; they must be the same (insert a Cast)")


def scalar_of(x: np.ndarray, what: str) -> np.ndarray:
    """A one-element array as a 0-d array; ShapeError for any other size."""
    if x.size != 1:
        raise ShapeError(f"{what} must be a scalar, got shape {x.shape}")
    return x.reshape(())


def normal_axis(axis: int, rank: int) -> int:
    """A non-negative axis; InputError where it is outside [-rank, rank)."""
    if not -rank <= axis < rank:
        raise InputError(f"axis {axis} is outside [-{rank}, {rank})")
    return int(axis) % rank


def check_type(call: Call, i: int, allowed: Sequence[str]) -> TensorType:
    """The tensor type of input `i`; ShapeError unless its element type is among `allowed`."""
    kind = call.tensor(i)
    if kind.dtype not in allowed:
        raise call.fail(f"input {i} has element type {kind.dtype}; it must be one of {', '.join(allowed)}")
    return kind


def check_same_type(call: Call, *indices: int) -> str:
    """The common element type of inputs; ShapeError where they differ."""
    kinds = [call.dtype(i) for i in indices]
    if len(set(kinds)) > 1:
        raise call.fail(f"inputs have element types {', '.join(kinds)}; they must be the same (insert a Cast)")
    return kinds[0]


def check_count(call: Call, least: int, most: int | None = None) -> None:
    """ShapeError unless the node has between `least` and `most` inputs."""
    count = len(call.node.inputs)
    if count < least or (most is not None and count > most):
        wanted = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        raise call.fail(f"has {count} inputs, takes {wanted}")


def unary_types(allowed: Sequence[str], out: str | None = None) -> Callable[[Call], Type]:
    """One input of an allowed type; the output has its shape, and its type or `out`."""

    def infer(call: Call) -> Type:
        check_count(call, 1, 1)
        kind = check_type(call, 0, allowed)
        return TensorType(out or kind.dtype, kind.shape)

    return infer


def broadcast_types(
    allowed: Sequence[str], out: str | None = None, count: int | None = 2, equal: bool = False
) -> Callable[[Call], Type]:
    """`count` inputs (None: one or more) of one allowed type that broadcast, or have equal shapes where `equal`."""

    def infer(call: Call) -> Type:
        check_count(call, count or 1, count)
        every = range(len(call.node.inputs))
        kind = check_same_type(call, *every)
        check_type(call, 0, allowed)
        shapes = [call.shape(i) for i in every]
        return TensorType(out or kind, equal_shape(call, *shapes) if equal else broadcast(call, *shapes))

    return infer


def equal_shape(call: Call, *shapes: tuple[Dim, ...] | None) -> tuple[Dim, ...] | None:
    """The one shape that all have, as exactly as it is known; ShapeError where sizes or ranks differ."""
    known = [s for s in shapes if s is not None]
    if not known:
        return None
    if len({len(s) for s in known}) > 1:
        raise call.fail(f"shapes {', '.join(map(str, known))} must be equal")
    out: list[Dim] = []
    for dims in zip(*known):
        sizes = {d for d in dims if isinstance(d, int)}
        if len(sizes) > 1:
            raise call.fail(f"shapes {', '.join(map(str, known))} must be equal")
        out.append(sizes.pop() if sizes else next((d for d in dims if d is not None), None))
    return tuple(out)


def check_fits(call: Call, shape: tuple[Dim, ...] | None, target: tuple[Dim, ...] | None, what: str) -> None:
    """ShapeError unless `shape` can broadcast to `target` without growing it (unidirectional broadcasting)."""
    if shape is None or target is None:
        return
    pairs = zip(reversed(shape), reversed(target))
    if len(shape) > len(target) or any(
        isinstance(s, int) and s != 1 and isinstance(t, int) and s != t for s, t in pairs
    ):
        raise call.fail(f"{what} of shape {shape} does not broadcast to {target}")


def require_fits(shape: tuple[int, ...], target: tuple[int, ...], what: str) -> None:
    """The same for known shapes, in a reference."""
    if len(shape) > len(target) or any(s not in (1, t) for s, t in zip(reversed(shape), reversed(target))):
        raise ShapeError(f"{what} of shape {shape} does not broadcast to {target}")
