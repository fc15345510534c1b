import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from dmoerm.data.splits import load_splits
from dmoerm.errors import DataError
from dmoerm.evaluation import evaluate
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.report import report_html
from dmoerm.schema import Group
from dmoerm.training import open_cache

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def groups(trained_run: Any) -> list[Group]:
    """The tiny run's held-out groups."""
    return load_splits(trained_run.config).test


def test_everything_is_measured(trained_run: Any, groups: list[Group]) -> None:
    results = evaluate(trained_run.model, groups, trained_run.config, steps=trained_run.metrics(), console=QUIET)
    assert results.tasks == ["chitchat", "objective_qa"]
    assert list(results.accuracy) == ["general", "per_task_routed", "per_task", "dmoerm"]
    assert set(results.capabilities["chitchat"]) == {"empathy", "proactivity"}
    assert set(results.time) == {"router", "phase0", "phase1", "phase2", "phase3", "routing"}
    assert (results.derived_tasks, results.gold_tasks) == ((), ())
    assert results.peak_memory
    report_html(results)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_printed_where_no_bar_can_be_seen(
    trained_run: Any, groups: list[Group], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("dmoerm.training.steps._SECONDS_BETWEEN_LINES", -1)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=200)
    score_groups(trained_run.model, groups, batch_tokens=300, console=console)
    tokens = sum(trained_run.model.encoder.encode(group).tokens for group in groups)
    shown = re.findall(rf"evaluation +(\d+)/{tokens}\b", screen.getvalue())
    assert (len(shown) > 1) is not terminal
    assert terminal or int(shown[-1]) == tokens


def test_dmoerm_is_scored_as_a_user_would_score(tiny_model: Callable[..., Any], groups: list[Group]) -> None:
    model = tiny_model()
    for one in score_groups(model, groups, console=QUIET):
        scores = model.score(one.group.prompt, list(one.group.responses))
        assert one.chosen == scores[0].task
        assert one.temperature == scores[0].temperature
        assert one.rewards["dmoerm"] == pytest.approx([score.reward for score in scores], abs=1e-4)


@pytest.mark.parametrize("base", ["full", "frozen"])
def test_the_own_task_is_used_by_per_task_and_experts_alone(
    tiny_model: Callable[..., Any], groups: list[Group], base: str
) -> None:
    model = tiny_model(base=base)
    swapped = {"chitchat": "objective_qa", "objective_qa": "chitchat"}
    others = [group.model_copy(update={"task": swapped[group.task or ""]}) for group in groups]
    free = [group.model_copy(update={"task": None}) for group in groups]
    given = {"given_task": lambda batch: batch.by_task(batch.tasks, "reward")[None]}
    found = [
        score_groups(model, part, batch_tokens=300, console=QUIET, scorers=given) for part in (groups, others, free)
    ]
    for one, other, without in zip(*found, strict=True):
        assert one.rewards["dmoerm"] == pytest.approx(other.rewards["dmoerm"], abs=1e-4)
        assert one.rewards["dmoerm"] == pytest.approx(without.rewards["dmoerm"], abs=1e-4)
        assert one.rewards["general"] == pytest.approx(other.rewards["general"], abs=1e-4)
        assert list(other.capabilities) == model.config.tasks[other.task]
        assert without.task == without.likeliest
        forced = model.score(one.group.prompt, list(one.group.responses), task=other.task)
        assert other.members["given_task"][0] == pytest.approx([score.reward for score in forced], abs=1e-4)
        expected = {name: [score.capabilities[name] for score in forced] for name in other.capabilities}
        for name, values in expected.items():
            assert other.capabilities[name] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"base": "frozen"}, marks=pytest.mark.slow),
        pytest.param({"router": {"kind": "own"}}, marks=pytest.mark.slow),
        {"backbone": {"branch_layer": 0}, "router": {"kind": "own"}},
    ],
)
def test_a_cache_changes_no_score(
    tiny_config: Callable[..., Any],
    tiny_model: Callable[..., Any],
    groups: list[Group],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(**changes)
    config = tiny_config(**changes)
    expected = score_groups(model, groups, console=QUIET)
    for attempt in range(2):
        cache = open_cache(config, model)
        if attempt:
            monkeypatch.setattr(cache, "_compute", None)  # all there already
        for one, other in zip(expected, score_groups(model, groups, console=QUIET, cache=cache), strict=True):
            assert (one.chosen, one.task) == (other.chosen, other.task)
            for method, rewards in one.rewards.items():
                assert other.rewards[method] == pytest.approx(rewards, abs=1e-4)


def test_groups_that_cannot_be_measured(trained_run: Any, groups: list[Group]) -> None:
    tied = [group.model_copy(update={"scores": (1.0,) * len(group.responses)}) for group in groups]
    with pytest.raises(DataError, match="no two responses are ordered"):
        evaluate(trained_run.model, tied, console=QUIET)
    with pytest.raises(DataError, match="no such task"):
        evaluate(trained_run.model, [groups[0].model_copy(update={"task": "strange"})], console=QUIET)
