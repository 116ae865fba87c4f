"""The benchmark's protocol: turns, failures, what is reported. Times are only asked to be there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from minifer.cli import main
from minifer.cli._bench_cases import read_list
from minifer.errors import InputError
from minifer.tools import bench_worker
from minifer.tools.bench import Case, Contest, EngineError, Options, Report, Worker, bench
from minifer.tools.difference import difference, outputs_difference

ROOT = Path(__file__).parent.parent.parent
HERE = "tests.tools.engines:"
QUICK = Options(runs=2, rounds=2, cold_starts=1, gap_seconds=0.05, warmup=1, timeout=300)
FEEDS = {"x": np.array([[1, -2, 3], [0, 0.5, -1]], np.float32)}
RESULT_FIELDS = {
    "name", "model", "inputs", "threads", "engine", "status", "message", "version", "median_ms", "min_ms", "rounds_ms",
    "runs", "ratio", "ratio_min", "cold_start_ms", "cold_start_min_ms", "load_ms", "first_run_ms", "peak_bytes",
    "error",
}  # fmt: skip


@pytest.fixture(autouse=True)
def engines_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_engines(tiny: str) -> None:
    """minifer, ONNX Runtime and a third one agree; all figures are there."""
    pytest.importorskip("onnxruntime")
    report = bench([Case(tiny, FEEDS)], ["minifer", "onnxruntime", HERE + "Twin"], [1, 2], QUICK)
    assert [(r.threads, r.engine) for r in report.results] == [
        (t, e) for t in (1, 2) for e in ("minifer", "onnxruntime", HERE + "Twin")
    ]
    for result in report.results:
        assert (result.status, result.message) == ("ok", "")
        assert len(result.rounds_ms) == result.runs == 2 and result.version
        assert 0 < result.min_ms <= result.median_ms and result.load_ms < result.cold_start_ms
        assert result.first_run_ms > 0 and result.peak_bytes > 10_000_000
        if result.engine == "minifer":
            assert result.error is result.ratio is result.ratio_min is None
        else:
            assert result.error < 1e-6 and result.ratio > 0 and result.ratio_min > 0
    written = report.to_json()
    assert written.keys() == {"format", "minifer", "machine", "results", "means"} and written["format"] == 1
    assert all(row.keys() == RESULT_FIELDS for row in written["results"])
    assert json.loads(json.dumps(written)) == written
    assert Report.from_json(written).results == report.results


@pytest.mark.parametrize(
    ("engine", "status", "message"),
    [
        ("no_such_module:Engine", "missing", "not installed: No module named 'no_such_module'"),
        ("no_such_engine", "missing", "not installed"),
        (HERE + "Choosy", "failed", "ValueError: I do not like tiny.onnx"),
        (HERE + "Mortal", "failed", "its process ended during 'outputs' (exit status 3)"),
        (HERE + "Tired", "failed", "RuntimeError: enough"),
        (HERE + "Unsendable", "failed", "the answer cannot be sent"),
    ],
)
def test_an_engine_that_fails(tiny: str, engine: str, status: str, message: str) -> None:
    """It is out with a message, the others are measured all the same."""
    report = bench([Case(tiny, FEEDS)], [HERE + "Twin", engine, HERE + "Wrong"], [1], QUICK)
    twin, bad, wrong = report.results
    assert bad.status == status and message in bad.message
    assert bad.median_ms is bad.ratio is None
    assert twin.status == wrong.status == "ok"
    assert twin.median_ms and wrong.median_ms and wrong.ratio and wrong.error > 0.01


def test_the_first_engine_fails(tiny: str) -> None:
    report = bench([Case(tiny, FEEDS)], [HERE + "Choosy", HERE + "Twin"], [1], QUICK)
    assert [r.status for r in report.results] == ["failed", "ok"]
    assert report.results[1].median_ms and report.results[1].ratio is report.results[1].error is None


def test_no_answer_in_time(tiny: str) -> None:
    with Worker(HERE + "Asleep", timeout=60) as worker:
        worker.ask("load", model=tiny, threads=1, feeds=FEEDS)
        worker.timeout = 0.2
        with pytest.raises(EngineError, match=r"no answer to 'run' within 0\.2 s"):
            worker.ask("run")
        with pytest.raises(EngineError, match="its process ended"):
            worker.ask("run")


def test_commands(tiny: str) -> None:
    """Each command's answer has the keys that the protocol promises, whatever the engine prints."""
    with Worker(HERE + "Twin", timeout=60) as worker:
        loaded = worker.ask("load", model=tiny, threads=1, feeds=FEEDS)
        assert loaded.keys() == {"version", "import_seconds", "load_seconds"} and loaded["version"] == "7"
        assert worker.ask("run")["seconds"] > 0
        assert len(worker.ask("burst", runs=4, warmup=1)["seconds"]) == 4
        np.testing.assert_array_equal(worker.ask("outputs")["outputs"]["y"][0], [16, 18, 20, 22])
        with pytest.raises(EngineError, match="AttributeError"):
            worker.ask("dance")
        assert worker.ask("finish")["peak_bytes"] > 0
    assert worker.process.returncode == 0


def test_a_run_before_loading() -> None:
    with Worker("minifer", timeout=60) as worker, pytest.raises(EngineError, match="load comes first"):
        worker.ask("run")


def test_turns(tiny: str) -> None:
    """Every other round goes backwards, so that no engine always follows the same one."""
    contest = Contest(Case(tiny, FEEDS), 1, ["a", "b", "c"], QUICK)
    assert [contest._in_turn(i) for i in range(2)] == [["a", "b", "c"], ["c", "b", "a"]]
    contest.results["b"].status = "failed"
    assert contest._in_turn(0) == ["a", "c"]


def test_bad_arguments(tiny: str) -> None:
    with pytest.raises(InputError, match="named twice"):
        bench([Case(tiny, FEEDS)], ["minifer", "minifer"])
    with pytest.raises(InputError, match="thread counts"):
        bench([Case(tiny, FEEDS)], ["minifer"], [0])
    with pytest.raises(InputError, match="at least 1 round"):
        Options(rounds=0)


def test_peak_is_not_inherited() -> None:
    """A child of a large process is not large itself."""
    ballast = np.ones(40_000_000)
    with Worker(HERE + "Twin", timeout=60) as worker:
        peak = worker.ask("finish")["peak_bytes"]
    assert 0 < peak < ballast.nbytes <= bench_worker.peak_bytes()


def test_command(tiny: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    options = ["--dim", "N=2", "--runs", "2", "--rounds", "1", "--cold", "0", "--json", str(file)]
    assert main(["bench", tiny, "--against", HERE + "Wrong,no_such_engine", "--threads", "1", *options]) == 1
    printed = capsys.readouterr().out
    assert "DIFFER" in printed and "no_such_engine: not installed" in printed and "float32[2, 3]" in printed
    rows = json.loads(file.read_text())["results"]
    assert [row["status"] for row in rows] == ["ok", "ok", "missing"]
    assert all(row["cold_start_ms"] is None for row in rows)
    assert main(["bench", tiny, "--against", HERE + "Twin", *options]) == 0  # the seed is the same for every engine
    assert main(["bench", tiny, "--threads", "one"]) == 2
    assert "--threads takes numbers" in capsys.readouterr().err


def test_lists_and_folders(tiny: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list's models are sought in the folder given, then beside the list; one that is not there is left out."""
    spec, table, figures = tmp_path / "list.json", tmp_path / "table.md", tmp_path / "figures.json"
    entries = [
        {"name": "Tiny", "model": "tiny.onnx", "dims": {"N": 2}},
        {"name": "Tinier", "model": "tiny.onnx", "shapes": {"x": [1, 3]}, "set": {"x": 1}},
        {"name": "Gone", "model": "gone.onnx"},
        {"name": "Skipped", "model": "tiny.onnx"},
    ]
    spec.write_text(json.dumps(entries))
    options = ["--against", HERE + "Twin", "--runs", "1", "--rounds", "1", "--cold", "0", "--json", str(figures)]
    listed = ["--spec", str(spec), "--folder", str(tmp_path / "nowhere"), "--only", "Tin|Gone"]
    assert main(["bench", *listed, *options, "--markdown", str(table)]) == 1
    printed = capsys.readouterr().out
    assert "Gone is left out: there is no file" in printed and "geometric means" in printed and "Skipped" not in printed
    head, _, first, second, mean = table.read_text().splitlines()
    assert head.startswith("| model | input | minifer ms, 1 thread | / ")
    assert first.startswith("| Tiny | 2x3 | ") and second.startswith("| Tinier | 1x3 | ") and "mean" in mean
    assert main(["bench", "--results", str(figures), str(figures), "--markdown", "-"]) == 0
    assert capsys.readouterr().out.count("| Tiny | 2x3 |") == 1
    assert main(["bench", "--nets", str(tmp_path), *options]) == 0
    assert [row["name"] for row in json.loads(figures.read_text())["results"]] == ["tiny", "tiny"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no JSON"),
        ("{}", "must hold a list"),
        ('[{"name": "a"}]', 'must be an object with a key "model"'),
        ('[{"model": "a", "shape": {}}]', "has the key 'shape'; known are dims, model, name, set, shapes"),
        ('[{"model": "a", "dims": []}]', '"dims" of entry 0'),
        ('[{"model": "a", "shapes": {"x": 3}}]', "the shape of 'x'"),
        ("[]", "nothing to measure"),
    ],
)
def test_a_bad_list(text: str, message: str, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "list.json"
    spec.write_text(text)
    assert main(["bench", "--spec", str(spec)]) == 2
    assert message in capsys.readouterr().err


def test_bad_figures(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in (("[", "is no JSON"), ("{}", "no figures"), ('{"format": 0}', "in format 0")):
        (tmp_path / "f.json").write_text(text)
        assert main(["bench", "--results", str(tmp_path / "f.json")]) == 2
        assert message in capsys.readouterr().err


def test_the_list_of_models() -> None:
    """Every entry of models/bench.json is read; what is carried is there."""
    entries = read_list(str(ROOT / "models" / "bench.json"))
    assert len(entries) == len({entry["name"] for entry in entries}) == 18
    assert (ROOT / "models" / entries[0]["model"]).is_file()


def test_tract(tiny: str) -> None:
    pytest.importorskip("tract")
    engine = bench_worker.Tract(tiny, 2)
    assert engine.version.endswith("(1 thread)")
    np.testing.assert_array_equal(engine.run(FEEDS)["y"], np.maximum(FEEDS["x"] @ np.arange(12.0).reshape(3, 4), 0))


# ---- difference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "want", "expected"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 4.0]), 0.5),
        (np.array([0.25]), np.array([0.0]), 0.25),
        (np.array([1, 2]), np.array([1, 2]), 0.0),
        (np.array([], np.float32), np.array([], np.float32), 0.0),
        (np.array([np.nan, np.inf, 1]), np.array([np.nan, np.inf, 1]), 0.0),
        (np.array([np.nan, 1]), np.array([1, 1]), math.inf),
        (np.array([-np.inf, 1]), np.array([np.inf, 1]), math.inf),
        (np.array([1, np.inf]), np.array([1, 1.0]), math.inf),
        (np.ones(2), np.ones(3), math.inf),
        (np.array([3 + 4j]), np.array([0 + 5j]), math.sqrt(10) / 5),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array(["a"], object), np.array(["a"], object), 0.0),
        (np.array(["a"], object), np.array(["b"], object), math.inf),
        ([np.ones(2), np.ones(1)], [np.ones(2), np.full(1, 2.0)], 0.5),
        ([np.ones(2)], [], math.inf),
        ({"a": 1.0}, {"a": 2.0}, 0.5),
        ({"a": 1.0}, {"b": 1.0}, math.inf),
        (np.array([200], np.uint8), np.array([250], np.uint8), 0.2),
    ],
)
def test_difference(got, want, expected: float) -> None:
    assert difference(got, want) == pytest.approx(expected)


def test_outputs_difference() -> None:
    one, two = np.ones(1), np.full(1, 2.0)
    assert outputs_difference({"a": one, "b": two}, {"b": two, "a": one}) == 0
    assert outputs_difference({"x": one, "y": two}, {"a": one, "b": two}) == 0  # other names: by position
    assert outputs_difference({"a": one}, {"a": one, "b": two}) == math.inf
    assert outputs_difference({}, {}) == 0
