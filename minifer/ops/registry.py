"""The operator registry: what an operator is, and how one is found by name, domain and opset version.

An operator lives in one file: `register(Op("Softmax", since=13, infer=..., reference=..., lower=...))`.

* `infer(call)` gets a `Call` and returns the output types (a type, or a list of them), or raises ShapeError.
  Symbolic and unknown dimensions are kept as far as they can be known.
* `reference(*inputs, **attributes)` is NumPy, correct first: it is the oracle. Omitted inputs come as None,
  attributes that the node does not carry take the function's own defaults. It returns one value, or a tuple with
  one per output. A function that declares a parameter `ctx` also gets a `Context`.
* `lower(low)` yields kernel calls into a plan (see minifer.plan.lower), or returns a `Declined` that says why
  not; an operator without `lower` runs by its reference inside the plan. Lowerings stand in modules of their own,
  lower_*.py, named by `deferred` and imported when the first of them is called.

There is no default version: Softmax-11 is not Softmax-13. `since` is the first opset version whose meaning the
entry has; an entry holds until the next one of the same name and domain.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, LimitError, MiniferError, ModelError, ShapeError, UnsupportedError
from minifer.ir import Dim, Graph, Node, SparseTensor, TensorType, Type, type_of_value
from minifer.lazy import cached_property
from minifer.locks import Lock
from minifer.record import Record

# memory layouts that a lowering may ask for
PLAIN = "plain"  # row-major in the order of the ONNX dimensions
CHANNELS_LAST = "channels_last"  # row-major with dimension 1 moved to the end: N, spatial..., C


class Declined(Record):
    """Why a rewrite or a lowering did not apply (shown by MINIFER_DEBUG=3 and `minifer info`)."""

    why: str

    def __bool__(self) -> bool:
        return False


class Call:
    """What `infer` sees of a node: the types of its inputs, the values among them that are known, attributes."""

    def __init__(
        self,
        node: Node,
        types: Sequence[Type | None],
        values: Sequence[Any] = (),
        infer_graph: Callable[[Graph, Sequence[Type | None]], list[Type | None]] | None = None,
    ):
        """`types`: None where an input is omitted or of unknown type; `values`: arrays where they are known before the
        run, else None; `infer_graph`: for control flow."""
        self.node, self.types, self.values, self.infer_graph = node, types, values, infer_graph

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


class Context(Record, frozen=False):
    """What a reference with a `ctx` parameter sees besides its inputs."""

    node: Node
    # run(graph, inputs) -> outputs; names of outer graphs that the graph reads are bound already
    run: Callable[[Graph, Sequence[Any]], list[Any]]
    # hold(bytes): raises LimitError where that much may not be held (what a loop gathers over its iterations)
    hold: Callable[[int], None] = staticmethod(lambda nbytes: None)

    @property
    def outputs(self) -> int:
        """How many outputs the node asks for (trailing omitted ones not counted)."""
        return len(self.node.outputs)

    def wants(self, i: int) -> bool:
        """True where output `i` is asked for."""
        return i < len(self.node.outputs) and bool(self.node.outputs[i])


Infer = Callable[[Call], "Type | Sequence[Type | None] | None"]


class Op(Record):
    """One operator at the opset versions from `since` to the next entry."""

    name: str
    since: int
    reference: Callable[..., Any]
    infer: Infer | None = None
    lower: Callable[..., Any] | None = None
    known: Callable[[Call], Any] | None = None  # a value that follows from the input types alone (Shape), or None
    # how many rows the kernel goes on in input 0 from one to the next, where these may lie apart, else 0 (plan/rows.py)
    rows: Callable[[Call], int] | None = None
    domain: str = ""
    deterministic: bool = True  # False: never folded, never merged with an equal node
    ignore: tuple[str, ...] = ()  # attributes that carry no meaning here (training hints, legacy)

    def __post_init__(self) -> None:
        if not callable(self.reference):
            raise TypeError(f"the reference of {self.name} is a {type(self.reference).__name__}, not a function")
        for rule in ("infer", "known"):
            if getattr(self, rule) is not None:
                object.__setattr__(self, rule, _guarded(getattr(self, rule)))

    @cached_property
    def _form(self) -> _Form:
        """What a node may carry; found on first use, as most operators are registered in vain."""
        return _Form(self.reference)

    def check(self, node: Node) -> None:
        """Raise ModelError where a node has more or fewer inputs than the operator takes, no output, an attribute that
        the operator does not know or that has another type, or lacks one that it must have."""
        form = self._form
        least, most = form.least, form.most
        count = len(node.inputs)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise ModelError(f"{node.label} has {count} inputs, and {self.name}-{self.since} takes {wanted}")
        if most is not None and "" in node.inputs[:least]:
            raise ModelError(f"{node.label} leaves out input {node.inputs.index('')}, which it must have")
        attrs = self._meant(node)
        if not form.any_attribute and not form.attributes.issuperset(attrs):
            unknown = ", ".join(sorted(attrs.keys() - form.attributes))
            raise ModelError(f"{node.label} has an attribute that {self.name}-{self.since} does not know: {unknown}")
        if not form.needed.issubset(attrs):
            missing = ", ".join(sorted(form.needed - attrs.keys()))
            raise ModelError(f"{node.label} lacks the attribute {missing}, which it must have")
        if not node.outputs:
            raise ModelError(f"{node.label} has no output")
        for name, value in attrs.items():
            types = form.types.get(name, _ANY)
            if not isinstance(value, types):
                kind = type(value).__name__
                raise ModelError(f"{node.label} has a {kind} as attribute {name}, and {types[0].__name__} is needed")

    def _meant(self, node: Node) -> dict[str, Any]:
        """The attributes of a node that carry a meaning here."""
        return {k: v for k, v in node.attrs.items() if k not in self.ignore}

    def call(self, ctx: Context, inputs: Sequence[Any]) -> list[Any]:
        """Run the reference; returns one value per output. Any exception becomes an error that names the node."""
        node = ctx.node
        self.check(node)
        attrs = self._meant(node)
        if self._form.wants_context:
            attrs["ctx"] = ctx
        try:
            with np.errstate(all="ignore"):
                result = self.reference(*map(_read_only, inputs), **attrs)
        except MiniferError as error:
            if node.label in str(error):
                raise
            raise type(error)(f"{node.label}({_kinds(inputs)}): {error}") from error
        except MemoryError as error:
            raise LimitError(f"{node.label}({_kinds(inputs)}) does not fit into memory; use smaller inputs") from error
        except RecursionError as error:
            raise LimitError(f"{node.label}({_kinds(inputs)}) is nested too deeply to be run") from error
        except Exception as error:
            known = isinstance(error, ValueError | IndexError | ArithmeticError)
            what = str(error) if known else f"{type(error).__name__}: {error}"
            raise InputError(f"{node.label}({_kinds(inputs)}) failed: {what}") from error
        return self._results(node, result, inputs)

    def _results(self, node: Node, result: Any, inputs: Sequence[Any]) -> list[Any]:
        """What a reference returned as a list with an entry for each output that the node asks for."""
        results = list(result) if isinstance(result, tuple) else [result]
        wanted = len(node.outputs)
        while wanted and not node.outputs[wanted - 1]:
            wanted -= 1
        if len(results) < wanted:
            raise ModelError(f"{node.label} asks for {wanted} outputs, and its operator gives {len(results)}")
        for i, value in enumerate(results[:wanted]):
            if not isinstance(value, _RESULTS):
                raise InputError(
                    f"{node.label}({_kinds(inputs)}): the operator's function returned a {type(value).__name__} as "
                    f"output {i}; it must return arrays (one, or a tuple with one per output)"
                )
            if isinstance(value, _ARRAYS):
                try:
                    dtypes.from_numpy(value.dtype)
                except UnsupportedError as error:
                    raise InputError(f"{node.label}({_kinds(inputs)}): output {i}: {error}") from error
        return results


def _read_only(value: Any) -> Any:
    """An array that the reference cannot write to: it may be the caller's own, or a constant of the model."""
    if isinstance(value, np.ndarray) and value.flags.writeable:
        value = value.view()
        value.flags.writeable = False
    return value


class _Form:
    """How a reference may be called, by its signature: inputs by position, attributes by keyword."""

    def __init__(self, reference: Callable[..., Any]):
        self.least, self.most, keyword, self.any_attribute = _declared(reference)
        self.wants_context = "ctx" in keyword
        keyword.pop("ctx", None)
        self.attributes = frozenset(keyword)
        self.needed = frozenset(n for n, default in keyword.items() if default is _NEEDED)
        self.types = {n: _wanted_type(default) for n, default in keyword.items()} | dict.fromkeys(_BODIES, (Graph,))


_NEEDED = inspect.Parameter.empty  # the default of what has none
_ANY: tuple[type, ...] = (object,)
_BODIES = ("body", "then_branch", "else_branch")  # attributes that are graphs, whatever the operator
_ARRAYS = (np.ndarray, np.generic)
_RESULTS = (*_ARRAYS, list, dict, SparseTensor, type(None))  # what a reference may return


def _wanted_type(default: Any) -> tuple[type, ...]:
    """The types that an attribute may have, the proper one first, by the default that it has in the reference."""
    if isinstance(default, int | float):
        return (int, float)
    if isinstance(default, str):
        return (str, bytes)
    return (tuple, list) if isinstance(default, tuple) else _ANY


def _declared(function: Callable[..., Any]) -> tuple[int, int | None, dict[str, Any], bool]:
    """What a function takes: by position at least and at most (None: any number), by keyword with which defaults, and
    whether any other keyword too."""
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):  # 20 times as fast
        code, defaults = function.__code__, function.__kwdefaults__ or {}
        most = code.co_argcount
        keyword = {n: defaults.get(n, _NEEDED) for n in code.co_varnames[most : most + code.co_kwonlyargcount]}
        endless, more = code.co_flags & inspect.CO_VARARGS, code.co_flags & inspect.CO_VARKEYWORDS
        return most - len(function.__defaults__ or ()), None if endless else most, keyword, bool(more)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a function in C that says nothing (a ufunc): inputs alone
        return 0, None, {}, False
    kinds = [p.kind for p in parameters]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    least = sum(p.default is _NEEDED for p in positional)
    keyword = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    endless, anything = inspect.Parameter.VAR_POSITIONAL in kinds, inspect.Parameter.VAR_KEYWORD in kinds
    return least, None if endless else len(positional), keyword, anything


def _kinds(inputs: Sequence[Any]) -> str:
    """The types of values, for a message."""

    def text(value: Any) -> str:
        try:
            return "-" if value is None else str(type_of_value(value))
        except (TypeError, MiniferError):
            return type(value).__name__

    return ", ".join(map(text, inputs))


def _guarded(rule: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """A type rule whose stray exceptions (an attribute of a wrong type, an input that is not there) name the node."""

    def guarded(call: Call) -> Any:
        try:
            return rule(call)
        except MiniferError as error:
            if call.node.label in str(error):
                raise
            raise type(error)(str(call.fail(str(error)))) from error
        except (MemoryError, RecursionError) as error:
            raise LimitError(str(call.fail(f"the node is too large or nested too deeply ({error})"))) from error
        except Exception as error:
            why = f"inputs or attributes do not fit the operator ({type(error).__name__}: {error})"
            raise call.fail(why) from error

    return guarded


_TABLE: dict[tuple[str, str], list[Op]] = {}
_USER: dict[tuple[str, str, int], Op] = {}  # registered from outside minifer.ops: they win
_FOUND: dict[tuple[str, str], set[str]] = {}  # modules that registered an operator
_catalogue: dict[tuple[str, str], list[str]] | None = None
_loaded = False
_lock = Lock()


def register(op: Op) -> Op:
    """Add an operator; users register their own with the same call. A later entry for the same
    (domain, name, since) replaces the earlier one; what a user registers replaces what minifer has."""
    key, entry = (op.domain, op.name), (op.domain, op.name, op.since)
    home = _importing()
    if home.startswith("minifer.ops."):
        _FOUND.setdefault(key, set()).add(home.removeprefix("minifer.ops."))
        op = _USER.get(entry, op)
    else:
        _USER[entry] = op
    entries = _TABLE.setdefault(key, [])
    entries[:] = sorted([e for e in entries if e.since != op.since] + [op], key=lambda e: e.since)
    return op


def _importing() -> str:
    """The module whose code runs as it is imported, the innermost one; "" where there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "<module>":
        frame = frame.f_back
    return "" if frame is None else frame.f_globals.get("__name__", "")


class Deferred:
    """A function of a module of minifer.ops that is imported when the function is first called."""

    def __init__(self, module: str, name: str, given: tuple[tuple[Any, ...], dict[str, Any]] | None = None):
        self.module, self.name, self.given = module, name, given

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        found = getattr(importlib.import_module(f"minifer.ops.{self.module}"), self.name)
        return found if self.given is None else found(*self.given[0], **self.given[1])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)

    def of(self, *arguments: Any, **named: Any) -> Deferred:
        """What the function makes of these arguments, itself a function: made when that is first called."""
        return Deferred(self.module, self.name, (arguments, named))


def deferred(module: str, *names: str) -> Any:
    """Functions of a module of minifer.ops, imported when one is first called: one, or a list for several names.

    Lowerings are named so. They bring the kernels with them, which take longer to import than all else, and a model
    lowers few of the operators that it names: others are folded, rewritten, or absorbed by their neighbours.
    """
    found = [Deferred(module, name) for name in names]
    return found[0] if len(found) == 1 else found


def _load() -> None:
    """Import all operators."""
    global _loaded, _catalogue
    with _lock:
        if _loaded:
            return
        import pkgutil

        import minifer.ops as package
        from minifer.ops import catalogue

        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("lower_"):  # these register nothing
                importlib.import_module(f"minifer.ops.{module.name}")
        _loaded = True
        catalogue.write(package.__path__[0], _FOUND)


def _load_one(domain: str, name: str) -> None:
    """Import the modules that hold an operator; all modules where that is not known."""
    global _catalogue
    with _lock:
        if _catalogue is None:
            import minifer.ops as package
            from minifer.ops import catalogue

            _catalogue = catalogue.read(package.__path__[0])
        modules = _catalogue.get((domain, name))
        if modules is None:
            _load()
            return
        for module in modules:
            importlib.import_module(f"minifer.ops.{module}")
        _ready.add((domain, name))


_ready: set[tuple[str, str]] = set()  # operators whose modules are imported


def find(domain: str, name: str, version: int) -> Op | None:
    """The entry for an operator at an opset version of its domain, or None."""
    key = (domain, name)
    if not _loaded and key not in _ready:
        _load_one(domain, name)
    for entry in reversed(_TABLE.get(key, ())):
        if entry.since <= version:
            return entry
    return None


def select(node: Node) -> Op | None:
    """The entry that a node calls, or None where minifer has none."""
    return find(node.domain, node.op, node.version)


def registered() -> Mapping[tuple[str, str], Sequence[Op]]:
    """All entries: (domain, name) -> entries by rising version."""
    _load()
    return _TABLE
