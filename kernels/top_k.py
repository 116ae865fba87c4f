"""The k largest or smallest elements of each line, in order: TopK.

NaN counts as larger than any number. Of equal elements the one with the lower index comes first. Exact.
"""

import numpy as np

from minifer.kernels.simd import lanes, share, vany, vload
from minifer.kernels.spec import f32, f64, i32, i64, kernel, ptr, ptr_i64


def values_with_ties(rng, T, *shape):
    """Few different numbers; among floats also NaN, infinities and both zeros."""
    if T.dtype.kind != "f":
        return rng.integers(0 if T.dtype.kind == "u" else -4, 5, shape).astype(T.dtype)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], T.dtype)
    chosen = rng.choice(special, shape)
    return np.where(rng.random(shape) < 0.15, chosen, np.round(rng.standard_normal(shape) * 4)).astype(T.dtype)


def above(a, b):
    """a > b, NaN being the largest."""
    return a > b or (a != a and b == b)


def comes_first(a, a_index, b, b_index, largest):
    """Whether element a stands before element b in the result."""
    if above(a, b):
        return largest != 0
    if above(b, a):
        return largest == 0
    return a_index < b_index


def sink(values, indices, step, root, end, largest):
    """Let the element at `root` of the heap [0, end) sink until both its children come before it."""
    value, index = values[root * step], indices[root * step]
    child = 2 * root + 1
    while child < end:
        other = child + 1
        if other < end and comes_first(
            values[child * step], indices[child * step], values[other * step], indices[other * step], largest
        ):
            child = other
        if not comes_first(value, index, values[child * step], indices[child * step], largest):
            break
        values[root * step] = values[child * step]
        indices[root * step] = indices[child * step]
        root = child
        child = 2 * root + 1
    values[root * step] = value
    indices[root * step] = index


def offer(x, i, step, values, indices, k, largest):
    """Put element i in the place of the last of the k kept ones if it comes before that."""
    if comes_first(x[i * step], i, values[0], indices[0], largest):
        values[0] = x[i * step]
        indices[0] = i
        sink(values, indices, step, 0, k, largest)


def may_come_first(v, worst, largest):
    """Whether any lane may come before `worst`; true for NaN."""
    if largest != 0:
        return vany(~(v <= worst))
    return vany(~(v >= worst))


def top_line(x, values, indices, n, k, step, largest):
    """The first k of x[0], x[step], ... in order: a heap whose root is the last of the k best so far."""
    for i in range(k):
        values[i * step] = x[i * step]
        indices[i * step] = i
    for i in range(k // 2 - 1, -1, -1):
        sink(values, indices, step, i, k, largest)
    w = lanes(x)
    i = k
    if step == 1:
        while i + w <= n:
            if may_come_first(vload(x, i), values[0], largest):
                for j in range(i, i + w):
                    offer(x, j, step, values, indices, k, largest)
            i += w
    while i < n:
        offer(x, i, step, values, indices, k, largest)
        i += 1
    for end in range(k - 1, 0, -1):  # the last of all goes to the back, again and again
        value, index = values[end * step], indices[end * step]
        values[end * step] = values[0]
        indices[end * step] = indices[0]
        values[0] = value
        indices[0] = index
        sink(values, indices, step, 0, end, largest)


def top_k_example(rng, size, T):
    outer, n, inner = (int(v) for v in rng.integers(1, (4, 12 * size, 4)))
    k = int(rng.integers(1, n + 1))
    y = np.zeros((outer, k, inner), T.dtype)
    return {
        "x": values_with_ties(rng, T, outer, n, inner), "values": y, "indices": y.astype(np.int64), "outer": outer,
        "n": n, "inner": inner, "k": k, "largest": int(rng.integers(2)),
    }  # fmt: skip


def top_k_reference(x, values, indices, outer, n, inner, k, largest):
    if largest:
        order = n - 1 - np.flip(np.argsort(np.flip(x, 1), axis=1, kind="stable"), 1)
    else:
        order = np.argsort(x, axis=1, kind="stable")
    order = order[:, :k]
    return {"values": np.take_along_axis(x, order, 1), "indices": order}


@kernel(
    reference=top_k_reference, example=top_k_example, outputs=("values", "indices"), tolerance=0,
    over={"T": (f32, f64, i32, i64)},
)  # fmt: skip
def top_k(
    x: ptr("T"), values: ptr("T"), indices: ptr_i64, outer: i64, n: i64, inner: i64, k: i64, largest: i64,
    tid: i64, nthreads: i64,
):  # fmt: skip
    """The k largest (or smallest) along axis 1 of x (outer, n, inner), 1 <= k <= n, in order.

    values, indices: (outer, k, inner). About n + k log k log(n / k) comparisons a line, n log k at worst.
    """
    for line in range(share(outer * inner, tid, nthreads), share(outer * inner, tid + 1, nthreads)):
        o, i = line // inner, line % inner
        at = o * k * inner + i
        top_line(x + (o * n * inner + i), values + at, indices + at, n, k, inner, largest)
