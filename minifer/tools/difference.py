"""How far two engines' outputs lie apart, as one number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def outputs_difference(got: Mapping[str, Any], want: Mapping[str, Any]) -> float:
    """The largest `difference` of two sets of outputs: by name, or by position where the names differ."""
    if len(got) != len(want):
        return math.inf
    if set(got) != set(want):
        return difference(list(got.values()), list(want.values()))
    return max((difference(got[name], want[name]) for name in want), default=0.0)


def difference(got: Any, want: Any) -> float:
    """The largest difference of two values by the largest magnitude of `want` (absolute where that is 0).

    Infinite where shapes, lengths or keys differ, where one has NaN or infinity and the other has not, and for
    texts that are not equal. Sequences and maps are compared item by item.
    """
    if isinstance(want, Mapping):
        same = isinstance(got, Mapping) and set(got) == set(want)
        return max((difference(got[key], want[key]) for key in want), default=0.0) if same else math.inf
    if isinstance(want, list | tuple):
        same = isinstance(got, list | tuple) and len(got) == len(want)
        return max((difference(a, b) for a, b in zip(got, want)), default=0.0) if same else math.inf
    a, b = np.asarray(got), np.asarray(want)
    if a.shape != b.shape:
        return math.inf
    if a.dtype.kind in "OSU" or b.dtype.kind in "OSU":
        return 0.0 if a.tolist() == b.tolist() else math.inf
    kind = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    a, b = a.astype(kind), b.astype(kind)
    fine = np.isfinite(b)
    if not np.array_equal(a[~fine], b[~fine], equal_nan=True) or not np.isfinite(a[fine]).all():
        return math.inf
    if not fine.any():
        return 0.0
    largest, gap = np.abs(b[fine]).max(), np.abs(a[fine] - b[fine]).max()
    return float(gap / largest if largest else gap)
