"""Groups in a memory-mapped dataset: a million take little memory, since a group is decoded each time it is read.

What all groups together decide about each one (the only task, derived scores, the capabilities in use) is not written
again: a `Finish` applies it when a group is read.
"""

from __future__ import annotations

import math
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, overload

import numpy as np
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

from ..schema import Grades, Group, Position

_FIELDS = tuple(Group.model_fields)
Scales = Mapping[tuple[str | None, str], tuple[float, float]]
"""(task, capability) → mean and standard deviation of its grades."""


# --- overall scores from capability grades -------------------------------------------------------------------------


def overall_from_capabilities(groups: Iterable[Group], scales_of: Iterable[Group] | None = None) -> list[Group]:
    """Return the groups in order; those without overall grades get scores computed from their capability grades.

    A response's score is the mean of its grades, each standardized (mean 0, standard deviation 1) over all grades of
    its task and capability. Missing grades are skipped; a capability whose grades are all equal counts as 0. These
    groups have `scores_derived` set. Report them separately: such a score favors methods that combine capabilities.
    Groups with scores or ranks, and groups with a response that has no grade at all, are returned unchanged.

    Args:
        scales_of: the groups that define mean and standard deviation, such as the training part; None: `groups`.
    """
    groups = list(groups)
    scales = scales_from(groups if scales_of is None else scales_of)
    return [_with_overall(group, scales) for group in groups]


def scales_from(groups: Iterable[Group]) -> Scales:
    """Return the scales of the groups' grades."""
    graded: dict[tuple[str | None, str], array[float]] = {}
    for group in groups:
        for name, grades in group.capabilities.items():
            graded.setdefault((group.task, name), array("d")).extend(value for value in grades if value is not None)
    return {key: (fmean(values), pstdev(values)) for key, values in graded.items() if values}


def _with_overall(group: Group, scales: Scales) -> Group:
    if group.grades is not None:
        return group
    columns = list[Grades]()
    for name, grades in group.capabilities.items():
        if (group.task, name) in scales:
            mean, deviation = scales[group.task, name]
            scale = deviation if deviation > 1e-12 else math.inf  # equal grades count as 0
            columns.append(tuple(None if value is None else (value - mean) / scale for value in grades))
    rows = [[value for value in row if value is not None] for row in zip(*columns, strict=True)]
    if not rows or not all(rows):
        return group
    return group.model_copy(update={"scores": tuple(map(fmean, rows)), "scores_derived": True})


# --- groups on disk ------------------------------------------------------------------------------------------------


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
        if self.task and not group.task:
            group = group.model_copy(update={"task": self.task})
        if self.scales is not None:
            group = _with_overall(group, self.scales)
        labels = {"capabilities": group.capabilities if self.human_grades else {}, "judge_labels": group.judge_labels}
        if self.kept is not None and group.task is not None:  # the router assigns a missing task later
            kept = self.kept[group.task]
            labels = {key: {c: each[c] for c in each if c in kept} for key, each in labels.items()}
        return group if self == Finish() else group.model_copy(update=labels)


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
