"""Native files of a compiled model: objects with constants, archives, shared libraries; linked and run."""

from __future__ import annotations

import ctypes
import functools
import platform
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from minifer.codegen import elf, emit, native, objects
from minifer.errors import KernelError
from minifer.kernels.target import TARGETS, Target
from tests.codegen import reading

#: y = weights[n] * x + s, and a table of names, which needs constants of LLVM's own
CODE = """
target triple = ""
target datalayout = ""
@weights = external hidden constant [0 x i8]
@a = private unnamed_addr constant [6 x i8] c"first\\00"
@b = private unnamed_addr constant [7 x i8] c"second\\00"
@c = private unnamed_addr constant [6 x i8] c"third\\00"
@d = private unnamed_addr constant [7 x i8] c"fourth\\00"
define float @net_scale(ptr %x, i64 %n, float %s) {
  %place = getelementptr float, ptr @weights, i64 %n
  %weight = load float, ptr %place
  %value = load float, ptr %x
  %product = fmul float %weight, %value
  %sum = fadd float %product, %s
  ret float %sum
}
define ptr @net_name(i64 %i) {
  switch i64 %i, label %none [ i64 0, label %a
    i64 1, label %b
    i64 2, label %c
    i64 3, label %d ]
a: ret ptr @a
b: ret ptr @b
c: ret ptr @c
d: ret ptr @d
none: ret ptr null
}
"""
EXPORTS = ("net_scale", "net_name")
WEIGHTS = np.arange(1000, dtype=np.float32)

#: uses both functions and prints what `EXPECTED` says
PROGRAM = """
#include <stdio.h>
extern float net_scale(const float *x, long n, float s);
extern const char *net_name(long i);
int main(void) {
    float x = 0.5f;
    printf("%g %g", net_scale(&x, 998, 0.25f), net_scale(&x, 3, -1.0f));
    for (long i = 0; net_name(i); i++) printf(" %s", net_name(i));
    return 0;
}
"""
EXPECTED = "499.25 0.5 first second third fourth"

_X86 = TARGETS["x86-64-v2"]
MACHINES: dict[str, Target] = {
    "x86_64": _X86,
    "aarch64": TARGETS["aarch64"],
    "riscv64": _X86._replace(
        name="riscv64", triple="riscv64-unknown-linux-gnu", cpu="generic-rv64", features="+m,+a,+f,+d,+c"
    ),
    "thumbv7em": _X86._replace(name="thumbv7em", triple="thumbv7em-none-unknown-eabihf", cpu="cortex-m4", features=""),
}
#: machines whose objects are only looked through
OTHERS = {
    "wasm32": TARGETS["wasm32"],
    "windows": _X86._replace(name="windows", triple="x86_64-pc-windows-msvc"),
    "macos": _X86._replace(name="macos", triple="arm64-apple-macosx11.0.0", cpu="apple-m1"),
}
LINUX = ("x86_64", "aarch64", "riscv64")


@functools.cache
def emitted(machine: str) -> bytes:
    return emit.emit_object(CODE, EXPORTS, MACHINES[machine])


@functools.cache
def complete(machine: str) -> bytes:
    return native.with_data(emitted(machine), "weights", WEIGHTS)


def tool(*names: str) -> str:
    for name in names:
        if shutil.which(name):
            return name
    pytest.skip(f"{names[0]} is not installed")


def output(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "there should be no warnings"
    return done.stdout


class Toolchain:
    """C compiler and runner for a machine; the test is skipped where one is missing."""

    def __init__(self, machine: str):
        own = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64") == machine
        self.compiler = tool("gcc" if own else f"{machine}-linux-gnu-gcc")
        self.runner = [] if own else [tool(f"qemu-{machine}-static", f"qemu-{machine}")]
        if self.runner:
            libc = Path(output(self.compiler, "-print-file-name=libc.so.6").strip()).resolve()
            self.runner += ["-L", str(libc.parent.parent)]

    def run(self, folder: Path, *inputs: str | Path, program: str = PROGRAM) -> str:
        (folder / "main.c").write_text(program)
        output(self.compiler, "-o", folder / "main", folder / "main.c", *inputs)
        return output(*self.runner, folder / "main")


# -------- objects


@pytest.mark.parametrize("machine", LINUX)
def test_object_links_and_runs(machine, tmp_path):
    (tmp_path / "net.o").write_bytes(complete(machine))
    assert Toolchain(machine).run(tmp_path, tmp_path / "net.o") == EXPECTED


@pytest.mark.parametrize("machine", LINUX)
def test_only_the_symbol_and_a_section_are_new(machine):
    before, after = reading.ElfObject(emitted(machine)), reading.ElfObject(complete(machine))
    assert [s.name for s in after.sections[:-1]] == [s.name for s in before.sections]
    for old, new in zip(before.sections, after.sections):
        if old.name not in (".strtab", ".symtab"):
            assert after.content(new) == before.content(old), old.name
        assert (new.kind, new.flags, new.link, new.info, new.align) == (
            old.kind, old.flags, old.link, old.info, old.align
        )  # fmt: skip
        assert new.offset % max(new.align, 1) == 0
    assert (after.machine, after.flags) == (before.machine, before.flags)
    data = after.sections[-1]
    assert (data.name, data.flags, data.align) == (".rodata.weights", objects.SHF_ALLOC, 64)
    assert after.content(data) == WEIGHTS.tobytes()
    changed = [(old, new) for old, new in zip(before.symbols, after.symbols) if old != new]
    symbol = reading.Symbol("weights", True, len(after.sections) - 1, 0, WEIGHTS.nbytes)
    assert changed == [(reading.Symbol("weights", True, 0, 0, 0), symbol)]


@pytest.mark.parametrize("machine", MACHINES)
def test_readelf_finds_nothing_wrong(machine, tmp_path):
    readelf = tool("readelf")
    (tmp_path / "net.o").write_bytes(complete(machine))
    text = output(readelf, "-aW", tmp_path / "net.o")
    assert "Warning" not in text and "Error" not in text
    (symbol,) = (line.split() for line in text.splitlines() if line.split()[-1:] == ["weights"] and "OBJECT" in line)
    assert symbol[4:6] == ["GLOBAL", "HIDDEN"] and int(symbol[2], 0) == WEIGHTS.nbytes
    if machine == "riscv64":
        assert "double-float ABI" in text


def test_thumb_object_holds_the_data():
    """The 32-bit format; read here by hand, since minifer links no 32-bit objects."""
    code = complete("thumbv7em")
    table, size, count = struct.unpack_from("<I", code, 32)[0], *struct.unpack_from("<HH", code, 46)
    offset, length = struct.unpack_from("<II", code, table + size * (count - 1) + 16)
    assert size == 40 and code[offset : offset + length] == WEIGHTS.tobytes() and offset % 64 == 0
    assert native.undefined_symbols(code) == set()


def test_equal_input_gives_an_equal_object():
    once = native.with_data(emitted("x86_64"), "weights", WEIGHTS)
    for same in (WEIGHTS.tobytes(), bytearray(WEIGHTS.tobytes()), memoryview(WEIGHTS.reshape(10, 100))):
        assert native.with_data(emitted("x86_64"), "weights", same) == once


def test_no_data_that_nothing_refers_to():
    assert native.with_data(complete("x86_64"), "other", b"") == complete("x86_64")


def test_no_data_still_has_an_address():
    """Linkers place no empty section, so one byte stands in for no data at all."""
    code = reading.ElfObject(native.with_data(emitted("x86_64"), "weights", b""))
    assert code.sections[-1].size == 1
    assert [s.size for s in code.symbols if s.name == "weights"] == [0]


def test_data_is_copied_once():
    data = bytes(1 << 24)
    emitted("x86_64")
    tracemalloc.start()
    native.with_data(emitted("x86_64"), "weights", data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * len(data)


def test_several_symbols():
    code = CODE + "@more = external hidden constant [0 x i8]\ndefine ptr @net_more() { ret ptr @more }\n"
    code = emit.emit_object(code, (*EXPORTS, "net_more"), MACHINES["x86_64"])
    code = native.with_data(native.with_data(code, "more", b"abc", align=1), "weights", b"xyz")
    native.check_no_undefined(code)
    read = reading.ElfObject(code)
    assert [read.content(s) for s in read.sections if s.name.startswith(".rodata.")][-2:] == [b"abc", b"xyz"]


@pytest.mark.parametrize(
    "symbol, data, align, message",
    [
        ("other", b"x", 64, "does not refer to 'other'"),
        ("", b"x", 64, "does not refer"),
        ("net_scale", b"x", 64, "defines net_scale already"),
        ("weights", b"x", 48, "power of two"),
        ("weights", b"x", 0, "power of two"),
        ("weights", WEIGHTS[::2], 64, "contiguous"),
        ("weights", "text", 64, "bytes"),
    ],
)
def test_what_cannot_be_added(symbol, data, align, message):
    with pytest.raises(KernelError, match=message):
        native.with_data(emitted("x86_64"), symbol, data, align)


def test_more_data_than_code_reaches(monkeypatch):
    monkeypatch.setattr(native, "_REACH", 100)
    with pytest.raises(KernelError, match="--weights separate"):
        native.with_data(emitted("x86_64"), "weights", bytes(101))


# -------- archives


@pytest.mark.parametrize("machine", LINUX)
@pytest.mark.parametrize("limit", [1 << 32, 100], ids=["index of 32 bits", "index of 64 bits"])
def test_archive_links_and_runs(machine, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_SMALL", limit)
    members = [("readme", b"odd"), ("a_name_longer_than_a_header_takes.o", complete(machine))]
    (tmp_path / "libnet.a").write_bytes(data := native.archive(members))
    assert data[8:24].split() == [b"/" if limit > len(data) else b"/SYM64/"]
    assert Toolchain(machine).run(tmp_path, "-static", "-L", tmp_path, "-lnet") == EXPECTED


def test_archive_as_binutils_read_it(tmp_path):
    ar, nm = tool("ar"), tool("nm")
    members = [("one.o", complete("x86_64")), ("exactly_15_long", b"12345"), ("exactly__16_long", b""), ("two.o", b"0")]
    path = tmp_path / "libnet.a"
    path.write_bytes(native.archive(members))
    assert output(ar, "t", path).split() == [name for name, _ in members]
    for name, content in members:
        assert subprocess.run([ar, "p", path, name], capture_output=True).stdout == content
    listing = output(ar, "tvO", path).splitlines()
    assert all(line.startswith("rw-r--r-- 0/0 ") and "1970" in line for line in listing)
    listing = subprocess.run([nm, "-s", path], capture_output=True, text=True).stdout
    assert [f"{name} in one.o" in listing for name in (*EXPORTS, "weights", "a")] == [True, True, True, False]


def test_archive_has_no_more_than_its_members():
    """The bytes of a small one, as the format's description has them."""
    header = "{:<16}0           0     0     644     {:<10}`\n"
    content = header.format("/", 4) + "\0\0\0\0" + header.format("a.txt/", 3) + "abc\n"
    assert native.archive([("a.txt", b"abc")]) == b"!<arch>\n" + content.encode()


def test_index_points_at_the_members():
    files = [("one.o", complete("x86_64")), ("two.o", emitted("aarch64"))]
    data = native.archive(files)
    (count,) = struct.unpack_from(">I", data, 68)
    places = struct.unpack_from(f">{count}I", data, 72)
    names = data[72 + 4 * count :].split(b"\0", count)[:count]
    one, two = data.index(b"one.o/"), data.index(b"two.o/")
    assert sorted(zip(names, places)) == sorted(
        [(b"net_scale", one), (b"net_name", one), (b"weights", one), (b"net_scale", two), (b"net_name", two)]
    )


@pytest.mark.parametrize("name", ["", "a/b", "a\nb", "\udc80"])
def test_names_an_archive_cannot_have(name):
    with pytest.raises(KernelError, match="cannot be the name"):
        native.archive([(name, b"")])


def test_rust_links_an_archive(tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs an x86-64 machine")
    rustc = tool("rustc")
    (tmp_path / "libnet.a").write_bytes(native.archive([("net.o", complete("x86_64"))]))
    (tmp_path / "main.rs").write_text(
        """
        #[link(name = "net", kind = "static")]
        unsafe extern "C" { fn net_scale(x: *const f32, n: i64, s: f32) -> f32; }
        fn main() { let x = 0.5; println!("{}", unsafe { net_scale(&x, 998, 0.25) }); }
        """
    )
    output(rustc, "--edition", "2021", "-L", tmp_path, "-o", tmp_path / "main", tmp_path / "main.rs")
    assert output(tmp_path / "main") == "499.25\n"


# -------- shared libraries

#: what else objects may ask of a linker: calls within a file and between files, a table of jumps, constants that
#: instructions name directly
FIRST = """
target triple = ""
target datalayout = ""
@weights = external hidden constant [0 x i8]
declare hidden i64 @twice(i64) nounwind
declare hidden i64 @step(i64, i64) nounwind
define i64 @net_twice(i64 %x) nounwind { %y = call i64 @twice(i64 %x) %z = add i64 %y, 1 ret i64 %z }
define i64 @net_loads() nounwind {
  %b = load i8, ptr getelementptr (i8, ptr @weights, i64 4007)
  %h = load i16, ptr getelementptr (i8, ptr @weights, i64 4010)
  %w = load i32, ptr getelementptr (i8, ptr @weights, i64 4020)
  %d = load i64, ptr getelementptr (i8, ptr @weights, i64 4024)
  %v = load <4 x i32>, ptr getelementptr (i8, ptr @weights, i64 4032)
  %b64 = zext i8 %b to i64
  %h64 = zext i16 %h to i64
  %w64 = zext i32 %w to i64
  %v1 = extractelement <4 x i32> %v, i32 3
  %v64 = zext i32 %v1 to i64
  %s1 = add i64 %b64, %h64
  %s2 = add i64 %s1, %w64
  %s3 = add i64 %s2, %d
  %s4 = add i64 %s3, %v64
  ret i64 %s4
}
define double @net_constant(double %x) nounwind { %y = fmul double %x, 3.141592653589793 ret double %y }
define i64 @net_jump(i64 %i) nounwind {
  switch i64 %i, label %none [ i64 0, label %a
    i64 1, label %b
    i64 2, label %c
    i64 3, label %d
    i64 4, label %e ]
a: %r0 = call i64 @step(i64 5, i64 %i)
   ret i64 %r0
b: %r1 = call i64 @twice(i64 %i)
   ret i64 %r1
c: %r2 = call i64 @step(i64 %i, i64 7)
   %r3 = call i64 @twice(i64 %r2)
   ret i64 %r3
d: %r4 = call i64 @step(i64 %i, i64 %i)
   %r5 = add i64 %r4, 100
   ret i64 %r5
e: %r6 = call i64 @twice(i64 40)
   %r7 = call i64 @step(i64 %r6, i64 1)
   ret i64 %r7
none: ret i64 -1
}
"""
SECOND = """
target triple = ""
target datalayout = ""
define hidden i64 @twice(i64 %x) nounwind { %y = shl i64 %x, 1 ret i64 %y }
define hidden i64 @step(i64 %x, i64 %y) nounwind { %m = mul i64 %y, 10 %z = add i64 %x, %m ret i64 %z }
"""
TWO_EXPORTS = ("net_twice", "net_loads", "net_constant", "net_jump")
TWO_PROGRAM = """
#include <stdio.h>
extern long net_twice(long), net_loads(void), net_jump(long);
extern double net_constant(double);
int main(void) {
    printf("%ld %ld %.6f", net_twice(20), net_loads(), net_constant(2));
    for (long i = 0; i < 6; i++) printf(" %ld", net_jump(i));
    return 0;
}
"""
#: 4020 bytes of 1, 2, 3 ... modulo 251, as little-endian numbers
TWO_DATA = bytes(i % 251 for i in range(4100))
_number = lambda at, size: int.from_bytes(TWO_DATA[at : at + size], "little")  # noqa: E731
_LOADS = _number(4007, 1) + _number(4010, 2) + _number(4020, 4) + _number(4024, 8) + _number(4044, 4)
TWO_EXPECTED = f"41 {_LOADS} 6.283185 5 2 144 133 90 -1"


@functools.cache
def two(machine: str) -> tuple[bytes, bytes]:
    first = emit.emit_object(FIRST, TWO_EXPORTS, MACHINES[machine])
    second = emit.emit_object(SECOND, ("twice", "step"), MACHINES[machine])
    return native.with_data(first, "weights", TWO_DATA), second


@functools.cache
def linked(machine: str) -> bytes:
    return elf.link_shared([complete(machine)], EXPORTS, "libnet.so")


def dynamic_symbols(path: Path) -> dict[str, list[str]]:
    """Name -> type and binding of what a shared library exports, as readelf finds it."""
    lines = output(tool("readelf"), "-W", "--dyn-syms", path).splitlines()
    rows = [line.split() for line in lines if line.split()[-1:] and line.split()[0].rstrip(":").isdigit()]
    return {row[7]: row[3:5] for row in rows if len(row) == 8}


@pytest.mark.parametrize("machine", LINUX)
def test_library_links_and_runs(machine, tmp_path):
    path = tmp_path / "libnet.so"
    path.write_bytes(linked(machine))
    assert Toolchain(machine).run(tmp_path, "-L", tmp_path, "-lnet", f"-Wl,-rpath,{tmp_path}") == EXPECTED


@pytest.mark.parametrize("machine", LINUX)
def test_every_relocation(machine, tmp_path):
    (tmp_path / "libtwo.so").write_bytes(elf.link_shared(two(machine), TWO_EXPORTS, "libtwo.so"))
    ours = Toolchain(machine).run(
        tmp_path, "-L", tmp_path, "-ltwo", f"-Wl,-rpath,{tmp_path}", program=TWO_PROGRAM
    )  # fmt: skip
    assert ours == TWO_EXPECTED


def test_library_in_this_process(tmp_path):
    """With a large constant, as weights are; found by the loader, without a compiler at hand."""
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    if machine not in LINUX or not sys.platform.startswith("linux"):
        pytest.skip("no library for this machine")
    weights = np.zeros(25_000_000, np.float32)
    weights[-1] = 42
    code = native.with_data(emitted(machine), "weights", weights)
    path = tmp_path / "libnet.so"
    path.write_bytes(elf.link_shared([code], EXPORTS, "libnet.so"))
    library = ctypes.CDLL(str(path))
    library.net_scale.restype = ctypes.c_float
    library.net_scale.argtypes = [ctypes.POINTER(ctypes.c_float), ctypes.c_int64, ctypes.c_float]
    assert library.net_scale(ctypes.c_float(0.5), len(weights) - 1, 1) == 22
    library.net_name.restype = ctypes.c_char_p
    assert [library.net_name(i) for i in (0, 3, 4)] == [b"first", b"fourth", None]
    assert not hasattr(library, "weights")


@pytest.mark.parametrize("machine", LINUX)
def test_readelf_finds_a_library_in_order(machine, tmp_path):
    path = tmp_path / "libnet.so"
    path.write_bytes(linked(machine))
    text = output(tool("readelf"), "-aW", path)
    assert "Warning" not in text and "Error" not in text
    assert dynamic_symbols(path) == {name: ["FUNC", "GLOBAL"] for name in EXPORTS}
    assert "There are no relocations" in text and "Library soname: [libnet.so]" in text
    loads = [line.split() for line in text.splitlines() if line.split()[:1] == ["LOAD"]]
    assert ["".join(load[6:-1]) for load in loads] == ["R", "RE", "RW"]
    code = reading.ElfObject(linked(machine))
    (constants,) = (s for s in code.sections if s.name == ".rodata")
    at = linked(machine).index(WEIGHTS.tobytes())
    assert constants.offset < at < constants.offset + constants.size and at % 64 == 0


def test_library_survives_strip(tmp_path):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs an x86-64 machine")
    strip, toolchain = tool("strip"), Toolchain("x86_64")
    path = tmp_path / "libnet.so"
    path.write_bytes(linked("x86_64"))
    output(strip, path)
    assert toolchain.run(tmp_path, path, f"-Wl,-rpath,{tmp_path}") == EXPECTED


def test_library_is_made_with_one_copy():
    code = native.with_data(emitted("x86_64"), "weights", bytes(1 << 24))
    tracemalloc.start()
    elf.link_shared([code], EXPORTS, "libnet.so")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * len(code)


def test_equal_input_gives_an_equal_library():
    assert elf.link_shared([complete("aarch64")], EXPORTS, "libnet.so") == linked("aarch64")


@pytest.mark.parametrize("machine, number", [("x86_64", 62), ("aarch64", 183), ("riscv64", 243)])
def test_addresses_out_of_reach(machine, number, monkeypatch):
    monkeypatch.setitem(elf._PAGE, number, 1 << 33)  # so far apart are constants and code
    with pytest.raises(KernelError, match=r"address in \.text is too far away"):
        linked.__wrapped__(machine)


def test_calls_out_of_reach(monkeypatch):
    monkeypatch.setitem(elf._AARCH64_REACH, 283, 4)
    with pytest.raises(KernelError, match="too far away"):
        elf.link_shared(two("aarch64"), TWO_EXPORTS, "libtwo.so")


def code_for_library(text: str, exports: Iterable[str] = ("f",)) -> bytes:
    return emit.emit_object('target triple = ""\ntarget datalayout = ""\n' + text, exports, MACHINES["x86_64"])


@pytest.mark.parametrize(
    "files, exports, message",
    [
        (lambda: [emitted("x86_64")], EXPORTS, "undefined symbol weights"),
        (lambda: [complete("x86_64")], ["net_other"], "no function net_other"),
        (lambda: [complete("x86_64")], ["weights"], "no function weights"),
        (lambda: [complete("x86_64")], [""], "need names"),
        (lambda: [complete("x86_64")] * 2, EXPORTS, "is defined twice"),
        (lambda: [complete("x86_64"), complete("aarch64")], EXPORTS, "different machines"),
        (lambda: [complete("thumbv7em")], EXPORTS, "x86-64, aarch64 and riscv64"),
        (lambda: [], EXPORTS, "x86-64, aarch64 and riscv64"),
        (
            lambda: [
                code_for_library(
                    "@x = global i32 1\ndefine i32 @f() { %v = load i32, ptr @x %w = add i32 %v, 1 "
                    "store i32 %w, ptr @x ret i32 %w }"
                )
            ],
            ["f"],
            r"data that is written to \(section .data",
        ),
        (
            lambda: [code_for_library("declare i32 @g(i32)\ndefine i32 @f() { %v = call i32 @g(i32 1) ret i32 %v }")],
            ["f"],
            "undefined symbol g",
        ),
    ],
)
def test_what_cannot_be_linked(files, exports, message):
    with pytest.raises(KernelError, match=message):
        elf.link_shared(files(), exports, "libnet.so")


# -------- undefined symbols


@pytest.mark.parametrize("machine", [*MACHINES, *OTHERS])
def test_undefined_symbols(machine):
    target = MACHINES.get(machine) or OTHERS[machine]
    code = (  # nounwind: on ARM, unwinding would need a symbol more
        'target triple = ""\ntarget datalayout = ""\ndeclare void @first()\ndeclare void @second_second()\n'
        "define void @f() nounwind { call void @first() call void @second_second() ret void }"
    )
    code = emit.emit_object(code, ["f"], target)
    with pytest.raises(KernelError, match="needs first, second_second from a library"):
        native.check_no_undefined(code)
    with pytest.raises(KernelError, match="needs second_second from"):
        native.check_no_undefined(code, allowed=["first"])
    native.check_no_undefined(code, ("first", "second_second", "third"))


# -------- damaged files


def damaged(code: bytes):
    """The file cut short at many places, and with bytes and numbers replaced."""
    yield from (code[:n] for n in {*range(0, 70), *range(70, len(code), 41), len(code) - 1})
    chance = random.Random(4)
    table = struct.unpack_from("<Q" if code[4] == 2 else "<I", code, 40 if code[4] == 2 else 32)[0]
    for _ in range(600):
        changed = bytearray(code)
        for _ in range(chance.randint(1, 3)):
            at = chance.choice([chance.randrange(64), chance.randrange(table, len(code)), chance.randrange(len(code))])
            changed[at : at + 1] = chance.choice([b"\0", b"\xff", b"\x7f", b"\xff" * 4, chance.randbytes(2)])[:1]
        yield bytes(changed)


def helper(code: bytes) -> bytes:
    """An object for the machine that the header names, which defines the symbol `weights`."""
    names = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
    machine = names.get(int.from_bytes(code[18:20], "little"), "x86_64")
    return weights_object(machine)


@functools.cache
def weights_object(machine: str) -> bytes:
    text = 'target triple = ""\ntarget datalayout = ""\n@weights = external hidden constant [0 x i8]\n'
    code = emit.emit_object(text + "define ptr @other() { ret ptr @weights }", ["other"], MACHINES[machine])
    return native.with_data(code, "weights", WEIGHTS)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    "use",
    [
        lambda code: native.with_data(code, "weights", b"abc"),
        lambda code: native.archive([("net.o", code)]),
        lambda code: native.check_no_undefined(code, ["weights"]),
        lambda code: elf.link_shared([code, helper(code)], (), "libnet.so"),
    ],
    ids=["with_data", "archive", "check_no_undefined", "link_shared"],
)
def test_damaged_objects(machine, use):
    refused = 0
    for code in damaged(emitted(machine)):
        try:
            use(code)
        except KernelError:
            refused += 1
    assert refused > 20


def test_relocation_outside_of_its_section():
    code = bytearray(complete("x86_64"))
    (table, *_) = (s for s in reading.ElfObject(bytes(code)).sections if s.name == ".rela.text")
    code[table.offset : table.offset + 8] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(KernelError, match=r"relocation in \.rela\.text lies outside"):
        elf.link_shared([bytes(code)], EXPORTS, "libnet.so")


def test_name_outside_of_its_table():
    code = bytearray(complete("x86_64"))
    read = reading.ElfObject(bytes(code))
    (table,) = (section for section in read.sections if section.kind == objects.SHT_SYMTAB)
    at = table.offset + 24 * [symbol.name for symbol in read.symbols].index("weights")
    code[at : at + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(KernelError, match="outside of its table"):
        native.check_no_undefined(bytes(code))


@pytest.mark.parametrize("machine", OTHERS)
def test_damaged_objects_of_other_formats(machine):
    text = CODE.replace("@weights = external hidden constant [0 x i8]", "declare ptr @weights()")
    text = text.replace("getelementptr float, ptr @weights, i64 %n", "call ptr @weights()")
    code = emit.emit_object(text, EXPORTS, OTHERS[machine])
    assert native.undefined_symbols(code) - {"_fltused"} == {"weights"}
    chance = random.Random(5)
    files = [code[:n] for n in range(4, len(code))]
    for _ in range(1000):
        changed = bytearray(code)
        changed[chance.randrange(4, len(code))] = chance.choice((0, 127, 255))
        files.append(bytes(changed))
    refused = 0
    for file in files:
        try:
            native.check_no_undefined(file, ["_fltused", "weights"])
        except KernelError as problem:
            refused += any(word in str(problem) for word in ("cannot be read", "malformed"))
    assert refused > 20
