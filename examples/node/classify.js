// node classify.js PHOTO.ppm LABELS.json: the five classes that the model finds most probable.
import { readFile } from "node:fs/promises";
import { load } from "./build/classifier.js";

const [photo, names] = process.argv.slice(2);
if (!names) throw new Error("node classify.js PHOTO.ppm LABELS.json");

const model = await load();
const [{ shape, size }] = model.inputs;
const labels = JSON.parse(await readFile(names, "utf8"));
const pixels = pixelsOf(await readFile(photo), shape[3], shape[2]);

// channels first, and as the model was trained: (pixel - 127) / 128
const plane = size / 3;
const image = Float32Array.from({ length: size }, (_, i) => (pixels[(i % plane) * 3 + Math.floor(i / plane)] - 127) / 128);

const { logits } = model.run({ image });

const powers = logits.map(Math.exp);
const sum = powers.reduce((a, b) => a + b);
const best = [...powers.keys()].sort((a, b) => powers[b] - powers[a]).slice(0, 5);
for (const i of best) console.log(`${((100 * powers[i]) / sum).toFixed(1).padStart(5)} %  ${labels[i]}`);

/** The pixels of a binary PPM file of a size. */
function pixelsOf(file, width, height) {
  const header = `P6\n${width} ${height}\n255\n`;
  if (file.toString("latin1", 0, header.length) !== header || file.length !== header.length + 3 * width * height) {
    throw new Error(`the photo is no binary PPM file of ${width} x ${height} pixels`);
  }
  return file.subarray(header.length);
}
