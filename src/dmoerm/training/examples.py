"""Labeled groups as examples: tokenized once into a dataset that all processes map, read when a batch needs them.

The dataset is in the cache folder, under a digest of the groups, the tokenizer and the settings; a second run on the
same data tokenizes nothing. An example in memory is a row number and a task.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets
from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from ..chat.encoding import Encoded, Encoder
from ..data.groups import Finish, StoredGroups, decode_group, stored
from ..io.paths import complete_folder
from ..schema import Group, Pair, prompt_key
from .processes import barrier, is_main

Labels = Mapping[str | None, Sequence[Pair]]
"""Capability (None: overall) → ordered pairs."""
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


class PreferenceExample:
    """An encoded group with its ordered pairs, in a row of a dataset. Each property is read at every access.

    Attributes:
        task: the group's task, or the one that the router assigns; None without either.
    """

    __slots__ = ("_pairs", "_row", "_table", "task")

    def __init__(self, table: ExampleTable, row: int, task: str | None) -> None:
        self._table, self._row, self.task = table, row, task
        self._pairs: Labels | None = None

    @property
    def group(self) -> Group:
        """The group, with its texts."""
        return self._table.groups[self._row]

    @property
    def encoded(self) -> Encoded:
        """The token ids."""
        return self._table.encoded(self._row)

    @property
    def key(self) -> str:
        """The hash of the token ids, which is the key in the activation cache."""
        return self._table.value("key", self._row)

    @property
    def prompt(self) -> str:
        """The normalized text of the prompt; examples with equal texts have the same prompt."""
        return self._table.value("prompt", self._row)

    @property
    def margin(self) -> float:
        """The minimum difference between the rewards of the two responses; 0 if the group has none."""
        return self._table.value("margin", self._row) or 0.0

    @property
    def pairs(self) -> Labels:
        """The ordered pairs, overall and by capability."""
        return pickle.loads(self._table.value("pairs", self._row)) if self._pairs is None else self._pairs

    def with_task(self, task: str | None) -> PreferenceExample:
        """Return the example with another task."""
        changed = copy.copy(self)
        changed.task = task
        return changed

    def with_pairs(self, pairs: Labels) -> PreferenceExample:
        """Return the example with other pairs."""
        changed = copy.copy(self)
        changed._pairs = pairs
        return changed


class ExampleTable:
    """The groups, and the rows of `_COLUMNS` that belong to them."""

    def __init__(self, groups: StoredGroups, rows: Dataset) -> None:
        self.groups = groups
        self._columns = {name: rows.data.column(name) for name in _COLUMNS}

    def value(self, name: str, row: int) -> Any:
        """Return a value of a row."""
        return self._columns[name][row].as_py()

    def encoded(self, row: int) -> Encoded:
        """Return the token ids of a row."""

        def numbers(name: str) -> list[int]:
            return self._columns[name][row].values.to_numpy().tolist()  # `as_py` is slow for long lists

        ids, parts, start = numbers("ids"), list[list[int]](), 0
        for length in numbers("lengths"):
            parts.append(ids[start : start + length])
            start += length
        encoded = Encoded(parts[0], parts[1:], frozenset(numbers("cut")), frozenset(numbers("empty")))
        encoded.__dict__["key"] = self.value("key", row)  # or it would be computed
        return encoded


def labeled(
    examples: Sequence[PreferenceExample], capabilities: Sequence[str | None] = (None,)
) -> list[PreferenceExample]:
    """Return the examples that order at least one pair on one of the capabilities (None: overall)."""
    return [example for example in examples if any(map(example.pairs.get, capabilities))]


def encoded_examples(folder: Path, encoder: Encoder, groups: Sequence[Group]) -> list[PreferenceExample]:
    """Encode the groups and order their pairs, or read them from `folder` if an earlier run has done so.

    One process tokenizes, with a worker per core; the others wait. This is a collective. A folder that cannot be
    written is replaced by a temporary one of each process.
    """
    table = stored(groups)
    digest = hashlib.sha256(repr((list(_COLUMNS), encoder.fingerprint)).encode())
    for content in table.contents():
        digest.update(content)
    target = folder / digest.hexdigest()[:24]
    if is_main() and _opened(target, len(table)) is None:
        with contextlib.suppress(OSError):
            _write(target, table, encoder)
    barrier()
    if (dataset := _opened(target, len(table))) is None:
        with tempfile.TemporaryDirectory(prefix="dmoerm-tokens-", ignore_cleanup_errors=True) as temporary:
            _write(Path(temporary) / "tokens", table, encoder)
            dataset = _open(Path(temporary) / "tokens")  # mapped: the files stay readable
    rows = ExampleTable(table, dataset)
    return [PreferenceExample(rows, row, task and sys.intern(task)) for row, task in enumerate(dataset["task"])]


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


def label(group: Group) -> Labels:
    """Return the group's ordered pairs, overall (None) and by capability."""
    capabilities = {**group.capabilities, **group.judge_labels}
    return {None: group.pairs()} | {name: group.labeled_pairs(name) for name in capabilities}
