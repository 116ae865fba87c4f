"""Counting through the places of a tensor of up to eight axes, in a kernel.

Kernels that take strides get a table (i64) in rows of RANK numbers: first the sizes, then the strides of each operand,
in elements. Missing leading axes have size 1. The last two axes are loops of the kernel itself; the six before them are
counted by an odometer: a tuple of six numbers, the last one the fastest.
"""

RANK = 8


def odometer_at(n, sizes):
    """The odometer after n steps from zero."""
    f = n % sizes[5]
    n = n // sizes[5]
    e = n % sizes[4]
    n = n // sizes[4]
    d = n % sizes[3]
    n = n // sizes[3]
    c = n % sizes[2]
    n = n // sizes[2]
    return n // sizes[1], n % sizes[1], c, d, e, f


def odometer_next(place, sizes):
    """One step on. Past the last place the first digit goes on rising, which nobody looks at."""
    a, b, c, d, e, f = place
    f += 1
    if f == sizes[5]:
        f = 0
        e += 1
        if e == sizes[4]:
            e = 0
            d += 1
            if d == sizes[3]:
                d = 0
                c += 1
                if c == sizes[2]:
                    c = 0
                    b += 1
                    if b == sizes[1]:
                        b = 0
                        a += 1
    return a, b, c, d, e, f


def odometer_offset(place, strides):
    """The offset of a place: the sum of digits times strides."""
    a, b, c, d, e, f = place
    near = d * strides[3] + e * strides[4] + f * strides[5]
    return a * strides[0] + b * strides[1] + c * strides[2] + near


def odometer_size(sizes):
    """How many places the six counted axes have."""
    return sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4] * sizes[5]
