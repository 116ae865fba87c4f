"""Operators of com.microsoft against ONNX Runtime on random data, or against formulas; and bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minifer import dtypes
from minifer.errors import InputError, MiniferError, ShapeError, UnsupportedError
from minifer.ir import TensorType
from minifer.ops.microsoft_qmatmul import unpack_bits
from tests.ops.helpers import infer_op, infer_value, run_op

DOMAIN = "com.microsoft"


def random(*shape, seed=0):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def integers(dtype, *shape, low=None, high=None, seed=0):
    limits = np.iinfo(dtype)
    low, high = limits.min if low is None else low, limits.max if high is None else high
    return np.asarray(np.random.default_rng(seed).integers(low, high + 1, shape)).astype(dtype)


def number(value, dtype=np.float32):
    return np.array(value, dtype)


def by_onnxruntime(name, inputs, outputs, attrs):
    """The node's outputs (None where not asked for) by ONNX Runtime."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper = onnx.helper
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(inputs)]
    wanted = [f"y{i}" if wanted else "" for i, wanted in enumerate(outputs)]
    node = helper.make_node(name, names, wanted, domain=DOMAIN, **attrs)
    given = {n: v for n, v in zip(names, inputs) if n}
    declared = [
        helper.make_tensor_value_info(n, dtypes.code_of_name(dtypes.from_numpy(v.dtype)), v.shape)
        for n, v in given.items()
    ]
    graph = helper.make_graph([node], "g", declared, [onnx.ValueInfoProto(name=n) for n in wanted if n])
    versions = [helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("", 17)]
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = iter(session.run(None, given))
    return [next(results) if n else None for n in wanted]


def same(name, inputs, outputs=(True,), steps=0, tolerance=2e-3, **attrs):
    """Check outputs and types against ONNX Runtime; `steps` is how far integers may be apart (ties)."""
    want = by_onnxruntime(name, inputs, outputs, attrs)
    got = run_op(name, 1, *inputs, domain=DOMAIN, outputs=len(outputs), **attrs)
    types = infer_value(name, 1, *inputs, domain=DOMAIN, outputs=len(outputs), **attrs)
    for expected, result, kind in zip(want, got, types):
        if expected is None:
            continue
        assert result.dtype == expected.dtype and result.shape == expected.shape
        assert kind == TensorType(dtypes.from_numpy(result.dtype), result.shape)
        if expected.dtype.kind in "iu":
            assert np.abs(result.astype(int) - expected.astype(int)).max(initial=0) <= steps
        else:
            np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


# --- products and activations ---


@pytest.mark.parametrize(("a", "b", "batch_a", "batch_b"), list(itertools.product((0, 1), repeat=4)))
def test_fused_matmul(a, b, batch_a, batch_b):
    left, right = [2, 3, 4], [2, 4, 5]
    for shape, turned, first in ((left, a, batch_a), (right, b, batch_b)):
        shape[1:] = shape[:0:-1] if turned else shape[1:]
        shape[:2] = shape[1::-1] if first else shape[:2]
    attrs = dict(transA=a, transB=b, transBatchA=batch_a, transBatchB=batch_b, alpha=0.5)
    same("FusedMatMul", [random(*left), random(*right, seed=1)], **attrs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_gelus(dtype):
    x, bias = random(2, 3, 5).astype(dtype) * 3, random(5, seed=1).astype(dtype)
    for name, inputs in (("Gelu", [x]), ("FastGelu", [x]), ("FastGelu", [x, bias]), ("BiasGelu", [x, bias])):
        same(name, inputs)
    same("QuickGelu", [x], alpha=1.5)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("Relu", {}), ("Tanh", {}), ("Sigmoid", {}), ("LeakyRelu", {"activation_alpha": 0.3}), ("Softplus", {}),
     ("Elu", {"activation_alpha": 0.3}), ("Selu", {"activation_alpha": 0.3, "activation_gamma": 1.4}),
     ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4})],
)  # fmt: skip
def test_fused_gemm(activation, parameters):
    inputs = [random(4, 3), random(5, 4, seed=1), random(5, seed=2)]
    same("FusedGemm", inputs, transA=1, transB=1, alpha=0.7, beta=0.3, activation=activation, **parameters)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [("Relu", []), ("LeakyRelu", [0.1]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.2, 0.5]), ("HardSwish", [])],
)
def test_fused_conv(activation, parameters):
    attrs = dict(activation=activation, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    if parameters:
        attrs["activation_params"] = parameters
    inputs = [random(1, 2, 5, 5), random(3, 2, 3, 3, seed=1), random(3, seed=2)]
    same("FusedConv", inputs, **attrs)
    if activation == "Relu":
        same("FusedConv", [*inputs, random(1, 3, 5, 5, seed=3)], **attrs)


def test_an_unknown_fused_activation_is_named():
    with pytest.raises(UnsupportedError, match="'Cubic'"):
        run_op("FusedGemm", 1, random(2, 2), random(2, 2), domain=DOMAIN, activation="Cubic")
    with pytest.raises(ShapeError, match="inner sizes"):
        infer_value("FusedMatMul", 1, random(2, 3), random(2, 3), domain=DOMAIN)


# --- normalisation ---


@pytest.mark.parametrize("skip", [(2, 3, 8), (1, 3, 8), (3, 8)])
def test_skip_layer_norms(skip):
    x, gamma, beta, bias = random(2, 3, 8), random(8, seed=1), random(8, seed=2), random(8, seed=3)
    outputs = (True, False, False, True)
    same("SkipLayerNormalization", [x, random(*skip, seed=4), gamma, beta, bias], outputs, epsilon=1e-5)
    same("SkipSimplifiedLayerNormalization", [x, random(2, 3, 8, seed=4), gamma, bias], outputs, epsilon=1e-5)
    with pytest.raises(ShapeError, match="gamma has shape"):
        infer_value("SkipLayerNormalization", 1, x, x, beta[:4], domain=DOMAIN)


def test_embed_layer_norm():
    ids, segments = integers(np.int32, 2, 3, low=0, high=6), integers(np.int32, 2, 3, low=0, high=1)
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
    tables = [random(7, 4), random(5, 4, seed=1), random(2, 4, seed=2), random(4, seed=3), random(4, seed=4)]
    every = (True, True, True)
    same("EmbedLayerNormalization", [ids, segments, *tables, mask], every, epsilon=1e-5)
    places = np.array([[2, 1, 4]], np.int32)
    same("EmbedLayerNormalization", [ids, None, *tables[:2], None, *tables[3:], None, places], every, epsilon=1e-5)
    with pytest.raises(InputError, match="word_embedding has entries"):
        run_op("EmbedLayerNormalization", 1, ids + 7, None, *tables[:2], None, *tables[3:], domain=DOMAIN)


# --- quantised ---


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantised_elementwise_operators(dtype):
    a, b = integers(dtype, 3, 4, 2), integers(dtype, 4, 1, seed=1)
    scales = [number(v) for v in (0.0213, 0.0137, 0.0331)]
    zeros = [number(v, dtype) for v in (3, 11, 20)]
    for name in ("QLinearAdd", "QLinearMul"):
        same(name, [a, scales[0], zeros[0], b, scales[1], zeros[1], scales[2], zeros[2]], steps=1)
    same("QLinearSigmoid", [a, number(0.05), zeros[0], number(1 / 256), zeros[1]])
    same("QLinearLeakyRelu", [a, number(0.05), zeros[0], number(0.04), zeros[1]], alpha=0.1)
    parts = [a, scales[0], zeros[0], integers(dtype, 3, 1, 2, seed=2), scales[2], zeros[2]]
    same("QLinearConcat", [scales[2], zeros[2], *parts], axis=-2)


@pytest.mark.parametrize("last", [0, 1])
def test_quantised_pools(last):
    x = integers(np.uint8, 2, 5, 6, 3) if last else integers(np.uint8, 2, 3, 5, 6)
    numbers = [number(0.0511), number(9, np.uint8), number(0.0313), number(100, np.uint8)]
    same("QLinearGlobalAveragePool", [x, *numbers], steps=1, channels_last=last)
    attrs = dict(kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], channels_last=last)
    same("QLinearAveragePool", [x, *numbers], steps=1, **attrs)
    if last:
        same("NhwcMaxPool", [x.view(np.int8)], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], ceil_mode=1)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantised_products(per_column, dtype):
    shape = (5,) if per_column else ()
    scale = np.asarray(np.abs(random(*shape, seed=1)) * np.float32(0.02) + np.float32(0.01))
    b, zero = integers(dtype, 4, 5, low=0, high=60), integers(dtype, *shape, low=0, high=9, seed=2)
    bias = random(5, seed=3)
    same("DynamicQuantizeMatMul", [random(2, 3, 4), b, scale, zero, bias])
    a, a_scale, a_zero = integers(np.uint8, 3, 4), number(0.02), number(100, np.uint8)
    same("MatMulIntegerToFloat", [a, b, a_scale, scale, a_zero, zero, bias])
    c = integers(np.int32, 5, low=-500, high=500)
    same("QGemm", [a, a_scale, a_zero, b, scale, zero, c], alpha=0.9)
    same("QGemm", [a, a_scale, a_zero, b, scale, zero, c, number(0.1), number(90, np.uint8)], steps=1, alpha=0.9)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantize_and_dequantize_linear(dtype):
    x, scale = random(3, 4, 2) * 5, np.abs(random(4, seed=1)) * np.float32(0.02) + np.float32(0.01)
    zero = integers(dtype, 4, low=0, high=9)
    same("QuantizeLinear", [x, scale, zero], axis=1)
    same("QuantizeLinear", [x, number(0.1), zero[:1].reshape(())])
    same("DequantizeLinear", [integers(dtype, 3, 4, 2), scale, zero], axis=-2, tolerance=1e-5)
    (y,) = run_op("QuantizeLinear", 1, number([np.nan, np.inf, -np.inf]), number(1), number(3, dtype), domain=DOMAIN)
    np.testing.assert_array_equal(y[1:], [np.iinfo(dtype).max, np.iinfo(dtype).min])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["default", "packed"])
def test_matmul_n_bits(bits, zeros):
    packed, scales = integers(np.uint8, 3, 2, 16 * bits // 8), np.abs(random(3, 2))
    inputs = [random(2, 4, 25), packed, scales]
    if zeros == "packed":
        inputs.append(integers(np.uint8, 3, -(-2 * bits // 8), seed=1))
    same("MatMulNBits", inputs, K=25, N=3, bits=bits, block_size=16)


def test_matmul_n_bits_with_owners_of_columns_and_odd_widths():
    packed, scales, x = integers(np.uint8, 2, 2, 10), np.abs(random(2, 2)), random(3, 32)
    fields = unpack_bits(packed, 5).reshape(2, 32)
    assert fields[0, 1] == (packed[0, 0, 0] >> 5 | packed[0, 0, 1] << 3) & 31
    owner = np.arange(32) % 2
    attrs = dict(domain=DOMAIN, K=32, N=2, bits=5, block_size=16)
    (y,) = run_op("MatMulNBits", 1, x, packed, scales, None, owner, **attrs)
    weight = (fields.astype(np.float32) - 16) * scales[:, owner]
    np.testing.assert_allclose(y, x @ weight.T, rtol=1e-4, atol=1e-4)
    (y,) = run_op("MatMulNBits", 1, x, packed[:0], scales, None, None, number([1, 2]), **attrs)
    np.testing.assert_array_equal(y, np.full((3, 2), [1, 2]))


@pytest.mark.parametrize(
    ("attrs", "says"),
    [({"K": 31}, "K = 31"), ({"block_size": 24}, "block_size 24"), ({"bits": 9}, "bits 9"), ({"N": 3}, "B has shape")],
)
def test_matmul_n_bits_refuses_what_does_not_fit(attrs, says):
    attrs = {**dict(K=32, N=2, bits=4, block_size=16), **attrs}
    inputs = random(3, 32), integers(np.uint8, 2, 2, 8), np.ones((2, 2), np.float32)
    for run in (run_op, infer_value):
        with pytest.raises(ShapeError, match=says):
            run("MatMulNBits", 1, *inputs, domain=DOMAIN, **attrs)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_dynamic_quantize_lstm(direction):
    d = 2 if direction == "bidirectional" else 1
    x, b, h = random(3, 2, 4), random(d, 24, seed=1), random(d, 2, 3, seed=2)
    w, r = integers(np.int8, d, 4, 12, low=-50, high=50), integers(np.int8, d, 3, 12, low=-50, high=50, seed=1)
    scale, zero = np.full(d, 0.01, np.float32), np.zeros(d, np.int8)
    inputs = [x, w, r, b, None, h, None, None, scale, zero, scale, zero]
    same("DynamicQuantizeLSTM", inputs, (True,) * 3, tolerance=5e-3, direction=direction, hidden_size=3)


def test_quantised_operators_name_a_bad_scale():
    x, two = integers(np.uint8, 2, 2), np.ones(2, np.float32)
    with pytest.raises(ShapeError, match="X's scale"):
        run_op("QLinearSigmoid", 1, x, two, None, number(1), None, domain=DOMAIN)
    with pytest.raises(ShapeError, match="b_scale"):
        run_op("MatMulIntegerToFloat", 1, x, x, number(1), np.ones(3, np.float32), domain=DOMAIN)
    with pytest.raises(MiniferError, match="three inputs"):
        infer_value("QLinearConcat", 1, number(1), number(0, np.uint8), x, domain=DOMAIN, axis=0)


# --- attention ---

MASKS = {
    "none": None,
    "lengths": np.array([3, 5], np.int32),
    "ends and starts": np.array([4, 5, 1, 2], np.int32),
    "keys": np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], np.int32),
    "pairs": integers(np.int32, 2, 3, 5, low=0, high=1),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("unidirectional", [0, 1])
def test_attention(mask, unidirectional):
    x, w, b = random(2, 3, 6), random(6, 24, seed=1), random(24, seed=2)
    past, bias = random(2, 2, 2, 2, 4, seed=3), random(1, 2, 3, 5, seed=4)
    if not (unidirectional and mask == "ends and starts"):
        attrs = dict(num_heads=2, unidirectional=unidirectional)
        same("Attention", [x, w, b, MASKS[mask], past], (True, True), **attrs)
    if mask != "ends and starts":
        inputs = [random(2, 3, 8), random(2, 3, 8, seed=1), random(2, 3, 8, seed=2), b]
        attrs = dict(num_heads=2, unidirectional=unidirectional, scale=0.3)
        same("MultiHeadAttention", [*inputs, MASKS[mask], bias, past[0], past[1]], (True,) * 3, **attrs)


def test_attention_with_wider_values_and_cross_attention():
    x, w = random(2, 3, 6), random(6, 20, seed=1)
    same("Attention", [x, w, random(20, seed=2)], num_heads=2, qkv_hidden_sizes=[8, 8, 4])
    keys, values = random(2, 2, 5, 4, seed=1), random(2, 2, 5, 4, seed=2)
    same("MultiHeadAttention", [random(2, 3, 8), keys, values, random(24, seed=3)], num_heads=2)
    same("MultiHeadAttention", [random(2, 3, 8), random(2, 5, 8), random(2, 5, 4)], (True,) * 3, num_heads=2)


def test_packed_projections_are_the_separate_ones():
    q, k, v = (random(2, 3, 8, seed=i) for i in range(3))
    split = [t.reshape(2, 3, 2, 4) for t in (q, k, v)]
    (want,) = run_op("MultiHeadAttention", 1, q, k, v, domain=DOMAIN, num_heads=2)[:1]
    for inputs in ([np.stack(split, axis=3)], [q, np.stack(split[1:], axis=3)]):
        (y,) = run_op("MultiHeadAttention", 1, *inputs, domain=DOMAIN, num_heads=2)[:1]
        np.testing.assert_array_equal(y, want)
        assert infer_value("MultiHeadAttention", 1, *inputs, domain=DOMAIN, num_heads=2)[0].shape == y.shape


def test_multi_head_attention_writes_into_a_longer_buffer():
    q, past = random(2, 2, 8), random(2, 2, 7, 4, seed=1)
    inputs = [q, q, q, None, None, None, past, past, np.array([3], np.int32)]
    same("MultiHeadAttention", inputs, (True,) * 3, num_heads=2)
    with pytest.raises(InputError, match="past_sequence_length 6"):
        run_op("MultiHeadAttention", 1, *inputs[:-1], np.array([6], np.int32), domain=DOMAIN, num_heads=2)


def test_attention_refuses_what_it_cannot_do():
    x, w = random(1, 2, 6), random(6, 24)
    with pytest.raises(UnsupportedError, match="do_rotary"):
        run_op("Attention", 1, x, w, domain=DOMAIN, num_heads=2, do_rotary=1)
    with pytest.raises(ShapeError, match="mask has"):
        run_op("Attention", 1, x, w, None, np.ones(7, np.int32), domain=DOMAIN, num_heads=2)
    with pytest.raises(ShapeError, match="qkv_hidden_sizes"):
        run_op("Attention", 1, x, w, domain=DOMAIN, num_heads=5)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved):
    cache = random(9, 4), random(9, 4, seed=1)
    places = np.array([[0, 3, 8], [2, 1, 0]])
    same("RotaryEmbedding", [random(2, 3, 16), places, *cache], interleaved=interleaved)
    same("RotaryEmbedding", [random(2, 2, 3, 8), np.array([5]), *cache], interleaved=interleaved)
    attrs = dict(num_heads=2, rotary_embedding_dim=4, interleaved=interleaved)
    same("RotaryEmbedding", [random(2, 3, 16), places, cache[0][:, :2], cache[1][:, :2]], **attrs)
    with pytest.raises(InputError, match="position_ids run"):
        run_op("RotaryEmbedding", 1, random(2, 3, 16), places + 1, *cache, domain=DOMAIN)


# --- GroupQueryAttention ---


def same_where_valid(inputs, total, fresh, kept=None, tolerance=2e-3, **attrs):
    """GroupQueryAttention as ONNX Runtime has it, in the rows that have a meaning."""
    every = (True,) * 3
    want = by_onnxruntime("GroupQueryAttention", inputs, every, attrs)
    got = run_op("GroupQueryAttention", 1, *inputs, domain=DOMAIN, outputs=3, **attrs)
    types = infer_value("GroupQueryAttention", 1, *inputs, domain=DOMAIN, outputs=3, **attrs)
    for i, (expected, result, kind) in enumerate(zip(want, got, types)):
        assert result.dtype == expected.dtype and result.shape == expected.shape
        assert kind == TensorType(dtypes.from_numpy(result.dtype), result.shape)
        for n in range(len(total)):
            rows = (slice(0, fresh[n]),) if i == 0 else (slice(None), slice(0, (kept or total)[n]))
            a, b = result[n][rows].astype(np.float32), expected[n][rows].astype(np.float32)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


HEADS = dict(num_heads=4, kv_num_heads=2)
CACHES = [random(12, 8, seed=8), random(12, 8, seed=9)]


@pytest.mark.parametrize(
    "attrs",
    [{}, {"local_window_size": 2, "softcap": 2.0}, {"do_rotary": 1, "rotary_interleaved": 1, "scale": 0.2},
     {"smooth_softmax": 1}, {"do_rotary": 1}],
)  # fmt: skip
def test_group_query_attention_prompt_then_token(attrs):
    q, k, v = random(2, 5, 64), random(2, 5, 32, seed=1), random(2, 5, 32, seed=2)
    angles = CACHES if attrs.get("do_rotary") else [None, None]
    lengths = [np.array([4, 2], np.int32), number(5, np.int32)]
    same_where_valid([q, k, v, None, None, *lengths, *angles], [5, 3], [5, 3], **HEADS, **attrs)
    past = [random(2, 2, 7, 16, seed=3), random(2, 2, 7, 16, seed=4)]
    token = [random(2, 1, 128, seed=5), None, None]
    lengths = [np.array([6, 3], np.int32), number(7, np.int32)]
    same_where_valid([*token, *past, *lengths, *angles], [7, 4], [1, 1], **HEADS, **attrs)
    chunk = [random(1, 3, 128, seed=5), None, None]
    lengths = [np.array([6], np.int32), number(7, np.int32)]
    same_where_valid([*chunk, past[0][:1], past[1][:1], *lengths, *angles], [7], [3], **HEADS, **attrs)


def test_group_query_attention_with_bias_sink_and_padded_chunks():
    past = [random(2, 2, 9, 16, seed=3), random(2, 2, 9, 16, seed=4)]
    sink, bias = random(4, seed=5), random(1, 4, 1, 7, seed=6)
    lengths = [np.array([6, 3], np.int32), number(7, np.int32)]
    same_where_valid(
        [random(2, 1, 128), None, None, *past, *lengths, None, None, None, bias, sink], [7, 4], [1, 1], **HEADS
    )
    chunk = [random(2, 3, 64), random(2, 3, 32, seed=1), random(2, 3, 32, seed=2)]
    lengths = [np.array([5, 4], np.int32), number(9, np.int32)]
    rest = [None] * 9
    same_where_valid([*chunk, *past, *lengths, *rest, np.array([2, 0], np.int32)], [6, 5], [2, 0], **HEADS)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["PER_TENSOR", "PER_CHANNEL"])
def test_group_query_attention_with_a_quantised_cache(bits, kind):
    past = [
        integers(np.uint8, 2, 2, 7, 8, seed=i) if bits == 4 else integers(np.int8, 2, 2, 7, 16, seed=i) for i in (1, 2)
    ]
    shape = (1,) if kind == "PER_TENSOR" else (1, 2, 1, 16)
    scales = [
        np.abs(random(*shape, seed=i)) * np.float32(0.05 if bits == 8 else 0.5) + np.float32(0.02) for i in (3, 4)
    ]
    lengths = [np.array([6, 3], np.int32), number(7, np.int32)]
    attrs = dict(k_quant_type=kind, v_quant_type=kind, kv_cache_bit_width=bits, **HEADS)
    inputs = [random(2, 1, 128), None, None, *past, *lengths, *[None] * 5, *scales]
    same_where_valid(inputs, [7, 4], [1, 1], tolerance=1e-2, **attrs)


def test_group_query_attention_with_a_window_sized_cache():
    past = [random(2, 2, 4, 16, seed=3), random(2, 2, 4, 16, seed=4)]
    lengths = [np.array([6, 2], np.int32), number(7, np.int32)]
    attrs = dict(sliding_window_cache=1, local_window_size=3, **HEADS)
    same_where_valid([random(2, 1, 128), None, None, *past, *lengths], [7, 3], [1, 1], kept=[3, 3], **attrs)


def test_group_query_attention_normalises_heads_before_it_turns_them():
    q, k, v = random(1, 2, 32), random(1, 2, 16, seed=1), random(1, 2, 16, seed=2)
    heads = dict(num_heads=2, kv_num_heads=1)
    weights = [random(16, seed=3), random(16, seed=4)]
    lengths = [np.array([1], np.int32), number(2, np.int32)]
    rest = [None] * 7
    y = run_op("GroupQueryAttention", 1, q, k, v, None, None, *lengths, *rest, *weights, domain=DOMAIN, **heads)[0]
    normal = [
        (t.reshape(1, 2, -1, 16) / np.sqrt((t.reshape(1, 2, -1, 16) ** 2).mean(-1, keepdims=True) + 1e-6) * w)
        .reshape(t.shape).astype(np.float32)
        for t, w in zip((q, k), weights)
    ]  # fmt: skip
    want = run_op("GroupQueryAttention", 1, *normal, v, None, None, *lengths, domain=DOMAIN, **heads)[0]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_group_query_attention_refuses_lengths_that_cannot_be():
    q, k = random(1, 2, 32), random(1, 2, 16)
    heads = dict(num_heads=2, kv_num_heads=1, domain=DOMAIN)
    two = number(2, np.int32)
    with pytest.raises(InputError, match="seqlens_k"):
        run_op("GroupQueryAttention", 1, q, k, k, None, None, np.array([-1], np.int32), two, **heads)
    with pytest.raises(InputError, match="in the past"):
        run_op("GroupQueryAttention", 1, q, k, k, None, None, np.array([7], np.int32), two, **heads)
    with pytest.raises(InputError, match="do_rotary needs"):
        run_op("GroupQueryAttention", 1, q, k, k, None, None, np.array([1], np.int32), two, do_rotary=1, **heads)
    with pytest.raises(ShapeError, match="multiple of kv_num_heads"):
        infer_op(
            "GroupQueryAttention", 1, TensorType("float32", (1, 2, 32)), domain=DOMAIN, num_heads=3, kv_num_heads=2
        )
