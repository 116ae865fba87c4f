"""The official ONNX backend suite: every case of node, simple, pytorch-operator and pytorch-converted.

None is skipped. Only the six Bernoulli cases are left out, whose expected values are draws of another generator
(tests/test_bernoulli.py looks at their distribution), and the nine large models of the onnx package, which are
compared elsewhere. Tolerances are the official ones; on top of the official comparison, element types, lengths of
sequences and absent optionals must be exactly right.
"""

from __future__ import annotations

import unittest
from unittest import mock

import numpy as np
import onnx.backend.test
import onnx.backend.test.runner as runner

from minifer.backend import MiniferBackend
from tests.official import load_cases


class StrictSuite(onnx.backend.test.BackendTest):
    """The official runner: on the CPU alone, skipping nothing, comparing strictly."""

    left_out: tuple[str, ...] = ()

    def _add_model_test(self, model_test, kind):
        if kind == "Real":
            return
        if "bernoulli" in model_test.name:
            self.left_out += (model_test.name,)
            return
        super()._add_model_test(model_test, kind)

    def _add_test(self, category, test_name, test_func, report_item, devices=("CPU",), **kwargs):
        def never_skipped(*args, **options):
            try:
                return test_func(*args, **options)
            except unittest.SkipTest as skip:
                raise AssertionError(f"{test_name} would be skipped: {skip}") from skip

        super()._add_test(category, test_name, never_skipped, report_item, devices=("CPU",), **kwargs)

    @classmethod
    def assert_similar_outputs(cls, ref_outputs, outputs, rtol, atol, model_dir=None):
        assert isinstance(outputs, list | tuple) and len(outputs) == len(ref_outputs), "number of outputs"
        for i, (expected, got) in enumerate(zip(ref_outputs, outputs)):
            cls.assert_same(expected, got, rtol, atol, f"output {i}")

    @classmethod
    def assert_same(cls, expected, got, rtol, atol, where):
        if expected is None:
            assert got is None, f"{where} must be absent"
        elif isinstance(expected, list | tuple):
            assert isinstance(got, list) and len(got) == len(expected), f"{where} must list {len(expected)} elements"
            for i, pair in enumerate(zip(expected, got)):
                cls.assert_same(*pair, rtol, atol, f"{where}[{i}]")
        else:
            expected = np.asarray(expected)
            assert isinstance(got, np.ndarray), f"{where} must be an array, and is {type(got).__name__}"
            if expected.dtype.kind in "OU":
                expected = expected.astype(object)
            assert got.dtype == expected.dtype, f"{where} must be {expected.dtype}, and is {got.dtype}"
            assert got.shape == expected.shape, f"{where} must have shape {expected.shape}, and has {got.shape}"
            super().assert_similar_outputs([expected], [got], rtol, atol)


with mock.patch.object(runner, "load_model_tests", load_cases):
    _suite = StrictSuite(MiniferBackend, __name__)

globals().update(_suite.test_cases)


def test_nothing_else_is_left_out():
    listed = {kind: len(load_cases(kind=kind)) for kind in ("node", "simple", "pytorch-converted", "pytorch-operator")}
    present = sum(len(items) for items in _suite._test_items.values())
    forms = ("", "_expanded", "_double", "_double_expanded", "_seed", "_seed_expanded")
    assert set(_suite.left_out) == {f"test_bernoulli{form}" for form in forms}
    assert present == sum(listed.values()) - len(forms)
    if onnx.__version__ == "1.23.2":
        assert present == 2018
