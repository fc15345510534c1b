"""`human_grades`: people's own capability grades in place of the experts' scores, a bound for what experts can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...data.overall import overall_from_capabilities
from .method import Method, MethodContext, TrainedMethod
from .registry import ABLATION_COLOR, register

if TYPE_CHECKING:
    from torch import Tensor

    from ...evaluation.scoring_batch import ScoringBatch
    from ...schema import Group


def train_human_grades(context: MethodContext) -> TrainedMethod | None:
    """Average standardized grades; None if no training group has grades."""
    training = context.data.train

    def score(batch: ScoringBatch) -> Tensor:
        import torch

        groups = [_graded_only(group) for group in batch.groups]
        averaged = overall_from_capabilities(groups, training)
        rows = [group.scores or (0.0,) * len(group.responses) for group in averaged]
        return torch.tensor([value for row in rows for value in row], device=batch.owner.device)[None]

    return TrainedMethod(score=score) if any(group.capabilities for group in training) else None


def _graded_only(group: Group) -> Group:
    return group.model_copy(update={"scores": None, "ranks": None})


register(
    Method(
        "human_grades",
        "the mean of people's capability grades of the held-out responses: what perfect experts would give; responses "
        "without grades are ties",
        "ablation",
        ABLATION_COLOR,
        train_human_grades,
    )
)
