"""One test for every kernel: reference = plain Python body = compiled, on one thread and on several.

`python -m pytest tests/kernels/test_kernels.py -k NAME` tests the kernels whose name contains NAME.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minifer.kernels as kernels
from minifer.codegen import build, library, native, store
from minifer.errors import KernelError
from minifer.kernels import runner
from minifer.kernels.spec import KERNELS, KernelSpec
from minifer.kernels.target import TARGETS, host

BROKEN: dict[str, Exception] = {}
FAMILIES = [m.name for m in pkgutil.iter_modules(kernels.__path__)]
for _family in FAMILIES:
    try:
        importlib.import_module(f"minifer.kernels.{_family}")
    except Exception as problem:
        BROKEN[_family] = problem

GUARD = 128


class Guarded:
    """A copy of the arguments whose arrays lie between guard bytes, at odd multiples of their element size."""

    def __init__(self, arguments: dict, shift: int):
        self.arrays: dict[str, tuple[np.ndarray, int, int]] = {}
        self.arguments = {}
        for name, value in arguments.items():
            if isinstance(value, np.ndarray):
                start = GUARD + shift * value.itemsize
                raw = np.full(value.nbytes + 3 * GUARD, 0xA5, np.uint8)
                view = raw[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
                view[...] = value
                self.arrays[name] = (raw, start, start + value.nbytes)
                value = view
            self.arguments[name] = value

    def check(self) -> None:
        for name, (raw, start, end) in self.arrays.items():
            outside = (raw[:start] != 0xA5).any() or (raw[end:] != 0xA5).any()
            assert not outside, f"memory outside of {name} was written"


def assert_close(spec: KernelSpec, name: str, got: np.ndarray, expected, how: str) -> None:
    """|got - expected| <= tolerance * magnitude, element by element; NaN and infinities must agree."""
    expected, magnitude = expected if isinstance(expected, tuple) else (expected, None)
    expected = np.asarray(expected)
    assert got.shape == expected.shape, f"{spec.name}: {how}: {name} has shape {got.shape}, reference {expected.shape}"
    if spec.tolerance == 0 or got.dtype.kind not in "f":
        same = (got == expected) | ((got != got) & (expected != expected))
        if spec.tolerance == 0 or same.all():
            assert same.all(), f"{spec.name}: {how}: {name} differs: {got[~same][:4]} instead of {expected[~same][:4]}"
            return
    a, b = got.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        bound = spec.tolerance * np.maximum(1.0, np.abs(b) if magnitude is None else magnitude)
        rounded = expected.astype(got.dtype)  # may be infinite where float64 is not
        fine = (np.abs(a - b) <= bound) | (got == rounded) | (np.isnan(a) & np.isnan(b))
    worst = np.flatnonzero(~fine.reshape(-1))
    assert fine.all(), f"{spec.name}: {how}: {name}{worst[:4]} = {a[~fine][:4]} instead of {b[~fine][:4]}"


def check_result(spec: KernelSpec, before: dict, after: dict, expected: dict, status: int, how: str) -> None:
    wanted = expected.get("status", 0)
    assert status == wanted, f"{spec.name}: {how}: status {status}, expected {wanted}"
    for name, value in before.items():
        if name in spec.outputs:
            if name in expected:
                assert_close(spec, name, after[name], expected[name], how)
        elif isinstance(value, np.ndarray):
            same = value.view(np.uint8) == after[name].view(np.uint8) if value.size else np.True_
            assert np.all(same), f"{spec.name}: {how}: input {name} was changed"


def run_threads(spec: KernelSpec, arguments: dict, nthreads: int, rng) -> tuple[dict, int]:
    """The compiled kernel's arguments after all tids ran one after another in random order, and the worst status."""
    return run_pieces(spec, arguments, [(tid, nthreads) for tid in range(nthreads)], nthreads, rng)


def run_halves(spec: KernelSpec, arguments: dict, nthreads: int, rng) -> tuple[dict, int]:
    """The same where each thread's part is cut into a half, a quarter, ..., as runner.py does it."""
    each, pieces = int(rng.integers(2, 6)), []
    for k in range(each):
        piece, of = runner.halved(k, each)
        pieces += [(owner * of + piece, of * nthreads) for owner in range(nthreads)]
    return run_pieces(spec, arguments, pieces, nthreads, rng)


def run_pieces(spec: KernelSpec, arguments: dict, pieces: list, threads: int, rng) -> tuple[dict, int]:
    guarded = Guarded(arguments, int(rng.integers(0, 8)))
    slot = int(rng.integers(0, threads))  # one thread may run all pieces
    order = [pieces[i] for i in rng.permutation(len(pieces))]
    statuses = [library.run(spec, guarded.arguments, tid, of, slot, len(pieces)) for tid, of in order]
    guarded.check()
    return guarded.arguments, max(statuses, key=abs)


@pytest.fixture(scope="module")
def built(request):
    """The libraries of all kernels that this run tests, built together: in parallel, Numba imported once."""
    names = [i.callspec.params["name"] for i in request.session.items if "built" in getattr(i, "fixturenames", ())]
    with contextlib.suppress(KernelError):  # the test of the kernel that fails will say so
        library.ensure([KERNELS[name] for name in names])


@pytest.mark.parametrize("name", sorted(k for k, s in KERNELS.items() if s.body.__module__.startswith("minifer.")))
def test_kernel(name, built):
    spec = KERNELS[name]
    assert spec.reference is not None and spec.example is not None, f"kernel {name} has no reference or example"
    library.ensure([spec])

    @settings(max_examples=10, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(2, 5))
    def check(seed, size, nthreads):
        rng = np.random.default_rng(seed)
        arguments = spec.draw(rng, size)
        with np.errstate(all="ignore"):
            expected = spec.reference(**{k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()})

        plain = Guarded(arguments, 0)
        status = spec(**plain.arguments)
        check_result(spec, arguments, plain.arguments, expected, status, "Python body")

        single, status = run_threads(spec, arguments, 1, rng)
        check_result(spec, arguments, single, expected, status, "compiled")

        for run in (run_threads, run_halves):
            several, status = run(spec, arguments, nthreads, rng)
            how = f"{nthreads} threads ({run.__name__})"
            assert (status != 0) == (expected.get("status", 0) != 0), f"{name}: status {status} on {how}"
            if status == 0:
                for output in (o for o in spec.outputs if o in expected):  # what is not in it is scratch
                    one, many = single[output], several[output]
                    assert one.tobytes() == many.tobytes(), f"{name}: {output} differs between 1 thread and {how}"

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_imports(family):
    if family in BROKEN:
        raise BROKEN[family]


@pytest.mark.parametrize("target", sorted({host().name, "x86-64-v3", "aarch64", "wasm32"}))
@pytest.mark.parametrize(
    "unit", build.registered_units(FAMILIES), ids=lambda u: ".".join(u).removeprefix("minifer.kernels.")
)
def test_needs_no_library(unit, target):
    """Every unit compiles for every target and leaves no symbol undefined. (Linking for this machine proves it too.)"""
    if target == host().name:
        library.ensure(store.specs_of(unit))
    else:
        assert native.undefined_symbols(build.object_code(unit, TARGETS[target])) == set()
