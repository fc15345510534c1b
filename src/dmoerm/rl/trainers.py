"""TRL's trainers, without the work that a run does not need. Imports TRL, so it is imported where a run begins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

_LOGITS = 2**26  # of a batch; where there are more, TRL's own way takes them chunk by chunk


class _Frugal:
    """Samples with weights converted to bfloat16 once a batch, and scores the response's tokens alone."""

    def _generate_single_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.args.bf16):
            return super()._generate_single_turn(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_per_token_logps_and_entropies(
        self: Any, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Log-probabilities of the last `logits_to_keep` tokens, (B, logits_to_keep); no entropies: nothing needs them.

        TRL's way computes logits at the prompts' tokens too, and again in the backward pass: on a small model that is
        half of the training's time.
        """
        if len(input_ids) * logits_to_keep * model.config.vocab_size > _LOGITS:
            scored = super()._get_per_token_logps_and_entropies  # pyright: ignore[reportAttributeAccessIssue]
            return scored(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        with self.accelerator.autocast():
            logits = model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=logits_to_keep + 1
            ).logits
        targets = input_ids[:, -logits_to_keep:, None]
        scores = (logits[:, :-1].float() / self.temperature).log_softmax(-1).gather(-1, targets)[..., 0]
        return scores, torch.zeros_like(scores), None


class FrugalGRPO(_Frugal, GRPOTrainer):
    """GRPO as TRL has it."""


class FrugalRLOO(_Frugal, RLOOTrainer):
    """RLOO with one pass less where `beta` is 0.

    A batch is used for one update, so the policy that sampled it is the policy that is updated, and the ratio of the
    two is 1: its old log-probabilities are the new ones, not worth a pass of their own. With a penalty that pass is
    needed, for the KL.
    """

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        if self.beta == 0.0 and not torch.is_grad_enabled():
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        scores = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if self.beta == 0.0:
            self._updated["old_logps"] = (scores[0].detach() * self._updated["completion_mask"]).sum(1)
        return scores

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._updated = inputs
        return super()._compute_loss(model, inputs)


TRAINERS: dict[str, tuple[type[Any], type[Any]]] = {
    "rloo": (FrugalRLOO, RLOOConfig),
    "grpo": (FrugalGRPO, GRPOConfig),
}
"""Algorithm → trainer and its settings."""
