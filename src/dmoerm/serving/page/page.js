/** The page’s events: scoring, editing, choosing an example, opening and copying a link. */

import { Failure, keepKey, keptKey, models, score } from "./api.js";
import { find, make, show } from "./dom.js";
import * as file from "./file.js";
import * as form from "./form.js";
import { linked, linkTo } from "./link.js";
import { ranked, sections, summary } from "./results.js";
import { plural, signed } from "./words.js";

const BLANK = { prompt: [{ role: "user", content: "" }], responses: ["", ""], task: null };
let scored = null; // the last result: its item as text, its sentence, each response’s outcome, and response id → rank
let weights = {}; // capability → weight in the reward, of those that are not 1
let running = null; // the abort controller of the current request

/** What is scored and linked to: the form’s item, with weights if any is set. */
const current = () => ({ ...form.item(), ...(Object.keys(weights).length ? { weights } : {}) });

const setStatus = (text) => (find("status").textContent = text);

/** Shows a short message beside the buttons for four seconds. */
function notify(text) {
  find("notice").textContent = text;
  setTimeout(() => find("notice").textContent === text && (find("notice").textContent = ""), 4000);
}

// --- scoring -------------------------------------------------------------------------------------------------------

async function run() {
  if (!form.complete()) return edited();
  const item = current();
  const identities = form.identities();
  const leaving = [find("failure"), find("key-row")].some((part) => part.contains(document.activeElement)); // both hide
  running?.abort();
  const mine = (running = new AbortController());
  history.replaceState(null, "", linkTo(item));
  if (find("key").value) keepKey(find("key").value);
  busy(true, `Scoring ${plural(item.responses.length, "response")}…`);
  try {
    const result = await score(item, mine.signal);
    if (mine === running) succeeded(item, identities, result, leaving);
  } catch (error) {
    if (mine === running) failed(error);
  } finally {
    if (mine === running) busy(false);
  }
}

function busy(is, text) {
  find("results").setAttribute("aria-busy", String(is));
  if (!is) return;
  find("empty").hidden = true;
  show("failure");
  setStatus(text);
}

function succeeded(item, identities, result, leaving) {
  const { ranks } = ranked(result.scores);
  const before = identities.map((identity) => scored?.ranks[identity]);
  const outcomes = result.scores.map(({ reward }, i) => `${ranks.length > 1 ? `#${ranks[i]}, ` : ""}${signed(reward)}`);
  const ranksById = Object.fromEntries(identities.map((identity, i) => [identity, ranks[i]]));
  scored = { item: JSON.stringify(item), sentence: summary(result), outcomes, ranks: ranksById };
  find("key-row").hidden = true;
  if (!find("model").textContent) showModel();
  const field = document.activeElement.matches(".weight") ? document.activeElement.id : null;
  find("sections").replaceChildren(...sections(item, result, before, weigh));
  edited();
  if (field && find(field)) find(field).focus();
  else reveal(leaving);
}

/** Sets a capability’s weight and scores again. */
function weigh(capability, weight) {
  const { [capability]: _, ...others } = weights;
  weights = weight === 1 ? others : { ...others, [capability]: weight };
  run();
}

/** Focuses the result if it is out of sight or the focus would be lost; otherwise typing is not interrupted. */
function reveal(must = false) {
  const { top } = find("results-title").getBoundingClientRect();
  if (!must && top >= 0 && top < innerHeight * 0.4) return;
  find("results-title").focus({ preventScroll: true });
  find("results-title").scrollIntoView();
}

function failed(error) {
  let message = error instanceof Failure ? error.message : "The server’s answer does not match this page.";
  if (error.status === 401) message = keptKey() ? "The server rejects this key." : "This server requires a key.";
  if (error.status === 429 || error.status === 503) message = "The server is busy or not ready.";
  if (error.wait) message += ` Try again in ${plural(error.wait, "second")}.`;
  edited();
  setStatus(scored ? "Not scored. The last result is below." : "Not scored.");
  if (error.status === 401) {
    find("key-row").hidden = false;
    show("failure", make("p", {}, message));
    find("key").select();
    find("key").focus();
    return;
  }
  show("failure", make("p", {}, message), make("button", { type: "button", onclick: run }, "Try again"));
  reveal();
}

/** Marks the result as outdated after an edit, until the edit is undone. */
function edited() {
  const stale = scored !== null && scored.item !== JSON.stringify(current());
  find("results").classList.toggle("stale", stale);
  find("score").textContent = stale ? "Score again" : "Score";
  form.mark(stale ? [] : (scored?.outcomes ?? []));
  if (stale) setStatus("Edited since then. Score again to update the result.");
  else if (scored) setStatus(scored.sentence);
}

// --- links and examples --------------------------------------------------------------------------------------------

/** Fills in the item of the address and scores it; without one, the form is empty. */
function open() {
  let item = null;
  forget();
  try {
    item = linked();
  } catch {
    show("failure", make("p", {}, "The link is damaged and has no conversation. Copy it again, or write a prompt here."));
  }
  weights = item?.weights ?? {};
  form.fill(item ?? BLANK);
  if (item) run();
}

function forget() {
  scored = null;
  running?.abort();
  running = null;
  busy(false);
  find("sections").replaceChildren();
  show("failure");
  find("results").classList.remove("stale");
  find("empty").hidden = false;
  find("score").textContent = "Score";
  setStatus("");
}

async function copy() {
  history.replaceState(null, "", linkTo(current()));
  const done = navigator.clipboard?.writeText(location.href); // available on https and localhost only
  const copied = await done?.then(() => true, () => false);
  notify(copied ? "Link copied" : "The link is in the address bar");
}

function pick({ prompt, responses }) {
  const item = current();
  const written = [...item.responses, ...item.prompt.map(({ content }) => content)].some((text) => text.trim());
  if (written) history.replaceState(null, "", linkTo(item)); // so that the browser’s Back restores it
  history.pushState(null, "", linkTo({ prompt, responses, task: null })); // the router names the task
  open();
}

// --- start -------------------------------------------------------------------------------------------------

async function showModel() {
  try {
    const [{ id, tasks }] = await models();
    find("model").textContent = id;
    form.offer(Object.keys(tasks));
    await showExamples(tasks);
  } catch (error) {
    if (error.status === 401) find("key-row").hidden = false; // scoring reports other errors
    if (error.status === 503) setTimeout(showModel, 1000 * (error.wait ?? 2)); // the model is loading
  }
}

/** Offers the examples of the model’s own tasks. */
async function showExamples(tasks) {
  const examples = (await (await fetch("page/examples.json")).json()).filter(({ task }) => task in tasks);
  const button = (example) => make("button", { type: "button", onclick: () => pick(example) }, example.name);
  find("examples").replaceChildren(...examples.map(button));
  find("examples").parentElement.hidden = !examples.length;
}

form.setUp(edited, notify);
file.setUp(() => current().weights);
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});
find("task").addEventListener("change", () => {
  weights = {}; // of another task’s capabilities
  edited();
});
find("copy").addEventListener("click", copy);
find("shortcut").textContent = navigator.platform.startsWith("Mac") ? "⌘ Enter" : "Ctrl Enter";
addEventListener("hashchange", open);
showModel();
open();
