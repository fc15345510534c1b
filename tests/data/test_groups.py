"""Groups in a dataset on disk are read as they were written, with what all groups decide about each one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dmoerm.data.groups import Finish, stored
from dmoerm.schema import Group, Message, PairLabel

GROUPS = [
    Group(
        task="chat", prompt=(Message(role="user", content="Hi"),), responses=("a", "b"), scores=(0.1, 1 / 3), margin=0.5
    ).at("rows.jsonl", 7),
    Group(
        id="why",
        prompt="Why?",
        responses=("a", "b"),
        capabilities={"logic": (None, -0.0)},
        judge_labels={"tone": (PairLabel(0, 1, 0.25),)},
        annotators={"overall": ((1, 2), ())},
        source="people",
    ),
]


def test_groups_are_stored_as_they_are() -> None:
    table = stored(GROUPS)
    assert table == GROUPS
    assert [group.position for group in table] == [group.position for group in GROUPS]
    assert type(table[1].judge_labels["tone"][0]) is PairLabel
    assert table[1].model_dump_json() == GROUPS[1].model_dump_json()
    assert stored([]) == []
    assert stored(table) is table


def test_parts_and_copies_read_the_same_groups() -> None:
    many = [group.model_copy(update={"id": str(i)}) for i in range(1500) for group in GROUPS]
    table = stored(iter(many))
    assert table[-1] == many[-1]
    assert table[1::700] == many[1::700]
    assert table.select([5, 2999]) == [many[5], many[2999]]
    part = table[5:8]
    del table
    assert pickle.loads(pickle.dumps(part)) == many[5:8]
    with pytest.raises(IndexError):
        part[3]


def test_a_finish_is_applied_when_a_group_is_read() -> None:
    table = stored(GROUPS)
    finish = Finish(task="qa", scales={("qa", "logic"): (0.0, 1.0)}, kept={"chat": (), "qa": ("logic",)})
    first, second = table.select([0, 1], finish)
    assert first == GROUPS[0]
    assert (second.task, second.judge_labels, second.scores) == ("qa", {}, None), "a response has no grade"
    assert table.select([1], Finish(human_grades=False))[0].capabilities == {}
    assert pickle.loads(pickle.dumps(table.select([1], finish))) == [second]
    assert table == GROUPS, "nothing is written"


def test_the_file_goes_with_its_last_reader() -> None:
    table = stored(GROUPS)
    file = Path(table.dataset.cache_files[0]["filename"])
    part = table.select([0])
    del table
    assert part == GROUPS[:1]
    assert file.exists()
    del part
    assert not file.parent.exists()
