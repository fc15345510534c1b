"""The graph holds each step once, after what it needs; each can be done in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import make_exact_config, tiny_groups

from dmoerm.config import Config
from dmoerm.taxonomy import draft_taxonomy
from dmoerm.training.run import graph, path_to

TASKS = ("chitchat", "objective_qa")


def steps(config: Config) -> Any:
    return graph(config, draft_taxonomy(tiny_groups(), "drafted"))


@pytest.mark.parametrize("warm", [False, True])
def test_a_step_stands_after_what_it_needs(tiny_config: Callable[..., Config], warm: bool) -> None:
    found = steps(tiny_config(warm_start=warm))
    names = [step.name for step in found]
    assert names[:2] == ["router", "phase0"]
    assert names[-1] == "routing"
    assert set(names[2:-1]) == {f"{phase}/{task}" for phase in ("phase1", "phase2", "phase3") for task in TASKS}
    for place, step in enumerate(found):
        assert set(step.needs) <= set(names[:place])


def test_a_path_holds_what_is_needed_and_no_more(tiny_config: Callable[..., Config]) -> None:
    cold, warm = steps(tiny_config()), steps(tiny_config(warm_start=True))
    assert [s.name for s in path_to("phase2/chitchat", cold)] == ["router", "phase1/chitchat", "phase2/chitchat"]
    assert "phase0" in [s.name for s in path_to("phase2/chitchat", warm)]
    whole = ["router", "phase0", *(f"{phase}/objective_qa" for phase in ("phase1", "phase2", "phase3"))]
    assert [s.name for s in path_to("phase3/objective_qa", cold)] == whole


def test_exact_heads_of_a_task_need_the_general_ones(tiny_backbone: str, tmp_path: Path) -> None:
    """Their penalty may pull toward the general model's weights."""
    found = steps(make_exact_config(tiny_backbone, tmp_path))
    assert "phase0" in [step.name for step in path_to("phase1/chitchat", found)]


def test_a_task_without_capabilities_has_no_phase_2(tiny_config: Callable[..., Config]) -> None:
    bare = [group.model_copy(update={"capabilities": {}}) for group in tiny_groups()]
    found = graph(tiny_config(), draft_taxonomy(bare, "drafted"))
    assert not [step.name for step in found if step.name.startswith("phase2")]
    assert "phase1/chitchat" in next(step for step in found if step.name == "phase3/chitchat").needs
