// A stand-in for the worker's host, in Node. node harness.js PHOTO.ppm: one request; without: a server.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { register } from "node:module";

// import x from "./y.wasm" gives the compiled module, as workers have it
const hook = `export async function load(url, context, next) {
  if (!url.endsWith(".wasm")) return next(url, context);
  const source = 'import { readFile } from "node:fs/promises";'
    + 'export default await WebAssembly.compile(await readFile(new URL(' + JSON.stringify(url) + ')));';
  return { format: "module", source, shortCircuit: true };
}`;
register(`data:text/javascript,${encodeURIComponent(hook)}`);
const { default: worker } = await import("./worker.js");

// the static files
const ASSETS = {
  async fetch(request) {
    const path = new URL(request.url).pathname.slice(1);
    return new Response(await readFile(new URL(path, new URL("build/", import.meta.url))));
  },
};
const ask = (method, body) => worker.fetch(new Request("http://localhost:8787/", { method, body }), { ASSETS });

const [photo] = process.argv.slice(2);
if (photo) {
  const response = await ask("POST", await readFile(photo));
  if (!response.ok) throw new Error(await response.text());
  for (const { label, probability } of await response.json()) {
    console.log(`${(100 * probability).toFixed(1).padStart(5)} %  ${label}`);
  }
} else {
  createServer(async (incoming, outgoing) => {
    const parts = [];
    for await (const part of incoming) parts.push(part);
    const response = await ask(incoming.method, parts.length ? Buffer.concat(parts) : undefined);
    outgoing.writeHead(response.status).end(Buffer.from(await response.arrayBuffer()));
  }).listen(8787, () => console.log("http://localhost:8787"));
}
