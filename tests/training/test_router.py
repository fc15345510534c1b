"""The router's exact fit, and the tasks that it gives to groups without one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tiny_config, tiny_groups, train_quietly, write_groups
from torch.nn import functional

from dmoerm.model.packing import pack_ids
from dmoerm.training import router
from dmoerm.training.exact_solver import FOLDS
from dmoerm.training.router import assign_tasks, calibration_error, fit_router, train_router


def overlapping(count: int = 600, tasks: int = 3, width: int = 8, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Return vectors of tasks whose means are a few standard deviations apart, labels, folds."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % tasks
    means = spread * torch.randn(tasks, width, generator=generator)
    return means[labels] + torch.randn(count, width, generator=generator), labels, torch.arange(count) // 7 % FOLDS


def test_it_is_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_TOLERANCE", 1e-4)
    monkeypatch.setattr(router, "_MAX_STEPS", 5000)
    x, labels, folds = overlapping()
    found = fit_router(x, labels, folds, 3)
    for k in (*range(FOLDS), None):
        kept = torch.ones(len(x), dtype=torch.bool) if k is None else folds != k
        weight = (found.weight if k is None else found.fold_weights[k]).clone().requires_grad_(True)
        bias = (found.bias if k is None else found.fold_biases[k]).clone().requires_grad_(True)
        loss = functional.cross_entropy(x[kept] @ weight.T + bias, labels[kept])
        (loss + found.l2 / 2 * (weight.square().sum() + (bias / 10).square().sum())).backward()
        assert weight.grad is not None
        assert bias.grad is not None
        assert float(weight.grad.norm()) < 1e-4
        assert float(bias.grad.norm()) < 1e-3


def test_what_is_reported_is_on_prompts_that_were_left_out() -> None:
    x, labels, folds = overlapping(spread=0.4)
    found = fit_router(x, labels, folds, 3)
    logits = torch.stack([found.fold_weights[k] @ v + found.fold_biases[k] for k, v in zip(folds, x, strict=True)])
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-4)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert found.accuracy < 0.9
    assert found.ece < 0.08


def test_tasks_that_prompts_do_not_show_leave_the_router_unsure() -> None:
    """More features than prompts, and labels by chance: probabilities are those of a router that knows nothing."""
    x = torch.randn(300, 1000, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(5, (300,), generator=torch.Generator().manual_seed(2))
    found = fit_router(x, labels, torch.arange(300) % FOLDS, 5)
    assert found.loss < math.log(5) + 0.02
    assert found.ece < 0.08


@pytest.mark.parametrize(("tasks", "labels"), [(1, [0, 0, 0]), (3, [0, 0, 2]), (2, [1, 0, 1])])
def test_few_prompts_and_tasks_without_prompts_are_fitted_too(tasks: int, labels: list[int]) -> None:
    found = fit_router(torch.eye(3), torch.tensor(labels), torch.tensor([0, 1, 1]), tasks)
    assert all(bool(torch.isfinite(part).all()) for part in found[:4])
    assert found.weight.shape == (tasks, 3)


def test_the_calibration_error_by_hand() -> None:
    confidence, right = torch.tensor([0.95, 0.95, 0.55, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(confidence, right) == pytest.approx((abs(0.95 + 0.95 + 1.0 - 2) + abs(0.55 - 1)) / 4)


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


def test_one_task_takes_no_steps(tiny_backbone: str, tmp_path: Path) -> None:
    groups = [group for group in tiny_groups() if group.task == "chitchat"]
    data = {"files": [write_groups(groups, tmp_path / "one.jsonl")], "groups_per_task": 6}
    settings: Any = {
        "router": {"kind": "own"},
        "phase0": {"epochs": 0},
        "phase1": {"epochs": 0},
        "phase2": {"epochs": 0},
    }
    run = train_quietly(make_tiny_config(tiny_backbone, tmp_path, data=data, **settings))
    assert run.metrics()["router"]["steps"] == 0
