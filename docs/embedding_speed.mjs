// Compares compiled models with onnxruntime-web, each on one thread:
//
//     node docs/embedding_speed.mjs FOLDER
//
// FOLDER holds models and what `minifer compile` made of them, side by side (NAME.onnx, NAME.js and its .wasm files),
// and onnxruntime-web, put there by `npm install onnxruntime-web`. Both run each model in turn, in this one process, on
// the same inputs. With `node --experimental-wasm-relaxed-simd` compiled models take their relaxed SIMD files.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const SECONDS = 6; // for each model
const TURNS = [12, 400]; // at least, at most

const [given] = process.argv.slice(2);
if (!given) stop("node docs/embedding_speed.mjs FOLDER");
const folder = resolve(given);
const names = readdirSync(folder)
  .filter((file) => file.endsWith(".onnx"))
  .map((file) => file.slice(0, -".onnx".length))
  .filter((name) => existsSync(join(folder, `${name}.js`)));
if (names.length === 0) stop(`${folder} has no NAME.onnx with a NAME.js beside it: minifer compile NAME.onnx --out .`);

const require = createRequire(join(folder, "package.json"));
let main;
try {
  main = require.resolve("onnxruntime-web/wasm");
} catch {
  stop(`${folder} has no onnxruntime-web: npm install onnxruntime-web`);
}
const ort = require(main);
ort.env.wasm.numThreads = 1;
ort.env.wasm.proxy = false;

console.log(`Node ${process.versions.node}, onnxruntime-web ${ort.env.versions.web}, milliseconds on one thread`);
console.log("| model | SIMD | minifer | least | onnxruntime-web | least | ratio | of the least | difference |");
console.log("|---|---|---|---|---|---|---|---|---|");
for (const name of names) console.log(await compare(name));

/** A row of the table. The difference is the largest of any output, relative to the output's largest value. */
async function compare(name) {
  const made = await import(pathToFileURL(join(folder, `${name}.js`)));
  const model = await made.load();
  const session = await ort.InferenceSession.create(readFileSync(join(folder, `${name}.onnx`)), {
    executionProviders: ["wasm"],
    graphOptimizationLevel: "all",
  });
  const values = Object.fromEntries(model.inputs.map((tensor) => [tensor.identifier, filled(tensor)]));
  const feeds = Object.fromEntries(
    model.inputs.map((t) => [t.name, new ort.Tensor(t.dtype, values[t.identifier], [...t.shape])]),
  );
  const difference = largestDifference(model, model.run(values), await session.run(feeds));
  const ours = [];
  const theirs = [];
  const end = performance.now() + 1000 * SECONDS;
  while (ours.length < TURNS[0] || (ours.length < TURNS[1] && performance.now() < end)) {
    let start = performance.now();
    model.run(values);
    ours.push(performance.now() - start);
    start = performance.now();
    await session.run(feeds);
    theirs.push(performance.now() - start);
  }
  await session.release();
  const [a, b] = [ours, theirs].map((times) => times.sort((x, y) => x - y));
  const [middle, least] = [(times) => times[times.length >> 1], (times) => times[0]];
  const cells = [
    name,
    made.hasRelaxedSimd() ? "relaxed" : "simd128",
    ...[middle(a), least(a), middle(b), least(b)].map((time) => time.toFixed(2)),
    (middle(a) / middle(b)).toFixed(2),
    (least(a) / least(b)).toFixed(2),
    difference.toExponential(1),
  ];
  return `| ${cells.join(" | ")} |`;
}

/** Values between -1 and 1 for floats, ones for integers (safe as indices). */
function filled({ dtype, size }) {
  const Numbers = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array }[dtype];
  if (Numbers === undefined) throw new Error(`there are no values for an input of ${dtype} here`);
  if (dtype === "float32") return Numbers.from({ length: size }, (_, i) => Math.sin(0.37 * i));
  return new Numbers(size).fill(dtype === "int64" ? 1n : 1);
}

function largestDifference(model, found, expected) {
  let worst = 0;
  for (const { name, identifier, size } of model.outputs) {
    const [a, b] = [found[identifier], expected[name].data];
    if (a.length !== size || b.length !== size) throw new Error(`output ${name} has another size`);
    let [apart, most] = [0, 0];
    for (let i = 0; i < size; i++) {
      apart = Math.max(apart, Math.abs(Number(a[i]) - Number(b[i])));
      most = Math.max(most, Math.abs(Number(b[i])));
      if (Number.isNaN(Number(a[i]))) apart = Infinity;
    }
    worst = Math.max(worst, apart / (most || 1));
  }
  return worst;
}

function stop(message) {
  console.error(message);
  process.exit(2);
}
