/** Scores a JSON Lines file in batches, behind all interactive requests; the rows have the columns that `dmoerm score` writes. */

import { keepKey, scoreAll } from "./api.js";
import { find, make, show } from "./dom.js";
import { plural } from "./words.js";

const RESPONSES = 64; // of a batch, at most, unless one row has more
const CHARACTERS = 500_000; // of a batch's lines: bodies stay below the server's limit in any language
const SHOWN = 20; // reasons of skipped lines
let job = null; // the chosen file: {lines, next, rows, responses, skipped}
let running = null; // the abort controller while batches are sent

/** Connects the fields. `weights` returns the current weights, or undefined. */
export function setUp(weights) {
  find("file").onclick = () => (find("file").value = ""); // so that the same file can be chosen again after an edit
  find("file").onchange = choose;
  find("file-score").onclick = () => (running ? running.abort() : run(weights()));
  find("file-save").onclick = save;
}

async function choose() {
  const [file] = find("file").files;
  const text = (await file?.text()) ?? ""; // decoded as UTF-8, without a byte order mark
  const lines = text.split("\n").map((line, index) => ({ line, number: index + 1 }));
  running?.abort();
  running = null;
  job = { name: file?.name, lines: lines.filter(({ line }) => line.trim()), next: 0, rows: [], responses: 0, skipped: [] };
  update(job.lines.length ? `${plural(job.lines.length, "row")} to score.` : "The file has no rows.");
}

/** Shows how far the job is; `status` is announced. */
function update(status) {
  const { lines, next, rows, skipped } = job;
  find("file-score").disabled = next >= lines.length;
  find("file-score").textContent = running ? "Stop" : next && next < lines.length ? "Continue" : "Start";
  find("file-save").disabled = !rows.length;
  find("file-progress").max = Math.max(1, lines.length);
  find("file-progress").value = next;
  find("file-count").textContent = `${next} of ${lines.length}`;
  if (status !== undefined) find("file-status").textContent = status;
  const reasons = skipped.slice(0, SHOWN).map((reason) => make("li", {}, reason));
  if (skipped.length > SHOWN) reasons.push(make("li", {}, `and ${skipped.length - SHOWN} more`));
  show("file-skipped", ...reasons);
}

async function run(weights) {
  if (find("key").value) keepKey(find("key").value);
  const [mine, current] = [new AbortController(), job];
  running = mine;
  update("Scoring the file…");
  let problem = "Stopped. Continue, or save the rows so far.";
  try {
    while (current.next < current.lines.length) {
      const batch = nextBatch(current);
      for (const { row, responses, reason } of await outcomes(batch, weights, mine.signal)) {
        if (reason) current.skipped.push(reason);
        else current.rows.push(JSON.stringify(row) + "\n");
        current.responses += responses ?? 0;
      }
      current.next += batch.length;
      if (current === job) update();
    }
    problem = null;
  } catch (error) {
    if (error.status === 401) find("key-row").hidden = false;
    if (error.status === 401) problem = "This server requires a key. Enter it above, and continue.";
    else if (error.name !== "AbortError") problem = `${error.message} Continue to try again.`;
  }
  if (running === mine) running = null;
  if (current === job) update(problem ?? summary(current));
}

function summary({ rows, responses, skipped }) {
  const left = skipped.length ? ` ${plural(skipped.length, "row")} skipped.` : "";
  return `Scored ${plural(rows.length, "prompt")} with ${plural(responses, "response")}.${left}`;
}

function nextBatch({ lines, next }) {
  const batch = [];
  let [responses, characters] = [0, 0];
  for (const { line, number } of lines.slice(next, next + RESPONSES)) {
    const row = parsed(line);
    responses += row?.responses?.length ?? 0;
    characters += line.length;
    if (batch.length && (responses > RESPONSES || characters > CHARACTERS)) break;
    batch.push({ row, number });
  }
  return batch;
}

/** A line’s row, or null if it is not a JSON object. */
function parsed(line) {
  try {
    const row = JSON.parse(line);
    return row !== null && typeof row === "object" && !Array.isArray(row) ? row : null;
  } catch {
    return null;
  }
}

/** What became of each row: {row, responses} or {reason}. A rejected batch is halved until the row at fault is alone. */
async function outcomes(batch, weights, signal) {
  const [{ row: first, number }] = batch;
  if (batch.length === 1 && !first) return [{ reason: `Line ${number}: not a JSON object` }];
  if (batch.every(({ row }) => row)) {
    const items = batch.map(({ row: { id, prompt, responses, task, tools } }) => ({ id, prompt, responses, task, tools }));
    try {
      const answers = await patiently(() => scoreAll(items, weights, signal), signal);
      return answers.map((answer, i) => ({ row: rowOf(answer, batch[i].number), responses: answer.scores.length }));
    } catch (error) {
      if (![400, 413, 422, 500].includes(error.status)) throw error;
      if (batch.length === 1) return [{ reason: `Line ${number}: ${error.message.replace(/^items\.0\./, "")}` }];
    }
  }
  const half = batch.length >> 1;
  const before = await outcomes(batch.slice(0, half), weights, signal);
  return [...before, ...(await outcomes(batch.slice(half), weights, signal))];
}

/** The answer of `ask`, which is repeated while the server is busy or loads its model. */
async function patiently(ask, signal) {
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 429 && error.status !== 503) throw error;
      await new Promise((go) => setTimeout(go, 1000 * (error.wait ?? 2)));
      signal.throwIfAborted();
    }
  }
}

function rowOf({ id, scores }, line) {
  const [{ task, route, temperature }] = scores;
  const column = (name) => scores.map((score) => score[name]);
  const named = (kind) => {
    const names = [...new Set(column(kind).flatMap(Object.keys))];
    return Object.fromEntries(names.map((name) => [name, column(kind).map((values) => values[name] ?? null)]));
  };
  const known = scores.some(({ uncertainty }) => uncertainty !== null);
  const uncertainty = known ? column("uncertainty") : null;
  const [truncated, contributions] = [column("truncated"), named("contributions")];
  const capabilities = named("capabilities");
  return { id, line, task, route, rewards: column("reward"), capabilities, uncertainty, temperature, truncated, contributions };
}

/** Saves the scored rows as JSON Lines. */
function save() {
  const href = URL.createObjectURL(new Blob(job.rows, { type: "application/jsonl" }));
  make("a", { href, download: job.name.replace(/(\.\w+)?$/, "-scored.jsonl") }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
