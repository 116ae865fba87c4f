"""A model small enough to be written by hand, twice: in C and as LLVM IR.

It gives, for each of two numbers of rows, the product of that row of an image with the weights, and whether it is
above zero. Numbers of rows that the image has not are refused.
"""

from __future__ import annotations

import struct
from pathlib import Path

from minifer.codegen import emit
from minifer.codegen.wasm import link_module
from minifer.embed.abi import Interface, Tensor
from minifer.kernels.target import TARGETS

WEIGHTS = (1.0, 10.0, 100.0)
WEIGHTS_FILE = struct.pack("<3f", *WEIGHTS)
WORKSPACE_BYTES = 200_000  # more than a WebAssembly module has from the start
#: names that would end a comment, leave a string, or clash with the bindings' own
INPUTS = (Tensor('Image:0 */ "é\\', "image", "float32", (2, 3)), Tensor("Rows", "weights", "int64", (2,)))
OUTPUTS = (Tensor("probs", "probs", "float32", (2,)), Tensor("Image", "image", "bool", (2,)))


def interface(separate: bool = False) -> Interface:
    """The model's description; with the weights in a file of their own or not."""
    return Interface("toy", INPUTS, OUTPUTS, WORKSPACE_BYTES, len(WEIGHTS_FILE), separate)


def c_code(separate: bool = False) -> str:
    """The model in C, for a header beside it."""
    given = ", const void *weights, size_t weights_bytes" if separate else ""
    lines = [
        '#include "toy.h"',
        "static int aligned(const void *p) { return p && (uintptr_t)p % 64 == 0; }",
        "int32_t toy_run(const minifer_buffer *in, size_t ins, const minifer_buffer *out, size_t outs,",
        f"                void *workspace, size_t workspace_bytes{given}) {{",
        "    if (ins != 2 || !in || in[0].bytes != 24 || in[1].bytes != 16) return 1;",
        "    if (outs != 2 || !out || out[0].bytes != 8 || out[1].bytes != 2) return 2;",
        f"    if (!aligned(workspace) || workspace_bytes < {WORKSPACE_BYTES}) return 3;",
        "    if (!aligned(weights) || weights_bytes != 12) return 4;"
        if separate
        else f"    static const float weights[] = {{{', '.join(map(str, WEIGHTS))}}};",
        f"    float *sum = (float *)((char *)workspace + {WORKSPACE_BYTES - 4});",
        "    for (int j = 0; j < 2; j++) {",
        "        int64_t row = ((const int64_t *)in[1].data)[j];",
        "        if (row < 0 || row > 1) return 5;",
        "        *sum = 0;",
        "        for (int k = 0; k < 3; k++)",
        "            *sum += ((const float *)in[0].data)[3 * row + k] * ((const float *)weights)[k];",
        "        ((float *)out[0].data)[j] = *sum;",
        "        ((uint8_t *)out[1].data)[j] = *sum > 0;",
        "    }",
        "    return 0;",
        "}",
        f"size_t toy_workspace_bytes(void) {{ return {WORKSPACE_BYTES}; }}",
        f"size_t toy_weights_bytes(void) {{ return {len(WEIGHTS_FILE) if separate else 0}; }}",
    ]
    for kind, tensors in (("input", INPUTS), ("output", OUTPUTS)):
        lines.append(f"size_t toy_{kind}_count(void) {{ return {len(tensors)}; }}")
        first, last = (t.bytes for t in tensors)
        lines.append(f"size_t toy_{kind}_bytes(size_t i) {{ return i == 0 ? {first} : {last}; }}")
    return "\n".join(lines) + "\n"


def wasm(separate: bool = False, weights: tuple[float, ...] = WEIGHTS, prefix: str = "toy") -> bytes:
    """The model as a WebAssembly module."""
    exports = [f"{prefix}_{what}" for what in _facts(separate)] + [f"{prefix}_run"]
    code = emit.emit_object(_ir(separate, weights, prefix), exports, TARGETS["wasm32"])
    return link_module(code, exports, {})


def write_wasm(folder: Path, separate: bool = False) -> None:
    """Write toy.wasm; toy.fast.wasm, whose weights are halved so that one can tell; and the weights where apart."""
    (folder / "toy.wasm").write_bytes(wasm(separate))
    halved = tuple(w / 2 for w in WEIGHTS)
    (folder / "toy.fast.wasm").write_bytes(wasm(separate, halved))
    if separate:
        (folder / "toy.weights").write_bytes(WEIGHTS_FILE)


def _facts(separate: bool) -> dict[str, tuple[int, ...]]:
    facts: dict[str, tuple[int, ...]] = {
        "workspace_bytes": (WORKSPACE_BYTES,),
        "weights_bytes": (len(WEIGHTS_FILE) if separate else 0,),
    }
    for kind, tensors in (("input", INPUTS), ("output", OUTPUTS)):
        facts[f"{kind}_count"] = (len(tensors),)
        facts[f"{kind}_bytes"] = tuple(t.bytes for t in tensors)
    return facts


def _ir(separate: bool, weights: tuple[float, ...], prefix: str) -> str:
    lines = ['target triple = ""', 'target datalayout = ""', "%buffer = type { ptr, i32 }"]
    for name, values in _facts(separate).items():
        parameter = "i32 %i" if name.endswith("put_bytes") else ""
        lines.append(f"define i32 @{prefix}_{name}({parameter}) {{")
        if parameter:
            lines.append("  %first = icmp eq i32 %i, 0")
            lines.append(f"  %value = select i1 %first, i32 {values[0]}, i32 {values[1]}\n  ret i32 %value\n}}")
        else:
            lines.append(f"  ret i32 {values[0]}\n}}")
    given = ", ptr %weights, i32 %weights_bytes" if separate else ""
    held = "%weights" if separate else "@weights"
    if not separate:
        lines.append(f"@weights = internal constant [3 x float] [{', '.join(f'float {w:e}' for w in weights)}]")
    lists = "ptr %in, i32 %ins, ptr %out, i32 %outs"
    lines.append(f"define i32 @{prefix}_run({lists}, ptr %workspace, i32 %workspace_bytes{given}) {{")
    for kind, tensors, status in (("in", INPUTS, 1), ("out", OUTPUTS, 2)):
        for i, tensor in enumerate(tensors):
            at = f"%{kind}{i}"
            lines += [
                f"  {at}_at = getelementptr %buffer, ptr %{kind}, i32 {i}",
                f"  {at} = load ptr, ptr {at}_at",
                f"  {at}_size_at = getelementptr %buffer, ptr %{kind}, i32 {i}, i32 1",
                f"  {at}_size = load i32, ptr {at}_size_at",
                *_unless(f"{kind}{i}", f"eq i32 {at}_size, {tensor.bytes}", status),
            ]
    for what, order, size, status in (("workspace", "uge", WORKSPACE_BYTES, 3), ("weights", "eq", 12, 4)):
        if what == "workspace" or separate:
            lines += _unless(f"{what}_size", f"{order} i32 %{what}_bytes, {size}", status)
            lines.append(f"  %{what}_at = ptrtoint ptr %{what} to i32\n  %{what}_low = and i32 %{what}_at, 63")
            lines += _unless(f"{what}_begin", f"eq i32 %{what}_low, 0", status)
    lines.append(f"  %last = getelementptr i8, ptr %workspace, i32 {WORKSPACE_BYTES - 4}")
    for j in range(2):
        lines += [
            f"  %row{j}_at = getelementptr i64, ptr %in1, i32 {j}",
            f"  %row{j} = load i64, ptr %row{j}_at",
            *_unless(f"row{j}", f"ult i64 %row{j}, 2", 5),
            f"  %start{j} = mul i64 %row{j}, 3\n  %sum{j}_0 = fadd float 0.0, 0.0",
        ]
        for k in range(3):
            x = f"{j}_{k}"
            lines += [
                f"  %i{x} = add i64 %start{j}, {k}\n  %xp{x} = getelementptr float, ptr %in0, i64 %i{x}",
                f"  %x{x} = load float, ptr %xp{x}\n  %wp{x} = getelementptr float, ptr {held}, i32 {k}",
                f"  %w{x} = load float, ptr %wp{x}\n  %m{x} = fmul float %x{x}, %w{x}",
                f"  %sum{j}_{k + 1} = fadd float %sum{x}, %m{x}",
            ]
        lines += [
            f"  store volatile float %sum{j}_3, ptr %last\n  %kept{j} = load volatile float, ptr %last",
            f"  %prob{j}_at = getelementptr float, ptr %out0, i32 {j}\n  store float %kept{j}, ptr %prob{j}_at",
            f"  %above{j} = fcmp ogt float %kept{j}, 0.0\n  %flag{j} = zext i1 %above{j} to i8",
            f"  %flag{j}_at = getelementptr i8, ptr %out1, i32 {j}\n  store i8 %flag{j}, ptr %flag{j}_at",
        ]
    return "\n".join([*lines, "  ret i32 0", "}", ""])


def _unless(label: str, condition: str, status: int) -> list[str]:
    """Return a status unless a comparison holds."""
    return [
        f"  %c_{label} = icmp {condition}",
        f"  br i1 %c_{label}, label %ok_{label}, label %bad_{label}",
        f"bad_{label}:\n  ret i32 {status}\nok_{label}:",
    ]
