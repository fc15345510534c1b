/** Bars around zero, bars from zero, and the table of win probabilities. Every color has its number beside it. */

import { make } from "./dom.js";
import { contributor, letter, percent, readable, signed } from "./words.js";

export const badge = (index) => make("span", { class: "letter" }, letter(index));

/** The end of a scale for all values: a whole number, at least `least`. */
export const reach = (values, least) => Math.max(least, Math.ceil(Math.max(...values.map(Math.abs))));

/** The position of a value on a scale from −end to end, in percent. */
const position = (value, end) => `${(50 + (50 * value) / end).toFixed(2)}%`;

function bar(value, end) {
  const [from, to] = [Math.min(value, 0), Math.max(value, 0)];
  const style = { left: position(from, end), width: `${((50 * (to - from)) / end).toFixed(2)}%` };
  return track(make("span", { class: value < 0 ? "fill below" : "fill", style }));
}

/** A reward as a dot, with the uncertainty as a line through it. */
export function dot(value, spread, end) {
  const width = { left: position(Math.max(-end, value - spread), end), right: position(-Math.min(end, value + spread), end) };
  const line = spread ? make("span", { class: "spread", style: width }) : null;
  return track(line, make("span", { class: value < 0 ? "dot below" : "dot", style: { left: position(value, end) } }));
}

const track = (...marks) => make("span", { class: "track", "aria-hidden": "true" }, ...marks);

/** The field of a capability’s weight in the reward. `weigh` gets the name and the new weight. */
function weightField(name, weight, index, weigh) {
  const changed = ({ target }) => target.reportValidity() && weigh(name, target.valueAsNumber);
  const range = { type: "number", min: -10, max: 10, step: "any", required: true, value: weight };
  const label = `Weight of ${readable(name)}`;
  return make("input", { ...range, id: `weight-${index}`, class: "weight", "aria-label": label, onchange: changed });
}

/**
 * One row per capability and one column per response, best first, all on the same scale.
 *
 * weights: capability → weight, of those that are not 1. weigh: see `weightField`.
 */
export function capabilities(scores, order, weights, weigh) {
  const names = Object.keys(scores[0].capabilities);
  const end = reach(scores.flatMap((score) => Object.values(score.capabilities)), 3);
  const rows = names.map((name, row) => {
    const header = [make("span", {}, readable(name)), weightField(name, weights[name] ?? 1, row, weigh)];
    return { header, values: scores.map((score) => score.capabilities[name]) };
  });
  const unit = `Standard deviations from the training data’s mean. Scale of every bar: −${end} to +${end}.`;
  const caption = `${unit} The number beside a name is its weight in the reward, −10 to +10; 1 is as trained.`;
  return table("capabilities", rows, order, end, caption);
}

/** One row per contribution and one column per response, best first; the last row is their sum, the reward. */
export function contributions(scores, order) {
  const names = [...new Set(scores.flatMap((score) => Object.keys(score.contributions)))];
  const end = reach(scores.flatMap((score) => Object.values(score.contributions)), 1);
  const rows = names.map((name) => {
    const values = scores.map((score) => score.contributions[name]);
    const none = values.every((value) => !value) ? make("span", { class: "tag" }, "no weight") : null;
    return { header: [make("span", {}, contributor(name)), " ", none], values };
  });
  const sums = scores.map(({ contributions: each }) => Object.values(each).reduce((sum, value) => (sum ?? 0) + value, undefined));
  rows.push({ header: ["Sum: the reward"], values: sums, sum: true });
  const caption = `Parts of the reward, compared with an average response. Scale of every bar: −${end} to +${end}.`;
  return table("contributions", rows, order, end, caption);
}

/** A table of bars. rows: {header, values by response (undefined: unknown), sum: without bars}. */
function table(kind, rows, order, end, caption) {
  const heads = order.map((index) => make("th", { scope: "col", role: "columnheader" }, badge(index)));
  const body = rows.map(({ header, values, sum }) => {
    const best = Math.max(...values.filter((value) => value !== undefined));
    const cells = order.map((index) => {
      const value = values[index];
      const strong = order.length > 1 && value === best ? "value best" : "value";
      const who = make("span", { class: "who", "aria-hidden": "true" }, letter(index));
      const line = sum || value === undefined ? null : bar(value, end);
      return make("td", { role: "cell" }, who, line, make("span", { class: strong }, value === undefined ? "–" : signed(value)));
    });
    return make("tr", { role: "row", class: sum ? "sum" : null }, make("th", { scope: "row", role: "rowheader" }, ...header), ...cells);
  });
  return make(
    "table",
    { class: `scores ${kind}${order.length > 4 ? " many" : ""}`, role: "table" }, // roles: they survive `display`
    make("caption", {}, caption),
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, make("td", { role: "cell" }), ...heads)),
    make("tbody", { role: "rowgroup" }, ...body),
  );
}

/** The tasks by probability; `scored` is the one whose experts scored. */
export function route(probabilities, scored) {
  const tasks = Object.entries(probabilities).sort(([, first], [, second]) => second - first);
  const shown = tasks.length > 8 ? tasks.slice(0, 6) : tasks;
  const lines = shown.map(([task, share]) => {
    const name = make("span", { class: "task" }, readable(task));
    if (task === scored) name.append(" ", make("span", { class: "tag" }, "scored"));
    const fill = make("span", { class: "fill", style: { left: "0%", width: `${(100 * share).toFixed(2)}%` } });
    const bar = make("span", { class: "track plain", "aria-hidden": "true" }, fill);
    return make("li", {}, name, bar, make("span", { class: "value" }, percent(share)));
  });
  const rest = tasks.slice(shown.length);
  if (rest.length) {
    const share = make("span", { class: "value" }, percent(rest.reduce((sum, [, each]) => sum + each, 0)));
    lines.push(make("li", {}, make("span", { class: "task" }, `${rest.length} more, in total`), share));
  }
  return make("ul", { class: "route" }, ...lines);
}

/** The probability that each row’s response beats each column’s, collapsed. */
export function matrix(wins, order) {
  const heading = (index, scope) => make("th", { scope }, badge(index));
  const cell = (row, column) => {
    if (row === column) return make("td", { class: "self" }, "–");
    const share = wins[row][column];
    const strength = `${Math.round(Math.abs(share - 0.5) * 70)}%`; // at most 35 %, so that the number stays readable
    const heat = { class: share < 0.5 ? "heat below" : "heat", style: { "--strength": strength } };
    return make("td", heat, String(Math.round(share * 100)));
  };
  const body = order.map((row) => make("tr", {}, heading(row, "row"), ...order.map((column) => cell(row, column))));
  const header = make("tr", {}, make("td"), ...order.map((column) => heading(column, "col")));
  const caption = make("caption", {}, "Probability that people prefer the row’s response to the column’s, in %.");
  const table = make("table", { class: "matrix" }, caption, make("thead", {}, header), make("tbody", {}, ...body));
  return make("details", {}, make("summary", {}, "All pairs"), table);
}
