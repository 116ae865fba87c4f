"""Measures the steps that performance.md tells of, on one thread: `python docs/performance_steps.py`.

It prints, for each step, the least time, the rate by the plain formula (2 FLOPs per multiply-add, whatever an
algorithm saves) and that rate by the machine's peak, which is measured too.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before NumPy is imported

import numpy as np
import performance_kernels as steps

from minifer.codegen import library
from minifer.kernels import conv, gemm, winograd
from minifer.kernels.simd import NR
from minifer.kernels.spec import KernelSpec, f32

Run = Callable[[], Any]
ROUNDS, SLOW = 7, 0.25  # turns of all steps; seconds from which a step has two turns of one run


class Work:
    """Ways to compute one thing: name -> a function that does it and one that gives the result."""

    def __init__(self, title: str, flops: int):
        self.title, self.flops = title, flops
        self.runs: dict[str, Run] = {}
        self.results: dict[str, Callable[[], np.ndarray]] = {}

    def add(self, name: str, run: Run, result: Callable[[], np.ndarray]) -> None:
        """A step; `result` gives what `run` left behind, in the order of ONNX."""
        self.runs[name], self.results[name] = run, result


def compiled(kernel: KernelSpec, arguments: Mapping[str, Any]) -> Run:
    """The compiled kernel as a function without arguments."""
    entry = library.ENTRY(library.address(kernel))
    record, bases = library.record(kernel, arguments)
    return lambda keep=arguments: entry(record.ctypes.data, bases.ctypes.data, 0, 1)


def product(m: int, k: int, n: int, naive: bool = True) -> Work:
    """The steps of a matrix product with a constant right side; without the naive one, where that takes minutes."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    work = Work(f"MatMul {m}x{k}x{n}", 2 * m * k * n)
    packed = gemm.pack(b)

    def add(name: str, kernel: KernelSpec, right: np.ndarray, **more: Any) -> None:
        c = np.zeros((m, n), np.float32)
        work.add(name, compiled(kernel, {"a": a, "b": right, "c": c, "m": m, "n": n, "k": k, **more}), lambda: c)

    if naive:
        add("1 naive: i, j, p", steps.step_naive, b)
    add("2 rows: i, p, j, by vectors", steps.step_rows, b)
    if n % NR == 0:
        add("3 a tile in registers", steps.step_tile, b)
    add("4 ... and packed panels", steps.step_packed, packed)
    add("5 ... some panels at a time", steps.step_blocked, packed)
    add("6 ... or one, and k in blocks", steps.step_split, packed)
    add("7 ... and the next one fetched", steps.step_fetched, packed)
    c = np.zeros((m, n), np.float32)
    work.add("shipped: gemm", shipped(a, packed, c, k), lambda: c)
    out = np.zeros((m, n), np.float32)
    work.add("NumPy", lambda: np.matmul(a, b, out=out), lambda: out)
    add_onnxruntime(work, "MatMul", a, b)
    return work


def rows(m: int, k: int, n: int) -> Work:
    """The shipped product, with rows of a one after the other, and a cache line further apart."""
    rng = np.random.default_rng(0)
    values, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    work, packed = Work(f"MatMul {m}x{k}x{n}", 2 * m * k * n), gemm.pack(b)
    for gap in (0, 16):
        a, c = np.zeros((m, k + gap), np.float32), np.zeros((m, n), np.float32)
        a[:, :k] = values
        work.add(f"rows {4 * (k + gap)} bytes apart", shipped(a, packed, c, k), lambda c=c: c)
    return work


def sums(m: int, k: int, n: int) -> Work:
    """The shipped product with a residual, which lies in another array than the result, or in the same."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    work, packed = Work(f"MatMul {m}x{k}x{n} + residual", 2 * m * k * n), gemm.pack(b)
    x, y, z = (np.zeros((m, n), np.float32) for _ in range(3))
    turns = itertools.cycle([shipped(a, packed, x, k, y), shipped(a, packed, y, k, x)])  # as layers do, there and back
    work.add("sums beside the residual", lambda: next(turns)(), lambda: x)
    work.add("sums over the residual", shipped(a, packed, z, k, z), lambda: z)
    return work


def shipped(a: np.ndarray, packed: np.ndarray, c: np.ndarray, k: int, residual: np.ndarray | None = None) -> Run:
    """c = a[:, :k] b (+ residual) by the shipped kernel."""
    sizes = {"m": len(c), "n": c.shape[1], "k": k, "lda": a.shape[1], "ldc": c.shape[1], "ldr": c.shape[1]}
    flags = {"has_bias": 0, "has_residual": int(residual is not None), "code": 0, "first": -np.inf, "second": np.inf}
    added = c if residual is None else residual
    return compiled(gemm.gemm, {"a": a, "b": packed, "c": c, "bias": a, "residual": added, **sizes, **flags})


def convolution(size: int, channels: int, filters: int) -> Work:
    """The steps of a 3x3 convolution of a size x size image."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((channels, size, size)), rng.standard_normal((filters, channels, 3, 3))
    x, w = x.astype(np.float32), w.astype(np.float32)
    last, taps = np.ascontiguousarray(x.transpose(1, 2, 0)), np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    work = Work(f"Conv 3x3, {size}x{size}x{channels} -> {filters}", 18 * size * size * channels * filters)
    sizes = {"height": size, "width": size, "channels": channels, "filters": filters}

    y = np.zeros((filters, size, size), np.float32)
    work.add("1 naive, channels first", compiled(steps.step_conv_naive, {"x": x, "w": w, "y": y, **sizes}), lambda: y)
    by_filters = np.zeros((size, size, filters), np.float32)
    run = compiled(steps.step_conv_filters, {"x": last, "w": taps, "y": by_filters, **sizes})
    work.add("2 channels last, vectors of filters", run, lambda: by_filters.transpose(2, 0, 1))
    add_unfolded(work, last, taps)
    add_shipped(work, last, w)
    add_onnxruntime(work, "Conv", x[None], w)
    return work


def add_unfolded(work: Work, last: np.ndarray, taps: np.ndarray) -> None:
    """im2col, then the matrix product made above; and as NumPy does it."""
    height, width, channels = last.shape
    filters, k = taps.shape[-1], 9 * channels
    columns, out = np.zeros((height * width, k), np.float32), np.zeros((height * width, filters), np.float32)
    sizes = {"height": height, "width": width, "channels": channels}
    unfold = compiled(steps.step_unfold, {"x": last, "columns": columns, **sizes})
    matrix = taps.reshape(k, filters)
    operands = {"a": columns, "b": gemm.pack(matrix), "c": out, "m": height * width, "n": filters, "k": k}
    multiply = compiled(steps.step_blocked, operands)
    work.add("3 im2col, then MatMul", lambda: (unfold(), multiply()), lambda: image(out))

    def image(flat: np.ndarray) -> np.ndarray:
        return flat.reshape(height, width, filters).transpose(2, 0, 1)

    def by_numpy() -> None:
        padded = np.pad(last, ((1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
        np.matmul(windows.transpose(0, 1, 3, 4, 2).reshape(height * width, k), matrix, out=other)

    other = np.zeros_like(out)
    work.add("NumPy: im2col, then MatMul", by_numpy, lambda: image(other))


def add_shipped(work: Work, last: np.ndarray, w: np.ndarray) -> None:
    """The kernels that minifer runs."""
    height, width, channels = last.shape
    filters, plane = len(w), (height, width)

    def add(name: str, kernel: KernelSpec, weight: np.ndarray, g: np.ndarray, words: int, scratch: int) -> None:
        y = np.zeros((height, width, filters), np.float32)
        arguments = {
            "x": last, "weight": weight, "bias": weight, "residual": y, "y": y, "zeros": np.zeros(channels, np.float32),
            "table": np.zeros(words, np.int64), "scratch": np.zeros(scratch, np.float32), "g": g, "code": 0,
            "first": -np.inf, "second": np.inf, "has_bias": 0, "has_residual": 0,
        }  # fmt: skip
        wanted = {parameter.name: arguments[parameter.name] for parameter in kernel.parameters}
        work.add(name, compiled(kernel, wanted), lambda: y.transpose(2, 0, 1))

    g = conv.geometry(
        1, channels, filters, 1, (1, *plane), (1, *plane), (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1)
    )  # fmt: skip
    add("shipped: implicit GEMM", conv.conv, conv.pack_weights(w, 1), g, conv.scratch_words(g), 0)
    for (size, stride), kernels in winograd.KERNELS.items():
        if stride == 1 and channels >= f32.lanes:
            g = winograd.geometry(1, channels, filters, plane, plane, (1, 1))
            words, scratch = winograd.table_words(size), winograd.scratch_words(g, size)
            weight = winograd.pack_weights(w, size)
            add(f"shipped: Winograd F({size}x{size}, 3x3)", kernels.whole, weight, g, words, scratch)


def add_onnxruntime(work: Work, op: str, x: np.ndarray, w: np.ndarray) -> None:
    """ONNX Runtime on one thread, where it is installed: a model of one node whose second input is constant."""
    try:
        import onnxruntime
    except ImportError:
        return
    from onnx import TensorProto, helper, numpy_helper

    attributes = {"pads": [1, 1, 1, 1]} if op == "Conv" else {}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    values[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    nodes = [helper.make_node(op, ["x", "w"], ["y"], **attributes)]
    graph = helper.make_graph(nodes, "step", values[:1], values[1:], [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def result() -> np.ndarray:
        y = session.run(None, {"x": x})[0]
        return y[0] if op == "Conv" else y

    work.add(f"ONNX Runtime {onnxruntime.__version__}", lambda: session.run(None, {"x": x}), result)


# ---------------------------------------------------------------- measuring


def peak() -> tuple[Run, int]:
    """The kernel that only computes, and its FLOPs."""
    y, n = np.zeros(f32.lanes, np.float32), 1_000_000
    return compiled(steps.step_peak, {"y": y, "n": n}), 24 * n * y.size


def least_times(runs: Mapping[str, Run]) -> dict[str, float]:
    """The least seconds of each, taking turns: a machine that changes its pace changes it for all."""
    least = dict.fromkeys(runs, float("inf"))
    for turn in range(ROUNDS):
        for name, run in runs.items():
            if turn > 1 and least[name] > SLOW:
                continue
            for _ in range(1 if least[name] > SLOW else max(3, int(0.05 / least[name]))):
                start = time.perf_counter()
                run()
                least[name] = min(least[name], time.perf_counter() - start)
                if least[name] > SLOW:
                    break
    return least


def report(work: Work, top: tuple[Run, int]) -> Iterable[str]:
    """The lines of a table."""
    run, flops = top
    least = least_times({"": run, **work.runs})
    most = flops / least.pop("")
    yield f"{work.title}: {work.flops / 1e6:.0f} MFLOP; the peak is {most / 1e9:.1f} GFLOP/s"
    yield "| step | ms | GFLOP/s | of the peak |"
    yield "|---|---|---|---|"
    for name, seconds in least.items():
        rate = work.flops / seconds
        yield f"| {name} | {seconds * 1e3:.2f} | {rate / 1e9:.1f} | {rate / most:.0%} |"


def main() -> None:
    products = product(128, 768, 3072), product(256, 4096, 4096, naive=False)
    for work in (*products, convolution(56, 64, 64), rows(196, 1024, 256), sums(3136, 64, 256)):
        print("\n".join(report(work, peak())), end="\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
