"""Hold out prompts and subsample groups, decided by hashes only.

All decisions are made per *prompt* (`schema.prompt_key`), since two groups on one prompt are not independent. They
follow from the seed and the prompt's text, so they do not depend on the order of the rows, the process or the version
of a random number generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..errors import ConfigError
from ..schema import Group, prompt_key
from .group_table import select


def split_by_prompt(groups: Sequence[Group], fraction: float, seed: int = 0) -> tuple[Sequence[Group], Sequence[Group]]:
    """Split the groups into (rest, held out); about `fraction` of each task's prompts is held out.

    All groups on one prompt are in the same part, whatever their tasks. For 0 < fraction < 1, each task with two or
    more prompts has at least one in each part (if prompts shared between tasks allow it), and the only prompt of a task
    stays in the rest. Both parts keep the order of `groups`.

    Raises:
        ConfigError: the fraction is outside 0 … 1.
    """
    held = held_out(groups, fraction, seed)
    return select(groups, [not each for each in held]), select(groups, held)


def held_out(groups: Iterable[Group], fraction: float, seed: int = 0) -> list[bool]:
    """Return whether `split_by_prompt` holds out each group."""
    _check_share("fraction", fraction)
    keys: list[bytes] = []
    prompts: dict[str, set[bytes]] = {}  # a missing task is the task ""
    for group in groups:
        keys.append(_digest(seed, prompt_key(group.prompt)))
        prompts.setdefault(group.task or "", set()).add(keys[-1])
    held = _held_out(prompts, fraction)
    return [key in held for key in keys]


def _held_out(prompts: dict[str, set[bytes]], fraction: float) -> set[bytes]:
    """Choose for tasks with the fewest prompts first: shared prompts constrain them most."""
    held: set[bytes] = set()
    placed: set[bytes] = set()
    for task in sorted(prompts, key=lambda name: (len(prompts[name]), name)):
        keys = prompts[task]
        missing = _count(len(keys), fraction) - len(keys & held)
        held.update(sorted(keys - placed)[: max(0, missing)])
        placed |= keys
    return held


def _count(prompts: int, fraction: float) -> int:
    if fraction in (0, 1):
        return int(prompts * fraction)
    if prompts == 1:
        return 0
    return min(max(round(prompts * fraction), 1), prompts - 1)


def take_groups(groups: Sequence[Group], per_task: int, seed: int = 0) -> Sequence[Group]:
    """Return at most `per_task` groups of each task, on as many prompts as possible, in the order of `groups`.

    A larger `per_task` returns the same groups and more.

    Raises:
        ConfigError: `per_task` is negative.
    """
    if per_task < 0:
        raise ConfigError(f"per_task must not be negative (got {per_task}); give the number of groups to keep")
    by_task: dict[str, dict[bytes, list[int]]] = {}
    for index, group in enumerate(groups):
        prompts = by_task.setdefault(group.task or "", {})
        prompts.setdefault(_digest(seed, prompt_key(group.prompt)), []).append(index)
    taken = {index for prompts in by_task.values() for index in _round_robin(groups, prompts, seed)[:per_task]}
    return select(groups, [index in taken for index in range(len(groups))])


def _round_robin(groups: Sequence[Group], prompts: dict[bytes, list[int]], seed: int) -> list[int]:
    """Return one group of every prompt, then a second of every prompt that has two, and so on."""
    turns: list[tuple[int, bytes, int]] = []
    for key, indices in prompts.items():
        ordered = sorted(
            indices, key=lambda index: _digest(seed, groups[index].model_dump_json(exclude={"judge_labels"}))
        )
        turns += [(turn, key, index) for turn, index in enumerate(ordered)]
    return [index for _, _, index in sorted(turns)]


def _digest(seed: object, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ConfigError(f"{name} must be between 0 and 1 (got {share}); 0.2 is 20 %")
