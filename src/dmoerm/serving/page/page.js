/** The page at work: what happens when somebody scores, edits, picks an example, opens or copies a link. */

import { Failure, keepKey, keptKey, models, score } from "./api.js";
import { find, make, show } from "./dom.js";
import * as form from "./form.js";
import { linked, linkTo } from "./link.js";
import { ranked, sections, summary } from "./results.js";
import { plural, signed } from "./words.js";

const BLANK = { prompt: [{ role: "user", content: "" }], responses: ["", ""], task: null };
let scored = null; // the last scoring: what was asked, as text; what is said of all and of each; response → rank
let running = null; // the scoring under way can be aborted

const say = (text) => (find("status").textContent = text);

/** A word about what a button or a paste did, beside the buttons for a while. */
function tell(text) {
  find("told").textContent = text;
  setTimeout(() => find("told").textContent === text && (find("told").textContent = ""), 4000);
}

// --- scoring -------------------------------------------------------------------------------------------------------

async function run() {
  if (!form.complete()) return;
  const asked = form.asked();
  const identities = form.identities();
  const leaving = [find("failure"), find("key-row")].some((part) => part.contains(document.activeElement)); // both hide
  running?.abort();
  const mine = (running = new AbortController());
  history.replaceState(null, "", linkTo(asked));
  if (find("key").value) keepKey(find("key").value);
  busy(true, `Scoring ${plural(asked.responses.length, "response")}…`);
  try {
    const found = await score(asked, mine.signal);
    if (mine === running) succeeded(asked, identities, found, leaving);
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
  say(text);
}

function succeeded(asked, identities, found, leaving) {
  const { ranks } = ranked(found.scores);
  const before = identities.map((identity) => scored?.ranks[identity]);
  const outcomes = found.scores.map(({ reward }, i) => `${ranks.length > 1 ? `#${ranks[i]}, ` : ""}${signed(reward)}`);
  const places = Object.fromEntries(identities.map((identity, i) => [identity, ranks[i]]));
  scored = { asked: JSON.stringify(asked), sentence: summary(found), outcomes, ranks: places };
  find("key-row").hidden = true;
  if (!find("model").textContent) showModel();
  find("found").replaceChildren(...sections(asked, found, before));
  edited();
  reveal(leaving);
}

/** Leads to the result where it is out of sight, or where the focus would be lost; else whoever is typing goes on. */
function reveal(must = false) {
  const { top } = find("results-title").getBoundingClientRect();
  if (!must && top >= 0 && top < innerHeight * 0.4) return;
  find("results-title").focus({ preventScroll: true });
  find("results-title").scrollIntoView();
}

function failed(error) {
  let message = error instanceof Failure ? error.message : "The server’s answer does not fit this page.";
  if (error.status === 401) message = keptKey() ? "The server does not take this key." : "This server wants a key.";
  if (error.status === 429) message = "The server is busy.";
  if (error.status === 503) message = "The server is not ready.";
  if (error.wait) message += ` It asks to wait ${plural(error.wait, "second")}.`;
  edited();
  say(scored ? "Not scored. Below is the last result." : "Not scored.");
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

/** After an edit: an older result is said to be older, until the edit is undone. */
function edited() {
  const stale = scored !== null && scored.asked !== JSON.stringify(form.asked());
  find("results").classList.toggle("stale", stale);
  find("score").textContent = stale ? "Score again" : "Score";
  form.mark(stale ? [] : (scored?.outcomes ?? []));
  if (stale) say("Edited since. Score again to bring this up to date.");
  else if (scored) say(scored.sentence);
}

// --- links and examples --------------------------------------------------------------------------------------------

/** Fills in what the address holds and scores it; without anything, the page begins empty. */
function open() {
  let asked = null;
  forget();
  try {
    asked = linked();
  } catch {
    show("failure", make("p", {}, "The link is damaged: it holds no conversation. Ask for it again, or begin here."));
  }
  form.fill(asked ?? BLANK);
  if (asked) run();
}

function forget() {
  scored = null;
  running?.abort();
  running = null;
  busy(false);
  find("found").replaceChildren();
  show("failure");
  find("results").classList.remove("stale");
  find("empty").hidden = false;
  find("score").textContent = "Score";
  say("");
}

async function copy() {
  history.replaceState(null, "", linkTo(form.asked()));
  const done = navigator.clipboard?.writeText(location.href); // browsers offer it on https and localhost alone
  const copied = await done?.then(() => true, () => false);
  tell(copied ? "Link copied" : "The link is in the address bar");
}

function pick({ prompt, responses, task }) {
  const asked = form.asked();
  const written = [...asked.responses, ...asked.prompt.map(({ content }) => content)].some((text) => text.trim());
  if (written) history.replaceState(null, "", linkTo(asked)); // the browser's Back brings it back
  history.pushState(null, "", linkTo({ prompt, responses, task: task ?? null }));
  open();
}

// --- the beginning -------------------------------------------------------------------------------------------------

async function showModel() {
  try {
    const [{ id, tasks }] = await models();
    find("model").textContent = id;
    form.offer(Object.keys(tasks));
  } catch (error) {
    if (error.status === 401) find("key-row").hidden = false; // scoring says whatever else is wrong
    if (error.status === 503) setTimeout(showModel, 1000 * (error.wait ?? 2)); // the model is being loaded
  }
}

async function showExamples() {
  const examples = await (await fetch("page/examples.json")).json();
  const button = (example) => make("button", { type: "button", onclick: () => pick(example) }, example.name);
  find("examples").replaceChildren(...examples.map(button));
}

form.setUp(edited, tell);
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
find("copy").addEventListener("click", copy);
find("shortcut").textContent = navigator.platform.startsWith("Mac") ? "⌘ Enter" : "Ctrl Enter";
addEventListener("hashchange", open);
showModel();
showExamples();
open();
