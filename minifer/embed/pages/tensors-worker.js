// Runs a model on random values, beside the page's own thread, so that the page never waits.

import { inputs, outputs } from "./demo-model.js";
import { loadModel, serve } from "./demo-loading.js";
import { randomValues, statisticsOf } from "./demo-values.js";

const ready = loadModel((received, total) => self.postMessage({ received, total }));
ready.then(
  ({ relaxed }) => self.postMessage({ ready: true, relaxed }),
  (error) => self.postMessage({ failed: error.message }),
);

serve(async () => {
  const { model } = await ready;
  const values = Object.fromEntries(inputs.map((tensor) => [tensor.identifier, randomValues(tensor)]));
  const began = performance.now();
  const results = model.run(values);
  const time = performance.now() - began;
  return { time, statistics: outputs.map((tensor) => statisticsOf(tensor, results[tensor.identifier])) };
});
