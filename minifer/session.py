"""Session: a model, made ready to run."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from minifer import dtypes
from minifer.errors import InputError, MiniferError, UnsupportedError
from minifer.ir import (
    Dim,
    Graph,
    MapType,
    Model,
    Node,
    OptionalType,
    SequenceType,
    SparseTensor,
    SparseTensorType,
    TensorType,
    Type,
    type_of_value,
)
from minifer.onnx_io import read_model
from minifer.ops import registry
from minifer.passes import optimise
from minifer.plan.plan import Plan
from minifer.runtime import kernels_available
from minifer.runtime.execute import Executor, Limits, Settings

if TYPE_CHECKING:
    from minifer.runtime.profile_report import Profile


EXECUTORS_KEPT = 16  # sets of overridden initialisers whose plans are kept


@dataclass(frozen=True)
class Value:
    """An input or output of a model. `shape` holds sizes, symbol names, or None where a dimension is unknown;
    it is None for an unknown rank, and for what is no tensor."""

    name: str
    type: Type | None

    @property
    def dtype(self) -> str:
        """Element type name, such as "float32"; "" for what is no tensor."""
        return self.type.dtype if isinstance(self.type, TensorType | SparseTensorType) else ""

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """Declared shape."""
        return self.type.shape if isinstance(self.type, TensorType | SparseTensorType) else None

    def __str__(self) -> str:
        return f"{self.name}: {self.type if self.type is not None else '?'}"


def load(
    source: Any,
    *,
    threads: int | None = None,
    optimize: bool = True,
    limits: Limits | Mapping[str, Any] | None = None,
    executor: str = "auto",
) -> Session:
    """Read a model and make it ready to run.

    `source`: a path, bytes, a binary file object or an `onnx.ModelProto`. `threads`: how many threads a run may use
    (default: the CPUs that this process may use). `limits`: a `Limits` or a dict of its fields. `executor`: "native"
    (kernels), "reference" (NumPy alone), or "auto" (native where kernels can be built or loaded).

    Raises ModelError for what is no valid model, UnsupportedError listing all operators that minifer lacks.
    """
    return Session(read_model(source), threads=threads, optimize=optimize, limits=limits, executor=executor)


class Session:
    """Runs a model. May be used from many threads at once, pickled, and used after fork."""

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None = None,
        optimize: bool = True,
        limits: Limits | Mapping[str, Any] | None = None,
        executor: str = "auto",
    ):
        if executor not in ("auto", "native", "reference"):
            raise InputError(f"executor must be 'auto', 'native' or 'reference', not {executor!r}")
        if threads is not None and not (isinstance(threads, int) and threads >= 1):
            raise InputError(f"threads must be a number from 1, or None for all CPUs, not {threads!r}")
        limits = _limits(limits)
        if any(node.op == "Gradient" for node in model.graph.nodes):
            from minifer.passes.gradient import expand_gradients

            model = replace(model, graph=expand_gradients(model.graph))
        check_supported(model.graph)
        self._options = {"threads": threads, "optimize": optimize, "limits": limits, "executor": executor}
        self.model = model
        native = executor == "native" or (executor == "auto" and kernels_available())
        self.settings = Settings(threads or _cpus(), native, limits)
        self.graph = optimise(model.graph, limits.max_bytes) if optimize else model.graph
        self._executors: dict[frozenset[str], Executor] = {}
        self._closed = False
        graph = model.graph
        self.inputs = [Value(n, graph.types.get(n)) for n in graph.inputs if n not in graph.consts]
        self.overridable = [Value(n, graph.types.get(n)) for n in graph.inputs if n in graph.consts]
        self.outputs = [Value(n, graph.types.get(n)) for n in graph.outputs]

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the model on named inputs; returns the outputs by name (all, or those asked for).

        Tensors are ndarrays (anything `np.asarray` takes whose dtype fits), sequences lists, optionals a value or None,
        maps dicts. Raises InputError for a missing or unknown name, a wrong dtype, rank or size.
        """
        if self._closed:
            raise MiniferError("the session is closed")
        if isinstance(outputs, str):
            raise InputError(f"outputs is a list of names: pass [{outputs!r}]")
        unknown = [n for n in outputs or () if n not in self.graph.outputs]
        if unknown:
            has = ", ".join(self.graph.outputs)
            raise InputError(f"the model has no output {', '.join(map(repr, unknown))}; it has {has}")
        values = self._checked(feeds)
        results = dict(zip(self.graph.outputs, self._executor(values).run(values)))
        return results if outputs is None else {n: results[n] for n in outputs}

    def __call__(self, *args: Any, **named: Any) -> dict[str, Any]:
        """`session(x, y)` or `session(name=x)`: inputs by position or name."""
        if len(args) > len(self.inputs):
            raise InputError(f"{len(args)} inputs were given, the model takes {len(self.inputs)}: {self._expected()}")
        feeds = {v.name: a for v, a in zip(self.inputs, args)}
        double = feeds.keys() & named.keys()
        if double:
            raise InputError(f"input {', '.join(sorted(double))} was given by position and by name")
        return self.run({**feeds, **named})

    def plan(self, feeds: Mapping[str, Any]) -> Plan:
        """The plan of the first stage for inputs of these types and shapes; made and kept, not run."""
        values = self._checked(feeds)
        return self._executor(values).stage_for(values).plan

    def profile(self, feeds: Mapping[str, Any], runs: int = 20, warmup: int = 3) -> Profile:
        """Time the steps of a run on these inputs; `print(session.profile(feeds))` lists them, the slowest first.

        Raises InputError as `run` does. See minifer.runtime.profile for what is measured.
        """
        from minifer.runtime.profile import profile

        return profile(lambda: self.run(feeds), self._executor(self._checked(feeds)), runs, warmup)

    def _executor(self, values: Mapping[str, Any]) -> Executor:
        overridden = frozenset(n for n in values if n in self.graph.consts)
        found = self._executors.get(overridden)
        while found is None and len(self._executors) >= EXECUTORS_KEPT:
            with contextlib.suppress(KeyError, StopIteration):  # another thread may have been quicker
                del self._executors[next(iter(self._executors))]
        if found is None:
            consts = {n: v for n, v in self.graph.consts.items() if n not in overridden}
            graph = self.graph.with_(consts=consts)
            found = self._executors[overridden] = Executor(graph, self.settings, specialise=True)
        return found

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(feeds, Mapping):
            raise InputError(f"run takes a dict of input name -> array, not {type(feeds).__name__}")
        values: dict[str, Any] = {}
        for name in self.graph.inputs:
            if name in feeds:
                values[name] = check_value(feeds[name], name, self.model.graph.types.get(name))
        missing = [v.name for v in self.inputs if v.name not in values]
        unknown = [n for n in feeds if n not in values]
        if missing or unknown:
            parts = [f"missing input {', '.join(missing)}"] if missing else []
            parts += [f"unknown input {', '.join(map(str, unknown))}"] if unknown else []
            raise InputError(f"{'; '.join(parts)}. The model takes {self._expected()}")
        return values

    def _expected(self) -> str:
        return "; ".join(str(v) for v in self.inputs) or "no inputs"

    def save(self, path: str | os.PathLike[str], external_data: bool | None = None) -> None:
        """Write the graph as it runs (after the optimising passes) as an .onnx file."""
        from minifer.onnx_io import save_model

        save_model(replace(self.model, graph=self.graph), path, external_data=external_data)

    def close(self) -> None:
        """Free plans, packed weights and workspaces; the session cannot run any more."""
        self._closed = True
        self._executors.clear()
        self.settings.plans.clear()
        self.settings.workspaces.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        from minifer.onnx_io import write_model

        return _restore, (write_model(self.model), self._options)

    def __repr__(self) -> str:
        return f"<minifer.Session {self.model.graph.name!r}: {self._expected()}>"


def _restore(data: bytes, options: dict[str, Any]) -> Session:
    return Session(read_model(data), **options)


def _limits(given: Limits | Mapping[str, Any] | None) -> Limits:
    if isinstance(given, Limits):
        return given
    known = {f.name for f in fields(Limits)}
    if not isinstance(given, Mapping | None) or (given and set(given) - known):
        raise InputError(f"limits must be a dict with the keys {', '.join(sorted(known))}, not {given!r}")
    return Limits(**(given or {}))


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_supported(graph: Graph) -> None:
    """Raise UnsupportedError that lists every operator minifer lacks, with counts and the first node of each;
    ModelError for a node that does not fit its operator (number of inputs, attributes)."""
    missing: Counter[tuple[str, str, int]] = Counter()
    first: dict[tuple[str, str, int], str] = {}
    found: list[tuple[registry.Op, Node]] = []

    def visit(g: Graph) -> None:
        for node in g.nodes:
            op = registry.select(node)
            if op is not None:
                found.append((op, node))
            else:
                key = (node.domain, node.op, node.version)
                missing[key] += 1
                first.setdefault(key, node.name or next(filter(None, node.outputs), "?"))
            for sub in node.subgraphs:
                visit(sub)

    visit(graph)
    if missing:
        lines = [
            f"  {domain + '::' if domain else ''}{op} (opset {version}): {count} node{'s' if count > 1 else ''}, "
            f"first '{first[domain, op, version]}'"
            for (domain, op, version), count in sorted(missing.items())
        ]
        raise UnsupportedError(
            "the model uses operators that minifer does not have:\n" + "\n".join(lines)
            + "\nRegister them with minifer.register(minifer.Op(...)), or export the model without them."
        )  # fmt: skip
    for op, node in found:
        op.check(node)


def check_value(value: Any, name: str, kind: Type | None) -> Any:
    """`value` as the engine holds it, checked against a declared type; InputError where it does not fit."""
    if isinstance(kind, OptionalType):
        return None if value is None else check_value(value, name, kind.element)
    if isinstance(kind, SequenceType):
        if not isinstance(value, list | tuple):
            raise InputError(f"input '{name}' is a sequence: pass a list, not {type(value).__name__}")
        return [check_value(v, f"{name}[{i}]", kind.element) for i, v in enumerate(value)]
    if isinstance(kind, MapType):
        if not isinstance(value, dict):
            raise InputError(f"input '{name}' is a map: pass a dict, not {type(value).__name__}")
        return _onnx_value(value, name)
    if isinstance(kind, SparseTensorType):
        if not isinstance(value, SparseTensor):
            raise InputError(f"input '{name}' is sparse: pass a minifer.ir.SparseTensor, not {type(value).__name__}")
        return value
    if value is None:
        if kind is None:
            return None
        raise InputError(f"input '{name}' is None, expected {kind}")
    if kind is None and isinstance(value, list | dict):
        return _onnx_value(value, name)
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, and whatever an object's __array__ raises
        wanted = f"; the model expects {kind}" if kind is not None else ""
        raise InputError(f"input '{name}' cannot be made an array: {error}{wanted}") from error
    if array.dtype == object and (kind is None or kind.dtype != "string"):
        odd = next((type(v).__name__ for v in array.reshape(-1).tolist() if not isinstance(v, str | bytes)), "")
        if odd:
            wanted = f", the model expects {kind}" if kind is not None else ""
            raise InputError(f"input '{name}' is an array of Python objects ({odd}){wanted}; pass numbers or strings")
    if array.dtype.kind in "OUST" or (kind is not None and kind.dtype == "string"):
        array = _strings(array, name)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        dtype = dtypes.from_numpy(array.dtype)
    except UnsupportedError as error:
        raise InputError(f"input '{name}': {error}") from error
    if kind is None:
        return array
    if dtype != kind.dtype:
        raise InputError(
            f"input '{name}' has dtype {dtype}, the model expects {kind}; convert it with .astype({kind.dtype!r})"
        )
    if kind.shape is not None:
        fits = len(kind.shape) == array.ndim and all(
            not isinstance(want, int) or want == got for want, got in zip(kind.shape, array.shape)
        )
        if not fits:
            raise InputError(f"input '{name}' has shape {list(array.shape)}, the model expects {kind}")
    return array


def _onnx_value(value: Any, name: str) -> Any:
    try:
        type_of_value(value)
    except (TypeError, MiniferError) as error:
        raise InputError(f"input '{name}' holds what ONNX has no type for: {error}") from error
    return value


def _strings(array: np.ndarray, name: str) -> np.ndarray:
    def text(v: Any) -> str:
        if isinstance(v, bytes):
            return v.decode("utf-8", "replace")
        if isinstance(v, str):
            return v
        raise InputError(f"input '{name}' must hold strings, found {type(v).__name__}")

    return np.array([text(v) for v in array.reshape(-1).tolist()], object).reshape(array.shape)
