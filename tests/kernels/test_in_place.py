"""Kernels that promise it write their result over the residual, and plans let them where nobody needs it any more."""

from __future__ import annotations

import numpy as np
import pytest

import minifer
from minifer.codegen import library
from minifer.kernels import conv, conv_transpose, gemm, matrix, qproduct, quads, winograd
from minifer.kernels.conv import OUT_STEP, RESIDUAL_STEP
from minifer.kernels.spec import KERNELS
from minifer.plan.plan import ARENA
from tests.building import file, floats, node
from tests.kernels.models import check_native, steps
from tests.kernels.models import model as graph_model
from tests.kernels.models import node as graph_node

FAMILIES = (conv, conv_transpose, gemm, matrix, qproduct, quads, winograd)
SHARING = sorted(
    name
    for name, spec in KERNELS.items()
    if spec.body.__module__ in {f.__name__ for f in FAMILIES} and any(p.name == "residual" for p in spec.parameters)
)


def drawn_with_residual(spec, seed: int) -> tuple[dict, str]:
    """Arguments of a kernel whose residual has the form of the result, and the name of the result."""
    rng = np.random.default_rng(seed)
    target = "c" if spec.name.startswith("gemm") else "y"
    while True:
        arguments = spec.draw(rng, int(rng.integers(1, 8)))
        if spec.name.startswith("gemm"):
            arguments["ldr"] = arguments["ldc"]
        elif spec.name in ("conv", "conv_matrix"):
            arguments["g"][RESIDUAL_STEP] = arguments["g"][OUT_STEP]
        size = arguments[target].size
        if arguments["has_residual"] == 1 and size > 1 and arguments["residual"].dtype == arguments[target].dtype:
            arguments["residual"] = np.resize(arguments["residual"], arguments[target].shape)
            return arguments, target


@pytest.mark.parametrize("name", SHARING)
def test_the_result_may_lie_where_the_residual_lies(name):
    spec = KERNELS[name]
    library.ensure([spec])
    for seed in range(6):
        arguments, target = drawn_with_residual(spec, seed)
        apart = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        apart[target][...] = apart["residual"]  # what lies between rows stays
        for tid in (0, 1):
            assert library.run(spec, apart, tid, 2) == 0
        shared = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        shared[target] = shared["residual"]
        for tid in (1, 0):
            assert library.run(spec, shared, tid, 2) == 0
        assert shared[target].tobytes() == apart[target].tobytes()


def block(*, reader: bool = False, out: str = "y", between: bool = False):
    """x -> a -> b, a + b, with what else reads a: `reader` afterwards, `between` before the sum."""
    nodes = [
        graph_node("Conv", ["x", "w"], ["a"]),
        graph_node("Conv", ["a", "w"], ["m"]),
        graph_node("Conv", ["m", "w"], ["b"]),
        graph_node("Add", ["a", "b"], ["s"]),
        graph_node("Conv", ["s", "w"], ["t"]),
    ]
    if between:
        nodes.insert(3, graph_node("Conv", ["a", "v"], ["u"]))
    if reader:
        nodes.append(graph_node("Conv", ["a", "v"], ["u"]))
    nodes.append(graph_node("Mul", ["t", "u"] if reader or between else ["t", "t"], ["y"]))
    inputs = {"x": floats(1, 24, 5, 7)}
    consts = {"w": floats(24, 24, 1, 1), "v": floats(24, 24, 1, 1) + 1}
    return graph_model(nodes, inputs, consts, [*out.split()]), inputs


def sum_in_place(kernels) -> bool:
    """Whether the product that does the sum writes over what it adds."""
    summing = [k for k in kernels if k.kernel.name in ("gemm", "gemm_matrix") and k.arguments[4] is not None]
    assert len(summing) == 1
    return summing[0].arguments[2].address() == summing[0].arguments[4].address()


@pytest.mark.parametrize(
    "form, shared",
    [({}, True), ({"reader": True}, False), ({"between": True}, False), ({"out": "y a"}, False)],
)
def test_a_residual_is_written_over_where_nothing_else_reads_it(form, shared):
    made, inputs = block(**form)
    assert sum_in_place(check_native(made, inputs)) == shared


def test_the_callers_array_is_never_written_over():
    nodes = [graph_node("MatMul", ["x", "w"], ["p"]), graph_node("Add", ["p", "x"], ["y"])]
    inputs = {"x": floats(6, 24)}
    before = inputs["x"].copy()
    kernels = check_native(graph_model(nodes, inputs, {"w": floats(24, 24)}, ["y"]), inputs)
    assert not sum_in_place(kernels) and (inputs["x"] == before).all()


def test_a_view_that_is_read_later_keeps_its_memory():
    """v is a under another shape: the sum with a may not be written over it."""
    nodes = [
        graph_node("MatMul", ["x", "w"], ["a"]), graph_node("Reshape", ["a", "shape"], ["v"]),
        graph_node("MatMul", ["x", "w2"], ["p"]), graph_node("Add", ["p", "a"], ["s"]),
        graph_node("ReduceSum", ["v"], ["r"], keepdims=0), graph_node("Mul", ["s", "r"], ["y"]),
    ]  # fmt: skip
    inputs = {"x": floats(6, 24)}
    consts = {"w": floats(24, 24), "w2": floats(24, 24) + 1, "shape": np.array([24, 6], np.int64)}
    kernels = check_native(graph_model(nodes, inputs, consts, ["y"]), inputs, tolerance=1e-4)
    assert not sum_in_place(kernels)


def test_a_product_with_itself_as_residual():
    """x W + x: the product still reads x when the first results are written."""
    nodes = [
        graph_node("Relu", ["x"], ["r"]), graph_node("MatMul", ["r", "w"], ["p"]), graph_node("Add", ["p", "r"], ["y"]),
    ]  # fmt: skip
    inputs = {"x": floats(50, 40)}
    assert not sum_in_place(check_native(graph_model(nodes, inputs, {"w": floats(40, 40)}, ["y"]), inputs))


def test_blocks_in_a_row_take_turns_in_two_places():
    """Each block's sum lies where the last one's lay: the arena holds that and one product, not three tensors."""
    nodes, last = [node("Conv", "x w", "a0")], "a0"
    for i in range(4):
        nodes += [
            node("Conv", f"{last} w", f"b{i}"),
            node("Add", f"b{i} {last}", f"s{i}"),
            node("Relu", f"s{i}", f"a{i + 1}"),
        ]
        last = f"a{i + 1}"
        nodes += [
            node("Conv", f"{last} w", f"c{i}"),
            node("Conv", f"c{i} w", f"d{i}"),
            node("Add", f"d{i} {last}", f"e{i}"),
        ]
        last = f"e{i}"
    nodes.append(node("GlobalAveragePool", last, "y"))
    data = file(nodes, {"x": "float32[1,32,16,16]"}, "y", {"w": floats(32, 32, 1, 1)})
    session = minifer.load(data, threads=1, executor="native")
    session.run({"x": floats(1, 32, 16, 16)})
    (kernels, _), one = steps(session), 4 * 32 * 16 * 16
    ends = [s.address()[1] + s.nbytes for k in kernels for s in k.writes if s.address()[0] == ARENA]
    assert max(ends) <= 3 * one
