// Made by minifer from the model $name.

import type { Model } from "./$name.js";

export interface Prediction {
  label: "negative" | "neutral" | "positive";
  /** Probability of the label. */
  score: number;
  /** From -4, most negative, to 4, as people would rate it on average. */
  rating: number;
  /** Of negative, neutral and positive. */
  probabilities: number[];
}

/** The tokens of a text: a string, or its UTF-8. */
export function sentimentTokens(text: string | Uint8Array): Int32Array;

/** The sentiment of a text; by a model of its own unless one is given. */
export function predict_sentiment(text: string | Uint8Array, model?: Model): Promise<Prediction>;
