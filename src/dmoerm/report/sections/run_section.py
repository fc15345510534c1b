"""The section of one run, from the results.json of `dmoerm train` or `dmoerm eval`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...evaluation.results import SUMMARIES, DoubtfulLabel, ErrorAnalysis, LabelDoubts, Results, WrongPair
from ...experiments.methods import registered
from ...names import folder_name
from .. import parts
from ..results_kinds import shows
from ..svg_plots import Series, color_of, interval_plot
from ..view import Content, Fold, Number, PlotGrid, Section, Table, TableRow, make_section


@shows(Results, "results.json")
def run_section(results: Results) -> Section:
    """Show what one run and its evaluation measured."""
    mean, difference = results.accuracy["dmoerm"]["mean"], results.paired["dmoerm - general"]["mean"]
    lead = (
        f"Mean accuracy over {len(results.tasks)} tasks: {parts.percent(mean.value)} ({parts.interval(mean)}). "
        f"Difference to the single model: {parts.percent(difference.value, '+')} ({parts.interval(difference)}). "
        f"Seed: {results.seed}."
    )
    return make_section(f"Run: {results.command}", [lead], _blocks(results))


def _blocks(results: Results) -> Iterator[tuple[str, Iterable[Content]]]:
    yield f"Accuracy on {results.overlap.description}", _accuracy(results)
    yield "Differences on the same pairs", _differences(results)
    yield "Capabilities", _capabilities(results)
    yield "What the rewards are made of", _weights(results)
    yield "Router", [*parts.router_contents({"": results.router}), *_routing(results.steps.get("routing", {}))]
    yield "Win probability", parts.calibration_contents({"": {"dmoerm": results.calibration}}, ["dmoerm"])
    yield "Correlation of reward with length", parts.length_contents({"": results.length_bias})
    yield "Where people and dmoerm differ", _errors(results.errors)
    yield "Doubtful labels", _doubts(results.errors.doubts)
    yield "Time and memory", [_costs(results)]
    yield "Settings", parts.settings_contents(results.config, results.versions)


def _accuracy(results: Results) -> Iterator[Content]:
    methods = list(results.accuracy)
    descriptions = [[parts.method_name(m), registered()[m].description if m in registered() else ""] for m in methods]
    yield Table("Methods", ["method", "description"], descriptions)
    series = [Series(m, _marked(results, row), color_of(m)) for m, row in results.accuracy.items()]
    plot = interval_plot(series, "accuracy (0.5: chance)", mark=0.5)
    yield PlotGrid("Accuracy of each method by task", {"": plot}, wide=True)
    header = ["task", "pairs", "prompts", *methods, *results.paired]
    rows = [_row(results, name) for name in next(iter(results.accuracy.values()))]
    yield Table("Share of human-ordered pairs that a method orders the same way", header, rows, SUMMARIES)
    yield from results.remarks


def _row(results: Results, name: str) -> TableRow:
    columns = [*results.accuracy.values(), *results.paired.values()]
    sizes = parts.numbers(columns[0][name], pairs="", prompts="")
    return [_mark(results, name), *sizes, *(parts.estimate_number(column[name]) for column in columns)]


def _mark(results: Results, name: str) -> str:
    return f"{name} *" if name in results.derived_tasks else name


def _marked(results: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    return {_mark(results, name): value for name, value in row.items()}


def _differences(results: Results) -> Iterator[Content]:
    rows = results.paired.items()
    series = [Series(pair, _marked(results, row), color_of(pair.removeprefix("dmoerm - "))) for pair, row in rows]
    plot = interval_plot(series, "difference of accuracy", mark=0)
    yield PlotGrid("Difference between dmoerm and each other method by task", {"": plot}, wide=True)


def _capabilities(results: Results) -> Iterator[Content]:
    label, color = "accuracy of the expert (0.5: chance)", color_of("dmoerm")
    plots = {task: interval_plot([Series(task, row, color)], label, 0.5) for task, row in results.capabilities.items()}
    yield PlotGrid("Capability accuracy", plots, wide=True)
    yield from parts.capability_contents({"": results.capabilities})


def _weights(results: Results) -> Iterator[Content]:
    """Show the aggregator's weights with the held-out accuracy of each score, where phase 3 chose them."""
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
                rows.append([task, name, parts.number(weight, ".2f"), parts.number(known.get(name), ".1%")])
        if rows and rows[-1][0] == task:
            rows.append([task, "reward", Number("1.00"), parts.number(weights.get("accuracy"), ".1%")])
    if rows:
        header = ["task", "score", "weight", "accuracy on held-out training prompts"]
        yield Table("Weight of each score in the reward, and how well it predicts its own labels", header, rows)


def _routing(metrics: Mapping[str, float | None]) -> Iterator[Content]:
    """Show how the router's probabilities are used, and what else was tried."""
    if "loss/top1" not in metrics:
        return
    temperature, weight = metrics["temperature"], metrics["general_weight"]
    heads = "fitted to all prompts by probability" if metrics["soft"] else "of the tasks' own prompts"
    yield (
        f"Chosen: temperature {parts.number(temperature, 'g').text} (0: the most probable task alone), weight of the "
        f"general model {parts.number(weight, '.0%').text}, heads {heads}."
    )
    names = {"": "chosen", "/top1": "the most probable task, its own heads before", "/general": "the general model"}
    forms = names | {"/given": "the task given"}
    rows: list[TableRow] = [
        [label, parts.number(metrics[f"loss{form}"], ".4f"), parts.number(metrics[f"accuracy{form}"], ".1%")]
        for form, label in forms.items()
    ]
    yield Table("Rewards of the training prompts, held out", ["rewards", "loss", "accuracy"], rows)


def _errors(errors: ErrorAnalysis) -> Iterator[Content]:
    for caption, rows in (("length", errors.by_length), ("agreement of annotators", errors.by_agreement)):
        header = ["pairs", "number", "prompts", "accuracy"]
        parted = [[n, *parts.numbers(e, pairs="", prompts=""), parts.estimate_number(e)] for n, e in rows.items()]
        yield Table(f"Accuracy of dmoerm by {caption}", header, parted)
    for pair in errors.worst:
        summary = f"{pair.task}: probability {parts.percent(pair.probability)}, {_shortened(pair.prompt)}"
        yield Fold(summary, list(_wrong_pair(pair)))


def _wrong_pair(pair: WrongPair) -> Iterator[Content]:
    yield f"Prompt: {pair.prompt}"
    yield f"Preferred by people: {pair.preferred}"
    yield f"Preferred by dmoerm: {pair.other}"
    scores = {"reward": pair.rewards, "uncertainty": pair.uncertainty, **pair.capabilities}
    rows = [[name, *(Number(f"{score:.2f}") for score in both)] for name, both in scores.items() if both]
    yield Table(f"Scores of group {pair.id}", ["score", "preferred by people", "preferred by dmoerm"], rows)


def _doubts(doubts: LabelDoubts | None) -> Iterator[Content]:
    if doubts is None:
        return
    yield (
        f"Scores of a model that was not trained on them contradict {doubts.contradicted} of {doubts.judged} labels of "
        "the training part. `dmoerm data suspects` writes them for relabeling."
    )
    for label in doubts.worst:
        subject = label.task if label.capability is None else f"{label.task}, {label.capability}"
        summary = f"{subject}: probability {parts.percent(label.probability)}, {_shortened(label.prompt)}"
        yield Fold(summary, list(_doubtful_label(label)))


def _doubtful_label(label: DoubtfulLabel) -> Iterator[Content]:
    yield f"Prompt: {label.prompt}"
    yield f"Preferred by the label: {label.preferred}"
    yield f"Preferred by the model: {label.other}"
    row: TableRow = [label.task, label.capability or "overall", Number(f"{label.probability:.1%}")]
    yield Table(f"Label of group {label.id}", ["task", "label", "probability of the label"], [row])


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _costs(results: Results) -> Table:
    rows: list[TableRow] = [[phase, Number(f"{seconds:.0f} s")] for phase, seconds in results.time.items()]
    if results.peak_memory is not None:
        rows.append(["peak memory of the process", Number(f"{results.peak_memory / 2**30:.1f} GiB")])
    return Table("Training time of each phase, and peak memory", ["quantity", "value"], rows)
