"""Labels that a finished run's model contradicts, where it was not trained on them: candidates for relabeling.

    exact heads      training prompts by the heads that were fitted without their fold, validation prompts by the model
    other heads      validation prompts only

Shapes: N responses of an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..schema import Group, Pair
from .calibration import out_of_fold_scores
from .embedding import base_embeddings, map_rows, task_vectors
from .exact_solver import out_of_fold
from .examples import PreferenceExample
from .steps import Training

Examples = Sequence[PreferenceExample]


@dataclass(frozen=True)
class JudgedLabel:
    """The label of a pair of responses, and what a model that was not trained on it says.

    Attributes:
        task: the group's task, or the one that the router assigns.
        capability: what the label is about; None: the overall preference.
        pair: the label: `pair.better` is preferred.
        probability: the model's probability of the label, 0 to 1.
    """

    group: Group
    task: str
    capability: str | None
    pair: Pair
    probability: float


@torch.no_grad()
def judge_labels(training: Training) -> list[JudgedLabel]:
    """Judge the labels of the training part by scores that are held out; the most doubtful label first.

    Labels of a capability are judged if its head was fitted exactly.

    Args:
        training: of a finished run; see `load_run`.
    """
    run, judged = training.run, list[JudgedLabel]()

    def judge(examples: Examples, task: str, capability: str | None, scores: Mapping[str, Tensor]) -> None:
        for example in (e for e in examples if e.pairs.get(capability) and e.key in scores):
            for pair in example.pairs[capability]:
                margin = scores[example.key][pair.better] - scores[example.key][pair.worse]
                judged.append(JudgedLabel(example.group, task, capability, pair, float(torch.sigmoid(margin))))

    for task in run.model.config.tasks:
        task_model: Any = run.model.task_model(task)
        train, validation = ([e for e in part if e.task == task] for part in (training.train, training.validation))
        unit = task_model.calibration.scale * task_model.calibration.temperature
        vectors = task_vectors(run, task, validation) if validation else {}
        rewards = map_rows(lambda rows, unit=unit, t=task_model: t.aggregator(rows) / unit, vectors, run)
        if training.is_exact(task):
            scores = out_of_fold_scores(training, task, train)
            rewards |= map_rows(lambda rows, unit=unit, t=task_model: t.aggregator.linear(rows) / unit, scores, run)
        judge([*train, *validation], task, None, rewards)
        for name, head in zip(task_model.experts.capabilities, task_model.experts.heads, strict=True):
            if (folds := training.folds.get((task, name))) is not None:
                embeddings = base_embeddings(run, task_model.base, train)
                scores = out_of_fold(head, folds, train, embeddings, run.config.seed)
                scores |= map_rows(head, base_embeddings(run, task_model.base, validation), run)
                judge([*train, *validation], task, name, scores)
    return sorted(judged, key=lambda label: label.probability)
