"""Local functions: calls are replaced by bodies, and the model computes what it computed before."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper

from minifer.errors import ModelError, UnsupportedError
from minifer.onnx_io import read, read_model, write_model

I64 = TensorProto.INT64


def node(op, inputs, outputs, domain="", overload="", name="", **attrs):
    out = helper.make_node(op, inputs.split(), outputs.split(), domain=domain, name=name, **attrs)
    if overload:
        out.overload = overload
    return out


def missing(op, inputs, outputs, **kwargs):
    """A node whose inputs `_` are left out."""
    out = node(op, inputs, outputs, **kwargs)
    out.input[:] = ["" if n == "_" else n for n in out.input]
    return out


def refer(to_node, name, source, kind):
    to_node.attribute.append(AttributeProto(name=name, ref_attr_name=source, type=kind))
    return to_node


def function(name, inputs, outputs, nodes, attributes=(), defaults=(), opset=18, overload="", domain="f"):
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    out = helper.make_function(domain, name, inputs.split(), outputs.split(), nodes, opsets, attributes)
    out.attribute_proto.extend(defaults)
    out.overload = overload
    return out


def model(nodes, functions, inputs="x", outputs="y", opset=18):
    def values(names):
        return [helper.make_tensor_value_info(n, I64, ["N"]) for n in names.split()]

    graph = helper.make_graph(nodes, "main", values(inputs), values(outputs))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)


def lines(proto):
    return [str(n) for n in read_model(proto).graph.nodes]


def same_results(proto, **feeds):
    """The model with its functions put in place, written again, gives what another runtime gets from the original."""
    again = read_model(proto)
    assert all(n.domain != "f" for n in again.graph.nodes)
    for a, b in zip(run(proto.SerializeToString(), feeds), run(write_model(again), feeds)):
        np.testing.assert_array_equal(a, b)


def run(data, feeds):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, feeds)


X = np.array([1, -2, 3])
TWICE = function("Twice", "a", "b", [node("Add", "a a", "b")])


def test_a_call_becomes_its_body():
    two = function("Two", "a b", "d", [node("Add", "a b", "c", name="sum"), node("Mul", "c b", "d")])
    proto = model([node("Two", "x x", "y", domain="f", name="call")], [two])
    assert lines(proto) == ["call/c = Add(x, x)", "y = Mul(call/c, x)"]
    assert read_model(proto).graph.nodes[0].name == "call/sum"
    same_results(proto, x=X)


def test_two_calls_share_no_names():
    body = function("F", "a", "c", [node("Neg", "a", "b"), node("Neg", "b", "c")])
    proto = model([node("F", "x", "u", domain="f", name="n"), node("F", "u", "y", domain="f", name="n")], [body])
    assert lines(proto) == ["n/b = Neg(x)", "u = Neg(n/b)", "n/b_1 = Neg(u)", "y = Neg(n/b_1)"]
    proto.graph.node[1].name = ""
    same_results(proto, x=X)


def test_new_names_avoid_those_of_the_model():
    body = function("F", "a", "c", [node("Neg", "a", "b"), node("Neg", "b", "c")])
    nodes = [node("F", "x", "u", domain="f", name="n"), node("Add", "u x", "n/b"), node("Add", "n/b u", "y")]
    assert lines(model(nodes, [body]))[0] == "n/b_1 = Neg(x)"
    same_results(model(nodes, [body]), x=X)


def test_nested_calls_and_names_of_the_caller():
    """A body uses names that the main graph uses for other values."""
    inner = function("Inner", "y", "x", [node("Neg", "y", "u"), node("Add", "u y", "x")])
    outer = function("Outer", "x", "u", [node("Inner", "x", "y", domain="f"), node("Mul", "y x", "u")])
    proto = model([node("Outer", "x", "u", domain="f"), node("Inner", "u", "y", domain="f")], [outer, inner])
    same_results(proto, x=X)


def test_function_bodies_out_of_order():
    body = function("F", "a", "c", [node("Neg", "b", "c"), node("Abs", "a", "b")])
    assert lines(model([node("F", "x", "y", domain="f", name="n")], [body])) == ["n/b = Abs(x)", "y = Neg(n/b)"]


def test_overloads():
    plus = function("F", "a", "b", [node("Add", "a a", "b")], overload="plus")
    times = function("F", "a", "b", [node("Mul", "a a", "b")], overload="times")
    nodes = [node("F", "x", "u", domain="f", overload="times"), node("F", "u", "y", domain="f", overload="plus")]
    assert [line.split(" = ")[1] for line in lines(model(nodes, [plus, times]))] == ["Mul(x, x)", "Add(u, u)"]
    with pytest.raises(ModelError, match=r"f::F \(plus\) is defined twice"):
        read_model(model(nodes, [plus, times, plus]))


def test_a_function_wins_over_an_operator():
    own = function("Relu", "a", "b", [node("Neg", "a", "b")], domain="")
    assert lines(model([node("Relu", "x", "y")], [own])) == ["y = Neg(x)"]
    assert lines(model([node("Relu", "x", "y", domain="ai.onnx")], [own])) == ["y = Neg(x)"]


def test_versions_are_the_functions_own():
    old = function("F", "a", "b", [node("Neg", "a", "b")], opset=13)
    nodes = read_model(model([node("F", "x", "u", domain="f"), node("Neg", "u", "y")], [old])).graph.nodes
    assert [n.version for n in nodes] == [13, 18]
    del old.opset_import[:]  # then the caller's
    nodes = read_model(model([node("F", "x", "u", domain="f"), node("Neg", "u", "y")], [old])).graph.nodes
    assert [n.version for n in nodes] == [18, 18]


# ---- attributes


def constant(source):
    return refer(node("Constant", "", "c"), "value_int", source, AttributeProto.INT)


def test_attributes_are_passed_on():
    body = function("F", "a", "b", [constant("k"), node("Add", "a c", "b")], attributes=["k"])
    outer = function(
        "G", "a", "b", [refer(node("F", "a", "b", domain="f"), "k", "m", AttributeProto.INT)], attributes=["m"]
    )
    proto = model([node("F", "x", "u", domain="f", k=5), node("G", "u", "y", domain="f", m=7)], [body, outer])
    got = read_model(proto).graph.nodes
    assert [n.attrs for n in got if n.op == "Constant"] == [{"value_int": 5}, {"value_int": 7}]
    same_results(proto, x=X)


def test_default_attributes():
    default = helper.make_attribute("k", 3)
    body = function("F", "a", "b", [constant("k"), node("Add", "a c", "b")], defaults=[default])
    proto = model([node("F", "x", "u", domain="f"), node("F", "u", "y", domain="f", k=4)], [body])
    assert [n.attrs["value_int"] for n in read_model(proto).graph.nodes if n.op == "Constant"] == [3, 4]
    same_results(proto, x=X)


def test_an_attribute_that_the_call_leaves_out():
    concat = refer(node("ReduceSum", "a", "b", keepdims=1), "noop_with_empty_axes", "k", AttributeProto.INT)
    body = function("F", "a", "b", [concat], attributes=["k"])
    assert read_model(model([node("F", "x", "y", domain="f")], [body])).graph.nodes[0].attrs == {"keepdims": 1}


def test_an_attribute_that_the_function_does_not_know():
    with pytest.raises(ModelError, match="does not know: k"):
        read_model(model([node("Twice", "x", "y", domain="f", k=1)], [TWICE]))


def test_subgraphs_in_functions():
    """A branch reads a value of the function, an attribute of it, and names that mean other things outside."""
    then = helper.make_graph(
        [constant("k"), node("Add", "s c", "y")], "then", [], [helper.make_tensor_value_info("y", I64, None)]
    )
    other = helper.make_graph([node("Twice", "s", "x", domain="f")], "else", [], [onnx.ValueInfoProto(name="x")])
    body = function(
        "F",
        "a flag",
        "r",
        [node("Neg", "a", "s"), node("If", "flag", "r", then_branch=then, else_branch=other)],
        attributes=["k"],
    )
    nodes = [
        node("Greater", "x x", "no"),
        node("ReduceMax", "i", "m", keepdims=0),
        node("Cast", "m", "flag", to=TensorProto.BOOL),
        node("F", "x flag", "s", domain="f", k=10),
        node("Not", "flag", "flip"),
        node("F", "s flip", "y", domain="f", k=20),
    ]
    proto = model(nodes, [body, TWICE], inputs="x i")
    for flag in (0, 1):
        same_results(proto, x=X, i=np.array([flag]))
    got = read_model(proto).graph
    branches = [sub for n in got.nodes for sub in n.subgraphs]
    assert len(branches) == 4
    defined = [name for sub in branches for n in sub.nodes for name in n.outputs]
    assert len(set(defined)) == len(defined)


def test_a_graph_as_attribute_of_a_call():
    branch = helper.make_graph([node("Neg", "x", "b")], "g", [], [onnx.ValueInfoProto(name="b")])
    choose = refer(node("If", "c", "r", else_branch=branch), "then_branch", "body", AttributeProto.GRAPH)
    choose.attribute[0].g.node[0].input[0] = "a"
    body = function("F", "a c", "r", [choose], attributes=["body"])
    nodes = [node("Cast", "i", "c", to=TensorProto.BOOL), node("F", "x c", "y", domain="f", body=branch)]
    got = read_model(model(nodes, [body], inputs="x i")).graph
    assert [sub.captured() for sub in got.nodes[1].subgraphs] == [("x",), ("x",)]


# ---- inputs and outputs


def test_inputs_that_the_call_leaves_out():
    body = function("F", "a low high", "b", [node("Clip", "a low high", "b")])
    assert lines(model([node("F", "x", "y", domain="f")], [body])) == ["y = Clip(x, , )"]
    assert lines(model([missing("F", "x _ x", "y", domain="f")], [body])) == ["y = Clip(x, , x)"]
    nested = function("G", "a low", "b", [missing("F", "a low _", "b", domain="f")])
    assert lines(model([node("G", "x", "y", domain="f")], [body, nested])) == ["y = Clip(x, , )"]


def test_outputs_that_the_call_leaves_out():
    body = function("F", "a", "b c", [node("Neg", "a", "b"), node("Abs", "b", "c")])
    first = node("F", "x", "y", domain="f", name="n")
    second = missing("F", "x", "_ y", domain="f", name="n")
    second.output[:] = ["", "y"]
    assert lines(model([first], [body])) == ["y = Neg(x)", "n/c = Abs(y)"]
    assert lines(model([second], [body])) == ["n/b = Neg(x)", "y = Abs(n/b)"]


def test_outputs_that_need_a_copy():
    """An input that is an output too, and one value as two outputs."""
    body = function("F", "a", "a b b", [node("Neg", "a", "b")])
    proto = model([node("F", "x", "p q r", domain="f")], [body], outputs="p q r")
    assert sorted(lines(proto)) == ["p = Identity(x)", "q = Neg(x)", "r = Identity(q)"]


def test_an_empty_function():
    proto = model([node("F", "x", "y", domain="f")], [function("F", "a", "a", [])])
    assert lines(proto) == ["y = Identity(x)"]


@pytest.mark.parametrize(
    ("nodes", "functions", "error"),
    [
        ([node("Twice", "x x", "y", domain="f")], [TWICE], "2 inputs and 1 outputs; it takes 1 and gives 1"),
        ([node("Twice", "x", "y z", domain="f")], [TWICE], "1 inputs and 2 outputs"),
        ([node("F", "x", "y", domain="f")], [function("F", "a", "b", [])], "in function f::F reads 'b'"),
        (
            [node("F", "x", "y", domain="f")],
            [function("F", "a", "b", [node("Neg", "x", "b")])],
            "Neg 'b' in function f::F reads 'x'",
        ),
        ([node("F", "", "y", domain="f")], [function("F", "a", "a", [])], "returns its input 'a'"),
        ([node("F", "x", "y", domain="f")], [function("F", "a a", "b", [node("Neg", "a", "b")])], "two inputs 'a'"),
        (
            [node("F", "x", "y", domain="f")],
            [function("F", "a", "b", [node("Neg", "a", "b"), node("Neg", "a", "b")])],
            "'b' is defined twice",
        ),
        (
            [node("F", "x", "y", domain="f")],
            [function("F", "a", "b", [node("Neg", "a", "a"), node("Neg", "a", "b")])],
            "'a' is defined twice",
        ),
        (
            [node("F", "x", "y", domain="f")],
            [function("F", "a", "b", [node("F", "a", "b", domain="f")])],
            "f::F -> f::F calls itself",
        ),
        (
            [node("F", "x", "y", domain="f")],
            [
                function("F", "a", "b", [node("G", "a", "b", domain="f")]),
                function("G", "a", "b", [node("F", "a", "b", domain="f")]),
            ],
            "f::F -> f::G -> f::F calls itself",
        ),
        (
            [node("F", "x", "y", domain="f")],
            [function("F", "a", "c", [node("Add", "a c", "b"), node("Neg", "b", "c")])],
            "cycle",
        ),
        (
            [node("F", "x", "y", domain="f")],
            [function("F", "a", "b", [node("Op", "a", "b", domain="nowhere")])],
            "domain 'nowhere'",
        ),
    ],
)
def test_broken_functions(nodes, functions, error):
    with pytest.raises(ModelError, match=error):
        read_model(model(nodes, functions))


def test_unused_functions_may_be_broken():
    assert lines(model([node("Neg", "x", "y")], [function("F", "a", "b", [])])) == ["y = Neg(x)"]


def test_growth_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(read, "MAX_INLINED", 10_000)
    functions = [function("F0", "a", "b", [node("Neg", "a", "b")])]
    for i in range(1, 12):
        calls = [node(f"F{i - 1}", "a", f"t{j}", domain="f") for j in range(9)]
        functions.append(function(f"F{i}", "a", "b", [*calls, node(f"F{i - 1}", "t0", "b", domain="f")]))
    with pytest.raises(UnsupportedError, match="expand to more than 10,000"):
        read_model(model([node("F11", "x", "y", domain="f")], functions))


def test_long_chains_of_functions():
    functions = [function("F0", "a", "b", [node("Neg", "a", "b")])]
    for i in range(1, 300):
        functions.append(function(f"F{i}", "a", "b", [node(f"F{i - 1}", "a", "b", domain="f", name="n" * 100)]))
    got = read_model(model([node("F50", "x", "y", domain="f")], functions)).graph.nodes
    assert [str(n) for n in got] == ["y = Neg(x)"]
    with pytest.raises(ModelError, match="nested more than"):
        read_model(model([node("F299", "x", "y", domain="f")], functions))


def test_made_up_names_stay_short():
    body = function("F", "a", "c", [node("Neg", "a", "b" * 5000), node("Neg", "b" * 5000, "c")])
    nodes = [node("F", "x", "u", domain="f", name="n" * 5000), node("F", "u", "y", domain="f", name="n" * 5000)]
    got = read_model(model(nodes, [body])).graph
    assert all(len(name) < 500 for n in got.nodes for name in n.outputs)


# ---- properties


@st.composite
def libraries(draw):
    """Functions that call operators and each other with random wiring, and a graph that calls them."""
    functions = []

    def pick(names):
        return draw(st.sampled_from(names))

    def body(inputs, callable_functions, count):
        names, nodes = list(inputs), []
        for i in range(count):
            op = draw(st.sampled_from(["Add", "Mul", "Neg", *(f.name for f in callable_functions)]))
            out = f"v{i}"
            if op in ("Add", "Mul"):
                nodes.append(node(op, f"{pick(names)} {pick(names)}", out))
            elif op == "Neg":
                nodes.append(node(op, pick(names), out))
            else:
                called = next(f for f in callable_functions if f.name == op)
                outs = [out, *(f"{out}_{j}" for j in range(1, len(called.output)))]
                call = helper.make_node(op, [pick(names) for _ in called.input], outs, domain="f")
                if draw(st.booleans()):
                    call.attribute.append(helper.make_attribute("k", draw(st.integers(-3, 3))))
                nodes.append(call)
                names += outs[1:]
            names.append(out)
        return names, nodes

    for i in range(draw(st.integers(1, 3))):
        inputs = [f"v{j}" if draw(st.booleans()) else f"a{j}" for j in range(100, 100 + draw(st.integers(1, 3)))]
        names, nodes = body(inputs, functions, draw(st.integers(1, 4)))
        nodes += [constant("k"), node("Add", f"{names[-1]} c", "last")]
        outputs = ["last", *draw(st.lists(st.sampled_from(names[len(inputs) :]), max_size=2, unique=True))]
        default = [helper.make_attribute("k", draw(st.integers(-3, 3)))]
        functions.append(function(f"F{i}", " ".join(inputs), " ".join(outputs), nodes, defaults=default))
    names, nodes = body(["x", "v101"], functions, draw(st.integers(1, 5)))
    return model(nodes, functions, inputs="x v101", outputs=nodes[-1].output[0])


@settings(max_examples=60, deadline=None)
@given(libraries())
def test_random_functions(proto):
    onnx.checker.check_model(proto)
    same_results(proto, x=X, v101=np.array([2, 5, -1]))
