"""Encoders, maps, linear models and support vector machines of ai.onnx.ml against short computations by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minifer.errors import InputError, ModelError, ShapeError
from minifer.ir import MapType, SequenceType, TensorType
from tests.ops import helpers

NAN = math.nan


def ml(name, version, *inputs, **attrs):
    return helpers.run_op(name, version, *inputs, domain="ai.onnx.ml", **attrs)


def infer(name, version, *types, **attrs):
    return helpers.infer_op(name, version, *types, domain="ai.onnx.ml", **attrs)


def f32(*values):
    return np.array(values, np.float32)


def words(*values):
    out = np.empty(len(values), object)
    out[:] = values
    return out


F32 = lambda *d: TensorType("float32", d)  # noqa: E731
X = f32([1, 2], [-3, 0.5], [0, 0])


# ------------------------------------------------------------------------------------------------------- encoders


def test_array_feature_extractor():
    assert ml("ArrayFeatureExtractor", 1, f32(1, 2, 3), np.array([2, 0]))[0].tolist() == [[3, 1]]
    assert ml("ArrayFeatureExtractor", 1, words("a", "b")[None], np.array([[1]]))[0].tolist() == [["b"]]
    assert ml("ArrayFeatureExtractor", 1, X, np.zeros(0, np.int64))[0].shape == (3, 0)
    for index in (-1, 2):
        with pytest.raises(InputError, match=rf"index {index} is outside \[0, 2\)"):
            ml("ArrayFeatureExtractor", 1, X, np.array([index]))
    assert infer("ArrayFeatureExtractor", 1, F32("n", 4, 5), TensorType("int64", (1, 2))) == [F32("n", 4, 2)]
    assert infer("ArrayFeatureExtractor", 1, F32(5), TensorType("int64", ())) == [F32(1, 1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_binarizer_and_imputer_keep_the_type(dtype):
    x = np.array([[1, 0], [2, 1]], dtype)
    (got,) = ml("Binarizer", 1, x, threshold=0.5)
    assert got.dtype == dtype and got.tolist() == [[1, 0], [1, 1]]
    name = "floats" if np.dtype(dtype).kind == "f" else "int64s"
    attrs = {f"imputed_value_{name}": (7, 8), f"replaced_value_{name[:-1]}": 1}
    (got,) = ml("Imputer", 1, x, **attrs)
    assert got.dtype == dtype and got.tolist() == [[7, 0], [2, 8]]


def test_binarizer_scalar_and_nan():
    assert ml("Binarizer", 1, f32(2)[0:1].reshape(()))[0].shape == ()
    assert ml("Binarizer", 1, f32(NAN, 1))[0].tolist() == [0, 1]


def test_imputer_edges():
    (got,) = ml("Imputer", 1, f32([NAN, 1]), imputed_value_floats=(9.0,), replaced_value_float=NAN)
    assert got.tolist() == [[9, 1]]
    with pytest.raises(InputError, match="3 imputed values for float32 input of 2 features"):
        ml("Imputer", 1, X, imputed_value_floats=(1.0, 2.0, 3.0))
    with pytest.raises(InputError, match="0 imputed values for int64"):
        ml("Imputer", 1, np.zeros((1, 2), np.int64), imputed_value_floats=(1.0,))
    with pytest.raises(ModelError, match="does not fit into int32"):
        ml("Imputer", 1, np.zeros((1, 2), np.int32), imputed_value_int64s=(2**40,))


def test_category_mapper():
    cats = dict(cats_int64s=(3, 4), cats_strings=("a", "b"))
    assert ml("CategoryMapper", 1, words("b", "z"), default_int64=-9, **cats)[0].tolist() == [4, -9]
    (got,) = ml("CategoryMapper", 1, np.array(3), default_string="?", **cats)
    assert got.shape == () and got[()] == "a" and got.dtype == object
    assert ml("CategoryMapper", 1, np.array([[7]]), **cats)[0].tolist() == [["_Unused"]]
    with pytest.raises(ModelError, match="cats_int64s has 2 entries"):
        ml("CategoryMapper", 1, words("b"), cats_int64s=(3, 4))
    with pytest.raises(InputError, match="strings or int64"):
        ml("CategoryMapper", 1, X, **cats)
    assert infer("CategoryMapper", 1, TensorType("string", ("n",)), **cats) == [TensorType("int64", ("n",))]


def test_label_encoder_1():
    assert ml("LabelEncoder", 1, words("b", "z"), classes_strings=("a", "b"))[0].tolist() == [1, -1]
    assert ml("LabelEncoder", 1, np.array([0, 5]), classes_strings=("a", "b"))[0].tolist() == ["a", "_Unused"]


KEYS = {"floats": (1.0, NAN, -2.0), "int64s": (1, 5, -2), "strings": ("x", "y", "z")}
VALUES = {"floats": (0.5, 1.5, 2.5), "int64s": (7, 8, 9), "strings": ("p", "q", "r")}
ASKED = {"floats": f32(NAN, 1, 3), "int64s": np.array([5, 1, 3]), "strings": words("y", "x", "?")}
DEFAULTS = {"floats": -0.0, "int64s": -1, "strings": "_Unused"}


@pytest.mark.parametrize(("version", "key", "value"), [*itertools.product((2, 4), KEYS, VALUES)])
def test_label_encoder_between_all_types(version, key, value):
    attrs = {f"keys_{key}": KEYS[key], f"values_{value}": VALUES[value]}
    (got,) = ml("LabelEncoder", version, ASKED[key].reshape(3, 1), **attrs)
    assert got.reshape(-1).tolist() == [VALUES[value][1], VALUES[value][0], DEFAULTS[value]]
    (kind,) = infer("LabelEncoder", version, TensorType("float32", (3, 1)), **attrs)
    assert helpers.type_of_value(got) == kind


def test_label_encoder_repeated_keys():
    attrs = dict(keys_int64s=(1, 1), values_int64s=(5, 6))
    assert ml("LabelEncoder", 2, np.array([1]), **attrs)[0] == 5
    assert ml("LabelEncoder", 4, np.array([1]), **attrs)[0] == 6
    twice = dict(keys_strings=("a", "a"), values_int64s=(5, 6))
    assert ml("LabelEncoder", 4, words("a"), **twice)[0] == 6


def test_label_encoder_4_tensors():
    attrs = dict(keys_tensor=np.array([3, 1], np.int16), values_tensor=np.array([0.5, 0.25]))
    (got,) = ml("LabelEncoder", 4, np.array([1, 3, 9], np.int16), default_tensor=np.array([7.0]), **attrs)
    assert got.dtype == np.float64 and got.tolist() == [0.25, 0.5, 7]
    with pytest.raises(InputError, match="keys_tensor holds int16, so the input must, and it is int64"):
        ml("LabelEncoder", 4, np.array([1]), **attrs)
    with pytest.raises(ModelError, match="default_tensor must hold one value"):
        ml("LabelEncoder", 4, np.array([1], np.int16), default_tensor=np.array([7]), **attrs)


def test_label_encoder_errors():
    with pytest.raises(ModelError, match="keys_floats, keys_int64s"):
        ml("LabelEncoder", 2, np.array([1]), keys_int64s=(1,), keys_floats=(1.0,), values_int64s=(1,))
    with pytest.raises(ModelError, match="keys_int64s has 1 entries and values_int64s 2"):
        ml("LabelEncoder", 2, np.array([1]), keys_int64s=(1,), values_int64s=(1, 2))
    with pytest.raises(ModelError, match="does not know: keys_tensor"):
        ml("LabelEncoder", 2, np.array([1]), keys_tensor=np.array([1]), values_int64s=(1,))
    with pytest.raises(ShapeError, match="needs one of"):
        infer("LabelEncoder", 2, TensorType("int64", (1,)), keys_int64s=(1,))


def test_one_hot():
    assert ml("OneHotEncoder", 1, f32([1.7, -1.2], [NAN, 9]), cats_int64s=(1, -1))[0].tolist() == [
        [[1, 0], [0, 1]],
        [[0, 0], [0, 0]],
    ]
    (got,) = ml("OneHotEncoder", 1, np.array("b", object), cats_strings=("a", "b"))
    assert got.tolist() == [0, 1] and got.dtype == np.float32
    assert infer("OneHotEncoder", 1, TensorType("string", ("n",)), cats_strings=("a", "b")) == [F32("n", 2)]
    with pytest.raises(InputError, match="7 is in no category"):
        ml("OneHotEncoder", 1, np.array([1, 7]), cats_int64s=(1,), zeros=0)
    with pytest.raises(InputError, match="cats_strings is given, and the input is int64"):
        ml("OneHotEncoder", 1, np.array([1]), cats_strings=("a",))
    with pytest.raises(ModelError, match="exactly one of"):
        ml("OneHotEncoder", 1, np.array([1]))


def test_feature_vectorizer():
    a, b = np.array([[1, 2], [3, 4]]), np.array([[5], [6]])
    assert ml("FeatureVectorizer", 1, a, b)[0].tolist() == [[1, 2, 5], [3, 4, 6]]
    (got,) = ml("FeatureVectorizer", 1, a, b, inputdimensions=(3, 1))
    assert got.tolist() == [[1, 2, 0, 5], [3, 4, 0, 6]] and got.dtype == np.float32
    assert ml("FeatureVectorizer", 1, a[0], b[0])[0].tolist() == [[1, 2, 5]]
    assert ml("FeatureVectorizer", 1, np.zeros((0, 2)))[0].shape == (0, 2)
    assert infer("FeatureVectorizer", 1, F32("n", 2), F32("n", 3)) == [F32("n", 5)]
    assert infer("FeatureVectorizer", 1, F32(4), F32(1, None)) == [F32(1, None)]
    with pytest.raises(InputError, match="2, 1 rows"):
        ml("FeatureVectorizer", 1, a, b[:1])
    with pytest.raises(ModelError, match="inputdimensions has 1 entries for 2 inputs"):
        ml("FeatureVectorizer", 1, a, b, inputdimensions=(2,))


# ------------------------------------------------------------------------------------------------------------ maps


def test_cast_map():
    x = {5: 1.5, 1: -2.75, 2: 1e10}
    (got,) = ml("CastMap", 1, x)
    assert got.tolist() == [[-2.75, 1e10, 1.5]] and got.dtype == np.float32
    assert ml("CastMap", 1, x, cast_to="TO_INT64")[0].tolist() == [[-2, 10**10, 1]]
    assert ml("CastMap", 1, x, cast_to="TO_STRING")[0].tolist() == [["-2.750000", "10000000000.000000", "1.500000"]]
    assert ml("CastMap", 1, {1: "2.5"}, map_form="SPARSE", max_map=3)[0].tolist() == [[0, 2.5, 0]]
    assert ml("CastMap", 1, {1: "a"}, map_form="SPARSE", max_map=2, cast_to="TO_STRING")[0].tolist() == [["", "a"]]
    assert infer("CastMap", 1, MapType("int64", F32()), map_form="SPARSE", max_map=3) == [F32(1, 3)]
    with pytest.raises(InputError, match=r"keys of the map must lie in \[0, 3\)"):
        ml("CastMap", 1, x, map_form="SPARSE", max_map=3)
    with pytest.raises(InputError, match="'a' is no number"):
        ml("CastMap", 1, {1: "a"})
    with pytest.raises(InputError, match="a map is needed"):
        ml("CastMap", 1, X)


def test_dict_vectorizer():
    (got,) = ml("DictVectorizer", 1, {"a": 1.5, "z": 3.0, "unknown": 1.0}, string_vocabulary=("z", "b", "a"))
    assert got.tolist() == [[3, 0, 1.5]] and got.dtype == np.float32
    (got,) = ml("DictVectorizer", 1, {1: np.float64(2)}, int64_vocabulary=(3, 1))
    assert got.tolist() == [[0, 2]] and got.dtype == np.float64
    assert ml("DictVectorizer", 1, {1: "s"}, int64_vocabulary=(3, 1))[0].tolist() == [["", "s"]]
    with pytest.raises(InputError, match="another type than string_vocabulary"):
        ml("DictVectorizer", 1, {1: 2.0}, string_vocabulary=("a",))
    assert infer("DictVectorizer", 1, MapType("string", F32()), string_vocabulary=("a",)) == [F32(1, 1)]


def test_zip_map():
    (got,) = ml("ZipMap", 1, f32([1, 2], [3, 4]), classlabels_strings=("a", "b"))
    assert got == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert ml("ZipMap", 1, f32(3, 4), classlabels_int64s=(5, 6)) == [[{5: 3, 6: 4}]]
    assert ml("ZipMap", 1, np.zeros((0, 2), np.float32), classlabels_int64s=(5, 6)) == [[]]
    kind = SequenceType(MapType("int64", F32()))
    assert infer("ZipMap", 1, F32(None, 2), classlabels_int64s=(5, 6)) == [kind]
    assert helpers.type_of_value(ml("ZipMap", 1, f32(3, 4), classlabels_int64s=(5, 6))[0]) == kind
    with pytest.raises(InputError, match="must have 3 columns"):
        ml("ZipMap", 1, X, classlabels_int64s=(1, 2, 3))


# --------------------------------------------------------------------------------------------------- linear models


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


COEFFICIENTS = np.array([[0.3, -0.2], [0.1, 0.4], [0.5, 0.6]], np.float32).astype(np.float64)
FLAT = tuple(COEFFICIENTS.reshape(-1).tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64])
def test_linear_regressor(dtype):
    x = (X * 2).astype(dtype)
    (got,) = ml("LinearRegressor", 1, x, coefficients=FLAT, intercepts=(1.0, 0.0, -1.0), targets=3)
    expected = x.astype(np.float64) @ COEFFICIENTS.T + [1, 0, -1]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got.dtype == np.float32 and infer("LinearRegressor", 1, F32(3, 2), targets=3) == [F32(3, 3)]


TRANSFORMS = {
    "NONE": lambda s: s,
    "SOFTMAX": softmax,
    "LOGISTIC": lambda s: 1 / (1 + np.exp(-s)),
    "SOFTMAX_ZERO": lambda s: np.where(s == 0, 0, np.exp(s)) / np.where(s == 0, 0, np.exp(s)).sum(1, keepdims=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_post_transforms(name):
    x = f32([1, 2, 0], [-3, 0.5, 700])
    identity = tuple(np.eye(3).reshape(-1).tolist())
    (got,) = ml("LinearRegressor", 1, x, coefficients=identity, targets=3, post_transform=name)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(got[:1], TRANSFORMS[name](x[:1].astype(np.float64)), rtol=1e-6)
    assert np.isfinite(got).all()


def test_probit_inverts_the_normal_distribution():
    p = np.array([[0.975, 0.5, 1e-9, 0.0, 1.0, 2.0]])
    identity = tuple(np.eye(6).reshape(-1).tolist())
    (got,) = ml("LinearRegressor", 1, p, coefficients=identity, targets=6, post_transform="PROBIT")
    np.testing.assert_allclose(got, [[1.959964, 0, -5.997807, -np.inf, np.inf, np.nan]], rtol=1e-6)


def test_linear_classifier():
    labels, scores = ml("LinearClassifier", 1, X, coefficients=FLAT, classlabels_strings=("a", "b", "c"), outputs=2)
    assert labels.tolist() == ["c", "b", "a"] and labels.dtype == object  # of equal scores the first wins
    np.testing.assert_allclose(scores, X @ COEFFICIENTS.T, rtol=1e-5)
    attrs = dict(coefficients=FLAT[:2], intercepts=(0.1,), classlabels_ints=(4, 7), outputs=2)
    raw = X @ COEFFICIENTS[0] + 0.1
    labels, scores = ml("LinearClassifier", 1, X, **attrs)
    assert labels.tolist() == [7, 4, 7] and labels.dtype == np.int64
    np.testing.assert_allclose(scores, np.stack([1 - raw, raw], 1), atol=1e-6)
    scores = ml("LinearClassifier", 1, X, post_transform="LOGISTIC", **attrs)[1]
    np.testing.assert_allclose(scores[:, 1], 1 / (1 + np.exp(-raw)), rtol=1e-6)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    kinds = infer("LinearClassifier", 1, F32("n", 2), classlabels_ints=(4, 7), coefficients=FLAT[:2], outputs=2)
    assert kinds == [TensorType("int64", ("n",)), F32("n", 2)]


def test_linear_errors():
    with pytest.raises(InputError, match="4 coefficients do not fit 1 targets and input rows of 2"):
        ml("LinearRegressor", 1, X, coefficients=(1.0, 2.0, 3.0, 4.0))
    with pytest.raises(ModelError, match="3 intercepts for 1 targets"):
        ml("LinearRegressor", 1, X, coefficients=(1.0, 2.0), intercepts=(1.0, 2.0, 3.0))
    with pytest.raises(ModelError, match="post_transform must be one of"):
        ml("LinearRegressor", 1, X, coefficients=(1.0, 2.0), post_transform="TANH")
    with pytest.raises(ModelError, match="3 class labels do not fit 1"):
        ml("LinearClassifier", 1, X, coefficients=(1.0, 2.0), classlabels_ints=(1, 2, 3))
    with pytest.raises(ModelError, match="either as strings or as integers"):
        ml("LinearClassifier", 1, X, coefficients=(1.0, 2.0))
    with pytest.raises(InputError, match=r"must have shape \[N, F\] or \[F\]"):
        ml("LinearRegressor", 1, X[None], coefficients=(1.0, 2.0))


def test_normalizer_and_scaler():
    x = f32([1, -3, 2], [0, 0, 0], [-1, -2, -3])
    run = lambda norm: ml("Normalizer", 1, x, norm=norm)[0]  # noqa: E731
    np.testing.assert_allclose(run("MAX"), [[0.5, -1.5, 1], [0, 0, 0], [1, 2, 3]])
    np.testing.assert_allclose(run("L1"), x / np.array([[6], [1], [6]], np.float32))
    np.testing.assert_allclose(run("L2"), x / np.sqrt(np.array([[14], [1], [14]])), rtol=1e-6)
    assert ml("Normalizer", 1, np.array([3, 4]), norm="L2")[0].tolist() == [f32(0.6)[0], f32(0.8)[0]]
    assert ml("Normalizer", 1, np.zeros((0, 3)))[0].shape == (0, 3)
    with pytest.raises(ModelError, match="norm must be"):
        run("L3")
    assert ml("Scaler", 1, X, offset=(1.0, 0.0), scale=(2.0, 3.0))[0].tolist() == [[0, 6], [-8, 1.5], [-2, 0]]
    assert ml("Scaler", 1, np.array(4), offset=(1.0,), scale=(2.0,))[0] == np.float32(6)
    with pytest.raises(InputError, match="scale has 3 entries for 2 features"):
        ml("Scaler", 1, X, scale=(1.0, 2.0, 3.0))


# ---------------------------------------------------------------------------------------- support vector machines

KERNELS = {
    "LINEAR": lambda x, v: x @ v,
    "POLY": lambda x, v: (0.5 * (x @ v) + 0.25) ** 3,
    "RBF": lambda x, v: np.exp(-0.5 * ((x - v) ** 2).sum()),
    "SIGMOID": lambda x, v: np.tanh(0.5 * (x @ v) + 0.25),
}
PARAMETERS = (0.5, 0.25, 3.0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_svm_regressor(kernel):
    rng = np.random.default_rng(0)
    vectors, weights = rng.normal(size=(4, 2)), rng.normal(size=4)
    attrs = dict(coefficients=tuple(weights.tolist()), support_vectors=tuple(vectors.reshape(-1).tolist()), rho=(0.5,))
    attrs |= dict(n_supports=4, kernel_type=kernel, kernel_params=PARAMETERS)
    (got,) = ml("SVMRegressor", 1, X, **attrs)
    expected = [[sum(w * KERNELS[kernel](x, v) for w, v in zip(weights, vectors)) + 0.5] for x in X.astype(np.float64)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    (sign,) = ml("SVMRegressor", 1, X, one_class=1, **attrs)
    assert np.array_equal(sign, np.where(got > 0, 1, -1))


def pairwise(x, vectors, per_class, weights, rho, kernel):
    """Decision of each pair of classes for one row, vector by vector."""
    owner = np.repeat(np.arange(len(per_class)), per_class)
    out = []
    for k, (i, j) in enumerate(itertools.combinations(range(len(per_class)), 2)):
        total = rho[k]
        for v, vector in enumerate(vectors):
            if owner[v] in (i, j):
                total += weights[j - 1 if owner[v] == i else i][v] * kernel(x, vector)
        out.append(total)
    return out


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_svm_classifier(classes):
    rng = np.random.default_rng(classes)
    per_class = (2, 3, 1, 2)[:classes]
    vectors, rho = rng.normal(size=(sum(per_class), 2)), rng.normal(size=classes * (classes - 1) // 2)
    weights = rng.normal(size=(classes - 1, len(vectors)))
    attrs = dict(vectors_per_class=per_class, classlabels_ints=tuple(range(10, 10 + classes)), outputs=2)
    attrs |= dict(kernel_type="RBF", kernel_params=PARAMETERS, rho=tuple(rho.tolist()))
    attrs |= dict(support_vectors=tuple(vectors.reshape(-1).tolist()), coefficients=tuple(weights.reshape(-1).tolist()))
    labels, scores = ml("SVMClassifier", 1, X, **attrs)
    pairs = list(itertools.combinations(range(classes), 2))
    for x, label, score in zip(X.astype(np.float64), labels, scores):
        decisions = pairwise(x, vectors, per_class, weights, rho, KERNELS["RBF"])
        votes = [0] * classes
        for (i, j), decision in zip(pairs, decisions):
            votes[i if decision > 0 else j] += 1
        assert label == 10 + int(np.argmax(votes))
        np.testing.assert_allclose(score, [-decisions[0], decisions[0]] if classes == 2 else decisions, rtol=1e-5)
    kinds = infer("SVMClassifier", 1, F32(3, 2), **attrs)
    assert kinds == [helpers.type_of_value(labels), helpers.type_of_value(scores)]

    ab = dict(prob_a=tuple([-1.0] * len(pairs)), prob_b=tuple([0.1] * len(pairs)))
    scores = ml("SVMClassifier", 1, X, **attrs, **ab)[1]
    assert scores.shape == (3, classes)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    if classes == 2:  # the coupling stops at 0.005 / classes
        every = [pairwise(x, vectors, per_class, weights, rho, KERNELS["RBF"])[0] for x in X.astype(np.float64)]
        np.testing.assert_allclose(scores[:, 0], 1 / (1 + np.exp(-np.array(every) + 0.1)), atol=0.005)


def test_svm_classifier_without_vectors():
    labels, scores = ml(
        "SVMClassifier", 1, X, coefficients=FLAT, rho=(0.5,), classlabels_strings=("a", "b", "c"), outputs=2
    )
    np.testing.assert_allclose(scores, X @ COEFFICIENTS.T + 0.5, rtol=1e-5)
    assert labels.tolist() == ["c", "b", "a"]


def test_svm_errors():
    good = dict(coefficients=(1.0, -1.0), support_vectors=(1.0, 2.0, 3.0, 4.0), rho=(0.0,), kernel_params=PARAMETERS)
    classify = dict(vectors_per_class=(1, 1), classlabels_ints=(0, 1), outputs=2)
    cases = [
        ("SVMRegressor", dict(n_supports=3), "3 rows do not divide"),
        ("SVMRegressor", dict(n_supports=1), "2 coefficients for 1 support vectors"),
        ("SVMRegressor", dict(n_supports=2, kernel_type="COSINE"), "kernel_type must be"),
        ("SVMRegressor", dict(n_supports=2, kernel_type="RBF", kernel_params=(1.0,)), "kernel_params must hold"),
        ("SVMClassifier", classify | dict(vectors_per_class=(2,)), "vectors_per_class"),
        ("SVMClassifier", classify | dict(rho=()), "rho has 0 entries"),
        ("SVMClassifier", classify | dict(prob_a=(1.0,)), "prob_a and prob_b"),
        ("SVMClassifier", classify | dict(coefficients=(1.0,)), "1 coefficients a row"),
    ]
    for op, attrs, why in cases:
        with pytest.raises(ModelError, match=why):
            ml(op, 1, X, **{**good, **attrs})
    with pytest.raises(InputError, match="the model has 2 features, and the input rows have 3"):
        ml("SVMRegressor", 1, np.zeros((1, 3)), n_supports=2, **good)
