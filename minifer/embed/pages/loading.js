// Loads the model in a worker and says how far it is.

import { hasRelaxedSimd, load, settings } from "./demo-model.js";

/** The model. `report` is called with the bytes that have come and, where known, the bytes that there are. */
export async function loadModel(report) {
  const relaxed = hasRelaxedSimd();
  const watch = new Watch(report);
  const source = watch.fetch(relaxed ? settings.relaxed : settings.plain);
  const model = await load(source, settings.weights ? { weights: watch.fetch(settings.weights) } : {});
  return { model, relaxed };
}

class Watch {
  #report;
  #received = 0;
  #total = 0;

  constructor(report) {
    this.#report = report;
  }

  /** A response whose bytes are counted as they pass. */
  async fetch(file) {
    const response = await fetch(new URL(file, import.meta.url));
    if (!response.ok) throw new Error(`${file} cannot be fetched: status ${response.status}`);
    // the length of what is compressed on the way is not that of the file
    const length = response.headers.has("content-encoding") ? NaN : Number(response.headers.get("content-length"));
    this.#total += length || NaN;
    const counter = new TransformStream({
      transform: (chunk, controller) => {
        this.#received += chunk.byteLength;
        this.#report(this.#received, this.#total);
        controller.enqueue(chunk);
      },
    });
    const type = response.headers.get("content-type");
    return new Response(response.body.pipeThrough(counter), { headers: type ? { "content-type": type } : {} });
  }
}

/** Answers messages { id, ... } by { id, ...await answer(message) } or { id, error }. */
export function serve(answer) {
  self.onmessage = async ({ data }) => {
    try {
      self.postMessage({ id: data.id, ...(await answer(data)) });
    } catch (error) {
      self.postMessage({ id: data.id, error: error.message });
    }
  };
}
