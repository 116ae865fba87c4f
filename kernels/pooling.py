"""Max and average pooling on channels-last tensors.

Vector lanes run along channels, as in depthwise.py. Which taps of a window lie inside the input depends on each axis
alone, so a table per axis holds it, made once when the model is planned: padding, dilation and ceil mode
then cost nothing in the loops. Three spatial dimensions; float32.
"""

from __future__ import annotations

import numpy as np

from minifer.kernels.simd import lanes, share, vload, vload_part, vmax, vsplat, vstore, vstore_part
from minifer.kernels.spec import f32, i64, kernel, ptr_f32, ptr_i64

MAX, AVERAGE = 0, 1
LOWEST = -float("inf")
WORDS = 4  # of an axis table row: first input position, taps inside, positions from tap to tap, divisor


def axis_table(size: int, out: int, taps: int, stride: int, dilation: int, begin: int, end: int, padded: bool):
    """int64 (out, 4) for one axis. `padded`: the divisor counts taps in the padding too (count_include_pad)."""
    place = np.arange(out) * stride - begin

    def taps_before(bound):
        return np.clip(-((place - bound) // dilation), 0, taps)

    skipped, stop = taps_before(0), taps_before(size)
    counted = taps_before(size + end) - taps_before(-begin) if padded else stop - skipped
    first = np.where(stop > skipped, place + skipped * dilation, size)
    columns = [first, stop - skipped, np.full(out, dilation), np.maximum(counted, 1)]
    return np.stack(columns, axis=1).astype(np.int64)


def pool_reference(x, y, table, batch, channels, depth, height, width, out_d, out_h, out_w, mode):
    rows = np.split(table.reshape(-1, WORDS), [out_d, out_d + out_h])
    source = x.reshape(batch, depth, height, width, channels).astype(np.float64)
    result = np.zeros((batch, out_d, out_h, out_w, channels))
    for o in np.ndindex(out_d, out_h, out_w):
        picked = source
        divisor = 1
        for axis in range(3):
            first, count, step, part = (int(v) for v in rows[axis][o[axis]])
            picked = np.take(picked, range(first, first + count * step, step), axis=axis + 1)
            divisor *= part
        if mode == MAX:
            result[(slice(None), *o)] = picked.max(axis=(1, 2, 3), initial=-np.inf)
        else:
            result[(slice(None), *o)] = picked.sum(axis=(1, 2, 3)) / divisor
    return {"y": result.reshape(y.shape)}


def pool_example(rng, size):
    batch, channels = int(rng.integers(1, 3)), int(rng.integers(1, 10 * size))
    tables, inside, out = [], [], []
    for axis in range(3):
        taps, stride, dilation = (int(v) for v in rng.integers(1, 3 if axis == 0 else 4, 3))
        begin, end = (int(v) for v in rng.integers(0, taps, 2))
        length = (taps - 1) * dilation + 1 + int(rng.integers(0, 5))
        places = (length + begin + end - (taps - 1) * dilation - 1) // stride + 1
        tables.append(axis_table(length, places, taps, stride, dilation, begin, end, bool(rng.integers(0, 2))))
        inside.append(length)
        out.append(places)
    return {
        "x": rng.standard_normal((batch, *inside, channels)).astype("f"),
        "y": np.full((batch, *out, channels), np.nan, "f"),
        "table": np.concatenate(tables),
        "batch": batch,
        "channels": channels,
        **dict(zip(("depth", "height", "width", "out_d", "out_h", "out_w"), (*inside, *out))),
        "mode": int(rng.integers(0, 2)),
    }


@kernel(reference=pool_reference, example=pool_example, outputs=("y",), tolerance=2e-6)
def pool(
    x: ptr_f32, y: ptr_f32, table: ptr_i64, batch: i64, channels: i64, depth: i64, height: i64, width: i64,
    out_d: i64, out_h: i64, out_w: i64, mode: i64, tid: i64, nthreads: i64,
):  # fmt: skip
    """y = max (mode 0) or mean (mode 1) of x over windows.

    x: (batch, depth, height, width, channels); y: (batch, out_d, out_h, out_w, channels); table: the axis tables of
    depth, height and width one after the other. Maximum of an empty window is -infinity; NaN wins over numbers.
    One operation per tap and channel. Work is split over output rows.
    """
    rows = batch * out_d * out_h
    w = lanes(x)
    for row in range(share(rows, tid, nthreads), share(rows, tid + 1, nthreads)):
        td = table + (row // out_h % out_d) * WORDS
        th = table + (out_d + row % out_h) * WORDS
        image = x + row // (out_h * out_d) * (depth * height * width * channels)
        for ow in range(out_w):
            tw = table + (out_d + out_h + ow) * WORDS
            corner = image + ((td[0] * height + th[0]) * width + tw[0]) * channels
            out = y + (row * out_w + ow) * channels
            divisor = f32(td[3] * th[3] * tw[3])
            start = vsplat(f32, 0.0 if mode == AVERAGE else LOWEST)
            c = 0
            while c + 4 * w <= channels:  # so many that the loops over taps cost little beside them
                t0, t1, t2, t3 = start, start, start, start
                for kd in range(td[1]):
                    for kh in range(th[1]):
                        p = corner + ((kd * td[2] * height + kh * th[2]) * width * channels + c)
                        for kw in range(tw[1]):
                            at = kw * tw[2] * channels
                            v0, v1, v2, v3 = vload(p, at), vload(p, at + w), vload(p, at + 2 * w), vload(p, at + 3 * w)
                            if mode == MAX:
                                t0, t1, t2, t3 = vmax(t0, v0), vmax(t1, v1), vmax(t2, v2), vmax(t3, v3)
                            else:
                                t0, t1, t2, t3 = t0 + v0, t1 + v1, t2 + v2, t3 + v3
                if mode == AVERAGE:
                    t0, t1, t2, t3 = t0 / divisor, t1 / divisor, t2 / divisor, t3 / divisor
                vstore(out, c, t0)
                vstore(out, c + w, t1)
                vstore(out, c + 2 * w, t2)
                vstore(out, c + 3 * w, t3)
                c += 4 * w
            while c < channels:
                n = channels - c
                total = start
                for kd in range(td[1]):
                    for kh in range(th[1]):
                        p = corner + ((kd * td[2] * height + kh * th[2]) * width * channels + c)
                        for kw in range(tw[1]):
                            at = kw * tw[2] * channels
                            v = vload(p, at) if n >= w else vload_part(p, at, n)
                            total = vmax(total, v) if mode == MAX else total + v
                total = total / divisor if mode == AVERAGE else total
                if n >= w:
                    vstore(out, c, total)
                else:
                    vstore_part(out, c, total, n)
                c += w
