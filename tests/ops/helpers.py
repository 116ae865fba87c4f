"""Run one operator by its reference, or its type rule, without a model around it."""

from __future__ import annotations

from minifer.ir import Node, type_of_value
from minifer.ops import registry

#: an input that is given, and whose value is an empty optional
EMPTY = object()


def _node(name, version, inputs, domain, outputs, attrs):
    return Node(
        name,
        tuple(f"x{i}" if v is not None else "" for i, v in enumerate(inputs)),
        tuple(f"y{i}" for i in range(outputs)),
        attrs,
        "node",
        domain,
        version,
    )


def run_op(name, version, *inputs, domain="", outputs=1, **attrs):
    """The outputs of the operator's reference, as a list."""
    node = _node(name, version, inputs, domain, outputs, attrs)
    op = registry.select(node)
    assert op is not None, f"{domain}::{name}-{version} is not registered"
    values = [None if v is EMPTY else v for v in inputs]
    return op.call(registry.Context(node, lambda graph, inner: []), values)


def infer_op(name, version, *types, values=None, domain="", outputs=1, **attrs):
    """The output types that the operator's type rule gives for input types (None: omitted), as a list."""
    node = _node(name, version, types, domain, outputs, attrs)
    op = registry.select(node)
    assert op is not None and op.infer is not None, f"{domain}::{name}-{version} has no type rule"
    out = op.infer(registry.Call(node, types, values or [None] * len(types)))
    return list(out) if isinstance(out, list | tuple) else [out]


def infer_value(name, version, *inputs, **kwargs):
    """`infer_op` on the types of concrete values, the values known."""
    types = [None if v is None else type_of_value(v) for v in inputs]
    return infer_op(name, version, *types, values=list(inputs), **kwargs)
