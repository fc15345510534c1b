"""DMoERM without one of its parts, all else equal: each is a run with other settings on the same data and split."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from ...config import changed
from ...schema import Query
from .method import Method, MethodContext, TrainedMethod
from .registry import ABLATION_COLOR, register

_SETTINGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "no_outer": ("no outer layer: one mixture over all tasks and capabilities", {"data.merge_tasks": True}),
    "no_inner": (
        "no inner layer: no experts, the phase-1 and the general score alone",
        {"data.max_capabilities": 0},
    ),
    "no_phase1": ("the reward does not see the phase-1 score", {"phase3.base_scores": ["general"]}),
    "no_phase0": ("the reward does not see the general score", {"phase3.base_scores": ["per_task"]}),
    "embeddings": (
        "the paper's aggregator: an MLP over embeddings in place of the scores",
        {
            "phase3.inputs": "embeddings",
            "phase3.hidden": 64,
            "phase3.learning_rate": 1e-3,
            "phase3.weight_decay": 0.1,
            "phase3.l2": 0.0,
            "phase3.metric_for_best_model": "loss",
            "phase3.evaluations": 10,
        },
    ),
    "one_expert": ("one expert per task", {"data.max_capabilities": 1}),
    "three_experts": ("at most three experts per task", {"data.max_capabilities": 3}),
    "shuffled": (
        "capability labels without meaning (each reversed with probability 0.5): the same parameters, no information",
        {"data.flip_capabilities": 0.5},
    ),
}


def _train(name: str, settings: Mapping[str, Any], context: MethodContext) -> TrainedMethod | None:
    """Train a run with other settings beside the comparison's runs; None if the settings have no effect on the run."""
    from ...evaluation.scored_groups import score_groups
    from ...training import train

    config = context.run.config
    if "phase3.base_scores" in settings and config.phase3.inputs == "embeddings":
        return None
    context.console.print(f"  {name}", highlight=False)
    folders = {"output": str(context.folder / name)}
    if config.storage is not None:
        folders["storage"] = f"{config.storage.rpartition('/')[0]}/{name}"
    run = train(changed(config, {**settings, **folders}), Console(quiet=True), context.engine)

    def score_all(queries: Sequence[Query]) -> list[list[float]]:
        known = set(run.model.config.tasks)
        routed = [q if q.task in known else q.model_copy(update={"task": None}) for q in queries]
        scored = score_groups(run.model, routed, 8192, context.console, run.cache)
        return [group.rewards["dmoerm"].tolist() for group in scored]

    return TrainedMethod(score_all=score_all)


register(
    *(
        Method(name, description, "ablation", ABLATION_COLOR, functools.partial(_train, name, settings))
        for name, (description, settings) in _SETTINGS.items()
    )
)
