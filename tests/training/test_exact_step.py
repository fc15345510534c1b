"""Runs with `fit: exact`: exact heads, out-of-fold scores, the aggregator's weights."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same, make_exact_config, make_tiny_config, train_quietly

from dmoerm import DMoERM
from dmoerm.config import Config, load_config
from dmoerm.errors import ConfigError
from dmoerm.training import score_weights as weighting
from dmoerm.training.embedding import base_embeddings, task_vectors
from dmoerm.training.exact_solver import FoldedHead, fit_heads, fold_of, out_of_fold
from dmoerm.training.phases import phase0, phase1, phase2, phase3
from dmoerm.training.router import train_router
from dmoerm.training.score_weights import EXPERT_SCALES, rescale_experts, score_weights

from .conftest import begin
from .test_linear_heads import draw

PAIR = ["Yes, it is.", "no"]


@pytest.fixture
def auto_config(tiny_backbone: str, tmp_path: Path) -> Callable[..., Config]:
    """A function: changes to the settings → settings of a tiny run whose heads are fitted exactly."""

    def make(**changes: Any) -> Config:
        return make_exact_config(tiny_backbone, tmp_path, **changes)

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
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

    monkeypatch.setattr("dmoerm.training.score_weights.calibrate", calibrate)
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
    weights = rescale_experts(torch.tensor([0.5, 0.5]), 1, replace(pairs, differences=scores))
    assert float(weights.sum()) == pytest.approx(1)
    assert (weights.tolist() == [0.5, 0.5]) is kept
    assert kept or weights.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["base=full"], "phase0.fit is exact but base is full, which trains more than heads"),
        (["phase2.lora.rank=2"], "phase2.lora: needs phase2.fit: trained"),
        (["head.hidden=4"], "linear heads; set head.hidden"),
        (["phase1.fit=trained"], "phase3.fit is exact, which weights held-out scores"),
        (["phase3.inputs=both"], "phase3.inputs: needs phase3.fit: trained"),
        (["phase1.fit=trained", "phase1.phase1_fraction=0"], "all_labels, which needs"),
        (["phase2.learning_rate=0.1"], "phase2.learning_rate: needs phase2.fit: trained"),
    ],
)
def test_settings_that_no_exact_fit_has_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("frozen", overrides)


def test_lora_experts_start_from_exact_heads() -> None:
    """The settings that docs/training.md names for `frozen` with LoRA experts."""
    lora = ["phase2.fit=trained", "phase2.head_first=true", "phase2.lora.rank=8", "phase2.l2=2"]
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"--set {setting}" in page for setting in lora)
    config = load_config("frozen", lora)
    assert (config.phase2.l2, config.phase2.head_first, config.phase1.fit) == (2, True, "exact")


@pytest.mark.parametrize("base", [pytest.param("full", marks=pytest.mark.slow), "frozen"])
def test_branches_and_lora_are_trained_from_exact_heads(tiny_backbone: str, tmp_path: Path, base: str) -> None:
    """The form of `finetune`, and of `frozen` with LoRA experts."""
    first: dict[str, Any] = {"head_first": True}
    phases = {"phase0": first, "phase1": first} if base == "full" else {}
    run = train_quietly(make_tiny_config(tiny_backbone, tmp_path, base=base, phase2=first, **phases))
    expected = run.model.score("Is it?", PAIR)
    assert_same(DMoERM.from_pretrained(run.folder / "model").score("Is it?", PAIR), expected)
    assert run.metrics()["phase2/chitchat"]["steps"] > 0


def weighted_config(backbone: str, folder: Path, base: str) -> Config:
    """Settings of trained experts whose scores phase 3 weights."""
    settings = make_tiny_config(backbone, folder, base=base, phase1={"phase1_fraction": 0}).model_dump(mode="json")
    return Config(**settings | {"phase3": {"fit": "exact", "base_scores": ["per_task"]}})


@pytest.mark.parametrize("base", ["full", pytest.param("frozen", marks=pytest.mark.slow)])
def test_trained_scores_are_weighted_by_the_validation_prompts(
    tiny_backbone: str, tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of `finetune`: no head is out of fold, so the training prompts must not choose the weights."""
    calibrated: dict[str, Any] = {}
    original = weighting.calibrate

    def calibrate(calibration: Any, rewards: Any, train: Any, validation: Any) -> None:
        calibrated.update(rewards=rewards, train=train, validation=validation)
        original(calibration, rewards, train, validation)

    monkeypatch.setattr(weighting, "calibrate", calibrate)
    run = train_quietly(weighted_config(tiny_backbone, tmp_path, base))
    task = next(reversed(run.model.config.tasks))
    task_model, metrics = run.model.task_model(task), run.metrics()[f"phase3/{task}"]
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
    expected = score_weights(kept, reference, 0.5, linear_read(task_model))
    found = torch.tensor([metrics[f"weight/{name}"] for name in (*names, "per_task", "general")])
    scaled = [torch.cat([s * expected[: len(names)], expected[len(names) :]]) for s in EXPERT_SCALES]
    assert any(torch.allclose(found, row / row.sum(), atol=1e-5) for row in scaled)
    assert found[-1] == 0
    assert_same(DMoERM.from_pretrained(run.folder / "model").score("Is it?", PAIR), run.model.score("Is it?", PAIR))


def linear_read(task_model: Any) -> torch.Tensor:
    return task_model.aggregator.linear.read
