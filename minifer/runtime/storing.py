"""Writing down what a session has planned, for `stored` to find.

What is kept: plans of one stage whose steps are all kernels, with tensor inputs of the types that NumPy has. Equal
constants are written once, and those that lie in the model's own file not at all. A few plans are kept of each model,
and a bounded number of bytes in all: large entries that were not used for long go first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minifer import dtypes
from minifer.codegen import library, store
from minifer.codegen.image import code_of
from minifer.ir import Model
from minifer.kernels import runner
from minifer.plan.plan import ABSOLUTE, ARENA, KernelStep, Slot
from minifer.runtime import stored
from minifer.runtime.described import described
from minifer.runtime.execute import Executor, Stage
from minifer.runtime.launch import address_of
from minifer.runtime.records import Table, words_of
from minifer.runtime.stored import ModelFile, Stamp

LARGEST = 1 << 32  # bytes of all entries
SHARE = 4  # an entry is not written where it would take more than this part of the free space of the disk
MOST_PLANS = 8  # of one model
MOST_FILES = 8  # of constants of one model
TRIES = 4  # plans that one session offers
OWN = 4096  # bytes from which on a constant is left in the model's file
CODE_PAGE = 4096  # aarch64 finds constants by pages of this size; no processor asks for more
WORTH = 0.01  # seconds that reading and planning must have taken: less is not worth a file
ABANDONED = 3600  # seconds; a file of no entry that old is deleted


class NotKept(Exception):
    """Why a plan is not kept."""


class Keeper:
    """Keeps the first plans of a session."""

    def __init__(self, model: Model, file: ModelFile, beside: Sequence[tuple[str, Stamp]], seconds: float):
        """`beside`: the files with external data that the model was read from; `seconds`: what that took."""
        self.file = file
        self.seconds = seconds
        self.tries = TRIES
        self._seen = 0
        self._digests: dict[int, tuple[np.ndarray, bytes]] = {}  # of constants that were met, by id
        self._beside = list(beside)
        if not all(stored.settled(stamp) for _, stamp in self._beside):
            self.tries = 0
        graph = model.graph
        self._about = {
            "name": graph.name,
            "inputs": [(n, described(graph.types.get(n))) for n in graph.inputs if n not in graph.consts],
            "overridable": [(n, described(graph.types.get(n))) for n in graph.inputs if n in graph.consts],
            "outputs": [(n, described(graph.types.get(n))) for n in graph.outputs],
            "metadata": dict(model.metadata),
        }

    def after_run(self, executor: Executor, feeds: Mapping[str, Any]) -> None:
        """Called after a run: keeps its plan where that is new."""
        if len(executor.stages) <= self._seen or self.tries <= 0:
            return
        self._seen = len(executor.stages)
        self.tries -= 1
        if self.seconds + executor.planning_seconds > WORTH:
            with contextlib.suppress(NotKept, OSError, MemoryError):
                self._keep(executor, feeds)
        if self.tries <= 0:
            self.file.close()

    def _keep(self, executor: Executor, feeds: Mapping[str, Any]) -> None:
        if not stored.enabled():
            raise NotKept("switched off")
        os.makedirs(stored.folder(), mode=0o700, exist_ok=True)
        entry = _Entry(self.file, self._read_entry(), self._digests)
        entry.stages = [*entry.stages, _record(executor, feeds, entry)][-MOST_PLANS:]
        if not self.file.unchanged() or any(stored.stamp_of(os.stat(p)) != s for p, s in self._beside):
            raise NotKept("the model's file has changed")
        entry.write({**self._about, "files": self._beside})
        prune()

    def _read_entry(self) -> tuple[dict[str, Any], bytes] | None:
        """(description, code) of what is kept of the model already."""
        try:
            with open(stored.plan_path(self.file.key), "rb") as file:
                found = stored.read_plan(self.file.key, file)
            if found is None or found[0]["files"] != self._beside or found[0]["boot"] != stored.boot():
                return None
            for name, size, written in found[0]["segments"]:
                status = os.stat(os.path.join(stored.folder(), name))
                if (status.st_size, status.st_mtime_ns) != (size, written):
                    return None
            return found[0], found[1][found[2] :]
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass
class _Constants:
    """The constants of an entry: where each lies, and what is still to be written."""

    table: dict[bytes, tuple[int, int, int]]  # digest -> segment, place, bytes
    segment: int  # the number that a new segment will have
    digests: dict[int, tuple[np.ndarray, bytes]]
    new: list[tuple[int, np.ndarray]] = field(default_factory=list)
    size: int = 0
    _met: dict[int, tuple[int, int]] = field(default_factory=dict)

    def place(self, array: np.ndarray, model: np.ndarray) -> tuple[int, int]:
        """(segment, place) of an array; segment -1 is the model's file."""
        if id(array) not in self._met:
            self._met[id(array)] = self._find(array, model)
        return self._met[id(array)]

    def _find(self, array: np.ndarray, model: np.ndarray) -> tuple[int, int]:
        inside = address_of(array) - address_of(model)
        if array.nbytes >= OWN and 0 <= inside <= model.nbytes - array.nbytes:
            return -1, inside
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if id(array) not in self.digests:
            self.digests[id(array)] = array, stored.content_digest(content)
        digest = self.digests[id(array)][1]
        if digest not in self.table:
            place = -(-self.size // 64) * 64
            self.new.append((place, content))
            self.size = place + content.nbytes
            self.table[digest] = (self.segment, place, content.nbytes)
        segment, place, _ = self.table[digest]
        return segment, place


class _Entry:
    """The files of one key: what is there, and what is added."""

    def __init__(
        self,
        file: ModelFile,
        known: tuple[dict[str, Any], bytes] | None,
        digests: dict[int, tuple[np.ndarray, bytes]],
    ):
        about, code = known or ({"stages": [], "segments": [], "constants": {}, "units": {}}, b"")
        if len(about["segments"]) >= MOST_FILES:
            about, code = {"stages": [], "segments": [], "constants": {}, "units": {}}, b""
        self.file = file
        self.model = np.frombuffer(file.data, np.uint8)
        self.stages: list[dict[str, Any]] = list(about["stages"])
        self.segments: list[tuple[str, int, int]] = list(about["segments"])
        self.constants = _Constants(dict(about["constants"]), len(self.segments), digests)
        self.units: dict[str, int] = dict(about["units"])
        self.code = bytearray(code)
        self._symbols: dict[str, dict[str, int]] = {}

    def kernel(self, spec: Any) -> int:
        """Where the entry point of a kernel lies in the code, which grows by its library if need be."""
        if library.loaded_path(spec.unit) is None:  # the runner may have come with a plan from disk
            library.ensure([spec])
        path = library.loaded_path(spec.unit) or ""
        name = os.path.basename(path)
        if name not in self._symbols:
            image = code_of(store.read(path) or b"")
            if image is None:
                raise NotKept(f"the code of {name} cannot be moved")
            self._symbols[name] = image[1]
            if name not in self.units:
                self.code += bytes(-len(self.code) % CODE_PAGE)
                self.units[name] = len(self.code)
                self.code += image[0]
        return self.units[name] + self._symbols[name][spec.name]

    def write(self, about: dict[str, Any]) -> None:
        """Write new constants to a file of their own, then the entry."""
        folder = stored.folder()
        if sum(size for _, size, _ in self.segments) + self.constants.size > LARGEST // 2:
            raise NotKept("too large")
        disk = os.statvfs(folder)
        if self.constants.size * SHARE > disk.f_bavail * disk.f_frsize:
            raise NotKept("the disk is nearly full")
        if self.constants.new:
            name = f"{self.file.key}.{os.getpid()}.{time.time_ns()}.constants"
            path = os.path.join(folder, name)
            try:
                with open(path, "xb") as file:
                    for place, content in self.constants.new:
                        file.seek(place)
                        file.write(content.data)
                status = os.stat(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise
            self.segments.append((name, status.st_size, status.st_mtime_ns))
        functions = {name: self.kernel(getattr(runner, name)) for name in ("launch", "serve")}
        description = {
            **about, "key": self.file.key, "boot": stored.boot(), "stages": self.stages, "segments": self.segments,
            "constants": self.constants.table, "units": self.units, "runner": functions,
        }  # fmt: skip
        stored.write_whole(stored.plan_path(self.file.key), stored.seal(description, bytes(self.code)))


# ---------------------------------------------------------------- one plan


def _record(executor: Executor, feeds: Mapping[str, Any], entry: _Entry) -> dict[str, Any]:
    """A stage as `stored` runs it; NotKept where it cannot."""
    stage = executor.stage_for(feeds)
    plan = stage.plan
    if stage.end < len(executor.scope.nodes) or not all(isinstance(part, Table) for part in stage.parts):
        raise NotKept("not all of the model is one table of kernels")
    if any(name not in feeds for name, _ in plan.inputs):
        raise NotKept("it reads what is no input")
    bases = _Bases(plan.bases, entry)
    words: list[tuple[int, int, int, int]] = []
    arguments: list[int] = []
    for part in stage.parts:
        assert isinstance(part, Table)
        for step, flag in zip(part.steps, part.words[:, 2]):
            words.append((entry.kernel(step.kernel), 8 * len(arguments), int(flag), len(words)))
            arguments += bases.arguments(step)
    outputs = [_output(name, executor, stage, bases) for name in executor.graph.outputs]
    teams = {part.team(executor.settings.threads) for part in stage.parts if isinstance(part, Table)}
    return {
        "inputs": _inputs(executor, feeds),
        "reads": plan.inputs,
        "fresh": [(base, _plain(dtype), shape) for base, dtype, shape in plan.fresh],
        "bases": plan.bases,
        "segments": bases.segments,
        "arena": plan.arena_bytes,
        "words": np.array(words, np.int64).tobytes(),
        "arguments": np.array(arguments, np.int64).tobytes(),
        "threads": max(teams, default=1),
        "outputs": outputs,
    }


def _plain(dtype: np.dtype) -> str:
    """The text of a dtype that NumPy itself has."""
    if dtype.kind not in "biufc" or not dtype.isnative:
        raise NotKept(f"it has values of type {dtype}")
    return dtype.str


def _inputs(executor: Executor, feeds: Mapping[str, Any]) -> list[tuple[str, bytes | None, str, tuple[int, ...]]]:
    fixed = executor.fixed_inputs(feeds)
    found = []
    for name, value in feeds.items():
        if not isinstance(value, np.ndarray):
            raise NotKept("it has an input that is no tensor")
        known = fixed[name].tobytes() if name in fixed else None
        found.append((name, known, _plain(value.dtype), value.shape))
    return found


class _Bases:
    """Constants by base and offset: a base for each piece of constant memory, behind the plan's own."""

    def __init__(self, first: int, entry: _Entry):
        self.first, self.entry = first, entry
        self.segments: list[int] = []

    def constant(self, array: np.ndarray) -> tuple[int, int]:
        """(base, offset) of a constant."""
        segment, place = self.entry.constants.place(array, self.entry.model)
        if segment not in self.segments:
            self.segments.append(segment)
        return self.first + self.segments.index(segment), place

    def arguments(self, step: KernelStep) -> list[int]:
        """The argument record of a step, all its addresses relative to bases."""

        def address(value: Slot | None) -> tuple[int, int]:
            if value is None:
                return ABSOLUTE, 0
            if value.buffer.kind != "const":
                return value.address()
            assert value.buffer.array is not None
            base, place = self.constant(value.buffer.array)
            return base, place + value.offset

        return words_of(step, address)


def _output(name: str, executor: Executor, stage: Stage, bases: _Bases) -> tuple[str, int, int, str, tuple[int, ...]]:
    """(name, base, offset, dtype, shape) of what the model returns."""
    source = dict(stage.plan.outputs).get(name)
    if isinstance(source, Slot):
        dtype = _plain(dtypes.to_numpy(source.dtype))
        if source.buffer.kind == "const":
            assert source.buffer.array is not None
            base, place = bases.constant(source.buffer.array)
            return name, base, place + source.offset, dtype, source.shape
        base, place = source.address()
        return name, base, place, dtype, source.shape
    value = stage.known.get(name, executor.known.get(name))
    if not isinstance(value, np.ndarray | np.generic):
        raise NotKept(f"the output {name} is no tensor")
    array = np.asarray(value)
    return name, *bases.constant(array), _plain(array.dtype), array.shape


# ---------------------------------------------------------------- tidying up


def prune(limit: int | None = None) -> None:
    """Delete entries until all together take at most `limit` bytes, and files that belong to no entry. The first to go
    is the one of the most bytes times seconds since its last use: a large model does not drive out many small ones."""
    limit = LARGEST if limit is None else limit
    entries: dict[str, list[os.DirEntry[str]]] = {}
    with os.scandir(stored.folder()) as listed:
        for item in listed:
            entries.setdefault(item.name.partition(".")[0], []).append(item)
    ages, now = [], time.time()
    for key, files in entries.items():
        with contextlib.suppress(OSError):
            whole = [f for f in files if f.name == key + ".plan"]
            used = _segments_of(key) if len(files) > 2 or not whole else None
            for item in files:
                loose = not whole or (used is not None and item not in whole and item.name not in used)
                if loose and now - item.stat().st_mtime > ABANDONED:
                    os.unlink(item.path)
            if whole:
                size = sum(f.stat().st_size for f in files)
                ages.append((size * max(now - whole[0].stat().st_mtime, 0.0), size, files))
    total = sum(size for _, size, _ in ages)
    for _, size, files in sorted(ages, key=lambda entry: -entry[0]):
        if total <= limit:
            break
        total -= size
        for item in files:
            with contextlib.suppress(OSError):
                os.unlink(item.path)


def _segments_of(key: str) -> set[str]:
    """The constant files that an entry names."""
    with contextlib.suppress(OSError, ValueError), open(stored.plan_path(key), "rb") as file:
        found = stored.read_plan(key, file)
        if found is not None:
            return {name for name, _, _ in found[0]["segments"]}
    return set()


assert ARENA == stored.ARENA
