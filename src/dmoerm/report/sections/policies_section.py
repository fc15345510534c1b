"""The section of optimized policies, from the rl.json of `dmoerm rl`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ...evaluation.experiment_results import PolicyResults, PolicyRun, PolicySummary
from ..kl_plots import HIGHLIGHTED, Line, kl_plot
from ..parts import as_yaml, method_name, number, numbers, reward_difference, settings_contents
from ..results_kinds import shows
from ..view import Code, Content, Fold, PlotGrid, Section, Table, TableRow, make_section

_SUMMARY = {"seeds": "", "kl": ".1f", "start": ".3f", "peak": ".3f", "peak_step": "", "end": ".3f"} | {
    "end_same_length": ".3f",
    "fall": ".3f",
    "fall_low": "z.3f",
    "fall_high": "z.3f",
}
_POINT = {"kl": "z.2f", "proxy": "+z.3f", "gold": ".3f", "gold_same_length": ".3f", "length": ".1f", "ended": ".2f"}


@shows(PolicyResults, "rl.json")
def policies_section(results: PolicyResults) -> Section:
    """Show the gold reward while a policy is optimized against each method's reward."""
    settings = results.settings
    lead = (
        f"A policy of {results.parameters:,} parameters is optimized by {str(settings['algorithm']).upper()} for "
        f"{settings['steps']} steps of {settings['prompts_per_step']} prompts × {settings['generations']} samples. "
        "Gold and proxy rewards are measured on new samples for prompts that are not used in training."
    )
    return make_section("Policy optimization", [lead], _blocks(results))


def _blocks(results: PolicyResults) -> Iterator[tuple[str, Iterable[Content]]]:
    yield "Gold and proxy reward during optimization", _curves(results)
    yield "Gold reward at its peak and at the end", _summaries(results.summaries)
    pairs = [
        [pair, condition, reward_difference(difference)]
        for condition, row in results.paired.items()
        for pair, difference in row.items()
    ]
    title = "Gold reward at the end: mean over seeds, with Student's 95 % interval from three seeds on"
    yield "Differences at the end", [Table(title, ["pair", "condition", "difference"], pairs)]
    yield "All measurements", [_measurements(run) for run in results.runs]
    settings = as_yaml({"policy": results.policy, "rl": results.settings})
    contents = [Code(results.command), Fold("policy and optimization", [Code(settings)])]
    yield "Policy settings", [*contents, *settings_contents(results.config, results.versions)]


def _curves(results: PolicyResults) -> Iterator[Content]:
    plots = {}
    for condition, beta in dict.fromkeys((run.condition, run.beta) for run in results.runs):
        runs = [run for run in results.runs if (run.condition, run.beta) == (condition, beta)]
        fits = {s.method: s for s in results.summaries if (s.condition, s.beta) == (condition, beta)}
        title, methods = f"{condition}, beta {beta:g}", _highlighted_first(runs)
        plots[f"{title}: gold"] = kl_plot(_lines(runs, "gold", fits), "gold reward", methods)
        plots[f"{title}: proxy"] = kl_plot(_lines(runs, "proxy", {}), "proxy reward, standard deviations", methods)
    yield (
        "Means over seeds at the same step. Thin smooth lines: the fit R(d) = d (α − β log d), d = √KL; a star: its "
        "peak. Where gold falls while the proxy rises, the reward is overoptimized."
    )
    yield PlotGrid("Rewards against √KL", plots, wide=True)


def _highlighted_first(runs: Sequence[PolicyRun]) -> list[str]:
    methods = list(dict.fromkeys(run.method for run in runs))
    return [m for m in HIGHLIGHTED if m in methods] + [m for m in methods if m not in HIGHLIGHTED]


def _lines(runs: Sequence[PolicyRun], reward: str, fits: Mapping[str, PolicySummary]) -> dict[str, Line]:
    """Average the points of each method over its seeds; `reward` is gold or proxy."""
    lines = {}
    for method in _highlighted_first(runs):
        seeds = [run.points for run in runs if run.method == method]
        kl, values = (np.mean([[getattr(p, name) for p in points] for points in seeds], 0) for name in ("kl", reward))
        fit = fits[method].fit if method in fits else None
        lines[method] = Line(np.sqrt(np.maximum(kl, 0)).tolist(), values.tolist(), fit=fit, kind="rl")
    return lines


def _summaries(summaries: Sequence[PolicySummary]) -> Iterator[Content]:
    names: list[TableRow] = [[method_name(s.method), s.condition, number(s.beta, "g")] for s in summaries]
    header = ["method", "condition", "beta"]
    columns = ["seeds", "KL at the end", "gold: start", "highest", "at step", "end", "same length"]
    columns += ["fall", "95 % from", "to"]
    rows = [[*name, *numbers(summary, **_SUMMARY)] for name, summary in zip(names, summaries, strict=True)]
    yield (
        "“Same length”: gold at the mean length of the initial policy's responses. The interval of the fall is "
        "Student's over the seeds, with three of them or more. The peak is chosen on the same "
        "curves, which widens the fall."
    )
    yield Table("Means over seeds", [*header, *columns], rows)
    fits = [
        [*name, *numbers(s.fit, alpha=".4f", beta=".4f", peak=".2f")] for name, s in zip(names, summaries, strict=True)
    ]
    yield Table("Fits", [*header, "α", "β", "peak, √KL"], fits)


def _measurements(run: PolicyRun) -> Fold:
    title = f"{run.condition}, {run.method}, beta {run.beta:g}, seed {run.seed}"
    rows = [[str(point.step), *numbers(point, **_POINT)] for point in run.points]
    return Fold(title, [Table(title, ["step", "KL, nats", "proxy", "gold", "same length", "tokens", "ended"], rows)])
