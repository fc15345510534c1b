"""The methods that DMoERM is compared with: trained on the same groups, resumable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmoerm.config import changed
from dmoerm.evaluation.methods import MethodContext, fresh_scorer, joined_pairs, registered
from dmoerm.schema import Query
from dmoerm.scores import Score, unbound_reward
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.exact_solver import fit_all_labels, linear_pairs
from dmoerm.training.examples import PreferenceExample
from dmoerm.training.phases import train_base
from dmoerm.training.steps import finished_steps
from evidence.methods.ensembles import averaged, train_members
from evidence.methods.gated import gated_vectors, objectives, train_gated
from evidence.methods.singles import train_all_labels_general

pytestmark = pytest.mark.slow  # whole runs; tests/evaluation/test_comparison.py has a small one


def in_folder(context: MethodContext, folder: Path, **changes: Any) -> MethodContext:
    """Return the context with a new folder of steps."""
    return dataclasses.replace(context, run=dataclasses.replace(context.run, folder=folder), **changes)


# --- all labels -----------------------------------------------------------------------------------------------------


def test_all_labels_learns_from_overall_and_capability_pairs(tuned: MethodContext) -> None:
    example = next(e for e in tuned.train if e.pairs[None] and sum(map(len, e.pairs.values())) > len(e.pairs[None]))
    (joined,) = joined_pairs([example])
    assert {name: len(pairs) for name, pairs in joined.pairs.items()} == {None: sum(map(len, example.pairs.values()))}


def test_exact_all_labels_is_the_head_that_the_aggregator_reads(exact: MethodContext, members: Any) -> None:
    """Nothing further is trained."""
    run, before = exact.run, set(exact.run.metrics())
    method = registered()["all_labels"].train(exact)
    assert set(run.metrics()) == before
    for group in exact.data.test:
        z = run.cache.embeddings(run.model.encoder.encode(group)).float()
        expected = run.model.task_model(group.task or "").all_labels(z)
        assert members(exact, method, group)[0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def general_head(context: MethodContext) -> torch.Tensor:
    """Train `all_labels_general` and return the weights of its head."""
    train_all_labels_general(context)
    return context.run.step("baselines/all_labels_general", lambda _: pytest.fail("trained again"))["head.score.weight"]


def test_all_labels_general_fits_one_exact_head_to_the_labels_of_all_tasks(exact: MethodContext, tmp_path) -> None:
    run, examples = exact.run, exact.train
    z = base_embeddings(run, run.model.general, examples)
    names = (None, *dict.fromkeys(c for names in run.model.config.tasks.values() for c in names))
    assert len(names) == 5
    scale = run.model.general.head.normalizer.scale
    overall, *others = linear_pairs(examples, lambda e: z[e.key], scale, names, run.config.seed)
    expected = fit_all_labels(overall, others)
    torch.testing.assert_close(general_head(in_folder(exact, tmp_path)), expected.weight[None])
    metrics = finished_steps(tmp_path)["baselines/all_labels_general"]
    assert (metrics["loss"], metrics["l2"]) == (pytest.approx(expected.loss), expected.l2)


def renamed(examples: Sequence[PreferenceExample], name: Callable[[Any, str], str]) -> list[PreferenceExample]:
    """Return the examples with other names of the capabilities: task and name → name."""
    return [e.with_pairs({c if c is None else name(e.task, c): p for c, p in e.pairs.items()}) for e in examples]


def test_capabilities_of_two_tasks_may_have_the_same_name(exact: MethodContext, tmp_path) -> None:
    """A pair belongs to its group: which other groups have a capability of this name changes nothing."""
    first = {names[0] for names in exact.run.model.config.tasks.values()}
    same = renamed(exact.train, lambda _, name: "first" if name in first else "second")
    assert len({name for e in same for name in e.pairs}) == 3
    heads = [general_head(in_folder(exact, tmp_path / str(n), train=t)) for n, t in enumerate((exact.train, same))]
    torch.testing.assert_close(*heads)


def test_all_labels_general_is_trained_on_more_labels_than_the_general_model(tuned: MethodContext, tmp_path) -> None:
    weight = general_head(in_folder(tuned, tmp_path))
    assert not torch.equal(weight, tuned.run.model.general.head.score.weight)
    assert finished_steps(tmp_path)["baselines/all_labels_general"]["loss"] < math.log(2)


# --- ensembles ------------------------------------------------------------------------------------------------------


def test_members_are_other_single_models_and_are_trained_once(tuned: MethodContext, monkeypatch) -> None:
    general = tuned.run.model.general
    found = train_members(tuned, size=3)
    weights = [member.head.score.weight for member in found]
    assert found[0] is general
    assert not any(torch.allclose(weights[i], weights[j]) for i in range(3) for j in range(i))
    monkeypatch.setattr("evidence.methods.ensembles.train_base", None)
    again = train_members(tuned, size=3)
    assert all(torch.equal(a, b.head.score.weight) for a, b in zip(weights, again, strict=True))
    torch.testing.assert_close(averaged(found).head.score.weight, torch.stack(weights).mean(0))
    assert general.head.score.weight is weights[0], "the mean is a copy"


def test_exact_members_would_all_be_the_general_model(exact: MethodContext, tmp_path) -> None:
    """A head that is fitted from another start, to the groups in another order, has the same weights."""
    run, general = exact.run, exact.run.model.general
    start = fresh_scorer(run, "baselines/member1")
    assert not torch.equal(start.head.score.weight, general.head.score.weight)
    state, _ = train_base(run, start, exact.train[::-1], exact.validation, run.config.phase0, tmp_path)
    torch.testing.assert_close(state["head.score.weight"], general.head.score.weight, rtol=1e-3, atol=1e-5)
    assert train_members(exact) == [general]


@pytest.mark.parametrize("name", ["ensemble_mean", "ensemble_wco", "ensemble_uwo", "warm"])
def test_exact_ensembles_order_as_the_general_model(exact: MethodContext, members: Any, name: str) -> None:
    method, general = registered()[name], registered()["general"].train(exact)
    for group in exact.data.test:
        rewards = method.combine(members(exact, method.train(exact), group))
        assert np.corrcoef(rewards, members(exact, general, group)[0])[0, 1] == pytest.approx(1, abs=1e-4)


def test_exact_heads_on_resampled_prompts_differ(exact: MethodContext) -> None:
    weights = [member.head.score.weight for member in train_members(exact, bagging=True, size=3)]
    assert len(weights) == 3
    assert not any(torch.allclose(weights[i], weights[j], rtol=1e-2) for i in range(3) for j in range(i))


@pytest.mark.parametrize(
    ("name", "expected"), [("mean", [3.0, 2.0]), ("wco", [2.0, 1.0]), ("uwo", [2.5, 1.5])], ids=lambda v: str(v)
)
def test_members_are_combined_after_they_are_centered(name: str, expected: list[float]) -> None:
    combine = registered()[f"ensemble_{name}"].combine
    rewards = np.array([[1.0, 2.0], [5.0, 2.0]])  # centered: −0.5, 0.5 and 1.5, −1.5; the centers' mean is 2.5
    assert combine(rewards).tolist() == expected
    shifted = combine(rewards + np.array([[3.0], [-5.0]]))
    assert np.diff(shifted) == pytest.approx(np.diff(expected)), "a member's level on a prompt has no effect"


# --- other methods --------------------------------------------------------------------------------------------------


def test_the_gated_model_learns_its_objectives_and_weighs_them(exact: MethodContext) -> None:
    gated = train_gated(exact.run, exact.train, exact.validation)
    assert gated.objectives.weight.shape[0] == len(objectives(exact.run)) == 4
    vectors = gated_vectors(exact.run, gated, exact.train)
    right = []
    for row, (task, name) in enumerate(objectives(exact.run)):
        for e in exact.train:
            pairs = e.pairs.get(name, ()) if e.task == task else ()
            right += [bool(vectors[e.key][pair.better, row] > vectors[e.key][pair.worse, row]) for pair in pairs]
    assert np.mean(right) > 0.7, "on what it was trained on"
    assert all(torch.isfinite(gated(v)).all() for v in vectors.values())


def test_the_gate_differs_between_prompts_of_different_tasks(tuned: MethodContext, tmp_path) -> None:
    """Under a strong `l2` of the heads the gate's own strength is chosen."""
    step = {"phase1.l2": 1.0, "phase1.learning_rate": 0.03, "phase1.epochs": 12}
    run = dataclasses.replace(tuned.run, config=changed(tuned.run.config, step), folder=tmp_path)
    gated = train_gated(run, tuned.train, tuned.train)
    gates = {}
    for task in run.model.config.tasks:
        prompts = torch.stack([run.cache.prompt(e.encoded) for e in tuned.train if e.task == task])
        gates[task] = gated.weights(prompts.float()).mean(0)
    chitchat, objective_qa = gates.values()
    assert float((chitchat - objective_qa).abs().sum()) / 2 > 0.1, "total variation"
    entropies = [-float((gate * gate.log()).sum()) for gate in gates.values()]
    assert min(entropies) < math.log(len(chitchat)) - 0.05


def test_human_grades_orders_responses_by_peoples_grades(tuned: MethodContext, members: Any) -> None:
    method, group = registered()["human_grades"].train(tuned), tuned.data.test[0]
    grades = {next(iter(group.capabilities)): tuple(map(float, range(len(group.responses))))}
    assert (np.diff(members(tuned, method, group.model_copy(update={"capabilities": grades}))[0]) > 0).all()
    bare = group.model_copy(update={"capabilities": {}})
    for query in (bare, Query(id="q", prompt=group.prompt, responses=group.responses)):
        assert set(members(tuned, method, query)[0]) == {0.0}
    without = dataclasses.replace(tuned, data=dataclasses.replace(tuned.data, train=[bare]))
    assert registered()["human_grades"].train(without) is None


def lowered(score: Score) -> float:
    """Return the reward minus its uncertainty, without the bounds of a reward."""
    assert score.uncertainty is not None
    return unbound_reward(score.reward) - score.uncertainty


@pytest.mark.parametrize(("name", "threshold"), [("risk", None), ("laplace", 1.0)])
def test_cautious_methods_subtract_the_standard_deviation(
    exact: MethodContext, tuned: MethodContext, members: Any, monkeypatch, name: str, threshold: float | None
) -> None:
    """`risk` of DMoERM's reward, `laplace` of the general model's, which scores what the router does not recognize."""
    if threshold is not None:
        monkeypatch.setattr(exact.run.model.config, "threshold", threshold)
    group = exact.data.test[0]
    expected = exact.run.model.score(group.prompt, list(group.responses))
    assert (expected[0].task is None) == (threshold is not None)
    rewards = members(exact, registered()[name].train(exact), group)[0]
    assert rewards == pytest.approx([lowered(score) for score in expected], abs=1e-4)
    assert registered()[name].train(tuned) is None, "heads without a penalty have no posterior"
