"""The claims of docs/results.md and README.md, each with what it means in figures.

A claim is a sentence and a check on the stored results. pages.py writes the claims with their figures between the marks
`<!-- claims -->`, and the README's between `<!-- main claims -->`; it fails if a claim does not hold, so a sentence
cannot outlive its figure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Files = Mapping[str, Any]
"""Name of a results file → its content."""
BACKBONES = ("SmolLM2-135M", "Gemma 3 270M")
SECOND = "_gemma"


@dataclass(frozen=True)
class Figure:
    """A difference with its 95 % interval, or a single number (low = value = high)."""

    value: float
    low: float
    high: float
    digits: int = 1
    """Decimals on the page."""

    def __str__(self) -> str:
        value, low, high = (f"{number:+.{self.digits}f}" for number in (self.value, self.low, self.high))
        return f"{self.value:.{self.digits}f}" if self.low == self.high else f"{value} ({low} to {high})"

    @classmethod
    def of(cls, row: Mapping[str, float], scale: float = 1, digits: int = 1) -> Figure:
        """Return the figure of a stored difference."""
        return cls(scale * row["value"], scale * row["low"], scale * row["high"], digits)

    @classmethod
    def single(cls, value: float, digits: int = 1) -> Figure:
        """Return the figure of a number without an interval."""
        return cls(value, value, value, digits)


Figures = Callable[[Any], Mapping[str, Figure]]
"""Maps the results to labeled figures, in the order of the table."""
Check = Callable[[Figure], bool]


@dataclass(frozen=True)
class Claim:
    """A sentence, the results that it rests on, and the figures that it must have.

    Attributes:
        source: name of the results file; its command reproduces the figures. The results with the second backbone, if
            there are any, have the same name with `SECOND` at its end.
        holds: whether a figure agrees with the sentence.
        second: the same for the second backbone, where the sentence says something else of it.
    """

    sentence: str
    source: str
    figures: Figures
    holds: Check
    second: Check | None = None

    def row(self, files: Files) -> list[str]:
        """Return the claim's cells of the table. Raise `ValueError` if the figures do not agree with the sentence."""
        return [self.sentence, *(self._cell(files, name) for name in (self.source, self.source + SECOND)), self.source]

    def _cell(self, files: Files, source: str) -> str:
        if source not in files:
            return "–"
        try:
            figures = self.figures(files[source])
        except KeyError:  # the experiment with the second backbone has fewer methods
            if not source.endswith(SECOND):
                raise
            return "–"
        holds = self.second if self.second and source.endswith(SECOND) else self.holds
        if wrong := [f"{label} {figure}" for label, figure in figures.items() if not holds(figure)]:
            raise ValueError(f"this claim does not hold any more: {self.sentence} ({source}: {', '.join(wrong)})")
        return "; ".join(f"{label} {figure}".strip() for label, figure in figures.items())


def above(figure: Figure) -> bool:
    """Return whether the interval is above 0."""
    return figure.low > 0


def below(figure: Figure) -> bool:
    """Return whether the interval is below 0."""
    return figure.high < 0


def level(figure: Figure) -> bool:
    """Return whether the interval includes 0."""
    return figure.low <= 0 <= figure.high


def at_least(value: float) -> Check:
    """Return a check that a figure is not below a value."""
    return lambda figure: figure.value >= value


def at_most(value: float) -> Check:
    """Return a check that a figure is not above a value."""
    return lambda figure: figure.value <= value


def over(method: str, *conditions: str) -> Figures:
    """Return DMoERM minus a method, in points of accuracy, under these conditions of a comparison, or under all."""

    def figures(results: Any) -> Mapping[str, Figure]:
        rows = results["conditions"]
        return {n: Figure.of(rows[n]["paired"][f"dmoerm - {method}"]["mean"], 100) for n in conditions or rows}

    return figures


def over_each(condition: str, *methods: str) -> Figures:
    """Return DMoERM minus each of these methods under a condition, in points of accuracy."""
    return lambda results: {method: over(method, condition)(results)[condition] for method in methods}


DEPLOYABLE = ("general", "all_labels_general", "per_task_routed", "all_labels_routed")


def over_best(results: Any) -> Mapping[str, Figure]:
    """Return DMoERM minus the best of the baselines that can be deployed, by condition; the label names it."""
    figures: dict[str, Figure] = {}
    for condition, row in results["conditions"].items():
        known = [method for method in DEPLOYABLE if method in row["accuracy"]]
        best = max(known, key=lambda method, row=row: row["accuracy"][method]["mean"]["value"])
        figures[f"{condition} ({best})"] = over(best, condition)(results)[condition]
    return figures


def best_of_n_over(method: str, *conditions: str) -> Figures:
    """Return the gold of DMoERM's choice minus the gold of a method's choice, at the largest n."""
    return lambda results: {
        name: Figure.of(results["conditions"][name]["at_the_end"]["all"][f"dmoerm - {method}"], digits=2)
        for name in conditions or sorted(results["conditions"])
    }


def policies_over(method: str, label: str, beta: str = "0") -> Figures:
    """Return the final gold of policies optimized against DMoERM minus that against a method; `beta` weighs KL."""
    return lambda results: {label: Figure.of(results["paired"]["noisy"][f"dmoerm - {method} ({beta})"], digits=2)}


def seconds_over_plain(*works: str) -> Figures:
    """Return the time of a scoring work, where one plain reward model takes 1."""

    def figures(results: Any) -> Mapping[str, Figure]:
        rows = {row["work"]: row for row in results["rows"] if row["peer"] == "plain"}
        names = {work: "float32" if "_fp32_" in work else "bfloat16" for work in works}
        return {names[work]: Figure.single(rows[work]["ours_s"] / rows[work]["peer_s"], 2) for work in works}

    return figures


def cell(column: str, label: str, text: str, *rows: str) -> Figures:
    """Return the figures of a column of the first stored table, by `text` with the entry of another column.

    An entry is `value (low to high)` or a single number; the page shows as many decimals. `rows` selects entries.
    """

    def figures(results: Any) -> Mapping[str, Figure]:
        table = next(iter(results["tables"].values()))
        found: dict[str, Figure] = {}
        for row in table:
            if not rows or row[label] in rows:
                numbers = re.findall(r"[-+]?\d+(?:\.\d+)?", row[column])
                value, low, high = map(float, numbers if len(numbers) == 3 else 3 * numbers[:1])
                found[text.format(row[label])] = Figure(value, low, high, len(numbers[0].partition(".")[2]))
        return found

    return figures


def coin_flips(results: Any) -> Mapping[str, Figure]:
    """Return the accuracy with coin flips as capability labels minus the accuracy of one model per task, in points."""
    means = {name: row["accuracy"] for name, row in results["conditions"].items()}
    points = {n: 100 * (m["shuffled"]["mean"]["value"] - m["per_task"]["mean"]["value"]) for n, m in means.items()}
    return {name: Figure.single(value) for name, value in points.items()}


def times_of_trl(results: Any) -> Mapping[str, Figure]:
    """Return TRL's seconds until its best accuracy over those of the quickest recipe that is as accurate, if any is."""
    figures: dict[str, Figure] = {}
    for kind, curve, ours in _beside_trl(results):
        seconds, best = max(curve, key=lambda point: (point[1], -point[0]))
        reached = {recipe: own for recipe, (own, accuracy) in ours.items() if accuracy >= best}
        if quickest := min(reached, key=lambda recipe: reached[recipe], default=None):
            figures[f"{kind} / {quickest}"] = Figure.single(seconds / reached[quickest])
    return figures


def lead_of_trl(results: Any) -> Mapping[str, Figure]:
    """Return TRL's best accuracy minus that of our most accurate recipe, in points, where TRL's is higher."""
    leads = {
        kind: max(accuracy for _, accuracy in curve) - max(accuracy for _, accuracy in ours.values())
        for kind, curve, ours in _beside_trl(results)
    }
    return {kind: Figure.single(lead) for kind, lead in leads.items() if lead > 0}


def until_recipe(results: Any) -> Mapping[str, Figure]:
    """Return TRL's seconds until it is as accurate as a recipe over the recipe's, where it gets there."""
    figures: dict[str, Figure] = {}
    for kind, curve, ours in _beside_trl(results):
        for recipe, (own, accuracy) in ours.items():
            if reached := [seconds for seconds, measured in curve if measured >= accuracy]:
                figures[f"{kind} / {recipe}"] = Figure.single(min(reached) / own)
    return figures


def _beside_trl(results: Any) -> Iterator[tuple[str, Any, dict[str, tuple[float, float]]]]:
    """Yield each kind of TRL's training with its curve, and the seconds and accuracy of our recipes."""
    ours = {recipe: curve["ours"][0] for recipe, curve in results["curves"].items() if "ours" in curve}
    yield from ((kind, curve["each"], ours) for kind, curve in results["curves"].items() if "each" in curve)


def over_frozen(recipe: str, *sizes: int, noise: str = "clean") -> Figures:
    """Return a recipe's accuracy minus that of `frozen`, in points, at these numbers of groups of a label curve."""

    def figures(results: Any) -> Mapping[str, Figure]:
        rows = {row["size"]: row for row in results["curve"] if (row["recipe"], row["noise"]) == (recipe, noise)}
        return {f"{size:,} groups": Figure(*rows[size]["minus"]) for size in sizes}

    return figures


def label_loss(results: Any) -> Mapping[str, Figure]:
    """Return DMoERM's accuracy with a tenth of the overall labels minus that with all, in points."""
    tenth, every = (results["conditions"][name]["accuracy"]["dmoerm"]["mean"]["value"] for name in ("tenth", "all"))
    return {"tenth": Figure.single(100 * (tenth - every))}


def _claims(figures: Figures, holds: Check, **sentences: str) -> list[Claim]:
    """Return a claim about each results file, which the keyword names."""
    return [Claim(sentence, source, figures, holds) for source, sentence in sentences.items()]


CLAIMS = (
    Claim(
        "More accurate than one reward model for all tasks: nine tasks, a test set that was run once (1,080 prompts, 3 "
        "seeds)",
        "compare_final",
        over("general"),
        above,
    ),
    Claim(
        "… than fine-tuned ensembles, WARM and UMM-RM: testbed, two layers, noisy labels (450 prompts, one seed)",
        "compare_testbed_finetune",
        over_each("noisy", "ensemble_wco", "bagged_wco", "warm", "umm_rm"),
        above,
    ),
    Claim(
        "One linear model for all tasks minus models of one task, as tasks are added (3 seeds, 3 orders)",
        "interference-human_all",
        cell("− alone, points", "tasks", "{} tasks", "5", "10", "18"),
        below,
    ),
    Claim(
        "… with a trained branch (442 prompts, one seed; five tasks: no loss)",
        "interference-finetuned",
        cell("− alone, points", "tasks", "{} tasks", "15"),
        below,
    ),
    Claim(
        "Without the task, minus the best of one model, one per task and one per task on all labels behind the same "
        "router: helpfulness and harmlessness alone (**below**; 5 seeds)",
        "routed_helpfulness_harmlessness",
        over_best,
        at_most(0),
    ),
    Claim("… kinds of instructions, which overlap (5 seeds)", "routed_kinds_instructions", over_best, at_least(-0.3)),
    *_claims(
        over("per_task"),
        at_least(-0.5),
        compare_human="The mean is at most half a point below one model per task (`per_task`): five tasks",
        compare_explanations="… explanations (1,408 prompts, 5 seeds)",
        compare_testbed="… testbed",
        compare_final2="… six tasks, the second final set",
    ),
    Claim(
        "… eighteen tasks (Gemma: **below** by more)",
        "compare_human_all",
        over("per_task", "clean", "noisy"),
        at_least(-0.5),
        second=at_most(-0.5),
    ),
    Claim(
        "… **below** by more: eighteen tasks, 25 % of all labels reversed",
        "compare_human_all",
        over("per_task", "equal"),
        at_most(-0.5),
    ),
    Claim(
        "**Below** one model per task on the test set that was run once: the router confuses two of nine tasks",
        "compare_final",
        over("per_task"),
        below,
    ),
    Claim("… and below `all_labels`", "compare_final", over("all_labels"), below),
    *_claims(
        over("all_labels"),
        level,
        compare_human="Level with one model per task on the same labels (`all_labels`): five tasks",
        compare_human_all="… eighteen tasks",
        compare_explanations="… explanations",
        compare_final2="… six tasks, the second final set",
    ),
    Claim("… testbed", "compare_testbed", over("all_labels", "clean", "equal"), level),
    Claim(
        "Above `all_labels`: testbed with noise (Gemma: level)",
        "compare_testbed",
        over("all_labels", "noisy"),
        above,
        second=level,
    ),
    Claim(
        "With a tenth of the overall labels and all capability labels, above one model per task (`per_task`): five "
        "tasks (609 prompts, 3 seeds)",
        "compare_label_shares",
        over("per_task", "tenth"),
        above,
    ),
    Claim(
        "… and within half a point of itself with all overall labels",
        "compare_label_shares",
        label_loss,
        at_least(-0.5),
    ),
    Claim(
        "DMoERM with coin flips as capability labels minus `per_task`, means: five tasks",
        "compare_human",
        coin_flips,
        at_least(-0.5),
    ),
    Claim("… eighteen tasks (**below**, by more than a point with noise)", "compare_human_all", coin_flips, at_most(0)),
    Claim("… testbed (**below**, by up to a point with noise)", "compare_testbed", coin_flips, at_most(0)),
    Claim(
        "… level with one model per task that learns from the same coin flips (`all_labels`): five tasks (5 seeds)",
        "compare_coins",
        over("all_labels"),
        level,
    ),
    Claim(
        "gpt-4o's verdicts as capability labels: the mean is at most half a point below `per_task` (rag_answer, 44 "
        "prompts, 5 seeds)",
        "compare_gpt4o",
        over("per_task"),
        at_least(-0.5),
    ),
    Claim(
        "A trained branch (`finetune`) minus heads alone, 25 % of the overall pairs reversed: the intervals, some of "
        "them wide, include 0 with",
        "label-curve-testbed",
        over_frozen("finetune", 50, 100, 300, 1000, noise="noisy"),
        level,
    ),
    Claim("… above with", "label-curve-testbed", over_frozen("finetune", 3000, 10000, noise="noisy"), above),
    Claim(
        "Best of 2,048 samples: level with one model per task", "best_of_n_testbed", best_of_n_over("per_task"), level
    ),
    Claim("… and with `all_labels`", "best_of_n_testbed", best_of_n_over("all_labels"), level),
    Claim(
        "… of 12,500 samples (10 prompts, one seed): above one model for all tasks",
        "best_of_n_testbed_large",
        best_of_n_over("general"),
        above,
    ),
    Claim(
        "The best of five responses has higher grades by people (standard deviations) than with one model for all "
        "tasks: twelve tasks, 960 prompts, 3 seeds",
        "best_of_n_human",
        best_of_n_over("general", "noisy"),
        above,
    ),
    Claim(
        "… clean labels: higher, but the interval includes 0",
        "best_of_n_human",
        best_of_n_over("general", "clean"),
        level,
    ),
    Claim("… level with one model per task", "best_of_n_human", best_of_n_over("per_task"), level),
    Claim("… and with `all_labels`", "best_of_n_human", best_of_n_over("all_labels"), level),
    Claim(
        "A policy that is optimized against it ends with more gold reward than against one model for all tasks: "
        "testbed, noisy labels, 3 seeds",
        "rl_testbed_ppo",
        policies_over("general", "PPO"),
        above,
    ),
    Claim("… GRPO", "rl_testbed_grpo", policies_over("general", "GRPO"), above),
    Claim(
        "… RLOO: higher in each seed, but the interval includes 0",
        "rl_testbed",
        policies_over("general", "RLOO"),
        level,
    ),
    Claim("… with a KL penalty of 0.01", "rl_testbed_kl", policies_over("general", "RLOO", "0.01"), above),
    Claim(
        "… with a KL penalty of 0.1: the interval includes 0",
        "rl_testbed_kl",
        policies_over("general", "RLOO", "0.1"),
        level,
    ),
    Claim(
        "With the task given, a new task leaves the others' scores as they are (changed groups)",
        "adding-human",
        cell("changed groups", "arrival", "arrival {}:"),
        at_most(0),
    ),
    Claim(
        "The capability that contributes most to the preferred response is one on which people prefer it too, minus a "
        "capability by chance (195 prompts, 3 seeds)",
        "reasons-human",
        cell("contribution − chance", "task", "{}", "mean"),
        above,
    ),
    Claim(
        "… minus the capability with the largest lead in raw scores",
        "reasons-human",
        cell("contribution − raw", "task", "{}", "mean"),
        level,
    ),
    Claim(
        "Scoring by the recipe `frozen` takes less than half of the time of one plain reward model (ratio; an AMD "
        "processor, [not each time on another](performance.md#scoring); four responses of 128 tokens; it runs 20 of "
        "the backbone's 30 layers, and the prompt once)",
        "scoring",
        seconds_over_plain("p128_n4_r128_fp32_frozen", "p128_n4_r128_bf16_frozen"),
        at_most(0.5),
    ),
    Claim(
        "Scoring by the recipe `finetune`, on all 30 layers: less time than one plain reward model (ratio)",
        "scoring",
        seconds_over_plain("p128_n4_r128_fp32_head", "p128_n4_r128_bf16_head"),
        at_most(0.85),
    ),
    Claim(
        "… with a LoRA for each of five capabilities: more time than one plain reward model (ratio)",
        "scoring",
        seconds_over_plain("p128_n4_r128_fp32_lora", "p128_n4_r128_bf16_lora"),
        at_least(1.0),
    ),
)


ANSWERS = (
    *_claims(
        over("general"),
        above,
        compare_human="**Does the mixture pay without knowing the task?** Minus one reward model for all tasks: five "
        "tasks with human labels (773 prompts, 5 seeds)",
        compare_human_all="… eighteen tasks (2,915 prompts)",
        compare_testbed="… testbed, by a gold reward (653 prompts)",
        compare_final2="… six tasks that no choice has touched, run once (444 prompts)",
    ),
    *_claims(
        over_best,
        level,
        compare_human="… minus the best of one model and, behind the same router, one per task on overall or on all "
        "labels, with its name: five tasks",
        compare_human_all="… eighteen tasks",
        compare_final2="… the six tasks of the final set",
    ),
    Claim(
        "… kinds of one assistant's prompts, which overlap (helpfulness, 5 seeds)",
        "routed_kinds_helpfulness",
        over_best,
        at_least(-0.35),
    ),
    Claim(
        "**Where does fine-tuning pay?** A trained branch for each task (`finetune`) minus heads alone (`frozen`): "
        "testbed, chitchat, two layers (150 prompts; up to 300 groups 3 seeds, then one), level with",
        "label-curve-testbed",
        over_frozen("finetune", 50, 100, 300, 1000, 10000),
        level,
    ),
    Claim("… above with", "label-curve-testbed", over_frozen("finetune", 3000), above),
    Claim(
        "… humour, graded by people (1,085 held-out groups, one seed), higher but level with",
        "label-curve-humour",
        over_frozen("finetune", 1000, 2532),
        level,
    ),
    Claim("… the paper's form (`paper`), level with", "label-curve-forms", over_frozen("paper", 1000), level),
    Claim(
        "**How long until TRL's best accuracy?** Its seconds over those of the quickest recipe that is as accurate: "
        "humour, 1,000 groups (500 held-out groups, one seed)",
        "time-to-accuracy-humour",
        times_of_trl,
        at_least(1),
    ),
    Claim(
        "… TRL ends **higher**, in points (a standard error of such an accuracy is about 1.6)",
        "time-to-accuracy-humour",
        lead_of_trl,
        at_most(1),
    ),
    Claim(
        "… its seconds at the first of six evaluations at which it is as accurate as a recipe, over the recipe's",
        "time-to-accuracy-humour",
        until_recipe,
        at_least(5),
    ),
    Claim(
        "… until TRL's best: testbed, chitchat, two layers, 1,000 pairs (150 held-out groups, one seed)",
        "time-to-accuracy-testbed-1000",
        times_of_trl,
        at_least(1),
    ),
    Claim("… 3,000 pairs", "time-to-accuracy-testbed-3000", times_of_trl, at_least(1)),
    Claim(
        "**Best of n**: gold of the best of 2,048 samples, minus one model for all tasks (testbed, 40 prompts, 3 "
        "seeds)",
        "best_of_n_testbed",
        best_of_n_over("general", "clean"),
        above,
    ),
    Claim(
        "… higher, but the interval includes 0 (Gemma: above 0)",
        "best_of_n_testbed",
        best_of_n_over("general", "noisy"),
        level,
        second=above,
    ),
)
"""The first table of docs/results.md; `CLAIMS` are the others."""

MAIN = (
    Claim("one reward model for all tasks: five tasks with human labels", "compare_human", over("general"), above),
    Claim("… eighteen tasks", "compare_human_all", over("general"), above),
    Claim("… six tasks that no choice has touched, run once", "compare_final2", over("general"), above),
    Claim("… nine tasks, a test set that was run once", "compare_final", over("general"), above),
    Claim("one model per task, the task given (an oracle): that test set", "compare_final", over("per_task"), below),
    Claim("… that also learns from capability labels: eighteen tasks", "compare_human_all", over("all_labels"), level),
    Claim("the best simpler model, kinds of prompts that overlap", "routed_kinds_helpfulness", over_best, level),
    Claim(
        "one model per task, a tenth of the overall labels", "compare_label_shares", over("per_task", "tenth"), above
    ),
    Claim(
        "scoring time with frozen layers, where one plain reward model takes 1",
        "scoring",
        seconds_over_plain("p128_n4_r128_fp32_frozen", "p128_n4_r128_bf16_frozen"),
        at_most(0.5),
    ),
)
"""The README's rows."""


def rows(files: Files, claims: tuple[Claim, ...] = CLAIMS) -> list[list[str]]:
    """Return the rows of the table of claims whose results exist.

    Raises:
        ValueError: a claim does not hold.
    """
    return [claim.row(files) for claim in claims if claim.source in files]


def lines(files: Files, claims: tuple[Claim, ...] = CLAIMS) -> list[str]:
    """Return the table of claims, each with the command that remakes its figures."""
    experiments = yaml.safe_load((Path(__file__).with_name("all.yaml")).read_text(encoding="utf-8"))["experiments"]
    names = " | ".join(BACKBONES)
    head = f"DMoERM minus … | {names}" if claims is MAIN else f"claim | {names}"
    table = [f"| {head} | measured by |", "|---|---|---|---|"]
    for sentence, first, second, source in rows(files, claims):
        known = f"python -m evidence.all --only {source}" if source in experiments else files[source]["command"]
        table.append(f"| {sentence} | {first} | {second} | `{known}` |")
    return table
