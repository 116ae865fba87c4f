"""From a model with fixed shapes to what a compiled model does: ordinary plans, with every address relative to the
weights, the workspace, an input or an output.

The plans are made for the target's register tile, which the process takes from the environment
(minifer.kernels.target.PLAN_FOR): packed weights and block sizes depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.embed.abi import Interface, Tensor, unique_identifiers
from minifer.embed.parts import Builder
from minifer.embed.places import Weights
from minifer.embed.steps import Part
from minifer.errors import InputError, ShapeError, UnsupportedError
from minifer.ir import Graph, Model, TensorType


@dataclass
class Program:
    """A compiled model before it is code."""

    interface: Interface
    main: Part
    weights: Weights


def make_program(
    model: Model,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, Any],
    *,
    separate: bool = False,
    dims: Mapping[str, int] | None = None,
) -> Program:
    """The program of a model for inputs of these shapes. `values` fixes inputs, which are then no inputs any more;
    `dims` are the sizes of symbolic dimensions.

    Raises InputError for names that the model lacks, ShapeError for an open dimension (with what to give), and
    UnsupportedError that lists everything that cannot be compiled.
    """
    from minifer.passes import optimise
    from minifer.runtime.check import check_supported

    check_supported(model.graph)
    graph = _with_values(model.graph, values)
    types = _input_types(graph, shapes, dims or {})
    graph = optimise(graph)
    builder = Builder()
    main = builder.part(graph, types)
    if main is None:
        raise builder.problems.error()
    inputs = _tensors([(n, kind) for n, kind in types.items()], "input")
    outputs = _tensors([(n, kind) for n, (_, kind) in zip(graph.outputs, main.outputs)], "output")
    return Program(Interface(name, inputs, outputs, max(main.memory, 1), 0, separate), main, builder.weights)


def _with_values(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """The graph with some inputs made constants."""
    consts = dict(graph.consts)
    for name, value in values.items():
        kind = graph.types.get(name)
        if name not in graph.inputs or not isinstance(kind, TensorType):
            raise InputError(f"the model has no tensor input {name!r}: its inputs are {', '.join(graph.inputs)}")
        array = np.asarray(value).astype(dtypes.to_numpy(kind.dtype))
        if kind.shape is not None:
            if array.ndim == 0:
                array = np.full([d if isinstance(d, int) else 1 for d in kind.shape], array)
            fits = array.ndim == len(kind.shape) and all(
                not isinstance(d, int) or d == n for d, n in zip(kind.shape, array.shape)
            )
            if not fits:
                raise ShapeError(f"input {name!r} has shape {kind.shape}, the value given has {array.shape}")
        consts[name] = array
    inputs = tuple(n for n in graph.inputs if n not in values)
    return graph.with_(consts=consts, inputs=inputs)


def _input_types(graph: Graph, shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, int]) -> dict[str, TensorType]:
    """The type of every input that is no constant, all dimensions known. A first dimension that is open becomes 1."""
    wanted = [n for n in graph.inputs if n not in graph.consts]
    if unknown := [n for n in shapes if n not in wanted]:
        raise InputError(f"the model has no input {', '.join(unknown)}: its inputs are {', '.join(wanted)}")
    types, open_inputs = {}, []
    symbols = {d for n in wanted for d in (getattr(graph.types.get(n), "shape", None) or ()) if isinstance(d, str)}
    if strange := [symbol for symbol in dims if symbol not in symbols]:
        known = ", ".join(sorted(symbols)) or "none"
        raise InputError(f"{', '.join(strange)} is no symbolic dimension of an input; there is {known}")
    dims = {**_implied(graph, wanted, shapes), **dims}
    for name in wanted:
        kind = graph.types.get(name)
        if not isinstance(kind, TensorType) or kind.dtype == "string":
            raise UnsupportedError(f"input {name!r} is no tensor of numbers ({kind}): it cannot be compiled")
        if kind.shape is not None and name not in shapes:
            kind = kind.with_(shape=tuple(dims.get(d, d) if isinstance(d, str) else d for d in kind.shape))
        if name in shapes:
            kind = _shaped(name, kind, tuple(shapes[name]))
        elif kind.shape is not None and kind.shape[:1] == (None,) and all(isinstance(d, int) for d in kind.shape[1:]):
            kind = kind.with_(shape=(1, *kind.shape[1:]))
        elif not kind.concrete:
            open_inputs.append((name, kind))
            continue
        types[name] = kind
    if open_inputs:
        listed = " ".join(f"--shape {name}={_example(kind)}" for name, kind in open_inputs)
        said = ", ".join(f"{name} {kind}" for name, kind in open_inputs)
        raise ShapeError(
            f"a compiled model has fixed shapes, and these inputs leave some open: {said}. "
            f"Give them, for example: {listed} (in Python: shapes={{name: (1, 3, ...)}})"
        )
    return types


def _implied(graph: Graph, wanted: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of symbolic dimensions: as a given shape has them, else 1 for one that is first anywhere, a batch."""
    found: dict[str, int] = {}
    for name in wanted:
        kind = graph.types.get(name)
        if isinstance(kind, TensorType) and kind.shape:
            sizes = shapes.get(name, ())
            pairs = zip(kind.shape, sizes) if sizes else [(kind.shape[0], 1)]
            given = {d: n for d, n in pairs if isinstance(d, str)}
            found = {**found, **given} if sizes else {**given, **found}
    return found


def _shaped(name: str, kind: TensorType, shape: tuple[int, ...]) -> TensorType:
    if any(n < 0 for n in shape):
        raise ShapeError(f"input {name!r}: {shape} has a negative dimension")
    if kind.shape is not None:
        fits = len(kind.shape) == len(shape) and all(
            not isinstance(d, int) or d == n for d, n in zip(kind.shape, shape)
        )
        if not fits:
            raise ShapeError(f"input {name!r} is {kind} in the model: the shape {shape} does not fit")
    return kind.with_(shape=shape)


def _example(kind: TensorType) -> str:
    if kind.shape is None:
        return "1,3,224,224"
    return ",".join(str(d) if isinstance(d, int) else "1" if i == 0 else "128" for i, d in enumerate(kind.shape))


def _tensors(found: Sequence[tuple[str, TensorType]], default: str) -> tuple[Tensor, ...]:
    identifiers = unique_identifiers([n for n, _ in found], default)
    return tuple(Tensor(n, i, kind.dtype, kind.dims) for i, (n, kind) in zip(identifiers, found))
