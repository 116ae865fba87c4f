"""The linker for WebAssembly: LLVM's objects become modules that run alone, or KernelError says why not."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import tracemalloc

import numpy as np
import pytest

from minifer.codegen import wasm
from minifer.errors import KernelError
from minifer.kernels.target import TARGETS
from minifer.onnx_io.wire import encode_varint

HEADER = 'target datalayout = "e"\ntarget triple = "wasm32-unknown-unknown"\n'

PROGRAM = """
@weights = external hidden global [0 x float]
@more = external hidden global [0 x i8]
@space = external hidden global [0 x i8]
@unused = external hidden global [0 x i8]
@table = internal constant [3 x ptr] [ptr @twice, ptr @thrice, ptr @twice], align 16
@dead_table = internal constant [2 x ptr] [ptr @dead, ptr @dead], align 16
@word = internal constant [6 x i8] c"hello\\00"
@pointers = internal global [2 x ptr] [ptr getelementptr (i8, ptr @word, i32 1), ptr @weights], align 4
@counter = internal global i32 7
@zeros = internal global [100 x i32] zeroinitializer, align 16
declare void @llvm.memset.p0.i32(ptr, i8, i32, i1)
declare i32 @absent(i32)
declare i32 @missing(i32)

define i32 @twice(i32 %x) { %y = mul i32 %x, 2 ret i32 %y }
define i32 @thrice(i32 %x) { %y = mul i32 %x, 3 ret i32 %y }
define i32 @dead(i32 %x) { %y = mul i32 %x, 9 ret i32 %y }
define i32 @pick(i32 %i, i32 %x) {
  %p = getelementptr [3 x ptr], ptr @table, i32 0, i32 %i
  %f = load ptr, ptr %p
  %r = call i32 %f(i32 %x)
  ret i32 %r
}
define i32 @dead_pick(i32 %i) {
  %p = getelementptr [2 x ptr], ptr @dead_table, i32 0, i32 %i
  %f = load ptr, ptr %p
  %r = call i32 %f(i32 %i)
  ret i32 %r
}
define i32 @choose(i1 %i, i32 %x) {
  %f = select i1 %i, ptr @thrice, ptr @dead
  %r = call i32 %f(i32 %x)
  ret i32 %r
}
define float @weight(i32 %i) {
  %p = getelementptr float, ptr @weights, i32 %i
  %v = load float, ptr %p
  ret float %v
}
define float @third() {
  %v = load float, ptr getelementptr (float, ptr @weights, i32 3)
  ret float %v
}
define ptr @of_weights() { ret ptr @weights }
define ptr @of_more() { ret ptr @more }
define ptr @of_space() { ret ptr @space }
define ptr @before_space() { ret ptr getelementptr (i8, ptr @space, i32 -1000) }
define ptr @pointer(i32 %i) {
  %q = getelementptr ptr, ptr @pointers, i32 %i
  %p = load ptr, ptr %q
  ret ptr %p
}
define void @set_pointer(i32 %i) {
  %q = getelementptr ptr, ptr @pointers, i32 %i
  store ptr null, ptr %q
  ret void
}
define i32 @count() {
  %v = load i32, ptr @counter
  %w = add i32 %v, 1
  store i32 %w, ptr @counter
  %p = getelementptr i32, ptr @zeros, i32 %v
  %old = load i32, ptr %p
  store i32 99, ptr %p
  %sum = add i32 %w, %old
  ret i32 %sum
}
define i32 @local(i32 %n) {
  %a = alloca [100 x i32], align 16
  call void @llvm.memset.p0.i32(ptr %a, i8 3, i32 400, i1 false)
  %p = getelementptr i32, ptr %a, i32 %n
  store i32 5, ptr %p
  %q = getelementptr i32, ptr %a, i32 7
  %v = load i32, ptr %q
  ret i32 %v
}
define i32 @needs(i32 %x) {
  %y = call i32 @missing(i32 %x)
  %z = call i32 @absent(i32 %y)
  ret i32 %z
}
define ptr @of_unused() { ret ptr @unused }
"""
LIVE = [
    "twice", "pick", "choose", "weight", "third", "of_weights", "of_more", "of_space", "before_space", "pointer",
    "set_pointer", "count", "local",
]  # fmt: skip
DATA = {
    "weights": np.arange(5, dtype=np.float32) / 4,
    "more": b"more",
    "space": 1000,
}


def compiled(text: str, exports: list[str] | None = None) -> bytes:
    """IR text as an object; without `exports`, all its functions stay visible, so that LLVM keeps them."""
    pytest.importorskip("llvmlite")
    from minifer.codegen import emit

    return emit.emit_object(HEADER + text, exports or re.findall(r"^define .*?@(\w+)", text, re.M), TARGETS["wasm32"])


@pytest.fixture(scope="module")
def program() -> bytes:
    return compiled(PROGRAM)


def run(module: bytes, script: str, folder) -> object:
    """What the JavaScript expression gives, with the module's exports `e`, its `memory` and `bytes` in it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    path = folder / "module.wasm"
    path.write_bytes(module)
    program = f"""
        const module = new WebAssembly.Module(require("fs").readFileSync({json.dumps(str(path))}));
        const e = new WebAssembly.Instance(module).exports, memory = e.memory;
        const bytes = (at, size) => Array.from(new Uint8Array(memory.buffer, at, size));
        console.log(JSON.stringify({script}));
    """
    done = subprocess.run([node, "-e", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sections(module: bytes) -> dict[int, wasm.Reader]:
    assert module[:8] == b"\0asm\1\0\0\0"
    file, found = wasm.Reader(module, 8), {}
    while file.at < file.end:
        number = file.byte()
        assert number not in found
        found[number] = file.part()
    order = [n for n in found if n]
    assert order == sorted(order), "sections out of order"
    return found


def counts(module: bytes) -> dict[int, int]:
    """How many items each section has."""
    return {number: part.unsigned() for number, part in sections(module).items() if number}


def test_program_runs(program, tmp_path):
    module = wasm.link_module(program, LIVE, DATA)
    results = run(
        module,
        """{
          imports: WebAssembly.Module.imports(module), exports: Object.keys(e), heap: e.__heap_base.value,
          pages: memory.buffer.byteLength / 65536,
          picked: [0, 1, 2].map(i => e.pick(i, 5)), chosen: [0, 1].map(i => e.choose(i, 5)),
          weights: [0, 1, 2, 3, 4].map(i => e.weight(i)), third: e.third(),
          where: [e.of_weights(), e.of_more(), e.of_space()], before: e.before_space(),
          more: bytes(e.of_more(), 4), word: bytes(e.pointer(0), 5), pointer: e.pointer(1),
          counted: [e.count(), e.count()], local: [e.local(7), e.local(8)],
          space: bytes(e.of_space(), 1000).every(b => b === 0),
        }""",
        tmp_path,
    )
    assert results["imports"] == []
    assert sorted(results["exports"]) == sorted([*LIVE, "memory", "__heap_base"])
    assert results["picked"] == [10, 15, 10] and results["chosen"] == [45, 15]
    assert results["weights"] == [0, 0.25, 0.5, 0.75, 1] and results["third"] == 0.75
    weights, more, space = results["where"]
    assert all(place % 64 == 0 for place in (weights, more, space, results["heap"]))
    assert 65536 < weights < more < space and space + 1000 <= results["heap"] < space + 1000 + 512 + 64
    assert results["before"] == space - 1000 and results["pointer"] == weights
    assert bytes(results["more"]) == b"more" and bytes(results["word"]) == b"ello\0"
    assert results["counted"] == [8, 9] and results["local"] == [5, 0x03030303] and results["space"]
    assert results["pages"] == -(-results["heap"] // 65536) == 2


def test_wasm_validate_agrees(program, tmp_path):
    tool = shutil.which("wasm-validate")
    if tool is None:
        pytest.skip("wasm-validate is not installed")
    path = tmp_path / "module.wasm"
    for exports in (LIVE, ["twice"], ["pick"], ["local"], []):
        path.write_bytes(wasm.link_module(program, exports, DATA, names=True))
        subprocess.run([tool, str(path)], check=True, timeout=60)


def test_unreachable_parts_are_left_out(program):
    full, one = counts(wasm.link_module(program, LIVE, DATA)), counts(wasm.link_module(program, ["twice"], DATA))
    # all but dead_pick, needs and of_unused; dead is reached by choose
    assert full[10] == PROGRAM.count("\ndefine ") - 3
    assert one == {1: 1, 3: 1, 5: 1, 6: 1, 7: 3, 10: 1}, "a function that needs neither table, stack nor data"
    module = wasm.link_module(program, ["pick"], DATA)
    assert counts(module)[10] == 3 and counts(module)[11] == 1 and counts(module)[1] == 2
    table = sections(module)[wasm._TABLE]
    assert table.take(5) == b"\1\x70\1\3\3", "an empty entry and those of twice and thrice"


def test_a_pointer_in_data_keeps_what_it_points_to(program, tmp_path):
    module = wasm.link_module(program, ["set_pointer"], DATA)
    assert counts(module)[11] == 3, "the pointers, the word and the weights"
    assert run(module, "bytes(0x10000, 64).join()", tmp_path) != ",".join(["0"] * 64)


def test_types_appear_once(program):
    module = wasm.link_module(program, ["twice", "local", "weight", "of_more", "of_space"], DATA)
    assert counts(module)[1] == 3 and counts(module)[3] == 5


def test_operands_are_short(program):
    assert b"\x80\x80\x80\x80\0" in program
    assert b"\x80\x80\x80\x80\0" not in wasm.link_module(program, LIVE, DATA)


def test_same_input_same_module(program):
    module = wasm.link_module(program, LIVE, DATA)
    idle = {**DATA, "unused": b"not used", "other": 9}
    assert module == wasm.link_module(bytearray(program), tuple(LIVE), idle)


def test_many_types(tmp_path):
    """A type's number beyond 63 needs two bytes where blocks and indirect calls name it."""
    lines = [f"define i32 @f{n}({', '.join(f'i32 %a{i}' for i in range(n))}) {{ ret i32 {n} }}" for n in range(80)]
    text = f"""
@table = internal constant [80 x ptr] [{", ".join(f"ptr @f{n}" for n in range(80))}]
define i32 @last(i32 %i) {{
  %p = getelementptr ptr, ptr @table, i32 %i
  %f = load ptr, ptr %p
  %r = call i32 %f({", ".join(["i32 1"] * 79)})
  ret i32 %r
}}
"""
    names = [f"f{n}" for n in range(80)]
    module = wasm.link_module(compiled(text + "\n".join(lines)), [*names, "last"], {})
    assert b"\x11" + wasm.signed(79) + b"\0" in module, "call_indirect: the type in the form that fits blocks too"
    assert run(module, "[e.last(79), e.f3()]", tmp_path) == [79, 3]


def test_stack_overflow_traps(program, tmp_path):
    script = "(() => { try { return e.local(1); } catch (error) { return error.constructor.name; } })()"
    assert run(wasm.link_module(program, ["local"], DATA, stack_bytes=512), script, tmp_path) == 0x03030303
    assert run(wasm.link_module(program, ["local"], DATA, stack_bytes=256), script, tmp_path) == "RuntimeError"


@pytest.mark.parametrize(
    "value",
    [
        b"a\0b\0\0",
        bytearray(b"xyz"),
        memoryview(b"abcdef")[::2],
        np.arange(6, dtype=np.int16).reshape(2, 3).T,
        np.arange(3, dtype=">i4"),
        np.array(2.5),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        b"",
        np.int64(70000),
        0,
    ],
    ids=lambda v: type(v).__name__,
)
def test_kinds_of_data(program, tmp_path, value):
    if isinstance(value, (int, np.integer)):
        expected = bytes(int(value))
    elif isinstance(value, np.ndarray):
        expected = value.astype(value.dtype.newbyteorder("<")).tobytes()
    else:
        expected = bytes(value)
    module = wasm.link_module(program, ["of_more"], {"more": value})
    size = len(expected)
    found = run(module, f"[e.of_more(), e.__heap_base.value, bytes(e.of_more(), {size})]", tmp_path)
    assert found[0] == 65536 and found[1] == 65536 + -(-size // 64) * 64 and bytes(found[2]) == expected


def test_bfloat16_data(program):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    value = np.array([1, 2, 3], ml_dtypes.bfloat16)
    assert value.tobytes() in wasm.link_module(program, ["of_more"], {"more": value})


def test_addresses_above_two_gibibytes(program):
    data = {"more": 3 << 30, "space": 100}
    module = wasm.link_module(program, ["of_more", "of_space", "weight"], {**data, "weights": b"1234"})
    address = 65536 + 64 + (3 << 30)
    assert b"\x41" + wasm.signed(address - (1 << 32)) + b"\x0b" in module
    for size in ((4 << 30) - 65536, 1 << 40):
        with pytest.raises(KernelError, match="4 GiB"):
            wasm.link_module(program, ["of_more"], {"more": size})
    wasm.link_module(program, ["of_more"], {"more": (4 << 30) - 65536 - 64})


def test_weights_are_copied_once(program):
    weights = np.ones(1 << 22, np.float32)
    tracemalloc.start()
    module = wasm.link_module(program, ["weight"], {"weights": weights})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(module) > weights.nbytes and peak < 1.1 * weights.nbytes


def test_names(program):
    assert b"thrice" not in wasm.link_module(program, ["pick"], DATA)
    named = sections(wasm.link_module(program, ["pick"], DATA, names=True))[0]
    assert named.name() == "name" and named.byte() == 1
    part = named.part()
    assert part.vector(lambda r: (r.unsigned(), r.name())) == [(0, "twice"), (1, "thrice"), (2, "pick")]


def test_a_kernel(tmp_path):
    """A unit of kernels, called by the convention that all kernels have."""
    pytest.importorskip("numba")
    from minifer.codegen import build
    from tests.codegen import tiny

    module = wasm.link_module(build.compiled(tiny.double.unit, TARGETS["wasm32"]), ["tiny_double"], {})
    script = """(() => {
        const base = e.__heap_base.value, input = base + 128, output = base + 256;
        memory.grow(1);
        new BigInt64Array(memory.buffer, base, 5).set([0n, 0n, 1n, 0n, 16n]);  // which base and offset, twice; n
        new BigInt64Array(memory.buffer, base + 64, 2).set([BigInt(input), BigInt(output)]);
        new Float32Array(memory.buffer, input, 16).forEach((_, i, a) => a[i] = i);
        const status = e.tiny_double(base, base + 64, 0n, 1n);
        return [Number(status), Array.from(new Float32Array(memory.buffer, output, 16))];
    })()"""
    assert run(module, script, tmp_path) == [0, [2.0 * i for i in range(16)]]


# ---------------------------------------------------------------- what cannot be linked


def test_missing_names(program):
    with pytest.raises(KernelError, match="absent, missing, which nothing provides"):
        wasm.link_module(program, ["needs"], DATA)
    with pytest.raises(KernelError, match="needs weights, which"):
        wasm.link_module(program, ["weight", "of_more"], {"more": b""})
    with pytest.raises(KernelError, match="no function nowhere to export"):
        wasm.link_module(program, ["twice", "nowhere"], DATA)
    with pytest.raises(KernelError, match="no function absent to export"):
        wasm.link_module(program, ["absent"], DATA)
    function = "define i32 @f() { %x = call i32 @__stack_pointer() ret i32 %x }"
    code = compiled(f"declare i32 @__stack_pointer()\n{function}")
    with pytest.raises(KernelError, match="needs __stack_pointer, which"):
        wasm.link_module(code, ["f"], {})
    with pytest.raises(KernelError, match="more: cannot reserve -1 bytes"):
        wasm.link_module(program, ["of_more"], {"more": -1})


def machine_code(text: str, features: str) -> bytes:
    """IR text as an object, with nothing changed or optimised."""
    llvm = pytest.importorskip("llvmlite.binding")
    from minifer.codegen import emit

    emit.initialise()
    target = llvm.Target.from_triple("wasm32-unknown-unknown")
    machine = target.create_target_machine(features=features, reloc="static")
    return machine.emit_object(llvm.parse_assembly(f'target triple = "wasm32-unknown-unknown"\n{text}'))


def test_a_symbol_amid_a_segment(tmp_path):
    text = """
        @word = constant [6 x i8] c"hello\\00"
        @tail = alias i8, getelementptr (i8, ptr @word, i32 2)
        define ptr @f() { ret ptr @tail }
    """
    code = machine_code(text, "")
    module = wasm.link_module(code, ["f"], {})
    assert bytes(run(module, "bytes(e.f(), 4)", tmp_path)) == b"llo\0"
    at = code.index(b"tail", code.index(b"linking")) + 4  # segment, offset, size
    assert code[at : at + 2] == b"\0\2"
    with pytest.raises(KernelError, match="tail lies outside of its data segment"):
        wasm.link_module(code[: at + 1] + b"\6" + code[at + 2 :], ["f"], {})


def test_unsupported_features():
    variable = "@t = thread_local global i32 3\ndefine i32 @f() { %v = load i32, ptr @t ret i32 %v }"
    with pytest.raises(KernelError, match="thread-local"):
        wasm.link_module(machine_code(variable, "+atomics,+bulk-memory"), ["f"], {})
    entry = "{ i32, ptr, ptr }"
    start = f"@llvm.global_ctors = appending global [1 x {entry}] [{entry} {{ i32 1, ptr @f, ptr null }}]"
    with pytest.raises(KernelError, match="run at the start"):
        wasm.link_module(machine_code(f"{start}\ndefine void @f() {{ ret void }}", ""), ["f"], {})


def test_other_files(program):
    module = wasm.link_module(program, ["twice"], {})
    for file, message in [(b"", "begin"), (b"\x7fELF" * 9, "begin"), (module, "kind 5"), (module[:8], "relocatable")]:
        with pytest.raises(KernelError, match=message):
            wasm.link_module(file, [], {})


def test_unknown_relocations(program):
    """Each kind of relocation that the linker does not know, in the code and in the data."""
    for name, known in ((b"reloc.CODE", {0, 1, 3, 4, 6, 7, 20}), (b"reloc.DATA", {2, 5})):
        at = program.index(name) + len(name) + 1  # the section's number comes first, then the count
        reader = wasm.Reader(program, at)
        reader.unsigned()
        for kind in set(range(30)) - known:
            changed = program[: reader.at] + bytes([kind]) + program[reader.at + 1 :]
            with pytest.raises(KernelError, match=f"relocation of kind {kind} |malformed"):
                wasm.link_module(changed, LIVE, DATA)


SMALL = """
@weights = external hidden global [0 x float]
@table = internal constant [2 x ptr] [ptr @count, ptr @weights]
@counter = internal global i32 7
define i32 @count() {
  %v = load i32, ptr @counter
  %w = add i32 %v, 1
  store i32 %w, ptr @counter
  ret i32 %w
}
define i32 @pick(i32 %i) {
  %p = getelementptr [2 x ptr], ptr @table, i32 0, i32 %i
  %f = load ptr, ptr %p
  %r = call i32 %f()
  ret i32 %r
}
define i32 @local(i32 %n) {
  %a = alloca [100 x i32], align 16
  %p = getelementptr i32, ptr %a, i32 %n
  store volatile i32 5, ptr %p
  %v = load volatile i32, ptr %a
  %w = call i32 @count()
  %x = add i32 %v, %w
  ret i32 %x
}
"""


def links(file: bytes) -> bool:
    """Whether a damaged object still links; any other error than KernelError fails the test."""
    try:
        wasm.link_module(file, ["pick", "count", "local"], DATA, names=True)
    except KernelError:
        return False
    return True


def test_truncated_objects(program):
    """Only where a section ends after the symbols can an object end early and yet look whole."""
    linked = [size for size in range(len(program)) if links(program[:size])]
    file, ends = wasm.Reader(program, 8), set()
    while file.at < file.end:
        file.byte()
        file.part()
        ends.add(file.at)
    assert set(linked) <= ends and all(size > program.index(b"linking") for size in linked)


def test_damaged_objects():
    program = compiled(SMALL)
    assert links(program)
    refused = 0
    for at in range(len(program)):
        for byte in {0, 1, 0x7F, 0xFF, program[at] ^ 1} - {program[at]}:
            refused += not links(program[:at] + bytes([byte]) + program[at + 1 :])
    assert refused > len(program)


def test_endless_counts_and_numbers():
    def section(number: int, content: bytes) -> bytes:
        return bytes([number]) + encode_varint(len(content)) + content

    linking = section(0, b"\7linking\2")
    for wrong in (
        section(1, b"\xff\xff\xff\xff\x0f\x60\0\0"),
        section(3, b"\xff" * 12),
        section(11, b"\1\0\x41\0\x0b\xff\xff\xff\xff\x0f"),
        section(2, b"\1\3env\6memory\2\5\1\1"),
        section(0, b"\2\xff\xfe"),
        b"\1\xff\xff\xff\xff\x0f",
    ):
        with pytest.raises(KernelError):
            wasm.link_module(b"\0asm\1\0\0\0" + wrong + linking, [], {})
    empty = wasm.link_module(b"\0asm\1\0\0\0" + linking, [], {})
    assert counts(empty) == {5: 1, 6: 1, 7: 2}


@pytest.mark.parametrize("value", [0, 1, 63, 64, 127, 128, 8191, 8192, 65536, (1 << 31) - 1, -1, -64, -65, -(1 << 31)])
def test_numbers(value):
    assert wasm.Reader(wasm.signed(value)).signed() == value
    if value >= 0:
        assert wasm.Reader(encode_varint(value)).unsigned() == value
        assert len(encode_varint(value)) == max(1, -(-value.bit_length() // 7))
    if value >= 64:  # the form for types, which fits both readings
        assert wasm.Reader(wasm.signed(value)).unsigned() == value
    padded = struct.pack("5B", *(value >> 7 * i & 127 | (128 if i < 4 else 0) for i in range(5)))
    assert wasm.Reader(padded).signed() == value


@pytest.mark.parametrize("form", [b"", b"\x80", b"\xff\xff\xff\xff\x1f", b"\x80\x80\x80\x80\x80\0"])
def test_broken_numbers(form):
    for read in (wasm.Reader.unsigned, wasm.Reader.signed):
        with pytest.raises(KernelError, match="malformed"):
            read(wasm.Reader(form))
