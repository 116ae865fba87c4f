"""What If, Loop, Scan and SequenceMap share: types that cover several graphs, and the outputs of iterations.

Inside a body the names of the outer graphs are bound already; what an operator passes are the body's own inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, MiniferError, ModelError
from minifer.ir import Graph, OptionalType, SequenceType, TensorType, Type, type_of_value
from minifer.ops.registry import Call


def merge_types(a: Type | None, b: Type | None) -> Type | None:
    """The narrowest type that covers both; None where they have nothing in common."""
    if a is None or b is None or a == b:
        return a if a == b else None
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.dtype != b.dtype:
            return None
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(a.dtype, None)
        return TensorType(a.dtype, tuple(x if x == y else None for x, y in zip(a.shape, b.shape)))
    if isinstance(a, OptionalType) or isinstance(b, OptionalType):
        inner = [t.element if isinstance(t, OptionalType) else t for t in (a, b)]
        return OptionalType(merge_types(*inner))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(merge_types(a.element, b.element))
    return None


def body_types(call: Call, body: Graph, inputs: Sequence[Type | None]) -> list[Type | None]:
    """Types of the body's outputs for given input types; the declared ones where nothing better is known."""
    declared = [body.types.get(name) for name in body.outputs]
    if call.infer_graph is None:
        return declared
    return [d if t is None else t for t, d in zip(call.infer_graph(body, inputs), declared)]


def single(value: Any, what: str) -> Any:
    """The one element of a tensor."""
    if not isinstance(value, np.ndarray | np.generic) or value.size != 1:
        found = f"shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
        raise InputError(f"{what} must be a tensor of one element, and is {found}")
    return value.reshape(-1)[0]


def with_output_types(body: Graph, count: int, trial: Callable[[], list[Any]]) -> Graph:
    """The body with types for its outputs from `count` on, for a loop that never ran.

    Where the body declares none, they are those of a `trial` run on the initial values, if that succeeds.
    """
    if all(isinstance(body.types.get(name), TensorType) for name in body.outputs[count:]):
        return body
    try:
        found = {name: type_of_value(value) for name, value in zip(body.outputs, trial())}
    except MiniferError:
        return body
    return body.with_(types={**found, **body.types})


def empty_scan(body: Graph, name: str, axis: int, length: int = 0, batch: tuple[int, ...] = ()) -> np.ndarray:
    """A scan output of a loop that never ran: `length` zeros along `axis`, the rest as the body declares.

    Dimensions that the body leaves open are 0.
    """
    kind = body.types.get(name)
    if not isinstance(kind, TensorType):
        raise ModelError(
            f"the loop ran no iteration, and its body declares no tensor type for the output '{name}', "
            "so the type of that output is not known; declare it in the body graph"
        )
    dims = [d if isinstance(d, int) else 0 for d in kind.shape or ()]
    if not -len(dims) - 1 <= axis <= len(dims):
        raise InputError(f"scan output '{name}' has rank {len(dims)}, so it cannot be gathered along axis {axis}")
    dims.insert(axis % (len(dims) + 1), length)
    fill: Any = "" if kind.dtype == "string" else 0
    return np.full((*batch, *dims), fill, dtypes.to_numpy(kind.dtype))


def stack_scan(parts: list[Any], name: str, axis: int = 0) -> np.ndarray:
    """The elements of a scan output, stacked along a new axis."""
    first = parts[0]
    for step, part in enumerate(parts):
        if not isinstance(part, np.ndarray | np.generic):
            raise InputError(f"scan output '{name}' must be a tensor, and iteration {step} gave {type(part).__name__}")
        if part.shape != first.shape or part.dtype != first.dtype:
            raise InputError(
                f"scan output '{name}' changes from {first.dtype}{list(first.shape)} to "
                f"{part.dtype}{list(part.shape)} at iteration {step}; all iterations must agree"
            )
    if not -first.ndim - 1 <= axis <= first.ndim:
        raise InputError(f"scan output '{name}' has rank {first.ndim}, so it cannot be gathered along axis {axis}")
    return np.stack(parts, axis)


def check_body(body: Graph, inputs: int, least_outputs: int) -> None:
    if len(body.inputs) != inputs:
        raise ModelError(f"the body '{body.name}' has {len(body.inputs)} inputs, and the node passes {inputs}")
    if len(body.outputs) < least_outputs:
        raise ModelError(
            f"the body '{body.name}' has {len(body.outputs)} outputs, and needs at least {least_outputs}: "
            "one for each carried value"
        )


def scan_element(
    element: Type | None, declared: Type | None, runs: bool | None, name: str, call: Call
) -> TensorType | None:
    """What one iteration adds to a scan output. `runs`: True (it does run), False (it does not), None (unknown).

    A loop that does not run gives the sizes that the body declares, and 0 for those it leaves open; so where
    that is possible, only the sizes that are declared are sure.
    """
    if element is None:
        return None
    if not isinstance(element, TensorType):
        raise call.fail(f"scan output '{name}' must be a tensor, and is {element}")
    if runs or not isinstance(declared, TensorType):  # without a declaration a loop that does not run is an error
        return element
    if runs is False:
        return TensorType(element.dtype, tuple(d if isinstance(d, int) else 0 for d in declared.shape or ()))
    if element.shape is None or declared.shape is None or len(declared.shape) != len(element.shape):
        return TensorType(element.dtype, None)
    sizes = zip(declared.shape, element.shape)
    return TensorType(element.dtype, tuple(d if isinstance(d, int) and d == e else None for d, e in sizes))
