"""Experts become side by side, and in steps of their own, what each becomes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dmoerm.model.experts import Experts, lora_layers
from dmoerm.training.phases import phase1, phase2

TASK = "chitchat"


def without_dropout(rank: int) -> dict[str, Any]:
    return {"rank": rank} | ({"dropout": 0.0} if rank else {})


def trained(start: Any) -> None:
    for phase in (phase1, phase2):
        phase(start, TASK)


def one_expert(start: Any, capability: str) -> None:
    """Leaves the task this one expert."""
    model = start.run.model
    task_model = model.task_model(TASK)
    settings = start.run.config
    branch, width = task_model.base.branch, model.config.width
    task_model.experts = Experts(
        branch, [capability], width, settings.phase2.lora, settings.head, task_model.base.pooling
    )


@pytest.mark.parametrize(
    ("rank", "head_first"),
    [pytest.param(0, False, marks=pytest.mark.slow), pytest.param(2, False, marks=pytest.mark.slow), (2, True)],
)
def test_experts_trained_together_are_those_trained_alone(
    begun: Callable[..., Any], tmp_path: Path, rank: int, head_first: bool
) -> None:
    """Each on its own labels, with early stopping at its own time; nothing random inside the layers."""
    step = {"learning_rate": 3e-2, "epochs": 6, "evaluations": 6, "patience": 1}
    lora = without_dropout(rank)
    settings = {"phase2": {**step, "lora": lora, "head_first": head_first}, "training": {"batch_groups": 2}}
    together = begun(**settings)
    trained(together)
    for i, capability in enumerate(together.run.model.task_model(TASK).experts.capabilities):
        alone = begun(**settings, output=str(tmp_path / capability))
        one_expert(alone, capability)
        trained(alone)
        joint, own = (start.run.model.task_model(TASK).experts for start in (together, alone))
        torch.testing.assert_close(joint.heads[i].state_dict(), own.heads[0].state_dict(), atol=1e-5, rtol=1e-3)
        for one, other in zip(lora_layers(joint).values(), lora_layers(own).values(), strict=True):
            torch.testing.assert_close(one.lora_A[i], other.lora_A[0], atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(one.lora_B[i], other.lora_B[0], atol=1e-5, rtol=1e-3)
        kept = [start.run.metrics()[f"phase2/{TASK}"][f"loss/{capability}"] for start in (together, alone)]
        assert kept[0] == pytest.approx(kept[1], rel=1e-4)
