"""What sections of several kinds are made of: cells, and the parts on capabilities, router, probabilities, length.

A part shows one condition or several, by name; a run has one, whose name is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from ..evaluation.results import Bin, CalibrationResult, Difference, Estimate, LengthBias, RouterResult
from .page import Cell, Label, details, paragraph, plots, preformatted, table
from .plots import colour_of, reliability_plot


def method_label(method: str) -> Label:
    """A method's name with its colour; dmoerm's row stands out."""
    return Label(method, colour_of(method), strong=method == "dmoerm")


def percent(share: float, sign: str = "") -> str:
    """A share in per cent; a difference of shares with `sign` = "+"."""
    return f"{share:{sign}z.1%}"


def interval(found: Estimate | Difference) -> str:
    """Both ends of an interval, in per cent (without the sign for it); those of a difference have their signs."""
    if isinstance(found, Difference):
        return f"{100 * found.low:+z.1f} to {100 * found.high:+z.1f}"
    return f"{100 * found.low:.1f}–{100 * found.high:.1f}"


def estimate_cell(found: Estimate | Difference | None) -> Cell:
    """A number in per cent with its interval below; – where it was not measured."""
    if found is None:
        return Cell("–")
    return Cell(percent(found.value, "+" if isinstance(found, Difference) else ""), interval(found))


def capability_part(found: Mapping[str, Mapping[str, Mapping[str, Estimate]]]) -> str:
    """Condition → task → capability → how often the expert orders a pair as people do: a heat map a condition."""
    return "".join(_capabilities(condition, row) for condition, row in found.items() if any(row.values()))


def _capabilities(condition: str, found: Mapping[str, Mapping[str, Estimate]]) -> str:
    names = sorted({name for row in found.values() for name in row})
    rows = [[name, *(_capability(row.get(name)) for row in found.values())] for name in names]
    sizes = [
        [task, name, Cell(str(one.pairs)), Cell(str(one.prompts))]
        for task, row in found.items()
        for name, one in row.items()
    ]
    title = _titled(condition, "accuracy of each expert on its capability (white: chance)")
    held_out = table("What is held out", ["task", "capability", "pairs", "prompts"], sizes)
    return table(title, ["capability", *found], rows) + details("pairs and prompts", held_out)


def _capability(found: Estimate | None) -> Cell | str:
    return "" if found is None else replace(estimate_cell(found), share=2 * found.value - 1)


def _titled(condition: str, text: str) -> str:
    return f"{condition}: {text}" if condition else text[0].upper() + text[1:]


def router_part(routers: Mapping[str, RouterResult]) -> str:
    """Condition → what its router does: a sentence and the confusion of tasks each."""
    return "".join(_router(condition, router) for condition, router in routers.items() if router.confusion)


def _router(condition: str, router: RouterResult) -> str:
    text = (
        f"the likeliest task is the prompt's own for {percent(router.accuracy or 0)} of {router.prompts} prompts; "
        f"{percent(router.fallback or 0)} fall below the threshold and are scored by the general model."
    )
    tasks = sorted({*router.confusion, *(name for row in router.confusion.values() for name in row)})
    rows = [
        [own, *(Cell(str(row.get(name, 0)), share=row.get(name, 0) / max(sum(row.values()), 1)) for name in tasks)]
        for own, row in router.confusion.items()
    ]
    title = _titled(condition, "prompts by own task (rows) and the router's likeliest task (columns)")
    return paragraph(_titled(condition, text)) + table(title, ["own task", *tasks], rows)


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
    rows = [[method_label(m), *(cell for row in found.values() for cell in _error(row.get(m)))] for m in methods]
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
    return [method_label(method), condition, *edges, Cell(str(found.pairs)), *means]


def length_part(found: Mapping[str, Mapping[str, LengthBias]]) -> str:
    """Condition → method → correlation with length."""
    methods = sorted(dict.fromkeys(m for row in found.values() for m in row), key=lambda m: m != "human")
    if not methods:
        return ""
    columns = [f"{c} {name}".strip() for c in found for name in ("Spearman", "Pearson", "groups")]
    rows = [[method_label(m), *(cell for row in found.values() for cell in _bias(row.get(m)))] for m in methods]
    return paragraph(
        "Mean correlation of score and response length (characters) within a prompt; human is that of people's own "
        "grades: a method's bias is what goes beyond it. Blue: longer is better; orange: shorter is."
    ) + table("Correlation with length", ["method", *columns], rows)


def _bias(found: LengthBias | None) -> list[Cell]:
    if found is None:
        return [Cell("–"), Cell("–"), Cell("")]
    shares = (found.spearman, found.pearson)
    return [*(Cell(f"{share:+z.2f}", share=share) for share in shares), Cell(str(found.groups))]


def settings_part(config: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """What the numbers depend on; the settings are folded away."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    rows = [[name, version] for name, version in versions.items()]
    return table("Versions", ["what", "version"], rows) + details("resolved settings", preformatted(text))
