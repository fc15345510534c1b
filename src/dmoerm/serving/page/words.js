/** Formats numbers, names and probabilities for people. */

export const letter = (index) => String.fromCharCode(65 + index);

export const readable = (name) => name.replaceAll("_", " ");

const MODELS = new Map([
  ["per_task", "task’s own model"],
  ["all_labels", "model of all labels"],
  ["general", "general model"],
  ["other_tasks", "other tasks’ models"],
]);

/** Whether a contribution to a reward is a model’s and not a capability’s. */
export const isModel = (name) => MODELS.has(name);

/** The name of what contributes to a reward: a capability or a model. */
export const contributor = (name) => MODELS.get(name) ?? readable(name);

/** +1.24 or −0.40, with a true minus sign. */
export function signed(number) {
  const text = Math.abs(number).toFixed(2);
  return text === "0.00" ? text : (number < 0 ? "−" : "+") + text;
}

/** A share as a percentage; <1% and >99% instead of rounding to 0 % and 100 %. */
export function percent(share) {
  if (share > 0 && share < 0.005) return "<1%";
  if (share < 1 && share > 0.995) return ">99%";
  return `${Math.round(share * 100)}%`;
}

/** The probability that the better response is preferred, in words: [lower bound, words]. */
const CERTAINTY = [
  [0.97, "almost certainly better than"],
  [0.85, "very likely better than"],
  [0.7, "likely better than"],
  [0.55, "perhaps better than"],
  [0, "about level with"],
];

export const comparison = (probability) => CERTAINTY.find(([least]) => probability >= least)[1];

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
