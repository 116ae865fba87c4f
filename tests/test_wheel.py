"""What a wheel carries: kernels that run at once, with no compiler and an empty cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import minifer
from minifer.codegen import build, store
from minifer.kernels.target import TARGETS, host
from minifer.runtime.records import Table
from tests.building import file, floats, node

ROOT = Path(__file__).parent.parent

RUN = """
import sys

class NoCompiler:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ImportError("there is no " + name)

sys.meta_path.insert(0, NoCompiler())
import numpy as np
import minifer
session = minifer.load(sys.argv[1], threads=2)
x = np.load(sys.argv[2])
assert session.plan({"x": x}).native_steps() > 0 and not session.plan({"x": x}).python_steps()
np.save(sys.argv[3], session.run({"x": x})["y"])
print(minifer.__file__)
"""

pytestmark = pytest.mark.skipif(store.SUFFIX != ".so", reason="wheels carry shared objects")


def model() -> bytes:
    return file([node("Relu", "x", "r"), node("Transpose", "r", "y", perm=[1, 0])], {"x": "float32[n,m]"}, "y")


def units_of(data: bytes, feeds: dict) -> list[store.Unit]:
    """The units that a model needs, with the runner's."""
    session = minifer.load(data)
    session.run(feeds)
    parts = session._executor(feeds).stage_for(feeds).parts
    steps = [step for part in parts if isinstance(part, Table) for step in part.steps]
    return list(dict.fromkeys([("minifer.kernels.runner", ""), *(s.kernel.unit for s in steps)]))


def runs_alone(package: Path, tmp_path: Path) -> None:
    """The model runs with the package in a folder, an empty cache and no compiler."""
    x = floats(5, 7)
    (tmp_path / "m.onnx").write_bytes(model())
    np.save(tmp_path / "x.npy", x)
    environment = {**os.environ, "PYTHONPATH": str(package), "MINIFER_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", RUN, *(str(tmp_path / name) for name in ("m.onnx", "x.npy", "y.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(package), "another minifer was imported"
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.maximum(x, 0).T)
    built = [p.name for p in (tmp_path / "cache").rglob("*") if p.suffix in (".so", ".o")]
    assert not built


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of, with the kernels of the model built."""
    copy = tmp_path / "sources"
    for name in ("minifer", "kernels", "models"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "prebuilt", "*.onnx"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    build.ship(units_of(model(), {"x": floats(5, 7)}), host(), str(copy / "kernels" / "prebuilt"))
    return copy


def test_shipped_kernels_are_found(sources: Path, tmp_path: Path) -> None:
    """As a wheel lays them out."""
    package = tmp_path / "package"
    shutil.copytree(sources / "minifer", package / "minifer")
    shutil.copytree(sources / "kernels", package / "minifer" / "kernels")
    runs_alone(package, tmp_path)


def test_a_changed_source_is_not_served_by_shipped_kernels(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = ("minifer.kernels.runner", "")
    monkeypatch.setattr(store, "PREBUILT", str(sources / "kernels" / "prebuilt"))
    found = store.find(unit, host())
    assert found is not None and found.startswith(str(sources))
    monkeypatch.setattr(store, "_sources_digest", lambda module: b"another")
    other = store.find(unit, host())
    assert other is None or not other.startswith(str(sources))


def test_ship_clears_what_is_old(tmp_path: Path) -> None:
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    other = next(t for t in TARGETS if t != host().name)
    for name in (f"runner-{host().name}-0123.so", f"runner-{other}-0123.so"):
        (folder / name).write_bytes(b"old")
    build.ship([("minifer.kernels.runner", "")], host(), str(folder))
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 2 and f"runner-{other}-0123.so" in names and f"runner-{host().name}-0123.so" not in names


def test_the_wheel(sources: Path, tmp_path: Path) -> None:
    """Made and installed by pip, it runs a model. Needs setuptools, from the environment or the index."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made = subprocess.run(
        [*pip, "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path / "dist"), str(sources)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if made.returncode and any(text in made.stderr for text in ("No matching distribution", "No module named pip")):
        pytest.skip("no index to take setuptools from")
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert [n for n in names if n.startswith("minifer/kernels/prebuilt/runner-")]
    assert not [n for n in names if n.split("/")[0] not in ("minifer",) and ".dist-info/" not in n]
    install = [*pip, "install", "--no-deps", "--quiet", "--no-index", "--target", str(tmp_path / "package"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    runs_alone(tmp_path / "package", tmp_path)
