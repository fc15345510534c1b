"""A generated preference data set with a known gold reward: five tasks whose goals conflict.

Text is composed from sentence banks. Gold grades and the gold reward are computed from the text alone, so they also
apply to the output of a trained policy. `generate` returns groups with the labels of simulated, noisy annotators;
`gold_group` returns a group with gold labels. Nothing is downloaded. A seed gives the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dmoerm.errors import DataError
from dmoerm.schema import GENERATED, Group, Prompt
from evidence.testbed.annotators import capability_grade, overall_grade
from evidence.testbed.compose import EVIDENCE, sample_responses
from evidence.testbed.gold import gold_reward, grade
from evidence.testbed.prompts import TASKS, PromptItem, prompts, stream

CAPABILITIES: dict[str, tuple[str, ...]] = {task: tuple(names) for task, names in EVIDENCE.items()}
"""Task → its capabilities, in the order and spelling of the taxonomy."""

__all__ = [
    "CAPABILITIES",
    "TASKS",
    "PromptItem",
    "generate",
    "gold_group",
    "gold_reward",
    "grade",
    "labeled",
    "prompts",
    "sample_responses",
]


def generate(prompts_per_task: int = 48, responses: int = 4, seed: int = 0, annotators: int = 2) -> list[Group]:
    """Generate labeled groups, ordered by task.

    `scores` and `capabilities` are the first annotator's grades, so pairs of scores follow the Bradley–Terry model
    exactly. `annotators` has the grades of all annotators under "overall" and each capability. Two annotators agree on
    about 68 % of the pairs overall, and on more for a single capability. Overall grades are about 0 to 1 plus noise;
    capability grades are on a five-point scale from 0 to 1.

    Args:
        prompts_per_task: number of prompts of each task.
        responses: number of responses to a prompt, at least 2.
        seed: seed of prompts, responses and annotators.
        annotators: number of simulated annotators, at least 1.

    Raises:
        DataError: an argument is outside its range.
    """
    if responses < 2 or annotators < 1:
        raise DataError(
            "are too few",
            field="responses, annotators",
            value=(responses, annotators),
            hint="use at least 2 responses and 1 annotator",
        )
    return [g for task in TASKS for g in labeled(prompts(task, prompts_per_task, seed), responses, seed, annotators)]


def labeled(
    items: Sequence[PromptItem], responses: int = 4, seed: int = 0, annotators: int = 2, start: int = 0
) -> list[Group]:
    """Compose responses to prompts of a task and label them; see `generate`. `start` is the first group's number."""
    return [_group(item, responses, seed, annotators, start + index) for index, item in enumerate(items)]


def gold_group(group: Group) -> Group:
    """Return the group with gold scores and gold capability grades, computed from its texts, and without annotators.

    Raises:
        DataError: the group's task is not a task of the testbed.
    """
    scores, grades = _gold(group.task or "", group.prompt, group.responses)
    update = {"scores": scores, "ranks": None, "capabilities": grades, "annotators": {}, "scores_derived": False}
    return group.model_copy(update=update)


def _group(item: PromptItem, responses: int, seed: int, annotators: int, index: int) -> Group:
    name = f"testbed-{seed}-{item.task}-{index:05d}"
    texts = tuple(sample_responses(item, responses, seed))
    scores, grades = _gold(item.task, item.prompt, texts)
    rng = stream("annotators", name)
    annotated = {"overall": _annotate(scores, partial(overall_grade, task=item.task, rng=rng), annotators)}
    for capability, golds in grades.items():
        annotated[capability] = _annotate(golds, partial(capability_grade, rng=rng), annotators)
    first = {label: tuple(people[0] for people in responses) for label, responses in annotated.items()}
    return Group(
        id=name,
        task=item.task,
        prompt=item.prompt,
        responses=texts,
        scores=first.pop("overall"),
        capabilities={**first},
        annotators={label: tuple(responses) for label, responses in annotated.items()},
        source=GENERATED,
    )


def _gold(task: str, prompt: Prompt, texts: Sequence[str]) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    scores = tuple(gold_reward(task, prompt, text) for text in texts)
    grades = [grade(task, prompt, text) for text in texts]
    return scores, {name: tuple(row[name] for row in grades) for name in grades[0]}


def _annotate(golds: Sequence[float], draw: Callable[[float], float], annotators: int) -> list[tuple[float, ...]]:
    """Draw the grades of all annotators for each response, given the gold grades of the responses."""
    return [tuple(draw(gold) for _ in range(annotators)) for gold in golds]
