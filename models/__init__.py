"""The files that minifer carries: two classifiers, labels, two photographs, and the manifest of further models.

Where each file comes from and under which licence stands in README.md beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent

EFFICIENTNET_LITE0 = "efficientnet_lite0.onnx"
SENTIMENT = "sentiment.onnx"
SAMPLES = ("chelsea.png", "coffee.png")


def path(name: str) -> Path:
    """The path of a carried file; FileNotFoundError that lists what there is where the name is unknown."""
    found = _HERE / name
    if Path(name).name != name or not found.is_file():
        known = ", ".join(sorted(p.name for p in _HERE.iterdir() if p.suffix in (".onnx", ".json", ".png")))
        raise FileNotFoundError(f"minifer carries no file '{name}'; there is {known}")
    return found


def imagenet_labels() -> list[str]:
    """The 1000 ImageNet class names, in the order of a classifier's outputs."""
    return json.loads(path("imagenet_labels.json").read_text(encoding="utf-8"))


def manifest() -> dict[str, Any]:
    """Real models and where to fetch them: package, version, path inside, inputs, licence."""
    return json.loads(path("manifest.json").read_text(encoding="utf-8"))
