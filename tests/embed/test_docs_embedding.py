"""The programs and commands of docs/embedding.md run and print what it says, and so do the two scripts that measure."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from minifer.embed.targets import PLATFORMS
from minifer.kernels.target import host
from tests.embed.browser import Browser, find_browser

pytestmark = pytest.mark.embed

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "embedding.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"\A(?:/\*|//|#|<!--) ([\w/]+\.(?:c|rs|js|mjs|py|html))\b")
START = "Before you start"


def blocks(section: str) -> list[tuple[str, str]]:
    """(language, content) of the fenced blocks under a heading."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {section!r}"
    return BLOCK.findall(found[1])


def follow(section: str, folder: Path) -> None:
    """Do what a section says in a folder: write its files, run its commands, compare what they print."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    commands = 0
    for language, content in blocks(section):
        named = NAMED.match(content)
        if named:
            path = folder / named[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        elif language == "sh":
            commands += 1
            local = content.replace("x86_64-linux", f"{os.uname().machine}-linux")
            done = subprocess.run(
                ["sh", "-e", "-c", local], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{content}\n{done.stdout}{done.stderr}"
            assert "warning" not in done.stderr, done.stderr
        elif language == "text":
            assert commands, "output without a command"
            assert done.stdout.startswith(content.rstrip("\n")), f"{done.stdout}\n is not \n{content}"
        else:
            raise AssertionError(f"a {language} block under {section!r} has no file name in its first line")
    assert commands


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as "Before you start" leaves it, with `minifer` and `python` those of the tests."""
    (tmp_path / "bin").mkdir()
    for name, command in (("python", ""), ("minifer", "-m minifer ")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command}"$@"\n')
        script.chmod(0o755)
    follow(START, tmp_path)
    return tmp_path


def require(*tools: str, native: bool = False) -> None:
    """Skip where a tool is not installed, or a program for this machine cannot be compiled."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if native and (sys.platform != "linux" or f"{os.uname().machine}-linux" not in PLATFORMS):
        pytest.skip("no target makes programs for this machine")
    if native and host().name == "x86-64-v2":
        pytest.skip("this processor lacks AVX2")


def test_c(folder):
    require("gcc", native=True)
    follow("C", folder)


def test_rust(folder):
    require("cargo", "cc", native=True)
    follow("Rust", folder)


def test_node_and_the_browser(folder):
    require("node")
    follow("The web", folder)
    program = find_browser()
    if program is None:
        pytest.skip("chromium is not installed")
    with served(folder) as address, contextlib.closing(Browser(program, folder)) as browser:
        browser.open(f"{address}/index.html")
        browser.wait("document.querySelector('#answer').textContent !== '...'")
        assert browser.value("document.querySelector('#answer').textContent") == "class 282"


@contextlib.contextmanager
def served(folder: Path):
    """The address of a web server for a folder, as `python3 -m http.server` is one."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_library_is_compared_with_minifer():
    require(native=True)
    command = [sys.executable, str(DOCS / "embedding_native.py"), "--runs", "2"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert said.returncode == 0, said.stderr
    found = re.fullmatch(
        r"logits: at most (\S+) apart, the largest value is (\S+)\n"
        r"least: library \S+ ms, minifer \S+ ms, ratio \S+\nmedian: library \S+ ms, minifer \S+ ms, ratio \S+\n",
        said.stdout,
    )
    assert found and float(found[1]) == 0 and float(found[2]) > 1, said.stdout  # the page says: bit for bit


#: a stand-in for onnxruntime-web that multiplies 256 x 256 matrices, the last result wrong by WRONG
FAKE = """
exports.env = { wasm: {}, versions: { web: "none" } };
exports.Tensor = class { constructor(dtype, data, dims) { Object.assign(this, { dtype, data, dims }); } };
exports.InferenceSession = { create: async (bytes) => ({ run, release: async () => {} }) };
async function run({ a, b }) {
  const c = new Float64Array(65536);
  for (let i = 0; i < 256; i++) for (let k = 0; k < 256; k++) for (let j = 0; j < 256; j++)
    c[256 * i + j] += a.data[256 * i + k] * b.data[256 * k + j];
  c[65535] += WRONG;
  return { c: { data: Float32Array.from(c) } };
}
"""


def test_the_web_comparison(folder):
    """The model that the page makes, compared with a stand-in for the npm package."""
    require("node")
    script = DOCS / "embedding_speed.mjs"

    def compared(wrong: str) -> list[str]:
        (package / "wasm.js").write_text(FAKE.replace("WRONG", wrong))
        said = subprocess.run(["node", script, folder], capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stderr
        rows = [line for line in said.stdout.splitlines() if line.startswith("| matmul_256 ")]
        assert len(rows) == 1, said.stdout
        return [cell.strip() for cell in rows[0].split("|")[1:-1]]

    (content,) = [content for language, content in blocks("Speed") if language == "python"]
    (folder / "matmul.py").write_text(content)
    subprocess.run([sys.executable, "matmul.py"], cwd=folder, check=True)
    refused = subprocess.run(["node", script, folder], capture_output=True, text=True)
    assert refused.returncode == 2 and "minifer compile" in refused.stderr
    subprocess.run([folder / "bin" / "minifer", "compile", "matmul_256.onnx", "--out", "."], cwd=folder, check=True)
    (folder / "package.json").write_text('{ "type": "module" }')
    refused = subprocess.run(["node", script, folder], capture_output=True, text=True)
    assert refused.returncode == 2 and "npm install onnxruntime-web" in refused.stderr
    package = folder / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{ "exports": { "./wasm": "./wasm.js" } }')
    row = compared("0")
    assert row[0] == "matmul_256" and row[1] in ("simd128", "relaxed") and len(row) == 9
    assert float(row[-1]) < 1e-5 and float(row[6]) < 1
    assert float(compared("1e3")[-1]) > 0.5


def test_the_table_of_targets_is_complete():
    rows = re.findall(r"^\| `([\w-]+)` \| [^|]*\| [^|]*\| ([^|0-9][^|]*) \|$", TEXT, re.MULTILINE)
    told = {name: tested != "no" for name, tested in rows if name in PLATFORMS}
    assert told == {name: platform.tested for name, platform in PLATFORMS.items()}
    for platform in PLATFORMS.values():
        for word in (*platform.levels, *platform.runtime):
            assert word in TEXT, word
