"""The preference loss: −log σ of the margin, a mean over groups, without overflow; k experts in one pass."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model, make_tiny_config
from torch import Tensor

from dmoerm.config import LoRAConfig
from dmoerm.model.experts import lora_layers, with_experts
from dmoerm.model.heads import Head
from dmoerm.model.packing import pack
from dmoerm.schema import Pair
from dmoerm.training.losses import (
    ExpertStack,
    HeadStack,
    PackedCollator,
    PreferenceBatch,
    PreferenceLossModule,
    mean_by_expert,
    preference_losses,
)

from .made import features as read
from .made import made

margins = st.floats(-1e4, 1e4, width=32)
NAMES = ("a", "b", "c")


def loss_of(margins: Tensor, weights: Tensor, target: float = 1.0) -> Tensor:
    """The loss of one scorer."""
    rows = preference_losses(margins, torch.full((len(margins),), target))
    return mean_by_expert(rows, weights, torch.zeros(len(margins), dtype=torch.long), 1)[0]


def test_the_loss_by_hand() -> None:
    found = loss_of(torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.5, 0.5]))
    expected = (math.log(2) + 0.5 * math.log(1 + math.exp(-2)) + 0.5 * math.log(1 + math.exp(1))) / 2
    assert float(found) == pytest.approx(expected)
    assert loss_of(torch.ones(3, dtype=torch.bfloat16), torch.ones(3)).dtype is torch.float32


@given(margin=margins)
def test_swapping_a_pair_negates_its_margin(margin: float) -> None:
    one, weight = torch.tensor([margin]), torch.ones(1)
    assert float(loss_of(one, weight) - loss_of(-one, weight)) == pytest.approx(-margin, abs=1e-3, rel=1e-5)


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_huge_margins_neither_overflow_nor_lose_their_gradient(margin: float) -> None:
    margins = torch.tensor([margin], requires_grad=True)
    loss_of(margins, torch.ones(1)).backward()
    assert margins.grad is not None
    assert margins.grad.tolist() == [-1.0 if margin < 0 else 0.0]


@given(margin=st.floats(-20, 20), probability=st.floats(0, 1))
def test_a_soft_label_is_a_mixture_of_both_orders(margin: float, probability: float) -> None:
    one, weight = torch.tensor([margin]), torch.ones(1)
    mixed = probability * loss_of(one, weight) + (1 - probability) * loss_of(-one, weight)
    torch.testing.assert_close(loss_of(one, weight, probability), mixed, rtol=1e-4, atol=1e-5)


def test_each_expert_has_the_mean_of_its_own_rows() -> None:
    values, weights, expert = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0, 2, 2])
    assert mean_by_expert(values, weights, expert, 3).tolist() == pytest.approx([1, 0, 3.5])
    total = torch.tensor([2.0, 1, 4])
    assert mean_by_expert(values, weights, expert, 3, total).tolist() == pytest.approx([0.5, 0, 3.5])


def test_l2_adds_half_the_squared_distance_to_the_start() -> None:
    linear = torch.nn.Linear(3, 1, bias=False)
    scorer = torch.nn.Sequential(linear, torch.nn.Flatten(0))
    index, weight = torch.tensor([0]), torch.ones(1)
    batch = PreferenceBatch(torch.zeros(2, 3), index, index + 1, weight, weight * 0, weight, index, share=0.5)
    module = PreferenceLossModule(scorer, l2=0.8, penalized=scorer)
    start = float(module(batch).loss.detach())
    with torch.no_grad():
        linear.weight.add_(2.0)
    assert float(module(batch).loss.detach()) - start == pytest.approx(0.5 * 0.8 / 2 * 3 * 2.0**2)


def test_a_required_margin_is_subtracted_and_does_not_change_what_is_correct() -> None:
    index, one = torch.tensor([0]), torch.ones(1)
    batch = PreferenceBatch(torch.tensor([1.5, 0.5]), index, index + 1, one, one * 3.0, one, index)
    losses = PreferenceLossModule(torch.nn.Identity())(batch)
    assert float(losses.loss) == pytest.approx(math.log1p(math.exp(2.0)))  # −log σ(1 − 3)
    assert (losses.correct.tolist(), losses.certainty.tolist()) == ([1.0], [1.0])


class ActiveScorer(torch.nn.Module):
    """Scores by expert: expert i gives i + 1 times the input; only the active experts are returned."""

    def forward(self, inputs: Tensor, active: Tensor | None = None) -> Tensor:
        rewards = torch.tensor([[1.0], [2.0], [3.0]]) * inputs
        return rewards if active is None else rewards[active]


def test_pairs_read_the_rewards_of_their_expert_among_the_active_ones() -> None:
    module = PreferenceLossModule(ActiveScorer(), num_experts=3)
    index, one = torch.tensor([0]), torch.ones(1)
    batch = PreferenceBatch(torch.tensor([1.0, 0.0]), index, index + 1, one, 0 * one, one, index + 2, index + 2)
    assert float(module(batch).loss) == pytest.approx(math.log1p(math.exp(-3.0)))
    assert float(module(batch).loss) == float(module(replace(batch, active=None)).loss)


def test_the_losses_of_the_parts_of_a_batch_sum_to_its_loss() -> None:
    """Each part divides by the weights of the whole batch. Validation averages by weight, certainty and expert."""
    inputs, expert = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 2, 2])
    better, worse = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    target, margin, weight = torch.tensor([1, 0.9, 0.5]), torch.zeros(3), torch.tensor([1.0, 0.5, 2.0])
    module = PreferenceLossModule(ActiveScorer(), num_experts=3)

    def losses(rows: slice, total: Tensor | None = None) -> Any:
        columns = (column[rows] for column in (better, worse, target, margin, weight, expert))
        return module(PreferenceBatch(inputs, *columns, total=total))

    total, whole = torch.tensor([1.0, 0.0, 2.5]), losses(slice(None))
    parts = [losses(rows, total) for rows in (slice(0, 2), slice(2, 3))]
    assert float(parts[0].loss + parts[1].loss) == pytest.approx(float(whole.loss))
    assert whole.weights.tolist() == weight.tolist()
    assert whole.certainty.tolist() == pytest.approx([1, 0.8, 0])
    assert whole.expert.tolist() == expert.tolist()


# --- stacked experts --------------------------------------------------------------------------------------------------


@pytest.fixture
def experts(tiny_backbone: str, tmp_path: Any) -> ExpertStack:
    model = make_model(make_tiny_config(tiny_backbone, tmp_path))
    base = next(iter(model.tasks.values())).base
    branch = with_experts(base.branch, len(NAMES), LoRAConfig(rank=2, dropout=0.0))
    torch.manual_seed(0)
    for layer in lora_layers(branch).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape)
    heads = HeadStack([Head(model.config.width).requires_grad_(True) for _ in NAMES])
    return ExpertStack(branch, heads, base.pooling)


def states(width: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, width, generator=generator), [torch.randn(n, width, generator=generator) for n in (3, 5)]


def test_active_experts_score_as_among_all(experts: ExpertStack) -> None:
    inputs = pack([states(experts.branch.config.hidden_size, 0)])
    whole = experts(inputs)
    assert len({round(float(score), 6) for score in whole.flatten().detach()}) == whole.numel()
    for active in ([0], [2], [0, 2], [0, 1, 2]):
        torch.testing.assert_close(experts(inputs, torch.tensor(active)), whole[active])
    torch.testing.assert_close(experts(inputs), whole)


def test_parts_by_experts_have_the_gradients_of_one_pass(experts: ExpertStack) -> None:
    """Groups that other capabilities label, in one pass of all experts and in parts of those that are wanted."""
    labels: list[Any] = [{name: [Pair(0, 1)] for name in names} for names in ("abc", "b", "ac", "b")]
    width = experts.branch.config.hidden_size
    parts = PackedCollator(read, NAMES)([made(states(width, i), pairs) for i, pairs in enumerate(labels)])
    assert sorted(part.active.tolist() for part in parts if part.active is not None) == [[0, 1, 2], [0, 2], [1]]
    model = PreferenceLossModule(experts, num_experts=len(NAMES))
    found = []
    for everyone in (False, True):
        model.zero_grad()
        for part in parts:
            model(replace(part, active=None) if everyone else part).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0
