"""Hold prompts out, and take fewer groups.

Choices are made by prompt, since groups on one prompt are not independent. They follow from the seed and the prompt's
text, so they do not depend on the order of the rows, the process or the version of a random number generator.

A group is represented by its task ("" for none) and the digest of its prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import ConfigError
from ..schema import Group, prompt_key


def digest(seed: object, text: str) -> bytes:
    """Return a hash by which prompts are ordered: like a random number, but it follows from the seed and the text."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def split_by_prompt(groups: Sequence[Group], fraction: float, seed: int = 0) -> tuple[list[Group], list[Group]]:
    """Split the groups into (rest, held out), both in their order; see `hold_out`."""
    parts: tuple[list[Group], list[Group]] = [], []
    for group, held in zip(groups, held_out(groups, fraction, seed), strict=True):
        parts[held].append(group)
    return parts


def held_out(groups: Iterable[Group], fraction: float, seed: int = 0) -> list[bool]:
    """Return whether each group is held out; see `hold_out`."""
    known = [(group.task or "", digest(seed, prompt_key(group.prompt))) for group in groups]
    return hold_out([task for task, _ in known], [key for _, key in known], fraction)


def hold_out(tasks: Sequence[str], keys: Sequence[bytes], fraction: float) -> list[bool]:
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
    for task, key in zip(tasks, keys, strict=True):
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
    return [key in held for key in keys]


def content_order(group: Group, seed: int) -> bytes:
    """Return what orders the groups on one prompt."""
    return digest(seed, group.model_dump_json(exclude={"judge_labels"}))


def take(tasks: Sequence[str], keys: Sequence[bytes], per_task: int, order: Callable[[int], Any]) -> list[int]:
    """Return the indices, ascending, of at most `per_task` groups of each task, on as many prompts as possible.

    A larger `per_task` returns the same groups and more.

    Args:
        order: index → what orders the groups on one prompt; it is called for prompts with several groups only.

    Raises:
        ConfigError: `per_task` is negative.
    """
    if per_task < 0:
        raise ConfigError(f"per_task must not be negative (got {per_task}); give the number of groups to keep")
    by_task: dict[str, dict[bytes, list[int]]] = {}
    for index, (task, key) in enumerate(zip(tasks, keys, strict=True)):
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
