import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.data.splits import content_order, digest, held_out, take
from dmoerm.errors import ConfigError
from dmoerm.schema import Group, prompt_key


def group(task: str | None, prompt: str, answer: str = "a") -> Group:
    return Group(task=task, prompt=prompt, responses=(answer, "other"), scores=(1, 0))


GROUPS = st.lists(
    st.builds(group, st.sampled_from(["chat", "qa", None]), st.integers(0, 12).map(str), st.sampled_from("abc")),
    max_size=40,
)
FRACTIONS = st.floats(0.01, 0.99)


def prompts(groups: list[Group]) -> set[str]:
    return {prompt_key(member.prompt) for member in groups}


def take_groups(groups: list[Group], per_task: int) -> list[Group]:
    """The groups that a run with `data.groups_per_task` keeps."""
    members = [(group.task or "", digest(0, prompt_key(group.prompt))) for group in groups]
    return [groups[index] for index in take(members, per_task, lambda index: content_order(groups[index], 0))]


def split_by_prompt(groups: list[Group], fraction: float, seed: int = 0) -> tuple[list[Group], list[Group]]:
    """Split the groups into (rest, held out), both in their order."""
    parts: tuple[list[Group], list[Group]] = [], []
    for member, held in zip(groups, held_out(groups, fraction, seed), strict=True):
        parts[held].append(member)
    return parts


def many(count: int = 200, task: str = "chat") -> list[Group]:
    return [group(task, f"prompt {index}") for index in range(count)]


@given(GROUPS, FRACTIONS, st.integers(0, 3))
def test_a_prompt_is_on_one_side_and_no_group_is_lost(groups: list[Group], fraction: float, seed: int) -> None:
    rest, held = split_by_prompt(groups, fraction, seed)
    assert not prompts(rest) & prompts(held)
    assert len(rest) + len(held) == len(groups)


@given(st.lists(st.integers(0, 30), min_size=2, unique=True), FRACTIONS)
def test_both_sides_have_membersof_every_task(numbers: list[int], fraction: float) -> None:
    groups = [group(task, f"{task} {number}") for number in numbers for task in ("chat", "qa")]
    for side in split_by_prompt(groups, fraction):
        assert {member.task for member in side} == {"chat", "qa"}


def test_tasks_that_share_membershave_both_sides_too() -> None:
    for seed in range(20):
        groups = [group("large", str(number)) for number in range(10)] + [group("small", "3"), group("small", "5")]
        for side in split_by_prompt(groups, 0.2, seed):
            assert {member.task for member in side} == {"large", "small"}


@given(GROUPS, FRACTIONS, st.randoms())
def test_the_order_of_rows_does_not_matter(groups: list[Group], fraction: float, chance: random.Random) -> None:
    shuffled = groups.copy()
    chance.shuffle(shuffled)
    assert prompts(split_by_prompt(groups, fraction)[1]) == prompts(split_by_prompt(shuffled, fraction)[1])
    taken, taken_shuffled = take_groups(groups, 5), take_groups(shuffled, 5)
    assert sorted(map(str, taken)) == sorted(map(str, taken_shuffled))


def test_the_ends_and_a_single_prompt() -> None:
    groups = many(3)
    assert split_by_prompt(groups, 0) == (groups, [])
    assert split_by_prompt(groups, 1) == ([], groups)
    assert split_by_prompt(groups[:1], 0.9) == (groups[:1], [])
    with pytest.raises(ConfigError, match="fraction must be between 0 and 1"):
        split_by_prompt(groups, 20)


@given(GROUPS, st.integers(0, 10))
def test_taking_groups_keeps_as_many_membersas_possible(groups: list[Group], per_task: int) -> None:
    taken = take_groups(groups, per_task)
    for task in ("chat", "qa", None):
        members = [member for member in groups if member.task == task]
        kept = [member for member in taken if member.task == task]
        assert len(kept) == min(per_task, len(members))
        assert len(prompts(kept)) == min(per_task, len(prompts(members)))


@given(GROUPS, st.integers(0, 10))
def test_taking_more_keeps_what_was_taken(groups: list[Group], per_task: int) -> None:
    assert set(map(str, take_groups(groups, per_task))) <= set(map(str, take_groups(groups, per_task + 3)))
