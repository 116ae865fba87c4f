"""Products with constant weights come out in the form in which what follows can be absorbed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.checking import draw, fused, node


def ints(*values):
    return np.array(values, np.int64)


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize("biased", [False, True])
def test_gemm_between_reshapes(flip, biased):
    consts = {"flat": ints(-1, 6), "w": draw(4, 6) if flip else draw(6, 4), "b": draw(4), "full": ints(2, 3, 4)}
    inputs = ["f", "w", "b"] if biased else ["f", "w"]
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]), node("Gemm", inputs, ["g"], transB=flip),
        node("Reshape", ["g", "full"], ["y"]),
    ]  # fmt: skip
    assert fused(nodes, {"x": draw(2, 3, 6)}, consts) == (["Add", "MatMul"] if biased else ["MatMul"])


def test_other_reshapes_keep_their_gemm():
    consts = {"flat": ints(-1, 6), "w": draw(6, 4), "full": ints(3, 2, 4)}
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]), node("Gemm", ["f", "w"], ["g"]), node("Reshape", ["g", "full"], ["y"])
    ]  # fmt: skip
    assert fused(nodes, {"x": draw(2, 3, 6)}, consts) == ["Gemm", "Reshape", "Reshape"]


@pytest.mark.parametrize("change", [{"alpha": 2.0}, {"beta": 0.5}])
def test_a_gemm_with_factors_is_kept(change):
    consts = {"flat": ints(-1, 6), "w": draw(6, 4), "b": draw(4), "full": ints(2, 3, 4)}
    nodes = [
        node("Reshape", ["x", "flat"], ["f"]), node("Gemm", ["f", "w", "b"], ["g"], **change),
        node("Reshape", ["g", "full"], ["y"]),
    ]  # fmt: skip
    assert "Gemm" in fused(nodes, {"x": draw(2, 3, 6)}, consts)


@pytest.mark.parametrize("biased", [False, True])
def test_split_columns(biased):
    consts = {"w": draw(6, 9), "b": draw(9), "sizes": ints(4, 2, 3)}
    nodes = [node("MatMul", ["x", "w"], ["p"])]
    nodes += [node("Add", ["b", "p"], ["s"])] if biased else []
    nodes += [node("Split", [nodes[-1].outputs[0], "sizes"], ["u", "v", "t"], axis=-1)]
    found = fused(nodes, {"x": draw(2, 3, 6)}, consts, ("u", "v", "t"))
    assert found == ["Add"] * 3 * biased + ["MatMul"] * 3


def test_a_split_of_rows_is_kept():
    consts = {"w": draw(6, 9), "sizes": ints(1, 2)}
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Split", ["p", "sizes"], ["u", "v"], axis=1)]
    assert fused(nodes, {"x": draw(2, 3, 6)}, consts, ("u", "v")) == ["MatMul", "Split"]


def test_a_product_that_is_read_whole_is_kept():
    consts = {"w": draw(6, 9), "sizes": ints(4, 5)}
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Split", ["p", "sizes"], ["u", "v"], axis=2)]
    assert fused(nodes, {"x": draw(2, 3, 6)}, consts, ("u", "v", "p")) == ["MatMul", "Split"]


def test_reshapes_that_change_nothing_go():
    consts = {"same": ints(2, -1, 6), "other": ints(3, 2, 6)}
    nodes = [
        node("Reshape", ["x", "same"], ["a"]), node("Neg", ["a"], ["b"]), node("Reshape", ["b", "other"], ["c"]),
        node("Expand", ["c", "other"], ["d"]), node("Abs", ["d"], ["y"]),
    ]  # fmt: skip
    assert fused(nodes, {"x": draw(2, 3, 6)}, consts) == ["Abs", "Neg", "Reshape"]
