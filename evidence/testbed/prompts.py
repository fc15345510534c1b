"""The prompts of the five tasks: all combinations of a task's subjects and frames, in a seeded order."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random

from dmoerm.errors import DataError
from dmoerm.schema import Message, Prompt
from evidence.testbed.facts import FACTS, Fact
from evidence.testbed.subjects import (
    CAST,
    CHARACTERS,
    CLOSINGS,
    COMMISSIONS,
    FORMS,
    GREETINGS,
    ISSUES,
    LEADS,
    LOOKUP_FRAMES,
    NEWS,
    OPINION_FRAMES,
    OPINION_WISHES,
    SCENES,
    SUBJECTS,
    TAILS,
)

TASKS = ("roleplay", "chitchat", "subjective_qa", "objective_qa", "text_creation")


@dataclass(frozen=True)
class PromptItem:
    """A prompt, and what is needed to compose responses to it. The gold reward uses the prompt alone.

    Attributes:
        task: one of `TASKS`.
        prompt: a text, or a conversation that ends with the user's turn.
        slots: the values of `topic`, `role`, `place` and `item` in the sentence templates.
        fact: the fact that an objective_qa prompt asks about; None for other tasks.
    """

    task: str
    prompt: Prompt
    slots: dict[str, str] = field(hash=False)
    fact: Fact | None = None


def stream(*names: object) -> Random:
    """Return the random stream of these names: a digest of their texts seeds it, equally on every machine."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))


def prompts(task: str, n: int | None = 48, seed: int = 0) -> list[PromptItem]:
    """Return `n` distinct prompts of a task, or its several hundred. A larger `n` with the same seed adds more.

    The prompts after these are the same ones with other words around them, tens of thousands.

    Raises:
        DataError: the task has fewer than `n` prompts, or is not one of `TASKS`.
    """
    if task not in _BUILDERS:
        raise DataError("is not a task of the testbed", field="task", value=task, hint=f"use one of {', '.join(TASKS)}")
    items = list(_BUILDERS[task]())
    rng = stream("prompts", task, seed)
    rng.shuffle(items)
    if n is not None and n > len(items):
        more = [_reworded(item, lead, tail) for item in items for lead, tail in itertools.product(LEADS, TAILS)]
        rng.shuffle(more)
        items += more
        if n > len(items):
            raise DataError("is more than the task has prompts", field="n", value=n, hint=f"{task} has {len(items)}")
    return items[:n]


def _reworded(item: PromptItem, lead: str, tail: str) -> PromptItem:
    """Return the prompt with a sentence before and one after its last turn; they do not name a subject."""
    if isinstance(item.prompt, str):
        return replace(item, prompt=f"{lead} {item.prompt} {tail}")
    *turns, last = item.prompt
    return replace(item, prompt=(*turns, last.model_copy(update={"content": f"{lead} {last.content} {tail}"})))


def _talk(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(turns))


def _item(task: str, prompt: Prompt, topic: str, index: int, fact: Fact | None = None) -> PromptItem:
    character = dict(zip(("role", "place", "item"), CHARACTERS[index % len(CHARACTERS)], strict=True))
    return PromptItem(task, prompt, {"topic": topic, **character}, fact)


def _roleplay() -> Iterator[PromptItem]:
    for index, (role, location, item) in enumerate(CHARACTERS):
        for scene, cast in itertools.product(SCENES, CAST):
            text = cast.format(role=role, place=location, item=item, scene=scene)
            yield _item("roleplay", text, item, index)
        for scene in SCENES:
            intro = f"Be the {role} of {location} for me, with {item} at hand."
            yield _item("roleplay", _talk(intro, f"Very well. You find me at {location}.", scene), item, index)


def _chitchat() -> Iterator[PromptItem]:
    for index, (news, topic) in enumerate(NEWS):
        for greeting, closing in itertools.product(GREETINGS, CLOSINGS):
            yield _item("chitchat", _sentences(greeting, news, closing), topic, index)
        for closing in CLOSINGS[:3]:
            last = _sentences("", news, closing)
            yield _item("chitchat", _talk("Are you there?", "Here I am. What is new?", last), topic, index)


def _sentences(greeting: str, news: str, closing: str) -> str:
    sentence = news if greeting.endswith(",") else news[0].upper() + news[1:]
    return f"{greeting} {sentence}. {closing}".strip()


def _subjective_qa() -> Iterator[PromptItem]:
    for index, (issue, topic) in enumerate(ISSUES):
        for frame, wish in itertools.product(OPINION_FRAMES, OPINION_WISHES):
            text = frame.format(issue=issue) + wish
            yield _item("subjective_qa", text[0].upper() + text[1:], topic, index)
        for opening in ("I have been thinking about a question.", "Can we talk about something people quarrel over?"):
            turns = _talk(opening, "Gladly. What is it?", f"Well, {issue}?")
            yield _item("subjective_qa", turns, topic, index)


def _objective_qa() -> Iterator[PromptItem]:
    for index, fact in enumerate(FACTS):
        for frame in LOOKUP_FRAMES:
            yield _item("objective_qa", frame.format(question=fact.question), fact.topic, index, fact)
        for opening in ("Can you check a fact for me?", "I have a question from an exam."):
            yield _item("objective_qa", _talk(opening, "Yes, go ahead.", fact.question), fact.topic, index, fact)


def _text_creation() -> Iterator[PromptItem]:
    for (index, topic), form in itertools.product(enumerate(SUBJECTS), FORMS):
        for frame in COMMISSIONS:
            yield _item("text_creation", frame.format(form=form, topic=topic), topic, index)
        turns = _talk(f"I would like {form}.", "With pleasure. On what?", f"On {topic}. Surprise me.")
        yield _item("text_creation", turns, topic, index)


_BUILDERS = {
    "roleplay": _roleplay,
    "chitchat": _chitchat,
    "subjective_qa": _subjective_qa,
    "objective_qa": _objective_qa,
    "text_creation": _text_creation,
}
