/** What a scoring found: who comes first and how surely, what each response is good at, which task it was taken for. */

import { badge, capabilities, dot, matrix, reach, route } from "./charts.js";
import { make } from "./dom.js";
import { comparison, letter, percent, readable, signed } from "./words.js";

/** The responses' places by reward, best first, and each one's rank: equal rewards share one. */
export function ranked(scores) {
  const order = scores.map((_, index) => index).sort((first, second) => scores[second].reward - scores[first].reward);
  const ranks = scores.map(({ reward }) => 1 + scores.filter((other) => other.reward > reward).length);
  return { order, ranks };
}

/** The result in a sentence. */
export function summary({ scores, win_probabilities: wins }) {
  const [first, second] = ranked(scores).order;
  const note = scores.some(({ truncated }) => truncated) ? " Part of the text was too long to be read." : "";
  if (second === undefined) return `The reward is ${signed(scores[0].reward)}.${note}`;
  const share = wins[first][second];
  return `${letter(first)} comes first, ${compared(scores, first, second, share)} (${percent(share)}).${note}`;
}

/** “likely better than B”; for a truncated text only how often it wins, as nothing is known of the part that was cut. */
function compared(scores, first, other, share) {
  const truncated = scores[first].truncated || scores[other].truncated;
  return truncated ? `compared with ${letter(other)} by the part that was read` : `${comparison(share)} ${letter(other)}`;
}

/**
 * The sections of a result.
 *
 * asked: what was scored. found: {scores, win_probabilities}. before: each response's rank in the scoring before, or
 * undefined. chosen: whether a person chose the task.
 */
export function sections(asked, found, before) {
  const { order } = ranked(found.scores);
  const shown = [section("Ranking", ...ranking(asked, found, before))];
  if (Object.keys(found.scores[0].capabilities).length) {
    shown.push(section("Capabilities", capabilities(found.scores, order)));
  }
  shown.push(section("Route", ...routing(asked, found.scores[0])));
  return shown;
}

function section(title, ...content) {
  const id = `${title.toLowerCase()}-title`;
  return make("section", { "aria-labelledby": id, class: "card" }, make("h3", { id }, title), ...content);
}

function ranking(asked, { scores, win_probabilities: wins }, before) {
  const { order, ranks } = ranked(scores);
  const end = reach(scores.flatMap(({ reward, uncertainty }) => [Math.abs(reward) + (uncertainty ?? 0)]), 2);
  const lines = order.map((index) => {
    const { reward, uncertainty } = scores[index];
    const against = wins[order[0]][index];
    const said = `${letter(order[0])} is ${compared(scores, order[0], index, against)}: ${percent(against)}`;
    const notice = "Truncated: part of this text was too long to be read.";
    const spread = uncertainty === null ? null : make("span", { class: "plus-minus" }, ` ± ${uncertainty.toFixed(2)}`);
    return make(
      "li",
      { class: index === order[0] && order.length > 1 ? "first" : null },
      make("span", { class: "rank" }, `${ranks[index]}`, moved(ranks[index], before[index])),
      badge(index),
      make("span", { class: "snippet", dir: "auto" }, asked.responses[index].trim().slice(0, 300)),
      dot(reward, uncertainty ?? 0, end),
      make("span", { class: "reward" }, make("b", {}, signed(reward)), spread),
      index === order[0] ? null : make("span", { class: "wins" }, said),
      scores[index].truncated ? make("span", { class: "truncated" }, notice) : null,
    );
  });
  const spread = scores[0].uncertainty === null ? "" : " ±: how far the experts disagree.";
  const mean = scores[0].task === null ? "higher is better" : "standard deviations about the task’s mean";
  const unit = `Reward: ${mean}.${spread} Scale: −${end} to +${end}.`;
  const pairs = order.length > 2 ? matrix(wins, order) : null;
  return [make("ol", { class: "ranking" }, ...lines), make("p", { class: "note" }, unit), pairs];
}

function moved(rank, before) {
  if (before === undefined || before === rank) return null;
  const way = before > rank ? "up" : "down";
  const steps = make("span", { "aria-hidden": "true" }, `${way === "up" ? "▲" : "▼"}${Math.abs(before - rank)}`);
  return make("span", { class: `moved ${way}` }, steps, make("span", { class: "unseen" }, `, ${way} from ${before}`));
}

function routing(asked, { route: probabilities, task }) {
  const [[likeliest, share] = []] = Object.entries(probabilities).sort(([, first], [, second]) => second - first);
  const name = (text) => make("b", {}, readable(text));
  let said;
  if (task === null) {
    const closest = [name(likeliest ?? ""), ` came closest with ${percent(share ?? 0)}. So the `];
    const why = likeliest ? ["No task was likely enough: ", ...closest] : ["The "];
    said = [...why, name("general model"), " scored, which has no capabilities and no uncertainty."];
  } else if (asked.task) {
    said = ["You chose ", name(task), "; its experts scored."];
    if (likeliest && likeliest !== task) said.push(" The router would have taken ", name(likeliest), ".");
  } else said = ["The router took the prompt for ", name(task), "; the experts of that task scored."];
  const bars = likeliest ? route(probabilities, task) : null;
  return [make("p", {}, ...said), bars];
}
