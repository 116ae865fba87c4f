"""The code of a compiled model: LLVM IR of the functions that it exports, linked with the kernels that it calls.

`run` fills an array of base addresses and calls one kernel after the other. A branch, or the body of a loop, is a
function of its own that does the same with bases made of those around it. A call's argument record lies among the
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
from minifer.embed.program import Program
from minifer.embed.steps import Branch, CallStep, Copy, Inside, Part, Place, Repeat, all_calls, all_inside
from minifer.kernels.runner_layout import share_word
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
    for call in all_calls(program.main):
        kernels.setdefault(call.kernel.name, []).append(call)
    shared = {kernel: _same_words([c.words for c in calls]) for kernel, calls in kernels.items()}
    records = {
        call: program.weights.place(_record(call.words, shared[call.kernel.name])) for call in all_calls(program.main)
    }
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
    text = "\n".join(_main(_Text(Program(interface, program.main, program.weights), records, size_type(target))))
    code = emit.emit_linked(text, interface.exports, parts, target)
    return Code(code, program.weights.content(), f"{name}_weights", interface)


def _same_words(records: list[tuple[int, ...]]) -> list[int | None]:
    """For each word of a kernel's records its value, where all agree; else None."""
    return [words[0] if len(set(words)) == 1 else None for words in zip(*records)]


def _record(words: tuple[int, ...], shared: list[int | None]) -> np.ndarray:
    """The words of a record that are its own."""
    return np.array([word for word, same in zip(words, shared) if same is None], np.int64)


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
    lines += [f"  %s = call i64 @{kernel}(ptr %r, ptr %bases, i64 0, i64 {share_word(1, 1, 0)})", "  ret i64 %s", "}"]
    return "\n".join(lines)


class _Text:
    """What the text of every function needs to know."""

    def __init__(self, program: Program, records: dict[CallStep, int], word: str):
        self.main, self.interface = program.main, program.interface
        self.name = program.interface.name  # with which all names begin
        self.records = records  # where the record of each call lies in the weights
        self.word = word  # LLVM's name for size_t
        self.inside = {inside: f"{self.name}_part{i}" for i, inside in enumerate(all_inside(self.main), 1)}  # functions
        separate = program.interface.separate
        self.weights = "%weights" if separate else f"@{self.name}_weights"
        self.passed = ", ptr %weights" if separate else ""  # to the functions of parts


def _main(text: _Text) -> Iterator[str]:
    """The text of `run`, of the parts inside it, and of the functions that describe the model."""
    interface, name, word = text.interface, text.name, text.word
    yield emit.HEADER
    yield f"%buffer = type {{ ptr, {word} }}"
    if not interface.separate:
        yield f"@{name}_weights = external hidden constant [0 x i8], align {ALIGNMENT}"
    for kernel in sorted({c.kernel.name for c in text.records}):
        yield f"declare i64 @{name}_kernel_{kernel}(ptr, ptr)"
    yield from _run(text)
    for inside in text.inside:
        yield from _part(inside, text)
    yield _COPY
    yield f"define {word} @{name}_workspace_bytes() {{\n  ret {word} {interface.workspace_bytes}\n}}"
    held = interface.weights_bytes if interface.separate else 0
    yield f"define {word} @{name}_weights_bytes() {{\n  ret {word} {held}\n}}"
    yield from _describe(f"{name}_input", interface.inputs, word)
    yield from _describe(f"{name}_output", interface.outputs, word)


def size_type(target: Target) -> str:
    """LLVM's name for size_t."""
    return "i32" if target.triple.startswith(("wasm32", "thumb")) else "i64"


def _run(text: _Text) -> Iterator[str]:
    main, interface, word = text.main, text.interface, text.word
    weights = f", ptr %weights, {word} %weights_bytes" if interface.separate else ""
    yield (
        f"define i32 @{interface.name}_run(ptr %inputs, {word} %input_count, ptr %outputs, {word} %output_count, "
        f"ptr %workspace, {word} %workspace_bytes{weights}) {{"
    )
    yield f"  %bases = alloca [{main.bases} x i64], align 8"
    yield _store_base(0, "0")
    inputs = tuple(main.inputs.get(tensor.name, -1) for tensor in interface.inputs)
    yield from _buffers("input", interface.inputs, inputs, Status.INPUTS, word)
    yield from _buffers("output", interface.outputs, tuple(b for b, _ in main.outputs), Status.OUTPUTS, word)
    yield from _block("workspace", interface.workspace_bytes, "uge", Status.WORKSPACE, word)
    yield _store_base(1, "%workspace_address")
    if interface.separate:
        yield from _block("weights", interface.weights_bytes, "eq", Status.WEIGHTS, word)
        yield "  br label %ready\nready:"
    else:
        yield f"  %weights_address = ptrtoint ptr @{interface.name}_weights to i64"
        yield "  br label %ready\nready:"
    yield _store_base(main.weights, "%weights_address")
    yield from _steps(main, text)
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


# ---------------------------------------------------------------- steps


def _steps(part: Part, text: _Text) -> Iterator[str]:
    """The text of a part's steps. A status other than 0 ends the function."""
    for i, step in enumerate(part.steps):
        if isinstance(step, Copy):
            yield from _copied(f"c{i}", step)
        elif isinstance(step, CallStep):
            yield f"  %r{i} = getelementptr i8, ptr {text.weights}, {text.word} {text.records[step]}"
            yield f"  %s{i} = call i64 @{text.name}_kernel_{step.kernel.name}(ptr %r{i}, ptr %bases)"
            yield from _unless_refused(i, f"done{i}")
        elif isinstance(step, Branch):
            yield from _branch(i, step, text)
        else:
            yield from _repeat(i, step, text)


def _unless_refused(i: int, following: str) -> Iterator[str]:
    """Go on where the status of step `i` is 0."""
    yield f"  %z{i} = icmp eq i64 %s{i}, 0"
    yield f"  br i1 %z{i}, label %{following}, label %bad_refused\n{following}:"


def _branch(i: int, step: Branch, text: _Text) -> Iterator[str]:
    """One of two parts, as a byte says."""
    yield from _is_set(f"b{i}", step.condition)
    yield f"  br i1 %b{i}, label %then{i}, label %else{i}\nthen{i}:"
    yield f"  %t{i} = {_called(step.then, '0', text)}\n  br label %joined{i}\nelse{i}:"
    yield f"  %e{i} = {_called(step.otherwise, '0', text)}\n  br label %joined{i}\njoined{i}:"
    yield f"  %s{i} = phi i64 [ %t{i}, %then{i} ], [ %e{i}, %else{i} ]"
    yield from _unless_refused(i, f"done{i}")


def _repeat(i: int, step: Repeat, text: _Text) -> Iterator[str]:
    """Turns of a part, while there are some left and a byte says to go on."""
    limit = str(step.trips)
    if isinstance(step.trips, tuple):
        yield from _pointer(f"m{i}", step.trips)
        yield f"  %limit{i} = load i64, ptr %m{i}"
        limit = f"%limit{i}"
    yield f"  br label %before{i}\nbefore{i}:\n  br label %head{i}\nhead{i}:"
    yield f"  %turn{i} = phi i64 [ 0, %before{i} ], [ %next{i}, %again{i} ]"
    if step.trips is not None:
        yield f"  %left{i} = icmp slt i64 %turn{i}, {limit}"
        yield f"  br i1 %left{i}, label %asked{i}, label %done{i}\nasked{i}:"
    if step.running is not None:
        yield from _is_set(f"g{i}", step.running)
        yield f"  br i1 %g{i}, label %body{i}, label %done{i}\nbody{i}:"
    if step.turn is not None:
        yield from _pointer(f"n{i}", step.turn)
        yield f"  store i64 %turn{i}, ptr %n{i}"
    yield f"  %s{i} = {_called(step.body, f'%turn{i}', text)}"
    yield from _unless_refused(i, f"again{i}")
    for k, copy in enumerate(step.after):
        yield from _copied(f"a{i}_{k}", copy)
    yield f"  %next{i} = add i64 %turn{i}, 1\n  br label %head{i}\ndone{i}:"


def _called(inside: Inside, turn: str, text: _Text) -> str:
    return f"call i64 @{text.inside[inside]}(ptr %bases, i64 {turn}{text.passed})"


def _part(inside: Inside, text: _Text) -> Iterator[str]:
    """The function of a part: it makes its bases of those around it, then does its steps."""
    yield f"define internal i64 @{text.inside[inside]}(ptr %outer, i64 %turn{text.passed}) {{"
    yield f"  %bases = alloca [{inside.part.bases} x i64], align 8"
    yield _store_base(0, "0")
    for link in inside.links:
        base, offset = link.place
        label = f"%l{link.base}"
        yield f"  {label}_at = getelementptr i64, ptr %outer, i32 {base}"
        yield f"  {label}_start = load i64, ptr {label}_at, align 8"
        yield f"  {label}_first = add i64 {label}_start, {offset}"
        yield f"  {label}_way = mul i64 %turn, {link.stride}"
        yield f"  {label} = add i64 {label}_first, {label}_way"
        yield _store_base(link.base, label)
    yield from _steps(inside.part, text)
    yield "  ret i64 0\nbad_refused:\n  ret i64 1\n}"


def _pointer(label: str, place: Place) -> Iterator[str]:
    """`%label` points to a place."""
    base, offset = place
    yield f"  %{label}_base = getelementptr i64, ptr %bases, i32 {base}"
    yield f"  %{label}_start = load i64, ptr %{label}_base, align 8"
    yield f"  %{label}_address = add i64 %{label}_start, {offset}"
    yield f"  %{label} = inttoptr i64 %{label}_address to ptr"


def _is_set(label: str, place: Place) -> Iterator[str]:
    """`%label` is whether the byte at a place is not 0."""
    yield from _pointer(f"{label}_p", place)
    yield f"  %{label}_byte = load i8, ptr %{label}_p"
    yield f"  %{label} = icmp ne i8 %{label}_byte, 0"


def _copied(label: str, copy: Copy) -> Iterator[str]:
    yield from _pointer(f"{label}_to", copy.target)
    yield from _pointer(f"{label}_from", copy.source)
    yield f"  call void @copy_bytes(ptr %{label}_to, ptr %{label}_from, i64 {copy.nbytes})"


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
