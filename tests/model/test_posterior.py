"""The standard deviation of a reward under the posterior of its heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoerm.model import DMoERM
from dmoerm.model.heads import MAX_RANK, HeadPosterior, Posterior

WIDTHS = st.sampled_from([1, 3, 20])
SEEDS = st.integers(0, 10_000)


def draw_heads(width: int, count: int, seed: int, rank: int) -> list[tuple[torch.Tensor, HeadPosterior]]:
    """Heads with valid covariances, and coefficients that differ by dimension."""
    generator = torch.Generator().manual_seed(seed)
    heads = []
    for _ in range(count):
        vectors = torch.linalg.qr(torch.randn(width, min(rank, width), generator=generator))[0]
        rest = torch.rand((), generator=generator) + 0.1
        removed = rest * 0.999 * torch.rand(vectors.shape[1], generator=generator)
        coefficients = torch.randn(width, generator=generator)
        heads.append((coefficients, HeadPosterior(rest, vectors * removed.sqrt())))
    return heads


def dense(heads: list[tuple[torch.Tensor, HeadPosterior]]) -> torch.Tensor:
    """The sum of the heads' covariances (D, D), in float64."""
    total = torch.zeros(())
    for c, (rest, basis) in heads:
        covariance = torch.diag(rest.double().expand(len(c))) - basis.double() @ basis.double().T
        total = total + c[:, None].double() * covariance * c.double()
    return total


@settings(max_examples=40, deadline=None)
@given(WIDTHS, st.integers(1, 4), SEEDS)
def test_the_variance_is_that_of_the_sum_of_the_heads(width: int, count: int, seed: int) -> None:
    heads = draw_heads(width, count, seed, rank=width)
    posterior = Posterior(width)
    posterior.set_sum(heads)
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    expected = torch.einsum("ni,ij,nj->n", x.double(), dense(heads), x.double())
    torch.testing.assert_close(posterior.variance(x).double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(posterior.deviation(x), posterior.variance(x).sqrt())
    torch.testing.assert_close(posterior.variance(x[0] - x[1]), posterior.variance(x[1] - x[0]))


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_a_truncated_variance_is_never_too_small(seed: int) -> None:
    width = 3 * MAX_RANK
    heads = draw_heads(width, 3, seed, rank=MAX_RANK)
    posterior = Posterior(width)
    posterior.set_sum(heads)
    assert posterior.basis.shape == (width, MAX_RANK)
    rest, basis = posterior.rest.double(), posterior.basis.double()
    values = torch.linalg.eigvalsh(torch.diag(rest) - basis @ basis.T - dense(heads))
    assert values[0] > -1e-5
    assert values[-1] > 1e-3  # something was left out
    removed = torch.linalg.eigvalsh(torch.diag(rest) - dense(heads)).flip(0)
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
