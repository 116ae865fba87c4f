"""Where the largest or smallest element of each line stands: ArgMax, ArgMin.

NaN wins in both directions. Of equal elements the first or the last is taken. Exact.
"""

import numpy as np

from minifer.kernels.simd import hmax, hmin, lanes, share, vany, vconvert, vload, vmax, vmin, vselect, vstore
from minifer.kernels.spec import f32, f64, i8, i32, i64, kernel, ptr, ptr_i64, u8
from minifer.kernels.top_k import values_with_ties


def arg_example(rng, size, T):
    outer, n, inner = (int(v) for v in rng.integers(1, (4, 12 * size, 4 * size)))
    inner = inner if rng.random() < 0.6 else 1
    return {
        "x": values_with_ties(rng, T, outer, n, inner), "y": np.zeros((outer, inner), np.int64), "outer": outer,
        "n": n, "inner": inner, "minimum": int(rng.integers(2)), "last": int(rng.integers(2)),
    }  # fmt: skip


def arg_reference(x, y, outer, n, inner, minimum, last):
    pick = np.argmin if minimum else np.argmax
    return {"y": n - 1 - pick(np.flip(x, 1), 1) if last else pick(x, 1)}


def beats(v, best, minimum, last):
    """Lane by lane or for numbers: whether v, met after best, takes its place."""
    both = (v != v) & (best == best)
    if minimum != 0:
        both = both | (v < best)
    else:
        both = both | (v > best)
    if last != 0:
        both = both | (v == best) | (v != v)
    return both


def extreme_of(x, n, minimum):
    """The largest or smallest of a line; NaN if there is one. n >= 1."""
    w = lanes(x)
    best = x[0]
    if n >= w:
        widest = vload(x, 0)
        for i in range(w, n - w, w):
            widest = vmin(widest, vload(x, i)) if minimum != 0 else vmax(widest, vload(x, i))
        tail = vload(x, n - w)
        best = hmin(vmin(widest, tail)) if minimum != 0 else hmax(vmax(widest, tail))
    else:
        for i in range(1, n):
            best = vmin(best, x[i]) if minimum != 0 else vmax(best, x[i])
    return best


def found(x, i, best):
    """Whether any of the natural vector at x[i:] is `best`, or NaN."""
    v = vload(x, i)
    return vany((v == best) | (v != v))


def first_of(x, n, best):
    """The first place of `best`, or of NaN."""
    w = lanes(x)
    i = 0
    while i + w <= n and not found(x, i, best):
        i += w
    while i < n - 1 and not (x[i] == best or x[i] != x[i]):
        i += 1
    return i


def last_of(x, n, best):
    """The last place of `best`, or of NaN."""
    w = lanes(x)
    i = n
    while i >= w and not found(x, i - w, best):
        i -= w
    i -= 1
    while i > 0 and not (x[i] == best or x[i] != x[i]):
        i -= 1
    return i


def arg_columns(x, y, n, inner, first, end, minimum, last):
    """Columns first to end of a matrix (n, inner): vectors of columns, then one by one."""
    w = lanes(x)
    j = first
    while j + w <= end:
        best = vload(x, j)
        place = vconvert(best, i32) * 0
        for i in range(1, n):
            v = vload(x, i * inner + j)
            better = beats(v, best, minimum, last)
            best = vselect(better, v, best)
            place = vselect(better, vconvert(v, i32) * 0 + i, place)
        vstore(y, j, vconvert(place, i64))
        j += w
    while j < end:
        champion = x[j]
        at = 0
        for i in range(1, n):
            if beats(x[i * inner + j], champion, minimum, last):
                champion = x[i * inner + j]
                at = i
        y[j] = at
        j += 1


#: columns that one thread takes at a time
COLUMNS = 64


@kernel(reference=arg_reference, example=arg_example, tolerance=0, over={"T": (f32, f64, i8, i32, i64, u8)})
def arg_extreme(
    x: ptr("T"), y: ptr_i64, outer: i64, n: i64, inner: i64, minimum: i64, last: i64, tid: i64, nthreads: i64
):
    """y[o, i]: where along axis 1 of x (outer, n, inner) the largest stands, or the smallest; n < 2**31.

    Of equal ones the first, or the `last`. Two comparisons an element.
    """
    if inner == 1:
        for o in range(share(outer, tid, nthreads), share(outer, tid + 1, nthreads)):
            line = x + o * n
            best = extreme_of(line, n, minimum)
            y[o] = last_of(line, n, best) if last != 0 else first_of(line, n, best)
    else:
        pieces = (inner + COLUMNS - 1) // COLUMNS
        for unit in range(share(outer * pieces, tid, nthreads), share(outer * pieces, tid + 1, nthreads)):
            o, first = unit // pieces, unit % pieces * COLUMNS
            end = min(inner, first + COLUMNS)
            arg_columns(x + o * n * inner, y + o * inner, n, inner, first, end, minimum, last)
