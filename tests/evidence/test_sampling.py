"""Samples and their log-probabilities."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from evidence.rl.policy import load_policy
from evidence.rl.sampling import Sample, divergence, isolated_randomness, log_probabilities, sample, sampling_settings

PROMPTS = ["User: hello\nAssistant:", "User: tell me about the sea, at some length, please\nAssistant:"]


def test_log_probabilities_do_not_depend_on_the_batch(policy):
    model, tokenizer = load_policy(policy)
    with isolated_randomness(1):
        samples = sample(model, tokenizer, PROMPTS, 3, sampling_settings(tokenizer, 20, 1.0))
    together = log_probabilities(model, samples, 0.7)
    for one, found in zip(samples, together, strict=True):
        assert len(found) == len(one.response)
        torch.testing.assert_close(log_probabilities(model, [one], 0.7)[0], found, atol=1e-4, rtol=0)


def test_log_probabilities_are_those_of_sampling(policy):
    """The first token's frequencies over many samples are its probabilities."""
    model, tokenizer = load_policy(policy)
    with isolated_randomness(2):
        samples = sample(model, tokenizer, PROMPTS[:1], 128, sampling_settings(tokenizer, 1, 1.0))
    chosen = torch.stack([row[0] for row in log_probabilities(model, samples, 1.0)])
    logits = model(torch.tensor([samples[0].prompt])).logits[0, -1].detach()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert abs(float(-chosen.mean() - entropy)) < 0.6  # the mean surprise of samples is the entropy


def test_a_sample_ends_with_its_end_token(policy):
    _, tokenizer = load_policy(policy)
    from evidence.rl.sampling import _sample

    end, word = tokenizer.eos_token_id, tokenizer(" the")["input_ids"]
    assert _sample(tokenizer, [1], [*word, end, 9, end]) == Sample([1], [*word, end], "the", True)
    assert _sample(tokenizer, [1], [end]).text == ""
    assert not _sample(tokenizer, [1], word).ended


def test_random_numbers_outside_go_on():
    torch.manual_seed(3)
    expected = torch.rand(2)[1]
    torch.manual_seed(3)
    torch.rand(1)
    with isolated_randomness(8):
        torch.rand(5)
    assert torch.rand(1)[0] == expected


@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=20))
def test_the_k3_estimate_is_never_negative(rows):
    policy, reference = ([torch.tensor([row[i]]) for row in rows] for i in (0, 1))
    found = divergence(policy, reference)
    assert found.kl_k3 >= -1e-9
    assert divergence(policy, policy) == type(found)(0.0, 0.0, 0.0)


def test_both_estimates_find_a_known_divergence():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    drawn = torch.multinomial(p.expand(20000, 3), 2, replacement=True, generator=generator)  # responses of two tokens
    found = divergence(list(p.log()[drawn]), list(q.log()[drawn]))
    exact = 2 * float((p * (p / q).log()).sum())
    assert abs(found.kl - exact) < 4 * found.kl_error
    assert abs(found.kl_k3 - exact) < 4 * found.kl_error
