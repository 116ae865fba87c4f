"""The six official Bernoulli cases, whose values are random: their types, and how often they draw a one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import minifer
from tests.official import load_cases

CASES = [case for case in load_cases(kind="node") if "bernoulli" in case.name]
REPEATS = 20_000


def widened(model: onnx.ModelProto, count: int) -> onnx.ModelProto:
    """The model for inputs of `count` elements."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        del value.type.tensor_type.shape.dim[:]
        value.type.tensor_type.shape.dim.add().dim_value = count
    return wide


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_frequencies(case):
    (inputs, (expected,)) = case.data_sets[0]
    probabilities = np.asarray(inputs[0])
    model = widened(case.model, probabilities.size * REPEATS)
    name = model.graph.input[0].name
    (drawn,) = minifer.load(model).run({name: np.tile(probabilities, REPEATS)}).values()
    assert drawn.dtype == np.asarray(expected).dtype and drawn.shape == (probabilities.size * REPEATS,)
    assert np.isin(drawn, (0, 1)).all()
    ones = drawn.reshape(REPEATS, -1).astype(np.float64).mean(0)
    if case.name.endswith("_expanded"):  # the function body in the specification asks for random > x, the converse
        probabilities = 1 - probabilities
    deviation = np.sqrt(probabilities * (1 - probabilities) / REPEATS)
    assert (np.abs(ones - probabilities) <= 6 * deviation + 1e-9).all(), (ones, probabilities)


def test_draws_are_independent_of_their_neighbours():
    case = next(c for c in CASES if c.name == "test_bernoulli")
    model = widened(case.model, 100_000)
    half = np.full(100_000, 0.5, np.asarray(case.data_sets[0][0][0]).dtype)
    (drawn,) = minifer.load(model).run({model.graph.input[0].name: half}).values()
    same = (drawn[1:] == drawn[:-1]).mean()
    assert abs(same - 0.5) < 6 * 0.5 / np.sqrt(100_000)


def test_there_are_six():
    assert len(CASES) == 6
