"""The methods that DMoERM is compared with: trained on the same groups, resumable."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import make_exact_config, make_tiny_config, train_quietly

from dmoerm.config import changed
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.methods import MethodContext, fresh_scorer, joined_pairs, registered
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.schema import Query
from dmoerm.scores import Score, unbound_reward
from dmoerm.training.batches import PreferenceExample
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.exact_solver import fit_all_labels, linear_pairs
from dmoerm.training.examples import examples_of
from dmoerm.training.phases import train_base
from dmoerm.training.run import split_examples
from dmoerm.training.steps import finished_steps
from evidence.methods.ensembles import averaged, train_members
from evidence.methods.gated import gated_vectors, objectives, train_gated
from evidence.methods.singles import train_all_labels_general


@pytest.fixture(scope="module")
def context(tiny_backbone, tmp_path_factory) -> MethodContext:
    """Trained branches with heads as experts."""
    config = make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("methods"), phase2={"fit": "exact"})
    run = train_quietly(config)
    data = load_splits(run.config)
    examples = examples_of(run, data.train)
    return MethodContext(run, data, examples, examples[:4], Console(quiet=True))


def test_members_are_other_single_models_and_are_trained_once(context: MethodContext) -> None:
    members = train_members(context, size=3)
    general = context.run.model.general
    assert members[0] is general
    z = next(iter(base_embeddings(context.run, general, context.train).values()))
    scores = [member.head(z) for member in members]
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])
    again = train_members(context, size=3)
    assert all(torch.equal(a.head(z), b.head(z)) for a, b in zip(members, again, strict=True))
    mean = torch.stack([member.head.score.weight for member in members]).mean(0)
    torch.testing.assert_close(averaged(members).head.score.weight, mean)
    assert averaged(members).branch is not general.branch
    assert not torch.allclose(general.head.score.weight, mean)  # it is a copy


def test_all_labels_learns_from_overall_and_capability_pairs(context: MethodContext) -> None:
    example = next(e for e in context.train if e.pairs[None] and sum(map(len, e.pairs.values())) > len(e.pairs[None]))
    (joined,) = joined_pairs([example])
    assert set(joined.pairs) == {None}
    assert len(joined.pairs[None]) == sum(map(len, example.pairs.values()))
    registered()["all_labels"].train(context)
    assert {name for name in context.run.metrics() if name.startswith("baselines/all_labels/")} == {
        "baselines/all_labels/chitchat",
        "baselines/all_labels/objective_qa",
    }


@pytest.fixture(scope="module")
def exact(tiny_backbone, tmp_path_factory) -> MethodContext:
    """As in the recipe `frozen`, with the parts on which the run was trained."""
    run = train_quietly(make_exact_config(tiny_backbone, tmp_path_factory.mktemp("exact")))
    data = load_splits(run.config)
    train, validation = split_examples(run, data.train)
    return MethodContext(run, data, train, validation, Console(quiet=True))


def test_all_labels_is_the_head_that_the_aggregator_reads(exact: MethodContext) -> None:
    """Nothing further is trained."""
    run, data, context = exact.run, exact.data, exact
    before = set(run.metrics())
    trained = registered()["all_labels"].train(context)
    assert set(run.metrics()) == before
    scored = score_groups(run.model, data.test, console=Console(quiet=True), scorers={"all": trained.score})
    for group in scored:
        z = run.cache.embeddings(run.model.encoder.encode(group.group)).float()
        expected = run.model.task_model(group.task).all_labels(z)
        assert group.members["all"][0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def in_folder(context: MethodContext, folder: Path, **changes: Any) -> MethodContext:
    """Return the context with a new folder of steps."""
    return dataclasses.replace(context, run=dataclasses.replace(context.run, folder=folder), **changes)


def general_head(context: MethodContext) -> torch.Tensor:
    """Train `all_labels_general` and return the weights of its head."""
    train_all_labels_general(context)
    return context.run.step("baselines/all_labels_general", lambda _: pytest.fail("trained again"))["head.score.weight"]


def renamed(examples: list[PreferenceExample], name: Callable[[str, str], str]) -> list[PreferenceExample]:
    """Return the examples with other names of the capabilities: task and name → name."""
    return [e.with_pairs({c if c is None else name(e.task, c): p for c, p in e.pairs.items()}) for e in examples]


def test_all_labels_general_fits_one_exact_head_to_the_labels_of_all_tasks(exact: MethodContext, tmp_path) -> None:
    run, examples = exact.run, exact.train
    z = base_embeddings(run, run.model.general, examples)
    names = (None, *dict.fromkeys(c for names in run.model.config.tasks.values() for c in names))
    assert len(names) == 5
    scale = run.model.general.head.normalizer.scale
    overall, *others = linear_pairs(examples, lambda e: z[e.key], scale, names, run.config.seed)
    expected = fit_all_labels(overall, others)
    weight = general_head(in_folder(exact, tmp_path))
    torch.testing.assert_close(weight, expected.weight[None])
    metrics = finished_steps(tmp_path)["baselines/all_labels_general"]
    assert (metrics["loss"], metrics["l2"]) == (pytest.approx(expected.loss), expected.l2)


def test_capabilities_of_two_tasks_may_have_the_same_name(exact: MethodContext, tmp_path) -> None:
    """A pair belongs to its group: which other groups have a capability of this name changes nothing."""
    first = {names[0] for names in exact.run.model.config.tasks.values()}
    same = renamed(exact.train, lambda _, name: "first" if name in first else "second")
    other = renamed(exact.train, lambda task, name: f"{task}/{name}")
    assert len({name for e in same for name in e.pairs}) == 3 < len({name for e in other for name in e.pairs})
    parts = enumerate((exact.train, same, other))
    heads = [general_head(in_folder(exact, tmp_path / str(n), train=examples)) for n, examples in parts]
    torch.testing.assert_close(heads[1], heads[0])
    torch.testing.assert_close(heads[2], heads[0])


def test_all_labels_general_is_trained_on_more_labels_than_the_general_model(context: MethodContext, tmp_path) -> None:
    weight = general_head(in_folder(context, tmp_path))
    assert not torch.equal(weight, context.run.model.general.head.score.weight)
    assert finished_steps(tmp_path)["baselines/all_labels_general"]["loss"] < math.log(2)


def test_exact_members_would_all_be_the_general_model(exact: MethodContext, tmp_path) -> None:
    """A head that is fitted from another start, to the groups in another order, has the same weights."""
    run, general = exact.run, exact.run.model.general
    start = fresh_scorer(run, "baselines/member1")
    assert not torch.equal(start.head.score.weight, general.head.score.weight)
    state, _ = train_base(run, start, exact.train[::-1], exact.validation, run.config.phase0, tmp_path)
    torch.testing.assert_close(state["head.score.weight"], general.head.score.weight, rtol=1e-3, atol=1e-5)


def test_exact_ensembles_are_the_general_model_and_train_nothing(exact: MethodContext) -> None:
    run, methods = exact.run, registered()
    before = set(run.metrics())
    assert train_members(exact) == [run.model.general]
    trained = {name: methods[name].train(exact) for name in ("ensemble_mean", "ensemble_wco", "ensemble_uwo", "warm")}
    assert set(run.metrics()) == before
    scorers = {name: method.score for name, method in trained.items()}
    scored = score_groups(run.model, exact.data.test, console=Console(quiet=True), scorers=scorers)
    for name in trained:
        for group in scored:
            rewards, general = methods[name].combine(group.members[name]), group.rewards["general"]
            assert np.corrcoef(rewards, general)[0, 1] == pytest.approx(1, abs=1e-4), name


def test_exact_heads_on_resampled_prompts_differ(exact: MethodContext) -> None:
    members = train_members(exact, bagging=True, size=3)
    weights = [member.head.score.weight for member in members]
    assert len(weights) == 3
    assert not any(torch.allclose(weights[i], weights[j], rtol=1e-2) for i in range(3) for j in range(i))


def test_the_gated_model_learns_its_objectives_and_weighs_them(context: MethodContext) -> None:
    run = context.run
    gated = train_gated(run, context.train, context.validation)
    assert gated.objectives.weight.shape[0] == len(objectives(run)) == 4
    vectors = gated_vectors(run, gated, context.train)
    right, total = 0, 0
    for row, (task, name) in enumerate(objectives(run)):
        for e in context.train:
            for pair in e.pairs.get(name, ()) if e.task == task else ():
                right += int(vectors[e.key][pair.better, row] > vectors[e.key][pair.worse, row])
                total += 1
    assert right / total > 0.7  # on what it was trained on
    assert all(torch.isfinite(gated(v)).all() for v in vectors.values())


def test_the_gate_differs_between_prompts_of_different_tasks(context: MethodContext, tmp_path) -> None:
    """Under a strong `l2` of the heads, such as the recipe `frozen` has, the gate's own strength is chosen."""
    step = {"phase1.l2": 1.0, "phase1.learning_rate": 0.03, "phase1.epochs": 12}
    run = dataclasses.replace(context.run, config=changed(context.run.config, step), folder=tmp_path)
    gated = train_gated(run, context.train, context.train)
    gates = {}
    for task in run.model.config.tasks:
        prompts = torch.stack([run.cache.prompt(e.encoded) for e in context.train if e.task == task])
        gates[task] = gated.weights(prompts.float()).mean(0)
    chitchat, objective_qa = gates.values()
    assert float((chitchat - objective_qa).abs().sum()) / 2 > 0.1  # total variation
    entropies = [-float((gate * gate.log()).sum()) for gate in gates.values()]
    assert min(entropies) < math.log(len(chitchat)) - 0.05


def test_human_grades_orders_responses_by_peoples_grades(context: MethodContext) -> None:
    trained = registered()["human_grades"].train(context)
    assert trained is not None
    assert trained.score is not None
    group = context.data.test[0]
    name = next(iter(group.capabilities))
    graded = group.model_copy(update={"capabilities": {name: tuple(map(float, range(len(group.responses))))}})
    bare = group.model_copy(update={"capabilities": {}})
    scored = score_groups(context.run.model, [graded, bare], console=Console(quiet=True), scorers={"x": trained.score})
    up, tied = (one.members["x"][0] for one in scored)
    assert (np.diff(up) > 0).all()
    assert set(tied) == {0.0}
    query = Query(id="q", prompt=group.prompt, responses=group.responses)
    (plain,) = score_groups(context.run.model, [query], console=Console(quiet=True), scorers={"x": trained.score})
    assert set(plain.members["x"][0]) == {0.0}
    without = dataclasses.replace(context, data=dataclasses.replace(context.data, train=[bare]))
    assert registered()["human_grades"].train(without) is None


def lowered(score: Score) -> float:
    """Return the unbounded reward minus its standard deviation."""
    assert score.uncertainty is not None
    return unbound_reward(score.reward) - score.uncertainty


def test_risk_is_the_reward_minus_its_uncertainty(exact: MethodContext, context: MethodContext) -> None:
    method = registered()["risk"]
    trained = method.train(exact)
    assert trained is not None
    assert trained.score is not None
    group = exact.data.test[0]
    (scored,) = score_groups(exact.run.model, [group], console=Console(quiet=True), scorers={"risk": trained.score})
    expected = exact.run.model.score(group.prompt, list(group.responses))
    assert scored.members["risk"][0] == pytest.approx([lowered(score) for score in expected], abs=1e-4)
    assert method.train(context) is None  # heads without a penalty have no posterior


def test_laplace_lowers_the_single_models_reward_by_its_deviation(exact: MethodContext, context: MethodContext) -> None:
    method = registered()["laplace"]
    trained = method.train(exact)
    assert trained is not None
    assert trained.score is not None
    threshold, exact.run.model.config.threshold = exact.run.model.config.threshold, 1.0
    group = exact.data.test[0]
    (scored,) = score_groups(exact.run.model, [group], console=Console(quiet=True), scorers={"x": trained.score})
    expected = exact.run.model.score(group.prompt, list(group.responses))  # scored by the general model
    exact.run.model.config.threshold = threshold
    assert {score.task for score in expected} == {None}
    assert scored.members["x"][0] == pytest.approx([lowered(score) for score in expected], abs=1e-4)
    assert method.train(context) is None  # heads without a penalty have no posterior
