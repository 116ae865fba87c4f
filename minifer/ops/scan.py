"""Scan: a body run over slices of tensors, with states carried along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import InputError, ModelError
from minifer.ir import Dim, Graph, TensorType, Type
from minifer.ops.bodies import body_types, check_body, empty_scan, scan_element, stack_scan, with_output_types
from minifer.ops.registry import Call, Op, register
from minifer.ops.shapes import axis_of


def _flags(values: Sequence[int], count: int, what: str) -> list[int]:
    """A list attribute with one entry for each of `count` values, or the default of zeros."""
    flags = list(values) or [0] * count
    if len(flags) != count:
        raise ModelError(f"{what} has {len(flags)} entries, and {count} are needed")
    return flags


def _directions(values: Sequence[int], count: int, what: str) -> list[int]:
    flags = _flags(values, count, what)
    if any(f not in (0, 1) for f in flags):
        raise ModelError(f"{what} must hold 0 (forward) or 1 (reverse), not {flags}")
    return flags


def _split_scan(values: Sequence[Any], num_scan_inputs: int, body: Graph) -> tuple[list[Any], list[Any]]:
    """The node's inputs as (states, scan inputs)."""
    if not 1 <= num_scan_inputs <= len(values):
        raise ModelError(f"num_scan_inputs is {num_scan_inputs}, and must be from 1 to the {len(values)} inputs given")
    count = len(values) - num_scan_inputs
    check_body(body, len(values), count)
    for i, value in enumerate(values):
        if not isinstance(value, np.ndarray | np.generic):
            raise InputError(f"input {i} must be a tensor, and is {type(value).__name__}")
    arrays = [np.asarray(value) for value in values]
    return arrays[:count], arrays[count:]


def _same_state(old: np.ndarray, new: Any, name: str) -> np.ndarray:
    if not isinstance(new, np.ndarray | np.generic) or new.shape != old.shape or new.dtype != old.dtype:
        found = f"{new.dtype}{list(new.shape)}" if hasattr(new, "dtype") else type(new).__name__
        raise InputError(f"state '{name}' changes from {old.dtype}{list(old.shape)} to {found}; it must keep its type")
    return np.asarray(new)


def _iterate(body: Graph, ctx: Any, states: list[Any], steps: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
    """Run the body over `steps` (the scan inputs of each iteration). Returns (states, parts of each scan output)."""
    count = len(states)
    parts: list[list[Any]] = [[] for _ in body.outputs[count:]]
    for elements in steps:
        results = ctx.run(body, [*states, *elements])
        states = [_same_state(*triple) for triple in zip(states, results, body.outputs)]
        for part, value in zip(parts, results[count:]):
            part.append(value)
    return states, parts


def _scan_length(lengths: Sequence[int]) -> int:
    if len(set(lengths)) > 1:
        raise InputError(f"the scan inputs have lengths {', '.join(map(str, lengths))}, and must all be equally long")
    return lengths[0]


def _axis(axis: int, value: np.ndarray) -> int:
    if not -value.ndim <= axis < value.ndim:
        raise InputError(f"scan axis {axis} is outside [-{value.ndim}, {value.ndim})")
    return axis % value.ndim


def _scan(
    *values,
    body,
    num_scan_inputs,
    scan_input_axes=(),
    scan_input_directions=(),
    scan_output_axes=(),
    scan_output_directions=(),
    ctx,
):
    """Iterate over slices of the scan inputs; states keep shape and type. Returns states, then scan outputs."""
    states, inputs = _split_scan(values, num_scan_inputs, body)
    outputs = len(body.outputs) - len(states)
    axes = _flags(scan_input_axes, len(inputs), "scan_input_axes")
    backward = _directions(scan_input_directions, len(inputs), "scan_input_directions")
    out_axes = _flags(scan_output_axes, outputs, "scan_output_axes")
    out_backward = _directions(scan_output_directions, outputs, "scan_output_directions")
    moved = [np.moveaxis(x, _axis(a, x), 0)[:: -1 if b else 1] for x, a, b in zip(inputs, axes, backward)]
    _scan_length([len(x) for x in moved])
    steps = [[np.array(x[t, ...]) for x in moved] for t in range(len(moved[0]))]
    states, parts = _iterate(body, ctx, states, steps)
    if not steps:
        slices = [np.zeros(x.shape[1:], x.dtype) for x in moved]
        body = with_output_types(body, len(states), lambda: ctx.run(body, [*states, *slices]))
    results = []
    for part, name, axis, reverse in zip(parts, body.outputs[len(states) :], out_axes, out_backward):
        results.append(stack_scan(part[:: -1 if reverse else 1], name, axis) if part else empty_scan(body, name, axis))
    return (*states, *results)


def _scan8(lengths, *values, body, num_scan_inputs, directions=(), ctx):
    """Scan with a batch: axis 0 is the batch and axis 1 the sequence. A sequence shorter than the longest
    one leaves zeros in the rest of its scan outputs; in reverse it starts at its own last element."""
    states, inputs = _split_scan(values, num_scan_inputs, body)
    backward = _directions(directions, len(inputs), "directions")
    if any(x.ndim < 2 for x in inputs) or any(x.ndim < 1 for x in states):
        raise InputError("scan inputs need a batch axis and a sequence axis, and states a batch axis")
    batches = {len(x) for x in (*states, *inputs)}
    if len(batches) > 1:
        raise InputError(f"the inputs have batch sizes {sorted(batches)}, and must all have the same")
    batch, longest = batches.pop(), _scan_length([x.shape[1] for x in inputs])
    counts = [longest] * batch if lengths is None else [int(n) for n in np.asarray(lengths).reshape(-1)]
    if len(counts) != batch or any(not 0 <= n <= longest for n in counts):
        raise InputError(f"sequence_lens is {counts}, and needs {batch} lengths from 0 to {longest}")
    rows = []
    for b, count in enumerate(counts):
        orders = [range(count - 1, -1, -1) if back else range(count) for back in backward]
        steps = [[np.array(x[b, order[t], ...]) for x, order in zip(inputs, orders)] for t in range(count)]
        rows.append(_iterate(body, ctx, [s[b, ...] for s in states], steps))
    finals = [np.stack([row[0][i] for row in rows]) if rows else state for i, state in enumerate(states)]
    names = body.outputs[len(states) :]
    return (*finals, *(_padded([row[1][k] for row in rows], longest, name, body) for k, name in enumerate(names)))


def _padded(rows: list[list[Any]], length: int, name: str, body: Graph) -> np.ndarray:
    """One scan output of a batch: (batch, length, ...), zeros where a sequence has ended."""
    first = next((row[0] for row in rows if row), None)
    if first is None:
        return empty_scan(body, name, 0, length, (len(rows),))
    out = np.full((len(rows), length, *first.shape), "" if first.dtype == object else 0, first.dtype)
    for target, row in zip(out, rows):
        if row:
            stacked = stack_scan([first, *row], name)[1:]
            target[: len(row)] = stacked
    return out


def _scan_parts(call: Call, skip: int) -> tuple[Graph, list[TensorType], list[TensorType]]:
    """(body, state types, scan input types) of a Scan node whose first `skip` inputs are something else."""
    body, scans = call.attr("body"), call.attr("num_scan_inputs")
    if not isinstance(body, Graph) or not isinstance(scans, int):
        raise call.fail("needs the graph body and num_scan_inputs")
    types = [call.tensor(i) for i in range(skip, len(call.node.inputs))]
    if not 1 <= scans <= len(types):
        raise call.fail(f"num_scan_inputs is {scans}, and must be from 1 to the {len(types)} inputs given")
    count = len(types) - scans
    if len(body.inputs) != len(types) or len(body.outputs) < count:
        raise call.fail(
            f"the body has {len(body.inputs)} inputs and {len(body.outputs)} outputs, and {count} states with {scans} "
            f"scan inputs need {len(types)} and at least {count}"
        )
    return body, types[:count], types[count:]


def _one_length(call: Call, lengths: Sequence[Dim]) -> Dim:
    sizes = {d for d in lengths if isinstance(d, int)}
    if len(sizes) > 1:
        raise call.fail(f"the scan inputs have lengths {sorted(sizes)}, and must all be equally long")
    if sizes:
        return sizes.pop()
    return lengths[0] if len(set(lengths)) == 1 else None


def _attr_list(call: Call, name: str, count: int) -> list[int]:
    try:
        return _flags(call.attr(name, ()), count, name)
    except ModelError as error:
        raise call.fail(str(error)) from None


def _infer_scan(call: Call) -> Sequence[Type | None]:
    """States keep their types; each scan output gets an axis as long as the scan inputs."""
    body, states, inputs = _scan_parts(call, 0)
    axes = _attr_list(call, "scan_input_axes", len(inputs))
    out_axes = _attr_list(call, "scan_output_axes", len(body.outputs) - len(states))
    lengths: list[Dim] = []
    elements: list[TensorType] = []
    for kind, axis in zip(inputs, axes):
        if kind.shape is None:
            lengths.append(None)
            elements.append(kind)
            continue
        axis = axis_of(call, axis, len(kind.shape))
        lengths.append(kind.shape[axis])
        elements.append(TensorType(kind.dtype, kind.shape[:axis] + kind.shape[axis + 1 :]))
    length = _one_length(call, lengths)
    results = body_types(call, body, [*states, *elements])
    outputs: list[Type | None] = list(states)
    for name, result, axis in zip(body.outputs[len(states) :], results[len(states) :], out_axes):
        runs = length > 0 if isinstance(length, int) else None
        part = scan_element(result, body.types.get(name), runs, name, call)
        if part is not None and part.shape is not None:
            axis = axis_of(call, axis, len(part.shape) + 1)
            part = TensorType(part.dtype, (*part.shape[:axis], length, *part.shape[axis:]))
        outputs.append(part)
    return outputs


def _infer_scan8(call: Call) -> Sequence[Type | None]:
    """As `_infer_scan`, with the batch as axis 0 and the sequence as axis 1 of scan inputs and outputs."""
    body, states, inputs = _scan_parts(call, 1)
    for kind, least in (*((s, 1) for s in states), *((x, 2) for x in inputs)):
        if kind.shape is not None and len(kind.shape) < least:
            raise call.fail("scan inputs need a batch axis and a sequence axis, and states a batch axis")
    batch = _one_length(call, [k.shape[0] for k in (*states, *inputs) if k.shape is not None] or [None])
    length = _one_length(call, [k.shape[1] for k in inputs if k.shape is not None] or [None])
    inner: list[Type | None] = [TensorType(s.dtype, None if s.shape is None else s.shape[1:]) for s in states]
    inner += [TensorType(x.dtype, None if x.shape is None else x.shape[2:]) for x in inputs]
    outputs: list[Type | None] = list(states)
    runs = batch * length > 0 if isinstance(batch, int) and isinstance(length, int) else None
    if runs and call.has(0):  # the sequences may all be empty
        runs = None
    for name, result in list(zip(body.outputs, body_types(call, body, inner)))[len(states) :]:
        part = scan_element(result, body.types.get(name), runs, name, call)
        if part is not None and part.shape is not None:
            part = TensorType(part.dtype, (batch, length, *part.shape))
        outputs.append(part)
    return outputs


register(Op("Scan", since=8, infer=_infer_scan8, reference=_scan8))
register(Op("Scan", since=9, infer=_infer_scan, reference=_scan))
