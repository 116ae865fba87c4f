"""Session: a model, made ready to run.

A model that was planned before is run from what is kept of it on disk (see minifer.runtime.stored); it is then read
only when something is asked that needs its graph. That is why this module imports little at its head.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minifer.errors import InputError, MiniferError, ModelError
from minifer.locks import Lock
from minifer.runtime import stored

if TYPE_CHECKING:
    from minifer.ir import Dim, Graph, Model, Type
    from minifer.plan.plan import Plan
    from minifer.runtime.execute import Executor
    from minifer.runtime.profile_report import Profile
    from minifer.runtime.settings import Limits, Settings
    from minifer.runtime.storing import Keeper


EXECUTORS_KEPT = 16  # sets of overridden initialisers whose plans are kept


class Value:
    """An input or output of a model. `shape` holds sizes, symbol names, or None where a dimension is unknown;
    it is None for an unknown rank, and for what is no tensor."""

    __slots__ = ("name", "type")

    def __init__(self, name: str, type: Type | None):
        self.name = name
        self.type = type

    @property
    def dtype(self) -> str:
        """Element type name, such as "float32"; "" for what is no tensor."""
        return getattr(self.type, "dtype", "")

    @property
    def shape(self) -> tuple[Dim, ...] | None:
        """Declared shape."""
        return getattr(self.type, "shape", None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and (self.name, self.type) == (other.name, other.type)

    def __hash__(self) -> int:
        return hash((self.name, self.type))

    def __repr__(self) -> str:
        return f"Value(name={self.name!r}, type={self.type!r})"

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
    options: dict[str, Any] = {"threads": threads, "optimize": optimize, "limits": limits, "executor": executor}
    _check_options(threads, executor)
    file = None
    if not limits and executor != "reference":
        file = stored.model_file(source, (threads or _cpus(), bool(optimize), executor))
    found = None if file is None else stored.find(file)
    if found is not None:
        return Session._from_stored(found, options)
    from minifer.collector import collector_paused
    from minifer.onnx_io import read_model

    with collector_paused():
        if file is not None:
            return Session._to_store(file, options)
        return Session(read_model(source), **options)


class Session:
    """Runs a model. May be used from many threads at once, pickled, and used after fork."""

    model: Model
    graph: Graph  # as it runs: after the passes
    settings: Settings
    inputs: list[Value]
    overridable: list[Value]
    outputs: list[Value]
    metadata: dict[str, str]
    name: str
    _executors: dict[frozenset[str], Executor]

    def __init__(
        self,
        model: Model,
        *,
        threads: int | None = None,
        optimize: bool = True,
        limits: Limits | Mapping[str, Any] | None = None,
        executor: str = "auto",
    ):
        _check_options(threads, executor)
        self._begin({"threads": threads, "optimize": optimize, "limits": limits, "executor": executor})
        self._set_up(model)

    def _begin(self, options: dict[str, Any]) -> None:
        self._options = options
        self._closed = False
        self._stored: stored.Stored | None = None
        self._keeper: Keeper | None = None
        self._to_keep: tuple[Any, ...] | None = None  # what a keeper is made of, once there is a plan to keep
        self._lock = Lock()

    @classmethod
    def _from_stored(cls, found: stored.Stored, options: dict[str, Any]) -> Session:
        """A session that runs what is kept on disk."""
        session = cls.__new__(cls)
        session._begin(options)
        session._stored = found
        return session

    @classmethod
    def _to_store(cls, file: stored.ModelFile, options: dict[str, Any]) -> Session:
        """A session of a model whose plans may be worth keeping."""
        began = time.monotonic()
        from minifer.onnx_io import read_data

        model, beside = read_data(memoryview(file.data), file.path or None)
        session = cls(model, **options)
        seconds = time.monotonic() - began
        if file.lasting:
            with contextlib.suppress(OSError):
                session._to_keep = (file, [(path, stored.stamp_of(os.stat(path))) for path in beside], seconds)
        return session

    def _set_up(self, model: Model) -> None:
        """Everything that needs the graph."""
        from minifer.passes import optimise
        from minifer.runtime.check import check_supported
        from minifer.runtime.settings import Settings, limits_of

        limits = limits_of(self._options["limits"])
        if any(node.op == "Gradient" for node in model.graph.nodes):
            from minifer.passes.gradient import expand_gradients

            model = model.with_(graph=expand_gradients(model.graph))
        check_supported(model.graph)
        self._options["limits"] = limits
        executor = self._options["executor"]
        native = None if executor == "auto" else executor == "native"
        self.settings = Settings(self._options["threads"] or _cpus(), native, limits)
        self.graph = optimise(model.graph, limits.max_bytes) if self._options["optimize"] else model.graph
        self._executors = {}
        graph = model.graph
        self.inputs = [Value(n, graph.types.get(n)) for n in graph.inputs if n not in graph.consts]
        self.overridable = [Value(n, graph.types.get(n)) for n in graph.inputs if n in graph.consts]
        self.outputs = [Value(n, graph.types.get(n)) for n in graph.outputs]
        self.metadata, self.name = dict(model.metadata), graph.name
        self.model = model

    def __getattr__(self, name: str) -> Any:
        """What a session that runs from disk has not made yet."""
        found = self.__dict__.get("_stored")
        if found is None or name not in Session.__annotations__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        about = found.about
        if name in ("inputs", "overridable", "outputs"):
            from minifer.runtime.described import type_of

            values = [Value(n, type_of(kind)) for n, kind in about[name]]
            return self.__dict__.setdefault(name, values)
        if name in ("metadata", "name"):
            return about[name]
        self._read_in_earnest()
        return getattr(self, name)

    def _read_in_earnest(self) -> None:
        """Read the model that has been run from disk so far, and let go of what is kept of it."""
        from minifer.onnx_io import read_data

        with self._lock:
            found = self._stored
            if found is None:
                return
            if self._closed:
                raise MiniferError("the session is closed")
            found.model.check()
            began = time.monotonic()
            model, beside = read_data(memoryview(found.model.data), found.model.path or None)
            if any(stored.stamp_of(os.stat(path)) != stamp for path, stamp in found.about["files"]):
                raise ModelError("the files with the model's weights have changed: load the model again")
            self._set_up(model)
            with contextlib.suppress(OSError):
                stamps = [(path, stored.stamp_of(os.stat(path))) for path in beside]
                self._to_keep = (found.model, stamps, time.monotonic() - began)
            self._stored = None

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Run the model on named inputs; returns the outputs by name (all, or those asked for).

        Tensors are ndarrays (anything `np.asarray` takes whose dtype fits), sequences lists, optionals a value or None,
        maps dicts. Raises InputError for a missing or unknown name, a wrong dtype, rank or size.
        """
        if self._closed:
            raise MiniferError("the session is closed")
        found = self._stored
        if found is not None and isinstance(feeds, Mapping) and not isinstance(outputs, str):
            results = found.run(feeds)
            if results is not None:
                if outputs is None:
                    return results
                names = list(results)
                if all(n in names for n in outputs):
                    return {n: results[n] for n in outputs}
        if isinstance(outputs, str):
            raise InputError(f"outputs is a list of names: pass [{outputs!r}]")
        unknown = [n for n in outputs or () if n not in self.graph.outputs]
        if unknown:
            has = ", ".join(self.graph.outputs)
            raise InputError(f"the model has no output {', '.join(map(repr, unknown))}; it has {has}")
        values = self._checked(feeds)
        executor = self._executor(values)
        made = dict(zip(self.graph.outputs, executor.run(values)))
        if self._keeper is not None or self._to_keep is not None:
            self._keep_plan(executor, values)
        return made if outputs is None else {n: made[n] for n in outputs}

    def _keep_plan(self, executor: Executor, values: Mapping[str, Any]) -> None:
        if any(n in self.graph.consts for n in values):
            return
        with self._lock:
            if self._to_keep is not None and self.settings.native:
                from minifer.runtime.storing import Keeper

                self._keeper = Keeper(self.model, *self._to_keep)
            self._to_keep = None
            if self._keeper is not None:
                self._keeper.after_run(executor, values)
                if self._keeper.tries <= 0:
                    self._keeper = None

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
            from minifer.runtime.execute import Executor

            kind: type[Executor] = Executor
            if int(os.environ.get("MINIFER_DEBUG") or 0) >= 2:
                from minifer.runtime.watch import WatchedExecutor

                kind = WatchedExecutor
            found = self._executors[overridden] = kind(graph, self.settings, specialise=True)
        return found

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        from minifer.runtime.check import check_value

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

        save_model(self.model.with_(graph=self.graph), path, external_data=external_data)

    def close(self) -> None:
        """Free plans, packed weights and workspaces; the session cannot run any more."""
        with self._lock:
            self._closed = True
            self._stored = self._keeper = self._to_keep = None
            if "settings" in self.__dict__:
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
        return f"<minifer.Session {self.name!r}: {self._expected()}>"


def _restore(data: bytes, options: dict[str, Any]) -> Session:
    from minifer.onnx_io import read_model

    return Session(read_model(data), **options)


def _check_options(threads: int | None, executor: str) -> None:
    if executor not in ("auto", "native", "reference"):
        raise InputError(f"executor must be 'auto', 'native' or 'reference', not {executor!r}")
    if threads is not None and not (isinstance(threads, int) and threads >= 1):
        raise InputError(f"threads must be a number from 1, or None for all CPUs, not {threads!r}")


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
