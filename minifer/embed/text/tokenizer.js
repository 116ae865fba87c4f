// The tokenizer of minifer's sentiment model; specified in minifer/pipelines/text.py.

export const SENTIMENT_LENGTH = 4096;

const START = 0x811c9dc5;
const step = (hash, byte) => Math.imul(hash ^ byte, 0x01000193);

/** The tokens of a text: a string, or a Uint8Array of UTF-8. Returns an Int32Array of 4096. */
export function sentimentTokens(text) {
  const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
  const tokens = new Int32Array(SENTIMENT_LENGTH);
  let count = 0, before = START, word = [];
  const put = (hash) => { if (count < SENTIMENT_LENGTH) tokens[count++] = ((hash >>> 0) % 65535) + 1; };
  const finish = () => {
    const own = word.reduce(step, START);
    put(own);
    put(word.reduce(step, step(before, 0x20)));
    const marked = [0x3c, ...word, 0x3e];
    for (let start = 0; start < word.length; start++) {
      let hash = step(START, 0x23);
      for (let i = start; i < Math.min(start + 5, marked.length); i++) {
        hash = step(hash, marked[i]);
        if (i >= start + 2) put(hash);
      }
    }
    before = own;
    word = [];
  };
  for (let i = 0; i <= bytes.length && count < SENTIMENT_LENGTH; i++) {
    let byte = i < bytes.length ? bytes[i] : 0; // a separator ends the last word
    if (byte === 0xe2 && i + 2 < bytes.length && bytes[i + 1] === 0x80) {
      byte = (bytes[i + 2] & 0xfe) === 0x98 ? 0x27 : 0x20;
      i += 2;
    }
    if (byte >= 0x41 && byte <= 0x5a) byte += 0x20;
    const inside = (byte >= 0x61 && byte <= 0x7a) || (byte >= 0x30 && byte <= 0x39) || byte === 0x27 || byte >= 0x80;
    if (word.length && (!inside || word.length === 64)) finish();
    if (!inside && (byte <= 0x20 || byte === 0x7f)) continue;
    word.push(byte);
    if (!inside) finish();
  }
  return tokens;
}
