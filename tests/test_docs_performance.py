"""The kernels of docs/performance.md compute what they say, on small sizes."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch):
    """The script, imported as it is when it runs."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("performance_steps")


@pytest.mark.parametrize("sizes", [(13, 24, 96), (7, 9, 19), (8, 770, 32), (1, 1, 1)])
def test_products(steps, sizes) -> None:
    """Tiles with rests, several blocks of k, lone elements."""
    m, k, n = sizes
    work = steps.product(m, k, n)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype("f").astype("d") for shape in ((m, k), (k, n)))
    assert work.flops == 2 * m * k * n and len(work.runs) >= 8
    check(work, a @ b)


@pytest.mark.parametrize("sizes", [(9, 16, 24), (5, 3, 10), (1, 1, 1)])
def test_convolutions(steps, sizes) -> None:
    size, channels, filters = sizes
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((channels, size, size)), rng.standard_normal((filters, channels, 3, 3))
    expected = sys.modules["performance_kernels"].convolution(x.astype("f"), w.astype("f"))
    work = steps.convolution(*sizes)
    assert len(work.runs) >= (7 if channels >= 16 else 5)
    check(work, expected)


@pytest.mark.parametrize("name, steps_in_it", [("rows", 2), ("sums", 2)])
def test_places(steps, name, steps_in_it) -> None:
    """Where operands lie does not change what comes out."""
    m, k, n = 13, 24, 35
    work = getattr(steps, name)(m, k, n)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype("f").astype("d") for shape in ((m, k), (k, n)))
    assert len(work.runs) == steps_in_it
    check(work, a @ b)


def check(work, expected: np.ndarray) -> None:
    """Every step gives the expected result; what was there before it ran did not."""
    for name, run in work.runs.items():
        run()
        result = work.results[name]()
        assert result.shape == expected.shape, name
        assert np.abs(result - expected).max() <= 1e-5 * max(1, np.abs(expected).max()), name


def test_the_bodies_in_python(steps) -> None:
    """The kernels run as plain Python too, and stay inside their arrays."""
    kernels = sys.modules["performance_kernels"]
    rng = np.random.default_rng(1)
    n = int(steps.NR)
    a, b, c = rng.standard_normal((7, 5)), rng.standard_normal((5, n)), np.zeros((7, n), "f")
    a, b = a.astype("f"), b.astype("f")
    packed = steps.gemm.pack(b)
    for step in ("naive", "rows", "tile", "packed", "blocked", "split", "fetched"):
        c[:] = np.nan
        getattr(kernels, f"step_{step}")(
            a, packed if step in ("packed", "blocked", "split", "fetched") else b, c, 7, n, 5
        )
        np.testing.assert_allclose(c, a @ b, rtol=1e-4, atol=1e-5, err_msg=step)


def test_the_table(steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each step; the peak is measured beside them."""
    monkeypatch.setattr(steps, "ROUNDS", 1)
    work = steps.product(6, 4, 16)
    run, _ = steps.peak()
    lines = list(steps.report(work, (run, 1)))
    assert re.match(r"MatMul 6x4x16: 0 MFLOP; the peak is \d+\.\d GFLOP/s", lines[0])
    assert [line.split(" | ")[0].strip("| ") for line in lines[3:]] == list(work.runs)


def test_the_document_names_the_steps(steps) -> None:
    """Every step that the script measures stands in the document's tables."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    names = [*steps.product(1, 8, 96).runs, *steps.convolution(1, 16, 8).runs]
    names += [*steps.rows(1, 1024, 16).runs, *steps.sums(1, 8, 16).runs]
    missing = [name for name in names if not name.startswith("ONNX Runtime") and f"| {name} |" not in text]
    assert not missing
