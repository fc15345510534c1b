"""PPO: its advantages and its critic."""

from __future__ import annotations

import pytest
import torch
from tiny_policy import count_t, tiny_settings

from evidence.rl import optimize
from evidence.rl.policy import load_policy
from evidence.rl.trainers import PPO, Critic, generalized_advantages


def naive_advantages(rewards, values, decay):
    """Return the definition's sum for one response: Σ_k λ^k δ_{t+k}, δ = r + V' − V."""
    following = [*values[1:], 0.0]
    deltas = [r + later - value for r, later, value in zip(rewards, following, values, strict=True)]
    return [sum(decay**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("decay", [0.0, 0.95, 1.0])
def test_generalized_advantages(decay):
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = (6, 4, 1)
    mask = torch.tensor([[float(t < length) for t in range(6)] for length in lengths])
    found = generalized_advantages(rewards, values, mask, decay)
    for row, length in enumerate(lengths):
        expected = naive_advantages(rewards[row, :length].tolist(), values[row, :length].tolist(), decay)
        assert found[row, :length].tolist() == pytest.approx(expected)
        assert not found[row, length:].any()


@pytest.mark.slow
def test_a_value_does_not_see_its_own_token(policy):
    """A value depends on the tokens before its own alone."""
    model, _ = load_policy(policy)
    critic = Critic(model).eval()
    torch.nn.init.normal_(critic.head.weight, std=1.0)
    ids = torch.randint(5, 300, (1, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        values = critic(ids, mask, 4)
        changed = critic(torch.cat([ids[:, :7], ids[:, 7:] + 3], 1), mask, 4)
    assert values.shape == (1, 4)
    assert values[0, :3].tolist() == pytest.approx(changed[0, :3].tolist())
    assert values[0, 3] != changed[0, 3]


@pytest.mark.slow
def test_the_critic_learns_and_each_batch_is_used_four_times(policy, asked, tmp_path, monkeypatch):
    losses, updates, original = [], [], PPO._compute_loss
    train_critic = PPO._train_critic

    def watched(self, batch, old, returns, mask):
        train_critic(self, batch, old, returns, mask)
        with torch.no_grad():
            errors = [
                (((value - returns) ** 2 * mask).sum() / mask.sum()).item()
                for value in (torch.zeros_like(old), old, self._values(batch))
            ]
        losses.append(errors)

    def counted(self, model, inputs):
        updates.append(inputs["advantages"])
        return original(self, model, inputs)

    monkeypatch.setattr(PPO, "_train_critic", watched)
    monkeypatch.setattr(PPO, "_compute_loss", counted)
    settings = tiny_settings(algorithm="ppo", steps=10, bf16=False, learning_rate=2e-3)
    optimize(policy, count_t, asked, settings, tmp_path)
    assert len(losses) == 10
    assert len(updates) == 40
    assert all(after < before for _, before, after in losses)
    assert sum(before for _, before, _ in losses[5:]) < sum(zero for zero, _, _ in losses[5:]), "on new samples"
    assert all(torch.equal(updates[4 * i], updates[4 * i + k]) for i in range(10) for k in range(4))
