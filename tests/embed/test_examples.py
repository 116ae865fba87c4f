"""The examples: each is built and run in a copy of its folder, and sees in the photograph what minifer sees."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minifer.models as carried
from minifer.pipelines.image import classify

pytestmark = pytest.mark.embed

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTO = EXAMPLES.parent / "models" / "chelsea.png"
#: the tools that each needs, and whether it runs on this machine's own instructions
NEEDS = {"c": (["cc"], True), "rust": (["cargo", "cc"], True), "node": (["node"], False), "worker": (["node"], False)}


def make(example: str, folder: Path) -> str:
    """What `make run` prints last, in a copy of the examples."""
    tools, native = NEEDS[example]
    for tool in ("make", *tools):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if native and (sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64", "riscv64")):
        pytest.skip(f"minifer compile has no tested target for {sys.platform}")
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("build"))
    settings = [f"MODEL={carried.path(carried.EFFICIENTNET_LITE0)}", f"PHOTO={PHOTO}", f"PYTHON={sys.executable}",
                f"MINIFER={sys.executable} -m minifer"]  # fmt: skip
    done = subprocess.run(
        ["make", "--silent", "run", *settings], cwd=folder / example, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", list(NEEDS))
def test_example(tmp_path, example):
    found = re.findall(r"^ *([\d.]+) %  (.*)$", make(example, tmp_path / "examples"), re.M)
    expected = classify(PHOTO)
    assert [label for _, label in found] == [p.label for p in expected]
    assert [float(percent) for percent, _ in found] == pytest.approx([100 * p.probability for p in expected], abs=0.1)


def test_readme_names_every_example():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    folders = sorted(p.name for p in EXAMPLES.iterdir() if p.is_dir())
    assert folders == sorted(NEEDS)
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == list(NEEDS)
