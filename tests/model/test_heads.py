"""Pooling, linear heads, the standard deviation of their rewards, and the aggregator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmoerm.chat.encoding import Encoded
from dmoerm.config import AggregatorConfig
from dmoerm.model import DMoERM, heads
from dmoerm.model.heads import MAX_RANK, Aggregator, Head, HeadPosterior, Normalizer, Posterior, embed
from dmoerm.model.packing import Packed, pack, pack_ids

from .packing import parts

each_pooling = pytest.mark.parametrize("pooling", ["last", "mean", "both"])


def unchanged(branch: Any, inputs: Packed, outputs: str, num_experts: int) -> Tensor:
    """Replace `run` for a branch that returns its input states."""
    tokens, packing = inputs
    states = tokens[packing.last] if outputs == "last" else tokens[packing.prompt_tokens :]
    return states.expand(num_experts, *states.shape)


def by_hand(states: Tensor, pooling: str) -> Tensor:
    """Pool a response's states (R, d)."""
    actual = {"last": [states[-1]], "mean": [states.mean(0)], "both": [states[-1], states.mean(0)]}
    return torch.cat(actual[pooling])


def normalized(samples: Tensor) -> Tensor:
    return (samples - samples.mean(0)) / samples.std(0, correction=0)


@each_pooling
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=3)), min_size=1, max_size=4
    ),
    junk=st.floats(-1e4, 1e4),
)
def test_an_embedding_depends_on_no_other_text(
    monkeypatch: pytest.MonkeyPatch, pooling: str, lengths: list[tuple[int, list[int]]], junk: float
) -> None:
    monkeypatch.setattr(heads, "run", unchanged)
    inputs = pack([(torch.full((p, 3), junk), [torch.randn(r, 3) for r in responses]) for p, responses in lengths])
    expected = torch.stack([by_hand(response, pooling) for response in parts(inputs)[1]])
    torch.testing.assert_close(embed(None, inputs, pooling)[0], expected)


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


def test_a_head_is_a_weighted_normalized_embedding_that_starts_close_to_0() -> None:
    head, z = Head(3), torch.randn(2, 50, 3) * torch.tensor([0.1, 1.0, 100.0]) + 5
    assert torch.equal(Normalizer(3)(z), z)
    head.normalizer.fit(z[0])
    scores = head(z)
    torch.testing.assert_close(scores[0], normalized(z[0]) @ head.score.weight[0])
    torch.testing.assert_close(head(z[1, 2]), scores[1, 2])
    assert scores.abs().max() < 0.1


# --- the posterior -------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 10_000)


def draw_heads(width: int, count: int, seed: int, rank: int) -> list[tuple[Tensor, HeadPosterior]]:
    """Heads with valid covariances, and coefficients that differ by dimension."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(count):
        vectors = torch.linalg.qr(torch.randn(width, min(rank, width), generator=generator))[0]
        rest = torch.rand((), generator=generator) + 0.1
        removed = rest * 0.999 * torch.rand(vectors.shape[1], generator=generator)
        drawn.append((torch.randn(width, generator=generator), HeadPosterior(rest, vectors * removed.sqrt())))
    return drawn


def posterior_of(drawn: list[tuple[Tensor, HeadPosterior]]) -> tuple[Posterior, Tensor]:
    """Return the posterior of a sum of heads, and the sum of their covariances (D, D) in float64."""
    posterior, total = Posterior(len(drawn[0][0])), torch.zeros(())
    posterior.set_sum(drawn)
    for c, (rest, basis) in drawn:
        covariance = torch.diag(rest.double().expand(len(c))) - basis.double() @ basis.double().T
        total = total + c[:, None].double() * covariance * c.double()
    return posterior, total


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 3, 20]), st.integers(1, 4), SEEDS)
def test_the_variance_is_that_of_the_sum_of_the_heads(width: int, count: int, seed: int) -> None:
    posterior, covariance = posterior_of(draw_heads(width, count, seed, rank=width))
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    expected = torch.einsum("ni,ij,nj->n", x.double(), covariance, x.double())
    torch.testing.assert_close(posterior.variance(x).double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(posterior.deviation(x), posterior.variance(x).sqrt())


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_a_truncated_variance_is_never_too_small(seed: int) -> None:
    posterior, covariance = posterior_of(draw_heads(3 * MAX_RANK, 3, seed, rank=MAX_RANK))
    assert posterior.basis.shape == (3 * MAX_RANK, MAX_RANK)
    rest, basis = posterior.rest.double(), posterior.basis.double()
    values = torch.linalg.eigvalsh(torch.diag(rest) - basis @ basis.T - covariance)
    assert values[0] > -1e-5
    assert values[-1] > 1e-3  # something was left out
    removed = torch.linalg.eigvalsh(torch.diag(rest) - covariance).flip(0)
    torch.testing.assert_close(values[-1], removed[MAX_RANK], rtol=1e-3, atol=1e-4)  # the largest ones were kept


def test_a_new_posterior_is_unknown() -> None:
    posterior = Posterior(4)
    assert not posterior.known
    assert posterior.deviation(torch.ones(3, 4)).isnan().all()
    posterior.set_sum([(torch.full((4,), 2.0), HeadPosterior(torch.tensor(0.25), torch.zeros(4, 0)))])
    assert posterior.known
    assert posterior.deviation(torch.ones(3, 4)).tolist() == pytest.approx([2.0] * 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_posteriors_are_saved_and_loaded_in_float32(tiny_model: Callable[..., Any], tmp_path: Path, dtype: str) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model", dtype=dtype)
    for loaded in (DMoERM.from_pretrained(tmp_path / "model"), DMoERM.from_pretrained(tmp_path / "model", dtype=dtype)):
        for name, buffer in model.named_buffers():
            if "posterior" in name:
                assert torch.equal(loaded.get_buffer(name), buffer)
                assert loaded.get_buffer(name).dtype == torch.float32
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    posterior = loaded.task_model("chitchat").posterior
    torch.testing.assert_close(posterior.deviation(x.bfloat16()), posterior.deviation(x), rtol=0.02, atol=0.0)


# --- the aggregator ------------------------------------------------------------------------------------------------

VECTORS = torch.randn(40, 2 * 5 + 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
SCORES = VECTORS[:, 10:]  # what an aggregator of scores alone is given


def aggregator(inputs: str) -> Aggregator:
    torch.manual_seed(1)
    made = Aggregator(2, 5, 2, AggregatorConfig(inputs=inputs, hidden=3)).eval()
    if made.mlp is not None:
        torch.nn.init.normal_(made.mlp.fc2.weight)
    made.fit_normalizers(SCORES if inputs == "scores" else VECTORS)
    return made


def test_the_papers_aggregator_by_hand() -> None:
    made = aggregator("embeddings")
    hidden = normalized(VECTORS[:, :10]) @ made.mlp.fc1.weight.T + made.mlp.fc1.bias
    bent = torch.where(hidden > 0, hidden, made.mlp.activation.weight * hidden)
    torch.testing.assert_close(made(VECTORS), (bent @ made.mlp.fc2.weight.T)[:, 0])
    without_scores = torch.cat([VECTORS[:, :10], torch.full_like(SCORES, 99.0)], 1)
    assert torch.equal(made(without_scores), made(VECTORS))


def test_scores_start_as_their_normalized_mean_and_both_is_the_sum() -> None:
    both, embeddings, scores = aggregator("both"), aggregator("embeddings"), aggregator("scores")
    torch.testing.assert_close(scores(SCORES), normalized(SCORES).mean(1))
    both.mlp.load_state_dict(embeddings.mlp.state_dict())
    torch.testing.assert_close(both(VECTORS), embeddings(VECTORS) + scores(SCORES))


@pytest.mark.parametrize(
    ("names", "read"),
    [(("per_task",), [1, 1, 1, 0]), (("general",), [1, 1, 0, 1]), (("all_labels",), [1, 1, 0, 0, 1])],
)
def test_base_scores_that_are_not_named_are_not_read(names: tuple[str, ...], read: list[int]) -> None:
    made = Aggregator(1, 5, 2, AggregatorConfig(inputs="scores", base_scores=names))
    assert made.linear.read.tolist() == [bool(flag) for flag in read]
    assert made.split == (0, len(read))
    vectors = torch.randn(6, len(read), generator=torch.Generator().manual_seed(2))
    assert torch.equal(made.scores(vectors), vectors)
    torch.testing.assert_close(made(vectors), (vectors * torch.tensor(read)).sum(1) / sum(read))
