"""The Python blocks of the documents run, and say the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minifer.ir import Graph, Model, Node, TensorType
from minifer.onnx_io import save_model

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_swish_model(path):
    """The file that custom-operators.md loads."""
    types = {"x": TensorType("float32", (3,))}
    graph = Graph(("x",), ("y",), (Node("Swish", ("x",), ("y",), {}, "swish", "my.domain", 1),), {}, types)
    save_model(Model(graph, {"my.domain": 1}, 10), path)


@pytest.mark.parametrize("name", ["docs/tour.md", "docs/kernels.md", "docs/custom-operators.md", "docs/performance.md"])
def test_blocks_run(name, tmp_path, monkeypatch):
    """All blocks of a document, in order and in one namespace; line numbers in errors are those of the document."""
    monkeypatch.chdir(tmp_path)
    write_swish_model(tmp_path / "model_with_swish.onnx")
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    names: dict = {"__name__": "docs"}
    for block in blocks:
        before = text[: block.start(1)].count("\n")
        source = "\n" * before + block.group(1)
        if "@kernel" in source:  # annotations are looked up in the module of a function's body
            (tmp_path / "document.py").write_text(source, encoding="utf-8")
            monkeypatch.syspath_prepend(tmp_path)
            __import__("document")
        else:
            exec(compile(source, name, "exec"), names)


DOCUMENTS = sorted(p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert ((ROOT / path).parent / target).exists(), f"{path} links to {target}, which is not there"
