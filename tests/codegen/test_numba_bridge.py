"""The private parts of Numba that minifer stands on: if a new one fails here, mend minifer/codegen/numba_bridge.py."""

from __future__ import annotations

import inspect
import re

import numba
import pytest
from numba.core import callconv, codegen, compiler, cpu, types

from minifer.codegen import build, elf, emit, lower, numba_bridge, store
from minifer.kernels.target import TARGETS, host
from tests.codegen import tiny


def test_private_interfaces():
    """What numba_bridge.py overrides or calls is there and takes what it gives."""
    for name in ("_create_empty_module", "_add_module"):
        assert hasattr(codegen.Codegen, name)
    for name in ("add_ir_module", "add_linking_library", "finalize", "get_function", "get_llvm_str", "get_asm_str"):
        assert hasattr(codegen.CodeLibrary, name)
    for name in ("post_lowering", "get_function", "call_internal_no_propagate", "add_linking_libs", "declare_function"):
        assert hasattr(cpu.CPUContext, name)
    assert hasattr(callconv, "MinimalCallConv")
    flags = compiler.Flags()
    for name in ("no_compile", "no_cpython_wrapper", "no_cfunc_wrapper", "nrt", "error_model", "boundscheck"):
        assert hasattr(flags, name)
    wanted = ["typingctx", "targetctx", "func", "args", "return_type", "flags", "locals"]
    assert list(inspect.signature(compiler.compile_extra).parameters)[:7] == wanted
    assert numba.__version__ == store.numba_version()


def test_ir_needs_no_runtime():
    """The IR of a unit calls nothing but itself and LLVM's intrinsics, and exports what it should."""
    text = lower.lower_unit(store.specs_of(tiny.double.unit), host())
    defined = set(re.findall(r"^define [^@]*@([\w.$\"]+)", text, re.M))
    declared = set(re.findall(r"^declare [^@]*@([\w.]+)", text, re.M))
    assert {"tiny_double", "tiny_sum"} <= defined
    assert all(name.startswith("llvm.") for name in declared), declared
    assert not re.search(r"\b(NRT_|Py[A-Z_])\w*", text)


def test_same_source_gives_same_library():
    """Numba numbers the functions it compiles; nothing of that reaches the library."""
    specs = store.specs_of(tiny.double.unit)
    names = [spec.name for spec in specs]
    codes = (emit.emit_object(lower.lower_unit(specs, host()), names, host()) for _ in range(2))
    first, second = (elf.link_shared([code], names, "tiny.so") for code in codes)
    assert first == second


def test_helper_with_constant_argument():
    """A helper may take a lane count: it is compiled anew for each constant."""
    context = numba_bridge.Context(host(), {})
    helper = numba_bridge.HelperValue(lambda n: n + 1)
    result, taken, _ = helper.resolve(context, (types.literal(3),))
    assert (result, taken) == (types.int64, (types.int64,))
    with pytest.raises(Exception, match="takes 1 arguments and got 2"):
        helper.resolve(context, (types.int64, types.int64))


@pytest.mark.parametrize("name", TARGETS)
def test_all_targets_from_one_source(name):
    assert build.raw_ir(tiny.double.unit, TARGETS[name]).count("define") >= 2
