"""What a judge is asked about preference data: pair × capability × both orders, a call each.

With `together` a call asks all capabilities of a pair; with `overall` it asks which response is better as a whole (the
paper's generative baselines: zero-shot, or few-shot with pairs that people have ordered).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..labels import OVERALL
from ..schema import Group, Query, prompt_key
from ..taxonomy import Capability, Taxonomy
from .client import Endpoint
from .prompt import LETTERS, VERSION, Example, judge_messages
from .store import call_key

_BYTES_PER_TOKEN = 4  # a rough mean over languages, for estimates alone
_OVERALL = {
    "en": Capability(title="Overall", rubric="Taken as a whole, the response serves the user better."),
    "zh": Capability(title="总体", rubric="总的来说，该回答对用户更有帮助。"),
}


class PairOf(NamedTuple):
    """Two responses to one prompt: indices first < second."""

    group: Query
    first: int
    second: int


@dataclass(frozen=True)
class Form:
    """How pairs are asked about.

    Attributes:
        taxonomy: tasks with their capabilities and rubrics; None: there is `overall` alone to ask.
        together: all capabilities of a pair in one call.
        overall: which response is better as a whole, in place of the capabilities.
        language: of the question; None: the taxonomy's, else English.
        examples: groups that people have labeled; pairs of them are shown, answered, before the question.
        shots: how many such pairs.
    """

    taxonomy: Taxonomy | None = None
    together: bool = False
    overall: bool = False
    language: str | None = None
    examples: Sequence[Group] = ()
    shots: int = 0

    def __post_init__(self) -> None:
        if self.taxonomy is None and not self.overall:
            raise ConfigError("there is no taxonomy: give one, or ask for the overall preference")

    def asked(self, task: str | None) -> list[dict[str, Capability]]:
        """What is asked of a task's pairs, a call each; nothing of a task without capabilities."""
        if self.overall:
            return [{OVERALL: _OVERALL.get(self._language, _OVERALL["en"])}]
        found = self.taxonomy.tasks.get(task or "") if self.taxonomy else None
        if found is None or not found.capabilities:
            return []
        return [found.capabilities] if self.together else [{name: one} for name, one in found.capabilities.items()]

    @property
    def _language(self) -> str:
        return self.language or (self.taxonomy.language if self.taxonomy else "en")

    def judge(self, model: str) -> str:
        """The judge's name in its labels: the same model asked in another form is another judge."""
        parts = [model, "together" * (self.together and not self.overall), f"{self.shots}-shot" * bool(self.shots)]
        return "/".join(part for part in parts if part)

    def messages(self, pair: PairOf, capabilities: Mapping[str, Capability]) -> list[dict[str, str]]:
        """The chat messages of one question, `pair.first` shown first."""
        shown = pair.group.responses[pair.first], pair.group.responses[pair.second]
        examples = self._examples(pair.group, list(capabilities)) if self.shots else ()
        return judge_messages(pair.group.prompt, *shown, capabilities, self._language, examples=examples)

    def _examples(self, asked: Query, names: Sequence[str]) -> list[Example]:
        """Pairs of other prompts of the same task; the better response is first in every second of them."""
        found: list[Example] = []
        for group in self.examples:
            if len(found) == self.shots:
                break
            if group.task != asked.task or prompt_key(group.prompt) == prompt_key(asked.prompt):
                continue
            pairs = group.pairs(None if names[0] == OVERALL else names[0])
            if pairs:
                better, worse = pairs[0][:2]
                shown = (better, worse) if len(found) % 2 == 0 else (worse, better)
                letters = {name: _letter(group, name, *shown) for name in names}
                first, second = (group.responses[i] for i in shown)
                found.append(Example(group.prompt, first, second, letters))
        return found


def _letter(group: Group, name: str, first: int, second: int) -> str:
    """What people say of a pair; a pair that they did not grade is a tie."""
    grades = group.grades if name == OVERALL else group.capabilities.get(name)
    a, b = (None, None) if grades is None else (grades[first], grades[second])
    return LETTERS[2] if a is None or b is None or a == b else LETTERS[0 if a > b else 1]


@dataclass(frozen=True)
class Question:
    """One call: a pair of a group's responses in the order shown, on one capability or several at once.

    Attributes:
        first, second: indices into the group's responses, in the order shown.
        request: what is sent.
    """

    group: Query
    first: int
    second: int
    capabilities: tuple[str, ...]
    request: dict[str, Any]

    @property
    def key(self) -> str:
        """The call's name in the store."""
        return call_key({"version": VERSION, **self.request})

    @property
    def about(self) -> dict[str, Any]:
        """What the store notes of it."""
        pair, names = [self.first, self.second], list(self.capabilities)
        return {"group": self.group.id, "task": self.group.task, "pair": pair, "capabilities": names}


def all_pairs(groups: Iterable[Query]) -> Iterator[PairOf]:
    """Yield every pair of different responses of every group."""
    for group in groups:
        for first, second in itertools.combinations(range(len(group.responses)), 2):
            if group.responses[first] != group.responses[second]:
                yield PairOf(group, first, second)


def shuffled(pairs: Iterable[PairOf], seed: int = 0) -> list[PairOf]:
    """The pairs in random order."""
    found = list(pairs)
    random.Random(seed).shuffle(found)
    return found


def questions(pairs: Iterable[PairOf], form: Form, endpoint: Endpoint) -> Iterator[Question]:
    """All questions on the pairs; both orders of a question follow each other."""
    for pair in pairs:
        for part in form.asked(pair.group.task):
            for shown in (pair, PairOf(pair.group, pair.second, pair.first)):
                request = endpoint.request(form.messages(shown, part), list(part))
                yield Question(*shown, tuple(part), request)


def expected_cost(question: Question, endpoint: Endpoint) -> tuple[float, float, float]:
    """Roughly: prompt tokens, completion tokens, cost; no call costs more than its `max_tokens` allow."""
    size = sum(len(message["content"].encode()) for message in question.request["messages"])
    tokens = size / _BYTES_PER_TOKEN, float(question.request["max_tokens"])
    return *tokens, endpoint.cost(*tokens)
