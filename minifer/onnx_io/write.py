"""From ir.Model to an ONNX file, so that a model that was read, built or optimised can be saved.

What an ONNX file cannot say directly is said by a local function: a file imports one version of a domain, but
nodes that come from function bodies may be written for another. Such a node becomes a function with one node and
an import of its own, which `read_model` (and every other reader) puts back in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minifer.errors import ModelError, UnsupportedError
from minifer.ir import Graph, Model, Node, SparseTensor
from minifer.onnx_io.order import reads
from minifer.onnx_io.read import FUNCTION_DOMAIN
from minifer.onnx_io.schema import MESSAGES
from minifer.onnx_io.tensor import EXTERNAL, write_sparse, write_tensor
from minifer.onnx_io.values import write_attribute, write_type
from minifer.onnx_io.wire import MAX_BYTES, encode

EXTERNAL_FROM = 4096  # bytes of a tensor from which it may go into the external file, and what its offset is aligned to

ModelProto: Any = MESSAGES["ModelProto"]
GraphProto: Any = MESSAGES["GraphProto"]
NodeProto: Any = MESSAGES["NodeProto"]
FunctionProto: Any = MESSAGES["FunctionProto"]
ValueInfoProto: Any = MESSAGES["ValueInfoProto"]
OperatorSetIdProto: Any = MESSAGES["OperatorSetIdProto"]
Entry: Any = MESSAGES["StringStringEntryProto"]


def write_model(model: Model) -> bytes:
    """The model as the bytes of an .onnx file. UnsupportedError where it takes 2 GiB or more: see `save_model`."""
    parts, size = _encoded(_Writer(model))
    if size > MAX_BYTES:
        raise UnsupportedError(
            f"the model takes {size:,} bytes and ONNX allows 2 GiB in one piece; use save_model, which puts the "
            "weights into a file of their own"
        )
    return b"".join(parts)


def save_model(model: Model, path: str | os.PathLike[str], external_data: bool | None = None) -> None:
    """Write the model to `path`. The file is there whole or not at all, and an older one is replaced.

    external_data: True puts the large weights into `<path>.data` beside it, None does so where the model would
    take 2 GiB or more, False never (UnsupportedError then).
    """
    path = Path(path)
    parts, size = _encoded(_Writer(model))
    if size > MAX_BYTES and external_data is False:
        raise UnsupportedError(f"the model takes {size:,} bytes, more than an ONNX file may; allow external_data")
    try:
        if external_data or size > MAX_BYTES:
            location = path.name + ".data"
            writer = _Writer(model, location)
            parts, size = _encoded(writer)
            _write_file(path.with_name(location), writer.external)
        _write_file(path, parts)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be written: {error}") from error


def _encoded(writer: _Writer) -> tuple[list[Any], int]:
    try:
        return encode(writer.model())
    except RecursionError:
        raise UnsupportedError("the model's subgraphs are nested too deeply to be written") from None


def _write_file(path: Path, parts: Iterable[Any]) -> None:
    scratch = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(scratch, "xb") as file:
            file.writelines(parts)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


class _Writer:
    """Makes the messages of one model. `location` names the external file, whose parts collect in `external`."""

    def __init__(self, model: Model, location: str = ""):
        self.source = model
        self.location = location
        self.external: list[Any] = []
        self.offset = 0
        self.functions: list[Any] = []

    def model(self) -> Any:
        source = self.source
        opsets = dict(source.opsets)
        graph = self.graph(source.graph, opsets)
        proto = ModelProto(graph=graph, functions=self.functions, opset_import=_imports(opsets))
        # weights that are no inputs came with IR version 4, functions with 8
        proto.ir_version = max(source.ir_version, 8 if self.functions else 4)
        proto.metadata_props = [Entry(key=k, value=v) for k, v in source.metadata.items()]
        texts = {"producer_name": source.producer, "producer_version": source.producer_version}
        texts |= {"domain": source.domain, "doc_string": source.doc}
        proto.__dict__.update((name, text) for name, text in texts.items() if text)
        if source.model_version:
            proto.model_version = source.model_version
        return proto

    def graph(self, graph: Graph, opsets: dict[str, int]) -> Any:
        proto = GraphProto(name=graph.name or "graph")
        proto.node = [self.node(node, opsets) for node in graph.nodes]
        proto.initializer, proto.sparse_initializer = [], []
        for name, value in graph.consts.items():
            if isinstance(value, SparseTensor):
                proto.sparse_initializer.append(write_sparse(value, name))
            elif isinstance(value, np.ndarray | np.generic):
                proto.initializer.append(self.weight(np.asarray(value), name))
            else:
                raise UnsupportedError(f"constant '{name}' is a {type(value).__name__}, which ONNX cannot store")
        proto.input = [self.value(name, graph) for name in graph.inputs]
        proto.output = [self.value(name, graph) for name in graph.outputs]
        defined = {name for node in graph.nodes for name in node.outputs}
        inner = defined.intersection(graph.types).difference(graph.inputs, graph.outputs, ("",))
        proto.value_info = [self.value(name, graph) for name in graph.types if name in inner]
        return proto

    def value(self, name: str, graph: Graph) -> Any:
        proto = ValueInfoProto(name=name)
        if name in graph.types:
            proto.type = write_type(graph.types[name])
        return proto

    def weight(self, array: np.ndarray, name: str) -> Any:
        proto = write_tensor(array, name)
        size = len(proto.raw_data)  # none for strings, which stay in the model
        if self.location and size >= EXTERNAL_FROM:
            padding = -self.offset % EXTERNAL_FROM
            self.external += [bytes(padding), proto.raw_data]
            where = {"location": self.location, "offset": str(self.offset + padding), "length": str(size)}
            self.offset += padding + size
            del proto.raw_data
            proto.external_data = [Entry(key=k, value=v) for k, v in where.items()]
            proto.data_location = EXTERNAL
        return proto

    def node(self, node: Node, opsets: dict[str, int]) -> Any:
        """The NodeProto of a node in a place that imports `opsets`, to which a domain not yet imported is added."""
        version = node.version or opsets.get(node.domain, 1)  # a node that a pass made may leave it open
        if opsets.setdefault(node.domain, version) != version:
            opsets[FUNCTION_DOMAIN] = 1
            return self.function_call(node)
        proto = NodeProto(op_type=node.op, input=list(node.inputs), output=list(node.outputs))
        proto.attribute = [
            write_attribute(name, value, node.label, lambda graph: self.graph(graph, opsets))
            for name, value in node.attrs.items()
        ]
        if node.name:
            proto.name = node.name
        if node.domain:
            proto.domain = node.domain
        return proto

    def function_call(self, node: Node) -> Any:
        """A call of a new function that holds the node alone. What its subgraphs capture becomes inputs too."""
        inputs = list(dict.fromkeys(reads(node)))
        outputs = [name for name in node.outputs if name]
        function = FunctionProto(name=f"{node.op}_{node.version}_{len(self.functions)}", domain=FUNCTION_DOMAIN)
        self.functions.append(function)
        opsets = {node.domain: node.version}
        function.input, function.output = inputs, outputs
        function.node = [self.node(node, opsets)]
        function.opset_import = _imports(opsets)
        call = NodeProto(op_type=function.name, domain=FUNCTION_DOMAIN, input=inputs, output=outputs)
        if node.name:
            call.name = node.name
        return call


def _imports(opsets: dict[str, int]) -> list[Any]:
    return [OperatorSetIdProto(**({"domain": d} if d else {}), version=version) for d, version in opsets.items()]
