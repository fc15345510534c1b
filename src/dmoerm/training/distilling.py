"""Fit a linear layer on the last token's state to a model's rewards, for rewards that are not linear in that state.

    minimize over w, b:   Σ_n (w · z_n + b − r_n)²  +  l2 |w|²          z_n, r_n: state and reward of a text

The states are those of a task's branch. If its experts have LoRA, these are merged into the branch first, each with its
share of the aggregator's weights (model merging, as in arXiv 2512.00724):

    W + Σ_i share_i · (alpha / r) · B_i A_i

The texts need no labels. The strength is the one with the lowest error on prompts that a fit has not seen.

Shapes: N texts, d hidden width, C strengths, k experts.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..model import DMoERM
from ..model.experts import lora_layers
from ..model.layers import join
from ..model.packed_attention import Decoder, run
from ..model.plain import LinearReward, rewards_by_query, rows_by_query
from ..schema import Group, prompt_key
from .linear_heads import FOLDS, fold_of

_STRENGTHS = torch.logspace(-5, 2, 8, dtype=torch.float64)  # relative to the states' mean variance


class Distilled(NamedTuple):
    """A linear layer that was fitted to a model's rewards.

    Attributes:
        layers: all layers of the classifier.
        reward: the layer.
        shares: (k,), of the experts that were merged into the layers.
        error: root mean square of its error on differences of responses to one prompt that the fit has not seen,
            relative to that of these differences.
        agreement: share of pairs of such responses that the layer orders as the model does.
        fitted: of each group, the rewards (N,) of the layer that was fitted without the group's prompt.
        rewards: of each group, the model's.
    """

    layers: Decoder
    reward: LinearReward
    shares: Tensor
    error: float
    agreement: float
    fitted: Sequence[Tensor]
    rewards: Sequence[Tensor]


@torch.no_grad()
def distill(model: DMoERM, task: str | None, groups: Sequence[Group]) -> Distilled:
    """Fit a linear layer on last tokens' states to the rewards of a task (None: of the general model).

    Raises:
        DataError: the groups have fewer than 10 distinct prompts.
    """
    if (prompts := len({prompt_key(group.prompt) for group in groups})) < 2 * FOLDS:
        raise DataError(f"a fit needs texts of at least {2 * FOLDS} prompts", field="prompt", value=prompts)
    branch, shares = merged_branch(model, task)
    states = rows_by_query(model, groups, lambda hidden: run(branch, hidden, "last")[0].float())
    rewards = [row.double() for row in rewards_by_query(model, task, groups)]
    x, y = torch.cat(states).double(), torch.cat(rewards)
    owner = torch.repeat_interleave(torch.tensor([len(row) for row in rewards]))
    fold = torch.tensor([fold_of(prompt_key(group.prompt), 0) for group in groups])[owner]
    left_out = torch.empty(len(y), len(_STRENGTHS), dtype=torch.float64)
    for k in range(FOLDS):
        weights, biases = _ridge(x[fold != k], y[fold != k])
        left_out[fold == k] = x[fold == k] @ weights + biases
    errors = _within(left_out - y[:, None], owner).square().sum(0)
    best = int(errors.argmin())
    weights, biases = _ridge(x, y)
    error = (errors[best] / _within(y[:, None], owner).square().sum().clamp(min=1e-12)).sqrt()
    fitted = left_out[:, best].split([len(row) for row in rewards])
    reward = LinearReward(weights[:, best], biases[best])
    agreement = _agreement(fitted, rewards)
    return Distilled(join(model.trunk, branch), reward, shares, float(error), agreement, fitted, rewards)


def _agreement(fitted: Sequence[Tensor], rewards: Sequence[Tensor]) -> float:
    same = total = 0
    for scores, expected in zip(fitted, rewards, strict=True):
        products = (scores[:, None] - scores).sign() * (expected[:, None] - expected).sign()
        same, total = same + int((products > 0).sum()), total + int((products != 0).sum())
    return same / max(total, 1)


def _ridge(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (d, C) and biases (C,) of the fits to y (N,) with each strength."""
    mean, center = x.mean(0), y.mean()
    left, values, directions = torch.linalg.svd(x - mean, full_matrices=False)
    l2 = _STRENGTHS * values.square().mean()
    shrunk = values[:, None] / (values.square()[:, None] + l2)
    weights = directions.T @ (shrunk * (left.T @ (y - center))[:, None])
    return weights, center - mean @ weights


def _within(values: Tensor, owner: Tensor) -> Tensor:
    """Subtract from values (N, C) their mean over the responses of the same group."""
    sums = torch.zeros(int(owner.max()) + 1, values.shape[1], dtype=values.dtype).index_add(0, owner, values)
    return values - (sums / owner.bincount()[:, None])[owner]


@torch.no_grad()
def merged_branch(model: DMoERM, task: str | None) -> tuple[Decoder, Tensor]:
    """Return a task's branch with its experts' LoRA merged into it, and the share (k,) of each; without LoRA, as it is.

    A share is the part of the aggregator's absolute weights that the expert's score has; the scores of the plain branch
    have the rest. An aggregator that reads embeddings gives all experts the same share.
    """
    if task is None:
        return model.general.branch, torch.zeros(0)  # pyright: ignore[reportReturnType]
    task_model = model.task_model(task)
    branch, experts = task_model.base.branch, task_model.experts
    if experts.branch is None:
        return branch, torch.zeros(0)  # pyright: ignore[reportReturnType]
    linear, mlp = task_model.aggregator.linear, task_model.aggregator.mlp
    if linear is None or mlp is not None:
        shares = torch.full((len(experts),), 1 / len(experts))
    else:
        weights = (linear.weight * linear.read).abs().cpu()
        shares = weights[: len(experts)] / weights.sum().clamp(min=1e-12)
    merged = copy.deepcopy(branch)
    for name, layer in lora_layers(experts.branch).items():
        plain = merged.get_submodule(name)
        assert isinstance(plain.weight, nn.Parameter)
        change = torch.einsum("k,kor,kri->oi", shares.to(layer.lora_B), layer.lora_B, layer.lora_A)
        plain.weight.copy_(plain.weight.float() + layer.scaling * change)
    return merged, shares  # pyright: ignore[reportReturnType]
