"""Pooling looks at the mask alone; a head is a linear map of what the training part's statistics standardise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.config import HeadConfig
from dmoerm.model.backbone import run_shared
from dmoerm.model.batching import collate_ids
from dmoerm.model.encoding import Encoded
from dmoerm.model.heads import Head, Standardise, embedding_width, pool

POOLINGS = ["last", "mean", "both"]
each_pooling = pytest.mark.parametrize("how", POOLINGS)


def mask(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [99.0, 99.0]], [[4.0, 4.0], [5.0, 5.0], [6.0, 9.0]]])
    real = mask([2, 3])
    assert pool(states, real, "last").tolist() == [[3, 2], [6, 9]]
    assert pool(states, real, "mean").tolist() == [[2, 1], [5, 6]]
    assert pool(states, real, "both").tolist() == [[3, 2, 2, 1], [6, 9, 5, 6]]


@each_pooling
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), junk=st.floats(-1e4, 1e4))
def test_padding_never_reaches_the_embedding(how: str, lengths: list[int], junk: float) -> None:
    states, real = torch.randn(len(lengths), max(lengths), 3), mask(lengths)
    alone = torch.cat([pool(s[None, :n], torch.ones(1, n).bool(), how) for s, n in zip(states, lengths, strict=True)])
    filled = states.masked_fill(~real[..., None], junk)
    torch.testing.assert_close(pool(filled, real, how), alone)
    assert alone.shape[-1] == embedding_width(3, how)


@each_pooling
@torch.no_grad()
def test_a_pad_token_that_is_the_end_token_is_not_taken_for_it(tiny_model: Callable[..., Any], how: str) -> None:
    """Pooling by `ids == pad` would stop at the response's own end token, or run into the padding."""
    model = tiny_model(backbone={"branch_layer": 0}, router={"kind": "own"}, encoding={"pooling": how})
    end = model.tokenizer.pad_token_id
    assert end == model.tokenizer.eos_token_id
    inputs = collate_ids([Encoded([5, end, 7], [[8, end], [9, 10, end, end]])])
    padded = inputs._replace(response=inputs.response.masked_fill(~inputs.response_mask, end))
    alone = [collate_ids([Encoded([5, end, 7], [ids])]) for ids in ([8, end], [9, 10, end, end])]
    expected = torch.cat([model.general.embed(one) for one in alone])
    torch.testing.assert_close(model.general.embed(padded), expected, atol=1e-5, rtol=1e-5)


def test_pooling_is_in_float32() -> None:
    assert pool(torch.ones(1, 2, 3, dtype=torch.bfloat16), mask([2]), "both").dtype is torch.float32


def test_standardised_samples_have_mean_0_and_deviation_1() -> None:
    samples = torch.randn(200, 4) * torch.tensor([0.1, 1.0, 10.0, 100.0]) + 5
    standardise = Standardise(4)
    assert torch.equal(standardise(samples), samples)
    standardise.fit(samples)
    after = standardise(samples)
    torch.testing.assert_close(after.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std(0, correction=0), torch.ones(4))


def test_a_column_that_never_changes_stays_finite() -> None:
    standardise = Standardise(2)
    standardise.fit(torch.ones(5, 2))
    assert standardise(torch.ones(1, 2)).tolist() == [[0, 0]]


@pytest.mark.parametrize("hidden", [0, 6])
def test_a_head_maps_each_embedding_to_one_score(hidden: int) -> None:
    head = Head(4, HeadConfig(hidden=hidden)).eval()
    z = torch.randn(2, 3, 4)
    scores = head(z)
    assert scores.shape == (2, 3)
    assert scores.abs().max() < 0.1  # a start's scores are close to equal
    torch.testing.assert_close(head(z[1, 2]), scores[1, 2])


def test_a_linear_head_is_the_weighted_standardised_embedding() -> None:
    head = Head(3, HeadConfig())
    head.standardise.fit(samples := torch.randn(50, 3))
    z = (samples[0] - samples.mean(0)) / samples.std(0, correction=0)
    torch.testing.assert_close(head(samples[:1])[0], head.score.weight[0] @ z)


@each_pooling
@torch.no_grad()
def test_a_branch_scorer_is_its_head_on_its_pooled_states(tiny_model: Callable[..., Any], how: str) -> None:
    model = tiny_model(encoding={"pooling": how})
    hidden = model.hidden(collate_ids([Encoded([1, 4, 5], [[6, 2], [7, 8, 2]])]))
    states = run_shared(model.general.branch, hidden)[1]
    expected = model.general.head(pool(states, hidden.response_mask, how))
    assert torch.equal(model.general(hidden), expected)
