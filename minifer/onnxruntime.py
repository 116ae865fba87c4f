"""The Python interface of ONNX Runtime, with minifer behind it.

    import minifer.onnxruntime as ort            # in place of `import onnxruntime as ort`

    python -m minifer.onnxruntime script.py ...  # an unmodified program, `import onnxruntime` giving this module
    python -m minifer.onnxruntime -m package ...

Names, arguments and behaviour follow the Python API documentation of ONNX Runtime. There is one provider,
CPUExecutionProvider; others in a list are passed over with a warning, as ONNX Runtime does. Options that steer what
minifer has no part in (arenas, logging) are kept and do nothing. Errors carry ONNX Runtime's class names and are
minifer's errors too: `InvalidArgument` is an `InputError`.
"""

from __future__ import annotations

import enum
import operator
import os
import runpy
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minifer import __version__ as _minifer_version
from minifer import dtypes, ir
from minifer.errors import InputError, LimitError, MiniferError, ModelError, ShapeError, UnsupportedError
from minifer.session import Session, Value, load

#: The ONNX Runtime version whose interface this follows; programs compare it.
__version__ = "1.20.0"

_PROVIDER = "CPUExecutionProvider"


# ---- errors --------------------------------------------------------------------------------------------------------


class Fail(MiniferError):
    """ONNX Runtime's general failure."""


class RuntimeException(MiniferError):
    """A failure while a model ran."""


class InvalidArgument(InputError):
    """An input or output name, dtype or shape that does not fit the model."""


class MissingInput(InvalidArgument, ValueError):
    """A required input is missing (ONNX Runtime raises a plain ValueError here)."""


class NoSuchFile(InputError, FileNotFoundError):
    """The model file does not exist."""


class InvalidProtobuf(ModelError):
    """The file is no ONNX model, or not a valid one."""


class InvalidGraph(InvalidProtobuf):
    """The same; kept apart for programs that catch it by this name."""


class NotSupported(UnsupportedError):
    """The model uses operators or features that minifer lacks, or a call has no counterpart here. The name
    `NotImplemented`, which is Python's own, is given to it where ONNX Runtime has it."""


# In this order: the first class that an error is an instance of.
_TRANSLATION: tuple[tuple[type[MiniferError], type[MiniferError]], ...] = (
    (InputError, InvalidArgument),
    (ShapeError, InvalidArgument),
    (UnsupportedError, NotSupported),
    (ModelError, InvalidGraph),
    (LimitError, RuntimeException),
    (MiniferError, Fail),
)
_OWN = (Fail, RuntimeException, InvalidArgument, NoSuchFile, InvalidProtobuf, NotSupported)


@contextmanager
def _translated() -> Iterator[None]:
    """minifer's errors leave under ONNX Runtime's names."""
    try:
        yield
    except MiniferError as error:
        if isinstance(error, _OWN):
            raise
        name = next(target for source, target in _TRANSLATION if isinstance(error, source))
        raise name(str(error)) from error


# ---- options -------------------------------------------------------------------------------------------------------


class GraphOptimizationLevel(enum.IntEnum):
    """minifer knows two: ORT_DISABLE_ALL runs the graph as it is written, every other one optimises it."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """Steps run in order, each on all threads, whatever is chosen."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class ExecutionOrder(enum.IntEnum):
    """No influence here."""

    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2


class _Options:
    """Class attributes are the options and their defaults. An unknown option is an AttributeError and a wrong type a
    TypeError, as with ONNX Runtime's own classes."""

    def __init__(self) -> None:
        self._entries: dict[str, str] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            value = self._checked(name, value)
        super().__setattr__(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        default = getattr(type(self), name, None)
        if default is None or callable(default):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        if isinstance(default, enum.IntEnum):
            return type(default)(value)
        if isinstance(default, int) and not isinstance(default, bool):
            return operator.index(value)
        if not isinstance(value, type(default)):
            raise TypeError(f"{type(self).__name__}.{name} is {type(default).__name__}, not {type(value).__name__}")
        return value

    def _get(self, key: str) -> str:
        if key not in self._entries:
            raise RuntimeError(f"{type(self).__name__} does not have configuration with key: {key}")
        return self._entries[key]


class SessionOptions(_Options):
    """How a session is made. `intra_op_num_threads` (0: all CPUs), `graph_optimization_level`,
    `optimized_model_filepath` and the free dimension overrides have an effect; the rest is kept."""

    enable_cpu_mem_arena = True
    enable_mem_pattern = True
    enable_mem_reuse = True
    enable_profiling = False
    execution_mode = ExecutionMode.ORT_SEQUENTIAL
    execution_order = ExecutionOrder.DEFAULT
    graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
    inter_op_num_threads = 0
    intra_op_num_threads = 0
    log_severity_level = -1
    log_verbosity_level = 0
    logid = ""
    optimized_model_filepath = ""
    profile_file_prefix = "onnxruntime_profile_"
    use_deterministic_compute = False
    use_per_session_threads = True

    def __init__(self) -> None:
        super().__init__()
        self._dimensions: dict[str, int] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keep a configuration entry."""
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """A configuration entry; RuntimeError where there is none."""
        return self._get(key)

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Fix a symbolic dimension of the model's inputs to a size."""
        self._dimensions[name] = int(size)

    def register_custom_ops_library(self, path: str) -> None:
        """Compiled operator libraries speak ONNX Runtime's C interface, which minifer does not have."""
        raise NotSupported(
            f"minifer cannot load the operator library '{path}': write the operator in Python and add it with "
            "minifer.register(minifer.Op(...))"
        )


class RunOptions(_Options):
    """How one run is made. `terminate` set before a run makes it fail; the rest is kept."""

    log_severity_level = -1
    log_verbosity_level = 0
    logid = ""
    only_execute_path_to_fetches = False
    terminate = False
    training_mode = False

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Keep a configuration entry."""
        self._entries[key] = value

    def get_run_config_entry(self, key: str) -> str:
        """A configuration entry; RuntimeError where there is none."""
        return self._get(key)


# ---- what a session tells of its model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeArg:
    """An input or output: `type` as "tensor(float)", `shape` a list of sizes, symbol names and None."""

    name: str
    type: str
    shape: list[int | str | None]

    def __str__(self) -> str:
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape!r})"


@dataclass(frozen=True)
class ModelMetadata:
    """What the model file says of itself. `graph_description` is "": a graph's own documentation string is not kept."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


_ELEMENT_NAMES = {"float32": "float", "float64": "double"}


def type_name(kind: ir.Type | None) -> str:
    """A type as ONNX Runtime writes it: tensor(float), seq(tensor(int64)), map(string,tensor(float)), optional(...)."""
    if isinstance(kind, ir.TensorType):
        return f"tensor({_ELEMENT_NAMES.get(kind.dtype, kind.dtype)})"
    if isinstance(kind, ir.SparseTensorType):
        return f"sparse_tensor({_ELEMENT_NAMES.get(kind.dtype, kind.dtype)})"
    if isinstance(kind, ir.SequenceType):
        return f"seq({type_name(kind.element)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({type_name(kind.element)})"
    if isinstance(kind, ir.MapType):
        return f"map({kind.key},{type_name(kind.value)})"
    return ""


def _node_arg(value: Value) -> NodeArg:
    return NodeArg(value.name, type_name(value.type), list(value.shape or ()))


# ---- the session ---------------------------------------------------------------------------------------------------


class InferenceSession:
    """A model ready to run.

    `path_or_bytes`: the path of an .onnx file, or its bytes. `providers`: names, or (name, options) pairs; those that
    are not CPUExecutionProvider are passed over with a warning. Further keyword arguments of ONNX Runtime are taken
    and do nothing. `session.minifer` is the `minifer.Session` that does the work.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(path_or_bytes, str | bytes | os.PathLike):
            raise TypeError(f"Unable to load from type '{type(path_or_bytes)}'")
        if not isinstance(path_or_bytes, bytes) and not os.path.exists(path_or_bytes):
            raise NoSuchFile(f"the model file '{os.fspath(path_or_bytes)}' does not exist")
        self._options = sess_options or SessionOptions()
        self._provider_options: dict[str, str] = {}
        self.set_providers(providers, provider_options)
        options = self._options
        if options.enable_profiling:
            raise NotSupported("enable_profiling asks for a trace in ONNX Runtime's form, which minifer does not write")
        if options.intra_op_num_threads < 0:
            raise InvalidArgument(f"intra_op_num_threads is 0 (all) or more, not {options.intra_op_num_threads}")
        with _translated():
            self.minifer: Session = load(
                path_or_bytes,
                threads=options.intra_op_num_threads or None,
                optimize=options.graph_optimization_level != GraphOptimizationLevel.ORT_DISABLE_ALL,
            )
            if options.optimized_model_filepath:
                self.minifer.save(options.optimized_model_filepath)

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: RunOptions | None = None,
    ) -> list[Any]:
        """Run the model: the named outputs in that order, or all of them for None. Lists in place of arrays take the
        dtype that the model declares."""
        if run_options is not None and run_options.terminate:
            raise Fail("the run was stopped: RunOptions.terminate is set")
        missing = [value.name for value in self.minifer.inputs if value.name not in input_feed]
        if missing:
            raise MissingInput(f"Required inputs ({missing}) are missing from input feed ({list(input_feed)}).")
        with _translated():
            feeds = {name: self._array(name, value) for name, value in input_feed.items()}
            results = self.minifer.run(feeds, output_names or None)
        return [results[name] for name in output_names] if output_names else list(results.values())

    def _array(self, name: str, value: Any) -> Any:
        """A list given for a tensor, as an array of the declared dtype; anything else as it is."""
        if not isinstance(value, list | tuple | int | float):
            return value
        known = [*self.minifer.inputs, *self.minifer.overridable]
        kind = next((v.type for v in known if v.name == name), None)
        if not isinstance(kind, ir.TensorType):
            return value
        try:
            return np.asarray(value, dtypes.to_numpy(kind.dtype))
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidArgument(f"input '{name}' cannot be made a {kind}: {error}") from error

    def get_inputs(self) -> list[NodeArg]:
        """The inputs that a run needs."""
        return [_node_arg(value) for value in self._with_overrides(self.minifer.inputs)]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs."""
        return [_node_arg(value) for value in self._with_overrides(self.minifer.outputs)]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """The inputs that have a default value in the model."""
        return [_node_arg(value) for value in self.minifer.overridable]

    def _with_overrides(self, values: Sequence[Value]) -> Iterator[Value]:
        sizes = self._options._dimensions
        for value in values:
            kind = value.type
            if sizes and isinstance(kind, ir.TensorType) and kind.shape is not None:
                shape = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in kind.shape)
                value = Value(value.name, ir.TensorType(kind.dtype, shape))
            yield value

    def get_modelmeta(self) -> ModelMetadata:
        """Producer, names, version and the metadata map."""
        model = self.minifer.model
        return ModelMetadata(
            model.producer, model.graph.name, model.domain, model.doc, "", model.model_version, dict(model.metadata)
        )

    def get_session_options(self) -> SessionOptions:
        """The options that the session was made with."""
        return self._options

    def get_providers(self) -> list[str]:
        """Always CPUExecutionProvider alone."""
        return [_PROVIDER]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options that came with CPUExecutionProvider."""
        return {_PROVIDER: dict(self._provider_options)}

    def set_providers(
        self,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Take a list of providers; all but CPUExecutionProvider are passed over with a warning."""
        options = list(provider_options or ())
        for i, provider in enumerate(providers or ()):
            pair = (provider, options[i] if i < len(options) else {}) if isinstance(provider, str) else provider
            if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
                raise ValueError(f"'providers' holds names or (name, options) pairs, not {provider!r}")
            name, own = pair
            if name == _PROVIDER:
                self._provider_options = {key: str(value) for key, value in (own or {}).items()}
            else:
                warnings.warn(f"provider '{name}' is not available; {_PROVIDER} runs the model", stacklevel=3)

    def enable_fallback(self) -> None:
        """There is nothing to fall back to."""

    def disable_fallback(self) -> None:
        """There is nothing to fall back to."""

    def end_profiling(self) -> str:
        """minifer writes no profile in ONNX Runtime's form."""
        raise NotSupported("no profile was recorded: minifer writes none in ONNX Runtime's form")


# ---- functions of the module ---------------------------------------------------------------------------------------


def get_available_providers() -> list[str]:
    """CPUExecutionProvider alone."""
    return [_PROVIDER]


def get_all_providers() -> list[str]:
    """CPUExecutionProvider alone."""
    return [_PROVIDER]


def get_device() -> str:
    """CPU."""
    return "CPU"


def get_version_string() -> str:
    """The version whose interface this follows."""
    return __version__


def get_build_info() -> str:
    """What stands behind the interface."""
    return f"minifer {_minifer_version}, as onnxruntime {__version__}"


def set_default_logger_severity(severity: int) -> None:
    """Check the level (0 verbose .. 4 fatal); minifer writes no log."""
    if severity not in range(5):
        raise RuntimeError(f"the severity is 0 (verbose) to 4 (fatal), not {severity}")


def set_default_logger_verbosity(verbosity: int) -> None:
    """minifer writes no log."""


def set_seed(seed: int) -> None:
    """Random operators of a model draw by their own seed attribute; the process-wide one is NumPy's."""
    np.random.seed(seed & 0xFFFFFFFF)


def enable_telemetry_events() -> None:
    """There is no telemetry."""


def disable_telemetry_events() -> None:
    """There is no telemetry."""


def preload_dlls(*_args: Any, **_kwargs: Any) -> None:
    """There are none."""


# ---- standing in for onnxruntime -----------------------------------------------------------------------------------

_ERRORS = {
    "Fail": Fail, "RuntimeException": RuntimeException, "InvalidArgument": InvalidArgument, "NoSuchFile": NoSuchFile,
    "InvalidProtobuf": InvalidProtobuf, "InvalidGraph": InvalidGraph, "NotImplemented": NotSupported,
}  # fmt: skip


def _submodule(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name, "Part of minifer's stand-in for onnxruntime.")
    module.__dict__.update(names)
    sys.modules[name] = module
    return module


def install() -> None:
    """From now on `import onnxruntime` in this process gives this module. An onnxruntime that is already imported
    keeps the references that were taken to it."""
    this = sys.modules[InferenceSession.__module__]
    classes = {n: getattr(this, n) for n in ("InferenceSession", "SessionOptions", "RunOptions", "NodeArg")}
    classes |= {n: getattr(this, n) for n in ("ModelMetadata", "GraphOptimizationLevel", "ExecutionMode")}
    state = _submodule("onnxruntime.capi.onnxruntime_pybind11_state", **_ERRORS, **classes)
    inference = _submodule("onnxruntime.capi.onnxruntime_inference_collection", **classes)
    pybind = _submodule("onnxruntime.capi._pybind_state", **_ERRORS, **classes)
    capi = _submodule(
        "onnxruntime.capi", onnxruntime_pybind11_state=state, onnxruntime_inference_collection=inference,
        _pybind_state=pybind, __path__=[],
    )  # fmt: skip
    this.capi = capi  # type: ignore[attr-defined]
    sys.modules["onnxruntime"] = this


_USAGE = """usage: python -m minifer.onnxruntime script.py [arguments]
       python -m minifer.onnxruntime -m package [arguments]"""


def main(arguments: Sequence[str]) -> int:
    """Run a program with this module standing in for onnxruntime."""
    if not arguments or arguments[0] in ("-h", "--help") or (arguments[0] == "-m" and len(arguments) < 2):
        print(_USAGE, file=sys.stderr if not arguments else sys.stdout)
        return 0 if arguments and arguments[0] != "-m" else 2
    install()
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return 0
    script = arguments[0]
    if not os.path.exists(script):
        print(f"minifer.onnxruntime: no program '{script}'", file=sys.stderr)
        return 2
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    from minifer import onnxruntime as _this  # the module by its name, so that its classes exist once

    sys.exit(_this.main(sys.argv[1:]))
