"""One cell of a comparison: a condition and a seed, the run with its baselines and ablations, trained and scored.

A cell that is done lies beside its runs and is not measured again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from .. import testbed
from ..config import Config, changed
from ..data.splits import Splits, load_splits
from ..errors import ConfigError, DataError
from ..evaluation.accuracy import PairCounts, by_task, count_pairs
from ..evaluation.diagnostics import length_bias, probabilities, reliability, router_result
from ..evaluation.results import CalibrationResult, Cost, LengthBias, Part, RouterResult
from ..evaluation.scored_groups import ScoredGroup, score_groups
from ..io.paths import write_file
from ..schema import Group, prompt_key
from ..training import train
from ..training.graph import Engine
from .ablations import ABLATIONS
from .costs import costs
from .method_suite import Method, Panel, open_panel

TRAINED = {
    "general": "one model trained on all tasks together: the single reward model",
    "per_task": "one model for each task, given the task",
    "ensemble_mean": "single models with other starts and data orders: their mean",
    "ensemble_wco": "the same, their worst (WCO)",
    "ensemble_uwo": "the same, mean less half the variance (UWO)",
    "bagged_mean": "single models, each on its own resample of the prompts: their mean",
    "bagged_wco": "the same, their worst",
    "bagged_uwo": "the same, mean less half the variance",
    "warm": "one model with the ensemble's mean weights (WARM)",
    "gated": "one regression head an objective, weighted by a gate that reads the prompt (ArmoRM)",
    "dmoerm": "router, experts and aggregator end to end: the router alone chooses the task",
}
"""The methods that a comparison trains → what they are."""
_TIMED = 8  # groups that scoring is timed on
_ELSEWHERE = {"output", "cache", "cache_limit", "experts_per_step", "storage", "ray", "report_to"}
"""Settings that change no result."""


@dataclass(frozen=True)
class Outside:
    """A method that this comparison does not train.

    Attributes:
        method: what scores a cell's test part; it may look at the cell's training part, as a few-shot judge does.
        tasks: the tasks that it can score; None: all.
        key: what, beside its name and `about`, its rewards depend on; another one is measured anew.
    """

    method: Callable[[Splits], Method]
    about: str
    tasks: frozenset[str] | None = None
    key: str = ""


class Counts(Part):
    """`PairCounts` of one seed, on disk."""

    prompts: tuple[str, ...]
    pairs: tuple[float, ...]
    right: dict[str, tuple[float, ...]]

    @staticmethod
    def of(counts: PairCounts) -> Counts:
        """From counts of one seed; of a prompt, its hash."""
        prompts = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in counts.prompts]
        rows = {method: row[0].tolist() for method, row in counts.right.items()}
        return Counts.model_validate({"prompts": prompts, "pairs": counts.pairs[0].tolist(), "right": rows})

    def counts(self) -> PairCounts:
        """As the bootstrap takes them."""
        right = {method: np.array([row]) for method, row in self.right.items()}
        return PairCounts(self.prompts, np.array([self.pairs]), right)


class Cell(Part):
    """One condition and seed."""

    asked: dict[str, Any]
    """Settings and methods that it was measured with."""
    overall: dict[str, Counts]
    capabilities: dict[str, dict[str, Counts]]
    router: RouterResult
    calibration: dict[str, CalibrationResult]
    length_bias: dict[str, LengthBias]
    costs: dict[str, Cost]
    derived: tuple[str, ...]
    gold: tuple[str, ...]


def measure(
    config: Config,
    members: int,
    ablations: Sequence[str],
    outside: Mapping[str, Outside],
    console: Console,
    engine: Engine | None = None,
) -> Cell:
    """Trains and scores what is missing: the run in `config.output`, ablations and the cell itself beside it."""
    folder = Path(config.output).parent
    asked = {"config": config.model_dump(mode="json", exclude=_ELSEWHERE)}
    data = load_splits(config)
    _check(data, outside)
    others = {name: f"{found.about}\0{found.key}" for name, found in sorted(outside.items())}
    asked |= {"members": members, "ablations": sorted(ablations), "outside": others, "data": _digest(data)}
    file = folder / "cell.json"
    if (found := _done(file)) and found.asked == asked:
        console.print("  done before", highlight=False)
        return found
    panel = open_panel(config, members, console, engine)
    scored = panel.score(panel.data.test, console=console)
    rewards = [dict(one.rewards) for one in scored]
    for name in ablations:
        console.print(f"  {name}", highlight=False)
        settings = {**ABLATIONS[name].settings, "output": str(folder / name)}
        if config.storage is not None:
            settings["storage"] = f"{config.storage.rpartition('/')[0]}/{name}"
        _add(rewards, name, _ablated(changed(config, settings), console, engine))
    _add_outside(rewards, outside, scored, panel.data)
    cell = _measured(panel, scored, rewards, asked, console)
    write_file(file, cell.model_dump_json() + "\n")
    return cell


def _check(data: Splits, outside: Mapping[str, Outside]) -> None:
    """Before anything is trained: there is something to measure, and no name means two methods."""
    if not any(group.pairs() for group in data.test):
        raise DataError("the held-out part has no pair of responses that people ordered", field="scores")
    if taken := sorted(TRAINED.keys() & outside.keys() | ABLATIONS.keys() & outside.keys()):
        raise ConfigError(f"{taken[0]!r} is a method of this comparison; give the other one another name")


def _digest(data: Splits) -> str:
    digest = hashlib.sha256()
    for group in (*data.train, *data.test):
        digest.update(group.model_dump_json().encode())
    return digest.hexdigest()[:32]


def _done(file: Path) -> Cell | None:
    try:
        return Cell.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _ablated(config: Config, console: Console, engine: Engine | None) -> list[np.ndarray]:
    """The rewards of a run with other settings, one row a test group."""
    run = train(config, Console(quiet=True), engine)
    scored = score_groups(run.model, load_splits(config).test, 8192, console, run.cache)
    return [one.rewards["dmoerm"] for one in scored]


def _add(rewards: Sequence[dict[str, np.ndarray]], name: str, rows: Sequence[np.ndarray]) -> None:
    for found, row in zip(rewards, rows, strict=True):
        found[name] = row


def _add_outside(
    rewards: Sequence[dict[str, np.ndarray]],
    outside: Mapping[str, Outside],
    scored: Sequence[ScoredGroup[Group]],
    data: Splits,
) -> None:
    for name, other in outside.items():
        places = [i for i, one in enumerate(scored) if other.tasks is None or one.task in other.tasks]
        rows = other.method(data).score_all([scored[i].group for i in places])
        _add([rewards[i] for i in places], name, [np.array(row, dtype=float) for row in rows])


def _measured(
    panel: Panel,
    scored: Sequence[ScoredGroup[Group]],
    rewards: Sequence[Mapping[str, np.ndarray]],
    asked: dict[str, Any],
    console: Console,
) -> Cell:
    temperatures = panel.temperatures(console)
    complete = [_with(one, row) for one, row in zip(scored, rewards, strict=True)]
    overall: dict[str, Counts] = {}
    capabilities: dict[str, dict[str, Counts]] = {}
    for task, members in by_task(complete).items():
        if counts := count_pairs((prompt_key(s.group.prompt), s.group.pairs(), s.rewards) for s in members):
            overall[task] = Counts.of(counts)
        for name in members[0].capabilities:
            rows = ((prompt_key(s.group.prompt), s.group.pairs(name), {name: s.capabilities[name]}) for s in members)
            if counts := count_pairs(rows):
                capabilities.setdefault(task, {})[name] = Counts.of(counts)
    return Cell(
        asked=asked,
        overall=overall,
        capabilities=capabilities,
        router=router_result(scored),
        calibration={method: _calibration(scored, method, temperatures) for method in panel.methods},
        length_bias=length_bias(complete),
        costs=costs(panel, panel.data.test[:_TIMED]),
        derived=tuple(sorted({s.task for s in scored if s.group.scores_derived})),
        gold=tuple(sorted({s.task for s in scored if s.group.source == testbed.SOURCE})),
    )


def _with(scored: ScoredGroup[Group], rewards: Mapping[str, np.ndarray]) -> ScoredGroup[Group]:
    fields = {name: getattr(scored, name) for name in ("group", "task", "route", "chosen", "temperature")}
    return ScoredGroup(**fields, rewards=rewards, capabilities=scored.capabilities)


def _calibration(
    scored: Sequence[ScoredGroup[Group]], method: str, temperatures: Mapping[tuple[str, str], float]
) -> CalibrationResult:
    found: list[float] = []
    for one in scored:
        t = one.temperature if method == "dmoerm" else temperatures.get((method, one.task), 1.0)
        found += probabilities(one, one.rewards[method] / t)
    return reliability(found)
