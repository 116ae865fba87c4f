"""Means, the document's table and the chart, from results made by hand."""

from __future__ import annotations

import builtins
import math

import pytest

from minifer.errors import InputError
from minifer.tools.bench import Report, Result
from minifer.tools.bench_summary import BEST, geometric_mean, markdown, means, milliseconds
from minifer.tools.chart import MEAN, Bar, Group, draw, panels, write_chart


def result(name: str, threads: int, engine: str, ms: float | None, ratio: float | None = None) -> Result:
    """An engine's result; its minima are half its medians, and half the ratio."""
    made = Result(name, f"{name}.onnx", threads, engine, {"n": "int64[]", "x": "float32[1, 3, 8]"})
    if ms is None:
        made.status, made.message = "failed", "no"
        return made
    made.median_ms, made.min_ms, made.cold_start_ms, made.peak_bytes = ms, ms / 2, 10 * ms, int(ms * 1e6)
    made.ratio, made.ratio_min = ratio, ratio and ratio / 2
    return made


def missing(name: str, threads: int) -> Result:
    return Result(name, f"{name}.onnx", threads, "absent", status="missing", message="not installed")


RESULTS = [
    result("A", 1, "minifer", 2), result("A", 1, "onnxruntime", 4, 0.5), result("A", 1, "openvino", 1, 2.0),
    missing("A", 1), result("A", 2, "minifer", 1), result("A", 2, "onnxruntime", 4, 0.25),
    result("A", 2, "openvino", 1, 1.0), result("B", 1, "minifer", 200), result("B", 1, "onnxruntime", 400, 0.125),
    result("B", 1, "openvino", None), result("B", 2, "minifer", None), result("B", 2, "onnxruntime", 300),
    result("B", 2, "openvino", None),
]  # fmt: skip


def test_means() -> None:
    found = {(m.threads, m.engine): m for m in means(RESULTS)}
    assert found.keys() == {(t, e) for t in (1, 2) for e in ("onnxruntime", "openvino", BEST)}
    ours = found[1, "onnxruntime"]
    assert (ours.models, ours.ratio, ours.ratio_min) == (2, pytest.approx(0.25), pytest.approx(0.125))
    assert (ours.worst, ours.worst_model) == (0.5, "A")
    assert found[1, "openvino"].models == 1
    best = found[1, BEST]  # openvino on A, onnxruntime on B
    assert (best.models, best.ratio, best.worst, best.worst_model) == (2, pytest.approx(0.5), 2.0, "A")
    assert found[2, BEST].ratio == 1.0
    assert means([]) == []
    assert means(RESULTS[:2])[-1].engine == "onnxruntime"  # no best of one
    assert math.isclose(geometric_mean([4, 1, 0.25]), 1)


def test_markdown() -> None:
    head, rule, a, b, mean = (line.strip("| ").split(" | ") for line in markdown(RESULTS))
    assert head == [
        "model", "input", "minifer ms, 1 and 2 threads", "/ ONNX Runtime, 1 and 2 threads",
        "/ OpenVINO, 1 and 2 threads", "cold start / ONNX Runtime", "peak memory, minifer / ONNX Runtime, MB",
    ]  # fmt: skip
    assert len(rule) == len(head)
    assert a == ["A", "1x3x8", "2, 1", "0.50, 0.25", "2.00, 1.00", "0.50", "2 / 4"]
    assert b == ["B", "1x3x8", "200, -", "0.12, -", "fails", "0.50", "200 / 400"]
    assert mean[:5] == ["**geometric mean**", "best of them: 0.50, 1.00", "", "**0.25, 0.25**", "**2.00, 1.00**"]
    assert "| 1, 0.5 | 0.25, 0.12 |" in markdown(RESULTS, "min")[2]
    assert [milliseconds(v) for v in (None, 0.07368, 14.44, 123.4)] == ["-", "0.0737", "14.4", "123"]


def test_panels() -> None:
    one, two = panels(RESULTS)
    assert (one.threads, two.threads) == (1, 2)
    assert one.groups == (
        Group("A", 2, (Bar("onnxruntime", 0.5, 4), Bar("openvino", 2.0, 1))),
        Group("B", 200, (Bar("onnxruntime", 0.125, 400), Bar("openvino", None, None))),
        Group(MEAN, None, (Bar("onnxruntime", pytest.approx(0.25), None), Bar("openvino", 2.0, None))),
    )
    assert two.groups[1] == Group("B", None, (Bar("onnxruntime", None, 300), Bar("openvino", None, None)))
    assert panels(RESULTS, "min")[0].groups[0] == Group(
        "A", 1, (Bar("onnxruntime", 0.25, 2), Bar("openvino", 1.0, 0.5))
    )
    assert [group.name for group in panels(RESULTS[:3])[0].groups] == ["A"]  # no mean of one


def test_drawing(tmp_path) -> None:
    """Bars are as long as the ratios, texts say the times, files are what their suffix says."""
    pytest.importorskip("matplotlib")
    report = Report({}, RESULTS)
    figure = draw(report)
    assert len(figure.axes) == 2
    first = figure.axes[0]
    assert [bar.get_width() for bar in first.patches] == [0.5, 0.125, pytest.approx(0.25), 2.0, 0, 2.0]
    texts = [text.get_text() for text in first.texts]
    assert "0.50  (4 ms)" in texts and "no result" in texts and "2.00  (1 ms)" in texts
    assert [label.get_text() for label in first.get_yticklabels()] == ["A\n2 ms", "B\n200 ms", MEAN]
    write_chart(report, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    write_chart(report, tmp_path / "c.svg", "min")
    assert "<svg" in (tmp_path / "c.svg").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="nothing to draw"):
        draw(Report({}, RESULTS[:1]))


def test_what_a_chart_needs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends in \.png, \.svg, \.pdf"):
        write_chart(Report({}, RESULTS), tmp_path / "c.jpg")
    imported = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'minifer\[bench\]'"):
        write_chart(Report({}, RESULTS), tmp_path / "c.png")
