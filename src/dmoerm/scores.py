"""What a reward model is asked and what it answers, wherever it runs: in this process, or behind a server."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from .errors import DataError
from .schema import Message, Prompt, Query, parse_query


@dataclass(frozen=True)
class Score:
    """What the model says of one response.

    Attributes:
        reward: higher is better; centred and scaled per task, so that tasks compare.
        task: the task whose inner model scored, or None for the general model.
        route: task → probability, from the prompt alone.
        capabilities: capability → score, in standard deviations from the training part's mean.
        uncertainty: how far the experts disagree, in the same unit; None for the general model. Of an ensemble: how far
            its members do, in the reward's unit.
        temperature: σ((reward_a − reward_b) / temperature) is the probability that a is better than b.
    """

    reward: float
    task: str | None
    route: dict[str, float]
    capabilities: dict[str, float]
    uncertainty: float | None
    temperature: float

    def win_probability(self, other: Score) -> float:
        """The calibrated probability that people prefer this response to the other, for the same prompt."""
        return 0.5 + 0.5 * math.tanh((self.reward - other.reward) / self.temperature / 2)  # σ without overflow


EMPTY_REWARD = -3.0
"""What a response without text gets at most; rewards are about 0 on the mean, with standard deviation 1."""


@dataclass(frozen=True)
class Scored:
    """A batch's scores, one a sample; None for a response without text."""

    scores: list[Score | None]

    @cached_property
    def rewards(self) -> list[float]:
        """One a sample. A response without text gets the worst of the batch, at most `EMPTY_REWARD`."""
        worst = min([EMPTY_REWARD, *(score.reward for score in self.scores if score)])
        return [worst if score is None else score.reward for score in self.scores]

    def columns(self, tasks: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
        """Name → one number a sample; the same names for every batch, as trainers join them over batches.

        `uncertainty`; `task/NAME`, 1 where that task's inner model scored; `NAME/CAPABILITY`, the capability's score,
        0 where another task's scored. So a capability's mean on its own task is the ratio of the two columns' means.
        """
        names = [f"{task}/{capability}" for task, capabilities in tasks.items() for capability in capabilities]
        names = ["uncertainty", *(f"task/{task}" for task in tasks), *names]
        columns = {name: [0.0] * len(self.scores) for name in names}
        for place, score in enumerate(self.scores):
            for name, value in _named(score).items() if score else ():
                columns[name][place] = value
        return columns


def _named(score: Score) -> dict[str, float]:
    named = {"uncertainty": score.uncertainty or 0.0}
    if score.task is None:
        return named
    capabilities = {f"{score.task}/{name}": value for name, value in score.capabilities.items()}
    return named | {f"task/{score.task}": 1.0} | capabilities


class Scorer(Protocol):
    """Whatever scores queries: a `DMoERM`, or a `Client` of a server that has one."""

    def score_queries(self, queries: Sequence[Query]) -> Iterable[list[Score]]:
        """One list a query, one score a response, in order."""
        ...


def as_queries(
    prompt: Prompt | Sequence[Mapping[str, str]] | Sequence[Any],
    responses: Sequence[str] | Sequence[Sequence[str]],
    task: str | Sequence[str | None] | None = None,
) -> tuple[list[Query], bool]:
    """What `score` is given, as queries; and whether it was one prompt with its responses, not a list of them.

    Raises:
        DataError: an empty text, or counts that do not fit.
    """
    if isinstance(responses, str):
        raise DataError("is one text", field="responses", value=responses, hint="give a list of responses")
    if isinstance(prompt, str) or (responses and isinstance(responses[0], str)):
        return [_query(prompt, responses, task)], True
    tasks = [task] * len(responses) if task is None or isinstance(task, str) else list(task)
    if not len(prompt) == len(responses) == len(tasks):
        counts = f"{len(prompt)} prompts, {len(responses)} lists of responses and {len(tasks)} tasks"
        raise DataError(counts, field="responses", hint="give one list of responses (and one task) to each prompt")
    return [_query(*row) for row in zip(prompt, responses, tasks, strict=True)], False


def grouped(samples: Iterable[tuple[str | None, Prompt, str]]) -> list[tuple[Query, list[int]]]:
    """Queries of (task, prompt, response) samples, those of one prompt together, each with its responses' places.

    Responses without text are in none. Raises `DataError` for a prompt without text.
    """
    places: dict[tuple[str | None, Prompt], dict[int, str]] = {}
    for place, (task, prompt, response) in enumerate(samples):
        if response.strip():
            places.setdefault((task, prompt), {})[place] = response
    return [
        (parse_query({"task": task, "prompt": prompt, "responses": list(texts.values())}), list(texts))
        for (task, prompt), texts in places.items()
    ]


def _query(prompt: Any, responses: Any, task: Any) -> Query:
    if not isinstance(prompt, str):
        if any(isinstance(message, str) for message in prompt):
            raise DataError(
                "several prompts, but one list of responses",
                field="responses",
                value=responses,
                hint="give one list of responses to each prompt",
            )
        prompt = [m if isinstance(m, Message) else dict(m) for m in prompt]
    return parse_query({"prompt": prompt, "responses": list(responses), "task": task})
