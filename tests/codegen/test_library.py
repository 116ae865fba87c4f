"""Building, caching and loading kernel libraries."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from minifer.codegen import build, elf, library, lower, native, objects, store
from minifer.errors import KernelError
from minifer.kernels.spec import KERNELS, Parameter, kernel, ptr_f32
from minifer.kernels.target import TARGETS, host
from tests.codegen import tiny

ROOT = Path(__file__).parents[2]
UNIT = tiny.double.unit

RUN = """
import sys
import numpy as np
from minifer.codegen import library
from tests.codegen import tiny
x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
assert library.run(tiny.double, {"x": x, "y": y, "n": 16}) == 0 and (y == 2 * x).all()
print("numba" in sys.modules, "llvmlite" in sys.modules)
"""


def start(cache: Path | str, program: str = RUN) -> subprocess.Popen:
    environment = dict(os.environ, MINIFER_CACHE_DIR=str(cache))
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[str, str]:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return out.strip(), error


def only_library(cache: Path) -> Path:
    return next(cache.glob(f"tiny-*{store.SUFFIX}"))


def test_life_of_a_cache(tmp_path):
    """Two racing processes build; the third loads without Numba; a damaged file is built again."""
    for process in [start(tmp_path), start(tmp_path)]:
        assert finish(process)[0] == "True True"
    files = sorted(f.name for f in tmp_path.iterdir())
    assert len(files) == 2, f"a library and its IR were expected: {files}"
    assert finish(start(tmp_path))[0] == "False False"
    path = only_library(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert finish(start(tmp_path))[0] == "False True", "the IR is still there: Numba is not needed"
    assert path.read_bytes() == whole, "the same sources give the same library"
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    assert store.read(path) is None


def test_unwritable_cache(tmp_path):
    (tmp_path / "file").touch()
    out, error = finish(start(tmp_path / "file" / "cache"))
    assert out == "True True"
    assert error.count("RuntimeWarning") == 1 and "MINIFER_CACHE_DIR" in error


def test_key_follows_sources(tmp_path, monkeypatch):
    """A change in a helper's file changes the key; a change in a file that is not reached does not."""
    (tmp_path / "a.py").write_text("from minifer.kernels.b import f\n")
    (tmp_path / "b.py").write_text("from minifer.kernels import (\n    c,\n)\n")
    for name in ("c", "d"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(store, "kernels", types.SimpleNamespace(__file__=str(tmp_path / "__init__.py")))

    def key(**changes):
        for name, text in changes.items():
            (tmp_path / f"{name}.py").write_text(text)
        store.forget_sources()
        return store.unit_key(("minifer.kernels.a", ""), ["k"], host())

    first = key()
    assert key() == first
    assert key(c="x = 1\n") != first
    assert key(c="", d="x = 1\n") == first
    assert store.unit_key(("minifer.kernels.a", ""), ["k"], TARGETS["wasm32"]) != first
    assert store.unit_key(("minifer.kernels.a", ""), ["k", "l"], host()) != first
    monkeypatch.undo()
    store.forget_sources()


def test_cache_directory(monkeypatch):
    monkeypatch.delenv("MINIFER_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert store.user_cache() == "/somewhere/minifer"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert store.user_cache() == os.path.expanduser("~/Library/Caches/minifer")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert store.user_cache() == os.path.join("/local", "minifer")


def test_shipped_library(tmp_path, monkeypatch):
    """What a wheel ships is found without Numba."""
    target, key = host(), store.key_of(UNIT, host())
    data = build.library_bytes(UNIT, target)
    store.write(tmp_path / store.file_name(UNIT, target, key, store.SUFFIX), data)
    monkeypatch.setattr(store, "PREBUILT", str(tmp_path))
    monkeypatch.setattr(store, "numba_version", lambda: "")
    monkeypatch.setenv("MINIFER_CACHE_DIR", str(tmp_path / "none"))
    assert store.available()
    found = store.find(UNIT, target)
    assert found is not None and store.read(found) == data


def test_no_numba(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PREBUILT", str(tmp_path))
    monkeypatch.setattr(store, "numba_version", lambda: "")
    monkeypatch.setenv("MINIFER_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(library, "_failed", {})
    assert not store.available()
    with pytest.raises(KernelError, match="Numba is not installed"):
        library.ensure([tiny.double])


def test_native_function():
    add = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(library.address_of_native(tiny.tiny_sum))
    assert add(40, 2) == 42


def test_object_by_llvm_loader(tmp_path):
    """The way of systems that do not load ELF."""
    path = tmp_path / "tiny.o"
    store.write(path, build.library_bytes(UNIT, host(), ".o"))
    find = library.load_object(path)  # keeps the code alive
    entry = library.ENTRY(find(tiny.double.name))
    x, y = np.arange(16, dtype=np.float32), np.zeros(16, np.float32)
    args, bases = library.record(tiny.double, {"x": x, "y": y, "n": 16})
    assert entry(args.ctypes.data, bases.ctypes.data, 0, 1) == 0
    np.testing.assert_array_equal(y, 2 * x)


def test_workers(tmp_path, monkeypatch, capfd):
    """Families are built by other processes, with a bar when asked for."""
    from minifer.kernels import gemm

    monkeypatch.setenv("MINIFER_CACHE_DIR", str(tmp_path))
    unit = gemm.gemm.unit
    build.build([unit], host(), progress=True)
    assert store.find(unit, host()) is not None
    assert "1/1 gemm" in capfd.readouterr().err
    with pytest.raises(KernelError, match=r"minifer\.kernels\.nowhere: ModuleNotFoundError"):
        build.build([("minifer.kernels.nowhere", "")], host(), progress=False)


def test_old_builds_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIFER_CACHE_DIR", str(tmp_path))
    old, recent, other = tmp_path / f"tiny-{host().name}-1.so", tmp_path / f"tiny-{host().name}-2.so", tmp_path / "mine"
    for path in (old, recent, other):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    build.build([UNIT], host())
    assert not old.exists() and recent.exists() and other.exists()
    assert store.find(UNIT, host()) is not None


def test_command_line(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no kernel family nowhere; there are"):
        build.main(["nowhere"])
    build.main(["runner", "--out", str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == len(build.registered_units(["runner"]))


# ---------------------------------------------------------------- errors


def broken(x: ptr_f32, tid, nthreads):
    x.nonsense(3)


def test_compile_error_names_the_kernel():
    spec = kernel(name="tiny_broken", outputs=())(broken)
    del KERNELS["tiny_broken"]
    with pytest.raises(KernelError, match=r"kernel tiny_broken .*does not compile(.|\n)*nonsense"):
        lower.lower_unit([spec], host())


def mixed(x: ptr_f32, tid, nthreads):
    if tid > 3:
        return 1.5
    return 2.5


def test_result_must_be_an_integer():
    spec = kernel(name="tiny_mixed", outputs=())(mixed)
    del KERNELS["tiny_mixed"]
    with pytest.raises(KernelError, match="integer"):
        lower.lower_unit([spec], host())


def test_registration_errors():
    with pytest.raises(TypeError, match="already registered"):
        kernel(name="tiny_double")(tiny.double.body)
    with pytest.raises(TypeError, match="tid and nthreads"):
        kernel(name="tiny_wrong", outputs=())(lambda x: None)

    def untyped(x, tid, nthreads): ...

    untyped.__annotations__ = {"x": int}
    spec = kernel(name="tiny_wrong", outputs=())(untyped)
    del KERNELS["tiny_wrong"]
    with pytest.raises(TypeError, match="parameter x has no kernel type"):
        _ = spec.parameters
    untyped.__annotations__ = {"x": ptr_f32}
    with pytest.raises(TypeError, match="outputs"):
        kernel(name="tiny_wrong", outputs=("z",))(untyped)
    assert tiny.double.parameters[0] == Parameter("x", ptr_f32)


# ---------------------------------------------------------------- the linker


def test_shared_object_of_another_machine():
    """The aarch64 library has the layout that loaders expect, and every function of the unit."""
    target = TARGETS["aarch64"]
    code = build.object_code(UNIT, target)
    assert native.undefined_symbols(code) == set()
    data = elf.link_shared([code], ["tiny_double", "tiny_sum"], "libtiny.so")
    assert data[:4] == b"\x7fELF" and int.from_bytes(data[18:20], "little") == objects.EM_AARCH64
    assert b"tiny_double\0" in data and b"libtiny.so\0" in data
    with pytest.raises(KernelError, match="no function nothing"):
        elf.link_shared([code], ["nothing"], "x.so")
    with pytest.raises(KernelError, match="not a little-endian ELF"):
        elf.link_shared([b"MZ" + bytes(100)], [], "x.so")


def test_patches():
    """Relocations change the bits they should: encodings from the processor supplements."""

    def patched(patch, word, place, value, kind):
        image = bytearray(16)
        image[place : place + 4] = word.to_bytes(4, "little")
        patch(image, place, value, kind)
        return int.from_bytes(image[place : place + 4], "little")

    assert patched(elf._patch_x86_64, 0, 8, 4, 2) == 0xFFFFFFFC
    assert patched(elf._patch_aarch64, 0x94000000, 4, 4 + 16, 283) == 0x94000004  # bl +16
    assert patched(elf._patch_aarch64, 0x90000000, 0, 0x3000, 275) == 0xF0000000 | 0  # adrp x0, +3 pages
    assert patched(elf._patch_aarch64, 0x91000000, 0, 0x3018, 277) == 0x91006000  # add x0, x0, #0x18
    assert patched(elf._patch_aarch64, 0xF9400000, 0, 0x3018, 286) == 0xF9400C00  # ldr x0, [x0, #0x18]
    with pytest.raises(KernelError, match="relocation 1"):
        elf._patch_x86_64(bytearray(16), 0, 0, 1)
