"""DMoERM without one of its parts, all else equal: each is a run with other settings on the same data and split."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from dmoerm.config import changed
from dmoerm.evaluation.methods import Method, MethodContext, TrainedMethod, register
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.schema import Query
from dmoerm.training import train
from evidence.conditions import prepared

_SETTINGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "no_outer": ("no outer layer: one mixture over all tasks and capabilities", {"merge_tasks": True}),
    "no_inner": (
        "no inner layer: no experts, the phase-1 and the general score alone",
        {"max_capabilities": 0},
    ),
    "embeddings": (
        "the paper's aggregator: an MLP over embeddings in place of the scores",
        {
            "phase3.fit": "trained",
            "phase3.inputs": "embeddings",
            "phase3.base_scores": ["per_task", "general"],
            "phase3.hidden": 64,
            "phase3.learning_rate": 1e-3,
            "phase3.weight_decay": 0.1,
            "phase3.evaluations": 10,
        },
    ),
    "one_expert": ("one expert per task", {"max_capabilities": 1}),
    "three_experts": ("at most three experts per task", {"max_capabilities": 3}),
    "shuffled": (
        "capability labels without meaning (each reversed with probability 0.5): the same parameters, no information",
        {"shuffle_capabilities": 0.5},
    ),
}
_SCORES = {
    "no_phase1": ("the reward does not see the phase-1 score", "per_task"),
    "no_phase0": ("the reward does not see the general score", "general"),
    "no_all_labels": ("the reward does not see the score of the head on all labels", "all_labels"),
}


def _train_without(name: str, score: str, context: MethodContext) -> TrainedMethod | None:
    """Train a run whose aggregator lacks a base score; None if the run's has no such score."""
    phase3 = context.run.config.phase3
    if score not in phase3.base_scores or phase3.inputs == "embeddings":
        return None
    others = [other for other in phase3.base_scores if other != score]
    return _train(name, {"phase3.base_scores": others}, context)


def _train(name: str, settings: Mapping[str, Any], context: MethodContext) -> TrainedMethod:
    """Train a run with other settings or data, in a folder next to the comparison's runs."""
    config = context.run.config
    context.console.print(f"  {name}", highlight=False)
    config = prepared(changed(config, {"output": str(context.folder / name)}), settings, context.folder / name / "data")
    run = train(config, Console(quiet=True))

    def score_all(queries: Sequence[Query]) -> list[list[float]]:
        known = set(run.model.config.tasks)
        routed = [q if q.task in known else q.model_copy(update={"task": None}) for q in queries]
        scored = score_groups(run.model, routed, None, context.console, run.cache)
        return [group.rewards["dmoerm"].tolist() for group in scored]

    return TrainedMethod(score_all=score_all)


def _train_given_task(_: MethodContext) -> TrainedMethod:
    return TrainedMethod(lambda batch: batch.by_task(batch.tasks, "reward")[None])


def _train_risk(context: MethodContext) -> TrainedMethod | None:
    """Use the run; return None if its rewards have no uncertainty."""
    model = context.run.model
    posteriors = [model.general_posterior, *(model.task_model(task).posterior for task in model.config.tasks)]
    if not all(posterior.known for posterior in posteriors):
        return None
    return TrainedMethod(lambda batch: (batch.output.reward - batch.output.uncertainty)[None])


register(
    Method(
        "risk",
        "the reward minus its standard deviation: cautious about responses far from the training data",
        _train_risk,
        default=False,
    ),
    Method(
        "given_task",
        "the task is given, as it is to the models per task: the difference is what routing costs",
        _train_given_task,
        default=False,
    ),
    *(
        Method(name, description, functools.partial(_train, name, settings), default=False)
        for name, (description, settings) in _SETTINGS.items()
    ),
    *(
        Method(name, description, functools.partial(_train_without, name, score), default=False)
        for name, (description, score) in _SCORES.items()
    ),
)

NAMES = ("risk", "given_task", *_SETTINGS, *_SCORES)
