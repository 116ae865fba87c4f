"""What all tests share."""

import os
import zlib

import numpy as np
import pytest

os.environ.setdefault("MINIFER_PLAN_CACHE", "0")  # tests look at plans as they are made; those of the cache turn it on


@pytest.fixture(autouse=True)
def _own_draws(request: pytest.FixtureRequest) -> None:
    """A module's `RNG` starts anew for each test: what a test draws depends on its name, not on those run before it."""
    if isinstance(getattr(request.module, "RNG", None), np.random.Generator):
        request.module.RNG = np.random.default_rng(zlib.crc32(request.node.name.encode()))
