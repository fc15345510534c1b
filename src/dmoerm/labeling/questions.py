"""Build the questions for a judge: one request per pair of responses, capability and order.

With `group_capabilities` a call covers all capabilities of a pair. With `overall` it covers the overall preference.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..labels import OVERALL
from ..schema import Group, Query
from ..taxonomy import Capability, Taxonomy
from .prompt import VERSION, answer_schema, judge_messages
from .store import call_key

RESERVED_FIELDS = ("model", "messages", "stream", "n")
"""Fields of a request that `Endpoint.request_fields` cannot set."""

_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
_BYTES_PER_TOKEN = 4  # a rough mean over languages, used only for estimates
_OVERALL = {
    "en": Capability(title="Overall", rubric="Taken as a whole, the response serves the user better."),
    "zh": Capability(title="总体", rubric="总的来说，该回答对用户更有帮助。"),
}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint and the settings of its requests.

    Attributes:
        base_url: URL of the endpoint, such as ``https://api.openai.com/v1``.
        model: name of the model at the endpoint.
        prompt_price, completion_price: price of a million tokens, in any currency.
        request_fields: top-level fields that are added to each request and replace fields of the same name; a field
            with the value None is left out. Defaults: temperature 0; `max_tokens` 16 plus 24 per capability, unless
            `max_completion_tokens` is given; token log-probabilities (`logprobs`), which give soft labels; an answer
            constrained to a JSON schema (`response_format`).
        timeout: seconds until an attempt is abandoned.
        retries: attempts after the first.

    Raises:
        ConfigError: `request_fields` contains one of `RESERVED_FIELDS`.
    """

    base_url: str
    model: str
    prompt_price: float = 0.0
    completion_price: float = 0.0
    request_fields: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 300.0
    retries: int = 8

    def __post_init__(self) -> None:
        for name in self.request_fields:
            if name in RESERVED_FIELDS:
                raise ConfigError(f"the request field {name!r} cannot be set; dmoerm sets it")

    def request(self, messages: Any, capabilities: Sequence[str]) -> dict[str, Any]:
        """Return the JSON body of a request. The call's key is a hash of it, so that settings are never mixed."""
        schema = {"name": "verdict", "strict": True, "schema": answer_schema(capabilities)}
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": 16 + 24 * len(capabilities),
            "logprobs": True,
            "top_logprobs": 5,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        if self.request_fields.get("max_completion_tokens") is not None:
            del body["max_tokens"]
        if not self.request_fields.get("logprobs", True):
            del body["top_logprobs"]
        body |= self.request_fields
        return {name: value for name, value in body.items() if value is not None}

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the price of the tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


def token_limit(request: Mapping[str, Any]) -> int | None:
    """Return the maximum completion tokens of a request; None if it sets no limit."""
    return min((request[name] for name in _TOKEN_LIMITS if isinstance(request.get(name), int)), default=None)


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

    Raises:
        ConfigError: there is neither a taxonomy nor `overall`.
    """

    taxonomy: Taxonomy | None = None
    group_capabilities: bool = False
    overall: bool = False

    def __post_init__(self) -> None:
        if self.taxonomy is None and not self.overall:
            raise ConfigError(
                "questions about capabilities require a taxonomy; set one, or ask about the overall preference"
            )

    def capability_sets(self, task: str | None) -> list[dict[str, Capability]]:
        """Return the capabilities of each call on a pair of this task; empty if the taxonomy has none for it."""
        if self.overall:
            return [{OVERALL: _OVERALL.get(self.language, _OVERALL["en"])}]
        entry = self.taxonomy.tasks.get(task or "") if self.taxonomy else None
        capabilities = entry.capabilities if entry else {}
        if self.group_capabilities:
            return [capabilities] if capabilities else []
        return [{name: capability} for name, capability in capabilities.items()]

    @property
    def language(self) -> str:
        """The language of the questions."""
        return self.taxonomy.language if self.taxonomy else "en"

    def judge_name(self, model: str) -> str:
        """Return the judge's name in its labels; the same model with another question format is another judge."""
        return f"{model}/together" if self.group_capabilities and not self.overall else model


@dataclass(frozen=True)
class Question:
    """One call; `first` and `second` are indices in the order shown, and `request` is the JSON body."""

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


def build_questions(
    pairs: Iterable[ResponsePair], question_format: QuestionFormat, endpoint: Endpoint
) -> Iterator[Question]:
    """Yield all questions on the pairs; the two orders of a question are adjacent."""
    for group, *indices in pairs:
        for capabilities in question_format.capability_sets(group.task):
            for first, second in (indices, reversed(indices)):
                shown = group.responses[first], group.responses[second]
                messages = judge_messages(group.prompt, *shown, capabilities, question_format.language)
                request = endpoint.request(messages, list(capabilities))
                yield Question(group, first, second, tuple(capabilities), request)


def estimate_cost(question: Question, endpoint: Endpoint) -> tuple[float, float, float]:
    """Estimate a call: prompt tokens, largest number of completion tokens (0 if the request has no limit), cost."""
    size = sum(len(message["content"].encode()) for message in question.request["messages"])
    tokens = size / _BYTES_PER_TOKEN, float(token_limit(question.request) or 0)
    return *tokens, endpoint.cost(*tokens)


def groups_without_questions(groups: Sequence[Group], question_format: QuestionFormat) -> Iterator[str]:
    """Yield why groups have no questions, with their number, most frequent reason first."""
    tasks = question_format.taxonomy.tasks if question_format.taxonomy else {}
    reasons: Counter[str] = Counter()
    for group in groups:
        if question_format.capability_sets(group.task):
            continue
        if group.task is None:
            reasons["have no task; add the field task, name one with --task, or ask with --overall"] += 1
        elif group.task not in tasks:
            known = ", ".join(tasks)
            reasons[f"have the task {group.task!r}, which is not in the taxonomy (its tasks: {known})"] += 1
        else:
            hint = 'write some, as in capabilities: {clarity: {title: Clarity, rubric: "The answer is easy to read."}}'
            reasons[f"have the task {group.task!r}, for which the taxonomy lists no capabilities; {hint}"] += 1
    if identical := sum(len(set(group.responses)) < 2 for group in groups):
        reasons["have only identical responses"] = identical
    for reason, count in reasons.most_common():
        yield f"{count} of {len(groups)} groups {reason}"
