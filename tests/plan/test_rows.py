"""Rows apart: tensors whose rows would fall into one set of the cache, where all that reads them can live with gaps."""

from __future__ import annotations

import numpy as np
import pytest

from minifer.plan.rows import GAP
from tests.building import floats
from tests.kernels.models import check_native, model, node

X = {"x": floats(1, 16, 4, 6)}
W = {
    "wide": floats(1024, 16, 1, 1), "narrow": floats(16, 1024, 1, 1), "deep": floats(8, 1024, 3, 3),
    "half": floats(512, 16, 1, 1), "halved": floats(16, 512, 1, 1), "low": floats(64, 1024, 3, 3) / 8,
}  # fmt: skip


def gaps(nodes, outputs="y", inputs=None, consts=None) -> dict[str, int]:
    """The gap in what each node's kernels write, in the order of the plan; native and reference agree."""
    given = inputs or X
    used = {name for n in nodes for name in n.inputs}
    known = {k: v for k, v in (consts or W).items() if k in used}
    kernels = check_native(model(nodes, given, known, outputs.split()), given, tolerance=1e-4)
    found = {k.node.name: 0 for k in kernels}
    for kernel in kernels:  # a node has also the steps that change the layout
        found[kernel.node.name] = max([found[kernel.node.name], *(s.gap for s in kernel.writes)])
    return found


def test_a_product_that_another_reads():
    nodes = [node("Conv", ["x", "wide"], ["a"]), node("Relu", ["a"], ["r"]), node("Conv", ["r", "narrow"], ["y"])]
    assert gaps(nodes)["Conv_a"] == GAP
    nodes = [node("Conv", ["x", "half"], ["a"]), node("Conv", ["a", "halved"], ["y"])]
    assert gaps(nodes)["Conv_a"] == 0  # 2048 bytes apart


def test_a_stride_counts():
    nodes = [node("Conv", ["x", "half"], ["a"]), node("Conv", ["a", "halved"], ["y"], strides=[2, 2])]
    assert gaps(nodes)["Conv_a"] == GAP


@pytest.mark.parametrize(
    "attrs, gap",
    [({"strides": [2, 2]}, GAP), ({"dilations": [2, 2], "pads": [2, 2, 2, 2]}, GAP), ({"pads": [1, 1, 1, 1]}, 0)],
)
def test_the_implicit_product_reads_rows_apart_and_winograd_does_not(attrs, gap):
    nodes = [node("Conv", ["x", "wide"], ["a"]), node("Conv", ["a", "low"], ["y"], **attrs)]
    assert gaps(nodes, inputs={"x": floats(1, 16, 16, 16)})["Conv_a"] == gap


@pytest.mark.parametrize("other", ["Sigmoid", "GlobalAveragePool", "Exp"])
def test_any_other_reader_wants_rows_without_gaps(other):
    nodes = [node("Conv", ["x", "wide"], ["a"]), node("Conv", ["a", "narrow"], ["c"]), node(other, ["a"], ["s"]),
             node("ReduceSum", ["s"], ["t"], keepdims=0), node("Mul", ["c", "t"], ["y"])]  # fmt: skip
    assert gaps(nodes)["Conv_a"] == 0


def test_what_leaves_the_graph_has_no_gaps():
    nodes = [node("Conv", ["x", "wide"], ["a"]), node("Conv", ["a", "narrow"], ["y"])]
    assert gaps(nodes, "y a")["Conv_a"] == 0


def test_a_chain_of_residual_blocks():
    """Sums that products do on the way keep the gap, so that each block writes over the last one's result."""
    nodes, last = [node("Conv", ["x", "wide"], ["a"])], "a"
    for i in range(3):
        nodes += [node("Conv", [last, "narrow"], [f"n{i}"]), node("Conv", [f"n{i}", "wide"], [f"w{i}"]),
                  node("Add", [f"w{i}", last], [f"s{i}"]), node("Relu", [f"s{i}"], [f"r{i}"])]  # fmt: skip
        last = f"r{i}"
    nodes.append(node("Conv", [last, "narrow"], ["y"], strides=[2, 2]))
    found = gaps(nodes)
    assert [found[name] for name in ("Conv_a", "Conv_w0", "Conv_w1", "Conv_w2")] == [GAP] * 4


def test_a_sum_that_no_product_does_copies_the_rows_together():
    """The gap is a guess about the addition; where it was wrong, the rows are copied."""
    nodes = [
        node("Conv", ["x", "wide"], ["a"]), node("Conv", ["x", "own"], ["b"], group=16),
        node("Add", ["b", "a"], ["s"]), node("Mul", ["s", "s"], ["y"]),
    ]  # fmt: skip
    found = gaps(nodes, consts={**W, "own": floats(1024, 1, 1, 1)})
    assert found["Conv_a"] == GAP and found["Conv_b"] == 0


def test_matrices():
    inputs = {"x": floats(2, 5, 24)}
    consts = {"up": floats(24, 3072), "down": floats(3072, 24), "b": floats(3072)}
    nodes = [node("MatMul", ["x", "up"], ["p"]), node("Add", ["p", "b"], ["s"]), node("Gelu", ["s"], ["g"]),
             node("MatMul", ["g", "down"], ["q"]), node("Add", ["q", "x"], ["y"])]  # fmt: skip
    assert gaps(nodes, inputs=inputs, consts=consts)["MatMul_p"] == GAP
    flat = {"x": floats(7, 24)}
    nodes = [node("Gemm", ["x", "up"], ["p"]), node("Gemm", ["p", "down"], ["y"])]
    assert gaps(nodes, inputs=flat, consts=consts)["Gemm_p"] == GAP
    nodes = [node("Gemm", ["x", "up"], ["p"]), node("Gemm", ["p", "other"], ["y"], transA=1)]
    assert gaps(nodes, inputs=flat, consts={**consts, "other": floats(7, 9)})["Gemm_p"] == 0
    nodes = [node("MatMul", ["x", "up"], ["p"]), node("Transpose", ["p"], ["t"]), node("MatMul", ["p", "t"], ["y"])]
    assert gaps(nodes, inputs=flat, consts=consts)["MatMul_p"] == 0


def test_gaps_are_exact():
    """With and without gaps the same sums are made in the same order."""
    import minifer.plan.lower as lower

    nodes = [node("Conv", ["x", "wide"], ["a"]), node("Conv", ["a", "narrow"], ["y"])]
    made = model(nodes, X, {k: W[k] for k in ("wide", "narrow")}, ["y"])
    from minifer.session import Session

    with_gaps = Session(made, threads=1).run(X)["y"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower, "gap_of", lambda *_: 0)
        without = Session(made, threads=1).run(X)["y"]
    assert np.array_equal(with_gaps, without)
