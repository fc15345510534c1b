"""The router: probabilities of the tasks from the prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.model.batching import pack_ids, pad
from dmoerm.model.router import Choice, Router

each_router = pytest.mark.parametrize(
    "changes", [{}, {"router": {"kind": "own"}}, {"router": {"kind": "own"}, "backbone": {"branch_layer": 0}}]
)


def routed(model: Any, *queries: Encoded) -> torch.Tensor:
    ids = pack_ids(queries)
    return model.route(ids, model.hidden(ids))


@each_router
@torch.no_grad()
def test_probabilities_are_those_of_the_prompt_alone(tiny_model: Callable[..., Any], changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    prompts = [[1, 5, 6], [1, 9, 8, 7, 30, 31, 32, 33], [1]]
    together = routed(model, *(Encoded(ids, [[3, 2], [4, 5, 2]]) for ids in prompts))
    alone = torch.cat([routed(model, Encoded(ids, [[77, 2]])) for ids in prompts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    assert (together[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
def test_an_embedding_is_the_mean_over_the_prompts_tokens(tiny_model: Callable[..., Any]) -> None:
    router = tiny_model(router={"kind": "own"}).router
    prompts = [torch.tensor([1]), torch.tensor([1, 9, 8, 7, 30])]
    states = [router.language_model(input_ids=ids[None]).last_hidden_state[0] for ids in prompts]
    expected = torch.stack([each.mean(0) for each in states])
    torch.testing.assert_close(router.read(*pad(prompts)), expected, atol=1e-5, rtol=1e-4)


def test_each_embedding_has_a_probability_of_each_task() -> None:
    probabilities = Router(["a", "b", "c"], 2).probabilities(torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
    assert probabilities.shape == (2, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


@torch.no_grad()
def test_a_router_with_its_own_language_model_does_not_read_the_trunk(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(router={"kind": "own"})
    before = routed(model, query := Encoded([1, 5, 6], [[3, 2]]))
    for parameter in model.trunk.parameters():
        parameter.normal_()
    assert torch.equal(routed(model, query), before)


@pytest.mark.parametrize(
    ("threshold", "probabilities", "task"),
    [
        (0.5, [0.2, 0.8], "objective_qa"),
        (0.5, [0.6, 0.4], "chitchat"),
        (0.9, [0.6, 0.4], None),
        (0.6, [0.6, 0.4], "chitchat"),
    ],
)
def test_below_the_threshold_no_task_is_chosen(
    tiny_model: Callable[..., Any], threshold: float, probabilities: list[float], task: str | None
) -> None:
    model = tiny_model(router={"threshold": threshold})
    (choice,) = model.choose(torch.tensor([probabilities], dtype=torch.float64))
    assert choice == Choice.of(task)
