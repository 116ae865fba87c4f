"""Measure minifer beside other engines, fairly: each in a process of its own, in turn, on the same inputs.

For a model and a thread count:

1. Every engine runs the model once, in a process that is then ended. Its outputs are compared with minifer's; files are
   in memory from here on, and kernels built.
2. Cold starts: fresh processes, engine after engine, from the start of Python to the first result.
3. Latency: one process per engine, all alive. They take turns: a burst of runs in one while the others sleep, a gap (an
   engine's threads may spin for a while after their work), then the next. Several rounds, every other one backwards.

A figure is the median over the rounds of each burst's median; the ratio is the median of the rounds' ratios, so that a
machine which changes its pace between rounds changes the ratio little.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pickle
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minifer import __version__
from minifer.errors import InputError, MiniferError
from minifer.ir import type_of_value
from minifer.tools.bench_result import Result as Result
from minifer.tools.bench_summary import means
from minifer.tools.difference import outputs_difference

FORMAT = 1  # of the JSON form; grows when a field changes its meaning or goes
TOLERANCE = 1e-3  # error of an output, by its largest magnitude, from which two engines are said to disagree
MOST_RUNS = 1000  # in a burst


@dataclass(frozen=True)
class Options:
    """How to measure. `runs` is per burst; None: as many as fit in `burst_seconds`, at least 3."""

    runs: int | None = None
    rounds: int = 7
    cold_starts: int = 5
    burst_seconds: float = 0.15
    gap_seconds: float = 0.06
    warmup: int = 2  # untimed runs at the head of each burst
    timeout: float = 600.0  # for one answer; the first run may build kernels

    def __post_init__(self) -> None:
        if self.rounds < 1 or (self.runs is not None and self.runs < 1) or self.cold_starts < 0:
            raise InputError("a benchmark needs at least 1 round of 1 run, and 0 cold starts")


@dataclass(frozen=True)
class Case:
    """A model and what it is fed."""

    model: str  # path
    feeds: Mapping[str, Any]
    name: str = ""  # what reports call it; the file's name where not given

    @property
    def title(self) -> str:
        return self.name or os.path.splitext(os.path.basename(self.model))[0]


@dataclass(frozen=True)
class Report:
    """All results, in the order of models, thread counts and engines."""

    machine: dict[str, Any]
    results: list[Result]

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values. An infinite error (outputs of another shape, say) is the text "infinite"."""
        rows = [asdict(result) for result in self.results]
        for row in rows:
            row["error"] = "infinite" if row["error"] == math.inf else row["error"]
        return {
            "format": FORMAT, "minifer": __version__, "machine": self.machine, "results": rows,
            "means": [asdict(mean) for mean in means(self.results)],
        }  # fmt: skip

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote. Raises InputError for anything else."""
        try:
            if written["format"] != FORMAT:
                raise InputError(f"these figures are in format {written['format']}; this version reads {FORMAT}")
            rows = [{**row, "error": math.inf if row["error"] == "infinite" else row["error"]}
                    for row in written["results"]]  # fmt: skip
            return cls(dict(written["machine"]), [Result(**row) for row in rows])
        except (KeyError, TypeError) as error:
            raise InputError(f"these are no figures of `minifer bench --json` ({error!r})") from error


class EngineError(MiniferError):
    """An engine is missing, refused the model, died, or did not answer in time."""

    def __init__(self, message: str, missing: bool = False):
        super().__init__(message)
        self.missing = missing


class Worker:
    """An engine's process, and the questions put to it."""

    def __init__(self, engine: str, timeout: float):
        self.timeout = timeout
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minifer.tools.bench_worker", engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._answers.put(pickle.load(self.process.stdout))  # type: ignore[arg-type]
            except Exception:  # the pipe's end, or what a dying process left of an answer
                self._answers.put(None)
                return

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        """Give a command and wait for its answer (see bench_worker). Raises EngineError."""
        pipe = self.process.stdin
        assert pipe is not None
        try:
            pickle.dump({"do": do, **what}, pipe, protocol=pickle.HIGHEST_PROTOCOL)
            pipe.flush()
            answer = self._answers.get(timeout=self.timeout)
        except OSError:
            answer = None
        except queue.Empty:
            self.process.kill()
            raise EngineError(f"no answer to '{do}' within {self.timeout:g} s") from None
        if answer is None:
            raise EngineError(f"its process ended during '{do}' ({self._ending()})")
        if "missing" in answer:
            raise EngineError(f"not installed: {answer['missing']}", missing=True)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer

    def _ending(self) -> str:
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            return "its output was closed"
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        self.process.stdout.close()


class Contest:
    """The engines on one model at one thread count. One that fails is out, the others go on."""

    def __init__(self, case: Case, threads: int, engines: Sequence[str], options: Options):
        self.case, self.threads, self.options = case, threads, options
        inputs = {name: str(type_of_value(value)) for name, value in case.feeds.items()}
        self.results = {name: Result(case.title, case.model, threads, name, inputs) for name in engines}

    def standing(self) -> list[str]:
        """Engines that have not failed."""
        return [name for name, result in self.results.items() if result.status == "ok"]

    def attempt(self, engine: str, what: Callable[..., Any], *arguments: Any) -> Any:
        """`what(engine, ...)`; where that fails the engine is out, and the result None."""
        try:
            return what(engine, *arguments)
        except EngineError as error:
            result = self.results[engine]
            result.status, result.message = "missing" if error.missing else "failed", str(error)
            return None

    def open(self, engine: str) -> Worker:
        """A new process; nothing is asked of it yet."""
        return Worker(engine, self.options.timeout)

    def load(self, worker: Worker) -> dict[str, Any]:
        """The model, loaded by that process."""
        return worker.ask("load", model=os.path.abspath(self.case.model), threads=self.threads, feeds=self.case.feeds)

    # ---- the three parts ---------------------------------------------------------------------------------

    def compare_outputs(self) -> None:
        """Run every engine once and compare what comes out with the first one's outputs."""
        first: Mapping[str, Any] | None = None

        def outputs(engine: str) -> tuple[str, Mapping[str, Any]]:
            with self.open(engine) as worker:
                version = self.load(worker)["version"]
                return version, worker.ask("outputs")["outputs"]

        for i, engine in enumerate(self.standing()):
            found = self.attempt(engine, outputs)
            if found is not None:
                self.results[engine].version = found[0]
                if i == 0:
                    first = found[1]
                elif first is not None:
                    self.results[engine].error = outputs_difference(found[1], first)

    def cold_starts(self) -> None:
        """Fresh processes, from the start of Python to the first result."""
        times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in self.standing()}

        def start_once(engine: str) -> tuple[float, float, float]:
            start = time.perf_counter()
            with self.open(engine) as worker:
                loaded = self.load(worker)["load_seconds"]
                first = worker.ask("run")["seconds"]
                return time.perf_counter() - start, loaded, first

        for i in range(self.options.cold_starts):
            for engine in self._in_turn(i):
                time.sleep(self.options.gap_seconds)
                found = self.attempt(engine, start_once)
                if found is not None:
                    times[engine].append(found)
        for engine in self.standing():
            if times[engine]:
                totals, loads, firsts = zip(*times[engine])
                result = self.results[engine]
                result.cold_start_ms, result.cold_start_min_ms = _ms(totals), min(totals) * 1e3
                result.load_ms, result.first_run_ms = _ms(loads), _ms(firsts)

    def latency(self) -> None:
        """Bursts of runs in turn, all engines loaded and all but one asleep."""
        workers: dict[str, Worker] = {}
        bursts: dict[str, list[list[float]]] = {name: [] for name in self.standing()}
        try:
            for engine in self.standing():
                workers[engine] = self.open(engine)
                self.attempt(engine, self._prepare, workers[engine])
            for i in range(self.options.rounds):
                for engine in self._in_turn(i):
                    time.sleep(self.options.gap_seconds)
                    found = self.attempt(engine, self._burst, workers[engine])
                    if found is not None:
                        bursts[engine].append(found)
            for engine in self.standing():
                self.attempt(engine, self._finish, workers[engine])
        finally:
            for worker in workers.values():
                worker.__exit__()
        for engine in self.standing():
            result = self.results[engine]
            result.rounds_ms = [_ms(burst) for burst in bursts[engine]]
            result.median_ms = statistics.median(result.rounds_ms)
            result.min_ms = min(map(min, bursts[engine])) * 1e3

    def _in_turn(self, round_number: int) -> list[str]:
        names = self.standing()
        return names[::-1] if round_number % 2 else names

    def _prepare(self, engine: str, worker: Worker) -> None:
        """Load, and choose how many runs make a burst."""
        self.load(worker)
        runs = self.options.runs
        if runs is None:
            guess = statistics.median(worker.ask("burst", runs=3, warmup=self.options.warmup)["seconds"])
            runs = min(max(math.ceil(self.options.burst_seconds / max(guess, 1e-7)), 3), MOST_RUNS)
        self.results[engine].runs = runs

    def _burst(self, engine: str, worker: Worker) -> list[float]:
        return worker.ask("burst", runs=self.results[engine].runs, warmup=self.options.warmup)["seconds"]

    def _finish(self, engine: str, worker: Worker) -> None:
        self.results[engine].peak_bytes = worker.ask("finish")["peak_bytes"] or None

    def rate(self) -> None:
        """The first engine's time by each of the others'."""
        first, *others = self.results.values()
        for other in others:
            if first.min_ms and other.min_ms:
                other.ratio = statistics.median(a / b for a, b in zip(first.rounds_ms, other.rounds_ms))
                other.ratio_min = first.min_ms / other.min_ms


def _ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


def bench(
    cases: Sequence[Case],
    engines: Sequence[str] = ("minifer", "onnxruntime"),
    threads: Sequence[int] = (1,),
    options: Options | None = None,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure `engines` on `cases` at each thread count. The first engine is the one that the others are compared
    with. `say` is told what is going on, `keep` is given the report as it stands after each case and thread count.
    An engine that is missing or fails has that as its result."""
    if len(set(engines)) < len(engines):
        raise InputError(f"an engine is named twice: {', '.join(engines)}")
    if not threads or min(threads) < 1:
        raise InputError("thread counts are 1 or more")
    options = options or Options()
    report = Report(machine(), [])
    for case in cases:
        for count in threads:
            contest = Contest(case, count, engines, options)
            where = f"{case.title}, {count} thread{'s' if count > 1 else ''}"
            for what, part in (
                ("outputs", contest.compare_outputs),
                ("cold starts", contest.cold_starts),
                ("latency", contest.latency),
            ):
                say(f"{where}: {what}")
                part()
            contest.rate()
            report.results.extend(contest.results.values())
            keep(report)
    return report


# ---- the machine ---------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": _processor(),
        "cpus": cpus,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": None if load is None else round(load, 2),
        "bytecode": _has_bytecode(),
    }


def _has_bytecode() -> bool:
    """True where Python keeps compiled modules of this package; else every process compiles the source anew."""
    try:
        return os.path.exists(importlib.util.cache_from_source(__file__))
    except NotImplementedError:
        return False


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
