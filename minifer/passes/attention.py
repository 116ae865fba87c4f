"""Scaled dot product attention written out in elementary operators, put together as minifer::Attention.

    scores = (q * s) (k * s)^T, or q k^T * s          any of the three scaled, by a constant factor or divisor
    scores + bias, or Where(mask, scores, -inf)       masks of any number, in any order
    weight = Softmax(scores), perhaps Where(IsNaN(weight), 0, weight)
    y = weight v

Heads that a Transpose (0, 2, 1, 3) brings to the front are read where they lie, and the result is written where the
Transpose behind it would put it: what is left around is Reshapes, which cost nothing. A mask that is the lower triangle
by its constant values becomes `causal`; any other is added as it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minifer.ir import Graph, Node
from minifer.passes.match import Matcher, Types, declined, replace_nodes
from minifer.record import Record

HEADS_BACK = (0, 2, 1, 3)
#: a number at which a score vanishes: adding it to one of usual size gives itself
HIDDEN = -1e9
#: nodes between the scores and the softmax
DEPTH = 6


class _Scores(Record, frozen=False):
    """q k^T * scale + biases: names of q and k^T, and of what is added."""

    q: str
    k: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.biases: list[str] = []
        self.masks: list[tuple[str, bool, float]] = []  # condition, where it hides, with what number


class _Fusion:
    """What a pass over the graph has found so far."""

    def __init__(self, found: Matcher):
        self.found = found
        self.consts: dict[str, Any] = {}
        self.shared: dict[Any, str] = {}  # biases made before
        self.before: list[Node] = []  # nodes that the one being made needs

    def node(self, op: str, inputs: tuple[str, ...], like: Node, name: str, **attrs: Any) -> str:
        """A new node ahead of the fused one; returns its output."""
        self.before.append(Node(op, inputs, (name,), attrs, name, "", like.version))
        return name

    def const(self, name: str, value: Any) -> str:
        """A new constant."""
        self.consts[name] = value
        return name


def attention(graph: Graph, types: Types | None = None) -> Graph:
    """Replace each attention over float32 numbers by one node."""
    if not any(node.op == "Softmax" and not node.domain for node in graph.nodes):
        return graph
    fusion = _Fusion((types or Types(graph)).matcher(graph))
    replaced: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "Softmax" and not node.domain:
            fusion.before = []
            made = _fuse(fusion, node)
            if made is not None:
                replaced[id(made[0])] = [*fusion.before, made[1]]
    return replace_nodes(graph, replaced, fusion.consts)


def _fuse(fusion: _Fusion, softmax: Node) -> tuple[Node, Node] | None:
    """The node that ends the attention around a softmax, and the fused one."""
    found = fusion.found
    shape = found.shape(softmax.outputs[0])
    rank = None if shape is None else len(shape)
    axis = softmax.attrs.get("axis", -1 if softmax.version >= 13 else 1)
    if rank is None or axis not in (-1, rank - 1):
        return None
    guarded, weight = _guard(found, softmax)
    product = found.reader(weight, "MatMul")
    if product is None or product.inputs[0] != weight:
        return None
    scores = _scores(found, softmax.inputs[0], DEPTH)
    if scores is None or not found.is_float(scores.q):
        declined(softmax, "what it is taken of is no product q k^T with constant scale and masks after it")
        return None
    attrs: dict[str, Any] = {}
    key = _transposed(fusion, scores, product)
    if key is None:
        declined(softmax, "k is not transposed just before the product")
        return None
    k, attrs["k_heads"] = key
    scores.q, factor = _scaled(found, scores.q)
    scores.scale *= factor
    q, attrs["q_heads"] = _heads_back(found, scores.q)
    q, factor = _scaled_before_reshape(fusion, q, product)
    attrs["scale"] = scores.scale * factor
    v, attrs["v_heads"] = _heads_back(found, product.inputs[1])
    bias = _bias(fusion, scores, attrs, found.shape(softmax.inputs[0]), product)
    if bias is None:
        declined(softmax, "a mask or bias whose type or rank is not that of the scores")
        return None
    if guarded:
        attrs["hidden_zero"] = 1
    last = found.reader(product.outputs[0], "Transpose")
    if last is not None and rank == 4 and last.attrs.get("perm") == HEADS_BACK:
        attrs["y_heads"] = 2
    else:
        last = product
    if not math.isfinite(attrs["scale"]):
        return None
    inputs = (q, k, v, bias) if bias else (q, k, v)
    return last, Node("Attention", inputs, last.outputs, attrs, softmax.name, "minifer", 1)


def _guard(found: Matcher, softmax: Node) -> tuple[bool, str]:
    """Whether NaN is replaced by 0 behind the softmax, and the name of the weights."""
    weight = softmax.outputs[0]
    readers = [n for n in found.readers(weight) if n is not None]
    if len(found.readers(weight)) == 2 and {n.op for n in readers} == {"IsNaN", "Where"}:
        test, choice = sorted(readers, key=lambda n: n.op)
        tested = found.reader(test.outputs[0], "Where") is choice and choice.inputs[0] == test.outputs[0]
        if tested and found.number(choice.inputs[1]) == 0.0 and choice.inputs[2] == weight:
            return True, choice.outputs[0]
    return False, weight


def _scores(found: Matcher, name: str, depth: int) -> _Scores | None:
    """What the scores are made of; what lies between is read by nobody else."""
    node = found.alone(name, "MatMul", "Add", "Mul", "Div", "Where")
    if node is None or not depth:
        return None
    if node.op == "MatMul":
        return _Scores(node.inputs[0], node.inputs[1])
    if node.op == "Where":
        return _masked(found, node, depth)
    if node.version < 7:
        return None
    for inner, outer in (node.inputs, node.inputs[::-1]):
        if node.op == "Add":
            scores = _scores(found, inner, depth - 1)
            if scores is not None:
                scores.biases.append(outer)
                return scores
            continue
        number = found.number(outer)
        if number is None or (node.op == "Div" and (inner != node.inputs[0] or number == 0)):
            continue
        scores = _scores(found, inner, depth - 1)
        if scores is not None and not scores.biases and not scores.masks:
            scores.scale *= number if node.op == "Mul" else 1 / number
            return scores
    return None


def _masked(found: Matcher, node: Node, depth: int) -> _Scores | None:
    """Where(condition, scores, -inf) or the other way round."""
    condition = node.inputs[0]
    for inner, outer, hides in ((node.inputs[1], node.inputs[2], False), (node.inputs[2], node.inputs[1], True)):
        number = found.number(outer)
        if number is not None and number <= HIDDEN:
            scores = _scores(found, inner, depth - 1)
            if scores is not None:
                scores.masks.append((condition, hides, number))
                return scores
    return None


# ---------------------------------------------------------------- q, k and v


def _scaled(found: Matcher, name: str) -> tuple[str, float]:
    """What a value is a constant multiple of, and the factor."""
    factor = 1.0
    while (node := found.made(name, "Mul", "Div")) is not None and node.version >= 7:
        left, right = (found.number(n) for n in node.inputs)
        if right is not None and (node.op == "Mul" or right != 0):
            name, factor = node.inputs[0], factor * right if node.op == "Mul" else factor / right
        elif left is not None and node.op == "Mul":
            name, factor = node.inputs[1], factor * left
        else:
            break
    return name, factor


def _scaled_before_reshape(fusion: _Fusion, name: str, like: Node) -> tuple[str, float]:
    """As `_scaled`, where a Reshape stands between: a new one reads what is not scaled."""
    found = fusion.found
    reshape = found.made(name, "Reshape")
    if reshape is None or found.alone(reshape.inputs[0], "Mul", "Div") is None:
        return name, 1.0
    source, factor = _scaled(found, reshape.inputs[0])
    if source == reshape.inputs[0] or reshape.version < 5:
        return name, 1.0
    made = f"{like.outputs[0]}/q"
    fusion.before.append(
        Node("Reshape", (source, *reshape.inputs[1:]), (made,), reshape.attrs, made, "", reshape.version)
    )
    return made, factor


def _heads_back(found: Matcher, name: str) -> tuple[str, int]:
    """Where heads are brought to the front: what they are brought from, with heads on axis 2."""
    node = found.made(name, "Transpose")
    if node is not None and node.attrs.get("perm") == HEADS_BACK:
        return node.inputs[0], 2
    return name, 1


def _transposed(fusion: _Fusion, scores: _Scores, like: Node) -> tuple[str, int] | None:
    """k where the scores hold its transposition, and the axis of its heads; the scale takes up factors on the way."""
    found = fusion.found
    name, factor = _scaled(found, scores.k)
    node = found.made(name, "Transpose")
    perm = None if node is None else node.attrs.get("perm")
    if node is None:
        whole = _batch_transposed(found, name)
        if whole is None:
            return None
        k, order = whole, tuple(range(4))
    elif perm is None or len(perm) < 2:
        return None
    else:
        k, order = node.inputs[0], (*perm[:-2], perm[-1], perm[-2])
    k, more = _scaled(found, k)
    scores.scale *= factor * more
    if order == tuple(range(len(order))):
        return _heads_back(found, k)
    if order == HEADS_BACK:
        return k, 2
    return fusion.node("Transpose", (k,), like, f"{like.outputs[0]}/k", perm=order), 1


def _batch_transposed(found: Matcher, name: str) -> str | None:
    """x where a value is x (N, H, S, E) with its last axes exchanged by way of (N * H, S, E)."""
    last = found.made(name, "Reshape")
    middle = found.made(last.inputs[0], "Transpose") if last is not None else None
    first = found.made(middle.inputs[0], "Reshape") if middle is not None else None
    if last is None or middle is None or first is None or middle.attrs.get("perm") != (0, 2, 1):
        return None
    x = first.inputs[0]
    shape = found.shape(x)
    if shape is None or len(shape) != 4:
        return None
    sizes = [d if isinstance(d, int) else (x, axis) for axis, d in enumerate(shape)]
    inner, outer = _sizes(found, first.inputs[1]), _sizes(found, last.inputs[1])
    merged = [sizes[0] * sizes[1]] if isinstance(sizes[0], int) and isinstance(sizes[1], int) else []
    if inner is None or inner[1:] != sizes[2:] or inner[0] not in (-1, *merged):
        return None
    return x if outer == [*sizes[:2], sizes[3], sizes[2]] else None


def _sizes(found: Matcher, name: str, depth: int = 4) -> list[Any] | None:
    """A vector of sizes: numbers where they are known, else (tensor, axis)."""
    value = found.value(name)
    if isinstance(value, np.ndarray):
        return [int(d) for d in value.reshape(-1)]
    node = found.made(name, "Shape", "Slice", "Concat")
    if node is None or not depth:
        return None
    if node.op == "Shape":
        shape = found.shape(node.inputs[0])
        if shape is None:
            return None
        every = [d if isinstance(d, int) else (node.inputs[0], axis) for axis, d in enumerate(shape)]
        return every[slice(node.attrs.get("start"), node.attrs.get("end"))]
    if node.op == "Concat":
        parts = [_sizes(found, n, depth - 1) for n in node.inputs]
        return None if any(p is None for p in parts) else [d for p in parts if p is not None for d in p]
    whole = _sizes(found, node.inputs[0], depth - 1)
    bounds = [found.value(n) for n in node.inputs[1:]]
    if whole is None or len(bounds) not in (2, 3) or any(b is None or b.size != 1 for b in bounds):
        return None
    return whole[int(bounds[0].reshape(())) : int(bounds[1].reshape(()))]


# ---------------------------------------------------------------- masks


def _bias(
    fusion: _Fusion, scores: _Scores, attrs: dict[str, Any], shape: tuple[Any, ...] | None, like: Node
) -> str | None:
    """The name of what is added to the scores, "" for nothing, None where it does not fit them."""
    names: list[str] = []
    for name in scores.biases:
        part = _additive(fusion, name, attrs, shape, like)
        if part is None:
            return None
        names.append(part)
    for condition, hides, number in scores.masks:
        names.append(_choice(fusion, condition, hides, number, attrs, shape, like))
    names = [n for n in names if n]
    if not names:
        return ""
    total = names[0]
    for i, name in enumerate(names[1:]):
        total = fusion.node("Add", (total, name), like, f"{like.outputs[0]}/bias{i}")
    return total


def _additive(
    fusion: _Fusion, name: str, attrs: dict[str, Any], shape: tuple[Any, ...] | None, like: Node
) -> str | None:
    found = fusion.found
    own = found.shape(name)
    if shape is None or own is None or not found.is_float(name) or len(own) > min(len(shape), 4):
        return None
    value = found.constants.get(name)
    if isinstance(value, np.ndarray):
        return "" if _says_nothing(value, shape) or _causal(value == 0, value, attrs, shape) else name
    node = found.made(name, "Where")
    if node is not None:
        numbers = [found.number(n) for n in node.inputs[1:]]
        for hides in (False, True):
            zero, number = numbers[::-1] if hides else numbers
            if zero == 0.0 and number is not None and number < 0:
                return _choice(fusion, node.inputs[0], hides, number, attrs, shape, like)
    return name


def _says_nothing(value: np.ndarray, shape: tuple[Any, ...]) -> bool:
    """Whether a bias adds 0 to every score, and does not raise the scores to a larger shape."""
    return not value.any() and _within(value.shape, shape)


def _within(small: tuple[Any, ...], shape: tuple[Any, ...]) -> bool:
    """Whether a tensor broadcasts to scores of a shape without making them larger, as far as sizes are known."""
    return len(small) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(small), reversed(shape)))


def _causal(show: np.ndarray, value: np.ndarray | None, attrs: dict[str, Any], shape: tuple[Any, ...]) -> bool:
    """Whether a constant mask is the lower triangle of the scores (noted in `attrs`). With `value`, what it adds."""
    if not _within(show.shape, shape) or show.ndim < 2 or show.shape[-2:] != shape[-2:] or attrs.get("causal"):
        return False
    queries, keys = show.shape[-2:]
    lower = np.tril(np.ones((queries, keys), bool), keys - queries)
    if keys < queries or (show != lower).any() or (value is not None and (value[~show] > HIDDEN).any()):
        return False
    attrs.update(causal=1, position=keys - queries)
    return True


def _choice(
    fusion: _Fusion, condition: str, hides: bool, number: float, attrs: dict[str, Any], shape: Any, like: Node
) -> str:
    """The bias 0 where a condition shows a key, and `number` where it hides one; "" where it never hides.

    Only the part of the condition that says something is kept: what broadcasts it to the scores is left out. The
    lower triangle is taken out of a conjunction where hidden means -inf: there the order of hiding does not matter.
    """
    found = fusion.found
    parts = [condition] if hides or shape is None else _conjuncts(found, condition, shape)
    kept = []
    for part in parts:
        value = found.constants.get(part)
        if isinstance(value, np.ndarray) and shape is not None and not hides:
            if value.all() and _within(value.shape, shape):
                continue
            exact = number == -math.inf or (number <= HIDDEN and len(parts) == 1)
            if exact and _causal(value, None, attrs, shape):
                continue
        kept.append(part)
    if not kept:
        return ""
    key = (tuple(kept), hides, number)
    if key not in fusion.shared:
        base = f"{like.outputs[0]}/mask"
        seen = kept[0]
        for i, part in enumerate(kept[1:]):
            seen = fusion.node("And", (seen, part), like, f"{base}/and{i}")
        zero = fusion.const(f"{base}/shown", np.array(0, np.float32))
        low = fusion.const(f"{base}/hidden", np.array(number, np.float32))
        fusion.shared[key] = fusion.node("Where", (seen, low, zero) if hides else (seen, zero, low), like, base)
    return fusion.shared[key]


def _conjuncts(found: Matcher, condition: str, shape: tuple[Any, ...]) -> list[str]:
    """The conditions that together make one, without what only broadcasts them to the scores."""
    node = found.made(condition, "And", "Expand", "Cast")
    own = found.shape(condition)
    if node is None or own is None or not _within(own, shape):
        return [condition]
    if node.op == "And" and node.version >= 7:
        return [p for n in node.inputs for p in _conjuncts(found, n, shape)]
    kind = found.type(node.inputs[0])
    if node.op == "Expand" or (node.op == "Cast" and kind is not None and kind.dtype == "bool"):
        return _conjuncts(found, node.inputs[0], shape)
    return [condition]
