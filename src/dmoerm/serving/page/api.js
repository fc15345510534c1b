/** Asks the server. Whatever goes wrong becomes a `Failure` with a message for people. */

const KEY = "dmoerm-key";

export class Failure extends Error {
  /** status: HTTP's, 0 where no answer came; wait: seconds the server asks to wait, or null. */
  constructor(message, status = 0, wait = null) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const keptKey = () => sessionStorage.getItem(KEY) ?? "";

/** The models that are served, the first of them the one that scores. */
export const models = async () => (await ask("v1/models")).data;

/** One prompt's responses, scored: {scores, win_probabilities}. */
export async function score(asked, signal) {
  const body = JSON.stringify({ items: [asked], win_probabilities: true });
  const found = await ask("v1/score", { method: "POST", body, signal });
  return found.items[0];
}

async function ask(address, request = {}) {
  const headers = { "Content-Type": "application/json" };
  if (keptKey()) headers.Authorization = `Bearer ${keptKey()}`;
  let answer;
  try {
    answer = await fetch(address, { ...request, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached.");
  }
  const found = await answer.json().catch(() => null); // a proxy in between may answer with something else
  if (answer.ok && found) return found;
  const wait = Number.parseInt(answer.headers.get("Retry-After") ?? "", 10);
  const message = found?.error?.message ?? `The server's answer cannot be read (status ${answer.status}).`;
  throw new Failure(message, answer.status, Number.isNaN(wait) ? null : wait);
}
