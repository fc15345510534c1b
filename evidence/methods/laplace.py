"""`laplace`: the single model with the uncertainty of its last layer (Yang et al. 2024, arXiv 2402.13210).

Its reward is the lower bound mean − 1 · standard deviation, under the Laplace posterior of the head's weights, in the
unit of the single model's calibrated rewards. The mean itself is the single model's reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmoerm.experiments.methods.method import Method, MethodContext, TrainedMethod
from dmoerm.experiments.methods.registry import register
from dmoerm.experiments.methods.run_models import single_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from dmoerm.evaluation.scored_groups import ScoringBatch


def train_laplace(context: MethodContext) -> TrainedMethod | None:
    """Use the run's phase 0; None if its head has no posterior."""
    model = context.run.model
    if not model.general_posterior.known:
        return None

    def score(batch: ScoringBatch) -> Tensor:
        reward = model.general_calibration(batch.output.general)
        deviation = model.general_posterior.deviation(model.general.head.normalizer(batch.embeddings.float()))
        return (reward - deviation)[None]

    return TrainedMethod(score=score, steps=("phase0",), parameters=single_parameters(context))


register(
    Method(
        "laplace",
        "the single model minus one standard deviation under the Laplace posterior of its last layer",
        "baseline",
        "#117733",
        train_laplace,
    )
)
