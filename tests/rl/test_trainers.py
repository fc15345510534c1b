"""TRL's trainers without needless work: the same updates in fewer passes."""

from __future__ import annotations

import pytest
from tiny_policy import count_t, tiny_settings
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from dmoerm.rl import gold_of, optimise
from dmoerm.rl.trainers import TRAINERS


@pytest.fixture
def passes(monkeypatch):
    """Grows by one at every pass of policy or reference over a batch."""
    made, original = [], RLOOTrainer._get_per_token_logps_and_entropies

    def counted(self, model, *args, **kwargs):
        made.append(model is self.ref_model)
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(RLOOTrainer, "_get_per_token_logps_and_entropies", counted)
    return made


def test_without_a_penalty_rloo_takes_one_pass_and_updates_as_trl_does(policy, asked, tmp_path, passes, monkeypatch):
    settings = tiny_settings(steps=3, bf16=False)
    frugal = optimise(policy, count_t, gold_of, asked, settings, tmp_path / "frugal")
    assert passes == [False] * 3
    monkeypatch.setitem(TRAINERS, "rloo", (RLOOTrainer, RLOOConfig))
    plain = optimise(policy, count_t, gold_of, asked, settings, tmp_path / "plain")
    assert passes == [False] * 9
    assert frugal.points[-1].kl > 0
    assert frugal.points[-1].kl == pytest.approx(plain.points[-1].kl, rel=1e-3)
    assert frugal.points[-1].proxy == pytest.approx(plain.points[-1].proxy, rel=1e-6)


def test_with_a_penalty_rloo_takes_all_passes(policy, asked, tmp_path, passes):
    optimise(policy, count_t, gold_of, asked, tiny_settings(steps=2, beta=0.1), tmp_path)
    assert passes == [False, True, False] * 2
