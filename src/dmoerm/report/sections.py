"""What the page shows below the verdict, of one run and of `dmoerm compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from ..evaluation.results import (
    MEAN,
    SUMMARIES,
    CalibrationResult,
    Comparison,
    Difference,
    ErrorAnalysis,
    Estimate,
    LabelDoubts,
    LengthBias,
    Measured,
    Results,
    RouterResult,
    ShownPair,
)
from ..names import folder_name
from .page import Block, Code, Content, Fold, MethodName, Number, Plots, Table, TableRow
from .plots import color_of, interval_plot

_CONFIDENT = 0.1  # probability of a label that a model contradicts surely


# --- entries of tables ---------------------------------------------------------------------------------------------


def _method(method: str) -> MethodName:
    return MethodName(method, color_of(method), strong=method == "dmoerm")


def _number(value: float | None, spec: str = "") -> Number:
    return Number("–" if value is None else format(value, spec))


def _numbers(record: Any, **specs: str) -> list[Number]:
    """Format fields of a record, each with its format."""
    return [_number(getattr(record, field), spec) for field, spec in specs.items()]


def _estimate(estimate: Estimate | Difference | None, shade: float | None = None) -> Number:
    """Format an estimate in percent or a difference in points, its interval as detail; a dash if not measured."""
    if estimate is None:
        return Number("–")
    value, low, high = estimate.value, 100 * estimate.low, 100 * estimate.high
    if isinstance(estimate, Difference):
        return Number(f"{100 * value:+z.1f}", f"{low:+z.1f} to {high:+z.1f}", shade)
    return Number(f"{value:z.1%}", f"{low:.1f}–{high:.1f}", shade)


def _sizes(caption: str, header: list[str], estimates: Mapping[tuple[str, ...], Estimate]) -> Fold:
    """Hide the numbers of pairs and prompts behind the measured numbers."""
    rows = [[*names, *_numbers(estimate, pairs="", prompts="")] for names, estimate in estimates.items()]
    return Fold(caption, [Table("Held-out data", [*header, "pairs", "prompts"], rows)])


def measurements(results: Results | Comparison) -> Iterator[Block]:
    """Yield what the page shows below the verdict."""
    return _comparison_blocks(results) if isinstance(results, Comparison) else _run_blocks(results)


# --- one run -------------------------------------------------------------------------------------------------------


def _run_blocks(results: Results) -> Iterator[Block]:
    yield f"Accuracy on {results.overlap.description}", _run_accuracy(results)
    differences = {p.removeprefix("dmoerm - "): _marked(results, row) for p, row in results.paired.items()}
    axis = "points of accuracy (above 0: gain of dmoerm)"
    plot = interval_plot(differences, axis, 0, lambda method, _: color_of(method))
    caption = Plots("Accuracy of dmoerm minus that of each other method by task", {"": plot} if differences else {})
    yield "Gain or loss by task", [caption]
    yield from _measured_blocks(results, {"dmoerm": results.calibration})
    yield "What the rewards are made of", _weights(results)
    yield "How rewards of several tasks are mixed", _routing(results.steps.get("routing", {}))
    yield "Where people and dmoerm differ", _errors(results.errors)
    yield "Doubtful labels", _doubts(results.errors.doubts)
    costs: list[TableRow] = [[phase, Number(f"{seconds:.0f} s")] for phase, seconds in results.time.items()]
    if results.peak_memory is not None:
        costs.append(["peak memory of the process", Number(f"{results.peak_memory / 2**30:.1f} GiB")])
    caption = "Training time of each phase, and peak memory"
    yield "Time and memory", [Table(caption, ["quantity", "value"], costs)]
    yield "Settings", _settings(results.config, results.versions)


def _run_accuracy(results: Results) -> Iterator[Content]:
    methods = list(results.accuracy)
    series = {m: _marked(results, row) for m, row in results.accuracy.items()}
    plot = interval_plot(series, "accuracy in % (50: chance)", 0.5, lambda method, _: color_of(method))
    yield Plots("Accuracy of each method by task", {"": plot})
    columns = [*results.accuracy.values(), *results.paired.values()]
    rows = [
        [name, *_numbers(columns[0][task], pairs="", prompts=""), *(_estimate(column[task]) for column in columns)]
        for name, task in _marked(results, {task: task for task in columns[0]}).items()
    ]
    header = ["task", "pairs", "prompts", *methods, *(f"{pair}, points" for pair in results.paired)]
    yield Table("Share of pairs that a method puts in the order of their labels", header, rows, SUMMARIES)


def _marked(results: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    """Mark the tasks whose overall scores people did not give."""
    return {f"{name} *" if name in results.derived_tasks else name: value for name, value in row.items()}


def _weights(results: Results) -> Iterator[Content]:
    # The aggregator's weights, with the held-out accuracy of each score, where phase 3 chose them.
    rows: list[TableRow] = []
    form = "soft/" if results.steps.get("routing", {}).get("soft") else ""
    for task, weights in results.weights.items():
        folder = folder_name(task)
        first, third = (results.steps.get(f"{form}phase{phase}/{folder}", {}) for phase in (1, 3))
        known = {"per_task": first.get("accuracy"), "general": third.get("accuracy/general")}
        for step, metrics in results.steps.items():
            if f"{step}/".startswith((f"{form}phase1/{folder}/", f"phase2/{folder}/")):  # or a part of phase 2
                known |= {n.removeprefix("accuracy/"): v for n, v in metrics.items() if n.startswith("accuracy/")}
        for name, weight in weights.items():
            rows.append([task, name, _number(weight, ".2f"), _number(known.get(name), ".1%")])
        rows.append([task, "reward", Number("1.00"), _number(third.get("accuracy"), ".1%")])
    header = ["task", "score", "weight", "accuracy on held-out training prompts"]
    yield Table("Weight of each score in the reward, and how well it predicts its own labels", header, rows)


def _routing(metrics: Mapping[str, float | None]) -> Iterator[Content]:
    if "loss/top1" not in metrics:
        return
    temperature, weight = _number(metrics["temperature"], "g").text, _number(metrics["general_weight"], ".0%").text
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
        [label, _number(metrics[f"loss{form}"], ".4f"), _number(metrics[f"accuracy{form}"], ".1%")]
        for form, label in names.items()
    ]
    yield Table("Rewards of the training prompts, held out", ["rewards", "loss", "accuracy"], rows)


def _errors(errors: ErrorAnalysis) -> Iterator[Content]:
    for caption, rows in (("length", errors.by_length), ("agreement of annotators", errors.by_agreement)):
        parted = [[n, *_numbers(e, pairs="", prompts=""), _estimate(e)] for n, e in rows.items()]
        yield Table(f"Accuracy of dmoerm by {caption}", ["pairs", "number", "prompts", "accuracy"], parted)
    yield from (_shown(pair, "people", "dmoerm") for pair in errors.worst)


def _doubts(doubts: LabelDoubts | None) -> Iterator[Content]:
    if doubts is not None:
        counts = f"{doubts.contradicted} of {doubts.judged} labels of the training part"
        yield (
            f"A model that was not trained on them contradicts {counts}. It is sure of those below: they have a "
            f"probability of at most {_CONFIDENT:.0%}. `dmoerm data suspects` writes them and others for relabeling."
        )
        yield from (
            _shown(label, "the label", "the model") for label in doubts.worst if label.probability <= _CONFIDENT
        )


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


# --- a comparison --------------------------------------------------------------------------------------------------


def _comparison_blocks(comparison: Comparison) -> Iterator[Block]:
    best = comparison.best_first
    yield "Accuracy", _comparison_accuracy(comparison, best)
    yield from _measured_blocks(comparison, comparison.calibration)
    seeds = [[_method(m), *(_number(means.get(m), "z.1%") for means in comparison.by_seed.values())] for m in best]
    header = ["method", *(f"seed {seed}" for seed in comparison.by_seed)]
    yield "Seeds", [Table("Mean accuracy over tasks by seed", header, seeds)]
    yield "Settings", [Code(comparison.command), *_settings(comparison.config, comparison.versions)]


def _comparison_accuracy(comparison: Comparison, best: list[str]) -> Iterator[Content]:
    names = dict.fromkeys(name for row in comparison.accuracy.values() for name in row)
    columns = sorted(names, key=lambda name: name not in SUMMARIES)
    others = [column for column in columns if column != MEAN]
    paired = {method: comparison.paired.get(f"dmoerm - {method}", {}) for method in best}
    rows: list[TableRow] = []
    for method in best:
        row = comparison.accuracy[method]
        shown = [row.get(MEAN), paired[method].get(MEAN), *(row.get(column) for column in others)]
        rows.append([_method(method), *map(_estimate, shown)])
    marked = [f"{task}\N{NO-BREAK SPACE}*" if task in comparison.derived_tasks else task for task in others]
    yield (
        "All methods of a seed are trained on the same groups, from the same embeddings, and tested on the same "
        "held-out prompts."
    )
    title = "Share of held-out pairs that a method puts in the order of their labels, highest mean first"
    yield Table(title, ["method", MEAN, "dmoerm − method, points", *marked], rows)
    plots = {}
    for column in columns:
        measured = {m: comparison.accuracy[m][column] for m in best if column in comparison.accuracy[m]}
        mark, axis = measured["dmoerm"].value if "dmoerm" in measured else None, "accuracy in % (dotted: dmoerm)"
        plots[column] = interval_plot({column: measured}, axis, mark, lambda _, method: color_of(method))
    yield Plots("Accuracy of each method", plots)
    sizes = {(c,): next(row[c] for row in comparison.accuracy.values() if c in row) for c in columns}
    yield _sizes("pairs and prompts by task", ["task"], sizes)
    differences = [
        [_method(m), *(_estimate(row.get(column)) for column in columns)] for m, row in paired.items() if row
    ]
    yield Fold(
        "gain or loss by task", [Table("dmoerm − method on the same pairs, points", ["method", *columns], differences)]
    )


# --- both ----------------------------------------------------------------------------------------------------------


def _measured_blocks(measured: Measured, calibration: Mapping[str, CalibrationResult]) -> Iterator[Block]:
    yield "Capabilities", _capabilities(measured.capabilities)
    yield "Router", _router(measured.router)
    yield "Win probability", _calibration(calibration)
    yield "Correlation of reward with length", _length(measured.length_bias)


def _capabilities(tasks: Mapping[str, Mapping[str, Estimate]]) -> Iterator[Content]:
    label, color = "accuracy of the expert in % (50: chance)", color_of("dmoerm")
    plots = {task: interval_plot({task: row}, label, 0.5, lambda *_: color) for task, row in tasks.items()}
    yield Plots("Capability accuracy", plots)
    names = sorted({name for row in tasks.values() for name in row})
    rows = [
        [name, *(_estimate(e, 2 * e.value - 1) if (e := row.get(name)) else "" for row in tasks.values())]
        for name in names
    ]
    yield Table("Accuracy of each expert on its capability (white: chance)", ["capability", *tasks], rows)
    sizes = {(task, name): estimate for task, row in tasks.items() for name, estimate in row.items()}
    yield _sizes("pairs and prompts", ["task", "capability"], sizes)


def _router(router: RouterResult) -> Iterator[Content]:
    if router.ece is not None:
        yield f"Expected calibration error of the router's confidence: {router.ece:.3f}."
    tasks = sorted({*router.confusion, *(name for row in router.confusion.values() for name in row)})
    rows = [
        [task, *(Number(f"{row.get(name, 0)}", shade=row.get(name, 0) / max(sum(row.values()), 1)) for name in tasks)]
        for task, row in router.confusion.items()
    ]
    yield Table("Prompts by own task (rows) and the router's most likely task (columns)", ["own task", *tasks], rows)


def _calibration(methods: Mapping[str, CalibrationResult]) -> Iterator[Content]:
    rows = [[_method(m), *_numbers(result, ece=".3f", pairs="")] for m, result in methods.items()]
    yield Table("Expected calibration error over human-ordered pairs (0 is best)", ["method", "ECE", "pairs"], rows)
    specs = {"low": ".2f", "high": ".2f", "pairs": "", "confidence": ".3f", "accuracy": ".3f"}
    bins = [[_method(m), *_numbers(b, **specs)] for m, result in methods.items() for b in result.bins if b.pairs]
    header = ["method", "from", "to", "pairs", "confidence", "accuracy"]
    yield Fold("all bins", [Table("Bins by the probability of the likelier winner", header, bins)])


def _length(methods: Mapping[str, LengthBias]) -> Iterator[Content]:
    yield (
        "Mean correlation of reward and response length (characters) within a prompt. The row human is the correlation "
        "of human grades; the length bias of a method is the part beyond it. Blue: longer responses score higher. "
        "Orange: shorter responses score higher."
    )
    rows = [
        [_method(m), *(Number(f"{r:+z.2f}", shade=r) for r in (b.spearman, b.pearson)), _number(b.groups)]
        for m, b in sorted(methods.items(), key=lambda item: item[0] != "human")
    ]
    yield Table("Correlation of reward with length", ["method", "Spearman", "Pearson", "groups"], rows)


def _settings(config: Mapping[str, Any], versions: Mapping[str, str]) -> Iterator[Content]:
    yield Table("Versions", ["package", "version"], list(versions.items()))
    yield Fold("resolved settings", [Code(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))])
