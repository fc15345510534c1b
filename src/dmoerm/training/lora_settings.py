"""The LoRA that a run trains, checked against its backbone before the run reads data or weights."""

from __future__ import annotations

from ..config import Config
from ..model.backbone import branch_without_weights
from ..model.experts import check_targets


def check_lora(config: Config) -> None:
    """Check the targets of each LoRA that a run trains; only the backbone's configuration is read.

    Raises:
        BackboneError: a target is not the name of a linear layer of the branch.
    """
    settings = {"phase2.lora": config.phase2.lora} if config.phase2.lora.rank else {}
    settings |= {"base_lora": config.base_lora} if config.base == "lora" else {}
    if settings:
        branch = branch_without_weights(config.backbone)
        for name, lora in settings.items():
            check_targets(branch, lora, f"{name}.targets")
