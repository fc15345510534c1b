"""Groups in a temporary Arrow file: a million take little memory, since a group is decoded each time it is read.

Functions of this module accept lists of groups too, and then return lists.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ..io.arrow import ArrowRows, ArrowWriter
from ..schema import Group, Position

if TYPE_CHECKING:
    from datasets import Dataset

_FIELDS = tuple(Group.model_fields)


class GroupTable(Sequence[Group]):
    """Groups in a temporary file, which is removed with the last table that reads it.

    Every access returns a new object, so groups are compared by their contents, never by identity.
    """

    def __init__(self, file: _GroupFile, rows: np.ndarray) -> None:
        self._file, self._rows = file, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> GroupTable: ...
    def __getitem__(self, index: int | slice) -> Group | GroupTable:
        if isinstance(index, slice):
            return GroupTable(self._file, self._rows[index])
        return self._file[int(self._rows[index])]

    def __iter__(self) -> Iterator[Group]:
        return (self._file[row] for row in map(int, self._rows))

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of groups."""
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(mine == yours for mine, yours in zip(self, other, strict=True))
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> Any:
        """Pickle the groups and not the file, which other machines cannot read."""
        return stored, (list(self),)

    def dataset(self) -> Dataset:
        """Return a dataset of the single column `group`, whose values `decode_group` decodes."""
        from datasets import Dataset

        return Dataset.from_file(str(self._file.path)).select(self._rows)

    def encoded(self) -> Iterator[bytes]:
        """Yield the contents of the dataset."""
        return (self._file.content(row) for row in map(int, self._rows))

    def select(self, kept: Sequence[bool]) -> GroupTable:
        """Return the groups for which `kept` is true."""
        return GroupTable(self._file, self._rows[np.asarray(kept, dtype=bool)])


class _GroupFile:
    def __init__(self, folder: tempfile.TemporaryDirectory[str], file: Path) -> None:
        self._folder = folder  # removed with this object
        self.path, self._rows = file, ArrowRows(file)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Group:
        return decode_group(self.content(row))

    def content(self, row: int) -> bytes:
        return self._rows.value("group", row)


class GroupWriter:
    """Write groups to a temporary file; TMPDIR names the folder for it, which should be on a disk."""

    def __init__(self) -> None:
        import pyarrow as pa

        self._folder = tempfile.TemporaryDirectory(prefix="dmoerm-groups-", ignore_cleanup_errors=True)
        self._file = Path(self._folder.name) / "groups.arrow"
        self._writer = ArrowWriter(self._file, {"group": pa.binary()})

    def append(self, group: Group) -> None:
        """Write a group."""
        self._writer.append(group=_encoded(group))

    def finish(self) -> GroupTable:
        """Close the file and return its groups."""
        with self._writer:
            pass
        file = _GroupFile(self._folder, self._file)
        return GroupTable(file, np.arange(len(file)))


def stored(groups: Iterable[Group]) -> GroupTable:
    """Return the groups as a table; a table is returned as it is."""
    if isinstance(groups, GroupTable):
        return groups
    writer = GroupWriter()
    for group in groups:
        writer.append(group)
    return writer.finish()


def select(groups: Sequence[Group], kept: Sequence[bool]) -> Sequence[Group]:
    """Return the groups for which `kept` is true."""
    if isinstance(groups, GroupTable):
        return groups.select(kept)
    return [group for group, keep in zip(groups, kept, strict=True) if keep]


def changed_groups(groups: Sequence[Group], change: Callable[[Group], Group]) -> Sequence[Group]:
    """Return `change` of each group; a table of which no group changes is returned as it is."""
    if not isinstance(groups, GroupTable):
        return [change(group) for group in groups]
    if all(change(group) is group for group in groups):
        return groups
    return stored(change(group) for group in groups)


def _encoded(group: Group) -> bytes:
    values = tuple(group.__dict__[name] for name in _FIELDS)
    return pickle.dumps((*values, group._position.file, group._position.line), pickle.HIGHEST_PROTOCOL)


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
