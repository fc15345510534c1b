"""The groups of a run and their split into a training and a test part; both follow from the settings alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from operator import itemgetter

from ..config import Config
from ..errors import DataError
from ..labels import attaching, mismatch, read_labels
from ..names import ONE_TASK
from ..schema import Group, prompt_key
from ..taxonomy import Taxonomy, draft_taxonomy, load_taxonomy
from .columns import check_columns
from .group_table import GroupTable, GroupWriter, changed_groups, select, stored
from .overall import overall_from_capabilities
from .readers import read_groups
from .splitting import split_by_prompt, take_groups

_SHOWN_BAD_ROWS = 10


@dataclass(frozen=True)
class Splits:
    """The groups of a run.

    Attributes:
        train, test: the two parts, each a `GroupTable` if `load_splits` made it; no prompt is in both.
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

    If no group
    names its task, all have the taxonomy's only task, or `ONE_TASK` without a taxonomy. A capability without an ordered
    pair in the training part is left out of the taxonomy and the groups.

    Args:
        tasks: those of a model with their capabilities. Groups without a task then keep none, and no capability is left
            out of the taxonomy.

    Raises:
        DataError: there is no data, a row is bad, or the taxonomy lacks a task or capability.
    """
    check_columns(config.data.map, files=(*config.data.files, *config.data.test_files, *config.data.validation_files))
    groups, skipped, unknown_columns = _read(config)
    held_out = _read_part(config, "test_files", config.data.test_paths(), skipped, unknown_columns)
    validation = _read_part(config, "validation_files", config.data.validation_paths(), skipped, unknown_columns)
    groups, validation = _with_labels(config, groups, validation)
    validation = _without(validation, held_out, "test_files", skipped)
    given, notes = load_taxonomy(config.taxonomy) if config.taxonomy else None, list[str]()
    only = ONE_TASK if given is None else next(iter(given.tasks)) if len(given.tasks) == 1 else None
    if only and tasks is None and not any(group.task for group in chain(groups, validation, held_out)):
        notes.append(f"no row names a task: all have the task {only!r}; set data.task to choose another name")
        groups, validation, held_out = (
            changed_groups(part, lambda group: group.model_copy(update={"task": only}))
            for part in (groups, validation, held_out)
        )
    taxonomy, drafted = given or draft_taxonomy(groups, "drafted", tasks), given is None and tasks is None
    unlabeled = {
        name for group in chain(groups, validation, held_out) for name in _unknown_names(group, taxonomy, drafted)
    }
    known = _without(groups, held_out, "test_files", skipped)
    known = _without(known, validation, "validation_files", skipped)
    if config.data.groups_per_task:
        known = take_groups(known, config.data.groups_per_task, config.seed)
    train, test = (known, held_out) if held_out else split_by_prompt(known, config.data.test_fraction, config.seed)
    train = stored(chain(train, validation)) if validation else train
    test = overall_from_capabilities(test, scales_of=train)
    train = overall_from_capabilities(train)
    if not config.data.human_labels:
        train = changed_groups(train, lambda group: group.model_copy(update={"capabilities": {}}))
    if tasks is None:
        unlabeled |= _without_pairs(taxonomy, train)
        notes += _single_prompts(taxonomy, train)
    if unlabeled:
        taxonomy = taxonomy.without(unlabeled)
        train, test = (changed_groups(part, partial(_within, taxonomy=taxonomy)) for part in (train, test))
        notes += _notes(unlabeled)
    return Splits(train, test, taxonomy, skipped, unknown_columns, _prompts(validation), tuple(notes))


def _read(config: Config) -> tuple[GroupTable, Counter[str], Counter[str]]:
    writer = GroupWriter()
    skipped: Counter[str] = Counter()
    unknown_columns: Counter[str] = Counter()
    _read_files(config, config.data.paths(), writer, skipped, unknown_columns)
    if not (groups := writer.finish()):
        raise DataError(
            "the data contain no groups",
            field="data.files",
            value=list(config.data.files),
            hint="name at least one file",
        )
    return groups, skipped, unknown_columns


def _read_part(
    config: Config, setting: str, paths: Sequence[str], skipped: Counter[str], unknown_columns: Counter[str]
) -> GroupTable:
    """Return the groups of the files that a setting names; add to both counters."""
    writer = GroupWriter()
    _read_files(config, paths, writer, skipped, unknown_columns)
    groups = writer.finish()
    if paths and not groups:
        raise DataError("the files contain no groups", field=f"data.{setting}", value=paths)
    return groups


def _without(groups: Sequence[Group], others: Sequence[Group], setting: str, skipped: Counter[str]) -> Sequence[Group]:
    """Return the groups that have no prompt of the others, which a setting names; count the rest as skipped."""
    if not others:
        return groups
    prompts = _prompts(others)
    kept = select(groups, [prompt_key(group.prompt) not in prompts for group in groups])
    if len(kept) < len(groups):
        skipped[f"prompt of data.{setting}"] += len(groups) - len(kept)
    return kept


def _prompts(groups: Sequence[Group]) -> frozenset[str]:
    return frozenset(prompt_key(group.prompt) for group in groups)


def _read_files(
    config: Config,
    paths: Sequence[str],
    writer: GroupWriter,
    skipped: Counter[str],
    unknown_columns: Counter[str],
) -> None:
    """Write the groups of the files; add to both counters."""
    for path in paths:
        reading = read_groups(
            path,
            format=config.data.format,
            split=config.data.split,
            columns=config.data.map,
            task=config.data.task,
            on_error="collect" if config.data.skip_bad else "raise",
            into=writer.append,
        )
        skipped += reading.skipped
        skipped += Counter(f"bad row: {error}" for error in reading.bad[:_SHOWN_BAD_ROWS])
        skipped += Counter({f"further bad rows of {path}": len(reading.bad[_SHOWN_BAD_ROWS:])})
        unknown_columns += reading.unknown_columns


def _with_labels(
    config: Config, groups: Sequence[Group], validation: Sequence[Group]
) -> tuple[Sequence[Group], Sequence[Group]]:
    """Return both parts with the judges' labels."""
    settings = config.data
    if not settings.capability_labels:
        return groups, validation
    labels = [label for path in settings.label_paths() for label in read_labels(path)]
    options = (settings.soft_labels, settings.inconsistent_weight)
    attach = attaching(labels, *options)
    labeled = changed_groups(groups, attach), changed_groups(validation, attach)
    if not any(group.judge_labels for group in chain(*labeled)):
        cause, hint = mismatch(chain(*labeled), labels, *options)
        paths = list(settings.capability_labels)
        raise DataError(f"no label is usable: {cause}", field="data.capability_labels", value=paths, hint=hint)
    return labeled


def _within(group: Group, taxonomy: Taxonomy) -> Group:
    """Remove grades and labels of capabilities that the taxonomy's task lacks."""
    if group.task is None:
        return group  # the router assigns one later
    kept = taxonomy.tasks[group.task].capabilities
    labels = {"capabilities": group.capabilities, "judge_labels": group.judge_labels}
    return group.model_copy(update={k: {n: v for n, v in grades.items() if n in kept} for k, grades in labels.items()})


def _without_pairs(taxonomy: Taxonomy, train: Sequence[Group]) -> set[tuple[str, str]]:
    """Return (task, capability) of the taxonomy on which no group orders a pair; one without a task may have any."""
    missing = {(task, name) for task, entry in taxonomy.tasks.items() for name in entry.capabilities}
    for group in train:
        if not missing:
            break
        missing -= {each for each in missing if group.task in (each[0], None) and group.labeled_pairs(each[1])}
    return missing


def _single_prompts(taxonomy: Taxonomy, train: Sequence[Group]) -> Iterator[str]:
    """Yield a warning if tasks have a single prompt, as if the column of tasks named rows and not kinds of prompts."""
    prompts: dict[str | None, str] = {}
    open_tasks = set(taxonomy.tasks)
    for group in train:
        if group.task in open_tasks and prompts.setdefault(group.task, key := prompt_key(group.prompt)) != key:
            open_tasks.remove(group.task)
            if not open_tasks:
                return
    if single := sorted(open_tasks & prompts.keys()):
        names = ", ".join(single[:3]) + (f" and {len(single) - 3} more" if len(single) > 3 else "")
        yield f"warning: {names}: a single training prompt each; name kinds of prompts that many prompts share"


def _notes(unlabeled: Iterable[tuple[str, str]]) -> Iterator[str]:
    for task, members in groupby(sorted(unlabeled), key=itemgetter(0)):
        names = ", ".join(name for _, name in members)
        yield f"warning: the training part orders no pair of task {task!r} by {names}; no expert is trained for this"


def _unknown_names(group: Group, taxonomy: Taxonomy, drafted: bool) -> Iterator[tuple[str, str]]:
    """Yield (task, capability) that the taxonomy lacks and on which the group orders no pair.

    Args:
        drafted: the taxonomy has the names of `data.files`, so that others are of a held-out part: they are yielded.

    Raises:
        DataError: the taxonomy lacks the group's task, or a capability on which it orders a pair.
    """
    if group.task is None:
        return
    if group.task not in taxonomy.tasks:
        known = ", ".join(taxonomy.tasks)
        raise DataError(
            "no row of data.files has this task" if drafted else "the taxonomy has no such task",
            file=group.position,
            field="task",
            value=group.task,
            hint=f"use one of {known}, or add {'rows of the task' if drafted else 'the task to the taxonomy'}",
        )
    for capability in {**group.capabilities, **group.judge_labels}:
        if capability in taxonomy.tasks[group.task].capabilities:
            continue
        if drafted or not group.labeled_pairs(capability):
            yield group.task, capability
        else:
            graded = capability in group.capabilities
            raise DataError(
                f"the taxonomy's task {group.task!r} has no such capability",
                file=group.position,
                field="capabilities" if graded else "data.capability_labels",
                value=capability,
                hint=f"add it to the taxonomy or leave it out of the {'data' if graded else 'label files'}",
            )
