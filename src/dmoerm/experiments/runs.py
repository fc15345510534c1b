"""One run of a comparison: one condition and seed, with all methods trained and scored on its held-out prompts.

The result is stored beside the models as run.json and is not measured again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from rich.console import Console

from ..config import Config
from ..data.splits import Splits, load_splits
from ..errors import ConfigError, DataError
from ..evaluation.measure import split_overlap
from ..evaluation.metrics import (
    PairCounts,
    capability_counts,
    length_bias,
    overall_counts,
    probabilities,
    reliability,
    router_result,
)
from ..evaluation.results import CalibrationResult, Cost, LengthBias, Overlap, ResultModel, RouterResult
from ..evaluation.scored_groups import ScoredGroup
from ..io.paths import write_file
from ..model.training_prompts import TrainingPrompts
from ..schema import GENERATED, Group
from ..training.run import Engine
from .costs import costs
from .method_suite import MethodSuite, open_suite
from .methods import Method, registered

_TIMED = 8  # groups on which scoring is timed
_WITHOUT_EFFECT = {"output", "cache", "cache_limit", "experts_per_step", "storage", "ray", "report_to"}
"""Settings that do not change results."""


class StoredCounts(ResultModel):
    """`PairCounts` of one seed, as stored."""

    prompts: tuple[str, ...]
    pairs: tuple[float, ...]
    right: dict[str, tuple[float, ...]]

    @staticmethod
    def of(counts: PairCounts) -> StoredCounts:
        """Convert counts of one seed; a prompt is stored as its hash."""
        prompts = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in counts.prompts]
        rows = {method: row[0].tolist() for method, row in counts.right.items()}
        return StoredCounts.model_validate({"prompts": prompts, "pairs": counts.pairs[0].tolist(), "right": rows})

    def counts(self) -> PairCounts:
        """Convert back to the counts of the bootstrap."""
        right = {method: np.array([row]) for method, row in self.right.items()}
        return PairCounts(self.prompts, np.array([self.pairs]), right)


class RunResult(ResultModel):
    """run.json: the result of one condition and seed."""

    inputs: dict[str, Any]
    """Everything that the result depends on; a run with other inputs is measured again."""
    overall: dict[str, StoredCounts]
    capabilities: dict[str, dict[str, StoredCounts]]
    router: RouterResult
    calibration: dict[str, CalibrationResult]
    length_bias: dict[str, LengthBias]
    costs: dict[str, Cost]
    derived: tuple[str, ...]
    gold: tuple[str, ...]
    overlap: Overlap


def measure_run(
    config: Config,
    members: int,
    methods: Sequence[Method],
    console: Console,
    engine: Engine | None = None,
    include_trained: bool = False,
    training_prompts: Sequence[TrainingPrompts] = (),
    time_methods: bool = True,
) -> RunResult:
    """Train and score what is missing: the run in `config.output`, the other methods and run.json beside it.

    Args:
        time_methods: measure the costs of the methods, which takes minutes; otherwise `costs` is empty.
        training_prompts: the prompts that external methods were trained on; held-out groups with such a prompt are left
            out for all methods, or kept with `include_trained`.

    Raises:
        ConfigError: two methods have the same name.
        DataError: no held-out pair is ordered, or all groups are left out.
    """
    data = load_splits(config)
    known = functools.reduce(operator.or_, training_prompts, TrainingPrompts(frozenset()))
    test, overlap = split_overlap(data.test, known, include_trained)
    _check(test, methods)
    inputs = _inputs(config, dataclasses.replace(data, test=test), members, methods)
    file = Path(config.output).parent / "run.json"
    if (stored := _read(file)) and _equal(stored.inputs, inputs) and (stored.costs or not time_methods):
        console.print("  done before", highlight=False)
        return stored
    suite = open_suite(config, members, console, engine, methods)
    scored = _with_standalone(suite, suite.score(test, console=console))
    timed = costs(suite, test[:_TIMED]) if time_methods else {}
    result = _result(suite, scored, console, inputs, overlap, timed)
    write_file(file, result.model_dump_json() + "\n")
    return result


def _check(test: Sequence[Group], methods: Sequence[Method]) -> None:
    """Check, before anything is trained, that a held-out pair is ordered and that names are unique."""
    if not any(group.pairs() for group in test):
        raise DataError("the held-out part has no pair of responses that people ordered", field="scores")
    known = registered()
    for method in methods:
        if known.get(method.name, method) != method:
            raise ConfigError(f"{method.name!r} is a method of this comparison; give the other one another name")


def _inputs(config: Config, data: Splits, members: int, methods: Sequence[Method]) -> dict[str, Any]:
    """Return everything that the result depends on."""
    digest = hashlib.sha256()
    for group in (*data.train, *data.test):
        digest.update(group.model_dump_json().encode())
    return {
        "config": config.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
        "members": members,
        "methods": {method.name: f"{method.description}\0{method.key}" for method in methods},
        "data": digest.hexdigest()[:32],
    }


def _equal(stored: dict[str, Any], inputs: dict[str, Any]) -> bool:
    """Return whether stored inputs equal these; settings that an earlier version did not have count as default."""
    try:
        config = Config.model_validate(stored.get("config"))
    except ValidationError:
        return False
    return {**stored, "config": config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)} == inputs


def _read(file: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _with_standalone(suite: MethodSuite, scored: Sequence[ScoredGroup[Group]]) -> list[ScoredGroup[Group]]:
    """Add the rewards of the methods that do not score in the run's passes."""
    rewards = [dict(group.rewards) for group in scored]
    for name, trained in suite.trained.items():
        if trained.score_all is None:
            continue
        tasks = suite.methods[name].tasks
        kept = [i for i, group in enumerate(scored) if tasks is None or group.task in tasks]
        for i, row in zip(kept, trained.score_all([scored[i].group for i in kept]), strict=True):
            rewards[i][name] = np.array(row, dtype=float)
    return [group.with_rewards(row) for group, row in zip(scored, rewards, strict=True)]


def _result(
    suite: MethodSuite,
    scored: Sequence[ScoredGroup[Group]],
    console: Console,
    inputs: dict[str, Any],
    overlap: Overlap,
    timed: dict[str, Cost],
) -> RunResult:
    temperatures = suite.temperatures(console)
    return RunResult(
        inputs=inputs,
        overall={task: StoredCounts.of(counts) for task, counts in overall_counts(scored).items()},
        capabilities={
            task: {name: StoredCounts.of(counts) for name, counts in capabilities.items()}
            for task, capabilities in capability_counts(scored).items()
        },
        router=router_result(scored),
        calibration={method: _calibration(scored, method, temperatures) for method in suite.in_pass},
        length_bias=length_bias(scored),
        costs=timed,
        derived=tuple(sorted({s.task for s in scored if s.group.scores_derived})),
        gold=tuple(sorted({s.task for s in scored if s.group.source == GENERATED})),
        overlap=overlap,
    )


def _calibration(
    scored: Sequence[ScoredGroup[Group]], method: str, temperatures: Mapping[tuple[str, str], float]
) -> CalibrationResult:
    winners: list[float] = []
    for group in scored:
        t = group.temperature if method == "dmoerm" else temperatures.get((method, group.task), 1.0)
        winners += probabilities(group, group.rewards[method] / t)
    return reliability(winners)
