"""Tokenize groups once, into a dataset that all processes map, and read examples from it when a batch needs them.

The dataset is in the cache folder, under a digest of the groups, the tokenizer and the settings; a second run on the
same data tokenizes nothing. An example in memory is a row number and a task.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ..chat.encoding import Encoded, Encoder
from ..data.groups import Finish, StoredGroups, decode_group, stored
from ..io.paths import complete_folder
from ..schema import Group, prompt_key
from .batches import Labels, PreferenceExample, label
from .processes import barrier, is_main
from .steps import Run

_WORKER_ROWS = 20_000  # a process for fewer rows takes longer to start than it saves
_COLUMNS = {
    "key": pa.string(),
    "prompt": pa.string(),
    "task": pa.string(),
    "ids": pa.list_(pa.int32()),  # of the prompt, then of each response
    "lengths": pa.list_(pa.int32()),
    "cut": pa.list_(pa.int32()),
    "empty": pa.list_(pa.int32()),
    "margin": pa.float64(),
    "pairs": pa.binary(),
}


class StoredExample(PreferenceExample):
    """An example in a file; its fields are read on every access, except the task."""

    __slots__ = ("_pairs", "_row", "_table", "_task")

    def __init__(self, table: _ExampleTable, row: int, task: str | None, pairs: Labels | None = None) -> None:
        for name, value in (("_table", table), ("_row", row), ("_task", task), ("_pairs", pairs)):
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def group(self) -> Group:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._table.groups[self._row]

    @property
    def encoded(self) -> Encoded:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._table.encoded(self._row)

    @property
    def task(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._task

    @property
    def pairs(self) -> Labels:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._table.pairs(self._row) if self._pairs is None else self._pairs

    @property
    def margin(self) -> float:
        return self._table.value("margin", self._row) or 0.0

    @property
    def prompt(self) -> str:
        return self._table.value("prompt", self._row)

    @property
    def key(self) -> str:
        return self._table.value("key", self._row)

    def with_task(self, task: str | None) -> PreferenceExample:
        return StoredExample(self._table, self._row, task, self._pairs)

    def with_pairs(self, pairs: Labels) -> PreferenceExample:
        return StoredExample(self._table, self._row, self._task, pairs)

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


class _ExampleTable:
    def __init__(self, groups: StoredGroups, rows: Dataset) -> None:
        self.groups = groups
        self._columns = {name: rows.data.column(name) for name in _COLUMNS}

    def value(self, name: str, row: int) -> Any:
        return self._columns[name][row].as_py()

    def _numbers(self, name: str, row: int) -> list[int]:
        return self._columns[name][row].values.to_numpy().tolist()  # `as_py` is slow for long lists

    def encoded(self, row: int) -> Encoded:
        ids, parts, start = self._numbers("ids", row), list[list[int]](), 0
        for length in self._numbers("lengths", row):
            parts.append(ids[start : start + length])
            start += length
        cut, empty = (frozenset(self._numbers(name, row)) for name in ("cut", "empty"))
        encoded = Encoded(parts[0], parts[1:], cut, empty)
        encoded.__dict__["key"] = self.value("key", row)  # or it would be computed
        return encoded

    def pairs(self, row: int) -> Labels:
        return pickle.loads(self.value("pairs", row))


class Texts(Sequence[Encoded]):
    """The token ids of examples, decoded one at a time."""

    def __init__(self, examples: Sequence[PreferenceExample]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[index].encoded if isinstance(index, int) else Texts(self._examples[index])


def examples_of(run: Run, groups: Sequence[Group]) -> list[PreferenceExample]:
    """Encode the groups and order their pairs.

    One process tokenizes, with a worker per core; the others wait. This is a collective.
    """
    table = stored(groups)
    dataset = tokenized(run.cache.root / "tokens", table, run.model.encoder)
    rows = _ExampleTable(table, dataset)
    return [StoredExample(rows, row, task and sys.intern(task)) for row, task in enumerate(dataset["task"])]


def tokenized(folder: Path, groups: StoredGroups, encoder: Encoder) -> Dataset:
    """Return a dataset with `_COLUMNS` of the groups; write it to `folder` if it is not there.

    A folder that cannot be written is replaced by a temporary one of each process.
    """
    digest = hashlib.sha256(repr((list(_COLUMNS), encoder.fingerprint)).encode())
    for content in groups.contents():
        digest.update(content)
    target = folder / digest.hexdigest()[:24]
    if is_main() and _opened(target, len(groups)) is None:
        with contextlib.suppress(OSError):
            _write(target, groups, encoder)
    barrier()
    if (rows := _opened(target, len(groups))) is not None:
        return rows
    with tempfile.TemporaryDirectory(prefix="dmoerm-tokens-", ignore_cleanup_errors=True) as temporary:
        _write(Path(temporary) / "tokens", groups, encoder)
        return _open(Path(temporary) / "tokens")  # mapped: the files stay readable


def _open(folder: Path) -> Dataset:
    return concatenate_datasets([Dataset.from_file(str(file)) for file in sorted(folder.glob("*.arrow"))])


def _opened(folder: Path, count: int) -> Dataset | None:
    """Return the dataset in a folder, marked as used now; None if the cache lacks a part of it."""
    try:
        rows = _open(folder)
    except (OSError, ValueError, pa.ArrowInvalid):
        return None
    for file in folder.glob("*.arrow"):
        with contextlib.suppress(OSError):
            os.utime(file)
    return rows if len(rows) == count else None


def _write(target: Path, groups: StoredGroups, encoder: Encoder) -> None:
    rows = groups.dataset.select(groups.rows)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(groups) // _WORKER_ROWS + 1)
    with complete_folder(target) as folder, _quiet():
        rows.map(
            partial(_columns, finish=groups.finish, encoder=encoder),
            batched=True,
            num_proc=workers if workers > 1 else None,
            remove_columns=rows.column_names,
            features=Features.from_arrow_schema(pa.schema(list(_COLUMNS.items()))),
            cache_file_name=str(folder / "rows.arrow"),
            new_fingerprint="rows",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _columns(batch: dict[str, list[bytes]], *, finish: Finish, encoder: Encoder) -> dict[str, list[Any]]:
    groups = [finish(decode_group(content)) for content in batch["group"]]
    texts = encoder.encode_all(groups)
    return {
        "key": [text.key for text in texts],
        "prompt": [prompt_key(group.prompt) for group in groups],
        "task": [group.task for group in groups],
        "ids": [sum(text.responses, text.prompt) for text in texts],
        "lengths": [[len(text.prompt), *map(len, text.responses)] for text in texts],
        "cut": [sorted(text.truncated_at) for text in texts],
        "empty": [sorted(text.empty_at) for text in texts],
        "margin": [group.margin for group in groups],
        "pairs": [pickle.dumps(label(group), pickle.HIGHEST_PROTOCOL) for group in groups],
    }
