"""Evaluation of a model on labeled groups: everything that results.json contains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from rich.console import Console

from ..chat.truncation import TruncationCounts, count_truncation
from ..config import Config
from ..errors import DataError
from ..model import DMoERM
from ..model.training_prompts import TrainingPrompts
from ..schema import GENERATED, Group, prompt_key
from ..training.cache import ActivationCache
from ..training.suspects import JudgedLabel
from .error_analysis import error_analysis
from .metrics import calibration_result, capability_accuracy, compare, length_bias, overall_counts, router_result
from .results import Overlap, Results, peak_memory, phase_seconds, score_weights, versions
from .scored_groups import score_groups


def evaluate(
    model: DMoERM,
    groups: Sequence[Group],
    config: Config | None = None,
    *,
    command: str = "evaluate",
    steps: Mapping[str, Mapping[str, Any]] | None = None,
    batch_tokens: int | None = None,
    console: Console | None = None,
    cache: ActivationCache | None = None,
    include_trained: bool = False,
    trained: TruncationCounts | None = None,
    judged: Sequence[JudgedLabel] | None = None,
    folder: str = "",
    files: Sequence[str] = (),
) -> Results:
    """Measure the model, and the general and per-task models that it contains.

    Args:
        config: the training settings; their seed also seeds the bootstrap.
        command: the command line, which is stored in the results.
        steps: step → its training metrics, from `Run.metrics()`.
        batch_tokens: as in `DMoERM.score`.
        console: where to show progress; default: standard error.
        cache: keeps the trunk's activations; see `score_groups`.
        include_trained: also measure on groups with a training prompt.
        trained: the training part's counts of truncated texts; stored in the results.
        judged: the training part's labels from `judge_labels`; stored in the results.
        folder: where the model comes from, for the report; default: the run's folder.
        files: where the groups come from, for the report; default: the files of the settings.

    Raises:
        DataError: no pair is ordered by human labels, a task is unknown, or a text is longer than the model reads.
    """
    groups, overlap = split_overlap(groups, model.training_prompts, include_trained)
    if not any(group.pairs() for group in groups):
        raise DataError(
            "no two responses are ordered by human labels",
            field="scores",
            value=f"{len(groups)} groups",
            hint="evaluate on groups with differing scores or ranks",
        )
    scored = score_groups(model, groups, batch_tokens, console, cache)
    seed = config.seed if config else 0
    derived = sorted({s.task for s in scored if s.group.scores_derived})
    truncation = {"evaluation": count_truncation((group, model.encoder.encode(group)) for group in groups)}
    if trained is not None:
        truncation["training"] = trained
    accuracy, paired = compare(overall_counts(scored), derived, seed)
    return Results(
        command=command,
        date=date.today().isoformat(),
        folder=folder or (config.output if config else ""),
        data=tuple(files or (config.data.test_files or config.data.files if config else ())),
        config=config.model_dump(mode="json") if config else {},
        seed=seed,
        versions=versions(),
        derived_tasks=tuple(derived),
        gold_tasks=tuple(sorted({s.task for s in scored if s.group.source == GENERATED})),
        overlap=overlap,
        truncation=truncation,
        router=router_result(scored),
        accuracy=accuracy,
        paired=paired,
        capabilities=capability_accuracy(scored, seed),
        calibration=calibration_result(scored),
        length_bias=length_bias(scored),
        weights=score_weights(steps or {}, model.config.tasks),
        errors=error_analysis(scored, seed, judged),
        time=phase_seconds(steps or {}),
        steps={name: dict(metrics) for name, metrics in (steps or {}).items()},
        peak_memory=peak_memory(),
    )


def split_overlap(
    groups: Sequence[Group], training_prompts: TrainingPrompts | None, include: bool = False
) -> tuple[list[Group], Overlap]:
    """Find the groups whose prompts the model was trained on, and leave them out.

    Args:
        training_prompts: those of the model; None if they are not known.
        include: keep those groups; they are counted in both cases.

    Returns:
        The groups to evaluate on, and the counts for the results.

    Raises:
        DataError: no group is left.
    """
    if training_prompts is None:
        return list(groups), Overlap(known=False, groups=0, prompts=0, included=True)
    trained = [group.prompt in training_prompts for group in groups]
    prompts = {prompt_key(group.prompt) for group, hit in zip(groups, trained, strict=True) if hit}
    overlap = Overlap(known=True, groups=sum(trained), prompts=len(prompts), included=include)
    kept = [group for group, hit in zip(groups, trained, strict=True) if include or not hit]
    if groups and not kept:
        raise DataError(
            f"the model was trained on the prompts of all {len(groups)} groups",
            field="prompt",
            hint="evaluate on other prompts, or keep them with --include-trained",
        )
    return kept, overlap
