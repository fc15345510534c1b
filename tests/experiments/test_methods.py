"""The methods that DMoERM is compared with: trained on the same groups, resumable."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from rich.console import Console
from tiny import make_exact_config, make_tiny_config, train_quietly

from dmoerm.config import changed
from dmoerm.data.splits import load_splits
from dmoerm.errors import ConfigError
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.experiments.methods import Method, MethodContext, TrainedMethod, register, registered
from dmoerm.experiments.methods.all_labels import joined_pairs, train_all_labels
from dmoerm.experiments.methods.gated_model import gated_vectors, objectives, train_gated
from dmoerm.experiments.methods.members import averaged, train_members
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.run import examples_of


@pytest.fixture(scope="module")
def context(tiny_backbone, tmp_path_factory) -> MethodContext:
    frozen = {"base": "frozen", "phase2": {"lora": {"rank": 0}}}
    run = train_quietly(make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("methods"), **frozen))
    data = load_splits(run.config)
    examples = examples_of(run, data.train)
    return MethodContext(run, data, examples, examples[:4], 3, Console(quiet=True))


def test_members_are_other_single_models_and_are_trained_once(context: MethodContext) -> None:
    members = train_members(context)
    general = context.run.model.general
    assert members[0] is general
    z = next(iter(base_embeddings(context.run, general, context.train).values()))
    scores = [member.head(z) for member in members]
    assert not torch.allclose(scores[0], scores[1])
    assert not torch.allclose(scores[1], scores[2])
    again = train_members(context)
    assert all(torch.equal(a.head(z), b.head(z)) for a, b in zip(members, again, strict=True))
    mean = torch.stack([member.head.score.weight for member in members]).mean(0)
    torch.testing.assert_close(averaged(members).head.score.weight, mean)
    assert averaged(members).branch is general.branch
    assert not torch.allclose(general.head.score.weight, mean)  # it is a copy


def test_all_labels_learns_from_overall_and_capability_pairs(context: MethodContext) -> None:
    example = next(e for e in context.train if e.pairs[None] and sum(map(len, e.pairs.values())) > len(e.pairs[None]))
    (joined,) = joined_pairs([example])
    assert set(joined.pairs) == {None}
    assert len(joined.pairs[None]) == sum(map(len, example.pairs.values()))
    trained = train_all_labels(context)
    assert {name for name in context.run.metrics() if name.startswith("baselines/all_labels")} == {
        "baselines/all_labels/chitchat",
        "baselines/all_labels/objective_qa",
    }
    assert trained.parameters == 2 * sum(p.numel() for p in context.run.model.general.head.parameters())


def test_all_labels_is_the_head_that_the_aggregator_reads(tiny_backbone, tmp_path) -> None:
    """As in the recipe `frozen`; nothing further is trained."""
    run = train_quietly(make_exact_config(tiny_backbone, tmp_path))
    data = load_splits(run.config)
    examples = examples_of(run, data.train)
    context = MethodContext(run, data, examples, examples[:4], 3, Console(quiet=True))
    before = set(run.metrics())
    trained = train_all_labels(context)
    assert set(run.metrics()) == before
    assert trained.steps == ("phase1",)
    scored = score_groups(run.model, data.test, console=Console(quiet=True), scorers={"all": trained.score})
    for group in scored:
        z = run.cache.embeddings(run.model.encoder.encode(group.group)).float()
        expected = run.model.task_model(group.task).all_labels(z)
        assert group.members["all"][0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


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


def test_a_name_is_one_method() -> None:
    method = Method("general", "another", "baseline", "#000000", lambda _: TrainedMethod())
    with pytest.raises(ConfigError, match="'general' is a method of this comparison"):
        register(method)
    register(registered()["general"])  # the same one again
