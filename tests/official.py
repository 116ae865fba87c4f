"""The cases of the official ONNX backend suite, generated once and kept.

The node cases are Python code inside the onnx package, which runs for more than ten seconds. What it gives is kept
in pytest's cache folder, by the versions of what it depends on, so that the processes of `pytest -n` and later runs
read a file instead. (The folder lies in the checkout; a pickle from a shared folder could be anybody's.)
"""

from __future__ import annotations

import os
import pickle
import platform
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

_FOLDER = Path(__file__).parent.parent / ".pytest_cache" / "official"


def load_cases(data_dir: str | None = None, kind: str | None = None):
    """As `onnx.backend.test.loader.load_model_tests`, which it stands in for, with the node cases kept."""
    if kind != "node":
        return load_model_tests(kind=kind) if data_dir is None else load_model_tests(data_dir, kind)
    path = _FOLDER / f"onnx-{onnx.__version__}-numpy-{np.__version__}-python-{platform.python_version()}.pickle"
    try:
        return pickle.loads(path.read_bytes())
    except FileNotFoundError:
        cases = list(load_model_tests(kind="node"))
        _keep(path, pickle.dumps(cases))
        return cases


def _keep(path: Path, data: bytes) -> None:
    """Write the file whole or not at all, however many processes do; without a place to write, do without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except OSError:
        pass
