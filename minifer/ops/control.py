"""Control flow: If and Loop (Scan has a file of its own)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minifer.errors import InputError, ShapeError
from minifer.ir import Graph, TensorType, Type
from minifer.ops.bodies import (
    body_types,
    check_body,
    empty_scan,
    merge_types,
    scan_element,
    single,
    stack_scan,
    with_output_types,
)
from minifer.ops.registry import Call, Op, register


def _flag(value: Any, what: str) -> bool:
    """A condition: one element of type bool."""
    flag = single(value, what)
    if not isinstance(flag, np.bool_):
        raise InputError(f"{what} must be bool, and is {value.dtype}")
    return bool(flag)


def _if(cond, *, then_branch, else_branch, ctx):
    return tuple(ctx.run(then_branch if _flag(cond, "the condition") else else_branch, []))


def _infer_if(call: Call) -> Sequence[Type | None]:
    """Types of the branch that is known to be taken, else what both branches have in common."""
    cond = call.tensor(0)
    if cond.dtype != "bool":
        raise call.fail("the condition must be bool")
    if cond.concrete and int(np.prod(cond.dims)) != 1:
        raise call.fail("the condition must have one element")
    then_branch, else_branch = call.attr("then_branch"), call.attr("else_branch")
    if not isinstance(then_branch, Graph) or not isinstance(else_branch, Graph):
        raise call.fail("needs the graphs then_branch and else_branch")
    count = len(call.node.outputs)
    for branch in (then_branch, else_branch):
        if len(branch.outputs) != count:
            raise call.fail(f"branch '{branch.name}' has {len(branch.outputs)} outputs, and the node has {count}")
    known = call.value(0)
    if known is not None:
        return body_types(call, then_branch if np.asarray(known).reshape(-1)[0] else else_branch, [])
    found = []
    for branch in (then_branch, else_branch):
        try:
            found.append(body_types(call, branch, []))
        except ShapeError:  # a branch need not fit inputs for which it is not taken; the run tells if it is
            found.append([None] * count)
    return [merge_types(a, b) for a, b in zip(*found)]


register(Op("If", since=1, infer=_infer_if, reference=_if))


def _like_declared(value: np.ndarray, body: Graph, name: str) -> np.ndarray:
    """Iteration number and condition are scalars, or of shape [1] where the body declares them so."""
    kind = body.types.get(name)
    return value.reshape(1) if isinstance(kind, TensorType) and kind.rank == 1 else value


def _carried_dtype(old: Any, new: Any, name: str) -> None:
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray) and old.dtype != new.dtype:
        raise InputError(f"carried value '{name}' changes its type from {old.dtype} to {new.dtype}")


def _loop(max_trips=None, cond=None, *initial, body, ctx):
    """Run `body(iteration, condition, *carried)` until the trip count or the condition ends it.

    The condition that the body returns is honoured whether or not the node has a condition input (the
    specification's table calls it ignored without one, yet every runtime stops on it, and a loop
    without either input could not end otherwise). Shapes of carried values may change; their element
    types may not. Returns the carried values, then each scan output stacked along a new axis 0.
    """
    count = len(initial)
    check_body(body, count + 2, count + 1)
    trips = None if max_trips is None else int(single(max_trips, "the trip count"))
    running = True if cond is None else _flag(cond, "the condition")
    carried = list(initial)
    scans: list[list[Any]] = [[] for _ in body.outputs[count + 1 :]]
    step = held = 0

    def iterate() -> list[Any]:
        number = _like_declared(np.array(step, np.int64), body, body.inputs[0])
        flag = _like_declared(np.array(True), body, body.inputs[1])
        return ctx.run(body, [number, flag, *carried])

    while running and (trips is None or step < trips):
        results = iterate()
        running = _flag(results[0], f"the condition '{body.outputs[0]}' that the body returns")
        for old, new, name in zip(carried, results[1:], body.outputs[1:]):
            _carried_dtype(old, new, name)
        carried = list(results[1 : count + 1])
        for parts, value in zip(scans, results[count + 1 :]):
            parts.append(value)
            held += getattr(value, "nbytes", 0)
        ctx.hold(held)
        step += 1
    if step == 0:
        body = with_output_types(body, count + 1, iterate)
    names = body.outputs[count + 1 :]
    outputs = [stack_scan(parts, name) if parts else empty_scan(body, name, 0) for parts, name in zip(scans, names)]
    return (*carried, *outputs)


def _never_stops(body: Graph) -> bool:
    """True where the body's condition is plainly its own condition input, or a constant true."""
    made = {name: node for node in body.nodes for name in node.outputs}
    name = body.outputs[0]
    while name in made and made[name].op == "Identity" and not made[name].domain:
        name = made[name].inputs[0]
    if name == body.inputs[1]:
        return True
    value = body.consts.get(name)
    if value is None and name in made and made[name].op == "Constant" and not made[name].domain:
        value = made[name].attrs.get("value")
    return isinstance(value, np.ndarray) and value.dtype == np.bool_ and value.size == 1 and bool(value.reshape(-1)[0])


def _trips(call: Call, body: Graph) -> tuple[int | None, bool | None]:
    """(number of iterations, whether there is one at all), each None where it is not known."""
    trips, cond = call.value(0), call.value(1)
    limit = None if trips is None else max(int(np.asarray(trips).reshape(-1)[0]), 0)
    if limit == 0 or (cond is not None and not np.asarray(cond).reshape(-1)[0]):
        return 0, False
    starts = not call.has(1) or cond is not None
    runs = starts and (limit is not None or not call.has(0))
    return (limit if runs and _never_stops(body) else None), runs or None


def _covering(first: Sequence[Type | None], step: Any) -> tuple[list[Type | None], list[Type | None]]:
    """Types that hold in every iteration: `step` maps carried types to output types (condition left out).

    Merging only ever forgets, so this ends. Returns (carried, all outputs).
    """
    carried = list(first)
    while True:
        results = step(carried)
        merged = [merge_types(a, b) for a, b in zip(carried, results)]
        if merged == carried:
            return carried, results
        carried = merged


def _infer_loop(call: Call) -> Sequence[Type | None]:
    """Carried values keep what no iteration changes; a scan output gets a new axis 0 of the trip count."""
    body = call.attr("body")
    if not isinstance(body, Graph):
        raise call.fail("needs the graph body")
    initial = [call.types[i] if i < len(call.types) else None for i in range(2, len(call.node.inputs))]
    count = len(initial)
    if len(body.inputs) != count + 2 or len(body.outputs) < count + 1:
        raise call.fail(
            f"the body has {len(body.inputs)} inputs and {len(body.outputs)} outputs, and {count} carried values "
            f"need {count + 2} and at least {count + 1}"
        )
    for i, dtype in ((0, "int64"), (1, "bool")):
        if call.has(i) and call.types[i] is not None and call.dtype(i) != dtype:
            raise call.fail(f"input {i} must be {dtype}")
    trips, runs = _trips(call, body)
    heads = [_head_type(body, 0, "int64"), _head_type(body, 1, "bool")]
    carried, results = _covering(initial, lambda types: body_types(call, body, [*heads, *types])[1:])
    outputs: list[Type | None] = list(initial if trips == 0 else carried)
    for name, element in zip(body.outputs[count + 1 :], results[count:]):
        declared = body.types.get(name)
        part = scan_element(element, declared, runs, name, call)
        if part is None or part.shape is None:
            outputs.append(part)
        else:
            outputs.append(TensorType(part.dtype, (trips, *part.shape)))
    return outputs


def _head_type(body: Graph, i: int, dtype: str) -> TensorType:
    declared = body.types.get(body.inputs[i])
    return TensorType(dtype, (1,) if isinstance(declared, TensorType) and declared.rank == 1 else ())


register(Op("Loop", since=1, infer=_infer_loop, reference=_loop))
