"""Unoptimised IR text of a unit -> O3 -> object code for one target."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable

import llvmlite.binding as llvm

from minifer.errors import KernelError
from minifer.kernels.target import Target

#: helpers whose unoptimised text is longer than this are inlined only where LLVM finds it worth while
_INLINE_LINES = 1500
#: helpers whose names begin so stay functions of their own: the registers of the caller's loops are none of theirs
APART = "apart_"


def initialise() -> None:
    """Make LLVM's targets available; harmless when repeated."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


def machine_for(target: Target, triple: str | None = None):
    """LLVM's target machine; position-independent code except for wasm. KernelError where it cannot be had."""
    initialise()
    if target.matrix and not llvm.get_process_triple().startswith("x86_64"):
        raise KernelError(f"code for {target.name} asks the system for its registers, and is made on x86-64 only")
    return llvm.Target.from_triple(triple or target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=3,
        reloc="static" if target.name.startswith("wasm") else "pic",
        codemodel="default",
        abiname=target.abi,
    )


def emit_object(text: str, exports: Iterable[str], target: Target, triple: str | None = None) -> bytes:
    """Object code of the IR text; only `exports` stay visible. `triple` overrides the target's (for a JIT)."""
    machine = machine_for(target, triple)
    module = optimise(text, exports, target, machine, triple)
    if os.environ.get("MINIFER_DEBUG", "") == "4":
        print(module, machine.emit_assembly(module), sep="\n", file=sys.stderr)
    return machine.emit_object(module)


def emit_assembly(text: str, exports: Iterable[str], target: Target) -> str:
    """The same as assembly text, to read."""
    machine = machine_for(target)
    return machine.emit_assembly(optimise(text, exports, target, machine, None))


#: how IR texts begin; the two lines are replaced by those of the target
HEADER = 'target datalayout = "e"\ntarget triple = "x86_64-unknown-linux-gnu"'


def emit_linked(text: str, exports: Iterable[str], parts: Iterable[tuple[str, Iterable[str]]], target: Target) -> bytes:
    """Object code of an IR text linked with others: `parts` are texts and what each defines for the first.

    Only `exports` stay visible.
    """
    machine, keep = machine_for(target), list(exports)
    whole = optimise(text, keep, target, machine, None)
    for part, defines in parts:
        whole.link_in(optimise(part, defines, target, machine, None))
    for function in whole.functions:
        if not function.is_declaration and function.name not in keep:
            function.linkage = "internal"
    return machine.emit_object(whole)


def optimise(text: str, exports: Iterable[str], target: Target, machine, triple: str | None):
    """The module after O3, as compiled for the target machine."""
    try:
        module = llvm.parse_assembly(_retarget(text, target, triple or target.triple, str(machine.target_data)))
        module.verify()
    except RuntimeError as problem:
        raise KernelError(
            f"the IR of {', '.join(exports)} is not valid LLVM {llvm.llvm_version_info}: {problem}"
        ) from None
    keep = set(exports)
    for function in module.functions:
        if function.is_declaration or function.name in keep:
            continue
        function.linkage = "internal"
        if APART in function.name:
            function.add_function_attribute("noinline")
        elif not function.name.startswith("minifer.copy") and _lines(function) <= _INLINE_LINES:
            function.add_function_attribute("alwaysinline")
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = options.slp_vectorization = True
    builder = llvm.create_pass_builder(machine, options)
    passes = builder.getModulePassManager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)
    return module


def _lines(function) -> int:
    return sum(1 for block in function.blocks for _ in block.instructions)


def _retarget(text: str, target: Target, triple: str, layout: str) -> str:
    """The text for another machine. Functions get "no-builtins": loops must not become calls of memset and memcpy."""
    text = re.sub(r'^target triple = ".*"$', f'target triple = "{triple}"', text, count=1, flags=re.M)
    text = re.sub(r'^target datalayout = ".*"$', f'target datalayout = "{layout}"', text, count=1, flags=re.M)
    if "relaxed-simd" in target.features:  # without leave to contract, LLVM splits what is wider than a register
        text = re.sub(r"call (<[^>]*>|\w+) @llvm\.fma\.", r"call contract \1 @llvm.fmuladd.", text)
    if not target.fma:
        text = text.replace("@llvm.fma.", "@llvm.fmuladd.")
    text = re.sub(r"^(attributes #\d+ = \{)", r'\1 "no-builtins"', text, flags=re.M)
    return re.sub(r"^(define [^{]*?\))((?: local_unnamed_addr)?) (\{|!dbg)", r'\1\2 "no-builtins" \3', text, flags=re.M)
