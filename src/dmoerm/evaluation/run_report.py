"""A run's section of report.html, from the `Results` of `dmoerm train` or `eval`; and pieces that sections share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from .page import Block, Cell, Label, Section, details, paragraph, plots, preformatted, table
from .plots import Series, colour_of, interval_plot, reliability_plot
from .results import SUMMARIES, Bin, CalibrationResult, Difference, Estimate, LengthBias, Results, RouterResult

_EXPLANATIONS = {
    "general": "one model trained on all tasks together (the single reward model)",
    "per_task": "one model for each task, given the task",
    "dmoerm": "router, experts and aggregator end to end: the router alone chooses the task",
}


def run_section(results: Results) -> Section:
    """What one run and its evaluation found."""
    blocks = [Block(title, content) for title, content in _blocks(results) if content]
    return Section(f"Run: {results.command}", _lead(results), blocks)


def _lead(results: Results) -> str:
    mean, difference = results.consistency["dmoerm"]["mean"], results.paired["dmoerm - general"]["mean"]
    return paragraph(
        f"Mean consistency over {len(results.tasks)} tasks: {percent(mean.value)} ({interval(mean)}), "
        f"{percent(difference.value, '+')} against the single model ({interval(difference, '+')}). Seed {results.seed}."
    )


def _blocks(results: Results) -> Iterable[tuple[str, str]]:
    yield "Consistency with people, on held-out prompts", _consistency(results)
    yield "Differences on the same pairs", _differences(results)
    yield "Capabilities", _capabilities(results)
    yield "Router", router_part({"": results.router})
    yield "Win probability", calibration_part({"": {"dmoerm": results.calibration}}, ["dmoerm"])
    yield "Length", length_part({"": results.length_bias})
    yield "Time and memory", _cost(results)
    yield "Settings", settings_part(results.config, results.versions)


def _consistency(results: Results) -> str:
    methods = list(results.consistency)
    rows = [_row(results, name) for name in next(iter(results.consistency.values()))]
    what = table(
        "Methods", ["method", "what it is"], [[Label(m, colour_of(m)), _EXPLANATIONS.get(m, "")] for m in methods]
    )
    series = [Series(m, _marked(results, row), colour_of(m)) for m, row in results.consistency.items()]
    image = interval_plot(series, "consistency (0.5: chance)", mark=0.5)
    header = ["task", "pairs", "prompts", *methods, *results.paired]
    return (
        what
        + plots([("", image)], "Consistency of each method by task", wide=True)
        + table("Share of human-ordered pairs that a method orders the same way", header, rows, SUMMARIES)
        + "".join(map(paragraph, results.remarks))
    )


def _row(results: Results, name: str) -> list[str | Cell]:
    found = [row[name] for row in results.consistency.values()]
    label = name + (" *" if name in results.derived_tasks else "")
    numbers = [Cell(str(found[0].pairs)), Cell(str(found[0].prompts))]
    differences = [estimate_cell(row[name], "+") for row in results.paired.values()]
    return [label, *numbers, *map(estimate_cell, found), *differences]


def _marked(results: Results, row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} *" if name in results.derived_tasks else name: found for name, found in row.items()}


def _differences(results: Results) -> str:
    rows = results.paired.items()
    series = [Series(pair, _marked(results, row), colour_of(pair.removeprefix("dmoerm - "))) for pair, row in rows]
    image = interval_plot(series, "difference of consistency", mark=0)
    return plots([("", image)], "By how much dmoerm is above each other method, by task", wide=True)


def _capabilities(results: Results) -> str:
    images = [
        (task, interval_plot([Series(task, found, colour_of("dmoerm"))], "accuracy of the expert (0.5: chance)", 0.5))
        for task, found in results.capabilities.items()
    ]
    return plots(images, "Capability accuracy", wide=True) + capability_table("", results.capabilities)


def _cost(results: Results) -> str:
    rows: list[list[str | Cell]] = [[phase, Cell(f"{seconds:.0f} s")] for phase, seconds in results.time.items()]
    if results.peak_memory is not None:
        rows.append(["peak memory of the process", Cell(f"{results.peak_memory / 2**30:.1f} GiB")])
    return table("Seconds of training by phase, and memory", ["what", "taken"], rows) if rows else ""


# --- pieces that other sections are made of, too -------------------------------------------------------------------


def percent(share: float, sign: str = "") -> str:
    """A share in per cent; a difference of shares with `sign` = "+"."""
    return f"{share:{sign}.1%}"


def interval(found: Estimate | Difference, sign: str = "") -> str:
    """Both ends of an interval, in per cent."""
    return f"{percent(found.low, sign)} … {percent(found.high, sign)}"


def estimate_cell(found: Estimate | Difference | None, sign: str = "") -> Cell:
    """A number in per cent with its interval below; – where it was not measured."""
    return Cell("–") if found is None else Cell(percent(found.value, sign), interval(found, sign))


def capability_table(condition: str, found: Mapping[str, Mapping[str, Estimate]]) -> str:
    """A heat map, capabilities by tasks: how often an expert orders a pair as people do on its capability."""
    names = sorted({name for row in found.values() for name in row})
    if not names:
        return ""
    rows: list[list[str | Cell]] = [[name, *(_capability(row.get(name)) for row in found.values())] for name in names]
    title = "Accuracy of each expert on its capability (white: chance; prompts in brackets)"
    return table(f"{condition}: {title}" if condition else title, ["capability", *found], rows)


def _capability(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("")
    return Cell(f"{percent(found.value)} ({found.prompts})", interval(found), share=2 * found.value - 1)


def router_part(routers: Mapping[str, RouterResult]) -> str:
    """Condition → what its router does: a sentence and the confusion of tasks each."""
    found = ""
    for condition, router in routers.items():
        if router.confusion:
            accuracy, below = percent(router.accuracy or 0), percent(router.fallback or 0)
            found += paragraph(
                f"{condition + ': t' if condition else 'T'}he likeliest task is the prompt's own for {accuracy} of "
                f"{router.prompts} prompts; {below} fall below the threshold and are scored by the general model."
            )
            found += _confusion(condition, router.confusion)
    return found


def _confusion(condition: str, confusion: Mapping[str, Mapping[str, int]]) -> str:
    tasks = sorted({*confusion, *(name for row in confusion.values() for name in row)})
    rows: list[list[str | Cell]] = []
    for own, row in confusion.items():
        total = max(sum(row.values()), 1)
        rows.append([own, *(Cell(str(row.get(name, 0)), share=row.get(name, 0) / total) for name in tasks)])
    title = "Prompts by own task (rows) and the router's likeliest task (columns)"
    return table(f"{condition}: {title}" if condition else title, ["own task", *tasks], rows)


def calibration_part(found: Mapping[str, Mapping[str, CalibrationResult]], shown: Sequence[str]) -> str:
    """Condition → method → calibration: a plot a condition of the methods `shown`, errors and bins of all methods."""
    images = [
        (condition, reliability_plot(kept))
        for condition, row in found.items()
        if (kept := {m: row[m] for m in shown if m in row})
    ]
    methods = dict.fromkeys(m for row in found.values() for m in row)
    if not methods:
        return ""
    rows = [[Label(m, colour_of(m)), *(cell for row in found.values() for cell in _error(row.get(m)))] for m in methods]
    columns = [f"{c} {name}".strip() for c in found for name in ("ECE", "pairs")]
    bins = [_bin(c, m, b) for c, row in found.items() for m, one in row.items() for b in one.bins if b.pairs]
    header = ["method", "condition", "from", "to", "pairs", "confidence", "accuracy"]
    return (
        paragraph("On the dotted line, a probability is what it says; a mark's size is its share of the pairs.")
        + plots(images, "Reliability of win probabilities", wide=True)
        + table("Expected calibration error over human-ordered pairs; 0 is best", ["method", *columns], rows)
        + details("every bin", table("The bins of the likelier winner's probability", header, bins))
    )


def _error(found: CalibrationResult | None) -> list[Cell]:
    return [Cell(f"{found.ece:.3f}"), Cell(str(found.pairs))] if found else [Cell("–"), Cell("")]


def _bin(condition: str, method: str, found: Bin) -> list[str | Cell | Label]:
    means = [Cell("–" if mean is None else f"{mean:.3f}") for mean in (found.confidence, found.accuracy)]
    edges = [Cell(f"{found.low:.2f}"), Cell(f"{found.high:.2f}")]
    return [Label(method, colour_of(method)), condition, *edges, Cell(str(found.pairs)), *means]


def length_part(found: Mapping[str, Mapping[str, LengthBias]]) -> str:
    """Condition → method → correlation with length."""
    methods = sorted(dict.fromkeys(m for row in found.values() for m in row), key=lambda m: m != "human")
    if not methods:
        return ""
    columns = [f"{c} {name}".strip() for c in found for name in ("Spearman", "Pearson", "groups")]
    rows = [[Label(m, colour_of(m)), *(cell for row in found.values() for cell in _bias(row.get(m)))] for m in methods]
    return paragraph(
        "Mean correlation of score and response length (characters) within a prompt; human is that of people's own "
        "grades: a method's bias is what goes beyond it. Blue: longer is better; orange: shorter is."
    ) + table("Correlation with length", ["method", *columns], rows)


def _bias(found: LengthBias | None) -> list[Cell]:
    if found is None:
        return [Cell("–"), Cell("–"), Cell("")]
    shares = (found.spearman, found.pearson)
    return [*(Cell(f"{share:+.2f}", share=share) for share in shares), Cell(str(found.groups))]


def settings_part(config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """What the numbers depend on; the settings are folded away."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    rows = [[name, version] for name, version in versions.items()]
    return table("Versions", ["what", "version"], rows) + details("resolved settings", preformatted(text))
