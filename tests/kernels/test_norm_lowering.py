"""Normalisations through the whole engine: native against reference."""

from __future__ import annotations

import numpy as np
import pytest

from minifer import dtypes
from tests.kernels.models import check_native, model, node

RNG = np.random.default_rng(13)


def draw(*shape, dtype="float32", low=-1.0, high=3.0):
    return RNG.uniform(low, high, shape).astype(dtypes.to_numpy(dtype))


def run(nodes, fed, consts, outputs=("y",), tolerance=3e-6):
    return check_native(model(nodes, fed, consts, list(outputs)), fed, tolerance)


POOL = node("MaxPool", ["x"], ["p"], kernel_shape=[1, 1])  # leaves its result channels-last


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 4, 6), (1, 40, 3, 3)])
def test_batch_norm(shape, last, known):
    c = shape[1]
    parameters = {"s": draw(c), "b": draw(c), "m": draw(c), "v": draw(c, low=0.1)}
    fed = {"x": draw(*shape), **({} if known else parameters)}
    nodes = [node("BatchNormalization", ["p" if last else "x", "s", "b", "m", "v"], ["y"], epsilon=1e-3)]
    kernels = run([POOL] * last + nodes, fed, parameters if known else {})
    assert ("scale_columns" if last else "scale_rows") in [k.kernel.name for k in kernels]


@pytest.mark.parametrize("shape", [(3, 5), (7,)])
def test_batch_norm_of_few_axes(shape):
    c = shape[1] if len(shape) > 1 else 1
    parameters = {"s": draw(c), "b": draw(c), "m": draw(c), "v": draw(c, low=0.1)}
    run([node("BatchNormalization", ["x", *parameters], ["y"])], {"x": draw(*shape)}, parameters)


@pytest.mark.parametrize("after", [["Relu"], ["Add"], ["Add", "Relu"], ["Sigmoid"]])
def test_batch_norm_does_what_follows(after):
    parameters = {"s": draw(5), "b": draw(5), "m": draw(5), "v": draw(5, low=0.1)}
    nodes = [POOL, node("BatchNormalization", ["p", *parameters], ["n"])]
    name = "n"
    for op in after:
        nodes.append(node(op, [name, "c"] if op == "Add" else [name], [f"{name}_"]))
        name += "_"
    kernels = run(nodes, {"x": draw(2, 5, 4, 6)}, {**parameters, "c": draw(1, 5, 1, 1)}, [name])
    assert not {k.node.op for k in kernels} & set(after)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    """All of these are computed in float32 and rounded once."""
    c = {n: draw(6, dtype=dtype, low=0.1) for n in "sbmv"}
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3}[dtype]
    fed = {"x": draw(2, 6, 3, 4, dtype=dtype)}
    run([node("BatchNormalization", ["x", *c], ["y"], 9)], fed, c, tolerance=tolerance)
    run([node("InstanceNormalization", ["x", "s", "b"], ["y"])], fed, c, tolerance=tolerance)
    run([node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)], fed, c, tolerance=tolerance)
    rows = {"x": draw(4, 6, dtype=dtype)}
    run([node("LayerNormalization", ["x", "s", "b"], ["y"])], rows, c, tolerance=tolerance)
    run([node("RMSNormalization", ["x", "s"], ["y"], 23)], rows, c, tolerance=tolerance)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 12, 9, 9), (2, 6, 300)])
def test_instance_and_group_norm(shape, last):
    c = shape[1]
    fed, per_channel = {"x": draw(*shape) + np.arange(c).reshape(-1, *[1] * (len(shape) - 2)).astype("f")}, {}
    per_channel = {"s": draw(c), "b": draw(c)}
    pool = [node("MaxPool", ["x"], ["p"], kernel_shape=[1] * (len(shape) - 2))] * last
    x = "p" if last else "x"
    run([*pool, node("InstanceNormalization", [x, "s", "b"], ["y"])], fed, per_channel)
    run([*pool, node("GroupNormalization", [x, "s", "b"], ["y"], num_groups=3)], fed, per_channel)
    run([*pool, node("GroupNormalization", [x, "s", "b"], ["y"], num_groups=3)], fed | per_channel, {})
    per_group = {"s": draw(3), "b": draw(3)}
    run([*pool, node("GroupNormalization", [x, "s", "b"], ["y"], 18, num_groups=3)], fed, per_group)
    relu = [*pool, node("GroupNormalization", [x, "s", "b"], ["n"], num_groups=1), node("Relu", ["n"], ["y"])]
    assert "Relu" not in [k.node.op for k in run(relu, fed, per_channel)]
    added = [*pool, node("GroupNormalization", [x, "s", "b"], ["n"], num_groups=1), node("Add", ["n", "s2"], ["y"])]
    run(added, fed, {**per_channel, "s2": np.float32(2)})


def test_instance_norm_far_from_zero():
    """A mean a thousand times the deviation."""
    fed = {"x": draw(2, 3, 40, 40) + np.float32(1000)}
    run([node("InstanceNormalization", ["x", "s", "b"], ["y"])], fed, {"s": draw(3), "b": draw(3)}, tolerance=1e-4)


@pytest.mark.parametrize("axes", [[0, 2, 3], [2, 3]])
@pytest.mark.parametrize("last", [True, False])
def test_mean_variance_norm(axes, last):
    nodes = [POOL] * last + [node("MeanVarianceNormalization", ["p" if last else "x"], ["y"], axes=axes)]
    run(nodes, {"x": draw(3, 5, 6, 7)}, {})


@pytest.mark.parametrize(
    "shape, axis", [((3, 768), -1), ((2, 5, 33), -1), ((2, 5, 33), 1), ((2, 3, 4, 5), -2), ((9,), 0)]
)
def test_layer_norm(shape, axis):
    inner = shape[axis:]
    consts = {"s": draw(*inner), "b": draw(*inner)}
    fed = {"x": draw(*shape)}
    run([node("LayerNormalization", ["x", "s", "b"], ["y"], axis=axis)], fed, consts)
    run([node("LayerNormalization", ["x", "s"], ["y"], axis=axis)], fed, consts)
    run([node("LayerNormalization", ["x", "s", "b"], ["y", "m", "i"], axis=axis)], fed, consts, ("y", "m", "i"))
    run([node("LayerNormalization", ["x", "s", "b"], ["y", "", "i"], axis=axis)], fed | consts, {}, ("y", "i"))
    run([node("RMSNormalization", ["x", "s"], ["y"], 23, axis=axis)], fed, consts)
    run([node("SimplifiedLayerNormalization", ["x", "s"], ["y", "i"], axis=axis)], fed, consts, ("y", "i"))
    run([node("LayerNormalization", ["x", "one"], ["y"], axis=axis)], fed, {"one": draw(1)})


def test_layer_norm_with_scales_of_each_row():
    """The scale runs along the batch: the reference does that."""
    fed = {"x": draw(3, 5)}
    made = model([node("LayerNormalization", ["x", "s"], ["y"])], fed, {"s": draw(3, 1)}, ["y"])
    check_native(made, fed, 3e-6, native=False)


@pytest.mark.parametrize("outputs", [["y"], ["y", "", "", "t"], ["y", "m", "i", "t"]])
def test_skip_layer_norm(outputs):
    fed = {"x": draw(2, 7, 33), "skip": draw(2, 7, 33)}
    consts = {"s": draw(33), "b": draw(33)}
    nodes = [node("SkipLayerNormalization", ["x", "skip", "s", "b"], outputs, 1, "com.microsoft")]
    run(nodes, fed, consts, [o for o in outputs if o])
    nodes = [
        node("SkipSimplifiedLayerNormalization", ["x", "skip", "s"], outputs[:1] + [""] * 2 + ["t"], 1, "com.microsoft")
    ]
    run(nodes, fed, consts, ["y", "t"])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(axis, p):
    x = draw(3, 20, 11)
    x[:, :, 2] = 0
    x[0] = 0
    run([node("LpNormalization", ["x"], ["y"], axis=axis, p=p)], {"x": x}, {})


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("size, beta", [(5, 0.75), (3, 0.5), (4, 0.6), (1, 1.0)])
def test_lrn(size, beta, last):
    nodes = [POOL] * last + [node("LRN", ["p" if last else "x"], ["y"], size=size, beta=beta, alpha=0.1, bias=1.5)]
    run(nodes, {"x": draw(2, 21, 4, 5)}, {})
