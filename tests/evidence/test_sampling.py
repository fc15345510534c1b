"""Samples, their log-probabilities, and a reward model as TRL's reward function."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_policy import count_t

from dmoerm.errors import TrainingError
from evidence.rl import RLConfig, RLPrompt
from evidence.rl.measuring import divergence
from evidence.rl.policy import load_policy
from evidence.rl.sampling import (
    Scale,
    TRLReward,
    isolated_randomness,
    log_probabilities,
    measure_scale,
    raw_rewards,
    sample,
)

FIRST, SECOND = RLPrompt("chitchat", "one?"), RLPrompt(None, "two?")
PROMPTS = ["User: hello\nAssistant:", "User: tell me about the sea, at some length, please\nAssistant:"]


@pytest.mark.slow
def test_log_probabilities_do_not_depend_on_the_batch(policy):
    model, tokenizer = load_policy(policy)
    with isolated_randomness(1):
        samples = sample(model, tokenizer, PROMPTS, 3, RLConfig(max_new_tokens=20))
    together = log_probabilities(model, samples, 0.7)
    for one, found in zip(samples, together, strict=True):
        assert len(found) == len(one.response)
        torch.testing.assert_close(log_probabilities(model, [one], 0.7)[0], found, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_log_probabilities_are_those_of_sampling(policy):
    """The first token's frequencies over many samples are its probabilities."""
    model, tokenizer = load_policy(policy)
    with isolated_randomness(2):
        samples = sample(model, tokenizer, PROMPTS[:1], 128, RLConfig(max_new_tokens=1))
    chosen = torch.stack([row[0] for row in log_probabilities(model, samples, 1.0)])
    logits = model(torch.tensor([samples[0].prompt])).logits[0, -1].detach()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert abs(float(-chosen.mean() - entropy)) < 0.6  # the mean surprise of samples is the entropy


def test_a_known_divergence_is_found():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    drawn = torch.multinomial(p.expand(20000, 3), 2, replacement=True, generator=generator)  # responses of two tokens
    exact = 2 * float((p * (p / q).log()).sum())
    assert divergence(list(p.log()[drawn]), list(q.log()[drawn])) == pytest.approx(exact, rel=0.1)


def test_rewards_come_in_order_and_a_prompt_is_asked_once():
    asked = []

    def reward(queries):
        asked.extend(queries)
        return [[float(len(text)) for text in query.responses] for query in queries]

    assert raw_rewards(reward, [FIRST, SECOND, FIRST], ["a", "bbb", "cc"], 1) == [1.0, 3.0, 2.0]
    assert [(query.task, query.responses) for query in asked] == [("chitchat", ("a", "cc")), (None, ("bbb",))]


def test_an_empty_response_is_below_every_other():
    assert raw_rewards(count_t, [FIRST] * 3, ["t t", " \n", "t"], 0) == [2.0, 0.5, 1.0]
    scale = Scale(mean=0.0, std=3.0, lowest=-7.0)
    assert raw_rewards(count_t, [FIRST] * 2, ["", ""], 1, scale) == [-10.0, -10.0]
    assert raw_rewards(count_t, [FIRST] * 2, ["t", ""], 1, scale) == [1.0, -10.0]
    low = raw_rewards(lambda queries: [[-50.0]], [FIRST] * 2, ["x", ""], 1, scale)
    assert low == [-50.0, -53.0]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([0.0, float("nan")], r"step 5: the reward of response 1, 'ill', to the prompt 'one\?' is nan"),
        ([float("inf"), 0.0], r"step 5: the reward of response 0, 'well', to the prompt 'one\?' is inf"),
        ([0.0], "step 5: 1 rewards for 2 responses"),
    ],
)
def test_a_reward_that_is_missing_or_no_number_names_step_and_response(rewards, message):
    with pytest.raises(TrainingError, match=message):
        raw_rewards(lambda queries: [rewards], [FIRST] * 2, ["well", "ill"], 5)


def test_the_scale_is_not_moved_by_what_differs_between_prompts():
    near, far = measure_scale([0, 1, 0, 1], 2), measure_scale([0, 1, 100, 101], 2)
    assert near.std == pytest.approx(far.std)
    assert far.mean == 50.5
    with pytest.raises(TrainingError, match="nothing can be optimized"):
        measure_scale([1, 1, 5, 5], 2)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (100.0, -3.0), (0.01, 40.0)])
def test_what_is_optimized_does_not_depend_on_a_rewards_unit(factor, shift):
    texts = ["t", "t t", "a", ""]
    reward = lambda queries: [[factor * x + shift for x in row] for row in count_t(queries)]  # noqa: E731
    scale = measure_scale(raw_rewards(reward, [FIRST] * 4, texts, 0), 4)
    asked = TRLReward(reward, [FIRST], scale, 2, RLConfig())
    found = asked(texts, [0] * 4, SimpleNamespace(global_step=3), [[5, 2]] * 4)
    plain = measure_scale(raw_rewards(count_t, [FIRST] * 4, texts, 0), 4)
    assert found == pytest.approx([plain.normalize(x) for x in (1, 2, 0, plain.lowest - plain.std)])


@pytest.mark.parametrize(("algorithm", "step"), [("rloo", 4), ("ppo", 1)])
def test_a_response_that_breaks_off_has_a_lower_reward(algorithm, step):
    settings = RLConfig(algorithm=algorithm, missing_eos_penalty=0.7)
    asked = TRLReward(count_t, [FIRST], Scale(mean=1.0, std=2.0, lowest=0.0), 2, settings)
    ended, cut, empty = asked(["t t", "t t", ""], [0] * 3, SimpleNamespace(global_step=3), [[9, 2], [9, 9], []])
    assert (ended, cut) == pytest.approx((0.5, 0.5 - 0.7))
    assert empty < cut
    asked.reward = lambda queries: [[float("nan")]]
    with pytest.raises(TrainingError, match=f"step {step}: the reward of response 0"):
        asked(["t"], [0], SimpleNamespace(global_step=3), [[2]])
