// POST a binary PPM file; the answer is JSON with the five classes that the model finds most probable.
// A worker gets compiled modules by import, for it may not compile; it reads the weights from its static files.
import { inputs, load } from "./build/classifier.js";
import code from "./build/classifier.wasm";

let ready; // a promise of the model and its labels, for all requests: a run is over before the next begins

async function prepare(files, origin) {
  const get = (name) => files.fetch(new Request(new URL(name, origin)));
  const model = await load(code, { weights: get("/classifier.weights") });
  return { model, labels: await (await get("/labels.json")).json() };
}

export default {
  async fetch(request, env) {
    if (request.method !== "POST") return new Response("POST a binary PPM file\n", { status: 405 });
    const pixels = pixelsOf(new Uint8Array(await request.arrayBuffer()));
    if (pixels === null) return new Response("this is no binary PPM file of the model's size\n", { status: 400 });
    ready ??= prepare(env.ASSETS, request.url).catch((error) => {
      ready = undefined; // the next request tries again
      throw error;
    });
    const { model, labels } = await ready;
    return Response.json(best(model.run({ image: imageOf(pixels) }).logits, labels));
  },
};

/** The pixels of a binary PPM file of the size that the model takes, or null. */
function pixelsOf(file) {
  const [{ shape, size }] = inputs;
  const header = `P6\n${shape[3]} ${shape[2]}\n255\n`;
  const fits = file.length === header.length + size && [...header].every((c, i) => file[i] === c.charCodeAt(0));
  return fits ? file.subarray(header.length) : null;
}

/** Channels first, and as the model was trained: (pixel - 127) / 128. */
function imageOf(pixels) {
  const plane = pixels.length / 3;
  const image = new Float32Array(pixels.length);
  for (let i = 0; i < image.length; i++) image[i] = (pixels[(i % plane) * 3 + Math.floor(i / plane)] - 127) / 128;
  return image;
}

function best(logits, labels) {
  const powers = logits.map(Math.exp);
  const sum = powers.reduce((a, b) => a + b);
  const order = [...powers.keys()].sort((a, b) => powers[b] - powers[a]).slice(0, 5);
  return order.map((i) => ({ label: labels[i], probability: powers[i] / sum }));
}
