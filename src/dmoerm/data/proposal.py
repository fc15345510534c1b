"""Propose what a config needs to know about data of any format: tasks, capabilities, and groups that can be trained on.

rows → groups with tasks: those of the data, a column's values, or clusters of prompts → without what is too rare
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, DataError, did_you_mean
from ..names import MAX_LENGTH, ONE_TASK, RESERVED_TASKS
from ..schema import Group, messages_of, prompt_key
from .prompt_clusters import cluster_prompts
from .readers import ColumnMap, Reading, read_groups
from .rows import open_rows
from .values import Row, as_name

MIN_PROMPTS = 10
"""The fewest prompts with an ordered pair that a task or a capability is proposed for: some are held out."""
TASK_COLUMNS = ("category", "domain", "subset", "type", "topic", "source", "dataset")
"""Columns whose values are proposed as tasks, the first that the rows have, if the data itself names no task."""
GENERAL = {
    "helpfulness": "The answer does what the user asks for, in a form that the user can use.",
    "correctness": "What the answer states is true, and its reasoning has no errors.",
    "completeness": "The answer covers each part of the request and leaves out nothing that matters.",
    "clarity": "The answer is well ordered, easy to understand and no longer than it needs to be.",
}
"""Capabilities of all kinds of data, with their rubrics, for tasks without capability grades."""
_HARMLESSNESS = "The answer gives no help with harming anyone, and is neither offensive nor deceptive."
_CONTEXT = "The answer continues the conversation: it builds on what was said before and does not contradict it."
_CODE = "The code in the answer runs, does what is asked for and is easy to read."
_SAFETY = re.compile(r"hh[_-]?rlhf|harm|safe|toxic", re.IGNORECASE)
_MAX_VALUES, _COVERED = 20, 0.95
_OTHERS = "other"


@dataclass(frozen=True)
class Proposal:
    """Groups that can be trained on.

    Attributes:
        groups: with their tasks; None: the router decides.
        formats: the format of each source.
        tasks_from: where the tasks come from, in words.
        one_task: the task of all groups if the data names none and the prompts are alike.
        changed: whether reading the sources, with `one_task` as the task, would give other groups.
        rejected: whether the sources have rows that are not groups; `dmoerm score` may reject them, too.
        general: capability → rubric, drafted by the kind of data for tasks without capability grades.
        notes: what was left out, sentences without a full stop.
    """

    groups: list[Group]
    formats: list[str]
    tasks_from: str
    one_task: str | None
    changed: bool
    rejected: bool
    general: dict[str, str]
    notes: list[str]


def propose(
    sources: Sequence[str],
    *,
    format: str = "auto",
    split: str = "train",
    columns: ColumnMap | None = None,
    task_column: str | None = None,
    clusters: int | None = None,
) -> Proposal:
    """Read the sources and propose tasks and capabilities.

    Args:
        columns: field of the format → column of the sources, where the names differ.
        task_column: the column whose values are the tasks; None: see `TASK_COLUMNS`.
        clusters: the number of clusters of prompts if no column names tasks; None: chosen by the data.

    Raises:
        ConfigError: the format or the column does not exist, or the prompts do not fall into that many clusters.
        DataError: a source cannot be read, or fewer than `MIN_PROMPTS` prompts have an ordered pair.
    """
    rows = {source: list(open_rows(source, split)) for source in sources}
    whole = [row for placed in rows.values() for _, row in placed if not isinstance(row, DataError)]

    def read() -> list[Reading]:
        options: dict[str, Any] = {"format": format, "columns": columns, "on_error": "collect"}
        return [read_groups(source, rows=placed, **options) for source, placed in rows.items()]

    readings = read()
    named = any(group.task for reading in readings for group in reading.groups)
    if clusters and (named or task_column):
        raise ConfigError("--clusters: the tasks are those of the data or of --task-column; leave it out")
    column = task_column or (None if named or clusters else _task_column(whole))
    if column:
        known = {name for row in whole for name in row}
        if column not in known:
            hint = did_you_mean(column, known) or f"use one of {', '.join(sorted(known))}"
            raise ConfigError(f"--task-column: no row has the column {column!r}; {hint}")
        for row in whole:
            row["task"] = _task_of(row, column)
        readings = read()
    groups = given = [group for reading in readings for group in reading.groups]
    if (ordered := _prompts(groups, _ordered)) < MIN_PROMPTS:
        if bad := [reading.bad[0] for reading in readings if reading.bad and not reading.groups]:
            raise bad[0]
        hint = (
            f"at least {MIN_PROMPTS} are needed, some of them held out; `dmoerm data check` counts what the file holds"
        )
        message = f"{ordered} prompts have two responses of which one is preferred"
        raise DataError(message, file=", ".join(sources), hint=hint)
    tasks_from = f"the column `{column}`" if column else "the data"
    if not column and not named:
        groups = _clustered(groups, clusters)
        alike = any(group.task == ONE_TASK for group in groups)
        if clusters and clusters > 1 and alike:
            hint = f"each needs {MIN_PROMPTS} prompts with words of its own; name a column by --task-column"
            raise ConfigError(f"--clusters: the prompts do not fall into {clusters} clusters; {hint}")
        tasks_from = "default: the prompts are alike" if alike else "clusters of the prompts' words"
    notes = list[str]()
    for reading in readings:
        if reading.bad:
            bad_rows = f"{len(reading.bad)} bad row{'s' * (len(reading.bad) > 1)}"
            notes.append(f"{bad_rows} left out, the first: {reading.bad[0]}")
        notes += [f"left out: {reason} ({count})" for reason, count in reading.skipped.items()]
    kept = _without_rare(groups, notes)
    one_task = ONE_TASK if {group.task for group in groups} == {ONE_TASK} else None
    same = kept == [group.model_copy(update={"task": group.task or one_task}) for group in given]
    changed = bool(column) or not same or any(reading.bad for reading in readings)
    rejected = any(reading.bad or any(r.startswith("row:") for r in reading.skipped) for reading in readings)
    formats = [reading.format for reading in readings]
    return Proposal(kept, formats, tasks_from, one_task, changed, rejected, _general(kept, formats), notes)


def _prompts(groups: Iterable[Group], chosen: Callable[[Group], Any]) -> int:
    return len({prompt_key(group.prompt) for group in groups if chosen(group)})


def _ordered(group: Group) -> bool:
    return bool(group.pairs() or (group.grades is None and any(map(group.pairs, group.capabilities))))


def _task_column(rows: Sequence[Row]) -> str | None:
    """Return the first of `TASK_COLUMNS` that nearly all rows have, with few values."""
    for name in TASK_COLUMNS:
        values = Counter(row[name] for row in rows if isinstance(row.get(name), str) and row[name].strip())
        common = [count for count in values.values() if count >= MIN_PROMPTS]
        if 1 < len(values) <= _MAX_VALUES and len(common) > 1 and values.total() >= _COVERED * len(rows):
            return name
    return None


def _task_of(row: Row, column: str) -> str | None:
    value = row.get(column)
    text = " ".join(str(value).split())[:MAX_LENGTH].strip() if value is not None else ""
    name = as_name(text) if text.isascii() else text
    return f"{name}_" if name in RESERVED_TASKS else name if text else None


def _clustered(groups: Sequence[Group], clusters: int | None) -> list[Group]:
    texts = {
        prompt_key(group.prompt): "\n".join(t.text for t in messages_of(group.prompt) if t.role != "assistant")
        for group in groups
    }
    names = dict(zip(texts, cluster_prompts(list(texts.values()), MIN_PROMPTS, clusters), strict=True))
    return [group.model_copy(update={"task": names[prompt_key(group.prompt)]}) for group in groups]


def _general(groups: Sequence[Group], formats: Sequence[str]) -> dict[str, str]:
    """Return capabilities that suit the kind of data: harmless answers, conversations of several turns, code."""
    named = {name for group in groups for name in (group.task, group.source) if name}
    capabilities = dict(GENERAL)
    if "hh" in formats or any(map(_SAFETY.search, named)):
        capabilities["harmlessness"] = _HARMLESSNESS
    if sum(any(turn.role == "assistant" for turn in messages_of(group.prompt)) for group in groups) > len(groups) / 2:
        capabilities["context"] = _CONTEXT
    if sum(any("```" in text for text in group.responses) for group in groups) > len(groups) / 4:
        capabilities["code_quality"] = _CODE
    return capabilities


def _without_rare(groups: Sequence[Group], notes: list[str]) -> list[Group]:
    """Join tasks with too few prompts in one, and remove capabilities with too few; add to the notes."""
    by_task: dict[str | None, list[Group]] = {}
    for group in groups:
        by_task.setdefault(group.task, []).append(group)
    small = {task for task in by_task if task and _prompts(by_task[task], _ordered) < MIN_PROMPTS}
    if small:
        total = _prompts((g for g in groups if g.task in small or g.task == _OTHERS), _ordered)
        target = _OTHERS if total >= MIN_PROMPTS else None
        where = f"the task {_OTHERS}" if target else "no task: the router decides"
        notes.append(f"tasks with fewer than {MIN_PROMPTS} prompts have {where} ({', '.join(sorted(small))})")
        groups = [group.model_copy(update={"task": target}) if group.task in small else group for group in groups]
    rare = set[tuple[str | None, str]]()
    for task in dict.fromkeys(group.task for group in groups if group.task):
        members = [group for group in groups if group.task == task]
        for name in dict.fromkeys(name for group in members for name in group.capabilities):
            if (count := _prompts(members, lambda group, name=name: group.pairs(name))) < MIN_PROMPTS:
                rare.add((task, name))
                notes.append(f"{task}: the capability {name} is left out ({count} prompts)")
    reduced = []
    for group in groups:
        left = {name: grades for name, grades in group.capabilities.items() if (group.task, name) not in rare}
        group = group if left == group.capabilities else group.model_copy(update={"capabilities": left})
        if group.grades is not None or group.capabilities:
            reduced.append(group)
    return reduced
