"""`umm_rm`: MLPs become mixtures of experts, are trained, and are merged into single MLPs again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import make_tiny_config
from torch import Tensor, nn

from dmoerm.evaluation.methods import MethodContext, fresh_scorer, registered
from dmoerm.model.heads import BranchScorer
from dmoerm.training.embedding import base_embeddings
from evidence.methods import umm_rm as model
from evidence.methods.umm_rm import UpcycledMLP, mean_gates, merge, train_method, upcycled

pytestmark = pytest.mark.slow  # they train branches


class Double(nn.Module):
    """An MLP stand-in: multiplies by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight = nn.Parameter(factor * torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def mixture(active: int) -> UpcycledMLP:
    """Experts that multiply by 10 and 100, a shared one that keeps its input, and a known router."""
    mlp = UpcycledMLP(Double(1), 2, 2, active)
    mlp.routed = nn.ModuleList([Double(10), Double(100)])
    mlp.router.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    return mlp


def test_a_token_passes_through_the_shared_and_its_likeliest_experts() -> None:
    x = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    p, q = torch.tensor(2.0).sigmoid(), torch.tensor(1.0).sigmoid()  # the likelier expert's probability
    top = mixture(1)(x)
    torch.testing.assert_close(top, x * torch.stack([1 - p + 10 * p, 1 - q + 100 * q])[:, None])
    both = mixture(2)(x)
    torch.testing.assert_close(both, x * torch.stack([10 * p + 100 * (1 - p), 100 * q + 10 * (1 - q)])[:, None])
    mlp = mixture(1)
    mlp(x[:, :1]).sum().backward()
    grads = [expert.linear.weight.grad for expert in mlp.routed]
    assert grads[0] is not None
    assert grads[1] is None, "an expert without a token does not run"
    assert mlp.router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("active", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_upcycled_branch_starts_near_the_pretrained_one(tuned: MethodContext, active: int) -> None:
    """Only the noise, by which all experts differ, separates them."""
    run, scorer = tuned.run, fresh_scorer(tuned.run, model.STEP)
    branch = upcycled(scorer.branch, 3, experts=3, active=active)
    mlp = branch.layers[0].mlp
    weights = [expert.gate_proj.weight.float() for expert in (mlp.shared, *mlp.routed)]
    assert len(weights) == 4
    assert all(0 < (weights[i] - weights[j]).std() < 0.03 * weights[0].std() for i in range(4) for j in range(i))
    some = tuned.train[:4]
    plain = base_embeddings(run, scorer, some)
    mixed = base_embeddings(run, BranchScorer(branch, scorer.head, scorer.pooling), some)
    for key, z in plain.items():
        assert 0 < (mixed[key] - z).norm() < 0.05 * z.norm()


def test_experts_are_merged_by_their_mean_gates(tuned: MethodContext) -> None:
    start = fresh_scorer(tuned.run, model.STEP)
    branch = upcycled(start.branch, 5, experts=3)
    logits: list[list[Tensor]] = [[] for _ in branch.layers]
    for layer, kept in zip(branch.layers, logits, strict=True):
        layer.mlp.router.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
    gates = mean_gates(tuned.run, BranchScorer(branch, start.head, start.pooling), tuned.train[:6])
    for gate, kept in zip(gates, logits, strict=True):
        rows = torch.cat(kept).softmax(-1)
        torch.testing.assert_close(gate, (rows * (rows == rows.amax(-1, keepdim=True))).mean(0))
        assert 0 < float(gate.sum()) < 1
    experts = [[mlp.shared, *mlp.routed] for mlp in (layer.mlp for layer in branch.layers)]
    merge(branch, gates)
    for layer, parts, gate in zip(branch.layers, experts, gates, strict=True):
        weights = [1 - float(gate.sum()), *gate.tolist()]
        mean = sum(w * part.down_proj.weight.float() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(layer.mlp.down_proj.weight, mean)
    assert branch.state_dict().keys() == start.branch.state_dict().keys()


def test_the_merged_model_is_one_dense_model_in_float32(tuned: MethodContext, members: Any) -> None:
    method = train_method(tuned)
    run, general = tuned.run, tuned.run.model.general
    state = run.step(model.STEP, lambda _: pytest.fail("trained again"))
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in general.state_dict().items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    pretrained = fresh_scorer(run, model.STEP).state_dict()
    moved = [name for name, tensor in state.items() if not torch.equal(tensor, pretrained[name].float())]
    assert any("mlp" in name for name in moved)
    assert any("self_attn" in name for name in moved)
    group = tuned.data.test[0]
    first, again = (members(tuned, each, group)[0].tolist() for each in (method, train_method(tuned)))
    assert first == again, "trained, and read"
    assert first != members(tuned, registered()["general"].train(tuned), group)[0].tolist()


@pytest.mark.slow
def test_a_lora_trains_experts_and_routers(trained, tiny_backbone, tmp_path, monkeypatch) -> None:
    """The recipe's LoRA is on the attention only; the method's is on the MLPs and the routers too."""
    changes = {"base": "lora", "base_lora": {"rank": 2, "dropout": 0.1}, "phase0": {"learning_rate": 1e-2}}
    tuned = trained(make_tiny_config(tiny_backbone, tmp_path, **changes))
    before: dict[str, Tensor] = {}

    def keep_and_merge(branch: nn.Module, gates: list[Tensor]) -> None:
        before.update(branch.state_dict())
        merge(branch, gates)

    monkeypatch.setattr(model, "merge", keep_and_merge)
    assert train_method(tuned) is not None
    run = tuned.run
    start = upcycled(fresh_scorer(run, model.STEP).branch, run.seed(model.STEP)).state_dict()
    assert before.keys() == start.keys()
    changed = {name for name, tensor in start.items() if not torch.equal(before[name], tensor)}
    parts = ("self_attn.q_proj", "mlp.router", "mlp.shared.down_proj", "mlp.routed.0.up_proj")
    for part in parts:
        assert any(part in name for name in changed), part
    assert not any("k_proj" in name or "norm" in name for name in changed)
    state = run.step(model.STEP, lambda _: pytest.fail("trained again"))
    assert state.keys() == run.model.general.state_dict().keys()


def test_it_needs_trained_branches_with_dense_mlps(exact: MethodContext, tuned: MethodContext) -> None:
    assert train_method(exact) is None, "the branch is frozen"
    branch = fresh_scorer(tuned.run, model.STEP).branch
    assert model.has_dense_mlps(branch)
    branch.layers[0].mlp.stacked = nn.Parameter(torch.zeros(2, 3, 3))
    assert not model.has_dense_mlps(branch)
    del branch.layers[1].mlp
    assert not model.has_dense_mlps(branch)
