"""Sessions: what may be passed in, what comes out, and their life among threads, processes and interrupts."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import warnings

import numpy as np
import onnx
import pytest

import minifer
from minifer.errors import InputError, MiniferError, ShapeError, UnsupportedError
from minifer.ops import registry
from minifer.runtime.kept import BUDGET
from tests.building import EXECUTORS, file, floats, graph, ints, node

W = floats(4, 4)


@pytest.fixture(params=EXECUTORS)
def executor(request):
    return request.param


def dense() -> bytes:
    return file([node("MatMul", "x w", "m"), node("Relu", "m", "y")], {"x": "float32[n,4]"}, "y", {"w": W})


def expected(x):
    return np.maximum(x.astype(np.float64) @ W, 0)


def counted() -> bytes:
    """A model whose second stage depends on data."""
    nodes = [node("Relu", "x", "r"), node("NonZero", "r", "z"), node("Cast", "z", "c", to=1), node("Neg", "c", "y")]
    return file(nodes, {"x": "float32[n,m]"}, "y z")


# ---------------------------------------------------------------- inputs of any layout


def misaligned(x):
    raw = np.zeros(x.nbytes + 1, np.uint8)
    out = raw[1:].view(x.dtype).reshape(x.shape)
    out[...] = x
    assert not out.flags.aligned
    return out


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def every_second(x):
    wide = np.full((2 * x.shape[0], 2 * x.shape[1]), np.nan, x.dtype)
    wide[::2, ::2] = x
    return wide[::2, ::2]


LAYOUTS = {
    "fortran": np.asfortranarray, "negative strides": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "strided": every_second, "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()), "misaligned": misaligned,
    "read-only": read_only, "list of rows": list, "memory map": lambda x: x.view(np.memmap),
    "zero strides": lambda x: np.broadcast_to(x[:1], x.shape),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout(layout, executor):
    x = floats(3, 4)
    given = LAYOUTS[layout](x)
    before = np.array(given)
    got = minifer.load(dense(), executor=executor).run({"x": given})["y"]
    np.testing.assert_allclose(got, expected(before), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.array(given), before)
    session = minifer.load(counted(), executor=executor)  # reaches later stages as it is
    np.testing.assert_array_equal(session.run({"x": given})["z"], np.nonzero(np.maximum(before, 0)))


def test_a_layout_is_no_new_plan():
    session = minifer.load(dense(), executor="native")
    for change in ("fortran", "byte-swapped", "misaligned", "read-only"):
        session.run({"x": LAYOUTS[change](floats(3, 4))})
    (executor,) = session._executors.values()
    assert len(executor.stages) == 1


# ---------------------------------------------------------------- results


def results_of_all_kinds() -> bytes:
    nodes = [
        node("Identity", "x", "same"), node("Reshape", "x s", "shaped"), node("Identity", "k", "constant"),
        node("Relu", "x", "relu"), node("Identity", "relu", "twin"), node("Squeeze", "relu", "thin"),
        node("SequenceConstruct", "x x k", "seq"), node("SequenceAt", "seq zero", "element"),
        node("Shape", "x", "shape"), node("Split", "x", "left right", num_outputs=2, axis=1), node("NonZero", "x", "where"),
    ]  # fmt: skip
    outputs = "same shaped constant relu twin thin seq element shape left right where x k"
    consts = {"s": ints(4, 1, 2), "k": floats(2, 2), "zero": np.array(0)}
    return file(nodes, {"x": "float32[n,4]"}, outputs, consts)


def arrays_in(value):
    return [a for item in value for a in arrays_in(item)] if isinstance(value, list) else [value]


def test_results_share_no_memory(executor):
    """Not with inputs, weights, each other, or the next run: overwrite them all, and run again."""
    session = minifer.load(results_of_all_kinds(), executor=executor)
    x = floats(2, 4)
    kept = x.copy()
    first = session.run({"x": x})
    copies = pickle.loads(pickle.dumps(first))
    everything = [a for value in first.values() for a in arrays_in(value)]
    for i, array in enumerate(everything):
        assert array.flags.writeable
        for other in (x, *everything[:i]):
            assert not np.shares_memory(array, other)
    for array in everything:
        array[...] = 77
    np.testing.assert_array_equal(x, kept)
    again = session.run({"x": x})
    assert list(again) == list(copies)
    for name, value in again.items():
        for a, b in zip(arrays_in(value), arrays_in(copies[name]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_array_for_two_inputs(executor):
    session = minifer.load(file([node("Sub", "a b", "y"), node("Mul", "a b", "z")], {"a": "float32[n]", "b": "float32[n]"}, "y z"),
                           executor=executor)  # fmt: skip
    x = floats(5)
    got = session.run({"a": x, "b": x})
    assert not got["y"].any()
    np.testing.assert_array_equal(got["z"], x * x)


def test_only_the_outputs_asked_for(executor):
    session = minifer.load(results_of_all_kinds(), executor=executor)
    x = floats(2, 4)
    assert list(session.run({"x": x}, ["relu", "x", "relu"])) == ["relu", "x"]
    assert session.run({"x": x}, []) == {}
    np.testing.assert_array_equal(session(x)["same"], x)
    np.testing.assert_array_equal(session(x=x)["same"], x)


def test_unused_inputs_nodes_and_left_out_outputs(executor):
    nodes = [
        node("TopK", "x k", "v -"),
        node("TopK", "x k", "- i"),
        node("Relu", "x", "unused"),
        node("Add", "v w", "y"),
    ]
    session = minifer.load(
        file(
            nodes, {"x": "float32[n]", "nobody": "int64[m]"}, "y i", {"k": ints(2), "w": floats(2), "idle": floats(3)}
        ),
        executor=executor,
    )
    got = session.run({"x": np.array([1, 5, 3], np.float32), "nobody": ints(1)})
    assert got["i"].tolist() == [1, 2] and np.allclose(got["y"], [5, 3] + floats(2))


# ---------------------------------------------------------------- threads, processes, interrupts


def test_many_threads_share_a_session():
    data, session = counted(), None
    session = minifer.load(data, executor="native", threads=2)
    inputs = [floats(1 + i % 7, 1 + i % 5) for i in range(35)]
    wanted = [minifer.load(data, executor="reference").run({"x": x}) for x in inputs]
    wrong: list[object] = []

    def work(first):
        try:
            for i in [*range(first, 35), *range(first)] * 2:
                got = session.run({"x": inputs[i]})
                wrong.extend(i for name in got if not np.array_equal(got[name], wanted[i][name]))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(5 * k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(t.is_alive() for t in threads)


def test_threads_that_fail_do_not_disturb_the_others():
    session = minifer.load(
        file([node("Gather", "x i", "y")], {"x": "float32[n]", "i": "int64[k]"}, "y"), executor="native"
    )
    outcome: list[bool] = []

    def work(bad):
        for _ in range(50):
            try:
                ok = (
                    session.run({"x": floats(4), "i": ints(1, 9 if bad else 3)})["y"].tolist()
                    == floats(4)[[1, 3]].tolist()
                )
                outcome.append(ok and not bad)
            except InputError:
                outcome.append(bad)

    threads = [threading.Thread(target=work, args=(k % 2 == 0,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcome) == 200 and all(outcome)


def test_sessions_are_pickled(executor):
    session = minifer.load(dense(), executor=executor, threads=1, limits={"max_bytes": 10**6})
    twin = pickle.loads(pickle.dumps(session))
    x = floats(3, 4)
    np.testing.assert_array_equal(twin.run({"x": x})["y"], session.run({"x": x})["y"])
    assert twin.settings.threads == 1 and twin.settings.limits == session.settings.limits
    assert [str(v) for v in twin.inputs] == ["x: float32[n, 4]"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_sessions_live_on_in_a_forked_process(executor):
    """Forks at any moment, while another thread plans and runs: no lock stays held in the child."""
    session = minifer.load(dense(), executor=executor, threads=2)
    session.run({"x": floats(3, 4)})
    done = threading.Event()

    def churn():
        for n in range(10**6):
            session.run({"x": floats(n % 90 + 1, 4)})
            if done.is_set():
                return

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            for i in range(6):
                child = os.fork()
                if not child:
                    signal.alarm(20)  # ends the child if it hangs
                    x = floats(100 + i, 4)
                    os._exit(0 if np.allclose(session.run({"x": x})["y"], expected(x), atol=1e-4) else 1)
                assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_leaves_the_session_usable(executor):
    body = graph([node("Identity", "go", "on"), node("Add", "a a", "b")], {"i": "int64[]", "go": "bool[]", "a": "float32"},
                 "on b", types={"on": "bool[]"})  # fmt: skip
    data = file([node("Loop", "n - x", "y", body=body)], {"x": "float32[k]", "n": "int64[]"}, "y")
    session = minifer.load(data, executor=executor)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.run({"x": floats(3), "n": np.array(2**62)})
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    np.testing.assert_array_equal(session.run({"x": floats(3), "n": np.array(2)})["y"], 4 * floats(3))


def test_a_closed_session(executor):
    with minifer.load(dense(), executor=executor) as session:
        session.run({"x": floats(3, 4)})
    with pytest.raises(MiniferError, match="closed"):
        session.run({"x": floats(3, 4)})
    session.close()
    assert not session.settings.plans.bytes and not session._executors
    assert pickle.loads(pickle.dumps(session)).run({"x": floats(3, 4)})["y"].shape == (3, 4)


# ---------------------------------------------------------------- plans


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the memory of the process from /proc")
@pytest.mark.parametrize("make", [dense, counted])
def test_memory_is_flat_over_thousands_of_shapes(make, executor):
    session = minifer.load(make(), executor=executor, threads=1)
    draw = np.random.default_rng(0)

    def some(count):
        for _ in range(count):
            rows, columns = (int(n) for n in draw.integers(1, 60, 2))
            x = draw.random((rows, 4)) if make is dense else draw.random((rows % 12 + 1, columns % 12 + 1)) > 0.5
            session.run({"x": x.astype(np.float32)})
        gc.collect()
        return resident()

    before = some(700)
    assert some(1300) - before < 16 << 20
    assert session.settings.plans.bytes <= BUDGET


def test_plans_beyond_the_budget_go(monkeypatch, executor):
    monkeypatch.setattr("minifer.runtime.kept.BUDGET", 100_000)
    session = minifer.load(counted(), executor=executor)
    for n in range(1, 80):
        x = floats(n, 2)
        np.testing.assert_array_equal(session.run({"x": x})["z"], np.nonzero(np.maximum(x, 0)))
        assert session.settings.plans.bytes <= 100_000
    (first,) = session._executors.values()
    assert 1 <= len(first.stages) < 20


# ---------------------------------------------------------------- initialisers, saving


def with_default() -> bytes:
    nodes = [node("Mul", "two w", "v"), node("Add", "x v", "y")]
    return file(nodes, {"x": "float32[2]", "w": "float32[2]"}, "y", {"w": floats(2), "two": np.float32(2)})


def test_initialisers_that_may_be_overridden(executor):
    session = minifer.load(with_default(), executor=executor)
    assert [v.name for v in session.inputs] == ["x"] and [v.name for v in session.overridable] == ["w"]
    zero, other = np.zeros(2, np.float32), np.array([5, 6], np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(session.run({"x": zero})["y"], 2 * floats(2))
        np.testing.assert_array_equal(session.run({"x": zero, "w": other})["y"], 2 * other)
    with pytest.raises(InputError, match="'w' has dtype int64"):
        session.run({"x": zero, "w": ints(1, 2)})


def test_any_set_of_initialisers_is_overridden_in_bounded_memory():
    names = [f"w{i}" for i in range(6)]
    types = {"x": "float32[2]", **dict.fromkeys(names, "float32[2]")}
    session = minifer.load(file([node("Sum", " ".join(types), "y")], types, "y", {n: np.ones(2, np.float32) for n in names}),
                           executor="reference")  # fmt: skip
    for mask in range(64):
        given = {n: np.full(2, 3, np.float32) for i, n in enumerate(names) if mask >> i & 1}
        assert session.run({"x": np.zeros(2, np.float32), **given})["y"][0] == 6 + 2 * len(given)
    assert len(session._executors) <= 16


@pytest.mark.parametrize("make", [dense, counted, with_default, results_of_all_kinds])
@pytest.mark.parametrize("external", [False, True])
def test_what_was_saved_is_the_same_model(make, external, tmp_path, executor):
    session = minifer.load(make(), executor=executor)
    path = tmp_path / "saved.onnx"
    session.save(path, external_data=external)
    again = minifer.load(path, executor=executor)
    for a, b in (
        (session.inputs, again.inputs),
        (session.overridable, again.overridable),
        (session.outputs, again.outputs),
    ):
        assert list(map(str, a)) == list(map(str, b))
    feeds = {v.name: floats(2, 4) if v.type.rank == 2 else floats(2) for v in session.inputs}
    first, second = session.run(feeds), again.run(feeds)
    for name, value in first.items():
        for a, b in zip(arrays_in(value), arrays_in(second[name]), strict=True):
            np.testing.assert_array_equal(a, b)
    onnx.load(path)  # other readers take it too
    assert len(again.graph.nodes) <= len(session.model.graph.nodes)


def test_saving_where_nobody_may(tmp_path):
    with pytest.raises(MiniferError, match="cannot be written"):
        minifer.load(dense()).save(tmp_path / "none" / "m.onnx")


# ---------------------------------------------------------------- operators of the user


@pytest.fixture
def own():
    """Registers operators of the domain "own" for one test, and takes the session to a model that calls one."""
    names = []

    def load(name, reference, executor, **options):
        minifer.register(minifer.Op(name, since=1, domain="own", reference=reference, **options))
        names.append(name)
        nodes = [node("Neg", "x", "a"), node(name, "a", "b", "own", 1), node("Abs", "b", "y")]
        return minifer.load(file(nodes, {"x": "float32[n]"}, "y", opsets={"": 21, "own": 1}), executor=executor)

    yield load
    for name in names:
        registry._TABLE.pop(("own", name), None)
        registry._USER.pop(("own", name, 1), None)


def test_an_operator_of_the_user(own, executor):
    x = floats(3)
    for options in ({}, {"infer": lambda call: call.tensor(0)}):
        session = own("Twice", lambda x, *, by=2.0: (x * by).astype(x.dtype), executor, **options)
        np.testing.assert_allclose(session.run({"x": x})["y"], np.abs(2 * x))
    np.testing.assert_allclose(own("Sinh", np.sinh, executor).run({"x": x})["y"], np.abs(np.sinh(x)), rtol=1e-6)


def test_a_type_rule_that_is_wrong_does_no_harm(own, executor):
    session = own("Half", lambda x: x[: len(x) // 2], executor, infer=lambda call: call.tensor(0))
    for n in (6, 2, 6):
        assert session.run({"x": floats(n)})["y"].shape == (n // 2,)


def fail(error):
    def function(x):
        raise error

    return function


def overwrite(x):
    x[...] = 0
    return x


@pytest.mark.parametrize(
    "function, says",
    [
        (fail(RuntimeError("no device")), "RuntimeError: no device"), (fail(ValueError("odd")), "failed: odd"),
        (fail(KeyError("k")), "KeyError"), (fail(AssertionError()), "AssertionError"), (lambda x: 3, "returned a int"),
        (lambda x: object(), "returned a object"), (overwrite, "read-only"), (lambda x, y: x, "has 1 inputs"),
        (lambda x: np.array("2020", "M8[D]"), "no ONNX element type"), (lambda x: (), "asks for 1 outputs"),
        (fail(InputError("seven")), "seven"), (fail(UnsupportedError("later")), "later"),
    ],
)  # fmt: skip
def test_errors_of_the_users_operator_name_the_node(own, function, says, executor):
    x = floats(3)
    with pytest.raises(MiniferError, match=rf"^own::Odd-1 'odd_b'.*{says}") as caught:
        own("Odd", function, executor).run({"x": x})
    assert caught.value.__cause__ is not None or "has 1 inputs" in says or "returned" in says or "asks" in says
    np.testing.assert_array_equal(x, floats(3))


def test_an_error_in_the_users_type_rule(own, executor):
    with pytest.raises(
        ShapeError, match=r"own::Rule-1 'odd_b'|own::Rule-1 'rule_b'\(float32\[3\]\).*ZeroDivisionError"
    ):
        own("Rule", lambda x: x, executor, infer=lambda call: 1 / 0).run({"x": floats(3)})


def test_an_interrupt_in_the_users_operator_passes_through(own, executor):
    with pytest.raises(KeyboardInterrupt):
        own("Stop", fail(KeyboardInterrupt()), executor).run({"x": floats(3)})
