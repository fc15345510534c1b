"""Exact fits of linear heads: the optimum, the folds, the strengths, and runs with `fit: exact`."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from running import in_short
from tiny import assert_same, make_exact_config, make_tiny_config, train_quietly
from torch import Tensor

from dmoerm import DMoERM
from dmoerm.config import Config
from dmoerm.schema import Pair
from dmoerm.training import calibration as weighting
from dmoerm.training import phases
from dmoerm.training.calibration import EXPERT_SCALES, rescale_experts, score_weights
from dmoerm.training.embedding import base_embeddings, task_vectors
from dmoerm.training.exact_solver import (
    CAPABILITY_WEIGHTS,
    FOLDS,
    STRENGTHS,
    FoldedHead,
    LinearPairs,
    Prior,
    fit_all_labels,
    fit_heads,
    fit_linear,
    fold_of,
    laplace,
    linear_pairs,
    out_of_fold,
    solve,
)
from dmoerm.training.losses import preference_losses
from dmoerm.training.phases import phase0, phase1, phase2, phase3
from dmoerm.training.router import train_router

from .conftest import begin
from .made import features, made


def draw(pairs: int, width: int, seed: int = 0, signal: float = 2.0, overall: bool = True) -> LinearPairs:
    """Pairs whose better response follows from a direction that all seeds share; signal 0: coin flips."""
    generator = torch.Generator().manual_seed(seed)
    differences = torch.randn(pairs, width, generator=generator) * torch.linspace(2, 0.2, width)
    direction = torch.randn(width, generator=torch.Generator().manual_seed(99)) / width**0.5
    likely = torch.sigmoid(signal * differences @ direction)
    sign = torch.where(torch.rand(pairs, generator=generator) < likely, 1.0, -1.0)
    return LinearPairs(
        torch.cat([differences * sign[:, None], torch.zeros(1, width)]),
        torch.stack([torch.arange(pairs), torch.full((pairs,), pairs)]),
        torch.ones(pairs),
        torch.zeros(pairs),
        torch.ones(pairs),
        torch.randint(0, FOLDS, (pairs,), generator=generator),
        torch.full((pairs,), overall),
    )


def sharing(*parts: LinearPairs) -> list[LinearPairs]:
    """The same pairs with one table of embeddings."""
    sizes = [len(part.vectors) for part in parts]
    vectors = torch.cat([part.vectors for part in parts])
    return [replace(part, vectors=vectors, ends=part.ends + sum(sizes[:i])) for i, part in enumerate(parts)]


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


def test_pairs_of_few_responses_with_several_labels_have_the_same_optimum() -> None:
    """The steps on responses, and the merged labels of the same two responses, change nothing but rounding."""
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(12, 6, generator=generator)
    ends = torch.tensor([(a, b) for a in range(12) for b in range(12) if a != b] * 2).T
    count = ends.shape[1]
    labels = torch.rand(count, generator=generator), torch.zeros(count), torch.rand(count, generator=generator)
    fold = (ends.amin(0) * 12 + ends.amax(0)) % FOLDS
    pairs = LinearPairs(vectors, ends, *labels, fold, torch.ones(count).bool())
    merged = pairs.merged()
    assert merged.ends.shape == (2, 66)
    assert float(merged.weight.sum()) == pytest.approx(float(pairs.weight.sum()))
    strengths = torch.tensor([0.1, 1.0])
    plain = solve(pairs.differences, pairs.target, pairs.margin, pairs.weight[:, None].expand(-1, 2), strengths)
    for each in (pairs, merged):
        weight = each.weight[:, None].expand(-1, 2)
        found = solve(vectors, each.target, each.margin, weight, strengths, each.ends)
        torch.testing.assert_close(found, plain, rtol=2e-3, atol=2e-3)
    for left, right in zip(laplace(pairs, plain[:, 1], 1.0, 5.0), laplace(merged, plain[:, 1], 1.0, 5.0), strict=True):
        torch.testing.assert_close(left.abs(), right.abs(), rtol=1e-3, atol=1e-4)
    assert replace(pairs, margin=torch.ones(count)).merged().ends.shape == (2, count), "margins differ"


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
    overall, *alike = sharing(overall, *alike)
    together, alone = fit_all_labels(overall, alike), fit_all_labels(overall, [])
    assert together.capability_weight == max(CAPABILITY_WEIGHTS)
    assert alone.capability_weight == 0
    torch.testing.assert_close(alone.weight, fit_linear(overall).weight)
    test = draw(2000, 30, seed=7)
    assert accuracy(together.weight, test) > accuracy(alone.weight, test) + 0.03
    opposed = [replace(pairs, ends=pairs.ends.flip(0)) for pairs in alike]
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
    few, capability = sharing(few, capability)
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


PAIR = ["Yes, it is.", "no"]


@pytest.fixture
def auto_config(tiny_backbone: str, tmp_path: Path) -> Callable[..., Config]:
    """A function: changes to the settings → settings of a tiny run whose heads are fitted exactly."""

    def make(**changes: Any) -> Config:
        return make_exact_config(tiny_backbone, tmp_path, **changes)

    return make


@pytest.mark.parametrize("dtype", in_short(["float32", "bfloat16"], "bfloat16"))
def test_a_run_is_saved_reloaded_and_resumed_with_the_same_scores(
    auto_config: Callable[..., Config], dtype: str
) -> None:
    config = auto_config(backbone={"dtype": dtype})
    run = train_quietly(config)
    expected = run.model.score("Is it?", PAIR)
    assert expected[0].reward != expected[1].reward
    assert_same(DMoERM.from_pretrained(run.folder / "model").score("Is it?", PAIR), expected)
    metrics = run.metrics()
    weights = [value for name, value in metrics["phase3/chitchat"].items() if name.startswith("weight/")]
    assert len(weights) == 5  # two experts, phase 1, the general model, all labels
    assert sum(weights) == pytest.approx(1)
    for step in ("phase3/chitchat", "phase2/objective_qa"):
        shutil.rmtree(run.folder / "steps" / step)
    shutil.rmtree(run.folder / "model")
    assert_same(train_quietly(config).model.score("Is it?", PAIR), expected)
    for name, row in run.metrics().items():
        assert row == pytest.approx(metrics[name] | {"seconds": row["seconds"]}, rel=1e-5), name


def test_rewards_are_calibrated_on_scores_that_did_not_see_the_prompt(
    auto_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = begin(auto_config())
    run = training.run
    train_router(training)
    phase0(training)
    phase1(training, "chitchat")
    phase2(training, "chitchat")
    assert set(training.folds) == {
        (None, "general"), *(("chitchat", name) for name in ("per_task", "all_labels", "empathy", "proactivity"))
    }  # fmt: skip
    calibrated: dict[str, Any] = {}

    def calibrate(calibration: Any, rewards: dict[str, Any], train: Any, validation: Any) -> None:
        calibrated.update(rewards=rewards, train=train, validation=validation)

    monkeypatch.setattr("dmoerm.training.calibration.calibrate", calibrate)
    phase3(training, "chitchat")
    task_model = run.model.task_model("chitchat")
    example = training.of("chitchat")[0][0]
    z, fold = run.cache.embeddings(example.encoded).float(), fold_of(example.prompt, run.config.seed)
    heads = [*task_model.experts.heads, task_model.base.head, run.model.general.head, task_model.all_labels]
    names = [("chitchat", "empathy"), ("chitchat", "proactivity"), ("chitchat", "per_task"), (None, "general")]
    scores = [
        head.normalizer(z) @ training.folds[key].weights[fold]
        for head, key in zip(heads, [*names, ("chitchat", "all_labels")], strict=True)
    ]
    expected = task_model.aggregator.linear(torch.stack(scores, 1))
    torch.testing.assert_close(calibrated["rewards"][example.key], expected)
    assert calibrated["train"] == []
    assert len(calibrated["validation"]) == sum(map(len, training.of("chitchat")))
    own = torch.tensor([0.5] * z.shape[1])
    weights = training.folds["chitchat", "empathy"]._replace(weights=torch.stack([i * own for i in range(5)]))
    found = out_of_fold(task_model.base.head, weights, [example], {example.key: z}, run.config.seed)[example.key]
    torch.testing.assert_close(found, task_model.base.head.normalizer(z) @ (fold * own))


def test_a_tasks_head_may_be_pulled_toward_the_general_one_in_its_own_units(auto_config: Callable[..., Config]) -> None:
    """Where the task's labels are far too few, the head equals the general one, whatever the normalizers are."""
    training = begin(auto_config())
    run = training.run
    train_router(training)
    phase0(training)
    general = FoldedHead(run.model.general.head, training.folds[None, "general"])
    examples = training.of("chitchat")[0][:2]
    vectors = base_embeddings(run, run.model.general, examples)
    head = copy.deepcopy(general.head)
    head.normalizer.fit(2 * torch.cat(list(vectors.values())) + 1)
    prior = general.prior(head.normalizer.scale)
    z = vectors[examples[0].key]
    expected = general.head(z[0]) - general.head(z[1])
    torch.testing.assert_close((z[0] - z[1]) / head.normalizer.scale @ prior.weight, expected)
    by_fold = (z[0] - z[1]) / general.head.normalizer.scale @ general.folds.weights.T
    torch.testing.assert_close((z[0] - z[1]) / head.normalizer.scale @ prior.fold_weights.T, by_fold)
    (fit,) = fit_heads([head], [None], examples, vectors, run.config.seed, general)
    torch.testing.assert_close(head.score.weight[0], fit.weight)


def test_an_expert_weighs_as_its_labels_can_be_predicted() -> None:
    read = torch.tensor([True] * 5 + [False, True])
    weights = score_weights([0.9, 0.7, 0.6, 0.5], reference=0.7, general=0.9, read=read)
    assert weights.tolist() == pytest.approx([w / 4.5 for w in (1, 1, 0.5, 0, 1, 0, 1)])
    assert score_weights([0.3, 0.6], 0.4, 0.51, torch.tensor([True] * 4)).tolist() == pytest.approx(
        [w / 2.4 for w in (0, 1, 1, 0.4)]
    )


@pytest.mark.parametrize(("sign", "kept"), [(1.0, True), (-1.0, False)])
def test_experts_against_the_overall_preferences_are_dropped(sign: float, kept: bool) -> None:
    """One score agrees with people; the experts' agree too, or say the opposite."""
    pairs = draw(300, 2, signal=6.0)
    useful = pairs.differences @ torch.randn(2, generator=torch.Generator().manual_seed(99))
    noise = torch.randn(300, generator=torch.Generator().manual_seed(5))
    scores = torch.stack([sign * useful + noise, useful + noise], 1)
    vectors = torch.cat([scores, torch.zeros(1, 2)])
    weights = rescale_experts(torch.tensor([0.5, 0.5]), 1, replace(pairs, vectors=vectors))
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights.tolist() == [0.5, 0.5]) is kept
    assert kept or weights.tolist() == [0, 1]


@pytest.mark.parametrize("phase3", [{"fit": "exact"}, {"fit": "trained", "inputs": "both", "epochs": 0}])
def test_trained_scores_are_weighted_by_the_validation_prompts(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase3: dict[str, Any]
) -> None:
    """No head is out of fold, so the training prompts must not choose the weights; a trained aggregator starts so."""
    calibrated: dict[str, Any] = {}
    original = weighting.calibrate

    def calibrate(calibration: Any, rewards: Any, train: Any, validation: Any) -> None:
        calibrated.update(rewards=rewards, train=train, validation=validation)
        original(calibration, rewards, train, validation)

    monkeypatch.setattr(weighting, "calibrate", calibrate)
    monkeypatch.setattr(phases, "calibrate", calibrate)
    start = make_tiny_config(tiny_backbone, tmp_path, phase1={"phase1_fraction": 0})
    phase3 = {**phase3, "base_scores": ["per_task"]}
    run = train_quietly(Config(**start.model_dump(mode="json") | {"phase3": phase3}))
    task = next(reversed(run.model.config.tasks))
    task_model = run.model.task_model(task)
    validation = calibrated["validation"]
    assert validation
    assert not {e.prompt for e in validation} & {e.prompt for e in calibrated["train"]}
    vectors = task_vectors(run, task, validation)
    names = task_model.experts.capabilities

    def accuracy(column: int, name: str | None) -> float:
        right = total = 0.0
        for e in validation:
            column_scores = task_model.aggregator.scores(vectors[e.key])[:, column]
            for pair in e.pairs.get(name) or []:
                right += float(column_scores[pair.better] > column_scores[pair.worse]) / len(e.pairs[name])
                total += 1 / len(e.pairs[name])
        return right / total

    reference = accuracy(len(names), None)
    kept = [weighting._above_chance(accuracy(i, name), validation, name) for i, name in enumerate(names)]
    expected = score_weights(kept, reference, 0.5, task_model.aggregator.linear.read)
    found = task_model.aggregator.linear.weight
    if phase3["fit"] == "exact":
        metrics = run.metrics()[f"phase3/{task}"]
        assert found.tolist() == [metrics[f"weight/{name}"] for name in (*names, "per_task", "general")]
    scaled = [torch.cat([s * expected[: len(names)], expected[len(names) :]]) for s in EXPERT_SCALES]
    assert any(torch.allclose(found, row / row.sum(), atol=1e-5) for row in scaled)
    assert found[-1] == 0
    assert_same(DMoERM.from_pretrained(run.folder / "model").score("Is it?", PAIR), run.model.score("Is it?", PAIR))
