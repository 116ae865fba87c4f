"""The house keeps its order: imports run down the floors of the architecture, never up and never in a circle.

The rules are read from the source by `ast`, so an import inside a function counts as one at the top does. Imports
under `if TYPE_CHECKING:` name types for annotations and never run; they are left out.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import minifer

ROOT = Path(__file__).parent.parent

#: From top to bottom. A module may import from its own floor (without a circle) and from those below it.
FLOORS = (
    ("minifer.__main__",),
    ("minifer.cli", "minifer.tools", "minifer.models.train_sentiment"),  # that script uses what the models are used by
    ("minifer.pipelines", "minifer.onnxruntime", "minifer.backend", "minifer.embed"),
    ("minifer.session",),
    ("minifer.runtime",),
    ("minifer.plan",),
    ("minifer.passes",),
    ("minifer.ops",),
    ("minifer.codegen",),
    ("minifer.onnx_io",),
    ("minifer.ir",),
    ("minifer.dtypes",),
    ("minifer.collector", "minifer.errors", "minifer.lazy", "minifer.locks", "minifer.record", "minifer.room"),
    ("minifer.models", "minifer.kernels"),
    ("minifer",),  # lazy: it imports nothing; a name taken from it counts as an import of the module it comes from
)

#: Packages from outside, and the modules that may import them at the top level; elsewhere inside functions only.
OUTSIDE = {
    "numpy": ("minifer",),
    "numba": ("minifer.codegen",),
    "llvmlite": ("minifer.codegen",),
    "onnx": ("minifer.backend", "minifer.models.make_efficientnet", "minifer.models.export_nets"),
    "torch": ("minifer.models.export_nets",),  # that script has an environment of its own
    "transformers": ("minifer.models.export_nets",),
    "onnxruntime": (),
    "matplotlib": (),
    "PIL": (),
    "ml_dtypes": (),
}


class Import(NamedTuple):
    """One imported module, and where it is imported."""

    target: str
    line: int
    inside_function: bool


def source_files() -> dict[str, Path]:
    """Module name -> file, of the product's three trees."""
    files = {}
    for folder, package in (("minifer", "minifer"), ("kernels", "minifer.kernels"), ("models", "minifer.models")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            files[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return files


FILES = source_files()


def running_imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Import statements below a node that can run, each with whether it stands in a function."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, inside
    elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.orelse:
            yield from running_imports(child, inside)
    else:
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from running_imports(child, inside)


def imports_of(module: str) -> list[Import]:
    """What a module imports; `from minifer import ir` counts as minifer.ir, relative imports are resolved."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node, inside in running_imports(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            names = [_source(base, alias.name) for alias in node.names]
        found += [Import(name, node.lineno, inside) for name in names]
    return found + list(_names_taken_from_the_root(tree))


def _names_taken_from_the_root(tree: ast.Module) -> Iterator[Import]:
    """`minifer.load` after `import minifer` imports minifer.session."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "minifer":
            if node.attr in minifer._HOME:
                yield Import(minifer._HOME[node.attr], node.lineno, True)


def _source(base: str, name: str) -> str:
    """The module that `from base import name` needs."""
    if f"{base}.{name}" in FILES:
        return f"{base}.{name}"
    return minifer._HOME.get(name, base) if base == "minifer" else base


def floor_of(module: str) -> int | None:
    """The index of a module's floor, that of the longest listed name it lies under."""
    best = max(
        ((name, i) for i, names in enumerate(FLOORS) for name in names if _lies_under(module, name)),
        key=lambda pair: len(pair[0]),
        default=None,
    )
    return None if best is None or (best[0] == "minifer" and module != "minifer") else best[1]


def _lies_under(module: str, name: str) -> bool:
    return module == name or module.startswith(name + ".")


@pytest.mark.parametrize("module", FILES)
def test_every_module_has_a_floor(module: str) -> None:
    assert floor_of(module) is not None, f"{module} is on no floor: add it to FLOORS in {__file__}"


@pytest.mark.parametrize("module", FILES)
def test_imports_run_downward(module: str) -> None:
    own = floor_of(module)
    assert own is not None
    upward = []
    for target, line, _ in imports_of(module):
        floor = floor_of(target) if _lies_under(target, "minifer") else own
        if floor is None or floor < own:
            upward.append(f"{FILES[module].relative_to(ROOT)}:{line} imports {target}")
    assert not upward, "an import runs up the floors:\n" + "\n".join(upward)


@pytest.mark.parametrize("module", [m for m in FILES if _lies_under(m, "minifer.kernels")])
def test_kernels_import_nothing_of_minifer(module: str) -> None:
    foreign = [i for i in imports_of(module) if _lies_under(i.target, "minifer") and "kernels" not in i.target]
    assert not foreign, f"{module} imports {foreign}"


def test_no_circles() -> None:
    graph = {
        module: {i.target for i in imports_of(module) if i.target in FILES and i.target != module} for module in FILES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", FILES)
def test_outside_imports(module: str) -> None:
    """Only the declared dependencies; the heavy ones at the top level only where they belong."""
    for target, line, inside in imports_of(module):
        top = target.partition(".")[0]
        if top in sys.stdlib_module_names or top == "minifer":
            continue
        where = f"{FILES[module].relative_to(ROOT)}:{line}"
        assert top != "kernels", f"{where}: import minifer.kernels, `import kernels` loads a second copy"
        assert top in OUTSIDE, f"{where} imports {top}, which is no dependency of minifer"
        allowed = inside or any(_lies_under(module, name) for name in OUTSIDE[top])
        assert allowed, f"{where} imports {top} at the top level: move it into the function that needs it"


def test_packages_are_listed() -> None:
    """Every package of the trees is in pyproject.toml: an unlisted one would be missing from the wheel."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("packages = [")[2].partition("]")[0]
    packages = [m for m, path in FILES.items() if path.name == "__init__.py"]
    missing = [m for m in packages if f'"{m}"' not in listed]
    assert not missing, f"packages missing from pyproject.toml: {missing}"


HEAVY = ("numba", "llvmlite", "onnx", "PIL", "ml_dtypes", "onnxruntime")


@pytest.mark.parametrize(
    "statement",
    ["import minifer", "import minifer; minifer.load", "import minifer.onnxruntime", "import minifer.cli"],
)
def test_light_import(statement: str) -> None:
    """Neither the package nor its faces import the compiler, onnx or Pillow before they are needed."""
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


WARM = """
import sys
import numpy as np
import minifer
model = minifer.load(sys.argv[1])
model.run({"image": np.zeros((1, 3, 224, 224), np.float32)})
print([m for m in sys.argv[2].split(",") if m in sys.modules])
"""


def test_warm_run_is_light() -> None:
    """Once its kernels are built, a model loads and runs without the compiler, onnx or Pillow."""
    path = str(minifer.models.path(minifer.models.EFFICIENTNET_LITE0))
    command = [sys.executable, "-c", WARM, path, ",".join(HEAVY)]
    for _ in range(2):  # the first run may have to build
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    """Each lazy name is there, and an unknown one is an AttributeError."""
    for name in minifer.__all__:
        assert getattr(minifer, name) is getattr(minifer, name)
        assert name in dir(minifer)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = minifer.no_such_name
