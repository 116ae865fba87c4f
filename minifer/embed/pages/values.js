// Random values for a model's inputs, and statistics of its outputs.

const FIRST = 6; // so many values are shown

const isFloat = ({ dtype }) => dtype.includes("float");

/** In words, what random values are drawn from. */
export function rangeOf(tensor) {
  return isFloat(tensor) ? "between -1 and 1" : "0 or 1";
}

/** A typed array with a value for each element of the tensor. */
export function randomValues(tensor) {
  const one = isFloat(tensor)
    ? () => encode(2 * Math.random() - 1, tensor.dtype)
    : () => (tensor.dtype.endsWith("int64") ? BigInt(Math.random() < 0.5) : Number(Math.random() < 0.5));
  return new tensor.array(tensor.size).map(one);
}

/** The least, mean and greatest value, the standard deviation (of finite values), and the first few. */
export function statisticsOf(tensor, values) {
  const numbers = Float64Array.from(values, (value) => decode(value, tensor.dtype));
  const finite = numbers.filter(Number.isFinite);
  const mean = finite.reduce((a, b) => a + b, 0) / finite.length;
  return {
    least: finite.length ? finite.reduce((a, b) => Math.min(a, b)) : NaN,
    mean,
    greatest: finite.length ? finite.reduce((a, b) => Math.max(a, b)) : NaN,
    deviation: Math.sqrt(finite.reduce((sum, value) => sum + (value - mean) ** 2, 0) / finite.length),
    strange: numbers.length - finite.length,
    first: Array.from(numbers.subarray(0, FIRST)),
  };
}

const word = new DataView(new ArrayBuffer(4));

/** A number between -1 and 1 as an element: half-precision floats are the integers of their bits. */
function encode(value, dtype) {
  if (!dtype.endsWith("16")) return value;
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  if (dtype === "bfloat16") return bits >>> 16;
  const exponent = ((bits >>> 23) & 255) - 112; // of float16, whose bias is 15 and not 127
  return exponent > 0 ? ((bits >>> 16) & 0x8000) | (exponent << 10) | ((bits >>> 13) & 1023) : 0;
}

function decode(value, dtype) {
  if (dtype === "bfloat16") {
    word.setUint32(0, value << 16);
    return word.getFloat32(0);
  }
  if (dtype !== "float16") return Number(value);
  const sign = value & 0x8000 ? -1 : 1, exponent = (value >>> 10) & 31, fraction = value & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}
