"""A preference data set with a known gold reward: five tasks that want conflicting things, as many groups as you like.

Text is composed from sentence banks; gold grades and gold reward are read back from the text alone, so they also judge
what a trained policy writes. `generate` gives the groups as noisy people would label them, `gold_group` the truth.
All text is made here; nothing is downloaded. The same seed gives the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..errors import DataError
from ..schema import Group, Prompt
from .annotators import capability_grade, overall_grade
from .compose import EVIDENCE, sample_responses
from .gold import gold_reward, grade
from .prompts import TASKS, PromptItem, prompts
from .seeds import stream

CAPABILITIES: dict[str, tuple[str, ...]] = {task: tuple(names) for task, names in EVIDENCE.items()}
"""Task → its capabilities, in the taxonomy's order and spelling."""

SOURCE = "testbed"
"""The `source` of the groups made here; they are tested against their gold labels."""

__all__ = [
    "CAPABILITIES",
    "SOURCE",
    "TASKS",
    "PromptItem",
    "generate",
    "gold_group",
    "gold_reward",
    "grade",
    "prompts",
    "sample_responses",
]


def generate(
    prompts_per_task: int = 48, responses: int = 4, seed: int = 0, annotators: int = 2, language: str = "en"
) -> list[Group]:
    """The labelled groups, task after task.

    `scores` and `capabilities` are the first annotator's grades, so a pair of scores follows Bradley–Terry exactly;
    `annotators` has every annotator's single grades under "overall" and each capability. Two annotators order about
    0.68 of the pairs alike overall, more on one capability. Overall grades are about 0 to 1 with noise beyond either
    end, capability grades are on a five-point scale from 0 to 1.

    Raises `DataError` for another language than English, fewer than two responses or no annotator.
    """
    if language != "en":
        raise DataError("unknown testbed language", field="language", value=language, hint="use en")
    if responses < 2 or annotators < 1:
        raise DataError(
            "too few", field="responses, annotators", value=(responses, annotators), hint="use 2, 1 or more"
        )
    return [
        _group(item, responses, seed, annotators, index)
        for task in TASKS
        for index, item in enumerate(prompts(task, prompts_per_task, seed))
    ]


def gold_group(group: Group) -> Group:
    """The same group with gold scores and gold capability grades, recomputed from its text, and no annotators.

    Raises `DataError` where the group's task is none of the testbed's.
    """
    scores, grades = _gold(group.task or "", group.prompt, group.responses)
    update = {"scores": scores, "ranks": None, "capabilities": grades, "annotators": {}, "scores_derived": False}
    return group.model_copy(update=update)


def _group(item: PromptItem, responses: int, seed: int, annotators: int, index: int) -> Group:
    name = f"testbed-{seed}-{item.task}-{index:05d}"
    texts = tuple(sample_responses(item, responses, seed))
    scores, grades = _gold(item.task, item.prompt, texts)
    rng = stream("annotators", name)
    judged = {"overall": _ask(scores, partial(overall_grade, task=item.task, rng=rng), annotators)}
    for capability, golds in grades.items():
        judged[capability] = _ask(golds, partial(capability_grade, rng=rng), annotators)
    first = {label: tuple(people[0] for people in given) for label, given in judged.items()}
    return Group(
        id=name,
        task=item.task,
        prompt=item.prompt,
        responses=texts,
        scores=first.pop("overall"),
        capabilities={label: tuple(given) for label, given in first.items()},
        annotators={label: tuple(given) for label, given in judged.items()},
        source=SOURCE,
    )


def _gold(task: str, prompt: Prompt, texts: Sequence[str]) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    scores = tuple(gold_reward(task, prompt, text) for text in texts)
    grades = [grade(task, prompt, text) for text in texts]
    return scores, {name: tuple(row[name] for row in grades) for name in grades[0]}


def _ask(golds: Sequence[float], person: Callable[[float], float], people: int) -> list[tuple[float, ...]]:
    """For each response the grades that so many people give it."""
    return [tuple(person(gold) for _ in range(people)) for gold in golds]
