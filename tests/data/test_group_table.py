"""Groups in a file: equal to those in a list, whatever they hold."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from dmoerm.data.group_table import GroupTable, changed_groups, select, stored
from dmoerm.schema import Group, Message, PairLabel

GROUPS = [
    Group(prompt="Hi", responses=("a", "b"), scores=(1, 0.1), task="chat", margin=0.5).at("rows.jsonl", 7),
    Group(
        id="x",
        prompt=(Message(role="system", content="Be brief."), Message(role="user", content="你好 \u2028")),
        responses=("a", "", "c")[::2],
        ranks=(1, 2),
        capabilities={"logic": (None, -0.0)},
        judge_labels={"tone": (PairLabel(0, 1, 0.25),)},
        annotators={"overall": ((1, 2), ())},
        source="people",
    ),
]


def test_a_table_holds_the_groups_as_they_are() -> None:
    table = stored(GROUPS)
    assert table == GROUPS
    assert [group.position for group in table] == [group.position for group in GROUPS]
    assert type(table[1].judge_labels["tone"][0]) is PairLabel
    assert table[1].model_dump_json() == GROUPS[1].model_dump_json()
    assert table[0].model_copy(update={"task": None}).task is None
    assert stored([]) == []
    assert stored(table) is table


def test_parts_and_copies_read_the_same_groups() -> None:
    many = [group.model_copy(update={"id": str(i)}) for i in range(1500) for group in GROUPS]
    table = stored(iter(many))
    assert table[-1] == many[-1]
    assert table[1::700] == many[1::700]
    assert select(table, [i % 999 == 0 for i in range(3000)]) == many[::999]
    assert select(many, [i % 999 == 0 for i in range(3000)]) == many[::999]
    part = table[5:8]
    del table
    assert pickle.loads(pickle.dumps(part)) == many[5:8]
    with pytest.raises(IndexError):
        part[3]


def test_a_table_is_written_again_only_if_a_group_changes() -> None:
    table = stored(GROUPS)
    assert changed_groups(table, lambda group: group) is table
    moved = changed_groups(table, lambda group: group.model_copy(update={"task": "new"}))
    assert isinstance(moved, GroupTable)
    assert [group.task for group in moved] == ["new", "new"]
    assert table == GROUPS


def test_its_file_goes_with_its_last_table() -> None:
    table = stored(GROUPS)
    file = table._file.path
    part = table.select(np.array([True, False]))
    del table
    assert part == GROUPS[:1]
    assert file.exists()
    del part
    assert not file.parent.exists()
