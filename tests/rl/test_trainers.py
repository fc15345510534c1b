"""TRL's trainers without needless work: the same updates in fewer passes."""

from __future__ import annotations

import pytest
from tiny_policy import count_t, tiny_settings
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from dmoerm.rl import gold_of, optimize
from dmoerm.rl.trainers import TRAINERS, _Savings


@pytest.fixture
def passes(monkeypatch):
    """Grows at every pass of a model over a batch of samples: whether it is the reference."""
    made, original = [], _Savings._get_per_token_logps_and_entropies

    def counted(self, model, *args, **kwargs):
        made.append(model is self.ref_model)
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(_Savings, "_get_per_token_logps_and_entropies", counted)
    return made


@pytest.mark.parametrize(
    ("algorithm", "beta", "expected"),
    [
        ("rloo", 0.0, [False]),
        ("rloo", 0.1, [False, True, False]),  # before the update: policy and reference, for the KL
        ("grpo", 0.0, [False]),
        ("grpo", 0.1, [True, False]),
    ],
)
def test_the_same_updates_as_trls_in_the_passes_that_are_needed(
    algorithm, beta, expected, policy, asked, tmp_path, passes, monkeypatch
):
    settings = tiny_settings(algorithm=algorithm, beta=beta, steps=3, bf16=False, temperature=0.8)
    frugal = optimize(policy, count_t, gold_of, asked, settings, tmp_path / "frugal")
    assert passes == expected * 3
    own = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}
    monkeypatch.setitem(TRAINERS, algorithm, own[algorithm])
    plain = optimize(policy, count_t, gold_of, asked, settings, tmp_path / "plain")
    assert len(passes) == 3 * len(expected)
    assert frugal.points[-1].kl == pytest.approx(plain.points[-1].kl, rel=1e-3)
    assert frugal.points[-1].kl > 0
    assert frugal.points[-1].proxy == pytest.approx(plain.points[-1].proxy, rel=1e-6)
