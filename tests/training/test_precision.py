"""On a bfloat16 backbone: what was selected on validation is what is saved, and what scores after loading."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import in_short
from tiny import make_tiny_config, tiny_groups, train_quietly, write_groups
from torch import Tensor, nn

from dmoerm.model import DMoERM
from dmoerm.model.experts import StackedLoRALinear, lora_layers
from dmoerm.training import phases, router

TASK = "chitchat"
# Most changes are smaller than bfloat16's steps.
SLOW = {"epochs": 1, "learning_rate": 2e-4, "evaluations": 1}
HEAD = {"head_first": True}
END = {"metric_for_best_model": "end"}
FINETUNE: dict[str, Any] = {"training": END, "phase0": SLOW | HEAD, "phase1": SLOW | HEAD, "phase2": SLOW | HEAD}
RECIPES: dict[str, dict[str, Any]] = {
    "finetune": FINETUNE,
    "warm": {**FINETUNE, "warm_start": True},
    "lora": {**FINETUNE, "base": "lora", "base_lora": {"rank": 2, "alpha": 2}},
    "paper": {
        "training": END,
        "backbone": {"branch_layer": 0},
        "encoding": {"pooling": "last"},
        "router": {"kind": "own", **SLOW},
        "phase0": SLOW,
        "phase1": SLOW,
        "phase2": SLOW,
        "phase3": {"inputs": "embeddings"},
    },
}


class Selected:
    """Copies of the modules as each step's `fit` leaves them: the checkpoints that validation chose."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: dict[str, nn.Module] = {}
        for module in (phases, router):
            monkeypatch.setattr(module, "fit", self._watched(module.fit))

    def _watched(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = fit(*args, **kwargs)
            (module,) = (each for each in args if isinstance(each, nn.Module))
            (folder,) = (each for each in (*args, *kwargs.values()) if isinstance(each, Path))
            self.steps[str(folder).rpartition("checkpoints/")[2]] = copy.deepcopy(module)
            return result

        return watched


@pytest.fixture(params=in_short(RECIPES, "lora", "finetune"), scope="module")
def trained(request: Any, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on a bfloat16 backbone, what each step selected, and the model that the run saved."""
    folder = tmp_path_factory.mktemp(request.param)
    changes = {**RECIPES[request.param], "data": {"groups_per_task": 10}}
    if request.param != "paper":  # whose router is compared, and learns nothing from one task
        groups = [group for group in tiny_groups() if group.task == TASK]
        changes["data"] |= {"files": [write_groups(groups, folder / "one_task.jsonl")]}
    changes["backbone"] = {"dtype": "bfloat16", **changes.get("backbone", {})}
    config = make_tiny_config(tiny_backbone, folder, **changes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        selected = Selected(monkeypatch)
        run = train_quietly(config)
    return run, selected.steps, DMoERM.from_pretrained(run.folder / "model")


def merged_weight(layer: StackedLoRALinear) -> Tensor:
    return layer.base.weight.float() + layer.scaling * layer.lora_B[0] @ layer.lora_A[0]


def assert_same(found: nn.Module, selected: nn.Module) -> None:
    """Every parameter that was trained is the same, bit for bit."""
    state = found.state_dict()
    merged = {f"{name}.weight": merged_weight(layer) for name, layer in lora_layers(selected).items()}
    trained = {name: p for name, p in selected.named_parameters() if p.requires_grad and "lora_" not in name}
    assert trained or merged
    for name, tensor in {**trained, **merged}.items():
        assert state[name].dtype is torch.float32, name
        assert torch.equal(state[name], tensor), name


def test_what_was_selected_is_what_is_saved(trained: Any) -> None:
    _, selected, loaded = trained
    base = loaded.task_model(TASK).base
    assert_same(loaded.general, selected["phase0/branch"].scorer)
    assert_same(base, selected[f"phase1/{TASK}/branch"].scorer)
    chosen = selected[f"phase2/{TASK}/lora"].scorer
    for name, layer in lora_layers(loaded.task_model(TASK).experts.branch).items():
        assert torch.equal(layer.lora_A, lora_layers(chosen.branch)[name].lora_A)
        assert torch.equal(layer.lora_B, lora_layers(chosen.branch)[name].lora_B)
    if loaded.router.language_model is not None:
        assert_same(loaded.router, selected["router"].router)
