"""The bindings made of one description: the C header, the Rust module and the ES module drive a model made by hand."""

import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from minifer.embed import header, javascript, rust
from minifer.embed.abi import STATUS_TEXT, Interface, Status, Tensor
from minifer.embed.elements import ELEMENTS
from minifer.errors import InputError, UnsupportedError
from tests.embed import toy

both = pytest.mark.parametrize("separate", [False, True], ids=["inside", "separate"])


def tool(name: str) -> str:
    """The path of a program, or skip."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command, folder: Path, **options) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "warning" not in done.stderr
    return done.stdout


def all_types() -> Interface:
    """A model with an input and an output of every element type, and names that some language reserves."""
    names = ["constructor", "to_string", "sys", "model", "core", "std", "alloc", "data", "self_", "room", "api", "box_"]
    inputs = [Tensor(f"in:{d}", f"{n}_", d, (2, 3)) for d, n in zip(ELEMENTS, [*names, "status"])]
    outputs = [Tensor(f"out:{d}", f"{d}_{i}", d, ()) for i, d in enumerate(ELEMENTS)]
    return Interface("all_types", tuple(inputs), tuple(outputs), 0, 0, False)


def js(interface: Interface, relaxed: bool = True) -> str:
    name = interface.name
    return javascript.module(
        interface,
        wasm_file=f"{name}.wasm",
        relaxed_file=f"{name}.fast.wasm" if relaxed else None,
        weights_file=f"{name}.weights" if interface.separate else None,
    )


def comment_example(text: str, start: str) -> str:
    """The example in the comment at a file's head: the lines after `start` and at least four blanks."""
    found = re.findall(rf"^{re.escape(start)}(?:    (.*))?$", text.split("\n\n#")[0].split("\n\npub")[0], re.M)
    return "\n".join(found).strip() + "\n"


# ---------------------------------------------------------------- texts


@both
def test_text_is_the_same_each_time_and_says_who_made_it(separate):
    for make in (header.header, rust.module, js, javascript.types):
        text = make(toy.interface(separate))
        assert text == make(toy.interface(separate))
        assert "Made by minifer from the model toy" in text.splitlines()[0]
        assert text.endswith("}\n") or text.endswith(";\n") or text.endswith("_H */\n")
        assert text.isascii()


def test_texts_cannot_leave_their_places():
    """A name that ends comments and strings changes nothing but text."""
    text = header.header(toy.interface())
    assert text.count("*/") == text.count("/*")
    assert r'"Image:0 */ \"\u00e9\\"' in js(toy.interface())
    assert r'"Image:0 */ \u{22}\u{e9}\u{5c}"' in rust.module(toy.interface())


def test_refuses_what_has_no_type():
    text = Interface("words", (Tensor("word", "word", "string", (1,)),), (), 0, 0, False)
    for make in (header.header, rust.module, js, javascript.types):
        with pytest.raises(UnsupportedError, match="'word' holds string"):
            make(text)


def test_weights_file_where_and_only_where_separate():
    for separate, file in ((True, None), (False, "toy.weights")):
        with pytest.raises(InputError, match="weights"):
            javascript.module(toy.interface(separate), wasm_file="toy.wasm", relaxed_file=None, weights_file=file)


# ---------------------------------------------------------------- C


C_FLAGS = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-O1")


def c_object(folder: Path, separate: bool) -> Path:
    """The model's object file, its header beside it."""
    (folder / "toy.h").write_text(header.header(toy.interface(separate)))
    (folder / "toy.c").write_text(toy.c_code(separate))
    run(tool("gcc"), "-std=c99", *C_FLAGS, "-c", "toy.c", folder=folder)
    return folder / "toy.o"


C_MAIN = r"""
#include "toy.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    const float image[TOY_INPUT_IMAGE_SIZE] = {1, 2, 3, -4, 5, -6};
    int64_t rows[TOY_INPUT_WEIGHTS_SIZE] = {1, 0};
    float probs[TOY_OUTPUT_PROBS_SIZE];
    uint8_t above[TOY_OUTPUT_IMAGE_SIZE];
    char *room = (char *)malloc(TOY_WORKSPACE_BYTES + MINIFER_ALIGNMENT);
    char *workspace = (char *)minifer_aligned(room);
    const float values[] = {1, 10, 100};
    static char held[12 + MINIFER_ALIGNMENT];
    void *weights = memcpy(minifer_aligned(held), values, sizeof values);
    int32_t status = toy_call(image, rows, probs, above, workspace WEIGHTS(weights));
    (void)weights;
    printf("%d %g %g %d %d\n", status, probs[0], probs[1], above[0], above[1]);
    rows[0] = 2;
    puts(toy_status_text(toy_call(image, rows, probs, above, workspace WEIGHTS(weights))));
    puts(toy_status_text(toy_call(image, rows, probs, above, workspace + 4 WEIGHTS(weights))));
    puts(toy_status_text(toy_call(image, rows, probs, above, NULL WEIGHTS(weights))));
    puts(toy_status_text(77));
    printf("%d %d %d\n", (int)TOY_WEIGHTS_BYTES, TOY_INPUT_IMAGE_RANK, TOY_INPUT_IMAGE_DIM_1);
    free(room);
    return 0;
}
"""


@both
@pytest.mark.parametrize("compiler", ["gcc -std=c99", "g++ -std=c++11 -x c++"])
def test_c(tmp_path, separate, compiler):
    name, *flags = compiler.split()
    tool(name)
    c_object(tmp_path, separate)
    (tmp_path / "main.c").write_text(f"#define WEIGHTS(w) {', w' if separate else ''}\n{C_MAIN}")
    run(name, *flags, *C_FLAGS, "-c", "main.c", folder=tmp_path)
    run(name, "main.o", "toy.o", "-o", "main", folder=tmp_path)
    first, refused, misaligned, missing, unknown, constants = run("./main", folder=tmp_path).splitlines()
    assert first == "0 -554 321 0 1"
    assert refused == STATUS_TEXT[Status.REFUSED]
    assert misaligned == missing == STATUS_TEXT[Status.WORKSPACE]
    assert "does not know" in unknown
    assert constants == f"{12 if separate else 0} 2 3"


@both
def test_c_example_of_the_header_runs(tmp_path, separate):
    c_object(tmp_path, separate)
    (tmp_path / "main.c").write_text(comment_example((tmp_path / "toy.h").read_text(), " *"))
    (tmp_path / "toy.weights").write_bytes(toy.WEIGHTS_FILE)
    run("gcc", "-std=c99", *C_FLAGS, "main.c", "toy.o", "-o", "main", folder=tmp_path)
    assert run("./main", "toy.weights", folder=tmp_path) == "no error\n"


def test_c_types(tmp_path):
    description = all_types()
    lines = ['#include "all_types.h"', '#include "all_types.h"', '#include "toy.h"']
    for tensor in description.inputs:
        size = tensor.bytes // tensor.size
        lines.append(f"typedef char {tensor.identifier}_fits[sizeof({ELEMENTS[tensor.dtype].c}) == {size} ? 1 : -1];")
    (tmp_path / "all_types.h").write_text(header.header(description))
    (tmp_path / "toy.h").write_text(header.header(toy.interface(True)))
    (tmp_path / "all.c").write_text("\n".join(lines) + "\n")
    for compiler, *flags in (("gcc", "-std=c99"), ("g++", "-std=c++11", "-x", "c++")):
        run(tool(compiler), *flags, *C_FLAGS, "-fsyntax-only", "all.c", folder=tmp_path)


def test_c_without_inputs(tmp_path):
    constant = Interface("nothing", (), (Tensor("one", "one", "float32", ()),), 64, 4, False)
    (tmp_path / "nothing.c").write_text(header.header(constant))
    run(tool("gcc"), "-std=c99", *C_FLAGS, "-fsyntax-only", "nothing.c", folder=tmp_path)


# ---------------------------------------------------------------- Rust


def rust_module(folder: Path, separate: bool) -> None:
    """toy.rs, and libtoy.a with the model."""
    tool("rustc")
    c_object(folder, separate)
    run(tool("ar"), "rcs", "libtoy.a", "toy.o", folder=folder)
    (folder / "toy.rs").write_text(rust.module(toy.interface(separate)))


def rust_program(folder: Path, source: str, *flags: str) -> str:
    """The output of a Rust program beside toy.rs; warnings are errors."""
    (folder / "main.rs").write_text(source)
    run("rustc", "--edition", "2021", "-L", ".", "-l", "static=toy", *flags, "main.rs", folder=folder)
    return run("./main", folder=folder)


RUST_MAIN = r"""
#![deny(warnings)]
mod toy;
use toy::{Error, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = [1.0, 2.0, 3.0, -4.0, 5.0, -6.0];
    let (mut probs, mut above) = ([0.0; toy::OUTPUT_PROBS_SIZE], [false; 2]);
    WEIGHTS
    let mut model = NEW;
    model.run(&image, &[1, 0], &mut probs, &mut above)?;
    println!("{probs:?} {above:?}");
    assert_eq!(model.run(&image, &[0, -1], &mut probs, &mut above), Err(Error::Refused));
    println!("{}", Error::Refused);
    println!("{}", model.run(&image[1..], &[1, 0], &mut probs, &mut above).unwrap_err());
    println!("{}", model.run(&image, &[1, 0], &mut probs, &mut above[..1]).unwrap_err());
    println!("{:?} {:?} {:?}", toy::INPUTS[0].name, toy::INPUTS[1].shape, toy::OUTPUTS.map(|t| t.bytes));
    std::thread::spawn(move || model.run(&image, &[1, 0], &mut [0.0; 2], &mut [false; 2])).join().unwrap()?;
    Ok(())
}
"""

RUST_WEIGHTS = r"""
    let bytes: Vec<u8> = [1f32, 10.0, 100.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let weights: &'static toy::Weights = Box::leak(Box::new(toy::Weights::copy(&bytes)?));
    assert_eq!(weights.as_ptr().align_offset(64), 0);
    assert_eq!(&weights[..], &bytes);
    assert!(matches!(toy::Weights::copy(&bytes[1..]), Err(Error::Length { found: 11, .. })));
    let moved = [&[0u8; 1], &weights[..], &[0; 63]].concat();
    let start = moved.as_ptr().align_offset(64) + 1;
    assert!(start + 12 > moved.len() || matches!(Model::new(&moved[start..start + 12]), Err(Error::Weights)));
"""


@both
def test_rust(tmp_path, separate):
    rust_module(tmp_path, separate)
    new = "Model::new(weights)?" if separate else "Model::new()"
    source = RUST_MAIN.replace("WEIGHTS", RUST_WEIGHTS if separate else "").replace("NEW", new)
    lines = rust_program(tmp_path, source).splitlines()
    assert lines == [
        "[-554.0, 321.0] [false, true]",
        STATUS_TEXT[Status.REFUSED],
        "input image must have 6 elements, not 5",
        "output image must have 2 elements, not 1",
        r'"Image:0 */ \"é\\" [2] [8, 2]',
    ]


@both
def test_rust_example_of_the_module_runs(tmp_path, separate):
    rust_module(tmp_path, separate)
    (tmp_path / "toy.weights").write_bytes(toy.WEIGHTS_FILE)
    body = comment_example((tmp_path / "toy.rs").read_text(), "//")
    start = "#![deny(warnings)]\nmod toy;\nfn main() -> Result<(), Box<dyn std::error::Error>>"
    assert "model.run" in body
    rust_program(tmp_path, f"{start} {{\n{body}Ok(())\n}}\n")


@both
@pytest.mark.parametrize("edition", ["2021", "2024"])
def test_rust_without_a_heap_or_included(tmp_path, separate, edition):
    """As a module and included, in a library without std, with an allocator and without one; nothing is warned of."""
    (tmp_path / "toy.rs").write_text(rust.module(toy.interface(separate)))
    (tmp_path / "all_types.rs").write_text(rust.module(all_types()))
    modules = 'pub mod toy;\nmod all_types;\nmod again {\n    include!("toy.rs");\n}\n'
    (tmp_path / "lib.rs").write_text(f"#![no_std]\n#![deny(warnings)]\n{modules}")
    for flags in ((), ("--cfg", "minifer_no_alloc")):
        run(tool("rustc"), "--edition", edition, "--crate-type", "lib", "--emit", "metadata", *flags, "lib.rs",
            folder=tmp_path)  # fmt: skip


def test_rust_types(tmp_path):
    sizes = [f"assert!(size_of::<{e.rust}>() == {Tensor('', '', d, (1,)).bytes});" for d, e in ELEMENTS.items()]
    checks = "\n    ".join(sizes)
    (tmp_path / "lib.rs").write_text(f"use std::mem::size_of;\npub const _CHECKED: () = {{\n    {checks}\n}};\n")
    run(tool("rustc"), "--edition", "2021", "--crate-type", "lib", "--emit", "metadata", "lib.rs", folder=tmp_path)


# ---------------------------------------------------------------- JavaScript


def js_module(folder: Path, separate: bool = False) -> None:
    """toy.js and the files beside it."""
    tool("node")
    toy.write_wasm(folder, separate)
    (folder / "toy.js").write_text(js(toy.interface(separate)))
    (folder / "package.json").write_text('{ "type": "module" }')


def node(folder: Path, source: str, *flags: str):
    """What a script prints as JSON."""
    (folder / "main.js").write_text(f"{JS_HEAD}\n{source}\n")
    return json.loads(run("node", *flags, "main.js", folder=folder))


JS_HEAD = """
import { readFile } from "node:fs/promises";
import { load, hasRelaxedSimd, Model, StatusError, inputs, outputs } from "./toy.js";

const bytes = await readFile(new URL("toy.wasm", import.meta.url));
const values = { image: new Float32Array([1, 2, 3, -4, 5, -6]), weights: new BigInt64Array([1n, 0n]) };
const show = ({ probs, image }) => [[...probs], [...image], probs.constructor.name, image.constructor.name];
const failure = (action) => { try { action(); } catch (e) { return `${e.name}: ${e.message}`; } return null; };
const refusal = (promise) => promise.then(() => null, (e) => `${e.name}: ${e.message}`);
const print = (value) => console.log(JSON.stringify(value));
"""
RESULT = [[-554, 321], [0, 1], "Float32Array", "Uint8Array"]


@both
def test_js_sources(tmp_path, separate):
    """A module loads from whatever a host has of it."""
    js_module(tmp_path, separate)
    found = node(
        tmp_path,
        """
        const plain = new URL("toy.wasm", import.meta.url);
        const wasm = { headers: { "content-type": "application/wasm" } };
        const padded = new Uint8Array([7, 7, ...bytes, 7]);
        const sources = [
          plain, plain.href, "toy.wasm", bytes, new Uint8Array(bytes).buffer, padded.subarray(2, -1),
          await WebAssembly.compile(bytes), new Response(bytes), new Response(bytes, wasm),
          Promise.resolve(new Response(bytes)),
        ];
        const results = [];
        for (const source of sources) results.push(show((await load(source)).run(values)));
        print(results);
        """,
    )
    assert found == [RESULT] * 10


@both
@pytest.mark.parametrize("flag", [None, "--experimental-wasm-relaxed-simd"])
def test_js_picks_the_build_for_the_engine(tmp_path, separate, flag):
    """Without a source the file beside the module is read: the fast one, halved here, where the engine takes it."""
    js_module(tmp_path, separate)
    flags = [] if flag is None else [flag]
    if flag and subprocess.run(["node", flag, "-e", ""], capture_output=True).returncode:
        pytest.skip(f"this node has no flag {flag}")
    relaxed, probs = node(tmp_path, "print([hasRelaxedSimd(), [...(await load()).run(values).probs]]);", *flags)
    assert relaxed or flag is None
    assert probs == ([-277, 160.5] if relaxed and not separate else [-554, 321])


def test_js_from_a_server(tmp_path):
    js_module(tmp_path)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        start = f"http://127.0.0.1:{server.server_port}"
        found, lost = node(
            tmp_path,
            f"""
            const found = await load("{start}/toy.wasm");
            print([show(found.run(values)), await refusal(load(new URL("{start}/nothing.wasm")))]);
            """,
        )
        server.shutdown()
    assert found == RESULT
    assert lost == f"Error: toy: no WebAssembly file at {start}/nothing.wasm: status 404"


PAGE = """<script type="module">
import { load, hasRelaxedSimd } from "./toy.js";
const values = { image: new Float32Array([1, 2, 3, -4, 5, -6]), weights: new BigInt64Array([1n, 0n]) };
const answer = load().then((model) => [hasRelaxedSimd(), [...model.run(values).probs]], (error) => error.message);
fetch("/answer", { method: "POST", body: JSON.stringify(await answer) });
</script>"""


def test_js_in_a_browser(tmp_path):
    """Chromium takes the fast build, halved here."""
    browser = tool("chromium")
    js_module(tmp_path)
    (tmp_path / "index.html").write_text(PAGE)
    answers: queue.Queue[str] = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        command = [browser, *flags, "--remote-debugging-port=0", address]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            relaxed, probs = json.loads(answers.get(timeout=60))
        finally:
            process.terminate()
            process.wait()
            server.shutdown()
    assert probs == ([-277, 160.5] if relaxed else [-554, 321])


def test_js_errors(tmp_path):
    js_module(tmp_path)
    (tmp_path / "other.wasm").write_bytes(toy.wasm(prefix="other"))
    found = node(
        tmp_path,
        """
        const model = await load(bytes);
        const change = (changes) => failure(() => model.run({ ...values, ...changes }));
        const refused = { weights: new BigInt64Array([0n, 2n]) };
        let status;
        try { model.run({ ...values, ...refused }); } catch (e) { status = [e instanceof StatusError, e.status]; }
        print([
          failure(() => model.run()),
          failure(() => model.run(values.image)),
          change({ image: undefined }),
          change({ images: values.image }),
          change({ image: new Float64Array(6) }),
          change({ image: [1, 2, 3, 4, 5, 6] }),
          change({ image: new Float32Array(7) }),
          change({ weights: new BigInt64Array(1) }),
          change(refused), status,
          show(model.run(values)),
          await refusal(load(7)),
          await refusal(load(new URL("other.wasm", import.meta.url))),
          await refusal(load(new URL("nothing.wasm", import.meta.url))),
        ]);
        """,
    )
    assert found[:13] == [
        "TypeError: toy: run takes an object with the inputs by name: image, weights",
        "TypeError: toy: run takes an object with the inputs by name: image, weights",
        'TypeError: toy: input "image" is missing',
        'TypeError: toy: there is no input "images"; the inputs are: image, weights',
        'TypeError: toy: input "image" must be a Float32Array, not a value of type Float64Array',
        'TypeError: toy: input "image" must be a Float32Array, not a value of type Array',
        'RangeError: toy: input "image" must have 6 elements (2 x 3), not 7',
        'RangeError: toy: input "weights" must have 2 elements, not 1',
        f"StatusError: toy: {STATUS_TEXT[Status.REFUSED]}",
        [True, 5],
        RESULT,
        "TypeError: toy: the WebAssembly file must be a URL, Response, ArrayBuffer, typed array or "
        "WebAssembly.Module, not a value of type Number",
        "Error: toy: the WebAssembly file is not that of this module; compile the model again and use both",
    ]
    assert "nothing.wasm" in found[13]


@both
def test_js_forks_and_grown_memory(tmp_path, separate):
    """Results are the caller's own; forks share nothing that a run writes; memory may grow between runs."""
    js_module(tmp_path, separate)
    found = node(
        tmp_path,
        f"""
        const weights = new Uint8Array(await readFile(new URL("toy.weights", import.meta.url)).catch(() => []));
        const module = await WebAssembly.compile(bytes);
        const {{ exports }} = await WebAssembly.instantiate(module, {{}});
        const model = new Model(module, exports, {"weights" if separate else ""});
        const first = model.run(values);
        const fork = await (await model.fork()).fork();
        const other = fork.run({{ ...values, image: new Float32Array(6) }});
        const before = exports.memory.buffer.byteLength;
        exports.memory.grow(1);
        const again = model.run(values);
        const after = exports.memory.buffer.byteLength;
        print([show(first), [...other.probs], show(again), before, after, fork.inputs === inputs]);
        """,
    )
    first, other, again, before, after, same = found
    assert first == again == RESULT
    assert other == [0, 0]
    assert after == before + 65536 and before > toy.WORKSPACE_BYTES
    assert same


def test_js_weights(tmp_path):
    """Weights come from where the caller says, and only as many as there must be."""
    js_module(tmp_path, separate=True)
    found = node(
        tmp_path,
        """
        const given = (weights) => load(bytes, { weights });
        const doubled = new Uint8Array(new Float32Array([0, 2, 20, 200]).buffer, 4);
        const results = [];
        for (const weights of [doubled, doubled.slice().buffer, new Response(doubled), "toy.weights"])
          results.push([...(await given(weights)).run(values).probs]);
        print([results, await refusal(given(doubled.subarray(1))), await refusal(given(bytes.toString()))]);
        """,
    )
    assert found[0] == [[-1108, 642]] * 3 + [[-554, 321]]
    assert found[1] == "RangeError: toy: the weights must have 12 bytes, not 11"
    assert found[2] is not None


def test_js_example_of_the_module_runs(tmp_path):
    js_module(tmp_path)
    (tmp_path / "main.js").write_text(comment_example((tmp_path / "toy.js").read_text(), "//"))
    run("node", "main.js", folder=tmp_path)


def test_js_types(tmp_path):
    tool("node")
    (tmp_path / "all_types.mjs").write_text(js(all_types(), relaxed=False))
    (tmp_path / "main.mjs").write_text(
        'import { inputs, outputs } from "./all_types.mjs";\n'
        "console.log(JSON.stringify([...inputs, ...outputs].map((t) => t.size * t.array.BYTES_PER_ELEMENT - t.bytes)));"
    )
    assert set(json.loads(run("node", "main.mjs", folder=tmp_path))) == {0}


@both
def test_typescript(tmp_path, separate):
    tsc = tool("tsc")
    (tmp_path / "package.json").write_text('{ "type": "module" }')
    (tmp_path / "toy.d.ts").write_text(javascript.types(toy.interface(separate)))
    (tmp_path / "main.ts").write_text(
        'import { load, StatusError } from "./toy.js";\n'
        'const model = await load(new URL("http://localhost/toy.wasm"));\n'
        "const { probs, image } = model.run({ image: new Float32Array(6), weights: new BigInt64Array(2) });\n"
        "const kinds: [Float32Array, Uint8Array] = [probs, image];\n"
        "// @ts-expect-error\n"
        "model.run({ image: new Float64Array(6), weights: new BigInt64Array(2) });\n"
        "console.log(kinds, model.inputs[0].shape[1], (await model.fork()).outputs, StatusError);\n"
    )
    run(tsc, "--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "main.ts",
        folder=tmp_path)  # fmt: skip
