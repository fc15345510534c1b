"""The page of one run, from the results.json of `dmoerm train` or `dmoerm eval`, and parts that comparisons share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml

from ..evaluation.results import (
    METHODS,
    SUMMARIES,
    CalibrationResult,
    Difference,
    ErrorAnalysis,
    Estimate,
    LabelDoubts,
    LengthBias,
    Results,
    RouterResult,
    ShownPair,
)
from ..names import folder_name
from .page import Code, Content, Fold, MethodName, Number, Plots, Section, Table, TableRow, make_section
from .plots import color_of, interval_plot


def run_section(results: Results) -> Section:
    mean, difference = results.accuracy["dmoerm"]["mean"], results.paired["dmoerm - general"]["mean"]
    lead = (
        f"Mean accuracy over {len(results.tasks)} tasks: {in_words(mean)}. "
        f"Difference to the single model: {in_words(difference)}. Seed: {results.seed}."
    )
    return make_section(f"Run: {results.command}", [lead], _blocks(results))


def _blocks(results: Results) -> Iterator[tuple[str, Iterable[Content]]]:
    yield f"Accuracy on {results.overlap.description}", _accuracy(results)
    yield "Differences on the same pairs", _differences(results)
    yield "Capabilities", capability_contents(results.capabilities)
    yield "What the rewards are made of", _weights(results)
    yield "Router", [*router_contents(results.router), *_routing(results.steps.get("routing", {}))]
    yield "Win probability", calibration_contents({"dmoerm": results.calibration})
    yield "Correlation of reward with length", length_contents(results.length_bias)
    yield "Where people and dmoerm differ", _errors(results.errors)
    yield "Doubtful labels", _doubts(results.errors.doubts)
    yield "Time and memory", [_costs(results)]
    yield "Settings", settings_contents(results.config, results.versions)


# --- entries of tables ---------------------------------------------------------------------------------------------


def method_name(method: str) -> MethodName:
    """Return a method's name with its color; the row of dmoerm is highlighted."""
    return MethodName(method, color_of(method), strong=method == "dmoerm")


def number(value: float | None, spec: str = "", detail: str = "") -> Number:
    """Format a number; a dash if the value is missing."""
    return Number("–" if value is None else format(value, spec), detail)


def numbers(record: Any, **specs: str) -> list[Number]:
    """Format fields of a record, each with its format; dashes if the record is missing."""
    return [number(None if record is None else getattr(record, field), spec) for field, spec in specs.items()]


def in_words(estimate: Estimate | Difference) -> str:
    text = estimate_number(estimate)
    return f"{text.text} ({text.detail})"


def estimate_number(estimate: Estimate | Difference | None, shade: float | None = None) -> Number:
    """Format an estimate in percent with its interval as detail; a dash if it was not measured."""
    if estimate is None:
        return Number("–")
    value, low, high = estimate.value, 100 * estimate.low, 100 * estimate.high
    if isinstance(estimate, Difference):
        return Number(f"{value:+z.1%}", f"{low:+z.1f} to {high:+z.1f}", shade)
    return Number(f"{value:z.1%}", f"{low:.1f}–{high:.1f}", shade)


# --- accuracy ------------------------------------------------------------------------------------------------------


def _accuracy(results: Results) -> Iterator[Content]:
    methods = list(results.accuracy)
    descriptions = [[method_name(m), METHODS.get(m, "")] for m in methods]
    yield Table("Methods", ["method", "description"], descriptions)
    series = {m: _marked(results, row) for m, row in results.accuracy.items()}
    plot = interval_plot(series, "accuracy (0.5: chance)", 0.5, lambda method, _: color_of(method))
    yield Plots("Accuracy of each method by task", {"": plot})
    columns = [*results.accuracy.values(), *results.paired.values()]
    rows = [
        [name, *numbers(columns[0][task], pairs="", prompts=""), *(estimate_number(column[task]) for column in columns)]
        for name, task in _marked(results, {task: task for task in columns[0]}).items()
    ]
    header = ["task", "pairs", "prompts", *methods, *results.paired]
    yield Table("Share of human-ordered pairs that a method orders the same way", header, rows, SUMMARIES)
    yield from results.remarks


def _marked(results: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} *" if name in results.derived_tasks else name: value for name, value in row.items()}


def _differences(results: Results) -> Iterator[Content]:
    series = {pair: _marked(results, row) for pair, row in results.paired.items()}
    plot = interval_plot(series, "difference of accuracy", 0, lambda pair, _: color_of(pair.removeprefix("dmoerm - ")))
    yield Plots("Difference between dmoerm and each other method by task", {"": plot})


def capability_contents(tasks: Mapping[str, Mapping[str, Estimate]]) -> Iterator[Content]:
    """Show task → capability → accuracy of its expert: a plot of each task and a heat map."""
    label, color = "accuracy of the expert (0.5: chance)", color_of("dmoerm")
    plots = {task: interval_plot({task: row}, label, 0.5, lambda *_: color) for task, row in tasks.items()}
    yield Plots("Capability accuracy", plots)
    names = sorted({name for row in tasks.values() for name in row})
    rows = [
        [name, *(estimate_number(e, 2 * e.value - 1) if (e := row.get(name)) else "" for row in tasks.values())]
        for name in names
    ]
    yield Table("Accuracy of each expert on its capability (white: chance)", ["capability", *tasks], rows)
    sizes = [[task, n, *numbers(e, pairs="", prompts="")] for task, row in tasks.items() for n, e in row.items()]
    yield Fold("pairs and prompts", [Table("Held-out data", ["task", "capability", "pairs", "prompts"], sizes)])


def _weights(results: Results) -> Iterator[Content]:
    # The aggregator's weights, with the held-out accuracy of each score, where phase 3 chose them.
    rows: list[TableRow] = []
    form = "soft/" if results.steps.get("routing", {}).get("soft") else ""
    for task in results.tasks:
        folder = folder_name(task)
        weights = results.steps.get(f"{form}phase3/{folder}", {})
        first = results.steps.get(f"{form}phase1/{folder}", {})
        known = {"per_task": first.get("accuracy"), "general": weights.get("accuracy/general")}
        for step, metrics in results.steps.items():
            if f"{step}/".startswith((f"{form}phase1/{folder}/", f"phase2/{folder}/")):  # or a part of phase 2
                known |= {n.removeprefix("accuracy/"): v for n, v in metrics.items() if n.startswith("accuracy/")}
        for key, weight in weights.items():
            if (name := key.removeprefix("weight/")) != key:
                rows.append([task, name, number(weight, ".2f"), number(known.get(name), ".1%")])
        if rows and rows[-1][0] == task:
            rows.append([task, "reward", Number("1.00"), number(weights.get("accuracy"), ".1%")])
    header = ["task", "score", "weight", "accuracy on held-out training prompts"]
    yield Table("Weight of each score in the reward, and how well it predicts its own labels", header, rows)


# --- router, calibration, length -----------------------------------------------------------------------------------


def router_contents(router: RouterResult) -> Iterator[Content]:
    """Show the router's accuracy in a sentence, and its confusion of tasks in a table."""
    if router.confusion:
        ece = "" if router.ece is None else f" Expected calibration error of its confidence: {router.ece:.3f}."
        yield (
            f"The most likely task is the prompt's own task for {router.accuracy or 0:.1%} of the {router.prompts} "
            f"prompts; {router.fallback or 0:.1%} fall below the confidence threshold, and the general model scores "
            f"them.{ece}"
        )
    tasks = sorted({*router.confusion, *(name for row in router.confusion.values() for name in row)})
    rows = [
        [task, *(Number(f"{row.get(name, 0)}", shade=row.get(name, 0) / max(sum(row.values()), 1)) for name in tasks)]
        for task, row in router.confusion.items()
    ]
    yield Table("Prompts by own task (rows) and the router's most likely task (columns)", ["own task", *tasks], rows)


def _routing(metrics: Mapping[str, float | None]) -> Iterator[Content]:
    if "loss/top1" not in metrics:
        return
    temperature, weight = number(metrics["temperature"], "g").text, number(metrics["general_weight"], ".0%").text
    heads = "fitted to all prompts by probability" if metrics["soft"] else "of the tasks' own prompts"
    yield (
        f"Chosen: temperature {temperature} (0: the most probable task alone), weight of the general model {weight}, "
        f"heads {heads}."
    )
    names = {
        "": "chosen",
        "/top1": "the most probable task, its own heads before",
        "/general": "the general model",
        "/given": "the task given",
    }
    rows: list[TableRow] = [
        [label, number(metrics[f"loss{form}"], ".4f"), number(metrics[f"accuracy{form}"], ".1%")]
        for form, label in names.items()
    ]
    yield Table("Rewards of the training prompts, held out", ["rewards", "loss", "accuracy"], rows)


def calibration_contents(methods: Mapping[str, CalibrationResult]) -> Iterator[Content]:
    """Show method → calibration."""
    rows = [[method_name(m), *numbers(result, ece=".3f", pairs="")] for m, result in methods.items()]
    yield Table("Expected calibration error over human-ordered pairs (0 is best)", ["method", "ECE", "pairs"], rows)
    specs = {"low": ".2f", "high": ".2f", "pairs": "", "confidence": ".3f", "accuracy": ".3f"}
    bins = [[method_name(m), *numbers(b, **specs)] for m, result in methods.items() for b in result.bins if b.pairs]
    header = ["method", "from", "to", "pairs", "confidence", "accuracy"]
    yield Fold("all bins", [Table("Bins by the probability of the likelier winner", header, bins)])


def length_contents(methods: Mapping[str, LengthBias]) -> Iterator[Content]:
    """Show method → correlation of reward with length, `human` first."""
    yield (
        "Mean correlation of reward and response length (characters) within a prompt. The row human is the correlation "
        "of human grades; the length bias of a method is the part beyond it. Blue: longer responses score higher. "
        "Orange: shorter responses score higher."
    )
    rows = [
        [method_name(m), *(Number(f"{r:+z.2f}", shade=r) for r in (b.spearman, b.pearson)), number(b.groups)]
        for m, b in sorted(methods.items(), key=lambda item: item[0] != "human")
    ]
    yield Table("Correlation of reward with length", ["method", "Spearman", "Pearson", "groups"], rows)


# --- errors, costs, settings ---------------------------------------------------------------------------------------


def _errors(errors: ErrorAnalysis) -> Iterator[Content]:
    for caption, rows in (("length", errors.by_length), ("agreement of annotators", errors.by_agreement)):
        parted = [[n, *numbers(e, pairs="", prompts=""), estimate_number(e)] for n, e in rows.items()]
        yield Table(f"Accuracy of dmoerm by {caption}", ["pairs", "number", "prompts", "accuracy"], parted)
    yield from (_shown(pair, "people", "dmoerm") for pair in errors.worst)


def _doubts(doubts: LabelDoubts | None) -> Iterator[Content]:
    if doubts is not None:
        counts = f"{doubts.contradicted} of {doubts.judged} labels of the training part"
        yield f"Scores of a model that was not trained on them contradict {counts}."
        yield "`dmoerm data suspects` writes them for relabeling."
        yield from (_shown(label, "the label", "the model") for label in doubts.worst)


def _shown(pair: ShownPair, first: str, second: str) -> Fold:
    start = pair.prompt if len(pair.prompt) <= 80 else f"{pair.prompt[:79]}…"
    subject = pair.task if pair.capability is None else f"{pair.task}, {pair.capability}"
    texts = [
        f"Prompt: {pair.prompt}",
        f"Preferred by {first}: {pair.preferred}",
        f"Preferred by {second}: {pair.other}",
    ]
    scores = {"reward": pair.rewards, "uncertainty": pair.uncertainty, **pair.capabilities}
    rows = [[name, *(Number(f"{score:.2f}") for score in both)] for name, both in scores.items() if both]
    table = Table(f"Scores of group {pair.id}", ["score", f"preferred by {first}", f"preferred by {second}"], rows)
    return Fold(f"{subject}: probability {pair.probability:.1%}, {start}", [*texts, table or Code(f"group {pair.id}")])


def _costs(results: Results) -> Table:
    rows: list[TableRow] = [[phase, Number(f"{seconds:.0f} s")] for phase, seconds in results.time.items()]
    if results.peak_memory is not None:
        rows.append(["peak memory of the process", Number(f"{results.peak_memory / 2**30:.1f} GiB")])
    return Table("Training time of each phase, and peak memory", ["quantity", "value"], rows)


def settings_contents(config: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[Content]:
    """Show the versions, and the resolved settings behind a fold."""
    yield Table("Versions", ["package", "version"], list(versions.items()))
    yield Fold("resolved settings", [Code(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))])
