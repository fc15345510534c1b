"""Groups in a memory-mapped dataset: a million take little memory, since a group is decoded each time it is read.

What all groups together decide about each one (the only task, derived scores, the capabilities in use) is not written
again: a `Finish` applies it when a group is read.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

from ..schema import Group, Position
from .overall import Scales, with_overall

_FIELDS = tuple(Group.model_fields)


@dataclass(frozen=True)
class Finish:
    """The changes to each group that follow from all groups.

    Attributes:
        task: the task of groups that name none; None: they keep none.
        scales: how groups without overall grades get scores from their capability grades; None: they get none.
        human_grades: keep the capability grades by people.
        kept: task → the capabilities in use; None: all.
    """

    task: str | None = None
    scales: Scales | None = None
    human_grades: bool = True
    kept: Mapping[str, tuple[str, ...]] | None = None

    def __call__(self, group: Group) -> Group:
        """Return the group with the changes."""
        changes: dict[str, Any] = {}
        if self.task and not group.task:
            group = group.model_copy(update={"task": self.task})
        if self.scales is not None:
            group = with_overall(group, self.scales)
        if not self.human_grades:
            changes["capabilities"] = {}
        if self.kept is not None and group.task is not None:  # the router assigns a missing task later
            kept = self.kept[group.task]
            for labels in ("capabilities", "judge_labels"):
                graded = changes.get(labels, getattr(group, labels))
                changes[labels] = {name: grades for name, grades in graded.items() if name in kept}
        return group.model_copy(update=changes) if changes else group


class StoredGroups(Sequence[Group]):
    """Groups in a temporary dataset, which is removed with the last object that reads it.

    Every access returns a new object, so groups are compared by their contents, never by identity.
    """

    def __init__(self, dataset: Dataset, folder: Any, rows: np.ndarray, finish: Finish) -> None:
        self.dataset, self.rows, self.finish = dataset, rows, finish
        self._folder = folder  # removed with this object
        self._contents = dataset.data.column("group")

    def select(self, rows: Sequence[int] | np.ndarray, finish: Finish | None = None) -> StoredGroups:
        """Return the groups in these rows of the dataset, in this order, with these changes."""
        return StoredGroups(self.dataset, self._folder, np.asarray(rows, dtype=np.int64), finish or self.finish)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> StoredGroups: ...
    def __getitem__(self, index: int | slice) -> Group | StoredGroups:
        if isinstance(index, slice):
            return self.select(self.rows[index])
        return self.finish(decode_group(self._contents[int(self.rows[index])].as_py()))

    def __iter__(self) -> Iterator[Group]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of groups."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> Any:
        """Pickle the groups and not the file, which other machines cannot read."""
        return stored, (list(self),)

    def contents(self) -> Iterator[bytes]:
        """Yield what the groups are made from, for a digest."""
        yield repr(self.finish).encode()
        yield from (self._contents[int(row)].as_py() for row in self.rows)


class GroupWriter:
    """Write groups to a temporary dataset; TMPDIR names the folder for it, which should be on a disk."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dmoerm-groups-", ignore_cleanup_errors=True)
        file = str(Path(self._folder.name) / "groups.arrow")
        self._writer, self._count = ArrowWriter(features=Features({"group": Value("binary")}), path=file), 0

    def append(self, group: Group) -> None:
        """Write a group."""
        values = [group.__dict__[name] for name in _FIELDS]
        content = pickle.dumps((*values, group._position.file, group._position.line), pickle.HIGHEST_PROTOCOL)
        self._writer.write({"group": content})
        self._count += 1

    def finish(self) -> StoredGroups:
        """Close the dataset and return its groups."""
        self._writer.finalize()
        dataset = Dataset.from_file(str(Path(self._folder.name) / "groups.arrow"))
        return StoredGroups(dataset, self._folder, np.arange(self._count), Finish())


def stored(groups: Iterable[Group]) -> StoredGroups:
    """Return the groups in a dataset; stored groups are returned as they are."""
    if isinstance(groups, StoredGroups):
        return groups
    writer = GroupWriter()
    for group in groups:
        writer.append(group)
    return writer.finish()


def decode_group(content: bytes) -> Group:
    """Return a group that was valid when it was written, without checking it again: that takes most of the time."""
    *values, file, line = pickle.loads(content)
    group = Group.__new__(Group)
    group.__setstate__(
        {
            "__dict__": dict(zip(_FIELDS, values, strict=True)),
            "__pydantic_fields_set__": set(_FIELDS),
            "__pydantic_extra__": None,
            "__pydantic_private__": {"_position": Position(file, line)},
        }
    )
    return group
