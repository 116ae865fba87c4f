"""The registry: which module registers an operator, and lowerings that are imported when they are needed."""

from __future__ import annotations

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


def test_a_convolution_imports_no_integer_kernels():
    code = (
        "import sys; import minifer.ops.conv; "
        "print([m for m in sys.modules if m in ('minifer.ops.lower_integer', 'minifer.kernels.integer')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_deferred_lowering_is_the_function_itself(monkeypatch):
    from minifer.ops import lower_integer

    monkeypatch.setattr(lower_integer, "lower_qlinear_conv", lambda low: ("lowered", low))
    assert deferred("lower_integer", "lower_qlinear_conv")(7) == ("lowered", 7)


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
