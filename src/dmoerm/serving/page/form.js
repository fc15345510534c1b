/** The conversation, the responses and the task as a person edits them. The page's own fields hold them. */

import { copyOf, find, make } from "./dom.js";
import { turnsOf } from "./turns.js";
import { letter, readable } from "./words.js";

const MOST = 8; // responses that can be compared at a glance
let made = 0; // responses so far: each keeps its number while others come and go

const rows = (list) => [...find(list).children];
const fieldOf = (row) => row.querySelector("textarea");

/** Makes the buttons work; `changed` is called after every edit, `said` with what should be told. */
export function setUp(changed, said) {
  find("add-turns").onclick = () => {
    const last = rows("turns").at(-1)?.querySelector(".role").value;
    const first = addTurn(last === "user" ? "assistant" : "user");
    if (last === "user") addTurn("user");
    finish(fieldOf(first));
  };
  find("add-system").onclick = () => finish(fieldOf(addTurn("system", "", find("turns").firstChild)));
  find("add-response").onclick = () => finish(fieldOf(addResponse()));
  find("form").addEventListener("input", () => finish());
  find("form").addEventListener("click", ({ target }) => target.matches(".remove") && remove(target.closest("li")));
  find("turns").addEventListener("paste", (event) => pasted(event) && said("Split into turns"));

  function finish(focused) {
    find("problem").hidden = true;
    number();
    changed();
    focused?.focus();
  }

  function remove(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    finish(fieldOf(next));
  }

  function pasted(event) {
    const field = event.target;
    const whole = field.matches("textarea") && field.selectionEnd - field.selectionStart === field.value.length;
    const turns = whole && turnsOf(event.clipboardData.getData("text"));
    if (!turns) return false;
    event.preventDefault();
    const row = field.closest("li");
    const answer = turns.at(-1).role === "assistant" && !row.nextElementSibling ? turns.pop().content : "";
    const added = turns.map(({ role, content }) => addTurn(role, content, row));
    row.remove();
    if (answer) fieldOf(rows("responses").find((response) => !fieldOf(response).value) ?? addResponse()).value = answer;
    finish(fieldOf(added.at(-1)));
    return true;
  }
}

function addTurn(role, content = "", before = null) {
  const row = copyOf("turn");
  row.querySelector(".role").value = role;
  fieldOf(row).value = content;
  find("turns").insertBefore(row, before);
  return row;
}

function addResponse(text = "") {
  const row = copyOf("response");
  made += 1;
  row.dataset.id = made;
  fieldOf(row).id = `response-${made}`;
  row.querySelector("label").htmlFor = `response-${made}`;
  fieldOf(row).value = text;
  find("responses").append(row);
  return row;
}

/** Names every field and button by its place, and hides the buttons that have nothing to do. */
function number() {
  rows("turns").forEach((row, index, all) => {
    const role = row.querySelector(".role");
    row.dataset.role = role.value;
    role.setAttribute("aria-label", `Role of turn ${index + 1}`);
    fieldOf(row).setAttribute("aria-label", `Turn ${index + 1}, ${role.value}`);
    fieldOf(row).placeholder = role.value === "user" ? "What the user says, or a whole conversation to split" : "";
    row.querySelector(".remove").setAttribute("aria-label", `Remove turn ${index + 1}`);
    row.querySelector(".remove").hidden = all.length === 1;
  });
  rows("responses").forEach((row, index, all) => {
    row.querySelector(".letter").textContent = letter(index);
    row.querySelector(".name").textContent = `Response ${letter(index)}`;
    row.querySelector(".remove").setAttribute("aria-label", `Remove response ${letter(index)}`);
    row.querySelector(".remove").hidden = all.length === 1;
  });
  find("add-system").hidden = rows("turns")[0]?.dataset.role === "system";
  find("add-response").hidden = rows("responses").length >= MOST;
}

/** Puts what is to be scored into the fields. */
export function fill({ prompt, responses, task }) {
  find("turns").replaceChildren();
  find("responses").replaceChildren();
  for (const { role, content } of prompt) addTurn(role, content);
  for (const text of responses.slice(0, MOST)) addResponse(text);
  choose(task ?? "");
  number();
}

/** What the fields hold, as the server is asked. */
export const asked = () => ({
  prompt: rows("turns").map((row) => ({ role: row.querySelector(".role").value, content: fieldOf(row).value })),
  responses: rows("responses").map((row) => fieldOf(row).value),
  task: find("task").value || null,
});

/** The responses' numbers, which stay when their places or texts change. */
export const identities = () => rows("responses").map((row) => row.dataset.id);

/** What keeps the fields from being scored: shown, and the field to blame focused. True where nothing does. */
export function complete() {
  for (const field of document.querySelectorAll("#form textarea")) field.removeAttribute("aria-invalid");
  const turns = rows("turns");
  const last = turns.at(-1);
  const emptyTurn = turns.find((row) => !fieldOf(row).value.trim());
  const emptyResponse = rows("responses").find((row) => !fieldOf(row).value.trim());
  let problem = null;
  if (last.dataset.role !== "user") problem = [last, "The conversation must end with a user turn."];
  else if (emptyTurn) problem = [emptyTurn, `${fieldOf(emptyTurn).getAttribute("aria-label")}, is empty.`];
  else if (emptyResponse) {
    problem = [emptyResponse, `${emptyResponse.querySelector(".name").textContent} is empty: write it or remove it.`];
  }
  find("problem").textContent = problem?.[1] ?? "";
  find("problem").hidden = !problem;
  if (!problem) return true;
  fieldOf(problem[0]).setAttribute("aria-invalid", "true");
  fieldOf(problem[0]).focus();
  return false;
}

/** Offers the served model's tasks. */
export function offer(tasks) {
  const chosen = find("task").value;
  find("task").append(...tasks.map((task) => make("option", { value: task }, readable(task))));
  find("task").value = "";
  choose(chosen);
}

function choose(task) {
  const known = [...find("task").options].filter(({ value }) => value === task);
  if (!known.length) find("task").append(make("option", { value: task }, readable(task)));
  if (known.length > 1) known.slice(1).forEach((option) => option.remove()); // a link named it before the server did
  find("task").value = task;
}

/** Writes beside each response what came of it; nothing where `texts` is empty. */
export function mark(texts) {
  rows("responses").forEach((row, index) => {
    row.querySelector(".outcome").textContent = texts[index] ?? "";
  });
}
