"""Sums over rows and columns of float32 that stay accurate however long they are, for the kernels that need them.

Partial sums run over few elements in float32, many side by side, and are then added to float64 totals: the error of a
sum of n terms is about one rounding of a float32 instead of n of them, at the cost of a few float64 additions (a
two-level form of pairwise summation: Higham, "The Accuracy of Floating Point Summation", 1993).
"""

from minifer.kernels.simd import f32, f64, hsum, lanes, vabs, vconvert, viota, vload, vload_part, vselect, vsplat

#: elements of a row, and rows of a column, between two additions to the float64 totals
ROW_BLOCK, COLUMN_BLOCK = 1024, 32


def raised(v, power):
    """v itself (power 0), its absolute value (1) or its square (2)."""
    if power == 2:
        return v * v
    return vabs(v) if power == 1 else v


def first_lanes(v, n):
    """v with zeros behind its first n lanes."""
    return vselect(viota(f32) < f32(n), v, vsplat(f32, 0))


def row_total(x, n, power, centre):
    """The float64 sum of raised(x[i] - centre) over n elements."""
    w = lanes(x)
    zero = vsplat(f32, 0)
    total = vconvert(zero, f64)
    i = 0
    while i + 4 * w <= n:
        stop = min(n, i + ROW_BLOCK)
        a, b, c, d = zero, zero, zero, zero
        while i + 4 * w <= stop:
            a = a + raised(vload(x, i) - centre, power)
            b = b + raised(vload(x, i + w) - centre, power)
            c = c + raised(vload(x, i + 2 * w) - centre, power)
            d = d + raised(vload(x, i + 3 * w) - centre, power)
            i += 4 * w
        total = total + vconvert((a + b) + (c + d), f64)
    rest = zero
    while i + w <= n:
        rest = rest + raised(vload(x, i) - centre, power)
        i += w
    if i < n:
        rest = rest + first_lanes(raised(vload_part(x, i, n - i) - centre, power), n - i)
    return hsum(total + vconvert(rest, f64))


def column_totals(x, n, step, power, centre, count):
    """The float64 sums of raised(x[i * step + lane] - centre[lane]) over i < n, for the first `count` lanes."""
    w = lanes(x)
    total = vconvert(vsplat(f32, 0), f64)
    i = 0
    while i < n:
        stop = min(n, i + COLUMN_BLOCK)
        part = vsplat(f32, 0)
        if count >= w:
            for k in range(i, stop):
                part = part + raised(vload(x, k * step) - centre, power)
        else:
            for k in range(i, stop):
                part = part + raised(vload_part(x, k * step, count) - centre, power)
        total = total + vconvert(part, f64)
        i = stop
    return total


def four_column_totals(x, n, step, power, centres):
    """column_totals of four neighbouring vectors and their centres: a row's cache lines are read whole."""
    w = lanes(x)
    e, f, g, h = centres
    zero = vsplat(f32, 0)
    wide = vconvert(zero, f64)
    p, q, r, s = wide, wide, wide, wide
    i = 0
    while i < n:
        stop = min(n, i + COLUMN_BLOCK)
        a, b, c, d = zero, zero, zero, zero
        for k in range(i, stop):
            line = x + k * step
            a = a + raised(vload(line, 0) - e, power)
            b = b + raised(vload(line, w) - f, power)
            c = c + raised(vload(line, 2 * w) - g, power)
            d = d + raised(vload(line, 3 * w) - h, power)
        p, q = p + vconvert(a, f64), q + vconvert(b, f64)
        r, s = r + vconvert(c, f64), s + vconvert(d, f64)
        i = stop
    return p, q, r, s
