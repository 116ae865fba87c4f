"""The kernels of a unit -> one LLVM IR text with their entry points."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llvmlite import ir
from numba.core import types

from minifer.codegen import lowering_tile as lowering_tile  # registers its rules
from minifer.codegen.lowering import I64, LOWERINGS
from minifer.codegen.numba_bridge import COMPILE_ERRORS, Context, PointerType, linked, numba_type, readable
from minifer.errors import KernelError
from minifer.kernels.spec import GIVEN, SHARE_PIECES, KernelSpec, NativeFunction
from minifer.kernels.target import Target


@functools.cache
def context_for(target: Target) -> Context:
    """The context of a target: kept, because helpers compiled for one unit serve the next."""
    return Context(target, LOWERINGS)


def lower_unit(specs: Sequence[KernelSpec | NativeFunction], target: Target) -> str:
    """The kernels and functions of one unit as unoptimised LLVM IR text; KernelError names the one that fails."""
    context = context_for(target)
    with context.compiling():
        exports = context.empty_module()
        return linked(exports, [_compile(context, exports, spec) for spec in specs])


def _compile(context: Context, exports: ir.Module, spec: KernelSpec | NativeFunction):
    """Compile one body and emit its exported function; the library that holds the body."""
    try:
        kinds = [numba_type(p.type) for p in spec.parameters]
        if isinstance(spec, NativeFunction):
            description, library = context.compile(spec.body, kinds)
            _plain(context, exports, spec, description)
        else:
            description, library = context.compile(spec.body, [*kinds, *[types.int64] * (len(spec.given) + 2)])
            _entry(context, exports, spec, description)
    except COMPILE_ERRORS as problem:
        raise KernelError(f"kernel {spec.name} ({spec.family}) does not compile: {readable(problem)}") from problem
    return library


def _entry(context: Context, module: ir.Module, spec: KernelSpec, description) -> None:
    """Emit `i64 name(i64* args, i64* bases, i64 tid, i64 nthreads)`: unpack the record, call the body.

    nthreads is a share: see runner_layout.py.
    """
    words = I64.as_pointer()
    function = ir.Function(module, ir.FunctionType(I64, [words, words, I64, I64]), spec.name)
    builder = ir.IRBuilder(function.append_basic_block())
    args, bases, tid, share = function.args
    values, word = [], 0

    def take():
        nonlocal word
        value = builder.load(builder.gep(args, [I64(word)]))
        word += 1
        return value

    for parameter in spec.parameters:
        kind = numba_type(parameter.type)
        if isinstance(kind, PointerType):
            base = builder.load(builder.gep(bases, [take()]))
            values.append(builder.inttoptr(builder.add(base, take()), context.get_value_type(kind)))
        elif isinstance(kind, types.Float):
            number = builder.bitcast(take(), ir.DoubleType())
            values.append(context.number(builder, number, types.float64, kind))
        else:
            values.append(context.number(builder, take(), types.int64, kind))
    given = [_bits(builder, share, *GIVEN[name]) for name in spec.given]
    _return_status(context, builder, description, [*values, *given, tid, _bits(builder, share, 0, SHARE_PIECES)])


def _bits(builder: ir.IRBuilder, word, start: int, stop: int):
    """Bits start to stop of a word as a number."""
    return builder.and_(builder.lshr(word, I64(start)), I64((1 << (stop - start)) - 1))


def _plain(context: Context, module: ir.Module, spec: NativeFunction, description) -> None:
    """Emit the function with the C signature of its parameters and an i64 result."""
    kinds = [context.get_value_type(numba_type(p.type)) for p in spec.parameters]
    function = ir.Function(module, ir.FunctionType(I64, kinds), spec.name)
    builder = ir.IRBuilder(function.append_basic_block())
    _return_status(context, builder, description, list(function.args))


def _return_status(context: Context, builder: ir.IRBuilder, description, values: list) -> None:
    """Call the body and return its integer result, or 0 if it has none."""
    result, kind = context.call(builder, description, values)
    if isinstance(kind, types.NoneType):
        builder.ret(I64(0))
    elif isinstance(kind, types.Integer | types.Boolean):
        builder.ret(context.number(builder, result, kind, types.int64))
    else:
        raise KernelError(f"{description.qualname} must always return an integer or never return a value, not {kind}")
