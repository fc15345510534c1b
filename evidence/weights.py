"""Measure what a capability's weight does to the best of a prompt's responses, by people's grades.

The run of a config is trained, or resumed if it exists, and scores its held-out groups. For each task and capability,
each group's response with the highest reward is picked under several weights of the capability. The table shows the
means of people's grade of the capability and of their overall score of the picked response, and both minus their values
for weight 1, with 95 % intervals over prompts. A response without one of the two grades cannot be picked. A group that
the router gives to another task keeps its rewards, as it does in use.

python -m evidence.weights human --set output=runs/human --json weights.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmoerm.bootstrap import mean_interval
from dmoerm.config import Config, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.scored_groups import ScoredGroup, score_groups
from dmoerm.io.paths import write_file
from dmoerm.schema import Group, prompt_key
from dmoerm.scores import Score
from dmoerm.training import train

WEIGHTS = (1.0, 2.0, 4.0, 8.0)
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or resume the run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or the name of a shipped config such as human")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    config = load_config(options.config, options.set)
    rows = measure(held_out(config), config.seed)
    for line in table(rows):
        print(line)
    if options.json is not None:
        document = {"schema": 1, "config": config.model_dump(mode="json"), "rows": rows}
        write_file(options.json, json.dumps(document, indent=1) + "\n")


def held_out(config: Config) -> list[ScoredGroup[Group]]:
    """Return the scored held-out groups of the config's run."""
    run = train(config)
    return score_groups(run.model, load_splits(config).test, cache=run.cache)


def measure(scored: Sequence[ScoredGroup[Group]], seed: int = 0) -> list[Row]:
    """Return one row per task, capability and weight; capabilities without two graded responses have no rows."""
    rows: list[Row] = []
    for task in sorted({each.task for each in scored}):
        groups = [each for each in scored if each.task == task]
        for capability in groups[0].capabilities:
            rows += _sweep(task, capability, groups, seed)
    return rows


def _sweep(task: str, capability: str, groups: Sequence[ScoredGroup[Group]], seed: int) -> list[Row]:
    by_prompt: dict[str, list[NDArray[np.float64]]] = {}
    for scored in groups:
        if len(rated := _rated(scored, capability)) > 1:
            by_prompt.setdefault(prompt_key(scored.group.prompt), []).append(_picked(scored, capability, rated))
    if not by_prompt:
        return []
    means = np.array([np.mean(picked, axis=0) for picked in by_prompt.values()])  # (prompts, weights, 2)
    rows = []
    for i, weight in enumerate(WEIGHTS):
        columns = np.concatenate([means[:, i], means[:, i] - means[:, 0]], axis=1)
        names = ("grade", "overall", "grade_change", "overall_change")
        limits = zip(names, columns.mean(0), mean_interval(columns, seed), strict=True)
        figures = {name: {"value": float(mean), "low": low, "high": high} for name, mean, (low, high) in limits}
        derived = any(scored.group.scores_derived for scored in groups)
        rows.append(
            {"task": task, "capability": capability, "prompts": len(means), "derived": derived, "weight": weight}
            | figures
        )
    return rows


def _rated(scored: ScoredGroup[Group], capability: str) -> list[int]:
    """Return the responses that people graded overall and on the capability."""
    overall = scored.group.grades or ()
    grades = scored.group.capabilities.get(capability, (None,) * len(overall))
    return [i for i, pair in enumerate(zip(overall, grades, strict=True)) if None not in pair]


def _picked(scored: ScoredGroup[Group], capability: str, rated: Sequence[int]) -> NDArray[np.float64]:
    """Return people's capability grade and overall score of the picked response for each weight: (weights, 2)."""
    scores = [score_of(scored, i) for i in rated]
    picks = []
    for weight in WEIGHTS:
        rewards = [score.reweighted({capability: weight}).reward for score in scores]
        best = rated[rewards.index(max(rewards))]
        picks.append((scored.group.capabilities[capability][best], (scored.group.grades or ())[best]))
    return np.array(picks, dtype=float)


def score_of(scored: ScoredGroup[Group], response: int) -> Score:
    """Return one response's score, with capabilities only if the group's task computed the reward."""
    by_name = scored.capabilities.items() if scored.chosen == scored.task else ()
    capabilities = {name: float(values[response]) for name, values in by_name}
    reward = float(scored.rewards["dmoerm"][response])
    return Score(reward, scored.chosen, dict(scored.route), capabilities, None, scored.temperature)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as a Markdown table; * marks overall scores that are means of the capability grades."""
    heads = ["task", "capability", "prompts", "weight", "grade", "minus weight 1", "overall", "minus weight 1"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["task"] + " \\*" * row["derived"], row["capability"], str(row["prompts"]), f"{row['weight']:g}"]
        for name in ("grade", "overall"):
            value, change = row[name], row[f"{name}_change"]
            cells.append(f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
            cells.append(f"{change['value']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
