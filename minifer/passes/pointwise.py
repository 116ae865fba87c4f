"""A 1x1 convolution over maps of several sizes that were resized and joined: done on each before it is resized.

    conv(concat(resize(a), resize(b), c)) = resize(conv_a(a)) + resize(conv_b(b)) + conv_c(c)

Interpolation weighs pixels, a 1x1 convolution weighs channels; both are linear, so their order is free (up to
rounding), and on the small maps there is less to do. This is how the heads of segmentation nets are built (Xie et al.,
"SegFormer", 2021). Where a part comes from a product with constant weights, the two linear maps become one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.passes.match import Matcher, Types, other, rewrite

#: the work that must be left over at most for the change to be made
GAIN = 0.6


def resize_last(graph: Graph, types: Types | None = None) -> Graph:
    """Rewrite each such convolution of float32 maps whose sizes are known."""
    return rewrite(graph, types, ("Conv",), _apart)


def _sizes(found: Matcher, name: str) -> tuple[int, ...] | None:
    """The shape of a float32 map (batch, channels, rows, columns), where it is known."""
    kind = found.type(name)
    return kind.dims if kind is not None and kind.concrete and kind.dtype == "float32" and kind.rank == 4 else None


def _apart(found: Matcher, conv: Node, consts: dict[str, Any]) -> tuple[Node, list[Node]] | None:
    """The nodes that take the place of a 1x1 convolution over a Concat of resized maps."""
    weight = found.constants.get(conv.inputs[1])
    bias = found.constants.get(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] else None
    joined = found.alone(conv.inputs[0], "Concat")
    plain = (
        conv.attrs.get("group", 1) == 1
        and all(s == 1 for s in conv.attrs.get("strides", (1, 1)))
        and not any(conv.attrs.get("pads", (0,)))
        and conv.attrs.get("auto_pad", "NOTSET") == "NOTSET"
    )
    if joined is None or weight is None or weight.shape[2:] != (1, 1) or weight.dtype != np.float32 or not plain:
        return None
    if joined.attrs.get("axis") not in (1, -3) or (bias is None and len(conv.inputs) > 2 and conv.inputs[2]):
        return None
    made_of = weight.shape[0]
    parts: list[tuple[str, Node | None, int]] = []  # the map before it is resized, its Resize, its channels
    before = after = 0
    for name in joined.inputs:
        resize = found.alone(name, "Resize")
        source = name if resize is None else resize.inputs[0]
        small, large = _sizes(found, source), _sizes(found, name)
        if small is None or large is None or (resize is not None and not _linear(resize, small, large, made_of)):
            return None
        parts.append((source, resize, large[1]))
        before += math.prod(large)
        after += math.prod(small)
    if after > GAIN * before or weight.shape[1] != sum(channels for *_, channels in parts):
        return None
    return conv, _sum_of_parts(found, conv, weight[:, :, 0, 0], bias, parts, consts)


def _linear(resize: Node, small: tuple[int, ...], large: tuple[int, ...], channels: int) -> bool:
    """Whether a Resize interpolates space alone and can be done on the results, which have as many channels."""
    crops = resize.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return resize.version >= 11 and not crops and small[:2] == large[:2] and large[1] == channels


def _sum_of_parts(
    found: Matcher, conv: Node, weight: np.ndarray, bias: np.ndarray | None, parts: list[Any], consts: dict[str, Any]
) -> list[Node]:
    """The parts, the smallest maps first, and their sum."""
    out, nodes, start = conv.outputs[0], [], 0
    names: list[tuple[bool, str]] = []
    for i, (source, resize, channels) in enumerate(parts):
        own = weight[:, start : start + channels]
        start += channels
        base = f"{out}/part{i}"
        made = _merged(found, source, own, bias, base, consts)
        if made is None:
            consts[f"{base}/weight"] = np.ascontiguousarray(own[:, :, None, None])
            inputs = [source, f"{base}/weight"]
            if bias is not None:
                consts[f"{base}/bias"] = bias
                inputs.append(f"{base}/bias")
            made = [Node("Conv", tuple(inputs), (base,), conv.attrs, conv.name, "", conv.version)]
        bias = None  # added once
        nodes += made
        name = base
        if resize is not None:
            name = f"{base}/large"
            nodes.append(
                Node("Resize", (base, *resize.inputs[1:]), (name,), resize.attrs, resize.name, "", resize.version)
            )
        names.append((resize is None, name))
    total = names[0][1]
    for i, (_, name) in enumerate(names[1:], 1):
        target = out if i == len(names) - 1 else f"{out}/sum{i}"
        nodes.append(Node("Add", (total, name), (target,), {}, conv.name, "", 14))
        total = target
    if len(names) == 1:
        nodes.append(Node("Identity", (total,), (out,), {}, conv.name, "", 14))
    return nodes


def _merged(
    found: Matcher, source: str, weight: np.ndarray, bias: np.ndarray | None, base: str, consts: dict[str, Any]
) -> list[Node] | None:
    """A map that is a product (batch, pixels, channels) moved into place: that product, with both linear maps in it."""
    moves: list[Node] = []
    name = source
    while (move := found.alone(name, "Reshape", "Transpose")) is not None:
        moves.insert(0, move)
        name = move.inputs[0]
    plus = found.alone(name, "Add")
    product = next((n for n in plus.inputs if found.alone(n, "MatMul")), "") if plus is not None else ""
    if plus is None or not product or weight.shape[0] != weight.shape[1]:
        return None
    first, added = found.made(product, "MatMul"), found.constants.get(other(plus, product))
    inner = found.constants.get(first.inputs[1]) if first is not None else None
    if first is None or added is None or inner is None or not _last_becomes_channels(found, moves):
        return None
    if inner.ndim != 2 or added.shape != inner.shape[1:] or inner.dtype != np.float32 or added.dtype != np.float32:
        return None
    wide = weight.T.astype(np.float64)
    consts[f"{base}/weight"] = (inner.astype(np.float64) @ wide).astype(np.float32)
    shift = added.astype(np.float64) @ wide + (0 if bias is None else bias)
    consts[f"{base}/bias"] = shift.astype(np.float32)
    made = [
        Node("MatMul", (first.inputs[0], f"{base}/weight"), (f"{base}/product",), {}, first.name, "", 13),
        Node("Add", (f"{base}/product", f"{base}/bias"), (f"{base}/biased",), {}, plus.name, "", 14),
    ]
    for i, move in enumerate(moves):
        target = base if i == len(moves) - 1 else f"{base}/move{i}"
        made.append(
            Node(move.op, (made[-1].outputs[0], *move.inputs[1:]), (target,), move.attrs, move.name, "", move.version)
        )
    return made


def _last_becomes_channels(found: Matcher, moves: list[Node]) -> bool:
    """Whether (N, S, C) goes to (N, C, H, W) by a Transpose and a Reshape of the pixels."""
    if len(moves) != 2 or moves[0].op != "Transpose" or moves[1].op != "Reshape":
        return False
    middle, last = found.shape(moves[0].outputs[0]), found.shape(moves[1].outputs[0])
    perm = moves[0].attrs.get("perm")
    return perm == (0, 2, 1) and middle is not None and last is not None and middle[:2] == last[:2]
