"""`human_grades`: people's own capability grades in place of the experts' scores, a bound for what experts can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmoerm.data.overall import overall_from_capabilities
from dmoerm.experiments.methods.method import Method, MethodContext, TrainedMethod
from dmoerm.experiments.methods.registry import ABLATION_COLOR, register
from dmoerm.schema import Group, Query

if TYPE_CHECKING:
    from torch import Tensor

    from dmoerm.evaluation.scored_groups import ScoringBatch


def train_human_grades(context: MethodContext) -> TrainedMethod | None:
    """Average standardized grades; None if no training group has grades."""
    training = context.data.train

    def score(batch: ScoringBatch) -> Tensor:
        import torch

        groups = [_graded_only(query) for query in batch.groups]
        graded = iter(overall_from_capabilities([group for group in groups if group], training))
        averaged = [next(graded).scores if group else None for group in groups]
        rows = [row or (0.0,) * len(query.responses) for row, query in zip(averaged, batch.groups, strict=True)]
        return torch.tensor([value for row in rows for value in row], device=batch.owner.device)[None]

    return TrainedMethod(score=score) if any(group.capabilities for group in training) else None


def _graded_only(query: Query) -> Group | None:
    """Return the group without its overall scores; None for a query without grades."""
    if isinstance(query, Group) and query.capabilities:
        return query.model_copy(update={"scores": None, "ranks": None})
    return None


register(
    Method(
        "human_grades",
        "the mean of people's capability grades of the held-out responses: what perfect experts would give (all of it "
        "where the overall score is derived from them); groups without a grade for each response are ties",
        "ablation",
        ABLATION_COLOR,
        train_human_grades,
    )
)
