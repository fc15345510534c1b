"""The router learns the tasks from the prompts, and gives unlabelled groups theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmoerm.model.batching import pack_ids
from dmoerm.training import router
from dmoerm.training.router import assign_tasks, train_router

each_kind = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"router": {"kind": "own", "epochs": 6, "learning_rate": 3e-3}, "backbone": {"branch_layer": 0}},
    ],
    ids=["trunk", "own"],
)


@each_kind
def test_it_learns_the_tasks_and_routes_what_has_none(begun: Callable[..., Any], changes: dict[str, Any]) -> None:
    start = begun(**changes)
    train_router(start)
    unlabelled = [e.with_task(None) for e in start.train]
    found = [e.task for e in assign_tasks(start.run, unlabelled)]
    right = [e.task for e in start.train]
    assert sum(a == b for a, b in zip(found, right, strict=True)) / len(right) >= 0.9
    assert [e.task for e in assign_tasks(start.run, start.train)] == right
    model, ids = start.run.model, pack_ids([e.encoded for e in start.train])
    choices = model.choose(model.route(ids, model.hidden(ids)))
    assert [choice.task for choice in choices] == found  # the same choice as in use


@each_kind
def test_it_changes_nothing_but_the_router(begun: Callable[..., Any], changes: dict[str, Any]) -> None:
    start = begun(**changes)
    before = {name: tensor.clone() for name, tensor in start.run.model.state_dict().items() if not tensor.is_meta}
    train_router(start)
    moved = {n for n, t in start.run.model.state_dict().items() if n in before and not torch.equal(t, before[n])}
    assert moved
    assert all(name.startswith("router.") for name in moved)
    assert not any(p.requires_grad for p in start.run.model.router.parameters())


def test_below_the_threshold_a_group_stays_without_a_task(begun: Callable[..., Any]) -> None:
    start = begun(router={"threshold": 1.0})
    train_router(start)
    unlabelled = [e.with_task(None) for e in start.train]
    assert {e.task for e in assign_tasks(start.run, unlabelled)} == {None}


def test_a_prompt_counts_once_however_many_groups_it_has(begun: Callable[..., Any]) -> None:
    states = []
    for times in (1, 3):
        start = begun(output=f"{begun().run.folder}-{times}")
        start.train = start.train * times
        train_router(start)
        states.append(start.run.model.router.classify.weight)
    assert torch.equal(*states)


def test_held_out_probabilities_do_not_depend_on_the_prompts_own_task(
    begun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task for one prompt changes the probabilities of other folds' prompts, but not its own.

    At one strength: the choice among several is made on all prompts, as the heads' is.
    """
    monkeypatch.setattr(router, "STRENGTHS", (0.3,))
    monkeypatch.setattr(router, "_TOLERANCE", 1e-5)
    monkeypatch.setattr(router, "_MAX_STEPS", 5000)
    routes = []
    for wrong in (False, True):
        start = begun(output=f"{begun().run.folder}-{wrong}")
        first = start.train[0]
        if wrong:
            other = next(task for task in start.run.model.router.tasks if task != first.task)
            start.train = [e.with_task(other) if e.prompt == first.prompt else e for e in start.train]
        train_router(start)
        routes.append(start.routes)
    torch.testing.assert_close(routes[0][first.prompt], routes[1][first.prompt], atol=1e-4, rtol=0)
    assert any((routes[0][prompt] - routes[1][prompt]).abs().max() > 1e-2 for prompt in routes[0])
