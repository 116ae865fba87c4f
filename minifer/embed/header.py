"""The C and C++ header of a compiled model: constants, prototypes and a call with typed parameters."""

from __future__ import annotations

from string import Template

from minifer import dtypes
from minifer.embed.abi import ALIGNMENT, STATUS_TEXT, Interface, Status, Tensor
from minifer.embed.elements import ELEMENTS, brief, element, parameters

_HEADER = Template("""\
/* Made by minifer from the model $name. Compile the model again instead of editing this file.
 *
 * A program that runs it on zeros:
 *
$example
 *
$tensors
 * Tensors are dense and row-major. $other begin at a multiple of $alignment bytes. Nothing is allocated
 * and nothing kept between calls: any number of threads may call, each with a workspace of its own.
 */
#ifndef MINIFER_MODEL_${upper}_H
#define MINIFER_MODEL_${upper}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef MINIFER_BUFFER_DEFINED
#define MINIFER_BUFFER_DEFINED

#define MINIFER_ALIGNMENT $alignment

/* An input or output: where it is, and its size. */
typedef struct minifer_buffer {
    void *data;
    size_t bytes;
} minifer_buffer;

/* What a run returns. */
enum minifer_status {
$statuses
};

/* Element types, by ONNX's numbers. */
enum minifer_dtype {
$dtypes
};

/* The first place from `memory` on that a workspace or weights may begin at. */
static inline void *minifer_aligned(void *memory) {
    uintptr_t address = (uintptr_t)memory;
    return (char *)memory + (MINIFER_ALIGNMENT - address % MINIFER_ALIGNMENT) % MINIFER_ALIGNMENT;
}

#endif /* MINIFER_BUFFER_DEFINED */

$constants

/* Runs the model. The counts and the sizes of all buffers must be those above. */
int32_t ${name}_run(const minifer_buffer *inputs, size_t input_count,
        const minifer_buffer *outputs, size_t output_count,
        void *workspace, size_t workspace_bytes$run_weights);

/* Sizes in bytes. The weights are ${weights_where}. */
size_t ${name}_workspace_bytes(void);
size_t ${name}_weights_bytes(void);

/* The inputs and outputs. A name is NULL, a type 0 and a dimension -1 where there is none of that number. */
$facts

/* The meaning of a status, in English. */
static inline const char *${name}_status_text(int32_t status) {
    switch (status) {
$texts
    default: return "a status that this version of the header does not know";
    }
}

/* Runs the model on arrays of the sizes above${call_note}. */
static inline int32_t ${name}_call($call_parameters) {
$call_body
}

#ifdef __cplusplus
}
#endif

#endif /* MINIFER_MODEL_${upper}_H */
""")


def header(interface: Interface) -> str:
    """The text of NAME.h, for C99 and C++; UnsupportedError where C has no type for an input or output."""
    return _HEADER.substitute(
        name=interface.name,
        upper=interface.name.upper(),
        alignment=ALIGNMENT,
        example="\n".join(f" *     {line}".rstrip() for line in example(interface)),
        tensors="".join(
            f" * {kind} {brief(t)}\n"
            for kind, tensors in (("Input", interface.inputs), ("Output", interface.outputs))
            for t in tensors
        )
        + " *",
        other="Workspace and weights" if interface.separate else "A workspace must",
        statuses=",\n".join(f"    MINIFER_STATUS_{s.name} = {s.value}" for s in Status),
        dtypes=",\n".join(f"    MINIFER_{d.upper()} = {dtypes.code_of_name(d)}" for d in ELEMENTS),
        constants="\n".join(_constants(interface)),
        run_weights=",\n        const void *weights, size_t weights_bytes" if interface.separate else "",
        weights_where="in a file of their own" if interface.separate else "part of the code, so that they count as 0",
        facts="\n".join(_facts(interface)),
        texts="\n".join(f'    case MINIFER_STATUS_{s.name}: return "{text}";' for s, text in STATUS_TEXT.items()),
        call_note=" and weights of NAME_WEIGHTS_BYTES".replace("NAME", interface.name.upper())
        if interface.separate
        else "",
        call_parameters=_call_parameters(interface),
        call_body="\n".join(_call_body(interface)),
    )


def example(interface: Interface) -> list[str]:
    """The lines of the C program in the header's comment."""
    name, upper = interface.name, interface.name.upper()
    inputs, outputs = parameters(interface, *_OWN, "room", "status", "file", "argc", "argv")
    lines = ["#include <stdio.h>", "#include <stdlib.h>", f'#include "{name}.h"', ""]
    lines.append("int main(int argc, char **argv) {" if interface.separate else "int main(void) {")
    for kind, pairs in (("INPUT", inputs), ("OUTPUT", outputs)):
        for tensor, variable in pairs:
            lines.append(f"    static {element(tensor).c} {variable}[{_macro(interface, kind, tensor)}_SIZE];")
    lines.append(f"    void *room = malloc({upper}_WORKSPACE_BYTES + MINIFER_ALIGNMENT);")
    if interface.separate:
        lines += [
            f"    void *weights = minifer_aligned(malloc({upper}_WEIGHTS_BYTES + MINIFER_ALIGNMENT));",
            '    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;',
            f"    if (!file || fread(weights, {upper}_WEIGHTS_BYTES, 1, file) != 1) return 1;",
        ]
    arguments = [variable for _, variable in (*inputs, *outputs)] + ["minifer_aligned(room)"]
    arguments += ["weights"] if interface.separate else []
    return lines + [
        f"    int32_t status = {name}_call({', '.join(arguments)});",
        f'    printf("%s\\n", {name}_status_text(status));',
        "    free(room);",
        "    return status;",
        "}",
    ]


#: the names in NAME_call beside those of the tensors
_OWN = ("workspace", "weights", "input_table", "output_table")


def _macro(interface: Interface, kind: str, tensor: Tensor) -> str:
    return f"{interface.name}_{kind}_{tensor.identifier}".upper()


def _constants(interface: Interface) -> list[str]:
    upper = interface.name.upper()
    lines = [
        f"#define {upper}_WORKSPACE_BYTES ((size_t){interface.workspace_bytes})",
        f"#define {upper}_WEIGHTS_BYTES ((size_t){interface.weights_bytes if interface.separate else 0})",
        f"#define {upper}_INPUT_COUNT {len(interface.inputs)}",
        f"#define {upper}_OUTPUT_COUNT {len(interface.outputs)}",
    ]
    for kind, tensors in (("INPUT", interface.inputs), ("OUTPUT", interface.outputs)):
        for tensor in tensors:
            macro = _macro(interface, kind, tensor)
            lines += [
                "",
                f"/* {kind.capitalize()} {brief(tensor)}: its number of elements, bytes and dimensions. */",
                f"#define {macro}_SIZE ((size_t){tensor.size})",
                f"#define {macro}_BYTES ((size_t){tensor.bytes})",
                f"#define {macro}_RANK {len(tensor.shape)}",
            ]
            lines += [f"#define {macro}_DIM_{axis} {size}" for axis, size in enumerate(tensor.shape)]
    return lines


def _facts(interface: Interface) -> list[str]:
    lines = []
    for kind in ("input", "output"):
        start = f"{interface.name}_{kind}"
        lines += [
            f"size_t {start}_count(void);",
            f"const char *{start}_name(size_t index);",
            f"int32_t {start}_dtype(size_t index);",
            f"size_t {start}_rank(size_t index);",
            f"int64_t {start}_dim(size_t index, size_t axis);",
            f"size_t {start}_bytes(size_t index);",
        ]
    return lines


def _call_parameters(interface: Interface) -> str:
    inputs, outputs = parameters(interface, *_OWN)
    found = [f"const {element(t).c} *{name}" for t, name in inputs]
    found += [f"{element(t).c} *{name}" for t, name in outputs]
    found.append("void *workspace")
    if interface.separate:
        found.append("const void *weights")
    return ", ".join(found)


def _call_body(interface: Interface) -> list[str]:
    inputs, outputs = parameters(interface, *_OWN)
    upper, lines, arguments = interface.name.upper(), [], []
    for kind, pairs in (("input", inputs), ("output", outputs)):
        arguments.append(f"{kind}_table, {upper}_{kind.upper()}_COUNT")
        if not pairs:
            lines.append(f"    const minifer_buffer *{kind}_table = NULL;")
            continue
        lines.append(f"    const minifer_buffer {kind}_table[] = {{")
        lines += [f"        {{(void *){name}, {_macro(interface, kind, t)}_BYTES}}," for t, name in pairs]
        lines.append("    };")
    arguments.append(f"workspace, {upper}_WORKSPACE_BYTES")
    if interface.separate:
        arguments.append(f"weights, {upper}_WEIGHTS_BYTES")
    joined = ",\n            ".join(arguments)
    return lines + [f"    return {interface.name}_run({joined});"]
