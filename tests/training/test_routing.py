"""The routing is chosen by held-out rewards: mixed where kinds overlap, top-1 where the router is sure."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import assert_same, make_exact_config, make_tiny_config, tiny_groups, train_quietly, write_groups

from dmoerm import DMoERM
from dmoerm.errors import ConfigError
from dmoerm.evaluation.results import routing_notes
from dmoerm.model.router import Routing
from dmoerm.schema import Group
from dmoerm.training import routing
from dmoerm.training.grow import add_task, change_capability, merge_models, remove_tasks
from dmoerm.training.routing import Held, search
from dmoerm.training.steps import step_name

PAIR = ["Yes, it is.", "No."]
MIXED = Routing(temperature=1.0, general_weight=0.25)


def relabeled(*, alike: bool) -> list[Group]:
    """Return groups of two kinds: prompts that name their kind, or with the kinds drawn, which no router can tell."""
    chance, tasks = random.Random(1), ("chitchat", "objective_qa")
    kinds = {group.prompt: chance.choice(tasks) for group in tiny_groups(48)}
    changes: list[dict[str, Any]] = []
    for group in tiny_groups(48):
        told = {"prompt": f"{group.task} {group.task} {group.task}: {group.prompt} {group.task}"}
        changes.append({"capabilities": {}} | ({"task": kinds[group.prompt]} if alike else told))
    return [group.model_copy(update=update) for group, update in zip(tiny_groups(48), changes, strict=True)]


def trained(backbone: str, folder: Path, *, alike: bool) -> Any:
    file = write_groups(relabeled(alike=alike), folder / "kinds.jsonl")
    return train_quietly(make_exact_config(backbone, folder, data={"files": [file]}))


@pytest.fixture(scope="module")
def mixed_run(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with soft heads and mixed rewards, which so few groups do not ask for: the search returns this form."""

    def search(forms: Any, exact: bool) -> Any:
        assert exact
        assert set(forms) == {False, True}
        return True, MIXED

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(routing, "search", search)
        return trained(tiny_backbone, tmp_path_factory.mktemp("mixed"), alike=True)


# --- what is chosen ------------------------------------------------------------------------------------------------

PROMPTS = 200


def held(*margins: float | Sequence[float], sure: float = 0.6) -> Held:
    """Return held-out rewards of two tasks and the general model: one pair a prompt, half of the prompts of each task.

    Args:
        margins: of each source, for all prompts, or for those of each task.
        sure: the probability of the right task.
    """
    task = torch.arange(PROMPTS) % 2
    columns = [torch.tensor([each, each] if isinstance(each, float) else list(each))[task] for each in margins]
    noise = 0.5 * torch.randn(PROMPTS, len(margins), generator=torch.Generator().manual_seed(1))
    routes = torch.full((PROMPTS, 2), 1 - sure).scatter(1, task[:, None], sure)
    ones = torch.ones(PROMPTS)
    rows = torch.arange(PROMPTS)
    return Held(torch.stack(columns, 1) + noise, ones, ones, rows, routes, task, ("a", "b"), 0.5, True)


def test_one_model_scores_where_no_mixture_is_better() -> None:
    """The task models are as good as the general one, and independent errors average out only in part."""
    general = held(0.3, 0.3, 0.3)
    alike = general._replace(margins=general.margins[:, 2:].expand(-1, 3))
    assert search({False: alike}, exact=True) == (False, Routing(pooled=["a", "b"]))
    assert search({False: alike}, exact=False) == (False, Routing()), "validation prompts are too few to tell"


def test_a_mixture_is_chosen_where_errors_average_out() -> None:
    soft, routing = search({False: held(0.5, 0.5, 0.0)}, exact=True)
    assert not soft
    assert routing.temperature >= 1
    assert routing.pooled == []


def test_a_gain_below_a_standard_error_changes_nothing() -> None:
    """The same rewards, but that a mixture corrects one pair of 200."""
    top = held((1.0, -1.0), (-1.0, 1.0), 0.0, sure=0.99)
    assert not top.better(*(top.losses(top.shares(each)) for each in (Routing(), Routing(temperature=0.5))))
    one = torch.zeros(PROMPTS)
    one[0] = 0.3
    assert not top.better(one, torch.zeros(PROMPTS))
    one[:60] = 0.3
    assert top.better(one, torch.zeros(PROMPTS))
    assert not top.better(torch.full((PROMPTS,), 1.0 + 1e-6), torch.ones(PROMPTS)), "rounding"


def test_soft_heads_are_chosen_where_they_are_better() -> None:
    hard, better, worse = (held((m, -m), (-m, m), 0.0, sure=0.9) for m in (0.6, 1.5, 0.3))
    assert search({False: hard, True: better}, exact=True)[0]
    assert search({False: hard, True: hard}, exact=True) == (True, Routing()), "the default where they are fitted"
    assert not search({False: hard, True: worse}, exact=True)[0]


def test_a_task_whose_heads_are_worse_is_pooled() -> None:
    """The second task's model is wrong on its own prompts, where the general model is right."""
    _, routing = search({False: held((1.5, -1.5), (-1.5, -1.5), (-0.5, 1.0), sure=0.99)}, exact=True)
    assert routing.pooled == ["b"]


# --- in a run ------------------------------------------------------------------------------------------------------


def test_where_the_router_is_sure_no_soft_heads_are_fitted(tiny_backbone: str, tmp_path: Path) -> None:
    run = trained(tiny_backbone, tmp_path, alike=False)
    metrics = run.metrics()["routing"]
    assert metrics["router/accuracy"] > 0.95
    assert metrics["soft"] == 0
    assert not any(name.startswith("confused/") for name in metrics)
    assert not (run.folder / "steps/soft").exists()


def test_where_kinds_cannot_be_told_apart_one_model_scores_and_says_so(tiny_backbone: str, tmp_path: Path) -> None:
    run = trained(tiny_backbone, tmp_path, alike=True)
    metrics = run.metrics()["routing"]
    assert run.model.routing == Routing(pooled=["chitchat", "objective_qa"])
    assert (run.folder / "steps/soft").exists(), "soft heads were tried"
    assert metrics["router/accuracy"] < 0.8
    assert metrics["router/ece"] < 0.2
    assert metrics["confused/chitchat/objective_qa"] > 0.2
    assert metrics["loss"] == metrics["loss/general"]
    first, *others = routing_notes(metrics, run.model.config.tasks)
    assert "of the prompts of chitchat and objective_qa for the other kind" in first
    assert [note[:22] for note in others] == ["These kinds are alike,"]
    pooled = routing_notes(metrics | {"pooled/chitchat": 1.0, "pooled/objective_qa": 0.0}, run.model.config.tasks)
    assert pooled[-1].startswith("The general model scores in place of chitchat:")
    (first, *_) = run.model.score("Is it?", PAIR)
    assert first.task is not None
    assert first.capabilities.keys() == set(run.model.config.tasks[first.task])
    for task in run.model.config.tasks:  # the soft heads leave no trace
        task_model = run.model.task_model(task)
        weights = run.stored(step_name("phase3", task))["aggregator.linear.weight"]
        assert torch.equal(task_model.aggregator.linear.weight, weights)
        head = run.stored(step_name("phase1", task))["head.score.weight"]
        assert torch.equal(task_model.base.head.score.weight, head)


def test_a_saved_and_a_resumed_model_keep_the_mixture(mixed_run: Any) -> None:
    assert mixed_run.metrics()["routing"]["soft"] == 1
    loaded = DMoERM.from_pretrained(mixed_run.folder / "model")
    assert loaded.routing == mixed_run.model.routing == MIXED.model_copy(update={"soft": True})
    for model in (loaded, train_quietly(mixed_run.config).model):
        assert_same(model.score("Is it?", PAIR), mixed_run.model.score("Is it?", PAIR), tolerance=1e-6)


def test_mixed_rewards_are_calibrated(mixed_run: Any) -> None:
    """Center and scale are those of held-out routed rewards, so that rewards of all prompts are nearly standard."""
    groups = [e.group for e in mixed_run.training.train]
    rewards = torch.tensor([s.reward for g in groups for s in mixed_run.model.score(g.prompt, g.responses)])
    assert abs(float(rewards.mean())) < 0.3
    assert 0.5 < float(rewards.std()) < 2


def test_soft_heads_share_out_the_prompts_by_probability(mixed_run: Any) -> None:
    training = mixed_run.training
    soft = dataclasses.replace(training, soft=True)
    tasks = mixed_run.model.router.tasks
    weights: dict[str, float] = {}
    for task in tasks:
        for example in soft.of(task)[0]:
            share = float(training.routes[example.prompt][tasks.index(task)])
            assert example.task == task
            assert [pair.weight for pair in example.pairs[None]] == pytest.approx([share] * len(example.pairs[None]))
            weights[example.key] = weights.get(example.key, 0.0) + share
    assert all(total == pytest.approx(1, abs=0.05) for total in weights.values())


def test_what_needs_heads_of_the_tasks_own_prompts_is_refused(mixed_run: Any, tmp_path: Path) -> None:
    folder = mixed_run.folder / "model"
    with pytest.raises(ConfigError, match="each task's heads were fitted to all prompts; train again"):
        change_capability(folder, "chitchat", "empathy", "remove", [], tmp_path / "changed")


def own_rewards(folder: Path, task: str) -> list[float]:
    """The rewards with the task given, which do not depend on the router."""
    return [score.reward for score in DMoERM.from_pretrained(folder).score("Is it?", PAIR, task)]


def test_a_task_joins_a_mixture_without_changing_the_others(mixed_run: Any, tmp_path: Path) -> None:
    """It is removed and added again, and merged from another model: each time it has its share of the reward."""
    model = mixed_run.folder / "model"
    before = own_rewards(model, "chitchat")
    for kept, gone in (("chitchat", "objective_qa"), ("objective_qa", "chitchat")):
        remove_tasks(DMoERM.from_pretrained(model), [gone], tmp_path / kept)
    assert own_rewards(tmp_path / "chitchat", "chitchat") == before
    new = [group for group in relabeled(alike=True) if group.task == "objective_qa"]
    data = [f"data.files=[{write_groups(new, tmp_path / 'new.jsonl')}]"]
    add_task(tmp_path / "chitchat", "objective_qa", data, tmp_path / "added")
    other = DMoERM.from_pretrained(tmp_path / "objective_qa")
    merge_models(DMoERM.from_pretrained(tmp_path / "chitchat"), [("b", other)], tmp_path / "merged", "a")
    for name in ("added", "merged"):
        grown = DMoERM.from_pretrained(tmp_path / name)
        assert own_rewards(tmp_path / name, "chitchat") == before
        assert grown.routing == MIXED.model_copy(update={"soft": True})
        (choice,) = grown.choose(torch.tensor([[0.5, 0.5]]))
        assert choice.shares == pytest.approx({"chitchat": 0.375, "objective_qa": 0.375, None: 0.25})
        assert all(math.isfinite(score.reward) for score in grown.score("Is it?", PAIR))
    assert own_rewards(tmp_path / "merged", "objective_qa") == own_rewards(model, "objective_qa")


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_not_held_out_chooses_on_validation_prompts(tiny_backbone: str, tmp_path: Path, exact: bool) -> None:
    """Trained branches, and a trained aggregator on exact heads: nothing is to be learned from training prompts."""
    aggregator = {"fit": "trained", "inputs": "both", "base_scores": ["per_task", "general"], "hidden": 8, "epochs": 1}
    if exact:
        run = train_quietly(make_exact_config(tiny_backbone, tmp_path, phase3=aggregator))
    else:
        run = train_quietly(make_tiny_config(tiny_backbone, tmp_path))
    metrics = run.metrics()["routing"]
    assert metrics["soft"] == 0
    assert metrics["prompts"] == len({e.prompt for e in run.training.validation if e.pairs.get(None)})
