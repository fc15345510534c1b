"""The groups of a run and their split into a training and a test part; both follow from the settings alone.

files → groups, with their labels → a dataset on disk, and in memory what the split needs to know of each group
      → rows of the training and the test part, and the changes that are applied when a group is read

Choices are made by prompt, since groups on one prompt are not independent. They follow from the seed and the prompt's
text, so they do not depend on the order of the rows, the process or the version of a random number generator.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from ..config import Config
from ..errors import ConfigError, DataError
from ..labels import attaching, mismatch, read_labels
from ..names import ONE_TASK
from ..schema import Group, prompt_key
from ..taxonomy import Taxonomy, draft_from_names, load_taxonomy
from .groups import Finish, GroupWriter, StoredGroups, scales_from
from .readers import check_columns, read_groups

_SHOWN_BAD_ROWS = 10
TaskPrompt = tuple[str, bytes]
"""A group's task ("" for none) and the digest of its prompt, by which prompts are ordered."""


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
    reader = _Reader(config)
    files, held, validation = map(reader.read, ("files", "test_files", "validation_files"))
    groups = reader.finish([*files, *validation])
    validation = reader.without(validation, held, "test_files")

    given, notes, finish = load_taxonomy(config.taxonomy) if config.taxonomy else None, list[str](), Finish()
    only = ONE_TASK if given is None else next(iter(given.tasks)) if len(given.tasks) == 1 else None
    if only and tasks is None and not any(known.task for known in reader.known):
        notes.append(f"no row names a task: all have the task {only!r}; set data.task to choose another name")
        reader.known, finish = [known._replace(task=only) for known in reader.known], Finish(task=only)
    named: dict[str, set[str]] = {}
    for known in map(reader.known.__getitem__, files):
        if known.task:
            named.setdefault(known.task, set()).update(known.names)
    taxonomy = given or draft_from_names(named or tasks or {}, "drafted")
    drafted = given is None and tasks is None
    unlabeled = _unknown_names(reader.known, [*files, *validation, *held], groups, taxonomy, drafted)

    rest = reader.without(reader.without(files, held, "test_files"), validation, "validation_files")
    if data.groups_per_task:
        whole = groups.select(rest, finish)
        taken = take(reader.prompts(rest), data.groups_per_task, lambda index: content_order(whole[index], seed))
        rest = [rest[index] for index in taken]
    if not held:
        out = hold_out(reader.prompts(rest), data.test_fraction)
        held, rest = ([row for row, is_out in zip(rest, out, strict=True) if is_out is part] for part in (True, False))
    rest += validation

    if not all(reader.known[row].graded for row in (*rest, *held)):
        finish = replace(finish, scales=scales_from(groups.select(rest, finish)))
    trained = replace(finish, human_grades=data.human_labels)
    if tasks is None:
        unlabeled |= _without_pairs(taxonomy, groups.select(rest, trained))
        # the column of tasks may name rows and not kinds of prompts
        prompts = Counter(task for task, _ in set(reader.prompts(rest)))
        if single := sorted(task for task in taxonomy.tasks if prompts[task] == 1):
            names = ", ".join(single[:3]) + (f" and {len(single) - 3} more" if len(single) > 3 else "")
            hint = "name kinds of prompts that many prompts share"
            notes.append(f"warning: {names}: a single training prompt each; {hint}")
    if unlabeled:
        taxonomy = taxonomy.without(unlabeled)
        kept = {task: tuple(entry.capabilities) for task, entry in taxonomy.tasks.items()}
        finish, trained = (replace(each, kept=kept) for each in (finish, trained))
        for task, members in groupby(sorted(unlabeled), key=itemgetter(0)):
            fault = f"the training part orders no pair of task {task!r} by {', '.join(name for _, name in members)}"
            notes.append(f"warning: {fault}; no expert is trained for this")
    return Splits(
        groups.select(rest, trained),
        groups.select(held, finish),
        taxonomy,
        reader.skipped,
        reader.unknown_columns,
        frozenset(prompt_key(group.prompt) for group in groups.select(validation)),
        tuple(notes),
    )


class _GroupFacts(NamedTuple):
    """What the split needs to know of a group."""

    task: str  # "" for none
    prompt: bytes  # digest
    names: frozenset[str]  # of the capabilities of which it has labels
    graded: bool  # it has overall grades


class _Reader:
    """Read the files of a config once, into a dataset on disk; `known` is what the split needs to know of each row."""

    def __init__(self, config: Config) -> None:
        self._data, self._seed, self._writer = config.data, config.seed, GroupWriter()
        self._labels = [label for path in self._data.label_paths() for label in read_labels(path)]
        self._attach = attaching(self._labels, self._data.soft_labels, self._data.inconsistent_weight)
        self._labeled = False
        self._same: dict[frozenset[str], frozenset[str]] = {}  # groups with the same capabilities share one object
        self.known: list[_GroupFacts] = []
        self.skipped, self.unknown_columns = Counter[str](), Counter[str]()

    def prompts(self, rows: Sequence[int]) -> list[TaskPrompt]:
        return [self.known[row][:2] for row in rows]

    def without(self, rows: list[int], others: list[int], setting: str) -> list[int]:
        """Return the groups that have no prompt of the others, which a setting names; count the rest as skipped."""
        prompts = {self.known[row].prompt for row in others}
        kept = [row for row in rows if self.known[row].prompt not in prompts]
        if len(kept) < len(rows):
            self.skipped[f"prompt of data.{setting}"] += len(rows) - len(kept)
        return kept

    def read(self, setting: str) -> list[int]:
        """Read the files that a setting names, and return the rows of their groups in the dataset."""
        data, first, attach = self._data, len(self.known), setting != "test_files"

        def append(group: Group) -> None:
            group = self._attach(group) if attach else group
            self._labeled = self._labeled or bool(group.judge_labels and attach)
            names = frozenset({**group.capabilities, **group.judge_labels})
            prompt = digest(self._seed, prompt_key(group.prompt))
            task, names = sys.intern(group.task or ""), self._same.setdefault(names, names)
            self.known.append(_GroupFacts(task, prompt, names, group.grades is not None))
            self._writer.append(group)

        paths = [data.located(file) for file in getattr(data, setting)]
        on_error = "collect" if data.skip_bad else "raise"
        options: dict[str, Any] = {"format": data.format, "split": data.split, "columns": data.map, "task": data.task}
        for path in paths:
            reading = read_groups(path, on_error=on_error, into=append, **options)
            self.skipped += reading.skipped
            self.skipped += Counter(f"bad row: {error}" for error in reading.bad[:_SHOWN_BAD_ROWS])
            self.skipped += Counter({f"further bad rows of {path}": len(reading.bad[_SHOWN_BAD_ROWS:])})
            self.unknown_columns += reading.unknown_columns
        rows = list(range(first, len(self.known)))
        if not rows and (paths or setting == "files"):
            message, hint = "the files contain no groups", None if paths else "name at least one file"
            raise DataError(message, field=f"data.{setting}", value=paths, hint=hint)
        return rows

    def finish(self, labeled: Sequence[int]) -> StoredGroups:
        """Return all groups. Raise `DataError` if there are labels, and none is about one of the rows `labeled`."""
        groups = self._writer.finish()
        if self._data.capability_labels and not self._labeled:
            options = self._data.soft_labels, self._data.inconsistent_weight
            message = f"no label is usable: {mismatch(groups.select(labeled), self._labels, *options)}"
            hint = "name the data that were labeled; `dmoerm label report` shows the labels"
            raise DataError(message, field="data.capability_labels", hint=hint)
        return groups


def _unknown_names(
    known: Sequence[_GroupFacts], rows: Iterable[int], groups: Sequence[Group], taxonomy: Taxonomy, drafted: bool
) -> set[tuple[str, str]]:
    """Return (task, capability) that the taxonomy lacks and on which the groups order no pair.

    Args:
        drafted: the taxonomy has the names of `data.files`, so that others are of a held-out part: they are returned.

    Raises:
        DataError: the taxonomy lacks a group's task, or a capability on which it orders a pair.
    """
    unlabeled, checked = set[tuple[str, str]](), set[tuple[str, frozenset[str]]]()
    for row in rows:
        task, names = known[row].task, known[row].names
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
        for name in (name for name in {**group.capabilities, **group.judge_labels} if name in missing):
            if group.labeled_pairs(name):
                graded = name in group.capabilities
                raise DataError(
                    f"the taxonomy's task {task!r} has no such capability",
                    file=group.position,
                    field="capabilities" if graded else "data.capability_labels",
                    value=name,
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


# --- choices by prompt ---------------------------------------------------------------------------------------------


def digest(seed: object, text: str) -> bytes:
    """Return a hash by which prompts are ordered: like a random number, but it follows from the seed and the text."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def content_order(group: Group, seed: int) -> bytes:
    """Return what orders the groups on one prompt."""
    return digest(seed, group.model_dump_json(exclude={"judge_labels"}))


def held_out(groups: Iterable[Group], fraction: float, seed: int = 0) -> list[bool]:
    """Return whether each group is held out; see `hold_out`."""
    return hold_out([(group.task or "", digest(seed, prompt_key(group.prompt))) for group in groups], fraction)


def hold_out(groups: Sequence[TaskPrompt], fraction: float) -> list[bool]:
    """Hold out about `fraction` of each task's prompts.

    All groups on one prompt are in the same part, whatever their tasks. For 0 < fraction < 1, each task with two or
    more prompts has at least one in each part (if prompts shared between tasks allow it), and the only prompt of a task
    stays in the rest.

    Raises:
        ConfigError: the fraction is outside 0 … 1.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"fraction must be between 0 and 1 (got {fraction}); 0.2 is 20 %")
    prompts: dict[str, set[bytes]] = {}
    for task, key in groups:
        prompts.setdefault(task, set()).add(key)
    held, placed = set[bytes](), set[bytes]()
    # Tasks with the fewest prompts choose first: shared prompts constrain them most.
    for task in sorted(prompts, key=lambda name: (len(prompts[name]), name)):
        its_keys = prompts[task]
        count = round(len(its_keys) * fraction)
        if 0 < fraction < 1:
            count = min(max(count, 1), len(its_keys) - 1)  # of a single prompt: none
        missing = count - len(its_keys & held)
        held.update(sorted(its_keys - placed)[: max(0, missing)])
        placed |= its_keys
    return [key in held for _, key in groups]


def take(groups: Sequence[TaskPrompt], per_task: int, order: Callable[[int], Any]) -> list[int]:
    """Return the indices, ascending, of at most `per_task` groups of each task, on as many prompts as possible.

    A larger `per_task` returns the same groups and more.

    Args:
        order: index → what orders the groups on one prompt; it is called for prompts with several groups only.
    """
    by_task: dict[str, dict[bytes, list[int]]] = {}
    for index, (task, key) in enumerate(groups):
        by_task.setdefault(task, {}).setdefault(key, []).append(index)
    taken: list[int] = []
    for prompts in by_task.values():
        # one group of every prompt, then a second of every prompt that has two, and so on
        turns = [
            (turn, key, index)
            for key, indices in prompts.items()
            for turn, index in enumerate(sorted(indices, key=order) if len(indices) > 1 else indices)
        ]
        taken += [index for _, _, index in sorted(turns)[:per_task]]
    return sorted(taken)
