"""Pooling reads only a response's tokens; a head is linear in the normalized embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmoerm.chat.encoding import Encoded
from dmoerm.model import heads
from dmoerm.model.heads import Head, Normalizer, embed
from dmoerm.model.packing import Packed, pack, pack_ids

from .packing import parts

POOLINGS = ["last", "mean", "both"]
each_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def unchanged(branch: Any, inputs: Packed, outputs: str, num_experts: int) -> Tensor:
    """Replace `run` for a branch that returns its input states."""
    tokens, packing = inputs
    states = tokens[packing.last] if outputs == "last" else tokens[packing.prompt_tokens :]
    return states.expand(num_experts, *states.shape)


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Return a function from packed states and a pooling to embeddings (N, D)."""
    monkeypatch.setattr(heads, "run", unchanged)
    return lambda inputs, pooling: embed(None, inputs, pooling)[0]


def by_hand(states: Tensor, pooling: str) -> Tensor:
    """Pool a response's states (R, d)."""
    actual = {"last": [states[-1]], "mean": [states.mean(0)], "both": [states[-1], states.mean(0)]}
    return torch.cat(actual[pooling])


@each_pooling
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=3)), min_size=1, max_size=4
    ),
    junk=st.floats(-1e4, 1e4),
)
def test_an_embedding_depends_on_no_other_text(
    pooled: Callable[..., Tensor], pooling: str, lengths: list[tuple[int, list[int]]], junk: float
) -> None:
    inputs = pack([(torch.full((p, 3), junk), [torch.randn(r, 3) for r in responses]) for p, responses in lengths])
    expected = torch.stack([by_hand(response, pooling) for response in parts(inputs)[1]])
    torch.testing.assert_close(pooled(inputs, pooling), expected)
    assert expected.shape[-1] == (6 if pooling == "both" else 3)


@each_pooling
@torch.no_grad()
def test_a_pad_token_that_is_the_end_token_is_a_token_like_others(tiny_model: Callable[..., Any], pooling: str) -> None:
    """Pooling by `ids == pad` would stop at the response's own end token."""
    model = tiny_model(backbone={"branch_layer": 0}, router={"kind": "own"}, encoding={"pooling": pooling})
    end = model.tokenizer.pad_token_id
    assert end == model.tokenizer.eos_token_id
    prompt, responses = [5, end, 7], [[8, end], [9, 10, end, end]]
    embeddings = model.general.embed(pack_ids([Encoded(prompt, responses)]))
    for actual, ids in zip(embeddings, responses, strict=True):
        states = model.general.branch(input_ids=torch.tensor([[*prompt, *ids]])).last_hidden_state[0, len(prompt) :]
        torch.testing.assert_close(actual, by_hand(states, pooling), atol=1e-5, rtol=1e-5)


def test_normalized_samples_have_mean_0_and_deviation_1() -> None:
    samples = torch.randn(200, 4) * torch.tensor([0.1, 1.0, 10.0, 100.0]) + 5
    normalizer = Normalizer(4)
    assert torch.equal(normalizer(samples), samples)
    normalizer.fit(samples)
    after = normalizer(samples)
    torch.testing.assert_close(after.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(0, correction=0), torch.ones(4))


def test_a_head_maps_each_embedding_to_one_score() -> None:
    head = Head(4)
    z = torch.randn(2, 3, 4)
    scores = head(z)
    assert scores.shape == (2, 3)
    assert scores.abs().max() < 0.1  # a start's scores are close to equal
    torch.testing.assert_close(head(z[1, 2]), scores[1, 2])


def test_a_linear_head_is_the_weighted_normalized_embedding() -> None:
    head = Head(3)
    head.normalizer.fit(samples := torch.randn(50, 3))
    z = (samples[0] - samples.mean(0)) / samples.std(0, correction=0)
    torch.testing.assert_close(head(samples[:1])[0], head.score.weight[0] @ z)
