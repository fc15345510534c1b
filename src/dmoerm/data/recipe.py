"""Choose a recipe for an amount of data and a machine, and write it as a commented config.

docs/training.md says what each recipe is for, and has the times on which the speeds are based.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..schema import Group, messages_of
from .proposal import Proposal
from .statistics import count_words

CORE_SPEED, GPU_SPEED = 600, 60_000
"""Tokens per second through the pretrained layers of the bundled backbone, per core or GPU."""
MINUTES = 40
"""The time for which the number of groups is chosen."""
_TOKENS_PER_WORD = 1.4
_FINETUNE_GROUPS = 2000  # of each task
_LENGTHS = (1024, 2048, 4096)


@dataclass(frozen=True)
class ProposedRecipe:
    """Settings that depend on the amount of data and on the machine.

    Attributes:
        extends: a shipped config.
        reason: why, in words.
        max_length: tokens of a prompt with a response.
        groups_per_task: the most groups of a task; None: all.
        minutes: a rough estimate of the whole run.
    """

    extends: str
    reason: str
    max_length: int
    groups_per_task: int | None
    minutes: int


def choose_recipe(groups: Sequence[Group], cores: int, gpu: str | None, own_backbone: bool = False) -> ProposedRecipe:
    """Choose the recipe for these groups.

    Args:
        cores: number of CPU cores.
        gpu: its name; None without a GPU.
        own_backbone: the backbone is not the bundled one, so the number of its layers is unknown.
    """
    sizes = Counter(group.task for group in groups if group.task)
    extends, reason = "frozen", f"heads on a frozen backbone suit {gpu or f'{cores} CPU cores, no GPU'}"
    if gpu and min(sizes.values()) >= _FINETUNE_GROUPS:
        extends, reason = "finetune", f"each task has {_FINETUNE_GROUPS} groups or more, and there is a GPU"
    elif gpu or own_backbone:
        extends = "fast"
        reason = "heads on all layers of a frozen backbone; `finetune` needs thousands of groups a task"
    longest, total = list[float](), 0.0
    for group in groups:  # whose responses share the prompt
        prompt = sum(count_words(turn.text) for turn in messages_of(group.prompt))
        responses = list(map(count_words, group.responses))
        longest.append(_TOKENS_PER_WORD * (prompt + max(responses)))
        total += _TOKENS_PER_WORD * (prompt + sum(responses))
    minutes = total * (8 if extends == "finetune" else 1) / (GPU_SPEED if gpu else CORE_SPEED * cores) / 60
    kept = max(int(len(groups) * MINUTES / minutes / len(sizes)), 200) if minutes > MINUTES else None
    share = 1.0 if kept is None else sum(min(size, kept) for size in sizes.values()) / len(groups)
    fits = [limit for limit in _LENGTHS if sum(length > limit for length in longest) <= len(longest) / 20]
    return ProposedRecipe(extends, reason, (fits or _LENGTHS[-1:])[0], kept, max(round(minutes * share), 1))


def config_text(proposal: Proposal, recipe: ProposedRecipe, settings: Mapping[str, object]) -> str:
    """Return a commented config.

    Args:
        settings: `output`, `taxonomy`, and some of `data` and `backbone` as `a.b`; None: not written.
    """

    def section(name: str) -> list[str]:
        keys = [key for key, value in settings.items() if key.startswith(f"{name}.") and value is not None]
        return [f"{name}:", *(f"  {key.removeprefix(f'{name}.')}: {_yaml(settings[key])}" for key in keys)]

    minutes = f"{recipe.minutes:,} minute{'s' * (recipe.minutes != 1)}"
    counts = sorted(Counter(group.task for group in proposal.groups if group.task).items())
    lines = [
        f"# Written by `dmoerm init` for {len(proposal.groups):,} groups. Every setting: docs/settings.md.",
        *(f"# Note: {note}." for note in proposal.notes),
        f"# Recipe: {recipe.reason}. A rough estimate: {minutes}.",
        "# The others: README.md.",
        f"extends: {recipe.extends}",
        "# The folder of the run. Other settings need another folder.",
        f"output: {_yaml(settings['output'])}",
        "# Titles and rubrics of the tasks, which an LLM judge reads (`dmoerm label`).",
        f"taxonomy: {_yaml(settings['taxonomy'])}",
        *section("data"),
        f"  # Tasks by {proposal.tasks_from}: {', '.join(f'{task} ({size})' for task, size in counts)}.",
        "  # The share of each task's prompts that measures the model and is never trained on.",
        "  test_fraction: 0.3",
    ]
    if recipe.groups_per_task:
        lines.append(f"  # For a run of about {MINUTES} minutes; null trains on all groups.")
        lines.append(f"  groups_per_task: {recipe.groups_per_task}")
    lines += section("backbone") if settings.get("backbone.path") else []
    lines += ["encoding:", "  # Tokens of a prompt with a response. The middle of longer prompts is cut."]
    return "\n".join([*lines, f"  max_length: {recipe.max_length}"]) + "\n"


def _yaml(value: object) -> str:
    """Return a value as JSON, which is YAML too; plain words without quotes."""
    words = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value) and value.lower() not in words
    return str(value) if plain else json.dumps(value, ensure_ascii=False)
