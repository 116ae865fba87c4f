"""One engine in a process of its own: loads a model and times runs when it is told to.

`python -m minifer.tools.bench_worker ENGINE` reads commands from standard input and answers on standard output, both
as pickled dicts. It sleeps while it waits. Commands (key "do"):

* load: `model` (path), `threads`, `feeds` (input name -> value) -> `version`, `import_seconds`, `load_seconds`
* run: run once -> `seconds`
* outputs: run once -> `outputs` (name -> value)
* burst: `runs`, `warmup` -> `seconds`, a list
* finish: -> `peak_bytes`, and the process ends

An answer {"missing": text} says that the engine is not installed, {"error": text} that the command failed.

ENGINE is one of ENGINES, or MODULE:CLASS for any other: a class whose constructor takes (path, threads) and which has
`version` and `run(feeds) -> dict of outputs`.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol


class Engine(Protocol):
    """What can be measured."""

    version: str

    def __init__(self, path: str, threads: int): ...

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """One inference; outputs by name."""
        ...


class Minifer:
    """This package."""

    def __init__(self, path: str, threads: int):
        import minifer

        self.version = minifer.__version__
        self._session = minifer.load(path, threads=threads)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return self._session.run(feeds)


class OnnxRuntime:
    """ONNX Runtime on its CPU provider, with its default optimisation (all of it)."""

    def __init__(self, path: str, threads: int):
        ort = importlib.import_module("onnxruntime")
        self.version = ort.__version__
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(self._names, self._session.run(None, dict(feeds))))


class OpenVino:
    """OpenVINO's CPU plugin, tuned for latency, in the precision of the model.

    It would else round to bytes what is multiplied by weights of bytes that a model makes floats of, where the machine
    multiplies bytes: 1.5e-2 of the largest result for MiniLM.
    """

    EXACT = "DYNAMIC_QUANTIZATION_GROUP_SIZE"

    def __init__(self, path: str, threads: int):
        openvino = importlib.import_module("openvino")
        self.version = openvino.__version__.partition("-")[0]
        core = openvino.Core()
        model = core.read_model(path)
        self._names = [_openvino_name(output) for output in model.outputs]
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if self.EXACT in core.get_property("CPU", "SUPPORTED_PROPERTIES"):
            options[self.EXACT] = 0
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        results = self._request.infer(dict(feeds), share_inputs=True)
        return {name: results[i] for i, name in enumerate(self._names)}


def _openvino_name(output: Any) -> str:
    return next(iter(output.names), "")


class Tract:
    """tract, which is made for known shapes: the model is prepared when its first inputs come. Its Python package
    computes on one thread, whatever is asked for."""

    def __init__(self, path: str, threads: int):
        self._tract = importlib.import_module("tract")
        self.version = self._tract.version() + (" (1 thread)" if threads > 1 else "")
        self._model = self._tract.onnx().load(path)
        self._inputs = [self._model.input_name(i) for i in range(self._model.input_count())]
        self._outputs = [self._model.output_name(i) for i in range(self._model.output_count())]
        self._runnable: Any = None

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        if self._runnable is None:
            self._runnable = self._prepared(feeds)
        results = self._runnable.run([feeds[name] for name in self._inputs])
        return {name: result.to_numpy() for name, result in zip(self._outputs, results)}

    def _prepared(self, feeds: Mapping[str, Any]) -> Any:
        for i, name in enumerate(self._inputs):
            short = feeds[name].dtype.name.replace("float", "f").replace("uint", "u").replace("int", "i")
            self._model.set_input_fact(i, ",".join([*map(str, feeds[name].shape), short]))
        try:
            return self._model.into_model().into_runnable()
        except self._tract.TractError as error:
            raise RuntimeError(str(error).partition("Stack backtrace")[0].strip()) from None


ENGINES: dict[str, type[Engine]] = {
    "minifer": Minifer, "onnxruntime": OnnxRuntime, "openvino": OpenVino, "tract": Tract,
}  # fmt: skip
PACKAGES = {name: name for name in ENGINES} | {"minifer": "minifer.session"}


def engine_class(name: str) -> type[Engine]:
    """The class of an engine, its package imported. ImportError where it is not there."""
    if name in ENGINES:
        importlib.import_module(PACKAGES[name])
        return ENGINES[name]
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Server:
    """Carries out the commands."""

    def __init__(self, name: str):
        self.name = name
        self.engine: Engine | None = None
        self.feeds: Mapping[str, Any] = {}

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to one command; an exception becomes an answer too."""
        try:
            return getattr(self, f"do_{command.pop('do')}")(**command)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def do_load(self, model: str, threads: int, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Import the engine and load the model."""
        start = time.perf_counter()
        try:
            kind = engine_class(self.name)
        except ImportError as error:
            return {"missing": str(error)}
        imported = time.perf_counter()
        self.engine, self.feeds = kind(model, threads), feeds
        loaded = time.perf_counter()
        return {
            "version": self.engine.version,
            "import_seconds": imported - start,
            "load_seconds": loaded - imported,
        }

    def do_run(self) -> dict[str, Any]:
        """One run; the outputs stay here."""
        return {"seconds": self._timed(1)[0]}

    def do_outputs(self) -> dict[str, Any]:
        """One run whose outputs are sent."""
        assert self.engine is not None
        return {"outputs": dict(self.engine.run(self.feeds))}

    def do_burst(self, runs: int, warmup: int) -> dict[str, Any]:
        """Timed runs after untimed ones."""
        self._timed(warmup)
        return {"seconds": self._timed(runs)}

    def do_finish(self) -> dict[str, Any]:
        """The most memory that this process has held."""
        return {"peak_bytes": peak_bytes()}

    def _timed(self, runs: int) -> list[float]:
        assert self.engine is not None, "load comes first"
        run, feeds, clock, seconds = self.engine.run, self.feeds, time.perf_counter, []
        for _ in range(runs):
            start = clock()
            run(feeds)
            seconds.append(clock() - start)
        return seconds


def peak_bytes() -> int:
    """The largest resident set of this process so far; 0 where the system does not tell.

    On Linux not getrusage's figure: that one is inherited from the process which started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            lines = [line.split() for line in status]
        return next(int(words[1]) * 1024 for words in lines if words[0] == "VmHWM:")
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _pickled(answer: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps({"error": f"the answer cannot be sent: {error}"})


def main() -> None:
    """Serve the engine that the command line names, until told to finish or the other side goes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what an engine prints must not stand among the answers
    server = Server(sys.argv[1])
    while True:
        try:
            command = pickle.load(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        last = command["do"] == "finish"
        answers.write(_pickled(server.answer(command)))
        answers.flush()
        if last:
            return


if __name__ == "__main__":
    main()
