/** The page’s events: a name, answers by mouse and keyboard, undo. The server’s answer is always the whole state. */

import { find, make, show } from "./dom.js";
import { Failure, send } from "./send.js";

const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "tie", s: "skip" };
const SAID = { left: "Left is better", right: "Right is better", tie: "Equally good", skip: "Skipped" };
let state = null; // the server’s last answer
let busy = false; // one request at a time, so that a key that is pressed twice answers one question

const annotator = () => new URLSearchParams(location.search).get("annotator")?.trim() ?? "";

// --- requests --------------------------------------------------------------------------------------------------------

/** Sends a request, shows the new state, and offers to repeat the request if it fails. */
async function request(address, body, said) {
  if (busy) return;
  busy = true;
  try {
    render(await send(address, body ? { method: "POST", body: JSON.stringify(body) } : {}), said);
  } catch (error) {
    failed(error, () => request(address, body, said));
  } finally {
    busy = false;
  }
}

function failed(error, retry) {
  const message = error instanceof Failure ? error.message : "The server’s answer does not match this page.";
  find("status").textContent = "Not saved.";
  show("failure", make("p", {}, message), make("button", { type: "button", onclick: retry }, "Try again"));
}

function answer(choice) {
  if (!state?.question || find("work").hidden) return;
  const { pair, capability, left, title } = state.question;
  request("v1/answer", { annotator: state.annotator, pair, capability, left, choice }, `Saved, ${title}: ${SAID[choice]}.`);
}

function undo() {
  if (state?.undo) request("v1/undo", { annotator: state.annotator }, "The last answer is removed.");
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function render(next, said = "") {
  const before = state?.question?.pair;
  state = next;
  const { question } = state;
  show("failure");
  find("start").hidden = true;
  find("who").textContent = state.annotator;
  find("progress-row").hidden = find("tools").hidden = false;
  find("count").textContent = `${state.answered} of ${state.total}`;
  Object.assign(find("progress"), { max: Math.max(1, state.total), value: state.answered });
  find("undo").disabled = !state.undo;
  find("work").hidden = !question;
  find("end").hidden = Boolean(question);
  if (question) renderQuestion(question, question.pair !== before);
  find("status").textContent = [said, question ? `Next: ${heading(question)}` : "All questions are answered."].join(" ").trim();
  renderAgreement();
  if (document.activeElement === document.body) find(question ? "question-title" : "end-title").focus({ preventScroll: true });
}

const heading = ({ title, step, steps }) => (steps > 1 ? `${title} (${step} of ${steps})` : title);

function renderQuestion(question, isNewPair) {
  find("question-title").textContent = heading(question);
  find("rubric").textContent = question.rubric;
  if (!isNewPair) return;
  find("task").hidden = !question.task;
  find("task").textContent = question.task?.replaceAll("_", " ") ?? "";
  find("turns").replaceChildren(...question.prompt.map(turn));
  find("left").textContent = question.responses[0];
  find("right").textContent = question.responses[1];
  scrollTo(0, 0);
}

function turn({ role, content }) {
  return make("li", {}, make("div", { class: "role" }, role), make("div", { class: "written", dir: "auto" }, content));
}

function renderAgreement() {
  find("agreement").hidden = !state.agreement.length;
  find("rows").replaceChildren(...state.agreement.map(row));
}

function row({ first, second, capability, pairs, agreement, kappa }) {
  const value = kappa === null ? "–" : kappa.toFixed(2).replace("-", "−");
  const cells = [`${first}, ${second}`, capability.replaceAll("_", " "), pairs, `${Math.round(100 * agreement)}%`, value];
  return make("tr", {}, ...cells.map((text) => make("td", {}, String(text))));
}

// --- start -----------------------------------------------------------------------------------------------------------

/** Opens the annotator’s next question, or asks for a name. */
function open() {
  state = null;
  if (annotator()) return request(`v1/question?annotator=${encodeURIComponent(annotator())}`);
  for (const id of ["work", "end", "tools", "agreement", "progress-row"]) find(id).hidden = true;
  find("who").textContent = "";
  find("start").hidden = false;
  find("name").focus();
}

find("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = find("name").value.trim();
  if (!name) return find("name").focus();
  history.pushState(null, "", `?${new URLSearchParams({ annotator: name })}`);
  open();
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => answer(button.dataset.choice));
}
find("undo").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
  if (typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !find("shortcuts").checked) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key !== "u" && !(key in KEYS)) return;
  event.preventDefault();
  if (key === "u") undo();
  else answer(KEYS[key]);
});
addEventListener("popstate", open);
open();
