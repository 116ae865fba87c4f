"""From a plain Python kernel to unoptimised LLVM IR without a runtime: the one file that touches private Numba.

Numba infers types and lowers Python bytecode; everything around that is kept out. Our own target context collects IR
text instead of compiling it, links no Numba runtime, and uses a calling convention without exception objects.
Before a body is compiled, the globals and closure cells it reads are replaced: primitives by `PrimitiveValue`, other
plain functions by `HelperValue` (compiled along, once per argument types), scalar types and tile constants by what
Numba knows. The sources themselves never change.

If a new Numba breaks something, it breaks here; tests/codegen/test_numba_bridge.py says what.
"""

# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import operator
import re
import types as python_types
from collections.abc import Callable, Iterable, Sequence

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import (
    callconv,
    cgutils,
    codegen,
    compiler,
    cpu,
    errors,
    typed_passes,
    types,
    typing,
    untyped_passes,
)
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.typing import templates
from numba.extending import lower_builtin, models, register_model, type_callable, typeof_impl

from minifer.errors import KernelError
from minifer.kernels.simd import PRIMITIVES, Scalar, TileConstant
from minifer.kernels.spec import KernelSpec, NativeFunction, Pointer
from minifer.kernels.target import Target

I64 = ir.IntType(64)

# ---------------------------------------------------------------- types


class PointerType(types.Type):
    """An address of elements of a number type."""

    def __init__(self, element):
        self.element = element
        super().__init__(f"ptr({element})")


class VectorType(types.Type):
    """Lanes of one number type; lanes of booleans are a mask."""

    def __init__(self, element, lanes: int):
        self.element = element
        self.lanes = lanes
        super().__init__(f"vector({element}, {lanes})")


class RowsType(types.Type):
    """`count` row pointers."""

    def __init__(self, element, count: int):
        self.element = element
        self.count = count
        super().__init__(f"rows({element}, {count})")


class TileType(types.Type):
    """A register tile: `rows` rows of `vectors` vectors of `element` with `lanes` lanes."""

    def __init__(self, element, rows: int, vectors: int, lanes: int):
        self.element, self.rows, self.vectors, self.lanes = element, rows, vectors, lanes
        super().__init__(f"tile({element}, {rows} x {vectors} x {lanes})")


def llvm_number(number) -> ir.Type:
    """The LLVM type of a Numba number type."""
    if isinstance(number, types.Boolean):
        return ir.IntType(1)
    if isinstance(number, types.Float):
        return ir.FloatType() if number.bitwidth == 32 else ir.DoubleType()
    return ir.IntType(number.bitwidth)


def llvm_vector(element, lanes: int) -> ir.Type:
    return ir.VectorType(llvm_number(element), lanes)


def _model(of):
    """Register the data model of a type that is one LLVM value; `of(type)` is its LLVM type."""

    def make(numba_type: type) -> None:
        class Model(models.PrimitiveModel):
            def __init__(self, manager, frontend_type):
                super().__init__(manager, frontend_type, of(frontend_type))

        register_model(numba_type)(Model)

    return make


_model(lambda t: llvm_number(t.element).as_pointer())(PointerType)
_model(lambda t: llvm_vector(t.element, t.lanes))(VectorType)
_model(lambda t: ir.ArrayType(llvm_number(t.element).as_pointer(), t.count))(RowsType)
_model(lambda t: ir.ArrayType(llvm_vector(t.element, t.lanes), t.rows * t.vectors))(TileType)


def numba_type(kernel_type):
    """The Numba type of a kernel parameter type (f32, ptr_i8, ...)."""
    if isinstance(kernel_type, Pointer):
        return PointerType(numba_type(kernel_type.element))
    return getattr(types, kernel_type.dtype.name)


# ---------------------------------------------------------------- functions as values


class FunctionValue:
    """What stands for a function in a body that is being compiled."""

    name: str
    _serials = itertools.count()

    @functools.cached_property
    def serial(self) -> int:
        """A number of its own: Numba keeps types by key for longer than we keep values."""
        return next(self._serials)

    def resolve(self, context: Context, arguments: tuple):
        """(result type, argument types, emit(builder, values)) for these argument types, or None."""
        raise NotImplementedError


class PrimitiveValue(FunctionValue):
    """A primitive: its types and code come from a lowering rule."""

    def __init__(self, name: str, rule: Callable):
        self.name = name
        self.rule = rule

    def resolve(self, context, arguments):
        return self.rule(context, *arguments)


class HelperValue(FunctionValue):
    """A plain function: compiled in the same way as the kernel that calls it."""

    def __init__(self, function: Callable):
        self.name = function.__name__
        self.function = function
        self.compiled: dict[tuple, tuple] = {}

    def resolve(self, context, arguments):
        count = self.function.__code__.co_argcount
        if len(arguments) != count:
            raise errors.TypingError(f"{self.name} takes {count} arguments and got {len(arguments)}: pass all of them")
        plain = tuple(types.unliteral(a) for a in arguments)
        try:
            return self._resolve(context, plain)
        except errors.TypingError:
            if plain == arguments:
                raise
            return self._resolve(context, arguments)  # a lane count, say, must stay a constant

    def _resolve(self, context, arguments):
        if arguments not in self.compiled:
            self.compiled[arguments] = context.compile(self.function, arguments)
        description, library = self.compiled[arguments]

        def emit(builder, values):
            context.add_linking_libs([library])
            signature = typing.signature(description.restype, *description.argtypes)
            _, result = context.call_internal_no_propagate(builder, description, signature, values)
            return result

        return description.restype, arguments, emit


class FunctionType(types.Callable, types.Dummy):
    """The Numba type of a FunctionValue."""

    def __init__(self, value: FunctionValue):
        self.value = value
        super().__init__(f"function({value.name}, {value.serial})")

    def get_call_type(self, context, args, kws):
        if kws:
            raise errors.TypingError(f"call {self.value.name} with positional arguments only")
        assert Context.current is not None
        resolved = self.value.resolve(Context.current, tuple(args))
        if resolved is None:
            listed = ", ".join(str(a) for a in args)
            raise errors.TypingError(f"{self.value.name} does not take ({listed})")
        return templates.signature(resolved[0], *resolved[1])

    def get_call_signatures(self):
        return [], False

    def get_impl_key(self, sig):
        return self.value

    @property
    def key(self):
        return self.value.serial


register_model(FunctionType)(models.OpaqueModel)


@typeof_impl.register(FunctionValue)
def _typeof_function(value, context):
    return FunctionType(value)


# ---------------------------------------------------------------- operators


def register_operator(operation, *classes) -> Callable:
    """Register typing and lowering of a Python operator on our types.

    The decorated rule is like a primitive's: rule(context, *types) -> (result, argument types, emit) or None.
    `classes` are the Numba type classes of the operands that the lowering answers to.
    """

    def register(rule):
        @type_callable(operation)
        def typer(typing_context):
            def resolve(*arguments):
                ours = any(isinstance(a, PointerType | VectorType) for a in arguments)
                resolved = rule(Context.current, *arguments) if ours and Context.current else None
                return templates.signature(resolved[0], *resolved[1]) if resolved else None

            # Numba matches positional parameters by name and number
            return [lambda a: resolve(a), lambda a, b: resolve(a, b), lambda a, b, c: resolve(a, b, c)][arity - 1]

        def lower(context, builder, signature, args):
            return rule(context, *signature.args)[2](builder, args)

        for chosen in classes:
            lower_builtin(operation, *chosen)(lower)
        return rule

    arity = len(classes[0])
    return register


# ---------------------------------------------------------------- the collecting context


class _Library(codegen.CodeLibrary):
    """Collects IR text and the libraries it calls."""

    def __init__(self, owner, name):
        super().__init__(owner, name)
        self.texts: list[str] = []
        self.callees: list[_Library] = []

    def add_ir_module(self, ir_module):
        self.texts.append(cgutils.normalize_ir_text(str(ir_module)))

    def add_linking_library(self, library):
        if library not in self.callees:
            self.callees.append(library)

    def finalize(self):
        self._finalized = True

    def reach(self, found: dict[int, _Library]) -> dict[int, _Library]:
        """This library and all that it calls."""
        if id(self) not in found:
            found[id(self)] = self
            for callee in self.callees:
                callee.reach(found)
        return found

    def get_function(self, name):
        raise NotImplementedError

    def get_llvm_str(self):
        return "\n".join(self.texts)

    def get_asm_str(self):
        raise NotImplementedError


class _Codegen(codegen.Codegen):
    _library_class = _Library
    _data_layout = ""

    def __init__(self):
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine()
        self._target_data = machine.target_data
        self._data_layout = str(self._target_data)

    def _create_empty_module(self, name):
        module = ir.Module(cgutils.normalize_ir_text(name))
        module.triple = "x86_64-unknown-linux-gnu"
        module.data_layout = self._data_layout
        return module

    def _add_module(self, module):
        pass


#: Python built-ins that Numba would compile through its own JIT: replaced by primitives
_BUILTINS: dict[str, Callable] = {"min": min, "max": max, "abs": abs}


class _Typing(typing.Context):
    """Numba's typing context, which remembers the types that Python's operators give: most of all there is to type."""

    def __init__(self):
        self.known: dict[tuple, typing.Signature] = {}
        super().__init__()

    def resolve_function_type(self, func, args, kws):
        if kws or not isinstance(func, types.Function) or func.typing_key not in _OPERATORS:
            return super().resolve_function_type(func, args, kws)
        key = (func, tuple(args))
        if key not in self.known:
            found = super().resolve_function_type(func, args, kws)
            if found is None:
                return None
            self.known[key] = found
        return self.known[key]


_OPERATORS = {f for name, f in vars(operator).items() if callable(f) and not isinstance(f, type)}


class _Pipeline(compiler.CompilerBase):
    """Numba's steps that kernels need: no closures to inline, no literals to propagate, no loops to lift."""

    def define_pipelines(self):
        steps = PassManager("minifer")
        for step in (
            untyped_passes.TranslateByteCode,
            untyped_passes.FixupArgs,
            untyped_passes.IRProcessing,
            untyped_passes.GenericRewrites,
            untyped_passes.ReconstructSSA,
            typed_passes.NopythonTypeInference,
            typed_passes.PreLowerStripPhis,
            typed_passes.NoPythonSupportedFeatureValidation,
            typed_passes.IRLegalization,
            typed_passes.NativeLowering,
            typed_passes.NoPythonBackend,
        ):
            steps.add_pass(step, step.__name__)
        steps.finalize()
        return [steps]


class Context(cpu.CPUContext):
    """A Numba target context that lowers to IR text for one Target's tile and instructions."""

    current: Context | None = None

    def __init__(self, target: Target, lowerings: dict[Callable, Callable]):
        self.machine = target
        self.lowerings = lowerings
        self.helpers: dict[Callable, FunctionValue] = {}
        super().__init__(_Typing(), "cpu")
        self.typing_context.refresh()
        self.refresh()

    @global_compiler_lock
    def init(self):
        self.is32bit = False
        self._internal_codegen = _Codegen()

    @functools.cached_property
    def call_conv(self):
        return callconv.MinimalCallConv(self)

    def load_additional_registries(self):
        """What Python's numbers, ranges and tuples need; the base class would load NumPy and the runtime too."""
        from numba.core import optional  # noqa: F401
        from numba.cpython import builtins, iterators, numbers, rangeobj, tupleobj  # noqa: F401

    def post_lowering(self, mod, library):
        """Nothing: the base class would link Numba's runtime."""

    def get_constant_generic(self, builder, ty, val):
        if isinstance(ty, FunctionType):
            return self.get_dummy_value()
        return super().get_constant_generic(builder, ty, val)

    def get_function(self, fn, sig, _firstcall=True):
        if not isinstance(fn, FunctionType):
            return super().get_function(fn, sig, _firstcall)
        _, _, emit = fn.value.resolve(self, sig.args)
        return lambda builder, args, loc=None: emit(builder, args)

    def number(self, builder, value, source, target):
        """A number converted to another number type."""
        return self.cast(builder, value, types.unliteral(source), target)

    # -------- compiling

    def compile(self, function: Callable, arguments: Sequence) -> tuple:
        """(function description, library) of a plain function for these argument types."""
        flags = compiler.Flags()
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        flags.nrt = flags.enable_pyobject = flags.boundscheck = False
        flags.error_model = "numpy"
        result = compiler.compile_extra(
            self.typing_context, self, self._substituted(function), tuple(arguments), None, flags, {}, None, _Pipeline
        )
        return result.fndesc, result.library

    def call(self, builder: ir.IRBuilder, description, values: list):
        """Emit a call of a compiled function: (its result, the result's type)."""
        callee = self.declare_function(builder.module, description)
        _, result = self.call_conv.call_function(builder, callee, description.restype, description.argtypes, values)
        return result, types.unliteral(description.restype)

    def empty_module(self) -> ir.Module:
        return self._internal_codegen._create_empty_module("exports")

    @contextlib.contextmanager
    def compiling(self):
        """Holds Numba's compiler lock, and makes this the context in which our functions are typed."""
        with global_compiler_lock:
            before, Context.current = Context.current, self
            try:
                yield
            finally:
                Context.current = before

    def _substituted(self, function: Callable) -> Callable:
        """A copy of the function whose globals and closure hold values that Numba can type."""
        code = function.__code__
        new_globals = dict(function.__globals__)
        for name in code.co_names:
            if name in new_globals:
                new_globals[name] = self._value(new_globals[name])
            elif (builtin := _BUILTINS.get(name)) is not None:
                new_globals[name] = self._value(builtin)
        cells = tuple(python_types.CellType(self._value(c.cell_contents)) for c in function.__closure__ or ())
        clone = python_types.FunctionType(code, new_globals, function.__name__, function.__defaults__, cells)
        clone.__module__ = function.__module__
        clone.__qualname__ = function.__qualname__
        return clone

    def _value(self, value):
        if isinstance(value, KernelSpec | NativeFunction):
            value = value.body
        if isinstance(value, Scalar):
            return numba_type(value)
        if isinstance(value, TileConstant):
            return int(getattr(self.machine, value.name))
        if value in (min, max, abs) or inspect.isfunction(value):
            if value not in self.helpers:
                self.helpers[value] = self._function(value)
            return self.helpers[value]
        return value

    def _function(self, function: Callable) -> FunctionValue:
        rule = self.lowerings.get(function)
        needs = getattr(rule, "needs", "")
        if rule is not None and (not needs or getattr(self.machine, needs)):
            return PrimitiveValue(function.__name__, rule)
        if function in PRIMITIVES:
            raise KernelError(f"primitive {function.__name__} has no lowering")
        return HelperValue(function)


# ---------------------------------------------------------------- modules and errors

#: what Numba raises for source that it cannot compile
COMPILE_ERRORS = (
    errors.NumbaError, NotImplementedError, AssertionError, TypeError, KeyError, AttributeError,
)  # fmt: skip


def linked(exports: ir.Module, libraries: Iterable[_Library]) -> str:
    """One module's text: the exported functions and all that they reach."""
    module = llvm.parse_assembly(cgutils.normalize_ir_text(str(exports)))
    reached: dict[int, _Library] = {}
    for library in libraries:
        library.reach(reached)
    for library in reached.values():
        for text in library.texts:
            module.link_in(llvm.parse_assembly(text))
    module.verify()
    return str(module)


def readable(problem: Exception) -> str:
    """Numba's message without colours and empty lines."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)) or type(problem).__name__
    return "\n".join(line for line in text.splitlines() if line.strip())
