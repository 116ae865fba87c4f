// Classifies photographs, beside the page's own thread, so that the page never waits.

import { inputs, outputs, settings } from "./demo-model.js";
import { loadModel, serve } from "./demo-loading.js";
import { best, cropOf, normalise, probabilities, resize } from "./demo-prepare.js";

const [input] = inputs;
const [output] = outputs;
const ready = start();
ready.then(
  ({ relaxed }) => self.postMessage({ ready: true, relaxed }),
  (error) => self.postMessage({ failed: error.message }),
);

async function start() {
  const loaded = await loadModel((received, total) => self.postMessage({ received, total }));
  loaded.model.run({ [input.identifier]: new input.array(input.size) }); // the first run is slow: it warms up
  return loaded;
}

serve(async ({ image, top }) => {
  const { model } = await ready;
  const bitmap = await decode(image);
  const began = performance.now();
  const { size, interpolation } = settings.preprocessing;
  const { width, height } = bitmap;
  const crop = cropOf(width, height, settings.preprocessing);
  const pixels = resize(crop.side, size, interpolation, reader(bitmap, crop));
  bitmap.close();
  const values = normalise(pixels, settings.preprocessing, input.array);
  const prepared = performance.now();
  const scores = model.run({ [input.identifier]: values })[output.identifier];
  const done = performance.now();
  return {
    classes: best(probabilities(scores), top),
    pixels,
    width,
    height,
    preparing: prepared - began,
    running: done - prepared,
  };
});

/** The pixels of a file, upright, their values as they are in the file. */
async function decode(image) {
  if (!(image instanceof Blob)) return image;
  try {
    return await createImageBitmap(image, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    const what = image.type || "a file of unknown type";
    throw new Error(`this is no photograph that the browser can read (${what}): take a JPEG, PNG or WebP file`);
  }
}

/** Reads rows of the square: RGBA bytes, transparent pixels on white. */
function reader(bitmap, { left, top, side }) {
  let canvas, context;
  return (row, rows) => {
    if (canvas?.height !== rows) {
      canvas = new OffscreenCanvas(side, rows);
      context = canvas.getContext("2d", { willReadFrequently: true });
    }
    context.fillStyle = "white";
    context.fillRect(0, 0, side, rows);
    context.drawImage(bitmap, left, top + row, side, rows, 0, 0, side, rows);
    return context.getImageData(0, 0, side, rows).data;
  };
}
