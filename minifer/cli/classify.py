"""Name what photographs show: the most probable classes of each image.

Without files it classifies the two sample photographs that minifer carries.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files (default: the carried samples)")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name (default 5)")
    parser.add_argument("--model", help="an .onnx classifier (default: the carried EfficientNet-Lite0)")
    parser.add_argument("--labels", metavar="FILE", help="class names: a JSON list, or one name a line")
    parser.add_argument(
        "--preprocessing", metavar="NAME", help="how the model sees images: efficientnet-lite, imagenet or inception"
    )
    parser.add_argument("--threads", type=int, help="how many threads to use (default: all CPUs)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    import json

    import numpy as np

    from minifer import models
    from minifer.cli import fail
    from minifer.cli._text import time_text
    from minifer.errors import MiniferError
    from minifer.pipelines.image import ImageClassifier, read_labels

    start = time.perf_counter()
    labels = read_labels(arguments.labels) if arguments.labels else None
    classifier = ImageClassifier(arguments.model, labels, arguments.preprocessing, arguments.threads)
    loaded = time.perf_counter()
    classifier.probabilities(classifier.prepare([np.zeros((1, 1, 3), np.uint8)]))  # plan, build and load the kernels
    ready = time.perf_counter()
    status, found = 0, []
    for image in arguments.images or [str(models.path(name)) for name in models.SAMPLES]:
        try:
            found.append(classify_one(classifier, image, arguments.top))
        except MiniferError as error:  # the other images are still worth a look
            status = fail(error)
            continue
        if not arguments.json:
            print_one(found[-1])
    if arguments.json:
        json.dump(found, sys.stdout, indent=2, ensure_ascii=False)
        print()
    elif found:
        print(f"model loaded in {time_text(loaded - start)}, planned and its kernels made ready in ", end="")
        print(time_text(ready - loaded))
    return status


def classify_one(classifier: Any, image: str, top: int) -> dict[str, Any]:
    """The predictions for one file, with the time that reading and preparing, and running, took."""
    start = time.perf_counter()
    batch = classifier.prepare([image])
    prepared = time.perf_counter()
    probabilities = classifier.probabilities(batch)
    done = time.perf_counter()
    return {
        "file": image,
        "predictions": [p._asdict() for p in classifier.best(probabilities[0], top)],
        "prepare_seconds": prepared - start,
        "run_seconds": done - prepared,
    }


def print_one(found: dict[str, Any]) -> None:
    """A file's predictions for people."""
    from minifer.cli._text import time_text

    print(found["file"])
    for prediction in found["predictions"]:
        print(f"  {prediction['probability']:7.2%}  {prediction['label']}")
    print(f"  prepared in {time_text(found['prepare_seconds'])}, classified in {time_text(found['run_seconds'])}\n")
