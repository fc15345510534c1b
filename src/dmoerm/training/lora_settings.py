"""The LoRA that a run trains, checked against its backbone before the run reads data or weights."""

from __future__ import annotations

from torch import nn

from ..config import Config
from ..model.backbone import branch_without_weights
from ..model.experts import check_targets


def check_lora(config: Config, branch: nn.Module | None = None) -> None:
    """Check the targets of each LoRA that a run trains.

    Args:
        branch: the branch of the backbone; None: one without weights is built if there is a LoRA.

    Raises:
        BackboneError: a target is not the name of a linear layer of the branch.
    """
    settings = {"phase2.lora": config.phase2.lora} if config.phase2.lora.rank else {}
    settings |= {"base_lora": config.base_lora} if config.base == "lora" else {}
    for name, lora in settings.items():
        branch = branch_without_weights(config.backbone) if branch is None else branch
        check_targets(branch, lora, f"{name}.targets")
