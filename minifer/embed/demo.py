"""The page that is written beside a WebAssembly module: static files for any web server, in any folder.

A classifier of photographs gets a page that classifies one; every other model a page that describes it and runs it on
random values. All files are the same for all models of a kind, but demo-model.js, which says which model it is. No
name clashes with those of the module, for these are identifiers and hold no hyphen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import minifer.models as carried
from minifer.embed.abi import Interface
from minifer.errors import InputError
from minifer.pipelines.image import PREPROCESSINGS, Preprocessing

_FOLDER = Path(__file__).with_name("pages")
_SAMPLE = "chelsea.png"
_LABELS = "labels.json"

#: file of the demo -> file in the folder of this package
_COMMON = {"demo-style.css": "style.css", "demo-common.js": "common.js", "demo-loading.js": "loading.js"}
_IMAGE = {
    "index.html": "image.html",
    "demo-page.js": "image-page.js",
    "demo-worker.js": "image-worker.js",
    "demo-prepare.js": "prepare.js",
}
_TENSORS = {
    "index.html": "tensors.html",
    "demo-page.js": "tensors-page.js",
    "demo-worker.js": "tensors-worker.js",
    "demo-values.js": "values.js",
}


def pages(
    interface: Interface,
    name: str,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, str | bytes]:
    """The files of the page, by name; index.html is the page.

    `name`: of the module, NAME.js. `labels`: the names of a classifier's classes; where None, those of ImageNet for
    1000 classes. `metadata`: of the model, whose "preprocessing" says how a photograph is prepared, as for
    `minifer.pipelines.image.ImageClassifier`. A photograph page is for models with one input (1, 3, S, S) or
    (1, S, S, 3) of float32 or uint8 whose first output has a float32 score for each class that has a label.

    Raises InputError where the number of labels is not that of the classes, or the preprocessing is not known.
    """
    settings: dict[str, Any] = {
        "name": name,
        "plain": f"{name}.wasm",
        "relaxed": f"{name}.relaxed.wasm",
        "weights": f"{name}.weights" if interface.separate else None,
    }
    files: dict[str, str | bytes] = {}
    sources = _COMMON | _TENSORS
    classes = _classes(interface)
    if classes is not None and labels is None and classes == 1000:
        labels = carried.imagenet_labels()
    if classes is not None and labels is not None:
        if len(labels) != classes:
            raise InputError(f"there are {len(labels)} labels for a model of {classes} classes")
        sources = _COMMON | _IMAGE
        chosen = (metadata or {}).get("preprocessing", "imagenet")
        settings |= {"classes": classes, "labels": _LABELS, "sample": _SAMPLE}
        settings["preprocessing"] = _preparation(interface, chosen)
        files[_LABELS] = json.dumps(list(labels), ensure_ascii=False)
        files[_SAMPLE] = carried.path(_SAMPLE).read_bytes()
    files |= {file: (_FOLDER / source).read_text(encoding="utf-8") for file, source in sources.items()}
    files["demo-model.js"] = _model_module(name, settings)
    return files


def _classes(interface: Interface) -> int | None:
    """The number of classes of a classifier of photographs, or None for any other model."""
    if len(interface.inputs) != 1 or not interface.outputs:
        return None
    image, scores = interface.inputs[0], interface.outputs[0]
    if len(image.shape) != 4 or image.dtype not in ("float32", "uint8"):
        return None
    square = image.shape in ((1, 3, image.shape[2], image.shape[2]), (1, image.shape[2], image.shape[2], 3))
    if not square or scores.dtype != "float32" or not scores.shape or scores.shape[0] != 1 or scores.size < 2:
        return None
    return scores.size


def _preparation(interface: Interface, chosen: str) -> dict[str, Any]:
    """How the page prepares a photograph: the fields of Preprocessing, and where the channels are."""
    if chosen not in PREPROCESSINGS:
        raise InputError(f"no preprocessing is called '{chosen}'; there is {', '.join(PREPROCESSINGS)}")
    shape = interface.inputs[0].shape
    preparation: Preprocessing = replace(PREPROCESSINGS[chosen], size=shape[2])
    return {**asdict(preparation), "channelsFirst": shape[1] == 3}


def _model_module(name: str, settings: Mapping[str, Any]) -> str:
    return (
        f"// Made by minifer from the model {name}: the model of this page, and how the page uses it.\n\n"
        f'export {{ hasRelaxedSimd, inputs, load, outputs }} from "./{name}.js";\n\n'
        f"export const settings = {json.dumps(settings, indent=2)};\n"
    )
