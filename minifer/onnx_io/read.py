"""From an ONNX file to ir.Model.

`read_model` finds the bytes (mapping a file into memory, not reading it), decodes them and builds the graph:
names are resolved scope by scope, local functions are put in place of their calls, nodes are brought into order,
and `Graph.check` has the last word. Sources: docs/IR.md and onnx.proto of ONNX.

A value keeps its name wherever it can. New names are made up for what stands in a function body, and for what a
subgraph defines under a name that a graph around it uses already (the standard forbids it, exporters do it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from minifer.collector import collector_paused
from minifer.errors import ModelError, UnsupportedError
from minifer.ir import Graph, Model, Node, Type
from minifer.onnx_io.external import ExternalFiles
from minifer.onnx_io.order import in_order
from minifer.onnx_io.schema import MESSAGES
from minifer.onnx_io.source import guess_format, open_source
from minifer.onnx_io.tensor import read_dense, read_tensor
from minifer.onnx_io.values import read_attribute, read_type
from minifer.onnx_io.wire import decode
from minifer.record import Record

MAX_INLINED = 5_000_000  # nodes and their names that calls may expand to: a few functions can grow without end
MAX_NESTING = 64  # of function calls and subgraphs
MAX_NAME = 400  # characters of a name that is made up

#: Of functions that `write` wrapped around a node of another opset version: what is in them keeps its name.
FUNCTION_DOMAIN = "minifer.versions"


def read_model(source: Any) -> Model:
    """The model in `source`: a path, bytes (bytes, bytearray, memoryview), a binary file object, or an
    onnx.ModelProto.

    Constants are read-only arrays, mostly views into the file, and not always aligned. ModelError where the source
    is no valid model, UnsupportedError where it uses what minifer cannot hold.
    """
    return read_data(*open_source(source))[0]


def read_data(data: memoryview, path: str | None) -> tuple[Model, list[str]]:
    """The model in `data`, and the paths of the files beside `path` that hold some of its weights."""
    if not len(data):
        raise ModelError("not an ONNX file: it is empty")
    with collector_paused():
        try:
            files = ExternalFiles(path)
            return _read(data, files), files.paths()
        except MemoryError:
            raise UnsupportedError("the model does not fit into memory") from None


def _read(data: memoryview, files: ExternalFiles) -> Model:
    try:
        proto = decode(MESSAGES["ModelProto"], data)
    except ModelError as error:
        raise ModelError(f"not an ONNX file: {guess_format(data) or error}") from error
    if proto.graph is None or proto.ir_version <= 0:
        lacks = "graph" if proto.graph is None else "ir_version"
        raise ModelError(f"not an ONNX file: {guess_format(data) or f'it has no {lacks}'}")
    return _Reader(proto, files).model()


class _Scope:
    """The names that one graph or function body defines (own name -> name in the ir), and the scope around it.

    `pending`: names of this scope that a node further down defines, and that until then mean an outer value.
    """

    def __init__(self, outer: _Scope | None = None):
        self.names: dict[str, str] = {}
        self.pending: set[str] = set()
        self.outer = outer

    def find(self, name: str) -> str | None:
        scope: _Scope | None = self
        while scope is not None:
            found = scope.names.get(name)
            if found is not None and name not in scope.pending:
                return found
            scope = scope.outer
        return None


class _Place(Record):
    """Where nodes are read: in which scope, for which opsets, with which attributes of the call."""

    scope: _Scope
    opsets: Mapping[str, int]
    attrs: Mapping[str, Any] | None = None  # what ref_attr_name may name; None outside functions
    prefix: str = ""  # of new names: the call
    calls: tuple[tuple[str, str, str], ...] = ()  # the functions around, outermost first
    depth: int = 0
    fresh: bool = False  # every name defined here is a new one

    def inside(self, **changes: Any) -> _Place:
        """A place one level deeper, its scope inside this one unless given."""
        if self.depth >= MAX_NESTING:
            raise ModelError(f"subgraphs and function calls are nested more than {MAX_NESTING} deep")
        changes.setdefault("scope", _Scope(self.scope))
        return self.with_(depth=self.depth + 1, **changes)


class _Reader:
    """Builds the graph of one ModelProto."""

    def __init__(self, proto: Any, files: ExternalFiles):
        self.proto = proto
        self.files = files
        self.functions: dict[tuple[str, str, str], Any] = {}
        self.taken: set[str] | None = None  # every name of the model, once a new one is needed
        self.counts: dict[str, int] = {}
        self.converted: dict[int, Any] = {}  # id of a message -> its value, without graphs in it
        self.inlined = 0

    def model(self) -> Model:
        proto = self.proto
        for function in proto.functions:
            key = (_domain(function.domain), function.name, function.overload)
            if key in self.functions:
                raise ModelError(f"function {_title(key)} is defined twice")
            self.functions[key] = function
        opsets = _opsets(proto)
        graph = self.graph(proto.graph, _Place(_Scope(), opsets))
        if not graph.outputs:
            raise ModelError("the graph has no outputs")
        if len(set(graph.outputs)) < len(graph.outputs):
            raise ModelError(f"the graph has two outputs of one name: {', '.join(graph.outputs)}")
        if proto.ir_version < 4:  # before, every constant had to be listed as an input, and was none
            graph = graph.with_(inputs=tuple(name for name in graph.inputs if name not in graph.consts))
        graph.check()
        return Model(
            graph,
            {domain: version for domain, version in opsets.items() if domain != FUNCTION_DOMAIN},
            proto.ir_version,
            producer=proto.producer_name,
            producer_version=proto.producer_version,
            domain=proto.domain,
            model_version=proto.model_version,
            doc=proto.doc_string,
            metadata={entry.key: entry.value for entry in proto.metadata_props},
        )

    # ---- names

    def define(self, name: str, place: _Place) -> None:
        """Enter a name into the scope; twice is an error."""
        names = place.scope.names
        if name in names:
            raise ModelError(f"'{name}' is defined twice in one graph")
        outer = place.scope.outer
        if place.fresh:
            names[name] = self.fresh(_join(place.prefix, name))
        elif outer is not None and outer.find(name) is not None:
            names[name] = self.fresh(name)
        else:
            names[name] = name

    def fresh(self, base: str) -> str:
        """A name that nothing else has."""
        if self.taken is None:
            self.taken = set(_all_names(self.proto.graph))
        name = base
        while name in self.taken:
            self.counts[base] = self.counts.get(base, 0) + 1
            name = f"{base}_{self.counts[base]}"
        self.taken.add(name)
        return name

    def find(self, name: str, place: _Place, node: Any, who: str = "") -> str:
        """What a name means at a place; `node` reads it, or what is called `who`."""
        found = place.scope.find(name) if name else ""
        if found is None:
            inside = f" in function {_title(place.calls[-1])}" if place.calls else ""
            raise ModelError(f"{who or _who(node)}{inside} reads '{name}', which no input, constant or node defines")
        return found

    # ---- graphs

    def graph(self, proto: Any, place: _Place) -> Graph:
        """A graph, the main one or a subgraph, whose names go to the scope of `place`."""
        scope = place.scope
        self.spend(len(proto.input) + len(proto.initializer) + len(proto.output) + len(proto.value_info), place)
        for value in proto.input:
            self.define(value.name, place)
        constants = self.constants(proto)
        inputs = set(scope.names)
        for name in constants:
            if name not in inputs:
                self.define(name, place)
        self.define_outputs(proto.node, place)
        nodes: list[Node] = []
        for node in proto.node:
            self.node(node, place, nodes)
            if scope.pending:
                scope.pending.difference_update(node.output)
        who = f"the output list of graph '{proto.name}'"
        outputs = tuple(self.find(value.name, place, None, who) for value in proto.output)
        if "" in outputs:
            raise ModelError(f"graph '{proto.name}' has an output without a name, or one that a call leaves out")
        return Graph(
            tuple(scope.names[value.name] for value in proto.input),
            outputs,
            in_order(nodes),
            {scope.names[name]: value for name, value in constants.items()},
            self.types(proto, scope),
            proto.name,
        )

    def define_outputs(self, nodes: Any, place: _Place) -> None:
        scope, outer, names = place.scope, place.scope.outer, place.scope.names
        for node in nodes:
            for name in node.output:
                if not name:
                    continue
                if outer is None and not place.fresh and name not in names:  # the usual case, spelled out for speed
                    names[name] = name
                    continue
                self.define(name, place)
                if outer is not None and outer.find(name) is not None:
                    scope.pending.add(name)

    def constants(self, proto: Any) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for tensor in proto.initializer:
            who = f"initializer '{tensor.name}'"
            _enter(out, tensor.name, self.once(tensor, partial(read_tensor, files=self.files, who=who)))
        for sparse in proto.sparse_initializer:
            name = sparse.values.name if sparse.values is not None else ""
            who = f"sparse initializer '{name}'"
            _enter(out, name, self.once(sparse, partial(read_dense, files=self.files, who=who)))
        return out

    def once(self, proto: Any, convert: Callable[[Any], Any]) -> Any:
        """The value of a message, converted the first time: a function body is met once for every call."""
        key = id(proto)
        try:
            return self.converted[key]
        except KeyError:
            return self.converted.setdefault(key, convert(proto))

    def types(self, proto: Any, scope: _Scope) -> dict[str, Type]:
        out = {}
        seen: dict[int, Type | None] = {}  # equal types are mostly one object
        for value in (*proto.value_info, *proto.output, *proto.input):
            if value.type is not None and value.name in scope.names:
                key = id(value.type)
                if key not in seen:
                    seen[key] = read_type(value.type, f"value '{value.name}'")
                kind = seen[key]
                if kind is not None:
                    out[scope.names[value.name]] = kind
        return out

    # ---- nodes

    def node(self, proto: Any, place: _Place, out: list[Node]) -> None:
        """Append the node, or the nodes of the function that it calls, to `out`."""
        domain = _domain(proto.domain)
        if not proto.op_type:
            raise ModelError(f"node '{proto.name}' has no operator (op_type)")
        if place.calls:
            self.spend(1 + len(proto.input) + len(proto.output) + len(proto.attribute), place)
        inputs = tuple([self.find(name, place, proto) for name in proto.input])
        attrs = self.attributes(proto, place)
        if self.functions and (key := (domain, proto.op_type, proto.overload)) in self.functions:
            self.call(proto, key, inputs, attrs, place, out)
            return
        names = place.scope.names
        outputs = tuple([names[name] if name else "" for name in proto.output])
        name = _join(place.prefix, proto.name) if proto.name else ""
        version = place.opsets.get(domain)
        if version is None:
            version = self.version(domain, place, _who(proto))
        out.append(Node(proto.op_type, inputs, outputs, attrs, name, domain, version))

    def spend(self, count: int, place: _Place) -> None:
        """Count what is made from function bodies: it may be far more than the file holds."""
        if place.calls:
            self.inlined += count
            if self.inlined > MAX_INLINED:
                raise UnsupportedError(f"the model's functions expand to more than {MAX_INLINED:,} nodes and values")

    def version(self, domain: str, place: _Place, who: str) -> int:
        """The opset version that a domain has at a place."""
        version = place.opsets.get(domain)
        if version is None:
            if self.proto.ir_version < 3 and not domain:
                return 1  # files of that time say nothing
            raise ModelError(
                f"{who} is of domain '{domain or 'ai.onnx'}', whose version the model does not import (opset_import)"
            )
        return version

    def attributes(self, proto: Any, place: _Place) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for attribute in proto.attribute:
            name, source = attribute.name, attribute.ref_attr_name
            if not name or name in out:
                what = f"two attributes {name!r}" if name else "an attribute without a name"
                raise ModelError(f"{_who(proto)} has {what}")
            if not source:
                found = self.converted.get(id(attribute))  # most are shared, and met before
                out[name] = self.attribute(attribute, place, _who(proto)) if found is None else found
            elif place.attrs is None:
                raise ModelError(f"attribute '{name}' of {_who(proto)} refers to '{source}', and it is in no function")
            elif source in place.attrs:  # else the caller left it out: the operator's default holds
                out[name] = place.attrs[source]
        return out

    def attribute(self, proto: Any, place: _Place, who: str) -> Any:
        def convert(proto: Any) -> Any:
            return read_attribute(proto, who, self.files, lambda graph: self.graph(graph, place.inside()))

        return convert(proto) if proto.g is not None or proto.graphs else self.once(proto, convert)

    # ---- functions

    def call(self, proto: Any, key: Any, inputs: tuple, attrs: dict, place: _Place, out: list[Node]) -> None:
        """Append the nodes of a function body, its names new, its inputs and outputs those of the call."""
        function = self.functions[key]
        title = _title(key)
        if key in place.calls:
            raise ModelError(f"function {' -> '.join(map(_title, (*place.calls, key)))} calls itself")
        if len(inputs) > len(function.input) or len(proto.output) > len(function.output):
            raise ModelError(
                f"a call of function {title} has {len(inputs)} inputs and {len(proto.output)} outputs; "
                f"it takes {len(function.input)} and gives {len(function.output)}"
            )
        prefix = proto.name or next(filter(None, proto.output), proto.op_type)
        inner = place.inside(
            scope=_Scope(),
            opsets={**place.opsets, **_opsets(function)},
            attrs=self.bound(function, attrs, place, title),
            prefix=place.prefix if key[0] == FUNCTION_DOMAIN else _join(place.prefix, prefix),
            calls=(*place.calls, key),
            fresh=True,
        )
        names = inner.scope.names
        for i, formal in enumerate(function.input):
            if formal in names:
                raise ModelError(f"function {title} has two inputs '{formal}'")
            names[formal] = inputs[i] if i < len(inputs) else ""
        wanted = [(formal, place.scope.names[out]) for formal, out in zip(function.output, proto.output) if out]
        copies = self.define_body(function, wanted, inner)
        for node in function.node:
            self.node(node, inner, out)
        for formal, actual in copies:
            value = self.find(formal, inner, None, "the output list")
            if not value:
                raise ModelError(f"function {title} returns its input '{formal}', which a call leaves out")
            out.append(Node("Identity", (value,), (actual,), version=self.version("", inner, title)))

    def define_body(self, function: Any, wanted: list[tuple[str, str]], place: _Place) -> list[tuple[str, str]]:
        """Name what the body defines: an output as the call names it. Returns the outputs that need a copy: inputs
        passed through, and values that are an output twice."""
        own = {name for node in function.node for name in node.output if name}
        names, copies = place.scope.names, []
        direct: dict[str, str] = {}
        for formal, actual in wanted:
            if formal in own and formal not in direct:
                direct[formal] = actual
            else:
                copies.append((formal, actual))
        for node in function.node:
            for name in node.output:
                if name in direct and name not in names:
                    names[name] = direct[name]
                elif name:
                    self.define(name, place)
        return copies

    def bound(self, function: Any, attrs: dict, place: _Place, title: str) -> dict[str, Any]:
        """The attributes that a body may refer to: the call's, and the defaults of the others."""
        defaults = {a.name: a for a in function.attribute_proto}
        unknown = set(attrs) - set(function.attribute) - set(defaults)
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ModelError(f"a call of function {title} has attributes it does not know: {names}")
        blank = place.inside(scope=_Scope(), attrs=None)
        who = f"function {title}"
        out = {name: self.attribute(a, blank, who) for name, a in defaults.items() if name not in attrs}
        return {**out, **attrs}


def _who(node: Any) -> str:
    """How messages name a NodeProto."""
    return f"{node.op_type} '{node.name or next(filter(None, node.output), '')}'"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}/{name}"[-MAX_NAME:] if prefix else name


def _enter(out: dict[str, np.ndarray], name: str, value: np.ndarray) -> None:
    if not name:
        raise ModelError("an initializer has no name")
    if name in out:
        raise ModelError(f"initializer '{name}' is there twice")
    out[name] = value


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _title(key: tuple[str, str, str]) -> str:
    return "::".join(filter(None, key[:2])) + (f" ({key[2]})" if key[2] else "")


def _opsets(proto: Any) -> dict[str, int]:
    """Domain -> version; of a domain that is there twice the higher one holds (onnx.proto, opset_import)."""
    out: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = _domain(entry.domain)
        if entry.version <= 0:
            raise ModelError(f"domain '{domain or 'ai.onnx'}' is imported in version {entry.version}")
        out[domain] = max(entry.version, out.get(domain, 0))
    return out


def _all_names(graph: Any) -> Iterator[str]:
    """Every value name in a GraphProto and the graphs inside it."""
    for value in graph.input:
        yield value.name
    for tensor in graph.initializer:
        yield tensor.name
    for sparse in graph.sparse_initializer:
        if sparse.values is not None:
            yield sparse.values.name
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner is not None:
                    yield from _all_names(inner)
