"""The operator registry: what an operator is, and how one is found by name, domain and opset version.

An operator lives in one file: `register(Op("Softmax", since=13, infer=..., reference=..., lower=...))`.

* `infer(call)` gets a `Call` and returns the output types (a type, or a list of them), or raises ShapeError.
  Symbolic and unknown dimensions are kept as far as they can be known.
* `reference(*inputs, **attributes)` is NumPy, correct first: it is the oracle. Omitted inputs come as None,
  attributes that the node does not carry take the function's own defaults. It returns one value, or a tuple with
  one per output. A function that declares a parameter `ctx` also gets a `Context`.
* `lower(low)` yields kernel calls into a plan (see minifer.plan.lower), or returns a `Declined` that says why
  not; an operator without `lower` runs by its reference inside the plan.

There is no default version: Softmax-11 is not Softmax-13. `since` is the first opset version whose meaning the
entry has; an entry holds until the next one of the same name and domain.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minifer.errors import InputError, MiniferError, ModelError, ShapeError
from minifer.ir import Dim, Graph, Node, TensorType, Type, type_of_value

# memory layouts that a lowering may ask for
PLAIN = "plain"  # row-major in the order of the ONNX dimensions
CHANNELS_LAST = "channels_last"  # row-major with dimension 1 moved to the end: N, spatial..., C


@dataclass(frozen=True)
class Declined:
    """Why a rewrite or a lowering did not apply (shown by MINIFER_DEBUG=3 and `minifer info`)."""

    why: str

    def __bool__(self) -> bool:
        return False


@dataclass
class Call:
    """What `infer` sees of a node: the types of its inputs, the values among them that are known, attributes."""

    node: Node
    types: Sequence[Type | None]  # None: omitted, or type unknown
    values: Sequence[Any] = ()  # ndarray where the value is known before the run, else None
    infer_graph: Callable[[Graph, Sequence[Type | None]], list[Type | None]] | None = None  # for control flow

    def has(self, i: int) -> bool:
        """True where input `i` is given."""
        return i < len(self.node.inputs) and bool(self.node.inputs[i])

    def tensor(self, i: int) -> TensorType:
        """The type of input `i`, which must be a tensor; ShapeError where it is missing or something else."""
        kind = self.types[i] if i < len(self.types) else None
        if not isinstance(kind, TensorType):
            found = "is missing or of unknown type" if kind is None else f"has type {kind}"
            raise ShapeError(f"{self.node.label}: input {i} {found}, and a tensor is needed")
        return kind

    def dtype(self, i: int) -> str:
        """Element type name of input `i`."""
        return self.tensor(i).dtype

    def shape(self, i: int) -> tuple[Dim, ...] | None:
        """Shape of input `i`; None where even the rank is unknown."""
        return self.tensor(i).shape

    def value(self, i: int) -> Any:
        """The value of input `i` where it is known (a constant), else None."""
        return self.values[i] if i < len(self.values) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default`."""
        return self.node.attrs.get(name, default)

    def fail(self, why: str) -> ShapeError:
        """A ShapeError that names the node and its input types: `raise call.fail("...")`."""
        kinds = ", ".join("-" if t is None else str(t) for t in self.types)
        return ShapeError(f"{self.node.label}({kinds}): {why}")


@dataclass
class Context:
    """What a reference with a `ctx` parameter sees besides its inputs."""

    node: Node
    # run(graph, inputs) -> outputs; names of outer graphs that the graph reads are bound already
    run: Callable[[Graph, Sequence[Any]], list[Any]]

    @property
    def outputs(self) -> int:
        """How many outputs the node asks for (trailing omitted ones not counted)."""
        return len(self.node.outputs)

    def wants(self, i: int) -> bool:
        """True where output `i` is asked for."""
        return i < len(self.node.outputs) and bool(self.node.outputs[i])


Infer = Callable[[Call], "Type | Sequence[Type | None] | None"]


@dataclass(frozen=True)
class Op:
    """One operator at the opset versions from `since` to the next entry."""

    name: str
    since: int
    reference: Callable[..., Any]
    infer: Infer | None = None
    lower: Callable[..., Any] | None = None
    known: Callable[[Call], Any] | None = None  # a value that follows from the input types alone (Shape), or None
    domain: str = ""
    deterministic: bool = True  # False: never folded, never merged with an equal node
    ignore: tuple[str, ...] = ()  # attributes that carry no meaning here (training hints, legacy)
    _parameters: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _any_attribute: bool = field(default=False, init=False, repr=False)
    _wants_context: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.reference).parameters.values()
        keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        object.__setattr__(self, "_parameters", frozenset(keyword) - {"ctx"})
        object.__setattr__(self, "_any_attribute", any(p.kind is p.VAR_KEYWORD for p in parameters))
        object.__setattr__(self, "_wants_context", "ctx" in keyword)

    def call(self, ctx: Context, inputs: Sequence[Any]) -> list[Any]:
        """Run the reference; returns one value per output. Errors of NumPy become errors that name the node."""
        node = ctx.node
        attrs = {k: v for k, v in node.attrs.items() if k not in self.ignore}
        if not self._any_attribute and not self._parameters.issuperset(attrs):
            unknown = ", ".join(sorted(set(attrs) - self._parameters))
            raise ModelError(f"{node.label} has an attribute that {self.name}-{self.since} does not know: {unknown}")
        if self._wants_context:
            attrs["ctx"] = ctx
        try:
            with np.errstate(all="ignore"):
                result = self.reference(*inputs, **attrs)
        except MiniferError as error:
            if node.label in str(error):
                raise
            raise type(error)(f"{node.label}: {error}") from error
        except (ValueError, IndexError, TypeError, KeyError, OverflowError, AttributeError, ArithmeticError) as error:
            kinds = ", ".join("-" if v is None else str(type_of_value(v)) for v in inputs)
            raise InputError(f"{node.label} failed on ({kinds}): {error}") from error
        return list(result) if isinstance(result, tuple) else [result]


_TABLE: dict[tuple[str, str], list[Op]] = {}
_loaded = False


def register(op: Op) -> Op:
    """Add an operator; users register their own with the same call. A later entry for the same
    (domain, name, since) replaces the earlier one."""
    entries = _TABLE.setdefault((op.domain, op.name), [])
    entries[:] = sorted([e for e in entries if e.since != op.since] + [op], key=lambda e: e.since)
    return op


def _load() -> None:
    global _loaded
    if not _loaded:
        import minifer.ops as package

        _loaded = True

        user = {key: list(entries) for key, entries in _TABLE.items()}
        try:
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"minifer.ops.{module.name}")
        except BaseException:
            _loaded = False
            raise
        for entries in user.values():  # what the user registered first still wins
            for op in entries:
                register(op)


def find(domain: str, name: str, version: int) -> Op | None:
    """The entry for an operator at an opset version of its domain, or None."""
    _load()
    entries = [e for e in _TABLE.get((domain, name), ()) if e.since <= version]
    return entries[-1] if entries else None


def select(node: Node) -> Op | None:
    """The entry that a node calls, or None where minifer has none."""
    return find(node.domain, node.op, node.version)


def registered() -> Mapping[tuple[str, str], Sequence[Op]]:
    """All entries: (domain, name) -> entries by rising version."""
    _load()
    return _TABLE
