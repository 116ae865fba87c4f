"""Running sums and products along an axis. Floats are accumulated in float64."""

import numpy as np

from minifer.kernels.simd import lanes, like, share, vconvert, vload, vstore
from minifer.kernels.spec import Pointer, f32, f64, i32, i64, kernel

#: columns that one thread takes at a time
COLUMNS = 32


def running_reference(x, y, outer, n, inner, product, exclusive, reverse):
    wide = x.astype("d" if x.dtype.kind == "f" else x.dtype)
    wide = np.flip(wide, 1) if reverse else wide
    if exclusive:
        wide = np.concatenate([np.full_like(wide[:, :1], product), wide[:, :-1]], 1)
    accumulate = np.cumprod if product else np.cumsum
    result, size = accumulate(wide, 1, dtype=wide.dtype), accumulate(np.abs(wide), 1, dtype=wide.dtype)
    if reverse:
        result, size = np.flip(result, 1), np.flip(size, 1)
    return {"y": (result, np.maximum(size, 1)) if x.dtype.kind == "f" else result}


def running_of(T, wide):
    """The kernel for element type T, accumulating in `wide`."""

    def example(rng, size):
        outer, n, inner = (int(v) for v in rng.integers(1, (4, 6 * size, 5 * size)))
        inner = inner if rng.random() < 0.6 else 1
        x = rng.uniform(-2, 2, (outer, n, inner)) if T.dtype.kind == "f" else rng.integers(-9, 10, (outer, n, inner))
        x = x.astype(T.dtype)
        flags = {name: int(rng.integers(2)) for name in ("product", "exclusive", "reverse")}
        return {"x": x, "y": np.zeros_like(x), "outer": outer, "n": n, "inner": inner, **flags}

    def running_step(total, value, product):
        if product != 0:
            return total * value
        return total + value

    def running(
        x: Pointer(T), y: Pointer(T), outer: i64, n: i64, inner: i64, product: i64, exclusive: i64, reverse: i64,
        tid: i64, nthreads: i64,
    ):  # fmt: skip
        """y[o, i, j] = x[o, 0, j] + ... + x[o, i, j] (or times), x and y: (outer, n, inner).

        exclusive: without x[o, i, j] itself; reverse: from the end. n - 1 operations a line; error: those in `wide`
        and a rounding.
        """
        w = lanes(x)
        pieces = (inner + COLUMNS - 1) // COLUMNS
        direction = -inner if reverse != 0 else inner
        for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
            first = unit % pieces * COLUMNS
            end = min(inner, first + COLUMNS)
            base = unit // pieces * n * inner
            if reverse != 0:
                base += (n - 1) * inner
            j = first
            while j + w <= end:
                totals = like(vconvert(vload(x, base + j), wide), product)
                for i in range(n):
                    at = base + i * direction + j
                    after = running_step(totals, vconvert(vload(x, at), wide), product)
                    vstore(y, at, vconvert(totals if exclusive != 0 else after, T))
                    totals = after
                j += w
            while j < end:
                total = wide(product)
                for i in range(n):
                    at = base + i * direction + j
                    following = wide(running_step(total, vconvert(x[at], wide), product))
                    y[at] = vconvert(total if exclusive != 0 else following, T)
                    total = following
                j += 1

    name = f"running_{T.name}"
    return kernel(reference=running_reference, example=example, tolerance=1e-6, name=name, group=T.name)(running)


RUNNING = {T.name: running_of(T, wide) for T, wide in ((f32, f64), (f64, f64), (i32, i64), (i64, i64))}
