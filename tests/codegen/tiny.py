"""A small kernel and its helper for the tests of building and caching."""

from minifer.kernels.simd import lanes, vload, vstore
from minifer.kernels.spec import i64, kernel, native, ptr_f32


def twice(v):
    return v + v


@kernel(name="tiny_double")
def double(x: ptr_f32, y: ptr_f32, n: i64, tid: i64, nthreads: i64):
    for i in range(0, n, lanes(x)):
        vstore(y, i, twice(vload(x, i)))


@native
def tiny_sum(x: i64, y: i64) -> i64:
    return x + y
