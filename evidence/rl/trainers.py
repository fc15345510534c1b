"""TRL's trainers without work that a run does not need, and PPO. The module requires TRL, so a run imports it late.

Shapes: B responses, T tokens of the longest response.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from evidence.rl.policy import PPO_UPDATES

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


class Critic(nn.Module):
    """Predicts the return at each token of a response: a copy of the initial policy's layers and a linear head."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.layers = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, tokens: int) -> Tensor:
        """Return the values (B, T) of the states before each of the last T = `tokens` tokens."""
        states = self.layers(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self.head(states[:, -tokens - 1 : -1].float())[..., 0]


class PPO(_Savings, GRPOTrainer):
    """Proximal policy optimization (arXiv 1707.06347): TRL's sampling and clipped loss, with a critic's advantages.

    The reward of a token is −beta · (log π − log π_ref), and that of the last token also has the response's reward.
    Advantages are generalized (arXiv 1506.02438) with γ = 1 and λ = 0.95, and normalized over the batch. A batch of
    samples is used for four updates of the policy and four of the critic. TRL 1.16 has no PPO trainer.
    """

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model=model, **options)
        self.critic = Critic(model).to(self.accelerator.device)
        self._critic_optimizer = torch.optim.AdamW(self.critic.parameters(), CRITIC_RATE * self.args.learning_rate)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._rewards = rewards.nansum(1)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        mask, log_ratio = batch["completion_mask"].float(), 0.0
        if self.beta:
            log_ratio = batch["old_per_token_logps"] - batch["ref_per_token_logps"]
        rewards = -self.beta * log_ratio * mask
        last = mask.sum(1).long() - 1
        rewards[torch.arange(len(rewards)), last] += self._rewards
        with torch.no_grad():
            values = self._values(batch)
        advantages = generalized_advantages(rewards, values, mask)
        self._train_critic(batch, values, advantages + values, mask)
        batch["advantages"] = _normalized(advantages, mask)
        return batch

    def _values(self, batch: dict[str, Any]) -> Tensor:
        ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        with self.accelerator.autocast():
            return self.critic(ids, mask, batch["completion_ids"].shape[1])

    def _train_critic(self, batch: dict[str, Any], old: Tensor, returns: Tensor, mask: Tensor) -> None:
        """Fit the critic to the returns; a value that leaves ±0.2 around its old one is clipped."""
        with torch.enable_grad():
            for _ in range(PPO_UPDATES):
                values = self._values(batch)
                clipped = old + (values - old).clamp(-0.2, 0.2)
                errors = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
                self._critic_optimizer.zero_grad()
                (0.5 * (errors * mask).sum() / mask.sum()).backward()
                nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
                self._critic_optimizer.step()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        beta, self.beta = self.beta, 0.0  # the penalty is in the rewards
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.beta = beta

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = {"critic": self.critic.state_dict(), "optimizer": self._critic_optimizer.state_dict()}
        torch.save(state, Path(output_dir) / "critic.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint:
            state = torch.load(Path(checkpoint) / "critic.pt", map_location=self.accelerator.device)
            self.critic.load_state_dict(state["critic"])
            self._critic_optimizer.load_state_dict(state["optimizer"])


CRITIC_RATE = 5.0
"""The critic's learning rate over the policy's."""


def generalized_advantages(rewards: Tensor, values: Tensor, mask: Tensor, decay: float = 0.95) -> Tensor:
    """Return the advantages of the tokens, (B, T): Σ_k (γλ)^k · (r + γ V' − V), k tokens later, with γ = 1.

    Args:
        rewards, values: (B, T), of each token, and of the state before it.
        mask: (B, T), 1 for tokens of the response, which come first; 0 for padding, whose advantages are 0.
        decay: λ.
    """
    advantages = torch.zeros_like(rewards)
    later, following = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        later = (rewards[:, t] + following - values[:, t] + decay * later) * mask[:, t]
        following = values[:, t] * mask[:, t]
        advantages[:, t] = later
    return advantages


def _normalized(values: Tensor, mask: Tensor) -> Tensor:
    """Return values (B, T) with mean 0 and standard deviation 1 over the mask, and 0 outside."""
    kept = values[mask.bool()]
    return (values - kept.mean()) / (kept.std(correction=0) + 1e-8) * mask


TRAINERS: dict[str, tuple[type[Any], type[Any]]] = {
    "rloo": (FrugalRLOO, RLOOConfig),
    "grpo": (FrugalGRPO, GRPOConfig),
    "ppo": (PPO, GRPOConfig),
}
"""Algorithm → trainer and its configuration class."""
