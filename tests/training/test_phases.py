"""Each phase trains what it says, and leaves everything else bit for bit as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmoerm.model import DMoERM
from dmoerm.model.experts import Experts, lora_layers
from dmoerm.schema import prompt_key
from dmoerm.training.examples import labeled
from dmoerm.training.phases import first_part, phase0, phase1, phase2, phase3, second_part

TASK = "chitchat"


def snapshot(model: DMoERM) -> dict[str, torch.Tensor]:
    """All weights but those of experts that phase 2 has yet to make."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not tensor.is_meta}


def changed(model: DMoERM, before: dict[str, torch.Tensor]) -> set[str]:
    after = snapshot(model)
    return {name for name in after if name not in before or not torch.equal(after[name], before[name])}


def trained(begun: Any, *phases: Any) -> list[set[str]]:
    """What each phase changes."""
    found = []
    for phase in phases:
        before = snapshot(begun.run.model)
        if phase is phase0:
            phase(begun)
        else:
            phase(begun, TASK)
        found.append(changed(begun.run.model, before))
    return found


@pytest.mark.parametrize(
    ("base", "rank"),
    [("full", 2), ("frozen", 0), *(pytest.param(*form, marks=pytest.mark.slow) for form in (("full", 0), ("lora", 2)))],
)
def test_each_phase_changes_its_own_part_alone(begun: Callable[..., Any], base: str, rank: int) -> None:
    start = begun(base=base, phase2={"learning_rate": 1e-2} if rank else {"fit": "exact"})
    general, one, two, three = trained(start, phase0, phase1, phase2, phase3)
    task_model = f"tasks.task:{TASK}."
    assert all(name.startswith(("general.", "general_calibration.", "general_posterior.")) for name in general)
    assert all(name.startswith((task_model + "base.", task_model + "experts.branch")) for name in one)
    if base == "frozen":
        assert not any(".branch." in name for name in general | one)
    allowed = [task_model + "experts.heads."] + [task_model + "experts.branch."] * bool(rank)
    assert two
    assert all(name.startswith(tuple(allowed)) for name in two)
    if rank:  # new experts share the branch's own weights, which are as phase 1 left them
        inner_model = start.run.model.task_model(TASK)
        shared = {p.data_ptr() for p in inner_model.base.branch.parameters()}
        assert {n for n, p in inner_model.experts.branch.named_parameters() if p.data_ptr() not in shared} == {
            n for n, _ in inner_model.experts.branch.named_parameters() if "lora_" in n
        }
    parts = ("aggregator.", "calibration.", "normalizer.", "posterior.")
    assert all(name.startswith(tuple(task_model + part for part in parts)) for name in three)
    assert any(name.startswith(task_model + "aggregator.") for name in three)
    assert not any(p.requires_grad for p in start.run.model.parameters())
    assert not any(module.training for module in start.run.model.task_model(TASK).modules())


@pytest.mark.parametrize("base", ["full", "lora"])
def test_a_trained_base_moves_its_branch(begun: Callable[..., Any], base: str) -> None:
    (general,) = trained(
        begun(base=base, phase0={"learning_rate": 1e-2}, training={"metric_for_best_model": "accuracy"}), phase0
    )
    moved = {name.rpartition(".layers.")[2].split(".", 1)[-1] for name in general if ".layers." in name}
    if base == "lora":
        assert moved <= {"self_attn.q_proj.weight", "self_attn.v_proj.weight"}
    assert "general.head.normalizer.mean" in general


@pytest.mark.parametrize("warm", [True, False])
def test_a_warm_start_begins_from_the_general_model(begun: Callable[..., Any], warm: bool) -> None:
    start = begun(warm_start=warm, phase1={"epochs": 0}, phase0={"learning_rate": 1e-2})
    phase0(replace(start, validation=start.train))
    phase1(start, TASK)
    task, general = start.run.model.task_model(TASK).base.state_dict(), start.run.model.general.state_dict()
    assert all(torch.equal(task[name], general[name]) for name in general) == warm


@pytest.mark.parametrize("fraction", [0.0, 0.6, 0.3])
def test_phases_1_and_3_divide_the_prompts(begun: Callable[..., Any], fraction: float) -> None:
    start = begun(phase1={"phase1_fraction": fraction})
    train = start.of(TASK)[0]
    first, second = first_part(start.run, train), second_part(start.run, train)
    if fraction == 0:
        assert list(first) == list(second) == train
        return
    assert len(first) + len(second) == len(train)
    assert len(first) / len(train) == pytest.approx(fraction, abs=0.5 / len(train) + 1e-9)
    assert not {prompt_key(e.group.prompt) for e in first} & {prompt_key(e.group.prompt) for e in second}


@pytest.mark.parametrize("which", range(6))
def test_both_parts_have_an_overall_label_if_there_is_one(begun: Callable[..., Any], which: int) -> None:
    start = begun()
    examples = start.train[:6]
    examples = [e if i == which else e.with_pairs({}) for i, e in enumerate(examples)]
    assert all(labeled(part(start.run, examples)) for part in (first_part, second_part))


TASK = "chitchat"


@pytest.mark.parametrize("head_first", [pytest.param(False, marks=pytest.mark.slow), True])
def test_experts_trained_together_are_those_trained_alone(
    begun: Callable[..., Any], tmp_path: Path, head_first: bool
) -> None:
    """Each on its own labels, with early stopping at its own time; nothing random inside the layers."""
    step = {"learning_rate": 3e-2, "epochs": 6, "evaluations": 6, "patience": 1}
    settings = {
        "phase2": {**step, "lora": {"rank": 2, "dropout": 0.0}, "head_first": head_first},
        "training": {"batch_groups": 2},
    }
    together = begun(**settings)
    trained(together, phase1, phase2)
    for i, capability in enumerate(together.run.model.task_model(TASK).experts.capabilities):
        alone = begun(**settings, output=str(tmp_path / capability))
        config, task_model = alone.run.config, alone.run.model.task_model(TASK)
        base, width = task_model.base, alone.run.model.config.width
        task_model.experts = Experts(base.branch, [capability], width, config.phase2.lora, base.pooling)
        trained(alone, phase1, phase2)
        joint, own = (start.run.model.task_model(TASK).experts for start in (together, alone))
        torch.testing.assert_close(joint.heads[i].state_dict(), own.heads[0].state_dict(), atol=1e-5, rtol=1e-3)
        for one, other in zip(lora_layers(joint).values(), lora_layers(own).values(), strict=True):
            torch.testing.assert_close(one.lora_A[i], other.lora_A[0], atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(one.lora_B[i], other.lora_B[0], atol=1e-5, rtol=1e-3)
        kept = [start.run.metrics()[f"phase2/{TASK}"][f"loss/{capability}"] for start in (together, alone)]
        assert kept[0] == pytest.approx(kept[1], rel=1e-4)
