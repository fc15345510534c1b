"""The preference loss: −log σ of the margin, a mean over groups, without overflow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dmoerm.training.batches import PreferenceBatch
from dmoerm.training.losses import PreferenceLossModule, mean_by_expert, preference_losses

margins = st.floats(-1e4, 1e4, width=32)


def pair_loss(margins: Tensor, weights: Tensor) -> Tensor:
    """The loss of one scorer."""
    return soft_loss(margins, torch.ones(len(margins)), weights)


def soft_loss(margins: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    expert = torch.zeros(len(margins), dtype=torch.long)
    return mean_by_expert(preference_losses(margins, target), weights, expert, 1)[0]


def test_the_loss_by_hand() -> None:
    found = pair_loss(torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.5, 0.5]))
    expected = (math.log(2) + 0.5 * math.log(1 + math.exp(-2)) + 0.5 * math.log(1 + math.exp(1))) / 2
    assert float(found) == pytest.approx(expected)


@given(margin=margins)
def test_swapping_a_pair_negates_its_margin(margin: float) -> None:
    one, weight = torch.tensor([margin]), torch.ones(1)
    assert float(pair_loss(one, weight) - pair_loss(-one, weight)) == pytest.approx(-margin, abs=1e-3, rel=1e-5)
    assert float(pair_loss(one, weight)) == pytest.approx(
        max(-margin, 0) + math.log1p(math.exp(-abs(margin))), rel=1e-5
    )


@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_huge_margins_neither_overflow_nor_lose_their_gradient(margin: float) -> None:
    margins = torch.tensor([margin], requires_grad=True)
    pair_loss(margins, torch.ones(1)).backward()
    assert margins.grad.tolist() == [-1.0 if margin < 0 else 0.0]


@given(first=st.lists(margins, min_size=1, max_size=5), second=margins)
def test_a_long_group_counts_no_more_than_a_pair(first: list[float], second: float) -> None:
    weights = torch.tensor([1 / len(first)] * len(first) + [1.0])
    whole = pair_loss(torch.tensor([*first, second]), weights)
    groups = [pair_loss(torch.tensor(group), torch.ones(len(group))) for group in (first, [second])]
    torch.testing.assert_close(whole, (groups[0] + groups[1]) / 2, rtol=1e-4, atol=1e-5)


def test_half_precision_margins_are_summed_in_float32() -> None:
    assert pair_loss(torch.ones(3, dtype=torch.bfloat16), torch.ones(3)).dtype is torch.float32


@given(margin=st.floats(-20, 20), probability=st.floats(0, 1))
def test_a_soft_label_is_a_mixture_of_both_orders(margin: float, probability: float) -> None:
    one = torch.tensor([margin])
    soft = soft_loss(one, torch.tensor([probability]), torch.ones(1))
    mixed = probability * pair_loss(one, torch.ones(1)) + (1 - probability) * pair_loss(-one, torch.ones(1))
    torch.testing.assert_close(soft, mixed, rtol=1e-4, atol=1e-5)


def test_a_soft_label_is_met_by_its_own_log_odds() -> None:
    margin = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    soft_loss(margin, torch.tensor([0.8]), torch.ones(1)).backward()
    assert margin.grad.tolist() == pytest.approx([0], abs=1e-6)


def test_each_expert_has_the_mean_of_its_own_rows() -> None:
    values, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 3.0])
    expert = torch.tensor([0, 2, 2])
    assert mean_by_expert(values, weights, expert, 3).tolist() == pytest.approx([1, 0, 3.5])
    assert mean_by_expert(values, weights, expert, 3, torch.tensor([2.0, 1, 4])).tolist() == pytest.approx(
        [0.5, 0, 3.5]
    )


def test_l2_adds_half_the_squared_distance_to_the_start() -> None:
    linear = torch.nn.Linear(3, 1, bias=False)
    scorer = torch.nn.Sequential(linear, torch.nn.Flatten(0))
    index, weight = torch.tensor([0]), torch.ones(1)
    batch = PreferenceBatch(torch.zeros(2, 3), index, index + 1, weight, weight * 0, weight, index, share=0.5)
    module = PreferenceLossModule(scorer, l2=0.8, penalized=scorer)
    start = float(module(batch).loss)
    with torch.no_grad():
        linear.weight.add_(2.0)
    assert float(module(batch).loss) - start == pytest.approx(0.5 * 0.8 / 2 * 3 * 2.0**2)


def module_batch(margin: float) -> tuple[PreferenceLossModule, PreferenceBatch]:
    """A scorer that returns its input, and the pair 1.5 > 0.5 whose label requires the margin."""
    index, one = torch.tensor([0]), torch.ones(1)
    batch = PreferenceBatch(torch.tensor([1.5, 0.5]), index, index + 1, one, one * margin, one, index)
    return PreferenceLossModule(torch.nn.Identity()), batch


def test_a_required_margin_is_subtracted_and_does_not_change_what_is_correct() -> None:
    module, batch = module_batch(margin=3.0)
    losses = module(batch)
    assert float(losses.loss) == pytest.approx(math.log1p(math.exp(2.0)))  # −log σ(1 − 3)
    assert losses.correct.tolist() == [1.0]
    assert losses.certainty.tolist() == [1.0]


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


def test_losses_name_the_weight_the_certainty_and_the_expert_of_each_row() -> None:
    """Validation averages the rows by them."""
    index = torch.tensor([0, 0])
    expert, weight, target = torch.tensor([2, 0]), torch.tensor([0.25, 0.5]), torch.tensor([0.9, 0.5])
    batch = PreferenceBatch(torch.tensor([1.0, 0.0]), index, index + 1, target, 0 * weight, weight, expert)
    losses = PreferenceLossModule(ActiveScorer(), num_experts=3)(batch)
    assert losses.weights.tolist() == weight.tolist()
    assert losses.certainty.tolist() == pytest.approx([0.8, 0])
    assert losses.expert.tolist() == [2, 0]


def test_the_losses_of_the_parts_of_a_batch_sum_to_its_loss() -> None:
    """Each part divides by the weights of the whole batch."""
    inputs, expert = torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0, 2, 2])
    better, worse = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    target, margin, weight = torch.ones(3), torch.zeros(3), torch.tensor([1.0, 0.5, 2.0])
    module = PreferenceLossModule(ActiveScorer(), num_experts=3)

    def loss(rows: slice, total: Tensor | None = None) -> float:
        columns = (column[rows] for column in (better, worse, target, margin, weight, expert))
        return float(module(PreferenceBatch(inputs, *columns, total=total)).loss)

    total = torch.tensor([1.0, 0.0, 2.5])
    assert loss(slice(0, 2), total) + loss(slice(2, 3), total) == pytest.approx(loss(slice(None)))
