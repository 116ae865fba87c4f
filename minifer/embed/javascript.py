"""The ES module of a compiled model, for browsers, Node, Deno, Bun and workers, and its TypeScript types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from string import Template
from urllib.parse import quote

from minifer.embed.abi import ALIGNMENT, STATUS_TEXT, Interface, Status, Tensor
from minifer.embed.elements import brief, element
from minifer.errors import InputError

#: a module of one function that needs relaxed SIMD: (v128, v128, v128) -> v128 by f32x4.relaxed_madd
RELAXED_PROBE = bytes.fromhex(
    "0061736d 01000000"  # magic, version
    "01 08 01 60 03 7b7b7b 01 7b"  # types: one function type
    "03 02 01 00"  # functions: one, of type 0
    "0a 0d 01 0b 00 2000 2001 2002 fd8502 0b"  # code: local.get 0, 1, 2; f32x4.relaxed_madd; end
)


class _Template(Template):
    delimiter = "@"  # "$" is JavaScript's own


_MODULE = _Template("""\
// Made by minifer from the model @name. Compile the model again instead of editing this file.
//
//     import { load } from "./@file_name";
//     const model = await load();
//     const { @output_list } = model.run({ @input_example });
//
// load() fetches the WebAssembly file beside this one. Where that cannot be, give it a URL, a Response, the bytes
// or a WebAssembly.Module. A model has memory of its own, for one run at a time; model.fork() makes another.

const NAME = @name_text;
const ALIGNMENT = @alignment;
const PAGE = 65536;

/** What the model takes, in order. */
export const inputs = describe([@inputs]);

/** What the model gives, in order. */
export const outputs = describe([@outputs]);

const STATUS_TEXT = [
@status_texts
];

const RELAXED_PROBE = new Uint8Array([@probe]);

/** Whether this engine has relaxed SIMD. */
export function hasRelaxedSimd() {
  return WebAssembly.validate(RELAXED_PROBE);
}

/** The file beside this one that suits this engine. */
function moduleUrl() {
@module_url
}
@weights_url
/** A run that the model refused; `status` says why. */
export class StatusError extends Error {
  constructor(status) {
    super(`${NAME}: ${STATUS_TEXT[status] ?? `unknown status ${status}: this file and the WebAssembly file differ`}`);
    this.name = "StatusError";
    this.status = status;
  }
}

/** The model, ready to run. */
export async function load(source@load_parameter) {
  return Model.instantiate(await compile((await source) ?? moduleUrl())@load_weights);
}

/** A model with memory of its own. Make one by load() or fork(). */
export class Model {
  #module;
  #exports;
  #inputPlaces;
  #outputPlaces;
  #inputTable;
  #outputTable;
  #workspace;
  #workspaceBytes;@weights_fields
  #buffer;
  #inputViews;
  #outputViews;

  /** Not for callers: they use load() and fork(). */
  static async instantiate(module@weights_parameter) {
    return new Model(module, (await WebAssembly.instantiate(module, {})).exports@weights_argument);
  }

  constructor(module, exports@weights_parameter) {
    checkExports(exports);
    this.#module = module;
    this.#exports = exports;
    this.#workspaceBytes = exports[`${NAME}_workspace_bytes`]() >>> 0;@weights_check
    let end = aligned(exports.__heap_base.value >>> 0);
    const place = (bytes) => {
      const start = end;
      end = aligned(end + bytes);
      return start;
    };
    this.#inputPlaces = inputs.map((tensor) => place(tensor.bytes));
    this.#outputPlaces = outputs.map((tensor) => place(tensor.bytes));
    this.#inputTable = place(8 * inputs.length);
    this.#outputTable = place(8 * outputs.length);
    this.#workspace = place(this.#workspaceBytes);@weights_place
    grow(exports.memory, end);
    this.#makeViews();
    fillTable(exports.memory, this.#inputTable, inputs, this.#inputPlaces);
    fillTable(exports.memory, this.#outputTable, outputs, this.#outputPlaces);@weights_copy
  }

  get inputs() {
    return inputs;
  }

  get outputs() {
    return outputs;
  }

  /** Runs the model on an object with a typed array for each input; gives one with a typed array for each output. */
  run(values) {
    checkInputs(values);
    if (this.#buffer !== this.#exports.memory.buffer) this.#makeViews(); // the memory has grown
    inputs.forEach((tensor, i) => this.#inputViews[i].set(values[tensor.identifier]));
    const status = this.#exports[`${NAME}_run`](
      this.#inputTable, inputs.length, this.#outputTable, outputs.length,
      this.#workspace, this.#workspaceBytes,@run_weights
    );
    if (status !== 0) throw new StatusError(status);
    return Object.fromEntries(outputs.map((tensor, i) => [tensor.identifier, this.#outputViews[i].slice()]));
  }

  /** The same model with memory of its own, from the code compiled already. */
  fork() {
    return Model.instantiate(this.#module@fork_weights);
  }

  #makeViews() {
    const buffer = this.#exports.memory.buffer;
    const view = (tensor, place) => new tensor.array(buffer, place, tensor.size);
    this.#inputViews = inputs.map((tensor, i) => view(tensor, this.#inputPlaces[i]));
    this.#outputViews = outputs.map((tensor, i) => view(tensor, this.#outputPlaces[i]));
    this.#buffer = buffer;
  }
}

function describe(tensors) {
  return Object.freeze(tensors.map((tensor) => Object.freeze({ ...tensor, shape: Object.freeze(tensor.shape) })));
}

function aligned(address) {
  return Math.ceil(address / ALIGNMENT) * ALIGNMENT;
}

/** The name of a value's class, whichever window or context it is from. */
function kindOf(value) {
  return Object.prototype.toString.call(value).slice(8, -1);
}

function checkExports(exports) {
  const number = (what, ...rest) => exports[`${NAME}_${what}`]?.(...rest) >>> 0;
  const fits = (kind, tensors) =>
    number(`${kind}_count`) === tensors.length && tensors.every((t, i) => number(`${kind}_bytes`, i) === t.bytes);
  if (typeof exports[`${NAME}_run`] !== "function" || !fits("input", inputs) || !fits("output", outputs)) {
    throw new Error(`${NAME}: the WebAssembly file is not that of this module; compile the model again and use both`);
  }
}

function checkInputs(values) {
  const names = inputs.map((tensor) => tensor.identifier).join(", ");
  if (values === null || typeof values !== "object" || ArrayBuffer.isView(values)) {
    throw new TypeError(`${NAME}: run takes an object with the inputs by name: ${names}`);
  }
  for (const name of Object.keys(values)) {
    if (!inputs.some((tensor) => tensor.identifier === name)) {
      throw new TypeError(`${NAME}: there is no input "${name}"; the inputs are: ${names}`);
    }
  }
  for (const { identifier, array, size, shape } of inputs) {
    const value = values[identifier];
    if (value === undefined) throw new TypeError(`${NAME}: input "${identifier}" is missing`);
    const kind = kindOf(value);
    if (kind !== array.name) {
      throw new TypeError(`${NAME}: input "${identifier}" must be a ${array.name}, not a value of type ${kind}`);
    }
    if (value.length !== size) {
      const dims = shape.length > 1 ? ` (${shape.join(" x ")})` : "";
      throw new RangeError(`${NAME}: input "${identifier}" must have ${size} elements${dims}, not ${value.length}`);
    }
  }
}

function grow(memory, bytes) {
  const pages = Math.ceil((bytes - memory.buffer.byteLength) / PAGE);
  if (pages <= 0) return;
  try {
    memory.grow(pages);
  } catch {
    throw new RangeError(`${NAME}: there is no memory for the ${Math.ceil(bytes / 2 ** 20)} MiB that the model needs`);
  }
}

/** A table of { address, bytes }, as the model reads it. */
function fillTable(memory, at, tensors, places) {
  new Uint32Array(memory.buffer, at, 2 * tensors.length).set(tensors.flatMap((t, i) => [places[i], t.bytes]));
}

async function compile(source) {
  if (kindOf(source) === "WebAssembly.Module") return source;
  const found = await open(source, "the WebAssembly file", " or WebAssembly.Module");
  if (kindOf(found) !== "Response") return WebAssembly.compile(found);
  const streams = WebAssembly.compileStreaming && found.headers.get("content-type")?.startsWith("application/wasm");
  return streams ? WebAssembly.compileStreaming(found) : WebAssembly.compile(await found.arrayBuffer());
}
@weights_function
/** What a source stands for: bytes, or a response that holds them. */
async function open(source, what, others) {
  let found = typeof source === "string" ? new URL(source, import.meta.url) : source;
  if (kindOf(found) === "URL") found = found.protocol === "file:" ? await readFile(found, what) : await fetch(found);
  if (kindOf(found) === "Response") {
    if (!found.ok) throw new Error(`${NAME}: no ${what.slice(4)} at ${found.url}: status ${found.status}`);
    return found;
  }
  if (kindOf(found) === "ArrayBuffer" || ArrayBuffer.isView(found)) return found;
  throw new TypeError(
    `${NAME}: ${what} must be a URL, Response, ArrayBuffer, typed array${others}, not a value of type ${kindOf(found)}`,
  );
}

/** A file's bytes, where there are files: fetch() takes no file: URLs there. */
async function readFile(url, what) {
  let files;
  try {
    files = await import(/* webpackIgnore: true */ /* @@vite-ignore */ "node:fs/promises");
  } catch {
    throw new Error(`${NAME}: ${what} cannot be read from ${url}; let a web server give the page and its files`);
  }
  return files.readFile(url);
}
""")

_WEIGHTS_URL = """
/** The file of the weights beside this one. */
function weightsUrl() {
  return new URL(@weights, import.meta.url);
}
"""

_WEIGHTS_CHECK = """
    this.#weightsBytes = exports[`${NAME}_weights_bytes`]() >>> 0;
    if (weights.byteLength !== this.#weightsBytes) {
      throw new RangeError(`${NAME}: the weights must have ${this.#weightsBytes} bytes, not ${weights.byteLength}`);
    }"""

_WEIGHTS_COPY = """
    new Uint8Array(exports.memory.buffer, this.#weights, this.#weightsBytes).set(weights);"""

_WEIGHTS_FUNCTION = """
/** The weights, as Uint8Array. */
async function fetchWeights(source) {
  const found = await open(source, "the weights", "");
  if (kindOf(found) === "Response") return new Uint8Array(await found.arrayBuffer());
  return ArrayBuffer.isView(found)
    ? new Uint8Array(found.buffer, found.byteOffset, found.byteLength)
    : new Uint8Array(found);
}
"""

_TYPES = _Template("""\
// Made by minifer from the model @name. Compile the model again instead of editing this file.

/** An input or output of the model. */
export interface Tensor {
  /** As the model names it. */
  readonly name: string;
  /** As this module names it. */
  readonly identifier: string;
  /** ONNX's name of the element type. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Number of elements. */
  readonly size: number;
  readonly bytes: number;
}

/** What a run takes. */
export interface Inputs {
@input_fields
}

/** What a run gives. */
export interface Outputs {
@output_fields
}

/** Where the WebAssembly file is, or what it holds. */
export type Source = string | URL | Response | ArrayBuffer | ArrayBufferView | WebAssembly.Module;
@weights_types
/** What the model takes, in order. */
export const inputs: readonly Tensor[];

/** What the model gives, in order. */
export const outputs: readonly Tensor[];

/** Whether this engine has relaxed SIMD. */
export function hasRelaxedSimd(): boolean;

/** A run that the model refused. */
export class StatusError extends Error {
  readonly status: number;
}

/** A model with memory of its own. */
export class Model {
  private constructor();
  readonly inputs: readonly Tensor[];
  readonly outputs: readonly Tensor[];
  /** Runs the model; throws TypeError, RangeError or StatusError for inputs that do not fit. */
  run(values: Inputs): Outputs;
  /** The same model with memory of its own, from the code compiled already. */
  fork(): Promise<Model>;
}

/** The model, ready to run; by default from the file beside this module. */
export function load(source?: Source | Promise<Source>@load_options): Promise<Model>;
""")

_WEIGHTS_TYPES = """
/** Where the weights are, or what they are; by default in the file beside this module. */
export interface LoadOptions {
  weights?: string | URL | Response | ArrayBuffer | ArrayBufferView | Promise<Response | ArrayBuffer | ArrayBufferView>;
}
"""


def module(interface: Interface, *, wasm_file: str, relaxed_file: str | None, weights_file: str | None) -> str:
    """The text of NAME.js. The files are named as they lie beside it: the WebAssembly module, the build with relaxed
    SIMD or None, and the weights, needed where the interface has them apart. UnsupportedError for an element type
    that JavaScript has not, InputError for a file of weights too few or too many."""
    separate = interface.separate
    if separate != (weights_file is not None):
        raise InputError("a file of weights is named where, and only where, the weights are separate")
    weights_url = _WEIGHTS_URL.replace("@weights", _url(weights_file)) if weights_file is not None else ""

    def where(text: str) -> str:
        return text if separate else ""

    return _MODULE.substitute(
        name=interface.name,
        name_text=json.dumps(interface.name),
        file_name=f"{interface.name}.js",
        alignment=ALIGNMENT,
        input_example=", ".join(f"{t.identifier}: new {element(t).javascript}({t.size})" for t in interface.inputs),
        output_list=", ".join(t.identifier for t in interface.outputs),
        inputs=_tensors(interface.inputs),
        outputs=_tensors(interface.outputs),
        status_texts="\n".join(f"  {json.dumps(STATUS_TEXT[s])}," for s in sorted(Status)),
        probe=_bytes(RELAXED_PROBE),
        module_url=_module_url(wasm_file, relaxed_file),
        weights_url=weights_url,
        load_parameter=where(", { weights } = {}"),
        load_weights=where(", await fetchWeights((await weights) ?? weightsUrl())"),
        weights_fields=where("\n  #weights;\n  #weightsBytes;"),
        weights_parameter=where(", weights"),
        weights_argument=where(", weights"),
        weights_check=where(_WEIGHTS_CHECK),
        weights_place=where("\n    this.#weights = place(this.#weightsBytes);"),
        weights_copy=where(_WEIGHTS_COPY),
        run_weights=where(" this.#weights, this.#weightsBytes,"),
        fork_weights=where(", new Uint8Array(this.#exports.memory.buffer, this.#weights, this.#weightsBytes)"),
        weights_function=where(_WEIGHTS_FUNCTION),
    )


def types(interface: Interface) -> str:
    """The text of NAME.d.ts, the TypeScript types of the module."""
    return _TYPES.substitute(
        name=interface.name,
        input_fields="\n".join(_field(t) for t in interface.inputs),
        output_fields="\n".join(_field(t) for t in interface.outputs),
        weights_types=_WEIGHTS_TYPES if interface.separate else "",
        load_options=", options?: LoadOptions" if interface.separate else "",
    )


def _tensors(tensors: Iterable[Tensor]) -> str:
    lines = []
    for t in tensors:
        fields = {"name": t.name, "identifier": t.identifier, "dtype": t.dtype, "shape": list(t.shape)}
        facts = ", ".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
        lines.append(f"\n  {{ {facts}, size: {t.size}, bytes: {t.bytes}, array: {element(t).javascript} }},")
    return "".join(lines) + ("\n" if lines else "")


def _field(tensor: Tensor) -> str:
    return f"  /** {brief(tensor)} */\n  {tensor.identifier}: {element(tensor).javascript};"


def _bytes(data: bytes) -> str:
    rows = [", ".join(f"0x{byte:02x}" for byte in data[at : at + 16]) for at in range(0, len(data), 16)]
    return "".join(f"\n  {row}," for row in rows) + "\n"


def _url(file: str) -> str:
    return json.dumps(f"./{quote(file)}")


def _module_url(plain: str, relaxed: str | None) -> str:
    """The body of a function; bundlers look for URLs that are written as these are."""
    lines = [f"  return new URL({_url(plain)}, import.meta.url);"]
    if relaxed is not None:
        lines.insert(0, f"  if (hasRelaxedSimd()) return new URL({_url(relaxed)}, import.meta.url);")
    return "\n".join(lines)
