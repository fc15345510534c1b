"""Labels that a finished run's model contradicts, where it was not trained on them: candidates for relabeling.

    exact heads      training prompts by the heads that were fitted without their fold, validation prompts by the model
    other heads      validation prompts only

Shapes: N responses of an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..schema import Group, Pair
from .batches import PreferenceExample
from .embedding import base_embeddings, map_rows, task_vectors
from .exact_solver import out_of_fold
from .score_weights import out_of_fold_scores
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
def judge_labels(training: Training, capabilities: bool = True) -> list[JudgedLabel]:
    """Judge the labels of the training part by scores that are held out; the most doubtful label first.

    Args:
        training: of a finished run; see `load_run`.
        capabilities: also judge the labels of the capabilities whose heads were fitted exactly.
    """
    judged: list[JudgedLabel] = []
    for task in training.run.model.config.tasks:
        parts = [[e for e in part if e.task == task] for part in (training.train, training.validation)]
        judged += _judged(parts[0] + parts[1], task, None, _rewards(training, task, *parts))
        for name in training.run.model.task_model(task).experts.capabilities if capabilities else ():
            if (task, name) in training.folds:
                judged += _judged(parts[0] + parts[1], task, name, _expert_scores(training, task, name, *parts))
    return sorted(judged, key=lambda label: label.probability)


def _judged(
    examples: Examples, task: str, capability: str | None, score: Callable[[PreferenceExample], Tensor | None]
) -> Iterator[JudgedLabel]:
    for example in examples:
        scores = score(example) if example.pairs.get(capability) else None
        if scores is None:
            continue
        for pair in example.pairs[capability]:
            probability = float(torch.sigmoid(scores[pair.better] - scores[pair.worse]))
            yield JudgedLabel(example.group, task, capability, pair, probability)


def _rewards(
    training: Training, task: str, train: Examples, validation: Examples
) -> Callable[[PreferenceExample], Tensor | None]:
    """Return a function: example → its responses' held-out rewards / temperature (N,); None if there are none."""
    run, task_model = training.run, training.run.model.task_model(task)
    unit = task_model.calibration.scale * task_model.calibration.temperature
    vectors = task_vectors(run, task, validation) if validation else {}
    rewards = map_rows(lambda rows: task_model.aggregator(rows) / unit, vectors, run)
    if training.is_exact(task):
        linear = task_model.aggregator.linear
        assert linear is not None
        scores = out_of_fold_scores(training, task, train)
        rewards |= map_rows(lambda rows: linear(rows) / unit, scores, run)
    return lambda example: rewards.get(example.key)


def _expert_scores(
    training: Training, task: str, name: str, train: Examples, validation: Examples
) -> Callable[[PreferenceExample], Tensor | None]:
    """Return a function: example → its responses' held-out scores on a capability (N,)."""
    run, task_model, folds = training.run, training.run.model.task_model(task), training.folds[task, name]
    head: Any = task_model.experts.heads[task_model.experts.capabilities.index(name)]
    scores = map_rows(head, base_embeddings(run, task_model.base, validation), run)
    vectors = base_embeddings(run, task_model.base, train)
    scores = out_of_fold(head, folds, train, vectors, run.config.seed) | scores
    return lambda example: scores[example.key]
