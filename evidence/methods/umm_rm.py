"""`umm_rm`: one model whose MLPs are a mixture of experts in training and one MLP in use: upcycle, train, merge.

    upcycle   each MLP of the pretrained branch becomes a shared expert, E routed experts (copies with a little noise)
              and a linear router
    train     as phase 0, with its settings, on the overall pairs of all tasks
    merge     each layer's experts become one MLP, whose weights are their weighted mean

    in training:  y = (1 − Σ_e g_e) · shared(x) + Σ_e g_e · expert_e(x)     g: softmax of the router, 0 below the top k
    merged:       W = (1 − Σ_e ḡ_e) · W_shared + Σ_e ḡ_e · W_e              ḡ: mean of g over the training part's tokens

This is after the idea of UMM-RM (arXiv 2512.00724): upcycle, train shared and routed experts, merge into a dense model.
We know the paper's abstracts only. In the paper the merging weights are learned; here ḡ says how much the router used
an expert. The abstract of its first version names a normalization of the routing weights without a formula; here all
weights of a token sum to 1, so the upcycled branch starts as the pretrained one, but for the noise. Also different: the
upcycled layers are the layers of the run's branch, and the loss has no term that balances the experts. Not
checked: the paper's number of experts, noise and learning rates. An MLP is not linear, so the merged MLP computes
another function than the mixture.

Shapes: T tokens, d hidden width, E routed experts.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmoerm.config import changed
from dmoerm.evaluation.methods import Method, MethodContext, TrainedMethod, fresh_scorer, register
from dmoerm.model.heads import BranchScorer
from dmoerm.training import Run
from dmoerm.training.embedding import base_embeddings
from dmoerm.training.phases import apply_base, train_base
from dmoerm.training.steps import State, StepMetrics
from evidence.methods.ensembles import Examples, single_rewards

STEP = "baselines/umm_rm"
EXPERTS = 4
ACTIVE = 1
"""Routed experts per token: 1 or 2."""
_NOISE = 0.01  # standard deviation of the noise in a copy's weight matrix, relative to the matrix
_ROUTER_STD = 0.02


class UpcycledMLP(nn.Module):
    """A shared expert, which every token passes through, and routed experts, of which each token has the likeliest.

    `mlp` is the pretrained MLP, which becomes the shared expert; `active` routed experts compute each token.
    """

    def __init__(self, mlp: nn.Module, width: int, experts: int, active: int) -> None:
        super().__init__()
        self.shared, self.active = mlp, active
        self.used: list[Tensor] | None = None  # the gates of all tokens while they are collected
        self.routed = nn.ModuleList(_noisy_copy(mlp) for _ in range(experts))
        self.router = nn.Linear(width, experts, bias=False, device=next(mlp.parameters()).device)
        nn.init.normal_(self.router.weight, std=_ROUTER_STD)

    def gates(self, x: Tensor) -> Tensor:
        """Return the routed experts' weights (T, E) for tokens (T, d); those below the top k are 0."""
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16, many tokens' logits are equal
            probabilities = self.router(x.float()).softmax(-1)
        top = probabilities.topk(self.active, -1)
        return torch.zeros_like(probabilities).scatter(-1, top.indices, top.values)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        gates, shared = self.gates(tokens), self.shared(tokens)
        if self.used is not None:
            self.used.append(gates)
        mixed = (1 - gates.sum(-1, keepdim=True)) * shared
        for expert, gate in zip(self.routed, gates.T, strict=True):
            rows = gate.nonzero().squeeze(-1)
            if len(rows):
                mixed = mixed.index_add(0, rows, gate[rows, None] * expert(tokens[rows]))
        return mixed.to(shared.dtype).reshape(x.shape)


def _noisy_copy(mlp: nn.Module) -> nn.Module:
    """Return a float32 copy with noise in its weight matrices, so that the experts differ from the start."""
    noisy = copy.deepcopy(mlp).float()
    with torch.no_grad():
        for parameter in noisy.parameters():
            if parameter.dim() > 1:
                parameter += _NOISE * parameter.std() * torch.randn_like(parameter)
    return noisy


def has_dense_mlps(branch: nn.Module) -> bool:
    """Return whether each layer of a branch has an `mlp` with weights of linear layers only."""
    for layer in _layers(branch):
        mlp: nn.Module = getattr(layer, "mlp", nn.Module())
        linear = {id(p) for module in mlp.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
        if not linear or any(id(p) not in linear for p in mlp.parameters()):
            return False
    return True


def _layers(branch: nn.Module) -> list[Any]:
    return list(branch.layers)  # pyright: ignore[reportArgumentType]


def _train(
    run: Run, start: BranchScorer, train: Examples, validation: Examples, folder: Path
) -> tuple[State, StepMetrics]:
    """Train the upcycled model and return the state of the merged one; the metrics are the upcycled model's."""
    scorer = BranchScorer(upcycled(start.branch, run.seed(STEP)), copy.deepcopy(start.head), start.pooling)
    state, metrics = train_base(_training_all(run, start.branch), scorer, train, validation, run.config.phase0, folder)
    apply_base(scorer, state)
    merge(scorer.branch, mean_gates(run, scorer, train))
    return scorer.state_dict(), metrics


def upcycled(branch: nn.Module, seed: int, experts: int = EXPERTS, active: int = ACTIVE) -> nn.Module:
    """Return a copy of the branch with an `UpcycledMLP` in each layer."""
    branch = copy.deepcopy(branch)
    width: Any = branch.config.hidden_size  # pyright: ignore
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in _layers(branch):
            layer.mlp = UpcycledMLP(layer.mlp, width, experts, active)
    return branch


def _training_all(run: Run, branch: nn.Module) -> Run:
    """Return a run whose LoRA, if it has one, trains the routers and the experts' linear layers too."""
    if run.config.base != "lora":
        return run
    linear = [
        name.rpartition(".")[2]
        for layer in _layers(branch)
        for name, module in layer.mlp.named_modules()
        if isinstance(module, nn.Linear)
    ]
    targets = dict.fromkeys([*run.config.base_lora.targets, *linear, "router"])
    return dataclasses.replace(run, config=changed(run.config, {"base_lora.targets": list(targets)}))


@torch.no_grad()
def mean_gates(run: Run, scorer: BranchScorer, examples: Examples) -> list[Tensor]:
    """Return the mean gates (E,) of each layer over the tokens that its MLP computes for the examples."""
    mlps = [module for module in scorer.branch.modules() if isinstance(module, UpcycledMLP)]
    for mlp in mlps:
        mlp.used = []
    base_embeddings(run, scorer, examples)
    means = [torch.cat(mlp.used or []).mean(0) for mlp in mlps]
    for mlp in mlps:
        mlp.used = None
    return means


@torch.no_grad()
def merge(branch: nn.Module, gates: Sequence[Tensor]) -> None:
    """Replace each layer's `UpcycledMLP` by one MLP with the experts' mean weights, in float32.

    `gates` has the routed experts' weights (E,) of each layer; the shared expert has the rest to 1.
    """
    for layer, gate in zip(_layers(branch), gates, strict=True):
        mlp: UpcycledMLP = layer.mlp
        experts, weights = [mlp.shared, *mlp.routed], torch.cat([1 - gate.sum()[None], gate])
        dense = copy.deepcopy(mlp.shared)
        for name, parameter in dense.named_parameters():
            stacked = torch.stack([expert.get_parameter(name).float() for expert in experts])
            parameter.data = torch.tensordot(weights, stacked, 1)
        layer.mlp = dense


def train_method(context: MethodContext) -> TrainedMethod | None:
    """Train it; None if the branch is frozen or its layers have no dense MLP."""
    run = context.run
    if run.frozen or not has_dense_mlps(run.model.general.branch):
        return None
    scorer = fresh_scorer(run, STEP)
    state = run.step(STEP, lambda folder: _train(run, scorer, context.train, context.validation, folder))
    apply_base(scorer, state)
    return TrainedMethod(lambda batch: single_rewards(run, scorer, batch)[None])


register(
    Method(
        "umm_rm",
        "one model, trained with a mixture of experts in each MLP and merged into one MLP (after UMM-RM)",
        train_method,
    )
)
