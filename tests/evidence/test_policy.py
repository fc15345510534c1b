"""The policy before reinforcement learning: it learns the text, its end token, and is made once."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from tiny_policy import TINY_POLICY
from transformers import Trainer

from dmoerm.errors import ConfigError
from dmoerm.schema import Message
from evidence.rl import PolicyConfig, RLConfig, draw_prompts, make_policy
from evidence.rl.policy import _rows, load_policy, render
from evidence.rl.sampling import isolated_randomness, sample

pytestmark = pytest.mark.slow  # they train a policy


def share_that_ends(folder) -> float:
    model, tokenizer = load_policy(folder)
    prompts = [render(one.prompt) for one in draw_prompts(4)]
    with isolated_randomness(0):
        samples = sample(model, tokenizer, prompts, 4, RLConfig(max_new_tokens=120))
    return sum(one.ended for one in samples) / len(samples)


def test_fine_tuning_lowers_the_loss_and_teaches_the_end_token(policy, tmp_path):
    losses = [entry["loss"] for entry in json.loads((policy / "fine_tuning.json").read_text())]
    assert losses[-1] < losses[0] - 1.5
    untrained = make_policy(TINY_POLICY.model_copy(update={"epochs": 0.0}), tmp_path)
    assert share_that_ends(policy) > 0.3 > share_that_ends(untrained)


def test_the_loss_is_on_the_response_alone(policy):
    _, tokenizer = load_policy(policy)
    (row,) = _rows(tokenizer, [("User: a question\nAssistant:", "An answer.")], TINY_POLICY)
    told = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(told) == " An answer.<|end|>"


@pytest.mark.slow
def test_it_is_created_once_and_resumes_after_a_kill(tmp_path, monkeypatch):
    config = TINY_POLICY.model_copy(update={"prompts_per_task": 4, "epochs": 2.0})
    whole = load_policy(make_policy(config, tmp_path / "whole"))[0]
    save = Trainer._save_checkpoint

    def killed(self, *args):
        save(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            make_policy(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / f"policy-{config.key}").exists()
    again = make_policy(config, tmp_path / "killed")
    assert [file.name for file in again.parent.iterdir()] == [again.name]  # the checkpoints are gone
    for ours, theirs in zip(load_policy(again)[0].parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    monkeypatch.setattr("evidence.rl.policy.sample_responses", None)
    assert make_policy(config, tmp_path / "killed") == again


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"policy\.path.*is not a causal language model"):
        make_policy(PolicyConfig(path=str(tmp_path)), tmp_path)


def test_a_conversation_keeps_its_roles():
    turns = tuple(Message(role=role, content=role[0]) for role in ("system", "user", "assistant", "user"))
    assert render(turns) == "System: s\nUser: u\nAssistant: a\nUser: u\nAssistant:"
    assert render("hello") == "User: hello\nAssistant:"


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (RLConfig, {"generations": 1}),
        (RLConfig, {"beta": float("nan")}),
        (RLConfig, {"step": 3}),
        (PolicyConfig, {"hidden_size": 30, "heads": 4, "key_value_heads": 4}),
        (PolicyConfig, {"heads": 8, "key_value_heads": 3}),
    ],
)
def test_invalid_settings_are_refused(kind, changes):
    with pytest.raises(ValidationError):
        kind.model_validate(changes)
