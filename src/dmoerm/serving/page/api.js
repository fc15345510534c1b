/** The requests of the page. Every error becomes a `Failure` with a message for people. */

const KEY = "dmoerm-key";

export class Failure extends Error {
  /** status: the HTTP status, 0 without an answer; wait: the server's Retry-After in seconds, or null. */
  constructor(message, status = 0, wait = null) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const keptKey = () => sessionStorage.getItem(KEY) ?? "";

/** The answer to a request, as JSON. */
export async function send(address, request = {}) {
  const headers = { "Content-Type": "application/json", Priority: "u=1", ...request.headers }; // before bulk requests
  if (keptKey()) headers.Authorization = `Bearer ${keptKey()}`;
  let response;
  try {
    response = await fetch(address, { ...request, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => null); // a proxy may answer in another format
  if (response.ok && answer) return answer;
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const message = answer?.error?.message ?? `The server's answer cannot be read (status ${response.status}).`;
  throw new Failure(message, response.status, Number.isNaN(wait) ? null : wait);
}

/** The served models; the first one scores. */
export const models = async () => (await send("v1/models")).data;

/** Scores the responses to one prompt, with weights of capabilities or without: {scores, win_probabilities}. */
export async function score({ weights, ...item }, signal) {
  const body = JSON.stringify({ items: [item], weights, win_probabilities: true });
  const answer = await send("v1/score", { method: "POST", body, signal });
  return answer.items[0];
}

/** Scores many items behind all interactive requests, with weights or without: [{id, scores}, …]. */
export async function scoreAll(items, weights, signal) {
  const body = JSON.stringify({ items, weights, win_probabilities: false });
  const answer = await send("v1/score", { method: "POST", body, signal, headers: { Priority: "u=5" } });
  return answer.items;
}
