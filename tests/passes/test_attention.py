"""Attention is found however exporters write it out, keeps its results, and is left alone where it is not that."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minifer.session import Session
from tests.passes.checking import draw, fused, model, node, run_all

HEADS, SIZE = 3, 8
FORWARD, BACK = (0, 2, 1, 3), (0, 2, 1, 3)


def ints(*values):
    return np.array(values, np.int64)


def scalar(value):
    return np.array(value, np.float32)


class Builder:
    """The nodes and constants of one attention over q, k, v, each (1, rows, HEADS * SIZE)."""

    def __init__(self, queries=5, keys=7):
        self.queries, self.keys = queries, keys
        width = HEADS * SIZE
        self.inputs = {"q": draw(1, queries, width), "k": draw(1, keys, width), "v": draw(1, keys, width)}
        self.nodes = []
        self.consts = {"split": ints(1, -1, HEADS, SIZE), "join": ints(1, -1, width), "zero": scalar(0)}

    def add(self, op, inputs, output, version=21, **attrs):
        self.nodes.append(node(op, inputs.split(), [output], version, **attrs))
        return output

    def number(self, value):
        name = f"c{len(self.consts)}"
        self.consts[name] = scalar(value)
        return name

    def heads(self, name, perm=FORWARD):
        self.add("Reshape", f"{name} split", f"{name}/4")
        return self.add("Transpose", f"{name}/4", f"{name}/heads", perm=perm)

    def scaled(self, name, how, factor):
        return self.add(how, f"{name} {self.number(factor)}", f"{name}/scaled")

    def scores(self, where="both"):
        """q k^T, scaled in one of the places where exporters do it."""
        half = SIZE**-0.25
        q, k = self.heads("q"), self.heads("k", (0, 2, 3, 1))
        if where == "both":
            q, k = self.scaled(q, "Mul", half), self.scaled(k, "Mul", half)
        if where == "q":
            q = self.scaled(q, "Div", math.sqrt(SIZE))
        s = self.add("MatMul", f"{q} {k}", "scores")
        return self.scaled(s, "Div", math.sqrt(SIZE)) if where == "after" else s

    def finish(self, s, guard=False):
        w = self.add("Softmax", s, "weight", axis=-1)
        if guard:
            self.add("IsNaN", w, "nan")
            w = self.add("Where", f"nan zero {w}", "guarded")
        v = self.heads("v")
        self.add("MatMul", f"{w} {v}", "product")
        self.add("Transpose", "product", "back", perm=BACK)
        self.add("Reshape", "back join", "y")

    def ops(self, outputs=("y",)):
        return fused(self.nodes, self.inputs, self.consts, outputs)

    def node(self):
        """The fused node."""
        made = model(self.nodes, self.inputs, self.consts, ("y",))
        (found,) = (n for n in Session(made, executor="reference").graph.nodes if n.op == "Attention")
        return found


FUSED = ["Attention", "Reshape", "Reshape", "Reshape", "Reshape"]


@pytest.mark.parametrize("where", ["both", "q", "after", "none"])
@pytest.mark.parametrize("guard", [False, True])
def test_scale_in_every_place(where, guard):
    b = Builder()
    b.finish(b.scores(where), guard)
    assert b.ops() == FUSED
    assert b.node().attrs["scale"] == pytest.approx(1 if where == "none" else SIZE**-0.5)


def test_many_queries_and_keys():
    b = Builder(130, 117)
    b.finish(b.scores())
    assert b.ops() == FUSED


def test_a_scale_before_the_heads_are_split():
    b = Builder()
    b.inputs["x"] = b.inputs.pop("q")
    b.add("Mul", f"x {b.number(0.25)}", "q")
    b.finish(b.scores("none"))
    assert b.ops() == FUSED
    assert b.node().attrs["scale"] == pytest.approx(0.25)


def test_keys_transposed_by_way_of_a_batch_of_matrices():
    b = Builder()
    k = b.heads("k")
    b.add("Shape", k, "s")
    b.consts |= {"m1": ints(-1), "m2": ints(-2), "end": ints(np.iinfo("i8").max), "start": ints(np.iinfo("i8").min)}
    b.add("Slice", "s m1 end", "last")
    b.add("Slice", "s m2 m1", "rows")
    b.add("Slice", "s start m2", "outer")
    b.add("Concat", "m1 rows last", "flat", axis=0)
    b.add("Concat", "outer last rows", "whole", axis=0)
    b.add("Reshape", f"{k} flat", "k3")
    b.add("Transpose", "k3", "k3t", perm=(0, 2, 1))
    b.add("Reshape", "k3t whole", "kt")
    b.add("MatMul", f"{b.heads('q')} kt", "scores")
    b.finish("scores")
    assert b.ops() == FUSED


def test_keys_with_their_past():
    b = Builder(1, 1)
    b.inputs |= {"past_k": draw(1, HEADS, 6, SIZE), "past_v": draw(1, HEADS, 6, SIZE)}
    b.add("Concat", f"past_k {b.heads('k')}", "present_k", axis=-2)
    b.add("Concat", f"past_v {b.heads('v')}", "present_v", axis=2)
    b.add("Transpose", "present_k", "kt", perm=(0, 1, 3, 2))
    b.add("MatMul", f"{b.heads('q')} kt", "scores")
    b.add("Softmax", "scores", "weight", axis=-1)
    b.add("MatMul", "weight present_v", "product")
    b.add("Transpose", "product", "back", perm=BACK)
    b.add("Reshape", "back join", "y")
    assert "Attention" in b.ops(("y", "present_k", "present_v"))
    assert "Softmax" not in b.ops(("y", "present_k", "present_v"))


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("shape", [(1, 1, 1, 7), (1, 1, 5, 7), (1, HEADS, 5, 7), (5, 7), (7,), (1, HEADS, 1, 1)])
def test_additive_masks_of_every_shape(shape):
    b = Builder()
    b.inputs["mask"] = draw(*shape)
    b.finish(b.add("Add", f"{b.scores()} mask", "masked"))
    assert b.ops() == FUSED


def test_a_mask_made_by_arithmetic():
    b = Builder()
    b.inputs["mask"] = np.array([[[[1, 1, 0, 1, 0, 1, 1]]]], np.int64)
    b.add("Cast", "mask", "f", to=1)
    b.add("Sub", f"{b.number(1)} f", "n")
    b.add("Mul", f"n {b.number(np.finfo('f').min)}", "bias")
    b.finish(b.add("Add", f"bias {b.scores()}", "masked"))
    assert b.ops() == sorted([*FUSED, "Cast", "Mul", "Sub"])


@pytest.mark.parametrize("low", [-np.inf, np.finfo("f").min, -1e9])
@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("guard", [False, True])
def test_a_mask_by_where(low, hides, guard):
    b = Builder()
    b.inputs["mask"] = np.random.default_rng(3).random((1, 1, 5, 7)) < 0.5
    b.inputs["mask"][..., 2, :] = hides  # a query that sees nothing
    s, number = b.scores(), b.number(low)
    b.finish(b.add("Where", f"mask {number} {s}" if hides else f"mask {s} {number}", "masked"), guard)
    assert b.ops() == sorted([*FUSED, "Where"])


def lower(queries, keys, shift=0):
    return np.tril(np.ones((1, 1, queries, keys), bool), keys - queries + shift)


@pytest.mark.parametrize("form", ["where", "added", "chosen"])
@pytest.mark.parametrize("keys", [5, 7])
def test_the_lower_triangle_becomes_causal(form, keys):
    b = Builder(5, keys)
    s = b.scores()
    show = lower(5, keys)
    b.consts |= {"show": show, "bias": np.where(show, 0, -np.inf).astype("f")}
    if form == "where":
        s = b.add("Where", f"show {s} {b.number(-np.inf)}", "masked")
    elif form == "added":
        s = b.add("Add", f"{s} bias", "masked")
    else:
        b.add("Where", f"show zero {b.number(-np.inf)}", "chosen")
        s = b.add("Add", f"{s} chosen", "masked")
    b.finish(s)
    assert b.ops() == FUSED
    assert (b.node().attrs["causal"], b.node().attrs["position"]) == (1, keys - 5)


@pytest.mark.parametrize("spoil", ["shift", "hole", "faint"])
def test_nearly_the_lower_triangle_is_a_bias(spoil):
    b = Builder(5, 7)
    show = lower(5, 7, int(spoil == "shift"))
    if spoil == "hole":
        show[0, 0, 3, 1] = False
    b.consts["bias"] = np.where(show, 0, -2.0 if spoil == "faint" else -np.inf).astype("f")
    b.finish(b.add("Add", f"{b.scores()} bias", "masked"))
    assert b.ops() == FUSED
    assert "causal" not in b.node().attrs and len(b.node().inputs) == 4


def test_a_triangle_that_hides_little_is_a_bias():
    b = Builder(7, 7)
    b.consts["show"] = lower(7, 7)
    b.add("Where", f"show zero {b.number(-5)}", "bias")
    b.finish(b.add("Add", f"{b.scores()} bias", "masked"))
    assert "Attention" in b.ops()
    assert "causal" not in b.node().attrs


def test_a_triangle_and_a_mask_of_keys():
    b = Builder(7, 7)
    b.consts |= {"show": lower(7, 7), "full": ints(1, 1, 7, 7)}
    b.inputs["mask"] = np.array([[[[0, 1, 1, 0, 1, 1, 1]]]]) > 0
    b.add("And", "show mask", "both")
    b.add("Expand", "both full", "wide")
    b.add("Where", f"wide zero {b.number(-np.inf)}", "bias")
    b.finish(b.add("Add", f"{b.scores()} bias", "masked"), guard=True)
    assert b.ops() == sorted([*FUSED, "Where"])
    assert b.node().attrs["causal"] == 1


def test_a_triangle_and_a_mask_that_only_lowers_stay_together():
    """With a finite number a query whose keys are all hidden still weighs them, those ahead of it too."""
    b = Builder(7, 7)
    b.consts["show"] = lower(7, 7)
    b.inputs["mask"] = np.array([[[[0, 0, 1, 0, 1, 1, 1]]]]) > 0
    b.add("And", "show mask", "both")
    b.add("Where", f"both zero {b.number(np.finfo('f').min)}", "bias")
    b.finish(b.add("Add", f"{b.scores()} bias", "masked"))
    assert "Attention" in b.ops()
    assert "causal" not in b.node().attrs


def test_two_masks():
    b = Builder()
    b.inputs |= {"mask": draw(1, 1, 1, 7), "position": draw(1, HEADS, 5, 7)}
    s = b.add("Add", f"{b.scores()} position", "placed")
    b.finish(b.add("Add", f"mask {s}", "masked"))
    assert b.ops() == sorted([*FUSED, "Add"])


def test_layers_share_their_mask():
    b = Builder()
    b.inputs["mask"] = np.random.default_rng(3).random((1, 1, 5, 7)) < 0.5
    b.add("Where", f"mask {b.scores()} {b.number(-np.inf)}", "masked")
    b.finish("masked")
    b.add("Neg", "q/heads/scaled", "q'")
    b.add("MatMul", "q' k/heads/scaled", "scores'")
    b.add("Where", f"mask scores' {b.number(-np.inf)}", "masked'")
    b.add("Softmax", "masked'", "weight'", axis=-1)
    b.add("MatMul", "weight' v/heads", "product'")
    found = b.ops(("y", "product'"))
    assert found.count("Attention") == 2 and found.count("Where") == 1


# ---------------------------------------------------------------- what is something else


@pytest.mark.parametrize("inner", ["scores", "weight", "masked"])
def test_what_is_read_elsewhere_stays(inner):
    b = Builder()
    b.inputs["mask"] = draw(1, 1, 5, 7)
    b.finish(b.add("Add", f"{b.scores()} mask", "masked"))
    assert "Attention" not in b.ops(("y", inner))


def test_the_product_of_heads_may_be_read_elsewhere():
    b = Builder()
    b.finish(b.scores())
    assert "Attention" in b.ops(("y", "product"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_another_axis(axis):
    b = Builder()
    b.finish(b.scores())
    b.nodes = [node("Softmax", n.inputs, n.outputs, axis=axis) if n.op == "Softmax" else n for n in b.nodes]
    assert "Attention" not in b.ops()


def test_the_default_axis_of_old_softmax():
    b = Builder()
    b.finish(b.scores())
    b.nodes = [node("Softmax", n.inputs, n.outputs, 11) if n.op == "Softmax" else n for n in b.nodes]
    assert "Attention" not in b.ops()


def test_a_scale_that_only_the_run_knows():
    b = Builder()
    b.inputs["scale"] = scalar(0.3)
    b.finish(b.add("Mul", f"{b.scores()} scale", "masked"))
    assert "Attention" not in b.ops()


def test_a_scale_of_scores_with_their_mask():
    b = Builder()
    b.inputs["mask"] = draw(1, 1, 5, 7)
    b.add("Add", f"{b.scores()} mask", "masked")
    b.finish(b.scaled("masked", "Mul", 0.5))
    assert "Attention" not in b.ops()


def test_a_mask_that_does_not_hide():
    b = Builder()
    b.inputs["mask"] = np.random.default_rng(3).random((1, 1, 5, 7)) < 0.5
    b.finish(b.add("Where", f"mask {b.scores()} {b.number(-5)}", "masked"))
    assert "Attention" not in b.ops()


def test_a_mask_that_makes_a_batch_of_one_larger():
    b = Builder()
    b.inputs["mask"] = draw(2, 1, 5, 7)
    b.consts["join"] = ints(2, -1, HEADS * SIZE)
    b.finish(b.add("Add", f"{b.scores()} mask", "masked"))
    made = model(b.nodes, b.inputs, b.consts, ("y",))
    run_all(made, b.inputs)


def test_keys_that_are_not_transposed():
    inputs = {"q": draw(2, 5, 8), "k": draw(2, 8, 7), "v": draw(2, 7, 8)}
    nodes = [node("MatMul", ["q", "k"], ["s"]), node("Softmax", ["s"], ["w"]), node("MatMul", ["w", "v"], ["y"])]
    assert fused(nodes, inputs, {}) == ["MatMul", "MatMul", "Softmax"]


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8)])
def test_heads_that_are_never_moved(shape):
    order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    inputs = {n: draw(*shape) for n in "qkv"}
    nodes = [
        node("Transpose", ["k"], ["t"], perm=order), node("MatMul", ["q", "t"], ["s"]),
        node("Softmax", ["s"], ["w"]), node("MatMul", ["w", "v"], ["y"]),
    ]  # fmt: skip
    assert fused(nodes, inputs, {}) == ["Attention"]


def test_symbolic_sizes():
    b = Builder()
    b.finish(b.scores(), guard=True)
    made = model(b.nodes, b.inputs, b.consts, ("y",))
    types = {n: type(t)(t.dtype, (1, f"{n}_rows", t.shape[2])) for n, t in made.graph.types.items()}
    made = type(made)(made.graph.with_(types=types), made.opsets, made.ir_version)
    assert "Attention" in [n.op for n in Session(made, executor="reference").graph.nodes]
    for rows in (5, 9):
        inputs = {n: draw(1, rows, HEADS * SIZE) for n in "qkv"}
        run_all(made, inputs)
