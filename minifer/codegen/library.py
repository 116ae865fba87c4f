"""Compiled kernels by address: load the libraries that are needed, build those that are missing.

The entry point of a kernel is `i64 name(i64* args, i64* bases, i64 tid, i64 nthreads)`. `args` holds, in the order of
the parameters, two words for a pointer (base number, byte offset: the address is bases[number] + offset) and one word
for a scalar (an integer, or the bits of a float64). A native function is exported with its own C signature.

With warm caches nothing here imports numba or llvmlite.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minifer.codegen import store
from minifer.codegen.store import SUFFIX, Spec, Unit
from minifer.errors import KernelError
from minifer.kernels.runner_layout import share_word
from minifer.kernels.spec import KernelGroup, KernelSpec, NativeFunction
from minifer.kernels.target import Target, host
from minifer.locks import Lock

ENTRY = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)

_lock = Lock()
_loaded: dict[Unit, Any] = {}
_paths: dict[Unit, str] = {}  # of what is loaded
_addresses: dict[str, int] = {}
_failed: dict[Unit, str] = {}


def ensure(specs: Iterable[Spec | KernelGroup], progress: bool | None = None) -> None:
    """Load what holds these kernels, building what is missing; KernelError if that fails."""
    flat = [one for spec in specs for one in (spec if isinstance(spec, KernelGroup) else (spec,))]
    with _lock:
        target = host()
        wanted = [u for u in dict.fromkeys(s.unit for s in flat) if u not in _loaded]
        missing = [u for u in wanted if not _try_load(u, target)]
        for unit in missing:
            if unit in _failed:  # it would only fail again
                raise KernelError(_failed[unit])
        try:
            if missing:
                from minifer.codegen import build

                build.build(missing, target, progress)
        except KernelError as problem:
            if len(missing) == 1:
                _failed[missing[0]] = str(problem)
            raise
        for unit in missing:
            if not _try_load(unit, target):
                raise KernelError(
                    f"the kernels of {unit[0]} {unit[1]} were built but cannot be found: either a source changed "
                    "since this process started (start it again), or a factory makes kernels outside of its own module"
                )


def address(spec: KernelSpec | NativeFunction) -> int:
    """The address of a kernel's entry point, or of a native function; loads or builds its library if need be."""
    found = _addresses.get(spec.name)
    if found is None:
        with _lock:
            ensure([spec])
            found = _addresses[spec.name] = _loaded[spec.unit](spec.name)
    return found


def address_of_native(function: NativeFunction) -> int:
    """The address of a native function."""
    return address(function)


def _try_load(unit: Unit, target: Target) -> bool:
    path = store.find(unit, target)
    if path is None:
        return False
    try:
        _loaded[unit] = load_shared(path) if SUFFIX == ".so" else load_object(path)
    except OSError as problem:
        raise KernelError(f"cannot load the kernel library {path}: {problem}") from problem
    _paths[unit] = path
    return True


def loaded_path(unit: Unit) -> str | None:
    """The file that a loaded unit came from."""
    return _paths.get(unit)


def load_shared(path: str):
    """name -> address of a shared object, by the system's loader."""
    library = ctypes.CDLL(path)
    return lambda name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value


def load_object(path: str):
    """name -> address of an object file, by LLVM's loader: for systems whose loader does not read ELF."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(store.read(path)))
    engine.finalize_object()
    return engine.get_function_address


# ---------------------------------------------------------------- calling one kernel from Python


def record(spec: KernelSpec, arguments: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(args, bases) for a call of a kernel on NumPy arrays and numbers: one base per pointer, offsets 0."""
    words: list[int] = []
    bases: list[int] = []
    for parameter in spec.parameters:
        value = arguments[parameter.name]
        if parameter.is_pointer:
            words += [len(bases), 0]
            bases.append(value.ctypes.data)
        else:
            words.append(scalar_word(parameter.type, value))
    return np.array(words, np.int64), np.array(bases, np.int64)


def scalar_word(kind, value) -> int:
    """A scalar argument as the 64-bit word of an argument record."""
    if kind.integer:
        value = int(value)
        return value - (1 << 64) if value >= 1 << 63 else value
    return int(np.float64(value).view(np.int64))


def run(
    spec: KernelSpec,
    arguments: Mapping[str, Any],
    tid: int = 0,
    nthreads: int = 1,
    slot: int | None = None,
    pieces: int | None = None,
) -> int:
    """Run the compiled kernel on NumPy arrays and numbers by name (as `example` draws them); returns its status."""
    args, bases = record(spec, arguments)
    share = share_word(nthreads, nthreads if pieces is None else pieces, tid if slot is None else slot)
    return ENTRY(address(spec))(args.ctypes.data, bases.ctypes.data, tid, share)
