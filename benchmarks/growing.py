"""Tasks join a trained model by `dmoerm add`: what stays identical, how well prompts are routed, and how long it takes.

    added      a model of the first arrival, to which each further arrival was added; its router never saw old prompts
    together   a model trained on all arrivals at once

Routing accuracy is on prompts that neither model was trained on, the mean over tasks.

python benchmarks/growing.py --seed 10 --set data.groups_per_task=30 --name human
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from adding_tasks import arrivals_parser
from rich.console import Console

from dmoerm.config import Config, changed, load_config
from dmoerm.data.readers import read_groups
from dmoerm.model import DMoERM
from dmoerm.schema import Group, prompt_key
from dmoerm.training import train
from dmoerm.training.growing import add_task

QUIET = Console(quiet=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, add, measure, and print or store the table."""
    parser = arrivals_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=60, help="maximum number of prompts per task to route")
    parser.add_argument("--name", default="", help="store the table as results/growing-NAME.json")
    parser.add_argument("--output", type=Path, default=Path("runs/growing"))
    options = parser.parse_args(arguments)
    arrivals = [arrival.split(",") for arrival in options.arrival]
    rows: list[dict[str, str]] = []
    for seed in options.seed:
        config = load_config(options.config, [f"seed={seed}", f"output={options.output}/seed{seed}", *options.set])
        rows += [{"seed": str(seed), **row} for row in grow(config, arrivals, options.prompts)]
    Console().print(measure.table(rows))
    if options.name:
        command = f"python benchmarks/growing.py {' '.join(arguments or sys.argv[1:])}"
        title = "Tasks added one after the other, and all trained together"
        measure.write(f"growing-{options.name}", command, [], tables={title: rows})


def grow(config: Config, arrivals: Sequence[Sequence[str]], limit: int) -> list[dict[str, str]]:
    """Return one row per added arrival."""
    folder = Path(config.output)
    groups = {file: _groups(config, file) for arrival in arrivals for file in arrival}
    run = train(changed(config, {"data.files": arrivals[0], "output": f"{folder}/first"}), QUIET)
    current, rows = run.folder / "model", []
    for number in range(1, len(arrivals)):
        files, target = arrivals[number], folder / f"added{number}"
        (task,) = {group.task for file in files for group in groups[file]}
        overrides = [
            f"data.files=[{', '.join(files)}]",
            f"data.groups_per_task={config.data.groups_per_task or 'null'}",
        ]
        before = DMoERM.from_pretrained(current)
        started, times = (time.monotonic(), time.process_time()), ("", "")  # unknown if an earlier call added the task
        if not target.exists():
            add_task(current, str(task), overrides, target, QUIET)
            times = (f"{time.monotonic() - started[0]:.0f}", f"{time.process_time() - started[1]:.0f}")
        seen = [file for arrival in arrivals[: number + 1] for file in arrival]
        settings = {"data.files": seen, "output": f"{folder}/together{number}"}
        together = DMoERM.from_pretrained(train(changed(config, settings), QUIET).folder / "model")
        added, current = DMoERM.from_pretrained(target), target
        fresh = _unseen([g for file in seen for g in groups[file]], [added, together], limit)
        old = [group for group in fresh if group.task in before.config.tasks][:: max(limit // 10, 1)]
        rows.append(
            {
                "added": str(task),
                "s": times[0],
                "CPU s": times[1],
                "changed scores": str(_changed(before, added, old)),
                "of": str(sum(len(group.responses) for group in old)),
                "routed, added": _routed(added, fresh),
                "routed, together": _routed(together, fresh),
                "prompts": str(len(fresh)),
            }
        )
    return rows


def _groups(config: Config, file: str) -> list[Group]:
    paths = changed(config, {"data.files": [file]}).data.paths()
    return [group for path in paths for group in read_groups(path).groups]


def _unseen(groups: Sequence[Group], models: Sequence[DMoERM], limit: int) -> list[Group]:
    """Return at most `limit` groups per task, one of each prompt that no model was trained on."""
    known = [model.training_prompts for model in models]
    distinct = {prompt_key(g.prompt): g for g in groups if not any(g.prompt in (prompts or ()) for prompts in known)}
    by_task: dict[str | None, list[Group]] = {}
    for group in distinct.values():
        by_task.setdefault(group.task, []).append(group)
    return [group for part in by_task.values() for group in part[:limit]]


@torch.inference_mode()
def _routed(model: DMoERM, groups: Sequence[Group]) -> str:
    """Return the share of prompts whose most likely task is theirs, in per cent, the mean over tasks."""
    right: dict[Any, list[bool]] = {}
    for group in groups:
        (score,) = model.score(group.prompt, [""])
        right.setdefault(group.task, []).append(max(score.route, key=lambda task: score.route[task]) == group.task)
    return f"{100 * np.mean([np.mean(values) for values in right.values()]):.1f}"


def _changed(before: DMoERM, after: DMoERM, groups: Sequence[Group]) -> int:
    """Return how many scores with a given task differ in any bit."""
    pairs = [
        pair
        for group in groups
        for pair in zip(
            *(m.score(group.prompt, group.responses, task=group.task) for m in (before, after)), strict=True
        )
    ]
    fields = ("reward", "capabilities", "uncertainty", "temperature")
    return sum(any(getattr(one, name) != getattr(two, name) for name in fields) for one, two in pairs)


if __name__ == "__main__":
    main()
