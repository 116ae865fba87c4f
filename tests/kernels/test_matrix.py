"""The matrix product in three bfloat16 parts: what the property test of all kernels does not reach."""

import numpy as np
import pytest

from minifer.codegen import library
from minifer.kernels import gemm, matrix
from minifer.kernels import target as machine
from minifer.kernels.target import TARGETS, host

from .test_kernels import run_halves, run_threads


def arguments_of(a, b, code=0, first=-np.inf, residual=None):
    (m, k), n = a.shape, b.shape[1]
    words = int(matrix.scratch_words(m, n, k))
    return {
        "a": a.astype("f"), "b": gemm.pack(b.astype("f")), "c": np.full((m, n), np.nan, "f"),
        "bias": np.linspace(-1, 1, n).astype("f"), "residual": np.zeros((m, n), "f") if residual is None else residual,
        "scratch": np.full(words * 4, np.nan, "f"), "m": m, "n": n, "k": k, "lda": k, "ldc": n, "ldr": n, "has_bias": 1,
        "has_residual": int(residual is not None), "code": code, "first": first, "second": np.inf,
    }  # fmt: skip


def product(a, b, threads=1, **how):
    library.ensure([matrix.gemm_matrix])
    arguments, _ = run_threads(matrix.gemm_matrix, arguments_of(a, b, **how), threads, np.random.default_rng(0))
    return arguments["c"]


@pytest.mark.parametrize("m, n, k", [(97, 65, 1700), (300, 40, 700), (520, 33, 1100), (40, 300, 2100), (17, 16, 513)])
def test_long_rows_and_many(m, n, k):
    """More of k than is done at once, more rows than are split at once, last blocks that are half full."""
    rng = np.random.default_rng(1)
    a, b, residual = rng.standard_normal((m, k)), rng.standard_normal((k, n)), rng.standard_normal((m, n)).astype("f")
    arguments = arguments_of(a, b, residual=residual)
    library.ensure([matrix.gemm_matrix])
    one, _ = run_threads(matrix.gemm_matrix, arguments, 1, rng)
    a, b = arguments["a"].astype("d"), b.astype("f").astype("d")
    expected, magnitude = a @ b + arguments["bias"] + residual, np.abs(a) @ np.abs(b) + 2
    assert np.max(np.abs(one["c"] - expected) / magnitude) < (2e-7 if host().matrix else 6e-7)
    for threads in (2, 3, 4):
        for run in (run_threads, run_halves):
            many, _ = run(matrix.gemm_matrix, arguments, threads, rng)
            assert many["c"].tobytes() == one["c"].tobytes()


@pytest.mark.skipif(not host().matrix, reason="this machine has no matrix registers")
def test_as_accurate_as_float32():
    """Beside the exact product the error is no larger than that of the kernel in float32."""
    rng = np.random.default_rng(2)
    a, b = (rng.standard_normal(s) * 10.0 ** rng.integers(-6, 6, s) for s in ((64, 512), (512, 64)))
    arguments = arguments_of(a, b)
    ours = product(a, b)
    theirs, _ = run_threads(gemm.gemm, {k: v for k, v in arguments.items() if k != "scratch"}, 1, rng)
    exact = arguments["a"].astype("d") @ b.astype("f").astype("d") + arguments["bias"]
    magnitude = np.abs(arguments["a"].astype("d")) @ np.abs(b.astype("f").astype("d")) + 1
    ours, theirs = (np.abs(c - exact) / magnitude for c in (ours, theirs["c"]))
    assert np.mean(ours**2) < np.mean(theirs**2) and ours.max() < 1.2 * theirs.max()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.finfo("f").max])
@pytest.mark.parametrize("side", ["a", "b"])
def test_what_has_no_three_parts(side, value):
    """One element that is no number, or rounds to none, gives what float32 gives, and spoils nothing else."""
    rng = np.random.default_rng(3)
    a, b = rng.random((70, 90)).astype("f"), rng.random((90, 50)).astype("f")
    (a if side == "a" else b)[33, 40] = value
    a[5], b[:, 7] = 0, 0  # nothing times infinity is no number
    with np.errstate(all="ignore"):
        expected = a @ b + arguments_of(a, b)["bias"]
        for threads in (1, 3):
            np.testing.assert_allclose(product(a, b, threads), expected, rtol=1e-5)


def test_products_that_overflow_only_when_rounded():
    """The first parts are larger than the numbers: their product may be infinite where that of the numbers is not."""
    a, b = np.zeros((64, 64), "f"), np.zeros((64, 64), "f")
    a[:, 0] = b[0] = np.float32(1.8446e19 * 0.999)
    a[:, 1] = b[1] = 1
    got = product(a, b)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, a.astype("d") @ b.astype("d"), rtol=1e-6)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_system_decides(allowed, monkeypatch):
    """A machine with matrix registers whose system does not give them is one without."""
    monkeypatch.delenv(machine.PLAN_FOR, raising=False)
    monkeypatch.setattr(machine, "_machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_flags", lambda: set(machine._AMX_FLAGS))
    monkeypatch.setattr(machine, "_matrix_allowed", lambda: allowed)
    assert host.__wrapped__() is TARGETS["x86-64-amx" if allowed else "x86-64-v4"]
