"""The groups of a run and their split into a training and a test part; both follow from the settings alone.

files → groups, with their labels → a dataset on disk, and in memory what the split needs to know of each group
      → rows of the training and the test part, and the changes that are applied when a group is read
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

from ..config import Config
from ..errors import DataError
from ..labels import attaching, mismatch, read_labels
from ..names import ONE_TASK
from ..schema import Group, prompt_key
from ..taxonomy import Taxonomy, draft_from_names, load_taxonomy
from .groups import Finish, GroupWriter, StoredGroups
from .overall import scales_from
from .readers import check_columns, read_groups
from .splitting import content_order, digest, hold_out, take

_SHOWN_BAD_ROWS = 10


@dataclass(frozen=True)
class Splits:
    """The groups of a run.

    Attributes:
        train, test: the two parts; no prompt is in both.
        validation_prompts: keys of those prompts of `train` that are for validation; empty: `validation_fraction`
            decides.
        taxonomy: the tasks and capabilities in use.
        skipped: reason → count of what the readers left out.
        unknown_columns: column that is not read → number of rows that have it.
        notes: what the run does otherwise than the data or the taxonomy says, in sentences.
    """

    train: Sequence[Group]
    test: Sequence[Group]
    taxonomy: Taxonomy
    skipped: Counter[str]
    unknown_columns: Counter[str]
    validation_prompts: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def load_splits(config: Config, tasks: Mapping[str, Sequence[str]] | None = None) -> Splits:
    """Read, complete and split the data of a run.

    If no group names its task, all have the taxonomy's only task, or `ONE_TASK` without a taxonomy. A capability
    without an ordered pair in the training part is left out of the taxonomy and the groups.

    Args:
        tasks: a model's tasks with their capabilities. Groups without a task then keep none, and no capability is left
            out of the taxonomy.

    Raises:
        DataError: there is no data, a row is bad, or the taxonomy lacks a task or capability.
    """
    data, seed = config.data, config.seed
    check_columns(data.map)
    known = _Reader(config)
    files, held, validation = map(known.read, ("files", "test_files", "validation_files"))
    groups = known.finish([*files, *validation])
    validation = known.without(validation, held, "test_files")

    given, notes, finish = load_taxonomy(config.taxonomy) if config.taxonomy else None, list[str](), Finish()
    only = ONE_TASK if given is None else next(iter(given.tasks)) if len(given.tasks) == 1 else None
    if only and tasks is None and not any(known.tasks):
        notes.append(f"no row names a task: all have the task {only!r}; set data.task to choose another name")
        known.tasks, finish = [only] * len(known.tasks), Finish(task=only)
    taxonomy = given or draft_from_names(known.names_by_task(files) or tasks or {}, "drafted")
    drafted = given is None and tasks is None
    unlabeled = _unknown_names(known, [*files, *validation, *held], groups, taxonomy, drafted)

    rest = known.without(known.without(files, held, "test_files"), validation, "validation_files")
    if data.groups_per_task:
        whole = groups.select(rest, finish)
        taken = take(*known.of(rest), data.groups_per_task, lambda index: content_order(whole[index], seed))
        rest = [rest[index] for index in taken]
    if not held:
        out = hold_out(*known.of(rest), data.test_fraction)
        held, rest = ([row for row, is_out in zip(rest, out, strict=True) if is_out is part] for part in (True, False))
    rest += validation

    if not all(known.graded[row] for row in (*rest, *held)):
        finish = replace(finish, scales=scales_from(groups.select(rest, finish)))
    if tasks is None:
        train = groups.select(rest, replace(finish, human_grades=data.human_labels))
        unlabeled |= _without_pairs(taxonomy, train)
        notes += _single_prompts(taxonomy, *known.of(rest))
    if unlabeled:
        taxonomy = taxonomy.without(unlabeled)
        finish = replace(finish, kept={task: tuple(entry.capabilities) for task, entry in taxonomy.tasks.items()})
        notes += _notes(unlabeled)
    return Splits(
        groups.select(rest, replace(finish, human_grades=data.human_labels)),
        groups.select(held, finish),
        taxonomy,
        known.skipped,
        known.unknown_columns,
        frozenset(prompt_key(group.prompt) for group in groups.select(validation)),
        tuple(notes),
    )


class _Reader:
    """Read the files of a config once, into a dataset on disk, and keep what the split needs to know of each group.

    Attributes:
        tasks: the groups' tasks ("" for none).
        keys: digests of their prompts.
        names: the capabilities of which they have labels.
        graded: whether they have overall grades.
    """

    def __init__(self, config: Config) -> None:
        self._data, self._seed, self._writer = config.data, config.seed, GroupWriter()
        self._labels = [label for path in self._data.label_paths() for label in read_labels(path)]
        self._attach = attaching(self._labels, self._data.soft_labels, self._data.inconsistent_weight)
        self._labeled = False
        self._same: dict[frozenset[str], frozenset[str]] = {}  # groups with the same capabilities share one object
        self.tasks, self.keys, self.names, self.graded = (
            list[str](),
            list[bytes](),
            list[frozenset[str]](),
            list[bool](),
        )
        self.skipped, self.unknown_columns = Counter[str](), Counter[str]()

    def of(self, rows: Sequence[int]) -> tuple[list[str], list[bytes]]:
        """Return the tasks and prompts of these groups."""
        return [self.tasks[row] for row in rows], [self.keys[row] for row in rows]

    def without(self, rows: list[int], others: list[int], setting: str) -> list[int]:
        """Return the groups that have no prompt of the others, which a setting names; count the rest as skipped."""
        prompts = {self.keys[row] for row in others}
        kept = [row for row in rows if self.keys[row] not in prompts]
        if len(kept) < len(rows):
            self.skipped[f"prompt of data.{setting}"] += len(rows) - len(kept)
        return kept

    def names_by_task(self, rows: Sequence[int]) -> dict[str, set[str]]:
        met: dict[str, set[str]] = {}
        for task, names in {(self.tasks[row], self.names[row]) for row in rows if self.tasks[row]}:
            met.setdefault(task, set()).update(names)
        return met

    def read(self, setting: str) -> list[int]:
        """Read the files that a setting names, and return the rows of their groups in the dataset."""
        data, first = self._data, len(self.tasks)
        paths = [data.located(file) for file in getattr(data, setting)]
        for path in paths:
            reading = read_groups(
                path,
                format=data.format,
                split=data.split,
                columns=data.map,
                task=data.task,
                on_error="collect" if data.skip_bad else "raise",
                into=self._take if setting == "test_files" else self._take_with_labels,
            )
            self.skipped += reading.skipped
            self.skipped += Counter(f"bad row: {error}" for error in reading.bad[:_SHOWN_BAD_ROWS])
            self.skipped += Counter({f"further bad rows of {path}": len(reading.bad[_SHOWN_BAD_ROWS:])})
            self.unknown_columns += reading.unknown_columns
        rows = list(range(first, len(self.tasks)))
        if not rows and (paths or setting == "files"):
            message, hint = "the files contain no groups", None if paths else "name at least one file"
            raise DataError(message, field=f"data.{setting}", value=paths, hint=hint)
        return rows

    def _take_with_labels(self, group: Group) -> None:
        group = self._attach(group)
        self._labeled = self._labeled or bool(group.judge_labels)
        self._take(group)

    def _take(self, group: Group) -> None:
        names = frozenset({**group.capabilities, **group.judge_labels})
        self.tasks.append(sys.intern(group.task or ""))
        self.keys.append(digest(self._seed, prompt_key(group.prompt)))
        self.names.append(self._same.setdefault(names, names))
        self.graded.append(group.grades is not None)
        self._writer.append(group)

    def finish(self, labeled: Sequence[int]) -> StoredGroups:
        """Return all groups. Raise `DataError` if there are labels, and none is about one of the rows `labeled`."""
        groups = self._writer.finish()
        if self._data.capability_labels and not self._labeled:
            options = self._data.soft_labels, self._data.inconsistent_weight
            cause, hint = mismatch(groups.select(labeled), self._labels, *options)
            files = list(self._data.capability_labels)
            raise DataError(f"no label is usable: {cause}", field="data.capability_labels", value=files, hint=hint)
        return groups


def _unknown_names(
    known: _Reader, rows: Iterable[int], groups: Sequence[Group], taxonomy: Taxonomy, drafted: bool
) -> set[tuple[str, str]]:
    """Return (task, capability) that the taxonomy lacks and on which the groups order no pair.

    Args:
        drafted: the taxonomy has the names of `data.files`, so that others are of a held-out part: they are returned.

    Raises:
        DataError: the taxonomy lacks a group's task, or a capability on which it orders a pair.
    """
    unlabeled, checked = set[tuple[str, str]](), set[tuple[str, frozenset[str]]]()
    for row in rows:
        task, names = known.tasks[row], known.names[row]
        if not task or (task, names) in checked:
            continue
        if task not in taxonomy.tasks:
            message = "no row of data.files has this task" if drafted else "the taxonomy has no such task"
            more = "rows of the task" if drafted else "the task to the taxonomy"
            hint = f"use one of {', '.join(taxonomy.tasks)}, or add {more}"
            raise DataError(message, file=groups[row].position, field="task", value=task, hint=hint)
        missing = names - taxonomy.tasks[task].capabilities.keys()
        unlabeled |= {(task, name) for name in missing}
        if drafted or not missing:
            checked.add((task, names))
            continue
        group = groups[row]
        if ordered := [
            name
            for name in {**group.capabilities, **group.judge_labels}
            if name in missing and group.labeled_pairs(name)
        ]:
            graded = ordered[0] in group.capabilities
            raise DataError(
                f"the taxonomy's task {task!r} has no such capability",
                file=group.position,
                field="capabilities" if graded else "data.capability_labels",
                value=ordered[0],
                hint=f"add it to the taxonomy or leave it out of the {'data' if graded else 'label files'}",
            )
    return unlabeled


def _without_pairs(taxonomy: Taxonomy, train: Iterable[Group]) -> set[tuple[str, str]]:
    """Return (task, capability) of the taxonomy on which no group orders a pair; one without a task may have any."""
    missing = {(task, name) for task, entry in taxonomy.tasks.items() for name in entry.capabilities}
    for group in train:
        if not missing:
            break
        missing -= {each for each in missing if group.task in (each[0], None) and group.labeled_pairs(each[1])}
    return missing


def _single_prompts(taxonomy: Taxonomy, tasks: Sequence[str], keys: Sequence[bytes]) -> Iterator[str]:
    """Yield a warning if tasks have a single prompt, as if the column of tasks named rows and not kinds of prompts."""
    prompts = Counter(task for task, _ in set(zip(tasks, keys, strict=True)))
    if single := sorted(task for task in taxonomy.tasks if prompts[task] == 1):
        names = ", ".join(single[:3]) + (f" and {len(single) - 3} more" if len(single) > 3 else "")
        yield f"warning: {names}: a single training prompt each; name kinds of prompts that many prompts share"


def _notes(unlabeled: Iterable[tuple[str, str]]) -> Iterator[str]:
    for task, members in groupby(sorted(unlabeled), key=itemgetter(0)):
        names = ", ".join(name for _, name in members)
        yield f"warning: the training part orders no pair of task {task!r} by {names}; no expert is trained for this"
