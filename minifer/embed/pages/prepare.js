// From a photograph to the input of a classifier, and from its scores to the best classes.
//
// A centred square is resized as Pillow resizes 8-bit images: first the rows, then the columns, each output pixel a
// weighted mean under a filter that widens with the scale, weights in fixed point, results rounded to bytes. So the
// page and `minifer classify` give the model the same numbers.

const FIXED_POINT = 2 ** 22; // what a weight of 1 is
const STRIP_PIXELS = 2 ** 21; // a large photograph is read in strips: canvases are limited, on phones most of all

/** The filters: half their width at scale 1, and their weight at a distance. */
const FILTERS = {
  bilinear: { reach: 1, weight: (x) => 1 - x },
  // the cubic convolution of R. Keys (1981) with a = -1/2
  bicubic: { reach: 2, weight: (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((2.5 - 0.5 * x) * x - 4) * x + 2) },
};

/** The square that a classifier looks at: its upper left corner and its side. */
export function cropOf(width, height, { size, padding }) {
  const side = Math.max(1, Math.floor(Math.min(width, height) * (size / (size + padding))));
  return { left: Math.floor((width - side + 1) / 2), top: Math.floor((height - side + 1) / 2), side };
}

/** For each of `size` output pixels: the first input pixel and the weights of it and its successors. */
function weightsFor(length, size, { reach, weight }) {
  const scale = length / size;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach * stretch + 0.5));
    const last = Math.min(length, Math.floor(centre + reach * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, j) => {
      const distance = Math.abs((first + j - centre + 0.5) / stretch);
      return distance < reach ? weight(distance) : 0;
    });
    const sum = weights.reduce((a, b) => a + b);
    const fixed = weights.map((w) => Math.trunc((w / sum) * FIXED_POINT + (w < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(fixed) };
  });
}

/** Writes the weighted means of pixels `step` channels apart, one for each item of `taps`, `outStep` apart. */
function filterLine(taps, input, start, step, output, outStart, outStep) {
  for (const { first, weights } of taps) {
    let red = FIXED_POINT / 2, green = red, blue = red;
    let at = start + first * step;
    for (const weight of weights) {
      red += weight * input[at];
      green += weight * input[at + 1];
      blue += weight * input[at + 2];
      at += step;
    }
    output[outStart] = Math.floor(red / FIXED_POINT); // the array clamps to 0 ... 255
    output[outStart + 1] = Math.floor(green / FIXED_POINT);
    output[outStart + 2] = Math.floor(blue / FIXED_POINT);
    outStart += outStep;
  }
}

/** A square of `side` pixels resized to `size`: RGB bytes. `read(top, rows)` gives RGBA bytes of some of its rows. */
export function resize(side, size, interpolation, read) {
  const taps = weightsFor(side, size, FILTERS[interpolation]);
  const narrow = new Uint8ClampedArray(side * size * 3);
  const strip = Math.max(1, Math.floor(STRIP_PIXELS / side));
  for (let top = 0; top < side; top += strip) {
    const rows = Math.min(strip, side - top);
    const pixels = read(top, rows);
    for (let y = 0; y < rows; y++) {
      filterLine(taps, pixels, y * side * 4, 4, narrow, (top + y) * size * 3, 3);
    }
  }
  const small = new Uint8ClampedArray(size * size * 3);
  for (let x = 0; x < size; x++) filterLine(taps, narrow, x * 3, size * 3, small, x * 3, size * 3);
  return small;
}

/** RGB bytes as the classifier's input: a typed array of kind `array`. */
export function normalise(pixels, { mean, scale, channelsFirst }, array) {
  const count = pixels.length / 3;
  const values = new array(pixels.length);
  const bytes = array === Uint8Array;
  for (let channel = 0; channel < 3; channel++) {
    const shift = mean[channel % mean.length], divisor = scale[channel % scale.length];
    for (let i = 0; i < count; i++) {
      const pixel = pixels[3 * i + channel];
      values[channelsFirst ? channel * count + i : 3 * i + channel] = bytes ? pixel : (pixel - shift) / divisor;
    }
  }
  return values;
}

/** Probabilities of scores: these themselves where they are probabilities already, else their softmax. */
export function probabilities(scores) {
  if (!scores.every(Number.isFinite)) throw new Error("the model gives scores that are not finite numbers");
  const sum = scores.reduce((a, b) => a + b, 0);
  if (Math.abs(sum - 1) < 1e-3 && scores.every((score) => score >= 0)) return Float64Array.from(scores);
  const highest = scores.reduce((a, b) => Math.max(a, b));
  const powers = Float64Array.from(scores, (score) => Math.exp(score - highest));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
}

/** The `count` most probable classes, best first: { index, probability }. */
export function best(values, count) {
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
  return order.slice(0, count).map((index) => ({ index, probability: values[index] }));
}
