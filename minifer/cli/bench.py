"""Measure minifer beside other engines: latency, cold start, memory, and whether the outputs agree.

    minifer bench model.onnx --threads 1,2
    minifer bench a.onnx b.onnx --against onnxruntime,openvino --dim batch=4 --json figures.json

Each engine has a process of its own. They run in turn, never two at a time, on the same random inputs (--set fixes
one). "minifer/it" is minifer's time by that engine's: 0.5 says that minifer takes half as long. The cold start is
the time from the start of a process to its first result, kernels being built and files in memory.

An engine besides onnxruntime and openvino is given as MODULE:CLASS (see minifer/tools/bench_worker.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minifer.tools.bench import Report, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minifer.cli._feeds import add_shape_arguments

    parser.add_argument("models", nargs="+", metavar="MODEL", help=".onnx files")
    parser.add_argument(
        "--against", default="onnxruntime", metavar="ENGINE,...", help="engines to compare with (default onnxruntime)"
    )
    parser.add_argument("--threads", default="1", metavar="N,...", help="thread counts (default 1)")
    add_shape_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default 0)")
    parser.add_argument("--runs", type=int, metavar="N", help="timed runs in a burst (default: 0.15 s of them)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="bursts of each engine (default 7)")
    parser.add_argument("--cold", type=int, default=5, metavar="N", help="cold starts of each engine (default 5)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for one answer of an engine")
    parser.add_argument("--json", metavar="FILE", help="write all figures here")


def run(arguments: argparse.Namespace) -> int:
    import json
    import sys
    from pathlib import Path

    from minifer.errors import InputError
    from minifer.tools.bench import Options, bench

    try:
        threads = [int(part) for part in arguments.threads.split(",")]
    except ValueError:
        raise InputError(f"--threads takes numbers such as 1,2, not '{arguments.threads}'") from None
    engines = ["minifer", *filter(None, (name.strip() for name in arguments.against.split(",")))]
    options = Options(arguments.runs, arguments.rounds, arguments.cold, timeout=arguments.timeout)
    models = {model: model_feeds(model, arguments) for model in arguments.models}
    report = bench(models, engines, threads, options, lambda text: print(text, file=sys.stderr))
    print("\n".join(report_lines(report, models)))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    return 1 if any(r.status == "failed" or disagrees(r) for r in report.results) else 0


def model_feeds(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Random inputs for a model, the same for the same seed."""
    from minifer.cli._feeds import made_feeds
    from minifer.session import load

    with load(model, optimize=False, executor="reference") as session:
        return made_feeds(session, arguments, (), arguments.seed)


def disagrees(result: Result) -> bool:
    """True where the outputs differ by more than rounding explains."""
    from minifer.tools.bench import TOLERANCE

    return result.error is not None and not result.error <= TOLERANCE


def report_lines(report: Report, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tables, one for each model, then what a reader must know to trust them."""
    from minifer.cli._text import table
    from minifer.ir import type_of_value

    about = report.machine
    lines = [f"{about['processor'] or about['system']}, {about['cpus']} CPUs, Python {about['python']}"]
    for model, feeds in models.items():
        rows = [r for r in report.results if r.model == model]
        lines += ["", f"{model}  {', '.join(f'{n} {type_of_value(v)}' for n, v in feeds.items())}"]
        measured = [r for r in rows if r.status == "ok"]
        lines += table([HEADINGS, *map(row, measured)], right=(0, *range(2, len(HEADINGS)))) if measured else []
        lines += [f"{threads_text(r.threads)}, {r.engine}: {r.message}" for r in rows if r.message]
        lines += [
            f"{threads_text(r.threads)}: the outputs of {r.engine} DIFFER from minifer's" for r in rows if disagrees(r)
        ]
    if about["load"] is not None and about["load"] > 0.5:
        lines += ["", f"note: the load was {about['load']} on {about['cpus']} CPUs when this began. Other work disturbs"
                  " the figures."]  # fmt: skip
    if not about["bytecode"]:
        lines += ["", "note: Python keeps no compiled modules of minifer here (PYTHONDONTWRITEBYTECODE, or a read-only"
                  " folder):", "each process compiles them anew, so load and cold start take far longer than they"
                  " should."]  # fmt: skip
    return lines


def threads_text(count: int) -> str:
    """1 -> "1 thread"."""
    return f"{count} thread{'s' if count > 1 else ''}"


HEADINGS = ("threads", "engine", "median ms", "min ms", "minifer/it", "of min", "load ms", "first run ms",
            "cold start ms", "peak memory", "difference")  # fmt: skip


def row(result: Result) -> tuple[str, ...]:
    """An engine's line."""
    from minifer.cli._text import bytes_text

    def number(value: float | None, places: int) -> str:
        return "-" if value is None else f"{value:.{places}f}"

    return (
        str(result.threads), f"{result.engine} {result.version}", number(result.median_ms, 3),
        number(result.min_ms, 3), number(result.ratio, 3), number(result.ratio_min, 3), number(result.load_ms, 1),
        number(result.first_run_ms, 1), number(result.cold_start_ms, 1),
        "-" if result.peak_bytes is None else bytes_text(result.peak_bytes),
        "-" if result.error is None else f"{result.error:.1e}",
    )  # fmt: skip
