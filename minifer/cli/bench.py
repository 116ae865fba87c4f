"""Measure minifer beside other engines: latency, cold start, memory, and whether the outputs agree.

    minifer bench model.onnx --threads 1,2
    minifer bench a.onnx b.onnx --against onnxruntime,openvino --dim batch=4 --json figures.json
    minifer bench --nets FOLDER --against onnxruntime,openvino,tract --chart ratios.svg
    minifer bench --spec models/bench.json --folder FOLDER --threads 1,2 --json f.json --markdown table.md
    minifer bench --results f.json more.json --chart ratios.png

Each engine has a process of its own. They run in turn, never two at a time, on the same random inputs (--set fixes
one). "minifer/it" is minifer's time by that engine's: 0.5 says that minifer takes half as long. The cold start is
the time from the start of a process to its first result, kernels being built and files in memory. An engine that is
not installed is named and left out.

An engine besides onnxruntime, openvino and tract is given as MODULE:CLASS (see minifer/tools/bench_worker.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minifer.tools.bench import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minifer.cli._feeds import add_shape_arguments

    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help=".onnx files")
    add("--nets", action="append", default=[], metavar="FOLDER", help="all .onnx files of a folder; repeatable")
    add("--spec", action="append", default=[], metavar="FILE", help="a list of models (JSON); repeatable")
    add("--folder", action="append", default=[], metavar="FOLDER", help="where the models of --spec are; repeatable")
    add("--only", metavar="REGEX", help="of --nets and --spec, those whose name matches")
    add("--results", nargs="+", default=[], metavar="FILE", help="measure nothing: show what --json wrote earlier")
    add("--against", default="onnxruntime", metavar="ENGINE,...", help="engines to compare with (default onnxruntime)")
    add("--threads", default="1", metavar="N,...", help="thread counts (default 1)")
    add_shape_arguments(parser)
    add("--seed", type=int, default=0, help="seed of the random inputs (default 0)")
    add("--runs", type=int, metavar="N", help="timed runs in a burst (default: 0.15 s of them)")
    add("--rounds", type=int, default=7, metavar="N", help="bursts of each engine (default 7)")
    add("--cold", type=int, default=5, metavar="N", help="cold starts of each engine (default 5)")
    add("--timeout", type=float, default=600, metavar="SECONDS", help="for one answer of an engine")
    add("--json", metavar="FILE", help="write all figures here, after each model")
    add("--chart", metavar="FILE", help="draw the ratios into a .png, .svg or .pdf file (needs matplotlib)")
    add("--markdown", metavar="FILE", help="write a table for a document here; - prints it")
    add("--statistic", choices=("median", "min"), default="median", help="of times in chart and table")


def run(arguments: argparse.Namespace) -> int:
    import sys

    from minifer.cli._bench_text import disagrees, report_lines
    from minifer.tools.chart import check_suffix

    if arguments.chart:
        check_suffix(arguments.chart)  # before the measuring
    report, problems = (read(arguments.results), []) if arguments.results else measure(arguments)
    print("\n".join([*report_lines(report), *problems]))
    write(report, arguments)
    if arguments.results:
        return 0
    sys.stdout.flush()
    return 1 if problems or any(r.status == "failed" or disagrees(r) for r in report.results) else 0


def measure(arguments: argparse.Namespace) -> tuple[Report, list[str]]:
    """The measured report, and the models that are left out, with reasons."""
    import sys

    from minifer.cli._bench_cases import cases
    from minifer.errors import InputError
    from minifer.tools.bench import Options, bench

    try:
        threads = [int(part) for part in arguments.threads.split(",")]
    except ValueError:
        raise InputError(f"--threads takes numbers such as 1,2, not '{arguments.threads}'") from None
    engines = ["minifer", *filter(None, (name.strip() for name in arguments.against.split(",")))]
    options = Options(arguments.runs, arguments.rounds, arguments.cold, timeout=arguments.timeout)

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    found, problems = cases(arguments, say)
    return bench(found, engines, threads, options, say, lambda report: write_json(report, arguments.json)), problems


def read(files: Sequence[str]) -> Report:
    """The figures of several --json files as one report, on the machine of the first."""
    import json
    from pathlib import Path

    from minifer.errors import InputError
    from minifer.tools.bench import Report

    reports = []
    for file in files:
        try:
            reports.append(Report.from_json(json.loads(Path(file).read_text(encoding="utf-8"))))
        except ValueError as error:
            raise InputError(f"'{file}' is no JSON: {error}") from error
    return Report(reports[0].machine, [result for report in reports for result in report.results])


def write_json(report: Report, file: str | None) -> None:
    """All figures, if a file is named."""
    import json
    from pathlib import Path

    if file:
        Path(file).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")


def write(report: Report, arguments: argparse.Namespace) -> None:
    """The files asked for."""
    from pathlib import Path

    from minifer.tools.bench_summary import markdown
    from minifer.tools.chart import write_chart

    write_json(report, arguments.json)
    if arguments.markdown:
        text = "\n".join(markdown(report.results, arguments.statistic)) + "\n"
        if arguments.markdown == "-":
            print("\n" + text, end="")
        else:
            Path(arguments.markdown).write_text(text, encoding="utf-8")
    if arguments.chart:
        write_chart(report, arguments.chart, arguments.statistic)
