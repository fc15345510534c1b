"""The router's exact fit: the optimum of its problem, with probabilities that hold on prompts it has not seen."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from dmoerm.training import router
from dmoerm.training.exact_solver import FOLDS
from dmoerm.training.router import RouterFit, calibration_error, fit_router


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


def by_one_prompt(found: RouterFit) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in found[:4])


@pytest.mark.parametrize(("tasks", "labels"), [(1, [0, 0, 0]), (3, [0, 0, 2]), (2, [1, 0, 1])])
def test_few_prompts_and_tasks_without_prompts_are_fitted_too(tasks: int, labels: list[int]) -> None:
    found = fit_router(torch.eye(3), torch.tensor(labels), torch.tensor([0, 1, 1]), tasks)
    assert by_one_prompt(found)
    assert found.weight.shape == (tasks, 3)


def test_the_calibration_error_by_hand() -> None:
    confidence, right = torch.tensor([0.95, 0.95, 0.55, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert calibration_error(confidence, right) == pytest.approx((abs(0.95 + 0.95 + 1.0 - 2) + abs(0.55 - 1)) / 4)
