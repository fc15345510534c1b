/** The requests of the page. */

import { send } from "./send.js";

/** The served models; the first one scores. */
export const models = async () => (await send("v1/models")).data;

/** Scores the responses to one prompt, with weights of capabilities and a risk or without: {scores, win_probabilities}. */
export async function score({ weights, risk, ...item }, signal) {
  const body = JSON.stringify({ items: [item], weights, risk, win_probabilities: true });
  const answer = await send("v1/score", { method: "POST", body, signal });
  return answer.items[0];
}

/** Scores many items behind all interactive requests, with {weights, risk} or without: [{id, scores}, …]. */
export async function scoreAll(items, adjustments, signal) {
  const body = JSON.stringify({ items, ...adjustments, win_probabilities: false });
  const answer = await send("v1/score", { method: "POST", body, signal, headers: { Priority: "u=5" } });
  return answer.items;
}
