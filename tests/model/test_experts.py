"""Stacked experts equal the same experts run separately, and start as their branch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmoerm.chat.encoding import Encoded
from dmoerm.config import BackboneConfig, LoRAConfig
from dmoerm.errors import BackboneError
from dmoerm.model.backbone import branch_without_weights
from dmoerm.model.experts import Experts, StackedLoRALinear, check_targets, lora_layers, lora_targets, with_experts
from dmoerm.model.packing import Packed, pack_ids

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
each_targets = pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ALL_LINEAR])


def inputs(model: Any) -> Packed:
    queries = [Encoded([1, 4, 5, 9, 3], [[6, 2], [7, 8, 11, 2]]), Encoded([1, 12], [[13, 14, 2]])]
    return model.hidden(pack_ids(queries))


def random_experts(branch: Any, count: int, targets: tuple[str, ...], **lora: Any) -> Experts:
    names = [f"c{i}" for i in range(count)]
    experts = Experts(branch, names, 64, LoRAConfig(rank=2, targets=targets, **lora), "both").eval()
    for layer in lora_layers(experts).values():
        nn.init.normal_(layer.lora_B, std=0.5)
    return experts


@each_targets
@torch.no_grad()
def test_a_new_expert_equals_its_branch(tiny_model: Callable[..., Any], targets: tuple[str, ...]) -> None:
    model = tiny_model()
    hidden, base = inputs(model), model.general.embed(inputs(model))
    experts = random_experts(model.general.branch, 2, targets)
    for layer in lora_layers(experts).values():
        nn.init.zeros_(layer.lora_B)
        layer.lora_B[1].normal_()
    z = experts.embed(hidden, base)
    torch.testing.assert_close(z[0], base, atol=1e-5, rtol=1e-5)
    assert (z[1] - base).abs().max() > 1e-2


def test_a_lora_linear_by_hand() -> None:
    layer = StackedLoRALinear(nn.Linear(3, 2), 2, LoRAConfig(rank=1, alpha=4.0, dropout=0.0))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 5, 3)

    def expert(i: int, rows: Tensor) -> Tensor:
        weight = layer.base.weight + 4 * layer.lora_B[i] @ layer.lora_A[i]
        return rows @ weight.T + layer.base.bias

    torch.testing.assert_close(layer(x), torch.cat([expert(0, x[:2]), expert(1, x[2:])]))


def test_gradients_reach_only_lora_and_heads(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    hidden = inputs(model)
    experts = random_experts(model.general.branch, 2, ALL_LINEAR)
    experts.score(experts.embed(hidden, model.general.embed(hidden))).sum().backward()
    reached = {name for name, p in experts.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {name for name, _ in experts.named_parameters() if "lora_" in name or name.startswith("heads")}


def test_experts_share_the_branchs_weights(tiny_model: Callable[..., Any]) -> None:
    branch = tiny_model().general.branch
    before = copy.deepcopy(branch.state_dict())
    with_lora = with_experts(branch, 2, LoRAConfig(rank=2))
    pointers = {p.data_ptr() for p in branch.parameters()}
    added = {n for n, p in with_lora.named_parameters() if p.data_ptr() not in pointers}
    assert added
    assert all("lora_" in name for name in added)
    assert not lora_layers(branch)
    assert all(torch.equal(before[name], tensor) for name, tensor in branch.state_dict().items())


def test_a_task_without_capabilities_has_no_experts(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    experts = Experts(model.general.branch, [], 64, LoRAConfig(rank=2), "both")
    assert experts.score(experts.embed(inputs(model), torch.randn(3, 64))).shape == (3, 0)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj", "gate"), r"is called gate \(got \['q_proj', 'gate'\]\); did you mean gate_proj\?; its linear"),
        (("self_attn.q_proj",), "is called self_attn.q_proj .*; its linear layers are down_proj, gate_proj, "),
    ],
)
def test_each_target_is_the_name_of_a_layer(
    tiny_model: Callable[..., Any], targets: tuple[str, ...], message: str
) -> None:
    branch = tiny_model().general.branch
    check_targets(branch, LoRAConfig(targets=("q_proj", "gate_proj")), "phase2.lora.targets")
    with pytest.raises(BackboneError, match=f"^phase2.lora.targets: no linear layer of the branch {message}"):
        check_targets(branch, LoRAConfig(targets=targets), "phase2.lora.targets")


def test_default_targets_and_those_of_a_family_are_not_checked(backbones: Callable[[str], str]) -> None:
    for kind in ("llama", "phi3", "modernbert"):
        branch = branch_without_weights(BackboneConfig(path=backbones(kind)))
        check_targets(branch, LoRAConfig(), "phase2.lora.targets")
        assert lora_targets(branch, LoRAConfig())
    check_targets(nn.ModuleDict({"v_proj": nn.Linear(2, 2)}), LoRAConfig(), "phase2.lora.targets")
    without = branch_without_weights(BackboneConfig(path=backbones("gpt2")))  # its projections are `Conv1D`
    with pytest.raises(BackboneError, match=r"is called q_proj .*; it has none; train heads alone"):
        check_targets(without, LoRAConfig(), "phase2.lora.targets")


def test_attaching_keeps_evaluation_mode(tiny_model: Callable[..., Any]) -> None:
    """New LoRA layers must not enable dropout in evaluation mode."""
    model = tiny_model()
    experts = random_experts(model.general.branch, 2, ALL_LINEAR, dropout=0.5).eval()
    experts.attach(model.general.branch)
    assert not any(module.training for module in experts.modules())
