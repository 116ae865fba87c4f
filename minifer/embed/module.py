"""The code of a compiled model: LLVM IR of the functions that it exports, linked with the kernels that it calls.

`run` fills an array of base addresses and calls one kernel after the other. A call's argument record lies among the
weights. What is the same in all calls of a kernel (no residual anywhere, one activation) is not in the record but
written into the kernel before it is optimised, so the code holds only what the model needs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from minifer.codegen import build, emit
from minifer.embed.abi import ALIGNMENT, Interface, Status, Tensor
from minifer.embed.program import CallStep, Program
from minifer.kernels.target import Target

#: ONNX's numbers of the element types (TensorProto.DataType)
ELEMENT_NUMBERS = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Code:
    """A relocatable object whose symbol `weights_symbol` is for the weights, and these."""

    object_code: bytes
    weights: np.ndarray
    weights_symbol: str
    interface: Interface
    metadata: dict[str, str] = field(default_factory=dict)  # of the model


def compile_program(program: Program, target: Target) -> Code:
    """The object code of a program for a target."""
    name = program.interface.name
    kernels: dict[str, list[CallStep]] = {}
    for call in program.calls:
        kernels.setdefault(call.kernel.name, []).append(call)
    shared = {kernel: _same_words([c.words for c in calls]) for kernel, calls in kernels.items()}
    records = [
        program.weights.place(np.array([w for w, s in zip(c.words, shared[c.kernel.name]) if s is None], np.int64))
        for c in program.calls
    ]
    interface = replace(program.interface, weights_bytes=program.weights.size)
    parts = []
    units = sorted({calls[0].kernel.unit for calls in kernels.values()})
    if missing := build.lacks_ir(units, target):
        print(f"minifer: preparing {len(missing)} kernel families for {target.name}, once", file=sys.stderr)
    for unit in units:
        chosen = sorted(k for k, calls in kernels.items() if calls[0].kernel.unit == unit)
        wrappers = "\n".join(_wrapper(name, kernel, shared[kernel]) for kernel in chosen)
        parts.append((build.raw_ir(unit, target) + wrappers, [f"{name}_kernel_{kernel}" for kernel in chosen]))
    if target.name == "thumbv7em":  # an assertion of LLVM's software pipeliner fails on some of our loops there
        import llvmlite.binding as llvm

        llvm.set_option("minifer", "-enable-pipeliner=false")
    text = "\n".join(_main(replace(program, interface=interface), records, target))
    code = emit.emit_linked(text, interface.exports, parts, target)
    return Code(code, program.weights.content(), f"{name}_weights", interface)


def _same_words(records: list[tuple[int, ...]]) -> list[int | None]:
    """For each word of a kernel's records its value, where all agree; else None."""
    return [words[0] if len(set(words)) == 1 else None for words in zip(*records)]


def _wrapper(name: str, kernel: str, shared: list[int | None]) -> str:
    """A function that puts a whole record together and calls the kernel, which is then inlined and simplified."""
    lines = [f"define i64 @{name}_kernel_{kernel}(ptr %given, ptr %bases) {{", f"  %r = alloca [{len(shared)} x i64]"]
    taken = 0
    for i, value in enumerate(shared):
        text = str(value)
        if value is None:
            lines.append(f"  %p{i} = getelementptr i64, ptr %given, i64 {taken}")
            lines.append(f"  %v{i} = load i64, ptr %p{i}, align 8")
            text, taken = f"%v{i}", taken + 1
        lines.append(f"  %q{i} = getelementptr i64, ptr %r, i64 {i}")
        lines.append(f"  store i64 {text}, ptr %q{i}, align 8")
    lines += [f"  %s = call i64 @{kernel}(ptr %r, ptr %bases, i64 0, i64 1)", "  ret i64 %s", "}"]
    return "\n".join(lines)


def _main(program: Program, records: list[int], target: Target) -> Iterator[str]:
    """The text of `run` and of the functions that describe the model."""
    interface = program.interface
    name, word = interface.name, size_type(target)
    yield emit.HEADER
    yield f"%buffer = type {{ ptr, {word} }}"
    if not interface.separate:
        yield f"@{name}_weights = external hidden constant [0 x i8], align {ALIGNMENT}"
    for kernel in sorted({c.kernel.name for c in program.calls}):
        yield f"declare i64 @{name}_kernel_{kernel}(ptr, ptr)"
    yield from _run(program, records, word)
    yield _COPY
    yield f"define {word} @{name}_workspace_bytes() {{\n  ret {word} {interface.workspace_bytes}\n}}"
    held = interface.weights_bytes if interface.separate else 0
    yield f"define {word} @{name}_weights_bytes() {{\n  ret {word} {held}\n}}"
    yield from _describe(f"{name}_input", interface.inputs, word)
    yield from _describe(f"{name}_output", interface.outputs, word)


def size_type(target: Target) -> str:
    """LLVM's name for size_t."""
    return "i32" if target.triple.startswith(("wasm32", "thumb")) else "i64"


def _run(program: Program, records: list[int], word: str) -> Iterator[str]:
    interface = program.interface
    weights = f", ptr %weights, {word} %weights_bytes" if interface.separate else ""
    yield (
        f"define i32 @{interface.name}_run(ptr %inputs, {word} %input_count, ptr %outputs, {word} %output_count, "
        f"ptr %workspace, {word} %workspace_bytes{weights}) {{"
    )
    yield f"  %bases = alloca [{program.bases} x i64], align 8"
    yield _store_base(0, "0")
    yield from _buffers("input", interface.inputs, program.input_bases, Status.INPUTS, word)
    yield from _buffers("output", interface.outputs, program.output_bases, Status.OUTPUTS, word)
    yield from _block("workspace", interface.workspace_bytes, "uge", Status.WORKSPACE, word)
    yield _store_base(1, "%workspace_address")
    if interface.separate:
        yield from _block("weights", interface.weights_bytes, "eq", Status.WEIGHTS, word)
        yield "  br label %ready\nready:"
    else:
        yield f"  %weights_address = ptrtoint ptr @{interface.name}_weights to i64"
        yield "  br label %ready\nready:"
    yield _store_base(program.weights_base, "%weights_address")
    start = "%weights" if interface.separate else f"@{interface.name}_weights"
    for i, (call, record) in enumerate(zip(program.calls, records)):
        yield f"  %r{i} = getelementptr i8, ptr {start}, {word} {record}"
        yield f"  %s{i} = call i64 @{interface.name}_kernel_{call.kernel.name}(ptr %r{i}, ptr %bases)"
        yield f"  %z{i} = icmp eq i64 %s{i}, 0"
        yield f"  br i1 %z{i}, label %done{i}, label %bad_refused\ndone{i}:"
    for i, copy in enumerate(program.copies):
        yield f"  %cb{i} = getelementptr i64, ptr %bases, {word} {copy.base}"
        yield f"  %ca{i} = load i64, ptr %cb{i}, align 8"
        yield f"  %cs{i} = add i64 %ca{i}, {copy.offset}"
        yield f"  %cp{i} = inttoptr i64 %cs{i} to ptr"
        yield f"  call void @copy_bytes(ptr %output{copy.output}_data, ptr %cp{i}, i64 {copy.nbytes})"
    yield f"  ret i32 {Status.OK:d}"
    for status in (Status.INPUTS, Status.OUTPUTS, Status.WORKSPACE, Status.WEIGHTS, Status.REFUSED):
        if status != Status.WEIGHTS or interface.separate:
            yield f"bad_{status.name.lower()}:\n  ret i32 {status:d}"
    yield "}"


def _store_base(base: int, value: str) -> str:
    return f"  %base{base} = getelementptr i64, ptr %bases, i32 {base}\n  store i64 {value}, ptr %base{base}, align 8"


def _buffers(
    kind: str, tensors: tuple[Tensor, ...], bases: tuple[int, ...], status: Status, word: str
) -> Iterator[str]:
    """Check a list of buffers and store their addresses."""
    bad = f"label %bad_{status.name.lower()}"
    yield f"  %{kind}_fits = icmp eq {word} %{kind}_count, {len(tensors)}"
    yield f"  br i1 %{kind}_fits, label %{kind}_list, {bad}\n{kind}_list:"
    if tensors:
        yield f"  %{kind}_null = icmp eq ptr %{kind}s, null"
        yield f"  br i1 %{kind}_null, {bad}, label %{kind}_first\n{kind}_first:"
    for i, (tensor, base) in enumerate(zip(tensors, bases)):
        v = f"%{kind}{i}"
        yield f"  {v}_at = getelementptr %buffer, ptr %{kind}s, i32 {i}, i32 0"
        yield f"  {v}_data = load ptr, ptr {v}_at"
        yield f"  {v}_size = getelementptr %buffer, ptr %{kind}s, i32 {i}, i32 1"
        yield f"  {v}_bytes = load {word}, ptr {v}_size"
        yield f"  {v}_same = icmp eq {word} {v}_bytes, {tensor.bytes}"
        yield f"  {v}_there = icmp ne ptr {v}_data, null"
        yield f"  {v}_good = and i1 {v}_same, {v}_there" if tensor.bytes else f"  {v}_good = or i1 {v}_same, false"
        yield f"  br i1 {v}_good, label %{kind}{i}_ok, {bad}\n{kind}{i}_ok:"
        if base >= 0:
            yield f"  {v}_address = ptrtoint ptr {v}_data to i64"
            yield _store_base(base, f"{v}_address")


def _block(kind: str, nbytes: int, order: str, status: Status, word: str) -> Iterator[str]:
    """Check a piece of memory: its size and where it begins."""
    bad = f"label %bad_{status.name.lower()}"
    yield f"  %{kind}_fits = icmp {order} {word} %{kind}_bytes, {nbytes}"
    yield f"  br i1 %{kind}_fits, label %{kind}_sized, {bad}\n{kind}_sized:"
    yield f"  %{kind}_address = ptrtoint ptr %{kind} to i64"
    yield f"  %{kind}_low = and i64 %{kind}_address, {ALIGNMENT - 1}"
    yield f"  %{kind}_even = icmp eq i64 %{kind}_low, 0"
    yield f"  %{kind}_there = icmp ne ptr %{kind}, null"
    yield f"  %{kind}_good = and i1 %{kind}_even, %{kind}_there"
    yield f"  br i1 %{kind}_good, label %{kind}_ok, {bad}\n{kind}_ok:"


_COPY = """define internal void @copy_bytes(ptr %to, ptr %from, i64 %count) {
  br label %test
test:
  %i = phi i64 [ 0, %0 ], [ %next, %body ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %end
body:
  %source = getelementptr i8, ptr %from, i64 %i
  %byte = load i8, ptr %source
  %target = getelementptr i8, ptr %to, i64 %i
  store i8 %byte, ptr %target
  %next = add i64 %i, 1
  br label %test
end:
  ret void
}"""


def _describe(prefix: str, tensors: tuple[Tensor, ...], word: str) -> Iterator[str]:
    """The functions that answer what the inputs (or outputs) are."""
    names, starts = bytearray(), []
    for tensor in tensors:
        starts.append(len(names))
        names += tensor.name.encode() + b"\0"
    most = max([len(t.shape) for t in tensors], default=0)
    rows = [
        (s, ELEMENT_NUMBERS.get(t.dtype, 0), len(t.shape), t.bytes, *t.shape, *[-1] * (most - len(t.shape)))
        for t, s in zip(tensors, starts)
    ]
    width = 4 + most
    flat = ", ".join(f"i64 {value}" for row in rows for value in row)
    text = "".join(f"\\{byte:02x}" for byte in names)
    yield f"define {word} @{prefix}_count() {{\n  ret {word} {len(tensors)}\n}}"
    yield f"@{prefix}_rows = internal unnamed_addr constant [{len(rows) * width} x i64] [{flat}], align 8"
    yield f'@{prefix}_names = internal unnamed_addr constant [{len(names)} x i8] c"{text}", align 1'
    there = f"  %in = icmp ult {word} %i, {len(tensors)}\n  br i1 %in, label %have, label %none\nhave:"
    row = f"  %at = mul {word} %i, {width}"

    def fact(column: int) -> str:
        return (
            f"  %column = add {word} %at, {column}\n"
            f"  %place = getelementptr i64, ptr @{prefix}_rows, {word} %column\n"
            f"  %value = load i64, ptr %place, align 8"
        )

    def narrowed(kind: str) -> str:
        return (
            f"  ret {kind} %value" if kind == "i64" else f"  %short = trunc i64 %value to {kind}\n  ret {kind} %short"
        )

    for what, column, kind in (("dtype", 1, "i32"), ("rank", 2, word), ("bytes", 3, word)):
        yield f"define {kind} @{prefix}_{what}({word} %i) {{\n{there}\n{row}\n{fact(column)}\n{narrowed(kind)}"
        yield f"none:\n  ret {kind} 0\n}}"
    yield f"define ptr @{prefix}_name({word} %i) {{\n{there}\n{row}\n{fact(0)}"
    yield f"  %found = getelementptr i8, ptr @{prefix}_names, i64 %value\n  ret ptr %found\nnone:\n  ret ptr null\n}}"
    yield f"define i64 @{prefix}_dim({word} %i, {word} %axis) {{\n{there}"
    yield f"  %low = icmp ult {word} %axis, {most}\n  br i1 %low, label %read, label %none\nread:\n{row}"
    yield f"  %start = add {word} %at, %axis\n  %column = add {word} %start, 4"
    yield f"  %place = getelementptr i64, ptr @{prefix}_rows, {word} %column\n  %value = load i64, ptr %place, align 8"
    yield "  ret i64 %value\nnone:\n  ret i64 -1\n}"
