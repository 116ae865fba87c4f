"""Operators that move, pick and order elements, through the whole engine: native against reference.

Each generator draws one small model: (nodes, inputs, constants, outputs). Where it can, the data come out of a 1x1
MaxPool, so that they lie channels-last in memory.
"""

from __future__ import annotations

import numpy as np
import pytest

from minifer.errors import InputError
from minifer.session import Session
from tests.kernels.models import check_native, model, node, steps

TYPES = ["float32", "int64", "uint8", "float16", "bool", "float64", "int32"]


def draw(rng, dtype, shape):
    """Small integers as numbers of a type."""
    return rng.integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


def dims(rng, low, high, most=9):
    """A shape of `low` to `high` axes, some of size 1."""
    rank = int(rng.integers(low, high + 1))
    return tuple(int(n) if rng.random() < 0.8 else 1 for n in rng.integers(2, max(3, most - rank), rank))


def source(rng, shape, dtype=None):
    """(nodes, inputs, name, dtype) of data of a shape; images of float32 often lie channels-last."""
    dtype = dtype or str(rng.choice(TYPES))
    if len(shape) == 4 and rng.random() < 0.5:
        pool = node("MaxPool", ["x"], ["p"], kernel_shape=(1, 1))
        return [pool], {"x": draw(rng, "float32", shape)}, "p", "float32"
    return [], {"x": draw(rng, dtype, shape)}, "x", dtype


def ints(*values):
    return np.array(values, np.int64)


def reshape(rng):
    shape = dims(rng, 0, 5)
    nodes, inputs, x, _ = source(rng, shape)
    op = str(rng.choice(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"]))
    given = {
        "Reshape": {"s": ints(-1, *shape[2:])}, "Unsqueeze": {"s": ints(0, len(shape) + 1)},
        "Squeeze": {"s": ints(*(i for i, n in enumerate(shape) if n == 1))},
    }.get(op, {})  # fmt: skip
    attrs = {"axis": int(rng.integers(0, len(shape) + 1))} if op == "Flatten" else {}
    return [*nodes, node(op, [x, *given], ["y"], **attrs)], inputs, given, ["y"]


def transpose(rng):
    shape = dims(rng, 0, 8) if rng.random() < 0.5 else dims(rng, 2, 4, 40)
    nodes, inputs, x, _ = source(rng, shape)
    perm = tuple(int(a) for a in rng.permutation(len(shape)))
    if len(shape) == 4 and rng.random() < 0.5:
        perm = [(0, 2, 3, 1), (0, 3, 1, 2)][int(rng.integers(2))]
    flat = node("Reshape", ["y", "s"], ["z"])  # reads a transposition that may be an alias
    return [*nodes, node("Transpose", [x], ["y"], perm=perm), flat], inputs, {"s": ints(-1)}, ["y", "z"]


def cut(rng):
    shape = dims(rng, 1, 5, 14)
    nodes, inputs, x, _ = source(rng, shape)
    axes = rng.permutation(len(shape))[: int(rng.integers(1, len(shape) + 1))]
    strides = [int(s) for s in rng.choice([1, 1, 1, 2, -1, -2, 3], len(axes))]
    starts, ends = [], []
    for axis, stride in zip(axes, strides):  # never an empty result
        first, wide = int(rng.integers(0, 2)), shape[axis] > 2
        starts.append(first * wide if stride > 0 else -1 - first * wide)
        ends.append(int(rng.choice([2**31, shape[axis], -1 if wide else 9])) if stride > 0 else -(2**31))
    consts = {"b": ints(*starts), "e": ints(*ends), "a": ints(*axes), "s": ints(*strides)}
    return [*nodes, node("Slice", [x, "b", "e", "a", "s"], ["y"])], inputs, consts, ["y"]


def split(rng):
    shape = dims(rng, 1, 5, 12)
    nodes, inputs, x, _ = source(rng, shape)
    axis = int(rng.integers(len(shape)))
    cuts = np.sort(rng.integers(0, shape[axis] + 1, int(rng.integers(1, 4))))
    sizes = np.diff([0, *cuts, shape[axis]])
    outputs = [f"y{i}" for i in range(len(sizes))]
    return [*nodes, node("Split", [x, "s"], outputs, axis=axis)], inputs, {"s": ints(*sizes)}, outputs


def concat(rng):
    shape = dims(rng, 1, 5)
    axis = int(rng.integers(len(shape)))
    nodes, inputs, x, dtype = source(rng, shape)
    names, consts = [x], {}
    for i in range(int(rng.integers(1, 7))):
        other = tuple(int(rng.integers(1, 9)) if a == axis else n for a, n in enumerate(shape))
        kind = rng.random()
        if x == "p" and kind < 0.6:
            nodes = [*nodes, node("MaxPool", [f"x{i}"], [f"p{i}"], kernel_shape=(1, 1))]
        (consts if kind > 0.8 else inputs)[f"x{i}"] = draw(rng, dtype, other)
        names.append(f"p{i}" if x == "p" and kind < 0.6 else f"x{i}")
    return [*nodes, node("Concat", names, ["y"], axis=axis)], inputs, consts, ["y"]


def expand(rng):
    shape = dims(rng, 0, 4)
    nodes, inputs, x, _ = source(rng, shape)
    if rng.random() < 0.5:
        repeats = ints(*(int(rng.integers(1, 4)) for _ in shape))
        return [*nodes, node("Tile", [x, "s"], ["y"])], inputs, {"s": repeats}, ["y"]
    wanted = [int(rng.integers(1, 9)) if n == 1 else n for n in shape]
    lead = [int(n) for n in rng.integers(1, 4, int(rng.integers(0, 3)))]
    return [*nodes, node("Expand", [x, "s"], ["y"])], inputs, {"s": ints(*lead, *wanted)}, ["y"]


def pad(rng):
    shape = dims(rng, 1, 5)
    nodes, inputs, x, dtype = source(rng, shape)
    mode = str(rng.choice(["constant", "edge", "reflect", "wrap"]))
    low = -1 if mode == "constant" or min(shape) > 3 else 0
    consts = {"w": rng.integers(low, 4, 2 * len(shape))}
    if rng.random() < 0.3:
        consts["w"][rng.random(2 * len(shape)) < 0.6] = 0
    if mode == "constant" and rng.random() < 0.7:
        (consts if rng.random() < 0.5 else inputs)["v"] = draw(rng, dtype, ())
    names = [x, "w", *(["v"] if "v" in consts or "v" in inputs else [])]
    return [*nodes, node("Pad", names, ["y"], mode=mode)], inputs, consts, ["y"]


def blocks(rng):
    b, c, h, w = (int(n) for n in rng.integers(1, 5, 4))
    mode = str(rng.choice(["DCR", "CRD"]))
    if rng.random() < 0.5:
        nodes, inputs, x, _ = source(rng, (2, c * b * b, h, w))
        return [*nodes, node("DepthToSpace", [x], ["y"], blocksize=b, mode=mode)], inputs, {}, ["y"]
    nodes, inputs, x, _ = source(rng, (2, c, h * b, w * b))
    return [*nodes, node("SpaceToDepth", [x], ["y"], blocksize=b)], inputs, {}, ["y"]


def index(rng, size, shape):
    return rng.integers(-size, size, shape).astype(rng.choice(["int32", "int64"]))


def gather(rng):
    shape = dims(rng, 1, 5)
    nodes, inputs, x, _ = source(rng, shape)
    axis = int(rng.integers(len(shape)))
    given = index(rng, shape[axis], dims(rng, 0, 3))
    kind = rng.random()
    if kind < 0.3:
        given = np.asarray(np.arange(shape[axis])[:: int(rng.choice([1, 2, -1]))])
    held = {"i": given}
    if kind < 0.5:
        return [*nodes, node("Gather", [x, "i"], ["y"], axis=axis)], inputs, held, ["y"]
    return [*nodes, node("Gather", [x, "i"], ["y"], axis=axis)], {**inputs, **held}, {}, ["y"]


def gather_elements(rng):
    shape = dims(rng, 1, 6)
    nodes, inputs, x, _ = source(rng, shape)
    axis = int(rng.integers(len(shape)))
    sizes = [int(rng.integers(1, 9)) if a == axis else int(rng.integers(1, n + 1)) for a, n in enumerate(shape)]
    inputs["i"] = index(rng, shape[axis], sizes)
    return [*nodes, node("GatherElements", [x, "i"], ["y"], axis=axis)], inputs, {}, ["y"]


def tuples(rng, sizes, shape):
    return np.stack([rng.integers(-n, n, shape) for n in sizes], -1)


def gather_nd(rng):
    shape = dims(rng, 1, 5)
    nodes, inputs, x, _ = source(rng, shape)
    batch = int(rng.integers(0, len(shape)))
    depth = int(rng.integers(1, len(shape) - batch + 1))
    inputs["i"] = tuples(rng, shape[batch : batch + depth], shape[:batch] + dims(rng, 0, 2))
    return [*nodes, node("GatherND", [x, "i"], ["y"], batch_dims=batch)], inputs, {}, ["y"]


def scatter_elements(rng):
    shape = dims(rng, 1, 5)
    reduction = str(rng.choice(["none", "add", "mul", "max", "min"]))
    dtype = str(rng.choice(["float32", "float64", "int32", "int64"] if reduction != "none" else TYPES))
    nodes, inputs, x, dtype = source(rng, shape, dtype)
    axis = int(rng.integers(len(shape)))
    sizes = [int(rng.integers(1, 9)) if a == axis else int(rng.integers(1, n + 1)) for a, n in enumerate(shape)]
    inputs |= {"i": index(rng, shape[axis], sizes), "u": draw(rng, dtype, sizes)}
    made = node("ScatterElements", [x, "i", "u"], ["y"], axis=axis, reduction=reduction)
    return [*nodes, made], inputs, {}, ["y"]


def scatter_nd(rng):
    shape = dims(rng, 1, 5)
    reduction = str(rng.choice(["none", "add", "mul", "max", "min"]))
    dtype = str(rng.choice(["float32", "float64", "int32", "int64"] if reduction != "none" else TYPES))
    nodes, inputs, x, dtype = source(rng, shape, dtype)
    depth, lead = int(rng.integers(1, len(shape) + 1)), dims(rng, 0, 2)
    inputs |= {"i": tuples(rng, shape[:depth], lead), "u": draw(rng, dtype, lead + shape[depth:])}
    return [*nodes, node("ScatterND", [x, "i", "u"], ["y"], reduction=reduction)], inputs, {}, ["y"]


def one_hot(rng):
    shape, depth = dims(rng, 1, 4), int(rng.integers(1, 12))
    dtype = str(rng.choice(TYPES))
    inputs = {"i": rng.integers(-depth - 2, depth + 3, shape).astype(rng.choice(["int32", "int64"]))}
    consts = {"d": ints(depth).reshape(()), "v": draw(rng, dtype, 2)}
    axis = int(rng.integers(-1, len(shape) + 1))
    return [node("OneHot", ["i", "d", "v"], ["y"], axis=axis)], inputs, consts, ["y"]


def where(rng):
    shape = dims(rng, 0, 5, 14)
    nodes, inputs, x, dtype = source(rng, shape)

    def part():
        some = tuple(n if rng.random() < 0.7 else 1 for n in shape)
        return some[int(rng.integers(0, len(shape) + 1)) :] if rng.random() < 0.3 else some

    inputs |= {"c": draw(rng, "bool", part()), "b": draw(rng, dtype, part())}
    names = ["c", x, "b"] if rng.random() < 0.5 else ["c", "b", x]
    return [*nodes, node("Where", names, ["y"])], inputs, {}, ["y"]


def trilu(rng):
    shape = dims(rng, 2, 4, 16)
    nodes, inputs, x, _ = source(rng, shape)
    consts = {"k": ints(int(rng.integers(-9, 9))).reshape(())} if rng.random() < 0.7 else {}
    return [*nodes, node("Trilu", [x, *consts], ["y"], upper=int(rng.integers(2)))], inputs, consts, ["y"]


def top_k(rng):
    shape = dims(rng, 1, 4, 30)
    nodes, inputs, x, _ = source(rng, shape, str(rng.choice(["float32", "float64", "int32", "int64"])))
    inputs["x"] = inputs["x"] // 20  # many equal ones
    if inputs["x"].dtype.kind == "f":
        inputs["x"][rng.random(shape) < 0.1] = np.nan if x == "x" else np.inf
    axis = int(rng.integers(len(shape)))
    consts = {"k": ints(int(rng.integers(1, shape[axis] + 1)))}
    made = node("TopK", [x, "k"], ["v", "i"], axis=axis, largest=int(rng.integers(2)))
    return [*nodes, made], inputs, consts, ["v", "i"]


def arg(rng):
    shape = dims(rng, 1, 4, 30) if rng.random() < 0.8 else (70, 5, 1)
    dtype = str(rng.choice(["float32", "float64", "int32", "int64", "uint8", "int8"]))
    nodes, inputs, x, _ = source(rng, shape, dtype)
    inputs["x"] = inputs["x"] // 10
    if inputs["x"].dtype.kind == "f":
        inputs["x"][rng.random(shape) < 0.05] = np.nan if x == "x" else np.inf
    attrs = {"axis": int(rng.integers(len(shape))), "keepdims": int(rng.integers(2))}
    made = node(str(rng.choice(["ArgMax", "ArgMin"])), [x], ["y"], select_last_index=int(rng.integers(2)), **attrs)
    return [*nodes, made], inputs, {}, ["y"]


def running(rng):
    shape = dims(rng, 1, 4, 14)
    nodes, inputs, x, _ = source(rng, shape, str(rng.choice(["float32", "float64", "int32", "int64"])))
    attrs = {"exclusive": int(rng.integers(2)), "reverse": int(rng.integers(2))}
    consts = {"a": ints(int(rng.integers(len(shape))))}
    return [*nodes, node("CumSum", [x, "a"], ["y"], **attrs)], inputs, consts, ["y"]


def resize(rng):
    shape = dims(rng, 2, 4, 12) if rng.random() < 0.4 else (1, *(int(n) for n in rng.integers(1, 12, 3)))
    mode = str(rng.choice(["nearest", "linear", "cubic"]))
    nodes, inputs, x, _ = source(rng, shape, None if mode == "nearest" else "float32")
    factors = [1.0 if rng.random() < 0.4 else float(rng.choice([2, 3, 0.5, 1.7, 0.6])) for _ in shape]
    sizes = ints(*(max(1, int(n * f)) for n, f in zip(shape, factors)))
    coordinates = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    attrs = {"mode": mode, "coordinate_transformation_mode": str(rng.choice(coordinates))}
    if mode != "nearest":
        attrs |= {"antialias": int(rng.integers(2)), "exclude_outside": int(rng.integers(2))}
    return [*nodes, node("Resize", [x, "", "", "s"], ["y"], **attrs)], inputs, {"s": sizes}, ["y"]


def reverse(rng):
    time = int(rng.integers(2))
    shape = dims(rng, 2, 4)
    nodes, inputs, x, _ = source(rng, shape)
    inputs["l"] = rng.integers(0, shape[time] + 1, shape[1 - time])
    made = node("ReverseSequence", [x, "l"], ["y"], time_axis=time, batch_axis=1 - time)
    return [*nodes, made], inputs, {}, ["y"]


def write_cache(rng):
    batch, heads, length, width = (int(n) for n in rng.integers(1, 7, 4))
    count = int(rng.integers(1, length + 1))
    inputs = {name: draw(rng, "float16", (batch, heads, n, width)) for name, n in (("x", length), ("u", count))}
    inputs["w"] = rng.integers(0, length - count + 1, batch)
    return [node("TensorScatter", ["x", "u", "w"], ["y"], version=24)], inputs, {}, ["y"]


GENERATORS = [
    reshape, transpose, cut, split, concat, expand, pad, blocks, gather, gather_elements, gather_nd, scatter_elements,
    scatter_nd, one_hot, where, trilu, top_k, arg, running, resize, reverse, write_cache,
]  # fmt: skip


def check(generator, seed):
    nodes, inputs, consts, outputs = generator(np.random.default_rng(seed))
    return check_native(model(nodes, inputs, consts, outputs), inputs, tolerance=5e-6)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.__name__)
def test_native_equals_reference(generator):
    for seed in range(12):
        check(generator, seed)


# ---------------------------------------------------------------- what costs nothing


FREE = [
    ("Reshape", {"s": ints(4, -1)}, {}),
    ("Transpose", {}, {"perm": (1, 0, 2, 3)}),
    ("Transpose", {}, {"perm": (0, 2, 3, 1)}),  # channels-last data, row-major as they are
    ("Slice", {"b": ints(1), "e": ints(3), "a": ints(1)}, {}),
    ("Gather", {"i": ints(2).reshape(())}, {"axis": 1}),
    ("Expand", {"s": ints(1, 1, 1, 1)}, {}),
    ("Tile", {"s": ints(1, 1, 1, 1)}, {}),
    ("Concat", {}, {"axis": 2}),
    ("Dropout", {}, {}),
    ("Pad", {"s": ints(0, -1, 0, 0, 0, 0, 0, 0)}, {}),
    ("Resize", {"none": np.zeros(0, np.float32), "f": np.ones(4, np.float32)}, {}),
]


@pytest.mark.parametrize("op, consts, attrs", FREE, ids=lambda v: v if isinstance(v, str) else "")
def test_views_cost_nothing(op, consts, attrs):
    shape = (1, 1, 8, 5) if attrs.get("perm") == (0, 2, 3, 1) else (1, 4, 8, 5)
    inputs = {"x": draw(np.random.default_rng(1), "float32", shape)}
    nodes = [node("Gather", ["x", "i0"], ["g"], axis=0), node(op, ["g", *consts], ["h"], **attrs)]
    consts = {**consts, "i0": ints(0)}
    session = Session(model(nodes, inputs, consts, ["h"]), threads=1)
    expected = Session(model(nodes, inputs, consts, ["h"]), executor="reference").run(inputs)
    assert np.array_equal(session.run(inputs)["h"], expected["h"])
    assert steps(session) == ([], [])


def test_split_in_memory_order_costs_nothing():
    inputs = {"x": draw(np.random.default_rng(2), "float32", (6, 4))}
    session = Session(model([node("Split", ["x"], ["a", "b", "c"], num_outputs=3)], inputs, {}, ["a", "b", "c"]))
    got = session.run(inputs)
    assert np.array_equal(np.concatenate([got["a"], got["b"], got["c"]]), inputs["x"])
    assert steps(session) == ([], [])


def test_shape_arithmetic_costs_nothing():
    inputs = {"x": draw(np.random.default_rng(3), "float32", (2, 3, 4))}
    nodes = [
        node("Shape", ["x"], ["s"], start=1), node("Size", ["x"], ["n"]), node("Shape", ["x"], ["first"], end=1),
        node("Concat", ["first", "minus"], ["wanted"], axis=0), node("Reshape", ["x", "wanted"], ["y"]),
    ]  # fmt: skip
    session = Session(model(nodes, inputs, {"minus": ints(-1)}, ["s", "n", "y"]))
    got = session.run(inputs)
    assert got["s"].tolist() == [3, 4] and got["n"] == 24 and got["y"].shape == (2, 12)
    assert steps(session) == ([], [])


def test_channels_last_chain_has_no_layout_change():
    """Between convolutions, joining, cutting, padding and resizing stay channels-last."""
    rng = np.random.default_rng(4)
    inputs = {"x": draw(rng, "float32", (1, 8, 6, 7))}
    consts = {
        "w": rng.standard_normal((8, 8, 1, 1)).astype("f"), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "b": ints(0),
        "e": ints(4), "a": ints(1), "f": np.array([1, 1, 2, 2], np.float32),
        "w2": rng.standard_normal((4, 12, 1, 1)).astype("f"),
    }  # fmt: skip
    nodes = [
        node("Conv", ["x", "w"], ["c"]), node("Pad", ["c", "pads"], ["p"]),
        node("Slice", ["p", "b", "e", "a"], ["q"]), node("Concat", ["p", "q"], ["r"], axis=1),
        node("Resize", ["r", "", "f"], ["z"], mode="nearest"), node("Conv", ["z", "w2"], ["y"]),
    ]  # fmt: skip
    kernels = check_native(model(nodes, inputs, consts, ["y"]), inputs)
    changes = [k.node.op for k in kernels if k.kernel.name.startswith("transpose")]
    assert len(changes) <= 2, changes  # at the input and at the output


# ---------------------------------------------------------------- bad data


BAD = [
    ("Gather", {"x": (5, 3), "i": ints(0, 5)}, {}, {}),
    ("GatherElements", {"x": (5, 3), "i": ints(0, 1, -6).reshape(1, 3)}, {}, {}),
    ("GatherND", {"x": (5, 3), "i": ints(2, 3).reshape(1, 2)}, {}, {}),
    ("ScatterElements", {"x": (5, 3), "i": ints(0, 1, 9).reshape(1, 3), "u": (1, 3)}, {}, {}),
    ("ScatterND", {"x": (5, 3), "i": ints(2**62, 1).reshape(1, 2), "u": (1,)}, {}, {}),
    ("ScatterND", {"x": (5, 3), "i": ints(-(2**63), 1).reshape(1, 2), "u": (1,)}, {"reduction": "add"}, {}),
    ("ReverseSequence", {"x": (5, 3), "i": ints(1, 2, 6)}, {}, {}),
    ("TensorScatter", {"x": (2, 1, 5, 3), "u": (2, 1, 2, 3), "i": ints(0, 4)}, {}, {"version": 24}),
]


@pytest.mark.parametrize("op, given, attrs, more", BAD)
@pytest.mark.parametrize("threads", [1, 2])
def test_bad_indices_are_refused(op, given, attrs, more, threads):
    rng = np.random.default_rng(5)
    inputs = {k: v if isinstance(v, np.ndarray) else draw(rng, "float32", v) for k, v in given.items()}
    session = Session(model([node(op, list(given), ["y"], **attrs, **more)], inputs, {}, ["y"]), threads=threads)
    with pytest.raises(InputError, match=op):
        session.run(inputs)
    assert not steps(session)[1]
