"""The aggregator: the paper's MLP, a linear map of normalized scores, or their sum."""

from __future__ import annotations

import pytest
import torch

from dmoerm.config import AggregatorConfig
from dmoerm.model.heads import Aggregator

VECTORS = torch.randn(40, 2 * 5 + 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
SCORES = VECTORS[:, 10:]  # what an aggregator of scores alone is given


def aggregator(inputs: str) -> Aggregator:
    torch.manual_seed(1)
    made = Aggregator(2, 5, 2, AggregatorConfig(inputs=inputs, hidden=3)).eval()
    if made.mlp is not None:
        torch.nn.init.normal_(made.mlp.fc2.weight)
    made.fit_normalizers(given(inputs))
    return made


def given(inputs: str) -> torch.Tensor:
    return SCORES if inputs == "scores" else VECTORS


def normalized(columns: torch.Tensor) -> torch.Tensor:
    return (columns - columns.mean(0)) / columns.std(0, correction=0)


def test_the_papers_aggregator_by_hand() -> None:
    made = aggregator("embeddings")
    hidden = normalized(VECTORS[:, :10]) @ made.mlp.fc1.weight.T + made.mlp.fc1.bias
    bent = torch.where(hidden > 0, hidden, made.mlp.activation.weight * hidden)
    torch.testing.assert_close(made(VECTORS), (bent @ made.mlp.fc2.weight.T)[:, 0])


def test_scores_start_as_their_normalized_mean() -> None:
    torch.testing.assert_close(aggregator("scores")(SCORES), normalized(SCORES).mean(1))


def test_both_is_the_sum() -> None:
    both, embeddings, scores = aggregator("both"), aggregator("embeddings"), aggregator("scores")
    both.mlp.load_state_dict(embeddings.mlp.state_dict())
    torch.testing.assert_close(both(VECTORS), embeddings(VECTORS) + scores(SCORES))


def test_an_aggregator_of_embeddings_reads_no_scores() -> None:
    made, other, read = aggregator("embeddings"), VECTORS.clone(), VECTORS.clone()
    other[:, 10:] = 99
    assert torch.equal(made(other), made(VECTORS))
    read[:, :10] += torch.randn(1)
    assert not torch.equal(made(read), made(VECTORS))


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
