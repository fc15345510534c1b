"""Calibrated rewards, their temperature, and their posteriors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_exact_config, make_tiny_config, train_quietly

from dmoerm.chat.encoding import Encoded
from dmoerm.model.mixture import Calibration
from dmoerm.model.router import Routing
from dmoerm.schema import Group, Pair
from dmoerm.training import routing
from dmoerm.training.calibration import calibrate, with_posterior
from dmoerm.training.embedding import base_embeddings, sample
from dmoerm.training.exact_solver import linear_pairs
from dmoerm.training.examples import PreferenceExample, labeled
from dmoerm.training.phases import first_part, second_part

from .conftest import begin
from .made import Made


def examples(count: int, temperature: float, seed: int) -> tuple[dict[str, torch.Tensor], list[PreferenceExample]]:
    """Pairs of rewards, and labels that follow σ(margin / temperature)."""
    rng = np.random.default_rng(seed)
    rewards, made = {}, []
    for i in range(count):
        pair = rng.normal(3.0, 2.0, 2)
        first_wins = rng.random() < 1 / (1 + np.exp(-(pair[0] - pair[1]) / temperature))
        group = Group(prompt=f"{seed} {i}", responses=("a", "b"), scores=[1, 0])
        order = [Pair(0, 1) if first_wins else Pair(1, 0)]
        one = Made(group, Encoded([seed, i], [[1], [2]]), None, {None: order})
        rewards[one.key] = torch.tensor(pair, dtype=torch.float32)
        made.append(one)
    return rewards, made


def calibrated(temperature: float) -> tuple[Calibration, torch.Tensor]:
    rewards, train = examples(200, temperature, 0)
    held_out, validation = examples(6000, temperature, 1)
    calibration = Calibration()
    calibrate(calibration, rewards | held_out, train, validation)
    return calibration, torch.cat(list((rewards | held_out).values()))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0])
def test_the_temperature_of_the_labels_is_found(temperature: float) -> None:
    calibration, _ = calibrated(temperature)
    # the temperature is for scaled rewards: times the scale, it is that of the raw ones
    assert float(calibration.temperature * calibration.scale) == pytest.approx(temperature, rel=0.15)


def test_rewards_get_mean_0_and_deviation_1() -> None:
    calibration, rewards = calibrated(1.0)
    after = calibration(rewards)
    assert float(after.mean()) == pytest.approx(0, abs=1e-4)
    assert float(after.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_without_held_out_pairs_the_training_pairs_serve() -> None:
    rewards, train = examples(3000, 2.0, 2)
    calibration = Calibration()
    calibrate(calibration, rewards, train, [])
    assert float(calibration.temperature * calibration.scale) == pytest.approx(2.0, rel=0.2)


def test_a_handful_of_groups_that_disagree_do_not_make_every_pair_even() -> None:
    rewards, train = examples(200, 1.0, 3)
    held_out, validation = examples(6, 1.0, 4)
    wrong = [e for e in validation if held_out[e.key][0] < held_out[e.key][1]]
    for e in wrong:
        e.pairs[None] = [Pair(0, 1)]
    calibration = Calibration()
    calibrate(calibration, rewards | held_out, train, wrong)
    assert wrong
    assert 1 < float(calibration.temperature) < 5


PAIR = ["Yes, it is.", "no"]


def covariance(pairs: Any, weight: torch.Tensor, l2: float) -> torch.Tensor:
    """The inverse Hessian of n · (mean loss + l2/2 · |w|²) by autograd, in float64."""
    groups, differences = pairs.weight.sum().double(), pairs.differences.double()

    def objective(w: torch.Tensor) -> torch.Tensor:
        margins = differences @ w - pairs.margin.double()
        losses = (1 - pairs.target) * margins - torch.nn.functional.logsigmoid(margins)
        return (losses * pairs.weight.double()).sum() + groups * l2 / 2 * w.square().sum()

    return torch.linalg.inv(torch.autograd.functional.hessian(objective, weight.double()))  # pyright: ignore


def dense(posterior: Any) -> torch.Tensor:
    return torch.diag(posterior.rest.double()) - posterior.basis.double() @ posterior.basis.double().T


def pairs_of(training: Any, task: str | None, head: Any, name: str | None) -> Any:
    run = training.run
    examples = labeled(training.train if task is None else training.of(task)[0], [name])
    vectors = base_embeddings(run, run.model.general, examples)
    return linear_pairs(examples, lambda e: vectors[e.key], head.normalizer.scale, [name], run.config.seed)[0]


def test_exact_heads_give_the_sum_of_their_inverse_hessians(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The width is 64, so that nothing is truncated; the head on all labels is left out, and so are soft heads."""
    monkeypatch.setattr(routing, "search", lambda forms, exact: (False, Routing()))
    config = make_exact_config(tiny_backbone, tmp_path, phase3={"base_scores": ["per_task", "general"]})
    run, training = train_quietly(config), begin(config)
    metrics, general = run.metrics(), run.model.general.head
    for task in run.model.config.tasks:
        model = run.model.task_model(task)
        heads = [(h, name, task, metrics[f"phase2/{task}"][f"l2/{name}"])
                 for name, h in zip(model.experts.capabilities, model.experts.heads, strict=True)]  # fmt: skip
        heads.append((model.base.head, None, task, metrics[f"phase1/{task}"]["l2"]))
        heads.append((general, None, None, metrics["phase0"]["l2"]))
        linear, expected = model.aggregator.linear, torch.zeros(64, 64, dtype=torch.float64)
        for weight, unit, (head, name, owner, l2) in zip(linear.weight, linear.normalizer.scale, heads, strict=True):
            pairs = pairs_of(training, owner, head, name)
            ratio = (model.base.head.normalizer.scale / head.normalizer.scale).double()
            c = weight.double() / (unit * model.calibration.scale).double() * ratio
            expected += c[:, None] * covariance(pairs, head.score.weight[0], l2) * c
        torch.testing.assert_close(dense(model.posterior), expected, rtol=1e-2, atol=1e-4 * float(expected.max()))
    pairs, scale = pairs_of(training, None, general, None), float(run.model.general_calibration.scale)
    expected = covariance(pairs, general.score.weight[0], metrics["phase0"]["l2"]) / scale**2
    torch.testing.assert_close(
        dense(run.model.general_posterior), expected, rtol=1e-2, atol=1e-4 * float(expected.max())
    )


@pytest.mark.parametrize("auto", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_trained_branch_has_the_posterior_of_its_phase_1_score(
    tiny_backbone: str, tmp_path: Path, auto: bool
) -> None:
    """The strength is that of the step, or else the one of the head that was fitted first."""
    step: dict[str, Any] = {"head_first": True} if auto else {"l2": 0.7}
    config = make_tiny_config(tiny_backbone, tmp_path, phase1={**step, "phase1_fraction": 0.5})
    run, training = train_quietly(config), begin(config)
    model = run.model.task_model("chitchat")
    assert not run.model.general_posterior.known  # phase 0 has no penalty
    state = load_file(run.folder / "steps" / "phase1" / "chitchat" / "state.safetensors")
    l2 = float(state["head_l2"]) if auto else 0.7
    assert l2 > 0
    train = training.of("chitchat")[0]
    first, second = labeled(first_part(training.run, train)), second_part(training.run, train)
    assert len(first) < len(train)
    run.cache.fill([e.encoded for e in train])
    vectors = base_embeddings(run, model.base, train)
    scale = model.base.head.normalizer.scale
    (pairs,) = linear_pairs(first, lambda e: vectors[e.key], scale, [None], config.seed)
    unit = torch.cat([model.base.head(vectors[e.key]) for e in second]).std(correction=0)
    expected = covariance(pairs, model.base.head.score.weight[0], l2) / float(unit) ** 2
    torch.testing.assert_close(dense(model.posterior), expected, rtol=2e-2, atol=1e-3 * float(expected.max()))


@pytest.mark.parametrize(
    ("changes", "general"),
    [
        pytest.param({}, False, marks=pytest.mark.slow),
        ({"phase0": {"l2": 0.5}, "phase1": {"l2": 0.5}, "phase3": {"inputs": "embeddings"}}, True),
    ],
    ids=["no penalty", "the paper's form"],
)
def test_forms_without_a_posterior(tiny_backbone: str, tmp_path: Path, changes: dict[str, Any], general: bool) -> None:
    run = train_quietly(make_tiny_config(tiny_backbone, tmp_path, **changes))
    assert [score.uncertainty for score in run.model.score("Is it?", PAIR, "chitchat")] == [None, None]
    assert run.model.general_posterior.known is general
    assert not any(run.model.task_model(task).posterior.known for task in run.model.config.tasks)


def test_a_sample_stands_for_all_groups(tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior's variance is 1 / (groups · l2) for the number of all groups."""
    training = begin(make_tiny_config(tiny_backbone, tmp_path))
    run, examples = training.run, labeled(training.train)
    scorer = run.model.general
    scorer.head.normalizer.fit(torch.cat(list(base_embeddings(run, scorer, examples).values())))
    whole = with_posterior(run, scorer, examples, 0.5, {})
    monkeypatch.setattr("dmoerm.training.embedding._SAMPLE", 4)
    assert len(sample(run, examples)) <= 4 < len(examples)
    part = with_posterior(run, scorer, examples, 0.5, {})
    assert float(part["head_rest"]) == pytest.approx(1 / (len(examples) * 0.5))
    assert float(whole["head_rest"]) == pytest.approx(float(part["head_rest"]))
    assert not torch.allclose(*(s["head_basis"] @ s["head_basis"].T for s in (whole, part)))
