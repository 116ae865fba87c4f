"""The registry: which module registers an operator, and lowerings that are imported when they are needed."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest

from minifer.errors import ModelError
from minifer.ir import Node
from minifer.ops import registry
from minifer.ops.registry import Op, deferred


def test_an_operator_is_noted_under_the_module_that_registers_it():
    """Not under the one that imported that module: it would be imported for nothing."""
    registry.registered()
    homes = {name: registry._FOUND["", name] for name in ("Add", "BatchNormalization", "Relu", "Conv")}
    assert homes == {"Add": {"binary"}, "BatchNormalization": {"norm"}, "Relu": {"activation"}, "Conv": {"conv"}}


def test_operators_import_no_kernels():
    """A model's operators are imported to read it; kernels come with the lowerings, when it is planned."""
    code = (
        "import pkgutil, sys, minifer.ops\n"
        "for module in pkgutil.iter_modules(minifer.ops.__path__):\n"
        "    module.name.startswith('lower_') or __import__(f'minifer.ops.{module.name}')\n"
        "print([m for m in sys.modules if m.startswith(('minifer.ops.lower_', 'minifer.kernels.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_deferred_lowering_is_the_function_itself(monkeypatch):
    from minifer.ops import lower_integer

    monkeypatch.setattr(lower_integer, "lower_qlinear_conv", lambda low: ("lowered", low))
    assert deferred("lower_integer", "lower_qlinear_conv")(7) == ("lowered", 7)


def test_what_a_deferred_function_makes_is_made_once_on_the_first_call(monkeypatch):
    from minifer.ops import lower_integer

    made = []
    monkeypatch.setattr(lower_integer, "flip", lambda *given: made.append(given) or (lambda low: low + 1))
    lower = deferred("lower_integer", "flip").of("a", 2)
    assert made == []
    assert (lower(1), lower(2), made) == (2, 3, [("a", 2)])


def test_all_deferred_functions_are_there():
    lowerings = [op.lower for entries in registry.registered().values() for op in entries]
    assert all(callable(lower.function) for lower in lowerings if isinstance(lower, registry.Deferred))
    for module in [m for name, m in sys.modules.items() if name.startswith("minifer.ops.")]:
        assert all(callable(v.function) for v in vars(module).values() if isinstance(v, registry.Deferred))


def test_what_is_no_function_is_refused_at_once():
    with pytest.raises(TypeError, match="the reference of Odd is a int, not a function"):
        Op("Odd", since=1, reference=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "attrs", "message"),
    [
        ((), {"axis": 0}, "has 0 inputs, and Made-1 takes 1 to 2"),
        (("x", "y", "z"), {"axis": 0}, "has 3 inputs"),
        (("",), {"axis": 0}, "leaves out input 0"),
        (("x",), {}, "lacks the attribute axis"),
        (("x",), {"axis": 0, "odd": 1}, "does not know: odd"),
        (("x",), {"axis": 0, "mode": 1}, "has a int as attribute mode, and str is needed"),
    ],
)
def test_a_node_is_checked_against_the_signature(inputs, attrs, message):
    def reference(x, y=None, *, axis, mode="a", ctx):
        return x

    op = Op("Made", since=1, reference=reference, ignore=("legacy",))
    op.check(Node("Made", ("x",), ("y",), {"axis": 0, "mode": "b", "legacy": np.zeros(1)}))
    with pytest.raises(ModelError, match=message):
        op.check(Node("Made", inputs, ("y",), attrs))


def test_functions_are_read_as_inspect_reads_them():
    """Python functions by their code objects, all else by `inspect`: the same for both."""

    def plain(a, b=None, *rest, axis, mode="m", ctx, **others):
        return a

    listed = [op.reference for entries in registry.registered().values() for op in entries]
    for function in (plain, lambda: None, lambda a, /, b: a, *listed):
        slow = functools.partial(function)  # `inspect` sees through it
        assert registry._declared(function) == registry._declared(slow)
    keywords = {"axis": registry._NEEDED, "mode": "m", "ctx": registry._NEEDED}
    assert registry._declared(plain) == (1, None, keywords, True)
