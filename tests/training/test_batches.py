"""From labelled groups to pairs of rows in a batch."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_groups

from dmoerm.model.encoding import Encoded
from dmoerm.schema import Group, Pair
from dmoerm.training.batches import Example, Item, collate_states, collate_vectors, items, label


def group(**labels: object) -> Group:
    return Group(prompt="Hi", responses=("a", "b", "c"), **labels)


def example(of: Group, **flips: float) -> Example:
    return Example(of, Encoded([1], [[2], [3], [4]]), of.task, label(of, **flips))


def test_labels_are_the_ordered_pairs() -> None:
    pairs = label(group(scores=[1, 3, 3], capabilities={"logic": [2, None, 1]}))
    assert pairs == {None: [Pair(1, 0), Pair(2, 0)], "logic": [Pair(0, 2)]}
    assert label(group(ranks=[1, 2, 2]))[None] == [Pair(0, 1), Pair(0, 2)]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_flips_change_about_the_asked_share_and_nothing_else(share: float) -> None:
    groups = tiny_groups(60)

    def flipped(capability: str | None, **flips: float) -> float:
        changed = total = 0
        for one in groups:
            right, noisy = label(one)[capability], label(one, **flips)[capability]
            assert [set(pair) for pair in right] == [set(pair) for pair in noisy]
            changed += sum(a != b for a, b in zip(right, noisy, strict=True))
            total += len(right)
        return changed / total

    assert flipped(None, flip_scores=share) == pytest.approx(share, abs=0.07)
    assert flipped(None, flip_capabilities=share) == 0
    groups = [one for one in groups if one.task == "chitchat"]
    assert flipped("empathy", flip_capabilities=share) == pytest.approx(share, abs=0.12)
    assert flipped("empathy", flip_scores=share) == 0


def test_flips_follow_the_seed() -> None:
    groups = tiny_groups(20)
    noisy = [[label(one, flip_scores=0.3, seed=seed)[None] for one in groups] for seed in (0, 0, 1)]
    assert noisy[0] == noisy[1] != noisy[2]


def test_groups_that_order_nothing_are_left_out() -> None:
    examples = [
        example(group(scores=[1, 2, 3], capabilities={"logic": [1, 1, 1]})),
        example(group(scores=[1, 1, 1], capabilities={"logic": [None, 1, 2]})),
    ]
    assert [len(item.pairs) for item in items(examples, lambda e: e)] == [3]
    assert [list(item.pairs) for item in items(examples, lambda e: e, ["logic"])] == [[Pair(2, 1)]]
    assert items(examples, lambda e: e, ["empathy"]) == []


def test_the_margin_belongs_to_the_overall_preference() -> None:
    two = Group(prompt="Hi", responses=("a", "b"), scores=[1, 2], margin=0.5, capabilities={"logic": [1, 2]})
    one = Example(two, Encoded([1], [[2], [3]]), None, label(two))
    assert items([one], lambda e: e)[0].margin == 0.5
    assert items([one], lambda e: e, ["logic"])[0].margin == 0


def test_pairs_point_at_their_own_groups_rows() -> None:
    rows = [Item(torch.ones(2, 3), [Pair(1, 0)], 0.5), Item(torch.zeros(3, 3), [Pair(0, 2), Pair(1, 2)])]
    batch = collate_vectors(rows)
    assert batch["better"].tolist() == [1, 2, 3]
    assert batch["worse"].tolist() == [0, 4, 4]
    assert batch["required"].tolist() == [0.5, 0, 0]
    assert batch["weights"].tolist() == [1, 0.5, 0.5]
    assert torch.equal(batch["vectors"], torch.cat([torch.ones(2, 3), torch.zeros(3, 3)]))


def test_soft_pairs_carry_how_sure_and_how_heavy_they_are() -> None:
    batch = collate_vectors([Item(torch.ones(3, 3), [Pair(1, 0, 0.7, 0.5), Pair(2, 0)])])
    assert batch["probability"].tolist() == pytest.approx([0.7, 1])
    assert batch["weights"].tolist() == [0.25, 0.5]


def test_states_are_packed_and_owned() -> None:
    first = (torch.randn(2, 4), [torch.randn(1, 4), torch.randn(3, 4)])
    second = (torch.randn(5, 4), [torch.randn(2, 4), torch.randn(1, 4)])
    batch = collate_states([Item(first, [Pair(0, 1)]), Item(second, [Pair(1, 0)])])
    assert batch["owner"].tolist() == [0, 0, 1, 1]
    assert batch["prompts"].tolist() == [2, 5]
    assert batch["responses"].tolist() == [1, 3, 2, 1]
    assert torch.equal(batch["tokens"], torch.cat([first[0], second[0], *first[1], *second[1]]))
    assert batch["better"].tolist() == [0, 3]


def test_keys_name_the_ids_and_prompts_fold_white_space() -> None:
    first = Example(group(scores=[1, 2, 3]), Encoded([1], [[2], [3], [4]]), None)
    other = Example(group(scores=[3, 2, 1]), Encoded([1], [[2], [3], [4]]), "x")
    moved = Example(group(scores=[1, 2, 3]), Encoded([1, 2], [[3], [4], []]), None)
    assert first.key == other.key != moved.key
    spaced = Group(prompt=" Hi\n", responses=("a", "b"), scores=[1, 2])
    assert first.prompt == Example(spaced, Encoded([], []), None).prompt
