"""report.html: one self-contained page of a run's results, for people. It loads nothing from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import yaml

from ..paths import write_file
from .plots import capability_plot, confusion_plot, consistency_plot, paired_plot, reliability_plot
from .results import SUMMARIES, Difference, Estimate, Results

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2530 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .25rem .7rem; border-bottom: 1px solid #dde3ea }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
tr.summary td { border-top: 2px solid #9aa5b1; font-weight: 600 }
small { color: #5a6775; font-weight: 400 } img { max-width: 100% }
pre { background: #f4f6f8; padding: .8rem; overflow: auto }
"""
_EXPLANATIONS = {
    "general": "one model trained on all tasks together (the single reward model)",
    "per_task": "one model for each task, given the task",
    "dmoerm": "router, experts and aggregator end to end: the router alone chooses the task",
}


def write_report(path: str | Path, results: Results) -> None:
    """Writes the page, completely or not at all. Raises `ArtefactError` where it cannot be written."""
    write_file(Path(path), report_html(results))


def report_html(results: Results) -> str:
    """The page."""
    body = "\n".join(
        f"<h2>{escape(title)}</h2>\n{content}" for title, content in _sections(results) if content is not None
    )
    title = f"dmoerm: {escape(results.command)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{_summary(results)}\n{body}\n</body></html>\n"
    )


def _sections(results: Results) -> Iterable[tuple[str, str | None]]:
    yield "Consistency with people, on held-out prompts", _consistency(results)
    yield "Differences on the same pairs", _image(paired_plot(results), "paired differences")
    capabilities = results.capabilities
    yield "Capabilities", _image(capability_plot(results), "capability accuracy") if capabilities else None
    yield "Router", _router(results) if results.router.confusion else None
    yield "Win probability", _reliability(results)
    yield "Length", _length(results)
    yield "Time and memory", _cost(results)
    yield "Settings", f"<details><summary>resolved settings</summary><pre>{escape(_settings(results))}</pre></details>"


def _summary(results: Results) -> str:
    mean, difference = results.consistency["dmoerm"]["mean"], results.paired["dmoerm - general"]["mean"]
    return (
        f"<p>Mean consistency over {len(results.tasks)} tasks: <b>{mean.value:.1%}</b> "
        f"({mean.low:.1%} to {mean.high:.1%}), {difference.value:+.1%} against the single model "
        f"({difference.low:+.1%} to {difference.high:+.1%}). Intervals are 95 % bootstrap intervals over prompts.</p>"
    )


def _consistency(results: Results) -> str:
    methods = list(results.consistency)
    header = ["task", "pairs", "prompts", *methods, *results.paired]
    lines = "".join(_row(results, name) for name in next(iter(results.consistency.values())))
    known = "".join(f"<li><b>{m}</b>: {_EXPLANATIONS[m]}</li>" for m in methods if m in _EXPLANATIONS)
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in results.remarks)
    return (
        f"<ul>{known}</ul>{_image(consistency_plot(results), 'consistency')}"
        f"<table><tr>{_cells(header, 'th')}</tr>{lines}</table>{remarks}"
    )


def _row(results: Results, name: str) -> str:
    found = [row[name] for row in results.consistency.values()]
    numbers = [found[0].pairs, found[0].prompts]
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    cells += "".join(_interval(e) for e in found)
    cells += "".join(_interval(row[name], sign="+") for row in results.paired.values())
    label = escape(name) + (" *" if name in results.derived_tasks else "")
    return f'<tr class="{"summary" if name in SUMMARIES else "task"}"><td>{label}</td>{cells}</tr>'


def _interval(found: Estimate | Difference, sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.1%}" for number in (found.value, found.low, found.high))
    return f'<td class="number">{value}<br><small>{low} … {high}</small></td>'


def _router(results: Results) -> str:
    router = results.router
    return (
        f"<p>The likeliest task is the prompt's own for {router.accuracy:.1%} of {router.prompts} prompts; "
        f"{router.fallback:.1%} fall below the threshold and are scored by the general model.</p>"
        f"{_image(confusion_plot(results), 'router confusion')}"
    )


def _reliability(results: Results) -> str:
    found = results.calibration
    return (
        f"<p>Expected calibration error {found.ece:.3f} over {found.pairs} pairs. On the dotted line, a probability is "
        f"what it says; a dot's size is its share of the pairs.</p>{_image(reliability_plot(results), 'reliability')}"
    )


def _length(results: Results) -> str:
    rows = [[m, f"{b.spearman:+.2f}", f"{b.pearson:+.2f}", str(b.groups)] for m, b in results.length_bias.items()]
    return (
        "<p>Mean correlation of score and response length (characters) within a prompt; <b>human</b> is that of "
        f"people's own grades.</p>{_table(['method', 'Spearman', 'Pearson', 'groups'], rows)}"
    )


def _cost(results: Results) -> str:
    rows = [[phase, f"{seconds:.0f} s"] for phase, seconds in results.time.items()]
    if results.peak_memory is not None:
        rows.append(["peak memory of the process", f"{results.peak_memory / 2**30:.1f} GiB"])
    rows += [[name, version] for name, version in results.versions.items()]
    return _table(["what", ""], rows)


def _settings(results: Results) -> str:
    return yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<table><tr>{_cells(header, 'th')}</tr>{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</table>"


def _cells(texts: Iterable[str], tag: str = "td") -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def _image(svg: str, label: str) -> str:
    content = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(label)}" src="data:image/svg+xml;base64,{content}">'
