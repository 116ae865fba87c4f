"""Running plans: executors, the thread pool, the kernel library."""

from __future__ import annotations


def kernels_available() -> bool:
    """True where kernels are in the cache or can be built."""
    from minifer.codegen import store

    return store.available()
