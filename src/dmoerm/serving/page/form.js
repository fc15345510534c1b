/** The form: conversation, responses and task. Its fields hold the state. */

import { copyOf, find, make } from "./dom.js";
import { letter, readable } from "./words.js";

const MAX_RESPONSES = 8; // more cannot be compared at a glance
let made = 0; // responses so far: each keeps its number while others come and go

const rows = (list) => [...find(list).children];
const fieldOf = (row) => row.querySelector("textarea");

/** Connects the buttons. `changed` is called after every edit, `notify` with messages for people. */
export function setUp(changed, notify) {
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
  find("turns").addEventListener("paste", (event) => pasted(event) && notify("Split into turns"));

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

/** Numbers the labels of fields and buttons, and hides buttons without a function. */
function number() {
  rows("turns").forEach((row, index, all) => {
    const role = row.querySelector(".role");
    row.dataset.role = role.value;
    role.setAttribute("aria-label", `Role of turn ${index + 1}`);
    fieldOf(row).setAttribute("aria-label", `Turn ${index + 1}, ${role.value}`);
    fieldOf(row).placeholder = role.value === "user" ? "The user’s message, or a whole conversation to split" : "";
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
  find("add-response").hidden = rows("responses").length >= MAX_RESPONSES;
}

/** Fills the fields. */
export function fill({ prompt, responses, task }) {
  find("turns").replaceChildren();
  find("responses").replaceChildren();
  for (const { role, content } of prompt) addTurn(role, content);
  for (const text of responses.slice(0, MAX_RESPONSES)) addResponse(text);
  choose(task ?? "");
  number();
}

/** The fields’ content, as an item of a request. */
export const item = () => ({
  prompt: rows("turns").map((row) => ({ role: row.querySelector(".role").value, content: fieldOf(row).value })),
  responses: rows("responses").map((row) => fieldOf(row).value),
  task: find("task").value || null,
});

/** The responses’ ids, which do not change when responses are moved or edited. */
export const identities = () => rows("responses").map((row) => row.dataset.id);

/** Whether the fields can be scored; otherwise shows the reason and focuses the field. */
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
    problem = [emptyResponse, `${emptyResponse.querySelector(".name").textContent} is empty: write a text or remove it.`];
  }
  find("problem").textContent = problem?.[1] ?? "";
  find("problem").hidden = !problem;
  if (!problem) return true;
  fieldOf(problem[0]).setAttribute("aria-invalid", "true");
  fieldOf(problem[0]).focus();
  return false;
}

/** Adds the served model’s tasks to the menu. */
export function offer(tasks) {
  const chosen = find("task").value;
  find("task").append(...tasks.map((task) => make("option", { value: task }, readable(task))));
  find("task").value = "";
  choose(chosen);
}

function choose(task) {
  const known = [...find("task").options].filter(({ value }) => value === task);
  if (!known.length) find("task").append(make("option", { value: task }, readable(task)));
  if (known.length > 1) known.slice(1).forEach((option) => option.remove()); // a link added it before the server did
  find("task").value = task;
}

/** Shows a result beside each response; without texts, nothing. */
export function mark(texts) {
  rows("responses").forEach((row, index) => {
    row.querySelector(".outcome").textContent = texts[index] ?? "";
  });
}

// Splits a text into turns: ChatML, and “Human: … Assistant: …” as in hh-rlhf.

const CHATML = /<\|im_start\|>\s*(system|user|assistant)\s*\n([\s\S]*?)(?:<\|im_end\|>|(?=<\|im_start\|>)|$)/g;
const SPOKEN = /^[ \t]*(System|Human|User|Assistant|AI)[ \t]*:[ \t]*/gim;
const ROLES = { human: "user", ai: "assistant" };

/** [{role, content}], or null if the text is not a conversation of at least two turns. */
function turnsOf(text) {
  let turns = [...text.matchAll(CHATML)].map(([, role, content]) => ({ role, content: content.trim() }));
  if (!turns.length) {
    const marks = [...text.matchAll(SPOKEN)];
    if (!marks.length || text.slice(0, marks[0].index).trim()) return null; // text before the first name: another format
    turns = marks.map((mark, index) => {
      const name = mark[1].toLowerCase();
      const content = text.slice(mark.index + mark[0].length, marks[index + 1]?.index).trim();
      return { role: ROLES[name] ?? name, content };
    });
  }
  turns = turns.filter(({ content }) => content);
  return turns.length > 1 && turns.some(({ role }) => role === "user") ? turns : null;
}
