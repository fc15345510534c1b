"""DMoERM with a part taken away, all else equal: each is a run with other settings on the same data and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ablation:
    """What is changed, and what it is called in a report."""

    settings: Mapping[str, Any]
    about: str


ABLATIONS: dict[str, Ablation] = {
    "no_outer": Ablation({"data.merge_tasks": True}, "no outer layer: one mixture over all tasks and capabilities"),
    "no_inner": Ablation(
        {"data.max_capabilities": 0}, "no inner layer: no experts, the phase-1 and the general score alone"
    ),
    "no_phase1": Ablation({"phase3.base_scores": ["general"]}, "the reward does not see the phase-1 score"),
    "no_phase0": Ablation({"phase3.base_scores": ["per_task"]}, "the reward does not see the general score"),
    "embeddings": Ablation(
        {
            "phase3.inputs": "embeddings",
            "phase3.hidden": 64,
            "phase3.learning_rate": 1e-3,
            "phase3.weight_decay": 0.1,
            "phase3.l2": 0.0,
            "phase3.metric_for_best_model": "loss",
            "phase3.evaluations": 10,
        },
        "the paper's aggregator: an MLP over embeddings in place of the scores",
    ),
    "one_expert": Ablation({"data.max_capabilities": 1}, "one expert a task"),
    "three_experts": Ablation({"data.max_capabilities": 3}, "at most three experts a task"),
    "shuffled": Ablation(
        {"data.flip_capabilities": 0.5},
        "capability labels without meaning (each reversed with probability 0.5): the same parameters, no information",
    ),
}
