"""`umm_rm`: one model whose MLPs are a mixture of experts in training and one MLP in use (after arXiv 2512.00724)."""

from __future__ import annotations

from dmoerm.experiments.methods.method import Method, MethodContext, TrainedMethod
from dmoerm.experiments.methods.registry import register
from dmoerm.experiments.methods.run_models import single_parameters


def train_method(context: MethodContext) -> TrainedMethod | None:
    """Train it; None if the branch is frozen or its layers have no dense MLP."""
    from dmoerm.experiments.methods.members import single_rewards
    from evidence.methods.umm_rm_model import STEP, added_parameters, has_dense_mlps, train_merged

    run = context.run
    if run.frozen or not has_dense_mlps(run.model.general.branch):
        return None
    merged = train_merged(run, context.train, context.validation)
    return TrainedMethod(
        score=lambda batch: single_rewards(run, merged, batch)[None],
        steps=(STEP,),
        parameters=single_parameters(context) + added_parameters(merged.branch),
    )


register(
    Method(
        "umm_rm",
        "one model, trained with a mixture of experts in each MLP and merged into one MLP (after UMM-RM)",
        "baseline",
        "#8b0000",
        train_method,
    )
)
