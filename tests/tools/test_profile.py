"""Profiles: every step is there once, the sums are right, inner steps are not counted twice. No time is judged."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import helper, numpy_helper

import minifer
from minifer.cli import main
from minifer.errors import InputError
from minifer.ir import Node, TensorType
from minifer.plan.cost import node_flops
from minifer.runtime.profile import Recorder
from tests.tools.conftest import model_of, value

STEP_FIELDS = {
    "index", "node", "op", "kernel", "inputs", "weights", "outputs", "calls", "min_ms", "median_ms", "share",
    "flops", "gflops_per_second", "bytes", "gbytes_per_second",
}  # fmt: skip
FIELDS = {
    "format", "threads", "runs", "run_min_ms", "run_median_ms", "profiled_ms", "call_cost_us", "steps", "steps_ms",
    "flops",
}  # fmt: skip


@pytest.mark.parametrize("executor", ["native", "reference"])
def test_tiny(tiny: str, executor: str) -> None:
    with minifer.load(tiny, threads=1, executor=executor) as session:
        x = np.ones((5, 3), np.float32)
        report = session.profile({"x": x}, runs=3, warmup=1)
        assert session.settings.on_step is None
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x @ np.arange(12).reshape(3, 4), 0))
    assert report.threads == 1 and report.runs == 3
    assert report.steps[0].op == "MatMul-17" and report.steps[0].node == "product"
    assert report.flops == report.steps[0].flops == 2 * 5 * 3 * 4
    assert report.steps[0].inputs[0] == "float32[5, 3]" and report.steps[-1].outputs == ("float32[5, 4]",)
    assert all((step.kernel == "python") == (executor == "reference") for step in report.steps)
    assert all(step.calls == 1 and 0 <= step.min_ms <= step.median_ms for step in report.steps)
    assert [step.index for step in report.steps] == list(range(len(report.steps)))
    assert report.steps_ms == pytest.approx(sum(step.median_ms for step in report.steps))
    assert sum(step.share for step in report.steps) == pytest.approx(1) or report.steps_ms == 0
    assert 0 < report.run_min_ms <= report.run_median_ms
    assert (report.call_cost_us > 0) == (executor == "native")


def test_plan_and_profile_name_the_same_steps() -> None:
    path = minifer.models.path(minifer.models.EFFICIENTNET_LITE0)
    with minifer.load(path) as session:
        feeds = {"image": np.zeros((1, 3, 224, 224), np.float32)}
        report = session.profile(feeds, runs=1, warmup=0)
        planned = session.plan(feeds).steps
    assert [step.kernel for step in report.steps] == [
        s.kernel.name if hasattr(s, "kernel") else "python" for s in planned
    ]
    assert report.flops == 770_375_104  # twice 385 million multiply-adds
    stem = next(step for step in report.steps if step.flops)
    assert (stem.weights, stem.outputs) == ("float32[32, 3, 3, 3]", ("float32[1, 32, 112, 112]",))
    assert stem.bytes >= 4 * (32 * 27 + 3 * 224 * 224 + 32 * 112 * 112)


def test_loop_and_later_stages(looping) -> None:
    """The steps of a body are rows of their own, and not part of the Loop's time; stages that follow are there."""
    with minifer.load(looping) as session:
        report = session.profile({"n": np.array(6), "x": np.ones((4, 4), np.float32)}, runs=2)
    rows = {step.node: step for step in report.steps}
    assert rows["inner"].calls == 6 and rows["inner"].flops == 6 * 2 * 4 * 4 * 4
    assert rows["loop"].calls == 1 and rows["loop"].flops == 0 and rows["loop"].kernel == "python"
    assert rows["sum"].outputs == ("float32[2, 16]",)
    assert "6 times: inner" in str(report)


def test_recorder_takes_inner_steps_off() -> None:
    outer, inner, after = (SimpleNamespace(name=n) for n in ("outer", "inner", "after"))
    recorder = Recorder()
    for run in range(2):
        recorder.begin_run()
        at = 10.0 * run
        recorder(inner, at + 1, at + 2)
        recorder(inner, at + 3, at + 4.5)
        recorder(outer, at + 0.5, at + 5)
        if run:
            recorder(after, at + 5, at + 6)
    other = threading.Thread(target=recorder, args=(after, 0.0, 9.0))  # of a run in another thread
    other.start()
    other.join()
    records = {r.step.name: r for r in recorder.records.values()}
    assert records["inner"].calls == [2, 2] and records["inner"].seconds == pytest.approx([2.5, 2.5])
    assert records["outer"].seconds == pytest.approx([2.0, 2.0])
    assert records["after"].calls == [0, 1] and records["after"].seconds == pytest.approx([0.0, 1.0])


def test_table(tiny: str) -> None:
    with minifer.load(tiny) as session:
        report = session.profile({"x": np.ones((2, 3), np.float32)}, runs=2)
    by_time = [step.median_ms for step in report.slowest()]
    assert by_time == sorted(by_time, reverse=True)
    assert report.slowest(1) == report.slowest()[:1]
    whole, lines = report.table(order="run").splitlines(), report.table(top=1).splitlines()
    assert [int(line.split()[0]) for line in whole[1 : 1 + len(report.steps)]] == list(range(len(report.steps)))
    assert ("the other" in "".join(lines)) == (len(report.steps) > 1)
    with pytest.raises(InputError, match="order is"):
        report.table(order="size")


def test_bad_arguments(tiny: str) -> None:
    with minifer.load(tiny) as session:
        with pytest.raises(InputError, match="missing input x"):
            session.profile({})
        with pytest.raises(InputError, match="at least 1 run"):
            session.profile({"x": np.ones((1, 3), np.float32)}, runs=0)
        assert session.settings.on_step is None


def test_command(tiny: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "profile.json"
    options = ["--dim", "N=6", "--threads", "2", "--runs", "2", "--json", str(file)]
    assert main(["profile", tiny, *options]) == 0
    printed = capsys.readouterr().out
    assert "MatMul-17" in printed and "float32[6, 3]" in printed and "on 2 threads" in printed
    written = json.loads(file.read_text())
    assert written.keys() == FIELDS | {"model"}
    assert all(step.keys() == STEP_FIELDS for step in written["steps"])
    assert written["format"] == 1 and written["steps"][0]["flops"] == 2 * 6 * 3 * 4
    assert main(["profile", tiny, "--top", "-1"]) == 2
    assert "--top" in capsys.readouterr().err


# ---- arithmetic ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shapes", "out", "attrs", "flops"),
    [
        ("MatMul", [(7, 2, 3), (3, 5)], (7, 2, 5), {}, 2 * 7 * 2 * 3 * 5),
        ("Gemm", [(3, 2), (3, 5)], (2, 5), {"transA": 1}, 2 * 2 * 3 * 5),
        ("Conv", [(1, 8, 6, 6), (4, 2, 3, 3)], (1, 4, 4, 4), {"group": 4}, 2 * 4 * 16 * 2 * 9),
        ("ConvTranspose", [(1, 8, 4, 4), (8, 3, 2, 2)], (1, 3, 8, 8), {}, 2 * 8 * 16 * 3 * 4),
        ("QLinearConv", [(1, 2, 5), (), (), (4, 2, 3)], (1, 4, 3), {}, 2 * 4 * 3 * 2 * 3),
        ("LSTM", [(5, 2, 3), (1, 16, 3), (1, 16, 4)], (5, 1, 2, 4), {}, 2 * 5 * 2 * 16 * (3 + 4)),
        ("Relu", [(3,)], (3,), {}, 0),
    ],
)
def test_node_flops(op: str, shapes, out, attrs, flops: int) -> None:
    names = tuple(f"i{i}" for i in range(len(shapes)))
    types = {n: TensorType("float32", s) for n, s in zip((*names, "y"), (*shapes, out))}
    node = Node(op, names, ("y",), attrs)
    assert node_flops(node, types) == flops
    assert node_flops(node, {}) == 0
    assert node_flops(Node(op, names, ("y",), attrs, domain="elsewhere"), types) == 0


def test_a_node_of_several_steps_counts_once() -> None:
    """A small first convolution is a padding step and a product: one of them bears the arithmetic."""
    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "W")
    node = helper.make_node("Conv", ["x", "W"], ["y"], "conv", pads=[1, 1, 1, 1])
    model = model_of([node], [value("x", (1, 3, 9, 9))], [value("y", (1, 8, 9, 9))], [weight])
    with minifer.load(model) as session:
        report = session.profile({"x": np.ones((1, 3, 9, 9), np.float32)}, runs=1)
    assert report.flops == 2 * 8 * 81 * 27
    assert sum(step.flops > 0 for step in report.steps) == 1
