"""From labelled groups to pairs of rows in a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.model.heads import Head
from dmoerm.schema import Group, Pair
from dmoerm.training import losses
from dmoerm.training.examples import PreferenceExample, label, labeled
from dmoerm.training.losses import HeadStack, PackedCollator, PreferenceBatch, PreferenceLossModule, VectorCollator

from .made import Made, features, made


def group(**labels: object) -> Group:
    return Group(prompt="Hi", responses=("a", "b", "c"), **labels)


def example(of: Group) -> PreferenceExample:
    return Made(of, Encoded([1], [[2], [3], [4]]), of.task, label(of))


def test_labels_are_the_ordered_pairs() -> None:
    pairs = label(group(scores=[1, 3, 3], capabilities={"logic": [2, None, 1]}))
    assert pairs == {None: [Pair(1, 0), Pair(2, 0)], "logic": [Pair(0, 2)]}
    assert label(group(ranks=[1, 2, 2]))[None] == [Pair(0, 1), Pair(0, 2)]


def test_groups_that_order_nothing_are_left_out() -> None:
    examples = [
        example(group(scores=[1, 2, 3], capabilities={"logic": [1, 1, 1]})),
        example(group(scores=[1, 1, 1], capabilities={"logic": [None, 1, 2]})),
    ]
    assert labeled(examples) == examples[:1]
    assert labeled(examples, ["logic"]) == examples[1:]
    assert labeled(examples, ["logic", None]) == examples
    assert labeled(examples, ["empathy"]) == []


def collate(*examples: PreferenceExample, capabilities: Any = (None,)) -> PreferenceBatch:
    (batch,) = VectorCollator(features, capabilities)(examples)
    return batch


def test_the_margin_belongs_to_the_overall_preference() -> None:
    one = made(torch.ones(2, 3), {None: [Pair(1, 0)], "logic": [Pair(1, 0)]}, 0.5)
    assert collate(one).margin.tolist() == [0.5]
    assert collate(one, capabilities=["logic"]).margin.tolist() == [0]


def test_pairs_point_at_their_own_groups_rows() -> None:
    second = made(torch.zeros(3, 3), [Pair(0, 2, 0.7, 0.8), Pair(1, 2)])
    batch = collate(made(torch.ones(2, 3), [Pair(1, 0)], 0.5), second)
    assert batch.better.tolist() == [1, 2, 3]
    assert batch.worse.tolist() == [0, 4, 4]
    assert batch.margin.tolist() == [0.5, 0, 0]
    assert batch.target.tolist() == pytest.approx([1, 0.7, 1])
    assert batch.weight.tolist() == pytest.approx([1, 0.4, 0.5])
    assert torch.equal(batch.inputs, torch.cat([torch.ones(2, 3), torch.zeros(3, 3)]))


def test_a_capabilitys_pairs_are_its_experts() -> None:
    one = made(torch.ones(3, 3), {"a": [Pair(0, 1)], "b": [Pair(1, 2), Pair(2, 0)], None: [Pair(0, 2)]})
    batch = collate(one, capabilities=["b", "a", "c"])
    assert batch.expert.tolist() == [0, 0, 1]
    assert batch.better.tolist() == [1, 2, 0]
    assert batch.weight.tolist() == [0.5, 0.5, 1]


def test_a_batch_moves_as_a_whole() -> None:
    first = (torch.randn(2, 4), [torch.randn(1, 4), torch.randn(3, 4)])
    (batch,) = PackedCollator(features)([made(first, [Pair(0, 1)])])
    moved = batch.to("meta")
    tensors = [moved.inputs.tokens, *(value for value in vars(moved).values() if isinstance(value, torch.Tensor))]
    assert len(tensors) == 9
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_states_are_packed_and_owned() -> None:
    first = (torch.randn(2, 4), [torch.randn(1, 4), torch.randn(3, 4)])
    second = (torch.randn(5, 4), [torch.randn(2, 4), torch.randn(1, 4)])
    (batch,) = PackedCollator(features)([made(first, [Pair(0, 1)]), made(second, [Pair(1, 0)])])
    packing = batch.inputs.packing
    assert packing.owner == [0, 0, 1, 1]
    assert packing.prompts == [5, 2]  # the longest first
    assert packing.responses == [2, 1, 1, 3]
    assert torch.equal(batch.inputs.tokens, torch.cat([second[0], first[0], *second[1], *first[1]]))
    assert batch.better.tolist() == [1, 2]


def test_a_part_keeps_to_the_budget() -> None:
    both = {"a": [Pair(0, 1)], "b": [Pair(0, 1)]}
    states = (torch.randn(4, 8), [torch.randn(3, 8), torch.randn(5, 8)])
    examples = [made(states, both) for _ in range(5)]  # 12 tokens, 2 experts
    for budget, count in ((1, 5), (24, 5), (48, 3), (1000, 1)):
        parts = PackedCollator(features, ("a", "b"), budget)(examples)
        assert len(parts) == count
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert all(part.total.tolist() == [5, 5] for part in parts)


def test_keys_name_the_ids_and_prompts_fold_white_space() -> None:
    first = Made(group(scores=[1, 2, 3]), Encoded([1], [[2], [3], [4]]), None)
    other = Made(group(scores=[3, 2, 1]), Encoded([1], [[2], [3], [4]]), "x")
    moved = Made(group(scores=[1, 2, 3]), Encoded([1, 2], [[3], [4], []]), None)
    assert first.key == other.key != moved.key
    spaced = Group(prompt=" Hi\n", responses=("a", "b"), scores=[1, 2])
    assert first.prompt == Made(spaced, Encoded([], []), None).prompt


# --- several processes ---------------------------------------------------------------------------------------------

WIDTH, NAMES = 6, ("a", "b")


class Pooled(torch.nn.Module):
    """Heads on the mean of a response's states: the smallest scorer of packed states."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = HeadStack([Head(WIDTH) for _ in NAMES])

    def forward(self, inputs: Any, active: torch.Tensor | None) -> torch.Tensor:
        packing = inputs.packing
        responses = inputs.tokens[packing.prompt_tokens :].split(packing.responses)
        return self.heads(torch.stack([states.mean(0) for states in responses]), active)


def groups(count: int) -> list[PreferenceExample]:
    """Groups of different lengths, labeled by other experts and with other numbers of pairs each."""
    generator = torch.Generator().manual_seed(count)
    found = []
    for i in range(count):
        prompt = torch.randn(2 + i, WIDTH, generator=generator)
        responses = [torch.randn(1 + (i + n) % 3, WIDTH, generator=generator) for n in range(3)]
        pairs = [Pair(0, 1), Pair(1, 2, 0.7, 0.5), Pair(2, 0)][: 1 + i % 3]
        of = {name: [pair for n, pair in enumerate(pairs) if (i + n) % 2 == k] for k, name in enumerate(NAMES)}
        found.append(made((prompt, responses), of))
    return found


def gradient(model: PreferenceLossModule, parts: list[PreferenceBatch]) -> list[torch.Tensor]:
    model = copy.deepcopy(model)
    for part in parts:
        model(part).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("count", "world"), [(8, 2), (7, 2), (7, 3), (1, 2), (2, 4)])
@pytest.mark.parametrize("budget", [8192, 8])
def test_the_shares_of_a_batch_add_up_to_it(seat: Callable[..., None], count: int, world: int, budget: int) -> None:
    """The mean of the processes' gradients is the batch's, whoever has how many groups, pairs and parts."""
    scorer = Pooled()
    model = PreferenceLossModule(scorer, 0.1, scorer.heads, num_experts=len(NAMES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1  # away from the start, so that the pull to it has a gradient
    collate = PackedCollator(features, NAMES, budget)
    whole = gradient(model, collate(groups(count)))
    shares = []
    for rank in range(world):
        seat(losses, rank, world)
        shares.append(gradient(model, collate(groups(count))))
    for found, expected in zip(zip(*shares, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.stack(found).mean(0), expected, atol=1e-6, rtol=1e-5)


def test_a_process_without_groups_changes_no_measure(seat: Callable[..., None]) -> None:
    seat(losses, 1, 2)
    (part,) = PackedCollator(features, NAMES)(groups(1))
    assert not part.weight.any()
    assert (part.target == 0.5).all()
