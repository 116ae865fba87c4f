// Made by minifer from the model $name: text in, label and score out.

import { load } from "./$name.js";

$tokenizer
const LABELS = ["negative", "neutral", "positive"];
let shared;

/**
 * The sentiment of a text (a string, or a Uint8Array of UTF-8): { label, score, rating, probabilities }.
 * `model`: what `load` of $name.js gives; by default one that is loaded at the first call.
 */
export async function predict_sentiment(text, model) {
  const ready = await (model ?? (shared ??= load()));
  const { scores, rating } = ready.run({ tokens: sentimentTokens(text) });
  const probabilities = [...scores];
  const best = probabilities.indexOf(Math.max(...probabilities));
  return { label: LABELS[best], score: probabilities[best], rating: rating[0], probabilities };
}
