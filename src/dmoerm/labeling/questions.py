"""Build the questions for a judge: one call per pair of responses, capability and order.

With `group_capabilities` a call covers all capabilities of a pair. With `overall` it covers the overall preference (the
paper's generative baselines: zero-shot, or few-shot with pairs ordered by people).
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
from .client import Endpoint, token_limit
from .prompt import LETTERS, VERSION, FewShotExample, judge_messages
from .store import call_key

_BYTES_PER_TOKEN = 4  # a rough mean over languages, used only for estimates
_OVERALL = {
    "en": Capability(title="Overall", rubric="Taken as a whole, the response serves the user better."),
    "zh": Capability(title="总体", rubric="总的来说，该回答对用户更有帮助。"),
}


class ResponsePair(NamedTuple):
    """Two responses of a group, as indices; `first` is shown first."""

    group: Query
    first: int
    second: int


@dataclass(frozen=True)
class QuestionFormat:
    """What a question contains.

    Attributes:
        taxonomy: tasks with their capabilities and rubrics; required unless `overall` is set.
        group_capabilities: put all capabilities of a pair into one call.
        overall: ask which response is better overall instead of asking about capabilities.
        language: language of the question; None selects the taxonomy's, or English without a taxonomy.
        examples: groups labeled by people, from which few-shot examples are drawn.
        shots: number of few-shot examples shown before a question.

    Raises:
        ConfigError: there is neither a taxonomy nor `overall`.
    """

    taxonomy: Taxonomy | None = None
    group_capabilities: bool = False
    overall: bool = False
    language: str | None = None
    examples: Sequence[Group] = ()
    shots: int = 0

    def __post_init__(self) -> None:
        if self.taxonomy is None and not self.overall:
            raise ConfigError(
                "questions about capabilities require a taxonomy; set one, or ask about the overall preference"
            )

    def capability_sets(self, task: str | None) -> list[dict[str, Capability]]:
        """Return the capabilities of each call on a pair of this task; empty if the taxonomy has none for it."""
        if self.overall:
            return [{OVERALL: _OVERALL.get(self._language, _OVERALL["en"])}]
        entry = self.taxonomy.tasks.get(task or "") if self.taxonomy else None
        if entry is None or not entry.capabilities:
            return []
        if self.group_capabilities:
            return [entry.capabilities]
        return [{name: capability} for name, capability in entry.capabilities.items()]

    @property
    def _language(self) -> str:
        return self.language or (self.taxonomy.language if self.taxonomy else "en")

    def judge_name(self, model: str) -> str:
        """Return the judge's name in its labels; the same model with another question format is another judge."""
        together = "together" if self.group_capabilities and not self.overall else ""
        shots = f"{self.shots}-shot" if self.shots else ""
        return "/".join(part for part in (model, together, shots) if part)

    def messages(self, pair: ResponsePair, capabilities: Mapping[str, Capability]) -> list[dict[str, str]]:
        """Return the chat messages of one question; `pair.first` is shown first."""
        shown = pair.group.responses[pair.first], pair.group.responses[pair.second]
        examples = self._examples(pair.group, list(capabilities)) if self.shots else ()
        return judge_messages(pair.group.prompt, *shown, capabilities, self._language, examples=examples)

    def _examples(self, query: Query, names: Sequence[str]) -> list[FewShotExample]:
        """Return pairs of other prompts of the same task; the better response alternates between first and second."""
        examples: list[FewShotExample] = []
        for group in self.examples:
            if len(examples) == self.shots:
                break
            if group.task != query.task or prompt_key(group.prompt) == prompt_key(query.prompt):
                continue
            pairs = group.pairs(None if names[0] == OVERALL else names[0])
            if pairs:
                better, worse = pairs[0][:2]
                shown = (better, worse) if len(examples) % 2 == 0 else (worse, better)
                letters = {name: _letter(group, name, *shown) for name in names}
                first, second = (group.responses[i] for i in shown)
                examples.append(FewShotExample(group.prompt, first, second, letters))
        return examples


def _letter(group: Group, name: str, first: int, second: int) -> str:
    """Return the human label of a pair; an ungraded pair is a tie."""
    grades = group.grades if name == OVERALL else group.capabilities.get(name)
    a, b = (None, None) if grades is None else (grades[first], grades[second])
    return LETTERS[2] if a is None or b is None or a == b else LETTERS[0 if a > b else 1]


@dataclass(frozen=True)
class Question:
    """One call.

    Attributes:
        group: the prompt and its responses.
        first, second: indices into the group's responses, in the order shown.
        capabilities: names of the capabilities that the call covers.
        request: the JSON body.
    """

    group: Query
    first: int
    second: int
    capabilities: tuple[str, ...]
    request: dict[str, Any]

    @property
    def key(self) -> str:
        """The call's key in the answer store."""
        return call_key({"version": VERSION, **self.request})

    @property
    def description(self) -> dict[str, Any]:
        """The description that the answer store records."""
        pair, names = [self.first, self.second], list(self.capabilities)
        return {"group": self.group.id, "task": self.group.task, "pair": pair, "capabilities": names}


def all_pairs(groups: Iterable[Query]) -> Iterator[ResponsePair]:
    """Yield every pair of different responses of every group."""
    for group in groups:
        for first, second in itertools.combinations(range(len(group.responses)), 2):
            if group.responses[first] != group.responses[second]:
                yield ResponsePair(group, first, second)


def shuffled(pairs: Iterable[ResponsePair], seed: int = 0) -> list[ResponsePair]:
    """Return the pairs in random order."""
    shuffled_pairs = list(pairs)
    random.Random(seed).shuffle(shuffled_pairs)
    return shuffled_pairs


def build_questions(
    pairs: Iterable[ResponsePair], question_format: QuestionFormat, endpoint: Endpoint
) -> Iterator[Question]:
    """Yield all questions on the pairs; the two orders of a question are adjacent."""
    for pair in pairs:
        for capabilities in question_format.capability_sets(pair.group.task):
            for shown in (pair, ResponsePair(pair.group, pair.second, pair.first)):
                request = endpoint.request(question_format.messages(shown, capabilities), list(capabilities))
                yield Question(*shown, tuple(capabilities), request)


def estimate_cost(question: Question, endpoint: Endpoint) -> tuple[float, float, float]:
    """Estimate a call: prompt tokens, largest number of completion tokens (0 if the request has no limit), cost."""
    size = sum(len(message["content"].encode()) for message in question.request["messages"])
    tokens = size / _BYTES_PER_TOKEN, float(token_limit(question.request) or 0)
    return *tokens, endpoint.cost(*tokens)
