"""`umm_rm`: MLPs become mixtures of experts, are trained, and are merged into single MLPs again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import make_tiny_config, train_quietly
from torch import Tensor, nn

from dmoerm.data.splits import load_splits
from dmoerm.evaluation.methods import MethodContext, fresh_scorer
from dmoerm.evaluation.scored_groups import score_groups
from dmoerm.model.heads import BranchScorer
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.examples import examples_of
from evidence.methods import umm_rm as model
from evidence.methods.umm_rm import UpcycledMLP, mean_gates, merge, train_method, upcycled


def make_context(backbone: str, folder: Path, /, **changes: Any) -> MethodContext:
    run = train_quietly(make_tiny_config(backbone, folder, **changes))
    data = load_splits(run.config)
    examples = examples_of(run, data.train)
    return MethodContext(run, data, examples, examples[:4], 2, Console(quiet=True))


@pytest.fixture(scope="module")
def context(tiny_backbone, tmp_path_factory) -> MethodContext:
    """Fully trained branches on a bfloat16 backbone."""
    folder = tmp_path_factory.mktemp("umm_rm")
    return make_context(tiny_backbone, folder, backbone={"dtype": "bfloat16"})


class Double(nn.Module):
    """An MLP stand-in: multiplies by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight = nn.Parameter(factor * torch.eye(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def mixture(active: int) -> UpcycledMLP:
    """Experts that multiply by 10 and 100 beside a shared one that keeps its input, and a known router."""
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


def test_an_expert_without_a_token_does_not_run_and_the_router_learns() -> None:
    mlp = mixture(1)
    mlp(torch.tensor([[[2.0, 0.0]]])).sum().backward()
    used, unused = mlp.routed
    assert used.linear.weight.grad is not None
    assert unused.linear.weight.grad is None
    assert mlp.router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("active", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_upcycled_branch_starts_near_the_pretrained_one(context: MethodContext, active: int) -> None:
    """Only the noise, by which all experts differ, separates them."""
    run, scorer = context.run, fresh_scorer(context.run, model.STEP)
    branch = upcycled(scorer.branch, 3, experts=3, active=active)
    mlp = branch.layers[0].mlp
    weights = [expert.gate_proj.weight.float() for expert in (mlp.shared, *mlp.routed)]
    assert len(weights) == 4
    assert all(0 < (weights[i] - weights[j]).std() < 0.03 * weights[0].std() for i in range(4) for j in range(i))
    some = context.train[:4]
    plain = base_embeddings(run, scorer, some)
    mixed = base_embeddings(run, BranchScorer(branch, scorer.head, scorer.pooling), some)
    for key, z in plain.items():
        assert 0 < (mixed[key] - z).norm() < 0.05 * z.norm()
    x = torch.randn(1, 7, branch.config.hidden_size)
    for layer in branch.float().layers:
        for expert in layer.mlp.routed:
            expert.load_state_dict(layer.mlp.shared.state_dict())
        torch.testing.assert_close(layer.mlp(x), layer.mlp.shared(x))


def test_experts_are_merged_by_their_mean_gates(context: MethodContext) -> None:
    run, start = context.run, fresh_scorer(context.run, model.STEP)
    branch = upcycled(start.branch, 5, experts=3)
    scorer = BranchScorer(branch, start.head, start.pooling)
    logits: list[list[Tensor]] = [[] for _ in branch.layers]
    hooks = [
        layer.mlp.router.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        for layer, kept in zip(branch.layers, logits, strict=True)
    ]
    some = context.train[:6]
    base_embeddings(run, scorer, some)
    for hook in hooks:
        hook.remove()
    expected = []
    for kept in logits:
        rows = torch.cat(kept).softmax(-1)
        expected.append((rows * (rows == rows.amax(-1, keepdim=True))).mean(0))
    gates = mean_gates(run, scorer, some)
    torch.testing.assert_close(gates, expected)
    assert all(0 < float(gate.sum()) < 1 for gate in gates)
    experts = [[mlp.shared, *mlp.routed] for mlp in (layer.mlp for layer in branch.layers)]
    merge(branch, gates)
    for layer, parts, gate in zip(branch.layers, experts, gates, strict=True):
        weights = [1 - float(gate.sum()), *gate.tolist()]
        mean = sum(w * part.down_proj.weight.float() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(layer.mlp.down_proj.weight, mean)
    assert branch.state_dict().keys() == start.branch.state_dict().keys()


def test_the_merged_model_is_one_dense_model_in_float32(context: MethodContext) -> None:
    trained = train_method(context)
    run, general = context.run, context.run.model.general
    state = run.step(model.STEP, lambda _: pytest.fail("trained again"))
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in general.state_dict().items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    pretrained = fresh_scorer(run, model.STEP).state_dict()
    moved = [name for name, tensor in state.items() if not torch.equal(tensor, pretrained[name].float())]
    assert any("mlp" in name for name in moved)
    assert any("self_attn" in name for name in moved)
    scored = [
        score_groups(run.model, context.data.test, console=Console(quiet=True), scorers={"umm": method.score})
        for method in (trained, train_method(context))  # trained, and read
    ]
    for group, again in zip(*scored, strict=True):
        assert torch.isfinite(torch.tensor(group.members["umm"])).all()
        assert group.members["umm"].tolist() == again.members["umm"].tolist()
        assert group.members["umm"][0].tolist() != group.rewards["general"].tolist()


@pytest.mark.slow
def test_a_lora_trains_experts_and_routers(tiny_backbone, tmp_path, monkeypatch) -> None:
    """The recipe's LoRA is on the attention only; the method's is on the MLPs and the routers too."""
    changes = {"base": "lora", "base_lora": {"rank": 2, "dropout": 0.1}, "phase0": {"learning_rate": 1e-2}}
    context = make_context(tiny_backbone, tmp_path, **changes)
    before: dict[str, Tensor] = {}

    def keep_and_merge(branch: nn.Module, gates: list[Tensor]) -> None:
        before.update(branch.state_dict())
        merge(branch, gates)

    monkeypatch.setattr(model, "merge", keep_and_merge)
    assert train_method(context) is not None
    run = context.run
    start = upcycled(fresh_scorer(run, model.STEP).branch, run.seed(model.STEP)).state_dict()
    assert before.keys() == start.keys()
    changed = {name for name, tensor in start.items() if not torch.equal(before[name], tensor)}
    parts = ("self_attn.q_proj", "mlp.router", "mlp.shared.down_proj", "mlp.routed.0.up_proj")
    for part in parts:
        assert any(part in name for name in changed), part
    assert not any("k_proj" in name or "norm" in name for name in changed)
    state = run.step(model.STEP, lambda _: pytest.fail("trained again"))
    assert state.keys() == run.model.general.state_dict().keys()


def test_a_frozen_branch_has_no_such_method(tiny_backbone, tmp_path) -> None:
    context = make_context(tiny_backbone, tmp_path, base="frozen", phase2={"fit": "exact"})
    assert train_method(context) is None
    assert not any("umm_rm" in name for name in context.run.metrics())


def test_layers_without_a_dense_mlp_are_recognized(context: MethodContext) -> None:
    branch = fresh_scorer(context.run, model.STEP).branch
    assert model.has_dense_mlps(branch)
    branch.layers[0].mlp.stacked = nn.Parameter(torch.zeros(2, 3, 3))
    assert not model.has_dense_mlps(branch)
    del branch.layers[1].mlp
    assert not model.has_dense_mlps(branch)
