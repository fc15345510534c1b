/**
 * A link with an item: {prompt, responses, task, weights} as JSON, in base64url, after the #.
 * Browsers do not send the part after the # to a server, so no text reaches its logs.
 */

export function linkTo(item) {
  const bytes = new TextEncoder().encode(JSON.stringify(item));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  const text = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `${location.pathname}${location.search}#${text}`;
}

/** The item in the address, or null without one. Throws if `linkTo` did not make it. */
export function linked() {
  const text = location.hash.slice(1);
  if (!text) return null;
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const item = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  const turns = item.prompt.map(({ role, content }) => ({ role: String(role), content: String(content) }));
  if (!turns.length || !item.responses.length) throw new Error("nothing to score");
  const weights = Object.fromEntries(Object.entries(item.weights ?? {}).map(([name, weight]) => [name, Number(weight)]));
  return { prompt: turns, responses: item.responses.map(String), task: item.task ? String(item.task) : null, weights };
}
