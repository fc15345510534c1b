"""TRL's trainers without work that a run does not need. The module requires TRL, so a run imports it at its start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

_LOGITS = 2**26  # most logits of a batch; for more, TRL's method computes them in chunks


class _Savings:
    """Converts weights to bfloat16 once per batch for sampling, and computes logits of the response's tokens only."""

    def _generate_single_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.args.bf16):
            return super()._generate_single_turn(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _get_per_token_logps_and_entropies(
        self: Any, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        """Return log-probabilities of the last `logits_to_keep` tokens, (B, logits_to_keep), and zeros as entropies.

        TRL's method also computes the logits of the prompts' tokens, and computes them again in the backward pass; on a
        small model this is half of the training time.
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


class FrugalGRPO(_Savings, GRPOTrainer):
    """TRL's GRPO with these savings."""


class FrugalRLOO(_Savings, RLOOTrainer):
    """TRL's RLOO with these savings, and with one pass fewer if `beta` is 0.

    A batch is used for one update, so the policy that sampled it is the policy that is updated: the old
    log-probabilities equal the new ones and need no extra pass. A KL penalty needs that pass.
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
"""Algorithm → trainer and its configuration class."""
