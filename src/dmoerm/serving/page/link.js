/**
 * A link that holds what is scored: {prompt, responses, task} as JSON, in base64url, after the #.
 * Browsers send nothing after the # to a server, so no text reaches its logs.
 */

export function linkTo(asked) {
  const bytes = new TextEncoder().encode(JSON.stringify(asked));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  const text = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `${location.pathname}${location.search}#${text}`;
}

/** What the address holds; null where there is nothing after the #. Throws where that was not made by `linkTo`. */
export function linked() {
  const text = location.hash.slice(1);
  if (!text) return null;
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const asked = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  const turns = asked.prompt.map(({ role, content }) => ({ role: String(role), content: String(content) }));
  if (!turns.length || !asked.responses.length) throw new Error("nothing to score");
  return { prompt: turns, responses: asked.responses.map(String), task: asked.task ? String(asked.task) : null };
}
