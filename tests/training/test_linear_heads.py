"""Exact fits of linear heads: the optimum, the folds, the strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmoerm.schema import Pair
from dmoerm.training.exact_solver import (
    CAPABILITY_WEIGHTS,
    FOLDS,
    STRENGTHS,
    LinearPairs,
    Prior,
    fit_all_labels,
    fit_linear,
    fold_of,
    linear_pairs,
    solve,
)
from dmoerm.training.losses import preference_losses

from .made import features, made


def draw(pairs: int, width: int, seed: int = 0, signal: float = 2.0, overall: bool = True) -> LinearPairs:
    """Pairs whose better response follows from a direction that all seeds share; signal 0: coin flips."""
    generator = torch.Generator().manual_seed(seed)
    differences = torch.randn(pairs, width, generator=generator) * torch.linspace(2, 0.2, width)
    direction = torch.randn(width, generator=torch.Generator().manual_seed(99)) / width**0.5
    likely = torch.sigmoid(signal * differences @ direction)
    sign = torch.where(torch.rand(pairs, generator=generator) < likely, 1.0, -1.0)
    return LinearPairs(
        differences * sign[:, None],
        torch.ones(pairs),
        torch.zeros(pairs),
        torch.ones(pairs),
        torch.randint(0, FOLDS, (pairs,), generator=generator),
        torch.full((pairs,), overall),
    )


def gradient(pairs: LinearPairs, weight: Tensor, l2: float, solution: Tensor) -> Tensor:
    """The gradient of the problem in linear_heads.py, by autograd."""
    solution = solution.clone().requires_grad_(True)
    losses = preference_losses(pairs.differences @ solution - pairs.margin, pairs.target)
    value = (losses * weight).sum() / weight.sum() + l2 / 2 * solution.square().sum()
    return torch.autograd.grad(value, solution)[0]


@pytest.mark.parametrize(("count", "width"), [(30, 80), (200, 20)])
def test_the_solution_is_the_optimum(count: int, width: int) -> None:
    pairs = draw(count, width)
    generator = torch.Generator().manual_seed(1)
    pairs = replace(pairs, target=torch.rand(count, generator=generator), margin=torch.rand(count, generator=generator))
    weight = torch.rand(count, 6, generator=generator)
    weight[: count // 2, 3] = 0
    strengths = torch.tensor(STRENGTHS)
    solutions = solve(pairs.differences, pairs.target, pairs.margin, weight, strengths)
    for column, l2 in enumerate(STRENGTHS):
        found = solutions[:, column]
        assert float(found.norm()) > 0
        assert float(gradient(pairs, weight[:, column], l2, found).norm()) <= 2e-3 * l2 * float(found.norm())


def test_fold_weights_do_not_see_their_fold() -> None:
    pairs = draw(120, 10)
    fit = fit_linear(pairs)
    for fold in range(FOLDS):
        kept = pairs.fold != fold
        alone = solve(
            pairs.differences[kept], pairs.target[kept], pairs.margin[kept], torch.ones(int(kept.sum()), 1),
            torch.tensor([fit.l2]),
        )  # fmt: skip
        torch.testing.assert_close(fit.fold_weights[fold], alone[:, 0], rtol=0.01, atol=1e-3)
    left_out = (pairs.differences * fit.fold_weights[pairs.fold]).sum(1)
    assert fit.accuracy == pytest.approx(float((left_out > 0).float().mean()))
    assert fit.loss == pytest.approx(float(preference_losses(left_out, pairs.target).mean()), rel=1e-4)


def test_labels_of_one_prompt_get_the_default_strength() -> None:
    pairs = draw(20, 5)
    assert fit_linear(replace(pairs, fold=torch.zeros_like(pairs.fold))).l2 == 1.0


def test_all_labels_weights_capabilities_by_what_they_tell_about_the_overall_pairs() -> None:
    overall = draw(40, 30)
    alike = [draw(400, 30, seed, overall=False) for seed in (1, 2)]
    together, alone = fit_all_labels(overall, alike), fit_all_labels(overall, [])
    assert together.capability_weight == max(CAPABILITY_WEIGHTS)
    assert alone.capability_weight == 0
    torch.testing.assert_close(alone.weight, fit_linear(overall).weight)
    test = draw(2000, 30, seed=7)
    assert accuracy(together.weight, test) > accuracy(alone.weight, test) + 0.03
    opposed = [replace(pairs, differences=-pairs.differences) for pairs in alike]
    without = fit_all_labels(overall, opposed)
    assert without.capability_weight == 0
    torch.testing.assert_close(without.weight, alone.weight)


def test_a_head_is_pulled_toward_a_prior_that_helps_and_toward_0_otherwise() -> None:
    """With 40 pairs and the weights of 2,000 alike ones as prior, the head follows it; coins are no prior."""
    few, test = draw(40, 30), draw(2000, 30, seed=7)
    alike, coins = (fit_linear(draw(2000, 30, seed, signal)) for seed, signal in ((5, 2.0), (6, 0.0)))
    alone = fit_linear(few)
    pulled = fit_linear(few, Prior(alike.weight, alike.fold_weights))
    assert pulled.pulled
    assert not alone.pulled
    assert accuracy(pulled.weight, test) > accuracy(alone.weight, test) + 0.03
    noise = 10 * coins.weight / coins.weight.norm()
    kept = fit_linear(few, Prior(noise, noise.expand(FOLDS, -1)))
    assert not kept.pulled
    torch.testing.assert_close(kept.weight, alone.weight)
    capability = draw(40, 30, seed=1, overall=False)
    assert fit_all_labels(few, [capability], Prior(alike.weight, alike.fold_weights)).pulled


def accuracy(weight: Tensor, pairs: LinearPairs) -> float:
    return float((pairs.differences @ weight > 0).float().mean())


def test_pairs_of_examples() -> None:
    """Differences in units of the normalizer, a group's weight divided over its pairs, capabilities apart."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 4.0], [2.0, 2.0]])
    pairs = {None: [Pair(0, 1), Pair(2, 1)], "logic": [Pair(1, 2)]}
    scale = torch.tensor([1.0, 2.0])
    overall, logic = linear_pairs([made(vectors, pairs)], features, scale, [None, "logic"], seed=3)
    assert overall.differences.tolist() == [[1, -2], [2, -1]]
    assert overall.weight.tolist() == [0.5, 0.5]
    assert overall.margin.tolist() == [0, 0]
    assert overall.overall.tolist() == [True, True]
    assert overall.fold.tolist() == [fold_of("Hi", 3)] * 2
    assert logic.differences.tolist() == [[-2, 1]]
    two = made(vectors[:2], {None: [Pair(1, 0, 0.8, 0.5)]}, margin=0.5)
    (overall,) = linear_pairs([two], features, scale, [None], seed=3)
    assert (overall.margin.tolist(), overall.weight.tolist()) == ([0.5], [0.5])
    assert overall.target.tolist() == pytest.approx([0.8])
    assert (logic.weight.tolist(), logic.margin.tolist(), logic.overall.tolist()) == ([1], [0], [False])


def test_folds_depend_on_the_prompt_and_the_seed_alone() -> None:
    prompts: Sequence[str] = [str(i) for i in range(500)]
    folds = [fold_of(prompt, 0) for prompt in prompts]
    assert folds == [fold_of(prompt, 0) for prompt in prompts]
    assert folds != [fold_of(prompt, 1) for prompt in prompts]
    assert all(70 < folds.count(fold) < 130 for fold in range(FOLDS))


# --- posteriors ----------------------------------------------------------------------------------------------------


def test_the_posterior_is_the_inverse_of_the_curvature() -> None:
    """Against the Hessian of n · (mean loss + l2/2 · |w|²), by autograd and a dense inverse."""
    pairs = draw(60, 6)
    pairs = replace(pairs, weight=torch.tensor([1.0, 0.5] * 30), target=torch.tensor([1.0, 1.0, 0.5] * 20))
    fit = fit_linear(pairs)
    assert fit.posterior is not None

    def objective(weight: Tensor) -> Tensor:
        losses = preference_losses(pairs.differences @ weight - pairs.margin, pairs.target)
        return (losses * pairs.weight).sum() + 45 * fit.l2 / 2 * weight.square().sum()

    hessian: Any = torch.autograd.functional.hessian(objective, fit.weight)
    rest, basis = fit.posterior
    torch.testing.assert_close(rest * torch.eye(6) - basis @ basis.T, torch.linalg.inv(hessian), rtol=1e-3, atol=1e-6)
