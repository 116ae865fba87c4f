"""Tell whether English texts sound negative, neutral or positive.

Each argument is a text; `-` stands for the lines of the standard input, a text a line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="a text, or - for the lines of the standard input")
    parser.add_argument("--model", help="an .onnx model with the same input and outputs (default: the carried one)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    from minifer.pipelines.text import SentimentClassifier

    classifier = SentimentClassifier(arguments.model)
    for text in texts_of(arguments.texts):
        print_one(text, classifier(text), arguments.json)
    return 0


def texts_of(arguments: list[str]) -> Iterator[str | bytes]:
    """The texts, as they come. Lines that the standard input gives need not be valid UTF-8."""
    for argument in arguments:
        if argument == "-":
            yield from (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
        else:
            yield argument


def print_one(text: str | bytes, found: Any, as_json: bool) -> None:
    """A line of output: label, probability, rating and text; or a JSON object."""
    import json

    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    text = text.encode("utf-8", "replace").decode()  # of an argument that is no UTF-8
    if as_json:
        scores = dict(zip(("negative", "neutral", "positive"), found.probabilities))
        print(json.dumps({"text": text, **found._asdict(), "probabilities": scores}, ensure_ascii=False), flush=True)
    else:
        print(f"{found.label:8}  {found.score:4.0%}  {found.rating:+.1f}  {text}", flush=True)
