"""Where built kernel libraries are kept, and by which key they are found.

A unit (module, group) is keyed by the text of every module under minifer.kernels that its module reaches, the code
generator's own text, the names of its kernels and the target. A library of another Numba version has another file
name. Files end with a digest of their content: one that is cut off or altered is built again instead of being loaded.
This is on the way of every start of the program: it imports little, and neither numba nor llvmlite.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import minifer.kernels as kernels
from minifer.codegen.folders import blake2b, user_cache

if TYPE_CHECKING:
    from minifer.kernels import spec
    from minifer.kernels.target import Target

Unit = tuple[str, str]
Spec: TypeAlias = "spec.KernelSpec | spec.NativeFunction"

#: a shared object where the system loads ELF, else an object file for LLVM's loader
SUFFIX = ".so" if sys.platform.startswith("linux") or "bsd" in sys.platform else ".o"

#: the code generator's files that decide what is built
_GENERATOR = ("numba_bridge.py", "lowering.py", "lowering_tile.py", "lower.py", "emit.py", "elf.py", "objects.py")
_MENTION = re.compile(rb"minifer\.kernels(?:\.(\w+)| import ([\w, \n()]+))")
_MAGIC = b"minifer\x01"

# ---------------------------------------------------------------- units

_index: tuple[int, dict[Unit, list[Spec]]] = (0, {})


def by_unit() -> dict[Unit, list[Spec]]:
    """All registered kernels and native functions by unit; grouped anew when more are registered."""
    global _index
    from minifer.kernels import spec as registry

    count = len(registry.KERNELS) + len(registry.NATIVES)
    if _index[0] != count:
        groups: dict[Unit, list[Spec]] = {}
        for one in (*registry.KERNELS.values(), *registry.NATIVES.values()):
            groups.setdefault(one.unit, []).append(one)
        _index = (count, groups)
    return _index[1]


def specs_of(unit: Unit) -> list[Spec]:
    """All kernels and native functions registered in a unit, sorted by name."""
    return sorted(by_unit().get(unit, []), key=lambda s: s.name)


# ---------------------------------------------------------------- keys


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=32).digest()


@functools.cache
def _text(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _kernel_file(name: str) -> str | None:
    path = os.path.join(os.path.dirname(str(kernels.__file__)), name + ".py")
    return path if os.path.exists(path) else None


@functools.cache
def _mentioned(path: str) -> list[str]:
    """The kernel sources that a file mentions."""
    found = []
    for match in _MENTION.finditer(_text(path)):
        names = [match[1]] if match[1] else re.findall(rb"\w+", match[2])
        found += [p for p in map(_kernel_file, map(bytes.decode, names)) if p is not None]
    return list(dict.fromkeys(found))


def reached_files(module: str) -> list[str]:
    """The kernel sources that a module mentions, directly or through others, with its own first."""
    first = getattr(sys.modules.get(module), "__file__", None) or _kernel_file(module.rpartition(".")[2])
    found: list[str] = [] if first is None else [first]
    for path in found:
        found += [p for p in _mentioned(path) if p not in found]
    return found


@functools.cache
def _generator_digest() -> bytes:
    here = os.path.dirname(__file__)
    return _digest(b"".join(_text(os.path.join(here, name)) for name in _GENERATOR))


@functools.cache
def _file_digest(path: str) -> bytes:
    return _digest(_text(path))


@functools.cache
def _sources_digest(module: str) -> bytes:
    return _digest(b"".join(map(_file_digest, reached_files(module))))


def unit_key(unit: Unit, names: Iterable[str], target: Target) -> str:
    """A key that changes with anything that decides what the unit's library holds, but for Numba's version."""
    facts = "\0".join((*sorted(names), unit[1], repr(target)))
    return _digest(_generator_digest() + _sources_digest(unit[0]) + facts.encode()).hex()[:20]


def key_of(unit: Unit, target: Target) -> str:
    """The key of a unit with the kernels that are registered in it."""
    return unit_key(unit, [s.name for s in specs_of(unit)], target)


def forget_sources() -> None:
    """Read the source files anew next time (for tests that change them)."""
    for cached in (_text, _mentioned, _generator_digest, _file_digest, _sources_digest):
        cached.cache_clear()


@functools.cache
def numba_version() -> str:
    """The installed Numba's version without importing it; "" if there is none."""
    from importlib.util import find_spec

    try:
        found = find_spec("numba")
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        return ""
    site = os.path.dirname(next(iter(found.submodule_search_locations)))
    for entry in os.listdir(site):
        if match := re.fullmatch(r"numba-([\w.+!]+)\.dist-info", entry):
            return match[1]
    from importlib import metadata

    return metadata.version("numba")


# ---------------------------------------------------------------- folders

#: libraries that came with the package
PREBUILT = os.path.join(os.path.dirname(str(kernels.__file__)), "prebuilt")


def available() -> bool:
    """Whether kernels can run here: Numba is installed, or built libraries came with the package."""
    if numba_version():
        return True
    from minifer.kernels.target import host

    return os.path.isdir(PREBUILT) and any(f"-{host().name}-" in name for name in os.listdir(PREBUILT))


_temporary = ""


def cache_directory() -> str:
    """The user's cache directory, made if need be, or a temporary one if that is unwritable."""
    wanted = user_cache()
    try:
        os.makedirs(wanted, mode=0o700, exist_ok=True)
        if os.access(wanted, os.W_OK | os.X_OK):
            return wanted
    except OSError:
        pass
    return _temporary or _make_temporary(wanted)


def _make_temporary(wanted: str) -> str:
    global _temporary
    import atexit
    import shutil
    import tempfile
    import warnings

    _temporary = tempfile.mkdtemp(prefix="minifer-")
    atexit.register(shutil.rmtree, _temporary, ignore_errors=True)
    warnings.warn(
        f"cannot write to {wanted}: kernels are built into a temporary directory and lost when the process ends; "
        "set MINIFER_CACHE_DIR to a writable directory",
        RuntimeWarning,
        stacklevel=3,
    )
    return _temporary


def file_name(unit: Unit, target: Target, key: str, suffix: str, version: str = "") -> str:
    """A unit's file name; without a Numba version, as it is shipped with the package."""
    short = unit[0].rpartition(".")[2] + (f".{unit[1]}" if unit[1] else "")
    return f"{short}-{target.name}-{key}{'-numba' + version if version else ''}{suffix}"


def cached_path(unit: Unit, target: Target, key: str, suffix: str) -> str:
    """Where the unit's file is kept once it is built."""
    return os.path.join(_temporary or user_cache(), file_name(unit, target, key, suffix, numba_version()))


# ---------------------------------------------------------------- files


def find(unit: Unit, target: Target, suffix: str = SUFFIX) -> str | None:
    """The path of a unit's intact file: shipped with the package, or built earlier; None if there is none."""
    key = key_of(unit, target)
    shipped = os.path.join(PREBUILT, file_name(unit, target, key, suffix))
    if read(shipped) is not None:
        return shipped
    candidates = [cached_path(unit, target, key, suffix)]
    if not numba_version():  # any version's will do where none can be built
        from glob import glob

        candidates = sorted(glob(os.path.join(user_cache(), file_name(unit, target, key, "-numba*" + suffix))))
    return next((p for p in candidates if read(p) is not None), None)


def read(path: str) -> bytes | None:
    """The content of a sealed file; None if it is missing, cut off or altered."""
    try:
        with open(path, "rb") as file:
            sealed = file.read()
    except OSError:
        return None
    data, digest = sealed[:-40], sealed[-40:]
    return data if digest == _digest(data) + _MAGIC else None


def write(path: str, data: bytes) -> None:
    """Write the content with its digest behind it, at once: another process sees all of it or nothing."""
    import tempfile

    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".building-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data + _digest(data) + _MAGIC)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_text(path: str) -> str | None:
    """The text of a sealed, compressed file, or None."""
    import zlib

    data = read(path)
    return None if data is None else zlib.decompress(data).decode()


def write_text(path: str, text: str) -> None:
    """Write text compressed and sealed."""
    import zlib

    write(path, zlib.compress(text.encode(), 1))
