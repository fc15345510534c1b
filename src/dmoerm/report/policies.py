"""The section of report.html on optimised policies, from the rl.json of `dmoerm rl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import yaml

from ..evaluation.experiment_results import PolicyResults, PolicyRun, PolicySummary
from .curves import HIGHLIGHTED, Line, kl_plot
from .page import Block, Cell, Row, Section, details, paragraph, plots, preformatted, table
from .parts import method_label, settings_part


def policies_section(found: PolicyResults) -> Section:
    """What optimising a policy against each method's reward does to the gold reward."""
    return Section("Policy optimisation", _lead(found), [Block(title, content) for title, content in _blocks(found)])


def _lead(found: PolicyResults) -> str:
    settings = found.settings
    return paragraph(
        f"A policy of {found.parameters:,} parameters, optimised by {str(settings['algorithm']).upper()} for "
        f"{settings['steps']} steps of {settings['prompts_per_step']} prompts × {settings['generations']} samples; "
        "gold and proxy on fresh samples to prompts that nothing was trained on."
    )


def _blocks(found: PolicyResults) -> Iterable[tuple[str, str]]:
    yield "Gold and proxy while the policy moves", _curves(found)
    yield "Gold at its peak and at the end", _summaries(found.summaries)
    if found.paired:
        yield "Differences at the end", _differences(found)
    yield "Every measurement", "".join(details(_name(run), _points(run)) for run in found.runs)
    settings = {"policy": found.policy, "rl": found.settings}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    yield (
        "Policy settings",
        preformatted(found.command)
        + details("policy and optimisation", preformatted(text))
        + settings_part(found.config, found.versions),
    )


def _curves(found: PolicyResults) -> str:
    images = []
    for (condition, beta), runs in _together(found.runs).items():
        title = f"{condition}, beta {beta:g}"
        fits = {one.method: one for one in found.summaries if (one.condition, one.beta) == (condition, beta)}
        images.append((f"{title}: gold", kl_plot(_lines(runs, "gold", fits), "gold", _shown(runs))))
        images.append(
            (f"{title}: proxy", kl_plot(_lines(runs, "proxy", {}), "proxy, standard deviations", _shown(runs)))
        )
    return paragraph(
        "Means over seeds at the same step. Thin smooth lines: the fit R(d) = d (α − β log d), d = √KL; a star: its "
        "peak. Where gold falls while the proxy rises, the reward is over-optimised."
    ) + plots(images, "Rewards against √KL", wide=True)


def _together(runs: Sequence[PolicyRun]) -> dict[tuple[str, float], list[PolicyRun]]:
    found: dict[tuple[str, float], list[PolicyRun]] = {}
    for run in runs:
        found.setdefault((run.condition, run.beta), []).append(run)
    return found


def _shown(runs: Sequence[PolicyRun]) -> list[str]:
    methods = list(dict.fromkeys(run.method for run in runs))
    return [m for m in HIGHLIGHTED if m in methods] + [m for m in methods if m not in HIGHLIGHTED]


def _lines(runs: Sequence[PolicyRun], what: str, fits: Mapping[str, PolicySummary]) -> dict[str, Line]:
    found = {}
    for method in _shown(runs):
        seeds = [run for run in runs if run.method == method]
        kl, values = (
            np.mean([[getattr(point, name) for point in run.points] for run in seeds], axis=0) for name in ("kl", what)
        )
        distance = np.sqrt(np.maximum(kl, 0)).tolist()
        found[method] = Line(distance, values.tolist(), fit=fits[method].fit if method in fits else None, kind="rl")
    return found


def _summaries(found: Sequence[PolicySummary]) -> str:
    header = [
        "method",
        "condition",
        "beta",
        "seeds",
        "KL at the end",
        "gold: start",
        "highest",
        "at step",
        "end",
        "fall",
    ]
    rows: list[Row] = [
        [
            method_label(one.method),
            one.condition,
            Cell(f"{one.beta:g}"),
            Cell(str(one.seeds)),
            Cell(f"{one.kl:.1f}"),
            Cell(f"{one.start:.3f}"),
            Cell(f"{one.peak:.3f}"),
            Cell(str(one.peak_step)),
            Cell(f"{one.end:.3f}"),
            Cell(f"{one.fall:.3f}"),
        ]
        for one in found
    ]
    fits: list[Row] = [
        [method_label(one.method), one.condition, Cell(f"{one.beta:g}"), *map(Cell, _fit(one))] for one in found
    ]
    return table("Means over seeds", header, rows) + table(
        "Fits", ["method", "condition", "beta", "α", "β", "peak, √KL"], fits
    )


def _fit(one: PolicySummary) -> list[str]:
    if one.fit is None:
        return ["–", "–", "–"]
    peak = "–" if one.fit.peak is None else f"{one.fit.peak:.2f}"
    return [f"{one.fit.alpha:.4f}", f"{one.fit.beta:.4f}", peak]


def _differences(found: PolicyResults) -> str:
    rows: list[Row] = [
        [pair, condition, Cell(f"{one.value:+z.3f}", f"{one.low:+z.3f} to {one.high:+z.3f}")]
        for condition, row in found.paired.items()
        for pair, one in row.items()
    ]
    return table("Gold at the end, seed by seed: mean and range", ["pair", "condition", "difference"], rows)


def _name(run: PolicyRun) -> str:
    return f"{run.condition}, {run.method}, beta {run.beta:g}, seed {run.seed}"


def _points(run: PolicyRun) -> str:
    header = ["step", "KL, nats", "proxy", "gold", "tokens"]
    rows: list[Row] = [
        [
            str(point.step),
            Cell(f"{point.kl:z.2f}"),
            Cell(f"{point.proxy:+z.3f}"),
            Cell(f"{point.gold:.3f}"),
            Cell(f"{point.length:.1f}"),
        ]
        for point in run.points
    ]
    return table(_name(run), header, rows)
