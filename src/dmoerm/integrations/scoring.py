"""What every trainer's plug-in does with a batch of samples: prompts once, responses without text, columns to log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from dmoerm.errors import DataError
from dmoerm.rendered import bare, conversation
from dmoerm.schema import Message, Prompt
from dmoerm.scores import Score, Scorer, grouped

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


def score_samples(scorer: Scorer, samples: Iterable[tuple[str | None, Prompt, str]]) -> Scored:
    """Scores samples of task (None: routed), prompt and response; a prompt is run once for all its responses.

    Raises `DataError` for a prompt without text, an unknown task, a text longer than the model takes.
    """
    samples = list(samples)
    groups = grouped(samples)
    found: dict[int, Score] = {}
    scored = scorer.score_queries([query for query, _ in groups]) if groups else ()
    for (_, places), scores in zip(groups, scored, strict=True):
        found |= dict(zip(places, scores, strict=True))
    return Scored([found.get(place) for place in range(len(samples))])


def as_prompt(prompt: str | Iterable[Mapping[str, Any]]) -> Prompt:
    """A trainer's prompt: a text, read back where a chat template has rendered it, or chat messages.

    Raises:
        DataError: a message whose role or content is none.
    """
    if isinstance(prompt, str):
        return conversation(prompt)
    return tuple(_turn(message) for message in prompt)


def as_response(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A trainer's completion, a text or chat messages, of which the last is the response."""
    if isinstance(completion, str):
        return bare(completion)
    return bare(_text(completion[-1].get("content"))) if completion else ""


def _turn(message: Mapping[str, Any]) -> Message:
    try:
        return Message.model_validate({"role": message["role"], "content": _text(message["content"])})
    except (KeyError, TypeError, ValidationError):
        remedy = "give role (system, user or assistant) and content to every message"
        raise DataError("is no chat message", field="prompt", value=message, remedy=remedy) from None


def _text(content: Any) -> str:
    """A message's text; of one in parts, that of its parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in content if part.get("type") == "text")
