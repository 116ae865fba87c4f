// What both kinds of pages share: a worker that is asked, the state of loading, texts.

const byId = (id) => document.getElementById(id);

/** A worker that answers questions, the state of its model shown in the page. */
export class Helper {
  #worker = new Worker(new URL("./demo-worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #next = 0;

  constructor() {
    this.ready = new Promise((resolve, reject) => {
      this.#worker.onmessage = ({ data }) => {
        if (data.id !== undefined) this.#settle(data);
        else if (data.ready) resolve(data);
        else if (data.failed) reject(new Error(data.failed));
        else showProgress(data);
      };
      this.#worker.onerror = (event) => {
        const reason = event.message || "module workers or a file may be missing";
        const error = new Error(`the worker does not run (${reason})`);
        reject(error);
        for (const id of this.#waiting.keys()) this.#settle({ id, error: error.message });
      };
    });
    this.ready.then(showReady, (error) => showFailure(`The model could not be loaded: ${error.message}`));
  }

  /** The answer to a question. */
  ask(question, transfer = []) {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, ...question }, transfer);
    });
  }

  #settle({ id, error, ...answer }) {
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  }
}

function showProgress({ received, total }) {
  const progress = byId("progress");
  if (total) progress.value = received / total;
  const whole = total ? ` of ${megabytes(total)}` : "";
  byId("loaded").textContent = megabytes(received) + whole; // not read aloud: it changes all the time
}

function showReady({ relaxed }) {
  byId("progress").hidden = byId("loaded").hidden = true;
  byId("state").textContent = "Model ready";
  const badge = byId("simd");
  badge.textContent = relaxed ? "relaxed SIMD" : "SIMD";
  badge.title = relaxed
    ? "This browser multiplies and adds four numbers in one instruction."
    : "This browser computes with four numbers at a time, without relaxed SIMD.";
  badge.hidden = false;
  document.body.dataset.state = "ready";
}

function showFailure(text) {
  byId("progress").hidden = byId("loaded").hidden = true;
  byId("state").textContent = "Model not loaded";
  document.body.dataset.state = "failed";
  showError(text);
}

/** Shows a problem in the page, or none. */
export function showError(text) {
  const box = byId("error");
  box.textContent = text ? text[0].toUpperCase() + text.slice(1) : "";
  box.hidden = !text;
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

export function milliseconds(time) {
  return `${time < 10 ? time.toFixed(1) : Math.round(time)} ms`;
}
