"""Plans that are kept on disk: they give what planning anew gives, and are never used where they do not hold."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import minifer
from minifer.errors import InputError, MiniferError, ModelError
from minifer.ops import registry
from minifer.runtime import stored, storing
from tests.building import file, floats, node

W = floats(64, 64)
X = floats(3, 64)


def dense(weights: np.ndarray = W, **changes) -> bytes:
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("Relu", "a", "y")]
    return file(nodes, {"x": "float32[n,64]"}, "y", {"w": weights, "b": floats(64)}, **changes)


def expected(x: np.ndarray, weights: np.ndarray = W) -> np.ndarray:
    return np.maximum(x @ weights + floats(64), 0)


@pytest.fixture(autouse=True)
def keep(tmp_path, monkeypatch):
    """Keep every plan, in a folder of the test's own."""
    monkeypatch.setenv("MINIFER_PLAN_CACHE", str(tmp_path / "plans"))
    monkeypatch.setattr(storing, "WORTH", -1.0)
    monkeypatch.setattr(stored, "SOON", -1)
    monkeypatch.setattr(stored, "COARSE", -1)
    monkeypatch.setattr(registry, "_USER", type(registry._USER)())  # other tests register operators of their own


@pytest.fixture
def path(tmp_path):
    (tmp_path / "model.onnx").write_bytes(dense())
    return tmp_path / "model.onnx"


def plans() -> list[str]:
    folder = stored.folder()
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, n) for n in names if n.endswith(".plan")]


def constants() -> list[str]:
    folder = stored.folder()
    return [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith(".constants")]


def run(source, x: np.ndarray = X, **options) -> tuple[np.ndarray, bool]:
    """(result, whether it came from disk)"""
    with minifer.load(source, **options) as session:
        return session.run({"x": x})["y"], session._stored is not None


def settled(source, weights: np.ndarray = W) -> None:
    """What was met is not used, and the next run finds its own."""
    for from_disk in (False, True):
        result, found = run(source)
        assert found == from_disk
        np.testing.assert_allclose(result, expected(X, weights), rtol=1e-4, atol=1e-4)


def test_a_process_may_end_while_workers_spin(path):
    """The code that they are in must not go before them."""
    wide = floats(1024, 1024)
    path.write_bytes(file([node("MatMul", "x w", "y")], {"x": "float32[512,1024]"}, "y", {"w": wide}))
    assert [run(path, floats(512, 1024), threads=2)[1] for _ in range(2)] == [False, True]
    program = (
        "import sys, minifer, numpy as np\n"
        "session = minifer.load(sys.argv[1], threads=2)\n"
        "for _ in range(3): session.run({'x': np.ones((512, 1024), 'f')})\n"
        "assert session._stored is not None"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- what is found


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_second_load_runs_from_disk(path, as_bytes, threads):
    source = path.read_bytes() if as_bytes else path
    first, found = run(source, threads=threads)
    assert not found and len(plans()) == 1
    again, found = run(source, threads=threads)
    assert found and np.array_equal(first, again)
    np.testing.assert_allclose(first, expected(X), rtol=1e-4, atol=1e-4)


FRESH = """
import sys
import numpy as np
import minifer
session = minifer.load(sys.argv[1], threads=2)
x = np.load(sys.argv[2])
np.save(sys.argv[3], session.run({"x": x})["y"])
parts = ("minifer.ops", "minifer.passes", "minifer.plan", "minifer.onnx_io", "minifer.ir", "minifer.kernels.simd",
         "minifer.codegen.store", "numba", "dataclasses", "hashlib")
print([m for m in parts if m in sys.modules])
"""


def test_a_fresh_process_imports_little(path, tmp_path):
    first, _ = run(path, threads=2)
    np.save(tmp_path / "x.npy", X)
    command = [sys.executable, "-c", FRESH, str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), first)


def test_another_shape_is_planned_and_kept_too(path):
    run(path)
    wide = floats(7, 64)
    with minifer.load(path) as session:
        np.testing.assert_allclose(session.run({"x": wide})["y"], expected(wide), rtol=1e-4, atol=1e-4)
        assert session._stored is None
        session.run({"x": X})
    size = sum(map(os.path.getsize, constants()))
    assert size < 2 * W.nbytes, "equal constants were written twice"
    for x in (X, wide):
        assert run(path, x)[1]


def test_a_few_plans_of_each_model(path):
    for n in range(1, 4):
        with minifer.load(path) as session:
            for rows in range(8 * n, 8 * n + 8):
                session.run({"x": floats(rows, 64)})
    with open(plans()[0], "rb") as opened:
        found = stored.read_plan(os.path.basename(plans()[0])[:-5], opened)
    assert found is not None and len(found[0]["stages"]) == storing.MOST_PLANS
    assert run(path, floats(27, 64))[1]


def test_any_layout_of_the_input(path):
    first, _ = run(path)
    for x in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X.tolist()[0:0] or X.view(np.ndarray)):
        result, found = run(path, x)
        assert found and np.array_equal(result, first)


def test_many_loads_map_the_code_once(path):
    run(path)
    run(path)
    before = len(stored._code)
    for _ in range(5):
        assert run(path)[1]
    assert len(stored._code) == before


def test_results_belong_to_the_caller(path):
    run(path)
    with minifer.load(path) as session:
        one = session.run({"x": X})["y"]
        kept = one.copy()
        two = session(X)["y"]
        two[...] = 7
        assert np.array_equal(one, kept) and np.array_equal(session.run({"x": X}, ["y"])["y"], kept)


def test_outputs_of_every_kind(tmp_path):
    """The same value twice, a view of a value, one within the workspace, a constant, a scalar of a known value."""
    nodes = [
        node("Relu", "x", "a"), node("Reshape", "a shape", "b"), node("Identity", "a", "c"),
        node("Concat", "x a", "d", axis=0), node("Split", "d", "e f", axis=0, num_outputs=2), node("Neg", "d", "g"),
        node("Identity", "w", "h"), node("Add", "n one", "k"),
    ]  # fmt: skip
    consts = {"shape": np.array([64, 3]), "w": W, "one": np.array(1)}
    outputs = "a b c d e f g h k"
    data = file(nodes, {"x": "float32[3,64]", "n": "int64[]"}, outputs, consts)
    feeds = [{"x": X, "n": np.array(n)} for n in (5, 6)]
    wanted = [minifer.load(data, limits={"max_seconds": 100}).run(f) for f in feeds]
    for f in feeds:
        minifer.load(data).run(f)
    session = minifer.load(data)
    for f, want in zip(feeds, wanted):
        got = session.run(f)
        assert session._stored is not None and list(got) == outputs.split()
        for name in got:
            assert np.array_equal(got[name], want[name]) and got[name].dtype == want[name].dtype, name
            assert got[name].shape == want[name].shape and got[name].flags.writeable
        arrays = list(got.values())
        assert not any(np.shares_memory(p, q) for i, p in enumerate(arrays) for q in arrays[:i])
    third = session.run({"x": X, "n": 7})  # a value that no plan is for
    assert third["k"] == 8 and session._stored is None


# ---------------------------------------------------------------- the same face


BAD_FEEDS = {
    "missing": {},
    "unknown": {"x": X, "z": X},
    "dtype": {"x": X.astype(np.float64)},
    "rank": {"x": X[0]},
    "size": {"x": X[:, :5]},
    "ragged": {"x": [[1.0], [1.0, 2.0]]},
    "object": {"x": np.array([object()])},
    "none": {"x": None},
    "no dict": [X],
}


def told(session, *arguments) -> str:
    with pytest.raises(MiniferError) as caught:
        session.run(*arguments)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("case", BAD_FEEDS)
def test_errors_are_the_same(path, case):
    run(path)
    plain = minifer.load(path, limits={"max_seconds": 1000.0})
    session = minifer.load(path)
    assert session._stored is not None and plain._stored is None
    assert told(session, BAD_FEEDS[case]) == told(plain, BAD_FEEDS[case])
    assert run(path)[1]


@pytest.mark.parametrize("outputs", [["z"], "y", ["y", ["y"]]])
def test_errors_about_outputs_are_the_same(path, outputs):
    run(path)
    plain = minifer.load(path, limits={"max_seconds": 1000.0})
    assert told(minifer.load(path), {"x": X}, outputs) == told(plain, {"x": X}, outputs)


def test_data_that_a_kernel_refuses(tmp_path):
    data = file([node("Gather", "w i", "y")], {"i": "int64[n]"}, "y", {"w": W})
    good, bad = {"i": np.array([1, 2])}, {"i": np.array([1, 64])}
    first = minifer.load(data)
    first.run(good)
    session = minifer.load(data)
    assert np.array_equal(session.run(good)["y"], W[1:3]) and session._stored is not None
    assert told(session, bad) == told(first, bad)
    assert "gather_y" in told(session, bad) and np.array_equal(session.run(good)["y"], W[1:3])


def test_inputs_outputs_and_names(path):
    first = minifer.load(path)
    first.run({"x": X})
    session = minifer.load(path)
    for name in ("inputs", "outputs", "overridable", "metadata", "name"):
        assert getattr(session, name) == getattr(first, name)
    assert repr(session) == repr(first) and session._stored is not None
    assert [str(v) for v in session.inputs] == ["x: float32[n, 64]"]
    with pytest.raises(AttributeError, match="no_such"):
        _ = session.no_such


def test_what_needs_the_graph_reads_it(path, tmp_path):
    first, _ = run(path)
    assert len(minifer.load(path).graph.nodes) == len(minifer.load(path, limits={"max_seconds": 9}).graph.nodes)
    assert minifer.load(path).plan({"x": X}).native_steps() > 0
    assert len(minifer.load(path).profile({"x": X}, runs=2).steps) > 0
    minifer.load(path).save(tmp_path / "saved.onnx")
    assert np.array_equal(run(tmp_path / "saved.onnx")[0], first)
    copy = pickle.loads(pickle.dumps(minifer.load(path)))
    assert np.array_equal(copy.run({"x": X})["y"], first)


def test_a_closed_session_stays_closed(path):
    run(path)
    session = minifer.load(path)
    session.close()
    session.close()
    for feeds in ({"x": X}, {}):
        with pytest.raises(MiniferError, match="closed"):
            session.run(feeds)


def test_an_overridden_constant(tmp_path):
    data = file([node("Add", "x b", "y")], {"x": "float32[4]", "b": "float32[4]"}, "y", {"b": np.ones(4, np.float32)})
    x = np.arange(4, dtype=np.float32)
    for _ in range(2):
        session = minifer.load(data)
        assert np.array_equal(session.run({"x": x})["y"], x + 1)
        assert np.array_equal(session.run({"x": x, "b": x})["y"], x + x)
        assert np.array_equal(session.run({"x": x})["y"], x + 1)


def test_many_threads_at_once(path):
    want, _ = run(path, threads=2)
    session = minifer.load(path, threads=2)
    wrong: list[int] = []

    def work():
        for _ in range(50):
            if not np.array_equal(session.run({"x": X})["y"], want):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and session._stored is not None


# ---------------------------------------------------------------- the model changes


def test_another_file_of_the_same_size(path):
    run(path)
    other = dense(W + 1)
    assert len(other) == path.stat().st_size
    path.with_suffix(".new").write_bytes(other)
    os.replace(path.with_suffix(".new"), path)
    settled(path, W + 1)


def test_written_to_in_place_with_its_old_time(path):
    run(path)
    before = path.stat()
    with open(path, "r+b") as opened:
        opened.write(dense(W + 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    settled(path, W + 1)


def test_other_bytes(path):
    run(dense())
    settled(dense(W + 1), W + 1)
    assert run(dense())[1]


def test_a_change_between_load_and_first_run(path):
    """What was planned is not kept: it may be of either content."""
    session = minifer.load(path)
    time.sleep(0.02)  # times of files have a grain
    with open(path, "r+b") as opened:
        opened.write(opened.read()[:1])
        os.utime(path)
    session.run({"x": X})
    assert plans() == []


def test_a_change_before_the_graph_is_needed(path):
    run(path)
    session = minifer.load(path)
    session.run({"x": X})
    time.sleep(0.02)
    with open(path, "r+b") as opened:
        opened.write(dense(W + 1))
    with pytest.raises(ModelError, match="changed"):
        session.run({"x": floats(5, 64)})


def test_a_replaced_file_keeps_its_session(path):
    """The session goes on with the model that it was made of."""
    run(path)
    session = minifer.load(path)
    path.unlink()
    path.write_bytes(dense(W + 1))
    x = floats(5, 64)
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(path, x)[0], expected(x, W + 1), rtol=1e-4, atol=1e-4)


def test_weights_beside_the_model(path, tmp_path):
    folder = tmp_path / "big"
    folder.mkdir()
    source = folder / "model.onnx"
    minifer.load(path).save(source, external_data=True)
    (weights,) = [p for p in folder.iterdir() if p != source]
    run(source)
    assert run(source)[1]
    data = bytearray(weights.read_bytes())
    before = run(source)[0]
    data[:4096] = bytes(4096)
    weights.write_bytes(data)
    after, found = run(source)
    assert not found and not np.array_equal(before, after)
    assert run(source)[1] and np.array_equal(run(source)[0], after)
    weights.unlink()
    with pytest.raises(ModelError):
        run(source)


def test_a_file_that_has_only_just_changed_is_not_trusted(path, monkeypatch):
    monkeypatch.setattr(stored, "SOON", 10**12)
    monkeypatch.setattr(stored, "COARSE", 10**12)
    run(path)
    assert plans() == []
    monkeypatch.setattr(stored, "SOON", -1)
    monkeypatch.setattr(stored, "COARSE", -1)
    run(path)
    monkeypatch.setattr(stored, "SOON", 10**12)
    monkeypatch.setattr(stored, "COARSE", 10**12)
    assert not run(path)[1]


# ---------------------------------------------------------------- the entry is damaged


def cut(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def empty(path: str) -> None:
    os.truncate(path, 0)


def flip(path: str, at: float = 0.5) -> None:
    with open(path, "r+b") as opened:
        opened.seek(int(os.path.getsize(path) * at))
        byte = opened.read(1)
        opened.seek(-1, 1)
        opened.write(bytes([byte[0] ^ 1]))


def lengthen(path: str) -> None:
    with open(path, "ab") as opened:
        opened.write(b"\0")


DAMAGE = [cut, empty, flip, lengthen, os.unlink, *(lambda p, at=at: flip(p, at) for at in (0, 0.0002, 0.999))]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("what", [plans, constants])
def test_damaged_files_are_written_anew(path, damage, what):
    run(path)
    time.sleep(0.02)
    (victim,) = what()
    damage(victim)
    settled(path)


def test_constants_altered_behind_their_time(path, monkeypatch):
    """As a crash of the machine may leave them: seen at the first use after a new start."""
    run(path)
    (victim,) = constants()
    before = os.stat(victim)
    flip(victim, 0.1)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    monkeypatch.setattr(stored, "boot", lambda: "another")
    settled(path)


def test_a_new_start_of_the_machine_is_noted(path, monkeypatch):
    run(path)
    looks = []
    check = stored.Stored.check_content
    monkeypatch.setattr(stored.Stored, "check_content", lambda self: (looks.append(1), check(self)))
    monkeypatch.setattr(stored, "boot", lambda: "another")
    assert run(path)[1] and run(path)[1]
    assert len(looks) == 1


def test_the_entry_of_another_model(path, tmp_path):
    run(path)
    other = tmp_path / "other.onnx"
    other.write_bytes(dense(W + 1))
    run(other)
    one, two = plans()
    with open(one, "rb") as source, open(two, "wb") as target:
        target.write(source.read())
    found = [run(path)[1], run(other)[1]]
    assert sorted(found) == [False, True]
    for source, weights in ((path, W), (other, W + 1)):
        result, from_disk = run(source)
        np.testing.assert_allclose(result, expected(X, weights), rtol=1e-4, atol=1e-4)
        assert from_disk


def test_a_sealed_entry_of_nonsense(path):
    run(path)
    key = os.path.basename(plans()[0])[:-5]
    for description in ({}, {"key": key}, {"key": key, "files": 3}, {"key": key, "files": [], "segments": [("x", 1)]}):
        with open(plans()[0], "wb") as target:
            target.write(stored.seal(description, b"\xc3"))
        settled(path)


def test_a_folder_that_cannot_be_written(path, monkeypatch, tmp_path):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("MINIFER_PLAN_CACHE", str(tmp_path / "occupied" / "plans"))
    for _ in range(2):
        np.testing.assert_allclose(run(path)[0], expected(X), rtol=1e-4, atol=1e-4)


def test_two_that_write_at_once(path):
    sessions = [minifer.load(path) for _ in range(6)]
    start = threading.Barrier(len(sessions))

    def work(session, rows):
        start.wait()
        session.run({"x": floats(rows, 64)})

    workers = [threading.Thread(target=work, args=(s, 3 + i % 2)) for i, s in enumerate(sessions)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    result, found = run(path, floats(3, 64))
    np.testing.assert_allclose(result, expected(floats(3, 64)), rtol=1e-4, atol=1e-4)
    assert found or run(path, floats(4, 64))[1]
    assert not [n for n in os.listdir(stored.folder()) if not n.endswith((".plan", ".constants"))]


# ---------------------------------------------------------------- what decides a plan


def test_options_have_plans_of_their_own(path):
    for options in ({"threads": 1}, {"threads": 2}, {"threads": 1, "optimize": False}):
        assert not run(path, **options)[1]
        assert run(path, **options)[1]
    for options in ({"limits": {"max_seconds": 100.0}}, {"executor": "reference"}):
        assert not run(path, **options)[1] and not run(path, **options)[1]
    with pytest.raises(InputError):
        run(path, threads=0)


@pytest.mark.parametrize("fact", ["_processor", "_sources", "__version__"])
def test_facts_have_plans_of_their_own(path, monkeypatch, fact):
    stored._facts.cache_clear()
    assert not run(path)[1] and run(path)[1]
    with monkeypatch.context() as changed:
        changed.setattr(stored, fact, "other" if fact == "__version__" else lambda: ("other",))
        stored._facts.cache_clear()
        assert not run(path)[1] and run(path)[1]
    stored._facts.cache_clear()


def test_the_stamp_of_the_sources_sees_every_package():
    """A changed pass, operator, kernel or planner makes another key."""
    root = os.path.dirname(minifer.__file__)
    seen: list[str] = []
    real = os.scandir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", lambda place: (seen.append(os.path.normpath(place)), real(place))[1])
        stored._sources()
    outer = {"cli", "tools", "pipelines", "embed", "__pycache__"}
    wanted = {os.path.join(root, d) for d in os.listdir(root) if os.path.isdir(os.path.join(root, d))}
    assert {os.path.normpath(p) for p in wanted if os.path.basename(p) not in outer} <= set(seen)
    assert root in seen and os.path.dirname(os.path.abspath(minifer.kernels.__file__)) in map(os.path.realpath, seen)


@pytest.mark.parametrize("name, value", [("MINIFER_PLAN_CACHE", "0"), ("MINIFER_DEBUG", "1"), ("MINIFER_STOP", "3")])
def test_switched_off(path, monkeypatch, name, value, capfd):
    run(path)
    before = plans()
    with monkeypatch.context() as changed:
        changed.setenv(name, value)
        assert not run(path)[1] and not run(path, floats(9, 64))[1]
    assert plans() == before and run(path)[1]


def test_a_users_own_operators(path, monkeypatch):
    run(path)
    monkeypatch.setitem(registry._USER, ("", "Relu", 14), registry.find("", "Relu", 14))
    assert not run(path)[1]


def test_what_is_quick_to_plan_is_not_kept(path, monkeypatch):
    monkeypatch.setattr(storing, "WORTH", 100.0)
    run(path)
    assert plans() == []


def test_steps_in_python_are_not_kept(tmp_path):
    nodes = [node("NonZero", "x", "z"), node("Cast", "z", "y", to=1)]
    data = file(nodes, {"x": "float32[3,64]"}, "y")
    first, _ = run(data)
    assert plans() == [] and np.array_equal(run(data)[0], first)


# ---------------------------------------------------------------- how much is kept


def test_the_least_recently_used_go_first(tmp_path):
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"m{i}.onnx")
        paths[-1].write_bytes(dense(W + i))
        run(paths[-1])
        newest = max(plans(), key=os.path.getmtime)
        os.utime(newest, (1_000_000 + i, 1_000_000 + i))
    run(paths[0])  # used again: it is the newest now
    entry = sum(map(os.path.getsize, (*plans(), *constants()))) // 4
    storing.prune(entry * 2 + 100)
    assert [run(p)[1] for p in (paths[0], paths[3], paths[2], paths[1])] == [True, True, False, False]


def test_a_large_model_goes_before_small_ones(tmp_path):
    sizes = {"small": (64, 1000), "large": (8192, 500), "new": (64, 0)}
    for name, (width, age) in sizes.items():
        weights = floats(64, width)
        (tmp_path / name).write_bytes(file([node("MatMul", "x w", "y")], {"x": "float32[n,64]"}, "y", {"w": weights}))
        run(tmp_path / name)
        newest = max(plans(), key=os.path.getmtime)
        os.utime(newest, (time.time() - age,) * 2)
    storing.prune(sum(map(os.path.getsize, (*plans(), *constants()))) - 1)
    assert {name: run(tmp_path / name)[1] for name in sizes} == {"small": True, "large": False, "new": True}


def test_a_disk_that_is_nearly_full(path, monkeypatch):
    monkeypatch.setattr(storing, "SHARE", 1 << 60)
    run(path)
    assert plans() == []


def test_abandoned_files_go(path):
    run(path)
    for name in ("a.plan.12.34", "b.1.2.constants", f"{os.path.basename(plans()[0])[:-5]}.9.9.constants"):
        with open(os.path.join(stored.folder(), name), "wb"):
            pass
        os.utime(os.path.join(stored.folder(), name), (1, 1))
    storing.prune()
    assert len(os.listdir(stored.folder())) == 2 and run(path)[1]


def test_an_entry_deleted_in_use(path):
    run(path)
    session = minifer.load(path)
    for victim in (*plans(), *constants()):
        os.unlink(victim)
    np.testing.assert_allclose(session.run({"x": X})["y"], expected(X), rtol=1e-4, atol=1e-4)
    assert session._stored is not None
