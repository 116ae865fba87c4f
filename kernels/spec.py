"""The kernel contract: parameter types, `@kernel`, and the registry of all kernels.

A kernel is a plain Python function on pointers and numbers::

    @kernel(reference=scale_reference, example=scale_example, outputs=("y",), tolerance=1e-6)
    def scale(x: ptr_f32, y: ptr_f32, n: i64, factor: f32, tid: i64, nthreads: i64):
        ...

It allocates nothing, raises nothing, keeps no state, and splits its own work by `(tid, nthreads)` without ever
splitting a reduction, so that results do not depend on the thread count. The runner may cut the work into more pieces
than there are threads: then tid and nthreads count pieces. Before tid a kernel may have parameters that its callers
do not give: `slot: i64`, the number of the thread that runs the piece, where each thread needs scratch memory, and
`pieces: i64`, how many calls share the work. Calls of one step may bring different nthreads (half the work is piece 0
of 2, a quarter piece 2 of 4), so a kernel that has a choice of how to split chooses by `pieces`. It returns nothing,
or an integer status: 0 for success, anything else for data that it refuses (the caller turns that into an error).

* `example(rng, size)` draws arguments: a dict of parameter name -> NumPy array (pointers) or number (scalars),
  without tid and nthreads. Output arrays are in it too, filled with anything. `size` is a small integer from 1.
* `reference(**arguments)` gets the same dict and returns a dict of output name -> expected array, accumulated in
  float64 and of the output's shape. Instead of an array it may return a pair `(expected, magnitude)`: the error is then
  measured against `magnitude` (for a sum of products: the sum of the absolute products). A kernel that returns a
  status may add an entry "status".
* `outputs` names the pointer parameters that are written.
* `tolerance` bounds |got - expected| / max(1, |expected|) (or / magnitude); 0 asks for equality.

One body serves many element types with `over`::

    @kernel(..., over={"T": (f32, f64, i32)})
    def copy(x: ptr("T"), y: ptr("T"), n: i64, tid: i64, nthreads: i64): ...

That makes the kernels `copy_f32`, `copy_f64`, `copy_i32`, reached by `copy["f32"]`; `example` then also gets the
type by keyword: `example(rng, size, T=f32)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minifer.kernels.runner_layout import SHARE_PIECES, SHARE_SLOT
from minifer.kernels.simd import SCALARS as SCALARS
from minifer.kernels.simd import Ptr, Scalar, f32, f64, i8, i16, i32, i64, u8, u16, u32, u64

#: parameters before tid and nthreads that the runner gives, and which bits of a share they are
GIVEN = {"slot": (SHARE_SLOT, 63), "pieces": (SHARE_PIECES, SHARE_SLOT)}


class Pointer(NamedTuple):
    """The type of a pointer parameter. `element` is a Scalar, or the name of a type variable of `over`."""

    element: Scalar | str

    def __repr__(self) -> str:
        return f"ptr_{self.element}"


class Variable(NamedTuple):
    """A scalar parameter whose type is a type variable of `over`."""

    name: str


ptr_f32, ptr_f64 = Pointer(f32), Pointer(f64)
ptr_i8, ptr_i16, ptr_i32, ptr_i64 = Pointer(i8), Pointer(i16), Pointer(i32), Pointer(i64)
ptr_u8, ptr_u16, ptr_u32, ptr_u64 = Pointer(u8), Pointer(u16), Pointer(u32), Pointer(u64)


def ptr(variable: str) -> Any:
    """The type of a pointer parameter whose element type is the type variable `variable`."""
    return Pointer(variable)


def scalar(variable: str) -> Any:
    """The type of a scalar parameter whose type is the type variable `variable`."""
    return Variable(variable)


class Parameter(NamedTuple):
    """One parameter of a kernel: its name and `Pointer` or `Scalar` type."""

    name: str
    type: Pointer | Scalar

    @property
    def is_pointer(self) -> bool:
        return isinstance(self.type, Pointer)


class KernelSpec:
    """A kernel: its body and everything that is known about it. Calling it runs the plain Python body.

    `family` is the module's name within minifer.kernels; a group of a family is what is built as one library.
    `types` are the types chosen for the variables of `over`.
    """

    def __init__(
        self,
        body: Callable,
        name: str,
        group: str,
        outputs: Sequence[str],
        reference: Callable[..., dict] | None,
        example: Callable[..., dict] | None,
        tolerance: float,
        types: dict[str, Scalar],
        coarse: bool = False,
    ):
        names = _parameter_names(body)
        if names[-2:] != ("tid", "nthreads"):
            raise TypeError(f"kernel {name}: the last two parameters must be tid and nthreads")
        own = len(names) - 2
        while own and names[own - 1] in GIVEN:
            own -= 1
        self.given, self._own = names[own:-2], names[:own]
        if missing := set(outputs) - set(self._own):
            raise TypeError(f"kernel {name}: outputs {sorted(missing)} are no parameters")
        self.body, self.name, self.group, self.outputs = body, name, group, tuple(outputs)
        self.reference, self.example, self.tolerance, self.types = reference, example, tolerance, types
        self.coarse = coarse
        self._parameters: tuple[Parameter, ...] | None = None

    @property
    def family(self) -> str:
        return self.body.__module__.rpartition(".")[2]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters that callers give; found on first use, as most kernels are registered in vain."""
        if self._parameters is None:  # functools.cached_property has a lock, which a forked child may find taken
            self._parameters = _parameters(self.name, self.body, self._own, self.types)
        return self._parameters

    @property
    def unit(self) -> tuple[str, str]:
        """The module and the group: what is built as one library."""
        return (self.body.__module__, self.group)

    @property
    def halves(self) -> bool:
        """Whether piece i of n is sure to be pieces 2 i and 2 i + 1 of 2 n, as it is in all kernels of this package."""
        return self.body.__module__.startswith("minifer.kernels.")

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, Any]:
        """Arguments for one call, from the kernel's `example`."""
        assert self.example is not None, f"kernel {self.name} has no example"
        return self.example(rng, size, **self.types)

    def __call__(self, *arguments, tid: int = 0, nthreads: int = 1, **named) -> int:
        """Run the plain Python body; pointers are NumPy arrays. Returns the status. Also callable from other bodies."""
        if len(arguments) == len(self.parameters) + 2:  # called as the body is
            *arguments, tid, nthreads = arguments
        values = dict(zip((p.name for p in self.parameters), arguments)) | named
        converted = [self._convert(p, values[p.name]) for p in self.parameters]
        with np.errstate(all="ignore"):
            given = {"slot": int(tid), "pieces": int(nthreads)}
            status = self.body(*converted, *[given[name] for name in self.given], int(tid), int(nthreads))
        return 0 if status is None else int(status)

    def _convert(self, parameter: Parameter, value):
        if not isinstance(parameter.type, Pointer):
            return parameter.type(value)
        if isinstance(value, Ptr):
            return value
        element = parameter.type.element
        assert isinstance(element, Scalar)
        if not value.flags.c_contiguous or value.dtype.itemsize != element.dtype.itemsize:
            raise TypeError(f"{self.name}: {parameter.name} must be a contiguous array of {element}, got {value.dtype}")
        return Ptr(value.reshape(-1).view(element.dtype), 0)

    def __repr__(self) -> str:
        listed = ", ".join(f"{p.name}: {p.type}" for p in self.parameters)
        return f"{self.family}.{self.name}({listed})"


class KernelGroup:
    """The instances of one kernel body over several types: `copy["f32"]`, `cast["f32", "i64"]`."""

    def __init__(self, name: str, instances: dict[tuple[str, ...], KernelSpec]):
        self.name = name
        self.instances = instances

    def __getitem__(self, key: str | Scalar | Sequence[str | Scalar]) -> KernelSpec:
        parts = (key,) if isinstance(key, str | Scalar) else tuple(key)
        return self.instances[tuple(str(p) for p in parts)]

    def __contains__(self, key: object) -> bool:
        parts = key if isinstance(key, tuple) else (key,)
        return tuple(str(p) for p in parts) in self.instances

    def __iter__(self) -> Iterator[KernelSpec]:
        return iter(self.instances.values())


class NativeFunction:
    """A compiled function that is no kernel: exported with the plain C signature of its annotations."""

    group = ""

    def __init__(self, body: Callable):
        self.body, self.name = body, body.__name__

    @property
    def family(self) -> str:
        return self.body.__module__.rpartition(".")[2]

    @property
    def unit(self) -> tuple[str, str]:
        """The module and the group: what is built as one library."""
        return (self.body.__module__, self.group)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return _parameters(self.name, self.body, _parameter_names(self.body), {})

    def __call__(self, *arguments):
        return self.body(*arguments)


def _parameter_names(body: Callable) -> tuple[str, ...]:
    return body.__code__.co_varnames[: body.__code__.co_argcount]


def _parameters(label: str, body: Callable, names: Sequence[str], types: dict[str, Scalar]) -> tuple[Parameter, ...]:
    """The parameters of a body by its annotations, with type variables replaced."""
    found = []
    for name in names:
        kind = _resolve(_annotation(body, name), types)
        if not isinstance(kind, Pointer | Scalar):
            raise TypeError(f"kernel {label}: parameter {name} has no kernel type but {kind!r}")
        found.append(Parameter(name, kind))
    return tuple(found)


def _annotation(body: Callable, name: str):
    """What a parameter is annotated with, as an object. Most annotations are names, which need no compiling."""
    written, scope = body.__annotations__.get(name), body.__globals__
    if not isinstance(written, str):
        return written
    return scope[written] if written in scope else eval(written, scope)


def _resolve(annotation, types: dict[str, Scalar]):
    if isinstance(annotation, Pointer) and isinstance(annotation.element, str):
        return Pointer(types[annotation.element])
    return types[annotation.name] if isinstance(annotation, Variable) else annotation


#: every kernel and native function by name
KERNELS: dict[str, KernelSpec] = {}
NATIVES: dict[str, NativeFunction] = {}


def kernel(
    *,
    reference: Callable[..., dict] | None = None,
    example: Callable[..., dict] | None = None,
    outputs: Sequence[str] = ("y",),
    tolerance: float = 1e-6,
    over: dict[str, Sequence[Scalar]] | None = None,
    group: str | None = None,
    name: str | None = None,
    coarse: bool = False,
) -> Callable[[Callable], Any]:
    """Register a kernel; see the module's text. The result is a KernelSpec, or a KernelGroup with `over`.

    `name` defaults to the function's; a factory that makes kernels in a loop gives its own, and is called in the module
    that defines it: a body's module is where its kernel belongs. `group` splits a family into several libraries;
    instances of `over` are grouped by their types unless it is given. `coarse`: each piece repeats some of the work, so
    there should be no more of them than threads.
    """

    def register(body: Callable):
        label = name or body.__name__
        facts = (outputs, reference, example, tolerance)
        if over is None:
            return _add(KernelSpec(body, label, group or "", *facts, {}, coarse), KERNELS)
        instances = {}
        for chosen in itertools.product(*over.values()):
            key = tuple(t.name for t in chosen)
            unit = "_".join(key) if group is None else group
            spec = KernelSpec(body, "_".join((label, *key)), unit, *facts, dict(zip(over, chosen)), coarse)
            instances[key] = _add(spec, KERNELS)
        return KernelGroup(label, instances)

    return register


def native(body: Callable) -> NativeFunction:
    """Register a function that is compiled like a kernel but exported with the C signature of its annotations.

    Parameters are pointers, i64, f32 or f64; it returns an i64 (0 when the body returns nothing).
    """
    return _add(NativeFunction(body), NATIVES)


def _add(spec, registry: dict):
    if old := KERNELS.get(spec.name) or NATIVES.get(spec.name):
        raise TypeError(f"kernel {spec.name} is already registered by family {old.family}")
    registry[spec.name] = spec
    return spec
