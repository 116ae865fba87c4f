"""Show where the time of a run goes: its steps by time, with their arithmetic and traffic.

    minifer profile model.onnx --threads 1
    minifer profile model.onnx --shape x=1,3,640,640 --top 10 --json profile.json

Inputs are random (--set fixes one). GFLOP/s counts the plain formula of convolutions, matrix products and recurrent
layers; GB/s counts each tensor that a step reads or writes once and whole.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minifer.cli._feeds import add_shape_arguments

    parser.add_argument("model", help="an .onnx file")
    add_shape_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random inputs (default 0)")
    parser.add_argument("--threads", type=int, help="how many threads to use (default: all CPUs)")
    parser.add_argument("--runs", type=int, default=20, metavar="N", help="profiled runs (default 20)")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="runs before the first measured (default 3)")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many steps to list (default 20; 0: all)")
    parser.add_argument("--order", choices=("time", "run"), default="time", help="slowest first, or as they run")
    parser.add_argument("--json", metavar="FILE", help="write the whole profile here")


def run(arguments: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from minifer.cli._feeds import made_feeds
    from minifer.errors import InputError
    from minifer.session import load

    if arguments.top < 0:
        raise InputError(f"--top is 0 (all) or more, not {arguments.top}")
    session = load(arguments.model, threads=arguments.threads)
    feeds = made_feeds(session, arguments, (), arguments.seed)
    report = session.profile(feeds, arguments.runs, arguments.warmup)
    print(report.table(arguments.top or None, arguments.order))
    if arguments.json:
        text = json.dumps({"model": str(arguments.model), **report.to_json()}, indent=1)
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    return 0
