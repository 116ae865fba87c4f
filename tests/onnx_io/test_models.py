"""Whole models: all that the onnx package ships are read, and written again, as it sees them."""

import pathlib

import onnx
import pytest
from onnx import numpy_helper

from minifer.ir import Graph
from minifer.onnx_io import read_model, write_model

DATA = pathlib.Path(onnx.__file__).parent / "backend" / "test" / "data"
FILES = sorted(DATA.glob("**/*.onnx"))


def inner_graphs(node):
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def equal_graphs(ours: Graph, theirs: onnx.GraphProto, ir_version: int) -> None:
    """The same inputs, outputs, constants and nodes; theirs must hold no function calls."""
    weights = {t.name: t for t in theirs.initializer}
    inputs = [v.name for v in theirs.input]
    assert list(ours.inputs) == (inputs if ir_version >= 4 else [n for n in inputs if n not in weights])
    assert list(ours.outputs) == [v.name for v in theirs.output]
    assert set(ours.consts) == set(weights) | {s.values.name for s in theirs.sparse_initializer}
    for name, tensor in weights.items():
        want, got = numpy_helper.to_array(tensor), ours.consts[name]
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert got.tolist() == want.tolist() if want.dtype == object else got.tobytes() == want.tobytes()
    assert len(ours.nodes) == len(theirs.node)
    by_outputs = {tuple(node.output): node for node in theirs.node}
    for node in ours.nodes:
        other = by_outputs[node.outputs]
        assert (node.op, list(node.inputs), node.name) == (other.op_type, list(other.input), other.name)
        assert set(node.attrs) == {a.name for a in other.attribute}
        for a, b in zip(node.subgraphs, inner_graphs(other), strict=True):
            equal_graphs(a, b, 4)


def check(ours, proto):
    equal_graphs(ours.graph, proto.graph, proto.ir_version)
    assert ours.opsets == {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    data = write_model(ours)
    equal_graphs(ours.graph, onnx.load_from_string(data).graph, 4)
    assert str(read_model(data).graph) == str(ours.graph)


def test_there_are_models():
    assert len(FILES) > 100


@pytest.mark.parametrize("kind", sorted({f.relative_to(DATA).parts[0] for f in FILES}))
def test_files(kind):
    for path in (DATA / kind).glob("**/*.onnx"):
        check(read_model(path), onnx.load(path))
