"""TRL's trainers, and PPO with a critic. The module requires TRL, so a run imports it late.

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

CRITIC_RATE = 5.0
"""The critic's learning rate over the policy's."""


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


class PPO(GRPOTrainer):
    """Proximal policy optimization (arXiv 1707.06347): TRL's sampling and clipped loss, with a critic's advantages.

    The reward of a token is −beta · (log π − log π_ref); the last token also gets the response's reward.
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
        kept = advantages[mask.bool()]
        batch["advantages"] = (advantages - kept.mean()) / (kept.std(correction=0) + 1e-8) * mask
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


TRAINERS: dict[str, tuple[type[Any], type[Any]]] = {
    "rloo": (RLOOTrainer, RLOOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "ppo": (PPO, GRPOConfig),
}
"""Algorithm → trainer and its configuration class."""
