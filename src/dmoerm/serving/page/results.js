/** The sections of a result: contributions, ranking with win probabilities, capabilities, route. */

import { badge, capabilities, contributions, dot, matrix, reach, route } from "./charts.js";
import { make } from "./dom.js";
import { comparison, contributor, isModel, letter, percent, readable, signed } from "./words.js";

const NAMED = 4; // contributions in a sentence, at most; the others are summed up

/** The responses’ indices by reward, best first, and each response’s rank; equal rewards share a rank. */
export function ranked(scores) {
  const order = scores.map((_, index) => index).sort((first, second) => scores[second].reward - scores[first].reward);
  const ranks = scores.map(({ reward }) => 1 + scores.filter((other) => other.reward > reward).length);
  return { order, ranks };
}

/** The result in a sentence: which response is best, and what makes it better than the next. */
export function summary({ scores, win_probabilities: wins }) {
  const [first, second] = ranked(scores).order;
  const note = scores.some(({ truncated }) => truncated) ? " A text is too long, and part of it was not read." : "";
  if (second === undefined) return `The reward is ${signed(scores[0].reward)}${reasons(scores[0])}.${note}`;
  const share = wins[first][second];
  const cut = eitherTruncated(scores, first, second);
  const words = cut ? "comes first before" : `is ${comparison(share)}`;
  return `${letter(first)} ${words} ${letter(second)} (${percent(share)})${reasons(scores[first], scores[second])}.${note}`;
}

/** A response’s contributions, or how far they are above another’s, largest first; nothing if they are unknown. */
function reasons({ contributions: own }, other) {
  const [names, less] = [Object.keys(own), other?.contributions ?? {}];
  if (!names.length || (other && !Object.keys(less).length)) return "";
  const sum = (parts) => parts.reduce((total, [, value]) => total + value, 0);
  const parts = names.map((name) => [name, own[name] - (less[name] ?? 0)]).filter(([, value]) => value);
  const [models, capabilities] = [true, false].map((is) => parts.filter(([name]) => isModel(name) === is));
  const shown = [...capabilities, ...(models.length > 1 ? [["overall models", sum(models)]] : models)];
  shown.sort(([, first], [, second]) => Math.abs(second) - Math.abs(first));
  const rest = shown.length > NAMED + 1 ? shown.splice(NAMED) : [];
  if (rest.length) shown.push([`${rest.length} others`, sum(rest)]);
  return shown.length ? `: ${shown.map(([name, value]) => `${contributor(name)} ${signed(value)}`).join(", ")}` : "";
}

/** Whether words such as “about level with” would be wrong, since the model did not read all of both texts. */
const eitherTruncated = (scores, first, second) => scores[first].truncated || scores[second].truncated;

/**
 * The sections of a result.
 *
 * item: the request’s item. result: {scores, win_probabilities}. before: each response’s rank in the previous result, or
 * undefined. weigh: is called with a capability and its new weight.
 */
export function sections(item, result, before, weigh) {
  const { order } = ranked(result.scores);
  const shown = [section("Ranking", ...ranking(item, result, before))];
  if (result.scores.some((score) => Object.keys(score.contributions).length > 1)) {
    shown.unshift(section("Contributions", contributions(result.scores, order)));
  }
  if (Object.keys(result.scores[0].capabilities).length) {
    shown.push(section("Capabilities", capabilities(result.scores, order, item.weights ?? {}, weigh)));
  }
  shown.push(section("Route", ...routing(item, result.scores[0])));
  return shown;
}

function section(title, ...content) {
  const id = `${title.toLowerCase()}-title`;
  return make("section", { "aria-labelledby": id, class: "card" }, make("h3", { id }, title), ...content);
}

function ranking(item, { scores, win_probabilities: wins }, before) {
  const { order, ranks } = ranked(scores);
  const end = reach(scores.flatMap(({ reward, uncertainty }) => [Math.abs(reward) + (uncertainty ?? 0)]), 2);
  const lines = order.map((index) => {
    const { reward, uncertainty } = scores[index];
    const against = wins[order[0]][index];
    const words = eitherTruncated(scores, order[0], index) ? "compared by what was read with" : comparison(against);
    const sentence = `${letter(order[0])} is ${words} ${letter(index)}: ${percent(against)}`;
    const notice = "Truncated: the prompt or the response is too long, and part of it was not read.";
    const spread = uncertainty === null ? null : make("span", { class: "plus-minus" }, ` ± ${uncertainty.toFixed(2)}`);
    return make(
      "li",
      { class: index === order[0] && order.length > 1 ? "first" : null },
      make("span", { class: "rank" }, `${ranks[index]}`, moved(ranks[index], before[index])),
      badge(index),
      make("span", { class: "snippet", dir: "auto" }, item.responses[index].trim().slice(0, 300)),
      dot(reward, uncertainty ?? 0, end),
      make("span", { class: "reward" }, make("b", {}, signed(reward)), spread),
      index === order[0] ? null : make("span", { class: "wins" }, sentence),
      scores[index].truncated ? make("span", { class: "truncated" }, notice) : null,
    );
  });
  const known = scores.some(({ uncertainty }) => uncertainty !== null);
  const spread = !known ? "" : " ±: standard deviation, larger for responses unlike the training data.";
  const mean = scores[0].task === null ? "higher is better" : "standard deviations about the task’s mean";
  const weighted = item.weights && scores[0].task !== null ? ", with your weights" : "";
  const unit = `Reward: ${mean}${weighted}.${spread} Scale: −${end} to +${end}.`;
  const pairs = order.length > 2 ? matrix(wins, order) : null;
  return [make("ol", { class: "ranking" }, ...lines), make("p", { class: "note" }, unit), pairs];
}

function moved(rank, before) {
  if (before === undefined || before === rank) return null;
  const way = before > rank ? "up" : "down";
  const steps = make("span", { "aria-hidden": "true" }, `${way === "up" ? "▲" : "▼"}${Math.abs(before - rank)}`);
  return make("span", { class: `moved ${way}` }, steps, make("span", { class: "unseen" }, `, ${way} from ${before}`));
}

function routing(item, { route: probabilities, task }) {
  const [[likeliest, share] = []] = Object.entries(probabilities).sort(([, first], [, second]) => second - first);
  const name = (text) => make("b", {}, readable(text));
  let sentence;
  if (task === null) {
    const closest = [name(likeliest ?? ""), ` came closest with ${percent(share ?? 0)}. The `];
    const why = likeliest ? ["No task was likely enough: ", ...closest] : ["The "];
    sentence = [...why, name("general model"), " scored; it has no capabilities."];
  } else if (item.task) {
    sentence = ["You chose ", name(task), "; its model scored."];
    if (likeliest && likeliest !== task) sentence.push(" The router would have chosen ", name(likeliest), ".");
  } else sentence = ["The router chose ", name(task), "; its experts gave the capability scores."];
  const bars = likeliest ? route(probabilities, task) : null;
  return [make("p", {}, ...sentence), bars];
}
