"""Models that were planned before, by this program or another: read from the user's cache and run as they are.

After its first run a session writes down what it takes to run again (see `storing`): the native table, the argument
records, the machine code of the kernels, and the constants in the form that the kernels want. A later process maps
these files and runs; it reads no graph, plans nothing, and imports neither operators nor passes nor kernels.

A plan is found by a key of everything that decides it: the model (a file's path, size, inode and times to the
nanosecond, and samples of its content; of bytes all of them), minifer's own source files, the processor, the
versions of Python and NumPy, and the options. What is found must be whole: the plan's file carries a digest, and
constants must have the size and time that they were left with, or, after the machine has started anew, the content.
Whatever does not fit is as if it were not there: the model is then read and planned, and the entry written anew.

`MINIFER_PLAN_CACHE=0` keeps and reads nothing; the path of a directory in it has the plans kept there.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import mmap
import os
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minifer import __version__
from minifer.codegen.folders import blake2b, user_cache
from minifer.errors import LimitError, ModelError
from minifer.locks import Lock
from minifer.runtime.launch import address_of, run_table
from minifer.runtime.workspaces import Workspaces

FORMAT = 1
MAGIC = b"minifer plan\0\0\0" + bytes([FORMAT])
HEAD = len(MAGIC) + 32 + 16  # magic, digest, length of the description, place of the code
PAGE = 1 << 16  # what code is aligned to: the largest page of the machines we know
ARENA = 1  # base of the workspace, as in minifer.plan.plan

SAMPLE = 1 << 16  # bytes at either end of a file that go into its key; a file of up to four times that goes in whole
LARGEST_BYTES = 1 << 28  # a model given as bytes is read whole for its key; larger ones would take longer than planning
SOON = 50_000_000  # ns; a file that changed so short a time ago might change again under the same time
COARSE = 2_500_000_000  # the same where times are kept in whole seconds

Stamp = tuple[int, ...]


def enabled() -> bool:
    """Whether plans are kept and looked for in this process."""
    switched_off = os.environ.get("MINIFER_PLAN_CACHE", "1").lower() in ("0", "off", "no", "false")
    watched = os.environ.get("MINIFER_DEBUG", "0") not in ("", "0") or "MINIFER_STOP" in os.environ
    operators = sys.modules.get("minifer.ops.registry")  # a user's own operators decide what a model is planned to
    return not (switched_off or watched or (operators is not None and operators._USER)) and sys.platform == "linux"


def folder() -> str:
    """Where plans are kept."""
    chosen = os.environ.get("MINIFER_PLAN_CACHE", "")
    return chosen if os.path.isabs(chosen) else os.path.join(user_cache(), "plans")


# ---------------------------------------------------------------- what a plan depends on


def stamp_of(status: os.stat_result) -> Stamp:
    """What changes when a file is written to, or another one put in its place."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def settled(stamp: Stamp, now: int | None = None) -> bool:
    """True where a file changed long enough ago that its next change will have another time."""
    changed = max(stamp[1], stamp[2])
    coarse = stamp[1] % 1_000_000_000 == 0 and stamp[2] % 1_000_000_000 == 0
    return (time.time_ns() if now is None else now) - changed > (COARSE if coarse else SOON)


class ModelFile:
    """A model before it is read: its bytes, and the key of its plans. A file stays open, so that what is read later
    is what the key was made of."""

    def __init__(self, source: Any, options: Sequence[Any]):
        self.path = "" if isinstance(source, bytes) else os.path.abspath(os.fsdecode(source))
        self.stamp: Stamp = ()
        self.data: Any = source
        self.file: int = -1
        self.lasting = True  # the key holds for this content only
        digest = blake2b(digest_size=20)
        digest.update("\0".join(map(repr, (*_facts(), *options))).encode())
        if self.path:
            self._open()
            digest.update(f"{self.path} {self.stamp}".encode("utf-8", "surrogatepass"))
            for part in _samples(len(self.data)):
                digest.update(self.data[part])
        else:
            digest.update(b"bytes")
            digest.update(source)
        self.key = digest.hexdigest()

    def _open(self) -> None:
        self.file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.file)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise OSError("not a regular file")
        self.stamp = stamp_of(status)
        self.lasting = settled(self.stamp)
        self.data = mmap.mmap(self.file, 0, access=mmap.ACCESS_READ)

    def unchanged(self) -> bool:
        """Whether the file still holds what it held when it was opened."""
        return self.file < 0 or stamp_of(os.fstat(self.file)) == self.stamp

    def check(self) -> None:
        """ModelError where the file was written to since it was opened. It may have been replaced, or have another
        owner: what is open still holds the model."""
        if self.file >= 0 and stamp_of(os.fstat(self.file))[:2] != self.stamp[:2]:
            raise ModelError(f"the file '{self.path}' has changed since the session was made: load the model again")

    def close(self) -> None:
        """Close the file; the mapping stays as long as it is in use."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1

    __del__ = close


def model_file(source: Any, options: Sequence[Any]) -> ModelFile | None:
    """The model to look for; None where nothing is kept for such a source, or it cannot be read as a file."""
    if not enabled():
        return None
    if isinstance(source, bytes):
        return ModelFile(source, options) if 0 < len(source) <= LARGEST_BYTES else None
    if not isinstance(source, str | os.PathLike):
        return None
    with contextlib.suppress(OSError, ValueError, TypeError):
        return ModelFile(source, options)
    return None  # reading it in earnest says what is wrong


def _samples(size: int) -> list[slice]:
    """The parts of a file that go into its key: both ends and some blocks between."""
    if size <= 4 * SAMPLE:
        return [slice(0, size)]
    between = [slice(at, at + 4096) for at in range(SAMPLE, size - SAMPLE, (size - 2 * SAMPLE) // 8)]
    return [slice(0, SAMPLE), *between, slice(size - SAMPLE, size)]


@functools.cache
def _facts() -> tuple[Any, ...]:
    """What decides plans besides the model and the options."""
    from minifer.kernels.target import host  # which also asks the system for what kernels need

    python = sys.version_info[:3], sys.implementation.name, np.__version__
    return host().name, FORMAT, __version__, *python, _processor(), _sources()


def _processor() -> tuple[str, ...]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = file.read(1 << 13).partition("\n\n")[0].splitlines()
        wanted = ("model name", "flags", "features", "cpu implementer", "cpu part", "cpu variant")
        return os.uname().machine, *(line for line in lines if line.lower().startswith(wanted))
    return (os.uname().machine,)


def _sources() -> bytes:
    """The source files that planning and kernels consist of, by their sizes and times."""
    import minifer.kernels as kernels

    root = os.path.dirname(os.path.dirname(__file__))
    names = ("", "ops", "passes", "plan", "onnx_io", "runtime", "codegen")
    found = []
    for place in (*(os.path.join(root, name) for name in names), *kernels.__path__):
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.endswith((".py", ".pyc")):
                    status = entry.stat()
                    found.append(f"{entry.path} {status.st_size} {status.st_mtime_ns}")
    return blake2b("\n".join(sorted(found)).encode("utf-8", "surrogatepass"), digest_size=20).digest()


def boot() -> str:
    """What tells one start of the machine from the next: only a crash between leaves files half written."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


# ---------------------------------------------------------------- the files


def plan_path(key: str) -> str:
    """The file that holds the plans of a key."""
    return os.path.join(folder(), key + ".plan")


def seal(description: dict[str, Any], code: bytes) -> bytes:
    """The content of a plan's file."""
    text = marshal.dumps(description)
    at = -(-(HEAD + len(text)) // PAGE) * PAGE
    rest = len(text).to_bytes(8, "little") + at.to_bytes(8, "little") + text
    rest += bytes(at - HEAD - len(text)) + code
    return MAGIC + blake2b(rest, digest_size=32).digest() + rest


def unseal(data: bytes) -> tuple[dict[str, Any], int] | None:
    """(description, place of the code) of a plan's file; None where it is not whole."""
    if len(data) < HEAD or not data.startswith(MAGIC):
        return None
    start = len(MAGIC)
    view = memoryview(data)
    if blake2b(view[start + 32 :], digest_size=32).digest() != data[start : start + 32]:
        return None
    length, at = (int.from_bytes(data[i : i + 8], "little") for i in (start + 32, start + 40))
    return marshal.loads(view[HEAD : HEAD + length]), at


def read_plan(key: str, file: Any) -> tuple[dict[str, Any], bytes, int] | None:
    """(description, whole file, place of the code) of the plans in an open file; None where they cannot be trusted."""
    try:
        if os.fstat(file.fileno()).st_uid not in (os.geteuid(), 0):
            return None
        data = file.read()
        found = unseal(data)
        return (found[0], data, found[1]) if found is not None and found[0]["key"] == key else None
    except (OSError, ValueError, EOFError, TypeError, KeyError):
        return None


def write_whole(path: str, data: bytes) -> None:
    """Put a file in place at once: another process sees all of it or what was there before."""
    temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def content_digest(content: np.ndarray) -> bytes:
    """What stands for the bytes of a constant."""
    from hashlib import sha256  # much is hashed, and it is twice as fast

    return sha256(content.data).digest()


_code: dict[bytes, mmap.mmap] = {}  # by what seals it


class Stored:
    """The plans of one model, mapped into memory."""

    def __init__(self, model: ModelFile, description: dict[str, Any], code: int):
        """`code`: the address of the machine code."""
        self.model = model
        self.about = description
        self._weights = [self._map(*segment) for segment in description["segments"]]
        self._code = code
        self._stages = [StoredStage(stage, self) for stage in description["stages"]]
        self._workspaces = Workspaces()
        self.lock = Lock()

    def _map(self, name: str, size: int, written: int) -> np.ndarray:
        with open(os.path.join(folder(), name), "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (size, written):
                raise ValueError(f"{name} was altered")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def check_content(self) -> None:
        """ValueError where a constant is not what was written."""
        for digest, (segment, start, size) in self.about["constants"].items():
            if content_digest(self._weights[segment][start : start + size]) != digest:
                raise ValueError("constants were altered")

    def memory(self, segment: int) -> np.ndarray:
        """A piece of constant memory as bytes; -1 is the model's own file."""
        return np.frombuffer(self.model.data, np.uint8) if segment < 0 else self._weights[segment]

    def native(self, place: int) -> int:
        """The address of what lies at a place in the code."""
        return self._code + place

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any] | None:
        """The outputs; None where no plan here fits the inputs, or a kernel refused them: then plan in earnest."""
        for stage in self._stages:
            arrays = stage.fitting(feeds)
            if arrays is not None:
                return stage.run(arrays, self._workspaces)
        return None

    def use(self) -> None:
        """Make the runner's functions known, and mark the files as used."""
        from minifer.runtime import pool

        for name, place in self.about["runner"].items():
            pool.natives.setdefault(name, self.native(place))
        path = plan_path(self.model.key)
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path).st_mtime > 3600:
                os.utime(path)


def _executable(file: int, place: int, size: int, seal: bytes) -> int:
    """The address of machine code in a file, mapped once so that it can be run."""
    memory = _code.get(seal)
    if memory is None:
        memory = mmap.mmap(file, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC, offset=place)
        from minifer.runtime.pool import immortal

        immortal(memory)
        memory = _code.setdefault(seal, memory)
    return address_of(np.frombuffer(memory, np.uint8))


class StoredStage:
    """One plan: for inputs of one set of types and shapes (and values, where the plan took them for granted)."""

    def __init__(self, record: dict[str, Any], stored: Stored):
        self.inputs = [(name, fixed, np.dtype(dtype), shape) for name, fixed, dtype, shape in record["inputs"]]
        self._record = record
        self._stored = stored
        self._bound = False

    def _bind(self) -> None:
        """Put addresses in the place of numbers, the first time."""
        record, stored = self._record, self._stored
        self._arguments = np.frombuffer(record["arguments"], np.int64)
        self._words = np.frombuffer(record["words"], np.int64).reshape(-1, 4).copy()
        self._words[:, 0] += stored.native(0)
        self._words[:, 1] += address_of(self._arguments)
        self._memory = {record["bases"] + i: stored.memory(s) for i, s in enumerate(record["segments"])}
        self._bases = np.zeros(record["bases"] + len(self._memory), np.int64)
        for base, memory in self._memory.items():
            self._bases[base] = address_of(memory)
        self._fresh = [(base, np.dtype(dtype), shape) for base, dtype, shape in record["fresh"]]
        self._threads = record["threads"]
        self._bound = True

    def fitting(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The inputs as arrays, where this plan is for them; else None."""
        if len(feeds) != len(self.inputs):
            return None
        arrays = {}
        for name, fixed, dtype, shape in self.inputs:
            if name not in feeds:
                return None
            array = feeds[name]
            if type(array) is not np.ndarray:
                try:
                    array = np.asarray(array)
                except Exception:  # whatever an object's __array__ raises: said when the input is checked in earnest
                    return None
            if array.dtype != dtype or array.shape != shape or (fixed is not None and array.tobytes() != fixed):
                return None
            if not (array.flags.c_contiguous and array.flags.aligned):
                array = np.array(array, order="C")
            arrays[name] = array
        return arrays

    def run(self, arrays: dict[str, np.ndarray], workspaces: Workspaces) -> dict[str, Any] | None:
        """The outputs for fitting inputs; None where a kernel refused them."""
        if not self._bound:
            with self._stored.lock:
                if not self._bound:
                    self._bind()
        try:
            return self._run(arrays, workspaces)
        except MemoryError as error:
            raise LimitError(f"the run does not fit into memory ({error}): use smaller inputs") from error

    def _run(self, arrays: dict[str, np.ndarray], workspaces: Workspaces) -> dict[str, Any] | None:
        record = self._record
        bases = self._bases.copy()
        memory: dict[int, np.ndarray] = {}
        for name, base in record["reads"]:
            memory[base] = arrays[name]
            bases[base] = address_of(arrays[name])
        fresh = {}
        for base, dtype, shape in self._fresh:
            fresh[base] = memory[base] = np.empty(shape, dtype)
            bases[base] = address_of(memory[base])
        workspace = memory[ARENA] = workspaces.take(record["arena"])
        try:
            bases[ARENA] = address_of(workspace)
            if len(self._words) and run_table(self._words, bases, self._threads) is not None:
                return None
            outputs = {}
            for name, base, start, dtype, shape in record["outputs"]:
                whole = fresh.get(base)
                if whole is not None and start == 0 and whole.shape == shape and whole.dtype == dtype:
                    outputs[name] = fresh.pop(base)  # a second output of the same memory gets a copy
                else:
                    outputs[name] = _copied(memory[base] if base in memory else self._memory[base], start, dtype, shape)
            return outputs
        finally:
            workspaces.give(workspace)


def _copied(source: np.ndarray, start: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A new array of the elements that lie `start` bytes into another one."""
    out = np.empty(shape, dtype)
    if out.size:
        flat = source.reshape(-1).view(np.uint8)
        out.reshape(-1).view(np.uint8)[:] = flat[start : start + out.nbytes]
    return out


def find(model: ModelFile) -> Stored | None:
    """The plans that are kept of a model; None where there are none that can be trusted."""
    if not model.lasting:
        return None
    try:
        with open(plan_path(model.key), "rb") as file:
            found = read_plan(model.key, file)
            if found is None:
                return None
            description, data, code_at = found
            if any(stamp_of(os.stat(path)) != stamp for path, stamp in description["files"]):
                return None
            code = _executable(file.fileno(), code_at, len(data) - code_at, data[:HEAD])
        stored = Stored(model, description, code)
        if description["boot"] != boot() or not description["boot"]:
            stored.check_content()
            with contextlib.suppress(OSError):
                write_whole(plan_path(model.key), seal({**description, "boot": boot()}, data[code_at:]))
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None
    stored.use()
    return stored
