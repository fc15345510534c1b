"""Statistics of preference data: counts, ties, lengths, agreement, truncation and bad rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..chat.truncation import count_truncation
from ..errors import DataError, shorten
from ..schema import Grades, Group, Query, messages_of, prompt_key
from .readers import ColumnMap, Reading, read_groups

if TYPE_CHECKING:
    from ..chat.encoding import Encoded

NO_TASK = "(no task)"
"""The name of groups without a task in the result."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")  # Chinese and Japanese have no spaces, so a character counts as a word


class Tokenizer(Protocol):
    """The method of a tokenizer that is used; tokenizers of `transformers` have it."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]: ...


def data_statistics(
    sources: Iterable[str | Path],
    tokenizer: Tokenizer | None = None,
    *,
    encode: Callable[[Query], Encoded] | None = None,
    format: str = "auto",
    split: str = "train",
    columns: ColumnMap | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """Return statistics of the sources as a dictionary that can be written as JSON.

        sources       per source: format (None: unknown), rows, groups, number of bad rows; skipped and
                      unknown_columns with counts
        tasks         task → groups, prompts, responses, ordered pairs, tied pairs, tie_share (None: no overall grades)
        capabilities  task → capability → groups, ordered pairs, tied pairs, tie_share
        lengths       unit (tokens, or words without a tokenizer), task → prompt and response → p50, p95, max
        agreement     task → "overall" or capability → value (0 … 1 or None), pairs, comparisons, unaligned_pairs
        truncation    task → responses, truncated, identical_pairs (see `TruncationCounts`; None without `encode`)
        duplicates    repeated_prompts, groups_on_them, repeated_groups, prompts_in_several_tasks
        bad           every bad row: file, line, field, message, value, hint

    No `DataError` is raised: a source that cannot be read is in `bad`, too.
    """
    groups, bad, summaries = list[Group](), list[DataError](), list[dict[str, Any]]()
    for source in sources:
        try:
            options = {"format": format, "split": split, "columns": columns, "task": task}
            reading = read_groups(source, on_error="collect", **options)
        except DataError as error:
            reading = Reading(bad=[error])
        groups += reading.groups
        bad += reading.bad
        summaries.append(
            {"source": str(source), "format": reading.format or None, "rows": reading.rows}
            | {"groups": len(reading.groups), "bad": len(reading.bad)}
            | {"skipped": dict(reading.skipped), "unknown_columns": dict(reading.unknown_columns)}
        )
    by_task: dict[str, list[Group]] = {}
    for group in sorted(groups, key=lambda group: group.task or NO_TASK):
        by_task.setdefault(group.task or NO_TASK, []).append(group)
    capabilities = dict[str, dict[str, Any]]()
    for task_name, members in by_task.items():
        names = sorted({name for group in members for name in group.capabilities})
        graded = {name: [(g, g.capabilities[name]) for g in members if name in g.capabilities] for name in names}
        capabilities[task_name] = {name: {"groups": len(g), **_pair_counts(g)} for name, g in graded.items()}
    return {
        "schema": 1,
        "sources": summaries,
        "tasks": {
            task: {
                "groups": len(members),
                "prompts": len({prompt_key(group.prompt) for group in members}),
                "responses": sum(len(group.responses) for group in members),
                **_pair_counts((group, group.grades) for group in members),
            }
            for task, members in by_task.items()
        },
        "capabilities": capabilities,
        "lengths": _lengths(by_task, tokenizer),
        "agreement": {task: values for task, members in by_task.items() if (values := _agreement(members))},
        "truncation": encode
        and {task: asdict(count_truncation(_encoded(members, encode, bad))) for task, members in by_task.items()},
        "duplicates": _duplicates(groups),
        "bad": [
            {name: getattr(error, name) for name in ("line", "field", "message", "hint")}
            | {"file": None if error.file is None else str(error.file)}
            | {"value": None if error.value is None else shorten(error.value)}
            for error in bad
        ],
    }


def _pair_counts(graded: Iterable[tuple[Group, Grades | None]]) -> dict[str, Any]:
    ordered = tied = 0
    for group, grades in graded:
        present = [(index, grade) for index, grade in enumerate(grades or ()) if grade is not None]
        for (i, first), (j, second) in combinations(present, 2):
            ordered += first != second and group.differ(i, j)
            tied += first == second
    share = tied / (ordered + tied) if ordered + tied else None
    return {"pairs": ordered, "tied_pairs": tied, "tie_share": share}


def _lengths(by_task: dict[str, list[Group]], tokenizer: Tokenizer | None) -> dict[str, Any]:
    def spread(texts: Iterable[str]) -> dict[str, int]:
        if tokenizer is None:
            known = list(map(count_words, texts))
        else:  # without the tokens that a chat template adds per turn
            known = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
        p50, p95 = np.percentile(known, [50, 95], method="inverted_cdf")
        return {"p50": int(p50), "p95": int(p95), "max": max(known)}

    tasks = {}
    for task, groups in by_task.items():
        prompts = {prompt_key(group.prompt): group.prompt for group in groups}.values()
        texts = ["\n".join(message.text for message in messages_of(prompt)) for prompt in prompts]
        responses = [text for group in groups for text in group.responses]
        tasks[task] = {"prompt": spread(texts), "response": spread(responses)}
    return {"unit": "words" if tokenizer is None else "tokens", "tasks": tasks}


def count_words(text: str) -> int:
    """Return the number of words; a Chinese or Japanese character counts as one."""
    return len(_WORD.findall(text))


def _encoded(
    groups: list[Group], encode: Callable[[Query], Encoded], bad: list[DataError]
) -> Iterable[tuple[Query, Encoded]]:
    """Yield groups with their ids. Append the error of a group whose roles do not fit the chat template to `bad`."""
    for group in groups:
        try:
            yield group, encode(group)
        except DataError as error:
            bad.append(error)


def _agreement(groups: list[Group]) -> dict[str, Any]:
    """Compute the share of comparisons (two annotators, each preferring one of two responses) with the same choice.

    The i-th grades of two responses are taken as one person's. If the responses have different numbers of grades, this
    cannot be known, and the pair is counted as unaligned.
    """
    agreeing, comparisons, pairs, unaligned = (Counter[str]() for _ in range(4))
    for group in groups:
        for name, people in group.annotators.items():
            for first, second in combinations(people, 2):
                if len(first) != len(second):
                    unaligned[name] += 1
                    continue
                both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
                votes = sum(a > b for a, b in both), sum(b > a for a, b in both)
                total = comb(sum(votes), 2)  # pairs of annotators who prefer one response at all
                agreeing[name] += comb(votes[0], 2) + comb(votes[1], 2)
                comparisons[name] += total
                pairs[name] += total > 0
    return {
        name: {
            "value": agreeing[name] / comparisons[name] if comparisons[name] else None,
            "pairs": pairs[name],
            "comparisons": comparisons[name],
            "unaligned_pairs": unaligned[name],
        }
        for name in sorted(comparisons.keys() | unaligned.keys())
        if comparisons[name] or unaligned[name]
    }


def _duplicates(groups: list[Group]) -> dict[str, int]:
    keys = [prompt_key(group.prompt) for group in groups]
    contents = Counter((key, frozenset(group.responses)) for key, group in zip(keys, groups, strict=True))
    tasks: dict[str, set[str | None]] = {}
    for key, group in zip(keys, groups, strict=True):
        tasks.setdefault(key, set()).add(group.task)
    repeated = [count for count in Counter(keys).values() if count > 1]
    return {
        "repeated_prompts": len(repeated),
        "groups_on_them": sum(repeated),
        "repeated_groups": sum(count - 1 for count in contents.values()),
        "prompts_in_several_tasks": sum(len(met) > 1 for met in tasks.values()),
    }
