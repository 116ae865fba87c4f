"""Where the results of a part go: which outputs kernels write in place, and which are copied."""

from __future__ import annotations

import numpy as np
import pytest

import minifer
from minifer.embed.abi import Status
from minifer.errors import UnsupportedError
from minifer.ir import TensorType
from tests.embed.native import Library
from tests.embed.test_compile import HERE, made, normal
from tests.embed.test_control import run
from tests.kernels.models import node


@HERE
def test_an_output_that_is_the_beginning_of_another(tmp_path):
    """It is shorter, so its memory cannot hold the other."""
    nodes = [node("Relu", ["x"], ["whole"], 14), node("Split", ["whole"], ["part", ""], 18, num_outputs=2)]
    data = made(nodes, {"x": TensorType("float32", (4, 33))}, {}, ["part", "whole"])
    minifer.compile(data, "x86_64-linux", tmp_path, name="net")
    x = normal(4, 33)
    status, got = run(Library(tmp_path / "libnet.so", "net"), {"x": x})
    assert status == Status.OK
    np.testing.assert_array_equal(got["whole"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["part"], np.maximum(x, 0)[:2])


@HERE
def test_an_output_that_is_part_of_a_temporary_lives_on(tmp_path):
    """It is copied when all is done, so nothing may take its place in the workspace before."""
    nodes = [
        node("Relu", ["x"], ["whole"], 14),
        node("Split", ["whole"], ["part", "rest"], 18, num_outputs=2),
        node("Exp", ["rest"], ["e"], 13),
        node("Cos", ["e"], ["c"], 7),
        node("Concat", ["c", "c", "c", "c"], ["end"], 13, axis=0),
    ]
    data = made(nodes, {"x": TensorType("float32", (4, 33))}, {}, ["part", "end"])
    minifer.compile(data, "x86_64-linux", tmp_path, name="net")
    x = normal(4, 33)
    status, got = run(Library(tmp_path / "libnet.so", "net"), {"x": x})
    assert status == Status.OK
    np.testing.assert_array_equal(got["part"], np.maximum(x, 0)[:2])


@pytest.mark.parametrize("op", ["SequenceConstruct", "Identity"])
def test_a_constant_output_must_be_a_tensor_of_numbers(op, tmp_path):
    value = np.array(["word"], object) if op == "Identity" else np.array([1.5], "f")
    data = made([node(op, ["value"], ["y"], 21)], {"x": TensorType("float32", (2,))}, {"value": value}, ["y", "x"])
    with pytest.raises(UnsupportedError, match="output 'y' is no tensor of numbers"):
        minifer.compile(data, "x86_64-linux", tmp_path)
