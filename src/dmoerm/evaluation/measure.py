"""Evaluation of a model on labeled groups: everything that results.json contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from ..bootstrap import RESAMPLES
from ..chat.truncation import TruncationCounts, count_truncation
from ..config import Config
from ..errors import DataError
from ..model import DMoERM
from ..model.training_prompts import TrainingPrompts
from ..schema import GENERATED, Group
from ..training.cache import ActivationCache
from ..training.suspects import JudgedLabel
from .accuracy import capability_accuracy, compare, overall_counts
from .diagnostics import calibration_result, length_bias, router_result
from .error_analysis import error_analysis
from .overlap import split_overlap
from .results import Results, peak_memory, phase_seconds, versions
from .scored_groups import score_groups


def evaluate(
    model: DMoERM,
    groups: Sequence[Group],
    config: Config | None = None,
    *,
    command: str = "evaluate",
    steps: Mapping[str, Mapping[str, Any]] | None = None,
    batch_tokens: int | None = None,
    resamples: int = RESAMPLES,
    console: Console | None = None,
    cache: ActivationCache | None = None,
    training_prompts: TrainingPrompts | None = None,
    include_trained: bool = False,
    trained: TruncationCounts | None = None,
    judged: Sequence[JudgedLabel] | None = None,
) -> Results:
    """Measure the model and the single models that it contains.

    Args:
        config: the settings that the model was trained with; their seed is also the seed of the bootstrap.
        command: the command, for the results.
        steps: step → its training metrics, from `Run.metrics()`.
        batch_tokens: as in `DMoERM.score`.
        console: where progress is shown; None: on the standard error stream.
        cache: keeps the trunk's activations; see `score_groups`.
        training_prompts: the prompts that the model was trained on; None: those that its checkpoint lists.
        include_trained: also measure on groups with such a prompt.
        trained: truncation counts of the training part, for the results.
        judged: the labels of the training part, from `judge_labels`, for the results.

    Raises:
        DataError: no pair is ordered by people, an unknown task, a text longer than the model reads.
    """
    groups, overlap = split_overlap(groups, training_prompts or model.training_prompts, include_trained)
    _check_pairs(groups)
    scored = score_groups(model, groups, batch_tokens, console, cache)
    seed = config.seed if config else 0
    derived = sorted({s.task for s in scored if s.group.scores_derived})
    accuracy, paired = compare(overall_counts(scored), derived, seed, resamples)
    return Results(
        command=command,
        config=config.model_dump(mode="json") if config else {},
        seed=seed,
        versions=versions(),
        derived_tasks=tuple(derived),
        gold_tasks=tuple(sorted({s.task for s in scored if s.group.source == GENERATED})),
        overlap=overlap,
        truncation=_truncation(model, groups, trained),
        router=router_result(scored),
        accuracy=accuracy,
        paired=paired,
        capabilities=capability_accuracy(scored, seed, resamples),
        calibration=calibration_result(scored),
        length_bias=length_bias(scored),
        errors=error_analysis(scored, seed, resamples, judged),
        time=phase_seconds(steps or {}),
        steps={name: dict(metrics) for name, metrics in (steps or {}).items()},
        peak_memory=peak_memory(),
    )


def _check_pairs(groups: Sequence[Group]) -> None:
    if not any(group.pairs() for group in groups):
        raise DataError(
            "no two responses are ordered by people",
            field="scores",
            value=f"{len(groups)} groups",
            hint="evaluate on groups with differing scores or ranks",
        )


def _truncation(
    model: DMoERM, groups: Sequence[Group], trained: TruncationCounts | None
) -> dict[str, TruncationCounts]:
    measured = count_truncation((group, model.encoder.encode(group)) for group in groups)
    return {"evaluation": measured} | ({} if trained is None else {"training": trained})
