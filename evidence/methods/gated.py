"""`gated`: one regression head per objective, weighted by a gate that reads the prompt (ArmoRM, arXiv 2406.12845)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmoerm.experiments.methods.method import Method, MethodContext, TrainedMethod
from dmoerm.experiments.methods.registry import register
from dmoerm.experiments.methods.run_models import count_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from dmoerm.evaluation.scored_groups import ScoringBatch


def train_method(context: MethodContext) -> TrainedMethod | None:
    """Train it; None if the router has no prompt embedding that a gate could read, or no capability is graded."""
    from evidence.methods.gated_model import train_gated

    run = context.run
    if run.model.router.language_model is not None or not any(e.group.capabilities for e in context.train):
        return None
    gated = train_gated(run, context.train, context.validation)

    def score(batch: ScoringBatch) -> Tensor:
        assert batch.prompts is not None
        vectors = gated.vectors(batch.embeddings.cpu(), batch.prompts[batch.owner].cpu())
        return gated(vectors).to(batch.owner.device)[None]

    return TrainedMethod(score=score, steps=("baselines/gated",), parameters=count_parameters(gated))


register(
    Method(
        "gated",
        "one regression head per objective, weighted by a gate that reads the prompt (ArmoRM)",
        "baseline",
        "#d55e00",
        train_method,
    )
)
