"""The types of preference data: messages, queries, groups and ordered pairs.

A *group* is one prompt with two or more responses and a preference over them. A *query* has no preference and may have
a single response. Scores: higher is better. Ranks: 1 is best, equal ranks are ties.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import DataError, plain_fault
from .message import Message, Tool, check_tools
from .names import check_name

GENERATED = "testbed"
"""The `source` of generated groups; those of a test part have gold labels, which are computed from the texts."""
_LARGEST = 1e18  # squares of larger grades overflow float32
Grades = tuple[float | None, ...]
Prompt = str | tuple[Message, ...]
PromptInput = str | Sequence[Mapping[str, Any] | Message]
"""A prompt as callers give it: a text or a list of chat messages."""
ResponseLists = Sequence[list[str] | tuple[str, ...]]
"""The responses to several prompts. It is not `Sequence[Sequence[str]]`, which would accept a list of texts."""


class Pair(NamedTuple):
    """Response `better` is preferred to response `worse`; both are indices into a group's responses.

    Attributes:
        probability: the probability of that preference, 0.5 (a tie) to 1 (people's grades).
        weight: the weight of the pair.
    """

    better: int
    worse: int
    probability: float = 1.0
    weight: float = 1.0


class PairLabel(NamedTuple):
    """A judge's label of the responses at the indices `first` and `second`.

    Attributes:
        probability: the probability that `first` is better, 0 to 1; a tie is 0.5.
        weight: the weight of the label.
    """

    first: int
    second: int
    probability: float
    weight: float = 1.0

    @property
    def pair(self) -> Pair:
        """The pair, with the response that is more likely better first."""
        if self.probability >= 0.5:
            return Pair(self.first, self.second, self.probability, self.weight)
        return Pair(self.second, self.first, 1 - self.probability, self.weight)


@dataclass(frozen=True)
class Position:
    """Where a row was read. Positions are not compared, so that queries are equal if their contents are."""

    file: str = field(default="", compare=False)
    line: int | None = field(default=None, compare=False)


class Query(BaseModel):
    """One prompt and the responses to score.

    Attributes:
        id: unique in its file; made from the content when the data has none.
        task: the name of the task, or None if it is unknown (the router decides).
        prompt: a text, or a conversation whose last turn is the user's or a tool's.
        responses: one or more candidate answers; an empty one has the lowest score.
        tools: the tools that the assistant can call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = ""
    task: str | None = None
    prompt: Prompt
    responses: tuple[str, ...] = Field(min_length=1)
    tools: Annotated[tuple[Tool, ...], BeforeValidator(check_tools)] = ()
    _position: Position = PrivateAttr(default=Position())

    @field_validator("task")
    @classmethod
    def _check_task(cls, task: str | None) -> str | None:
        return check_name("task", task) if task else None

    @field_validator("prompt")
    @classmethod
    def _prompt_has_text(cls, prompt: Prompt) -> Prompt:
        texts = [message.text for message in messages_of(prompt)]
        if all(map(is_empty, texts)):
            raise ValueError("is empty")
        _check_encodable(texts)
        return prompt

    @field_validator("responses")
    @classmethod
    def _responses_are_encodable(cls, responses: tuple[str, ...]) -> tuple[str, ...]:
        _check_encodable(responses)
        return responses

    @model_validator(mode="after")
    def _has_id(self) -> Self:
        if not self.id:
            content = prompt_key(self.prompt) + "\0" + "\0".join(self.responses)
            content += json.dumps(self.tools) if self.tools else ""
            object.__setattr__(self, "id", hashlib.sha256(content.encode()).hexdigest()[:16])
        return self

    @model_serializer(mode="wrap")
    def _without_empty_tools(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = handler(self)
        if not self.tools:
            fields.pop("tools", None)
        return fields

    def at(self, file: object, line: int) -> Self:
        """Remember where the row was read, for error messages; return the query itself."""
        self._position = Position(str(file), line)
        return self

    @property
    def line(self) -> int | None:
        """The line of the row, from 1; None if it was not read from a file."""
        return self._position.line

    @property
    def position(self) -> str:
        """Where the row was read, as `file:line`; otherwise its kind and id, or nothing if it was given no id."""
        if self.line is not None:
            return f"{self._position.file}:{self.line}"
        return f"{type(self).__name__.lower()} {self.id}" if "id" in self.model_fields_set else ""


class Group(Query):
    """One prompt, two or more responses, and the preferences of people or a judge over them.

    Attributes:
        scores: overall grades, one per response, higher is better.
        ranks: an alternative to `scores`: 1 is best, equal ranks are ties.
        capabilities: capability → one grade per response (None: not graded).
        judge_labels: capability → labels of pairs by a judge; people's grades of a pair take precedence.
        annotators: "overall" or a capability → for each response, the grades of single people, as many as there are.
        margin: the minimum difference between the rewards of two responses.
        scores_derived: the overall scores were computed from capability grades.
        source: the origin of the row.
    """

    responses: tuple[str, ...] = Field(min_length=2)
    scores: tuple[float, ...] | None = None
    ranks: tuple[float, ...] | None = None
    capabilities: dict[str, Grades] = {}
    judge_labels: dict[str, tuple[PairLabel, ...]] = {}
    annotators: dict[str, tuple[Grades, ...]] = {}
    margin: float | None = Field(default=None, ge=0, le=_LARGEST, allow_inf_nan=False)
    scores_derived: bool = False
    source: str | None = None

    @field_validator("responses")
    @classmethod
    def _responses_have_text(cls, responses: tuple[str, ...]) -> tuple[str, ...]:
        for index, text in enumerate(responses):
            if is_empty(text):
                raise ValueError(f"response {index} is empty")
        return responses

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.scores is not None and self.ranks is not None:
            raise ValueError("scores and ranks are both given; keep one")
        if self.scores is None and self.ranks is None and not self.capabilities:
            raise ValueError("neither scores, ranks nor capabilities are given")
        for name in {**self.capabilities, **self.annotators, **self.judge_labels}:
            if name != "overall" or name in self.capabilities:
                check_name("capability", name)
        labels: dict[str, Sequence[float | None] | None] = {"scores": self.scores, "ranks": self.ranks}
        labels |= {f"capabilities.{name}": grades for name, grades in self.capabilities.items()}
        for name, grades in labels.items():
            if grades is not None and len(grades) != len(self.responses):
                raise ValueError(f"{name} has {len(grades)} entries for {len(self.responses)} responses")
            _check_finite(name, grades or ())
        for name, people in self.annotators.items():
            if len(people) != len(self.responses):
                raise ValueError(f"annotators.{name} has {len(people)} entries for {len(self.responses)} responses")
            for grades in people:
                _check_finite(f"annotators.{name}", grades)
        for name, pair_labels in self.judge_labels.items():
            for label in pair_labels:
                indices = sorted(label[:2])
                if not (0 <= indices[0] < indices[1] < len(self.responses) and 0 <= label.probability <= 1):
                    raise ValueError(f"judge_labels.{name} has the invalid value {tuple(label)}")
        if self.margin is not None and len(self.responses) != 2:
            raise ValueError("margin needs exactly two responses")
        return self

    @property
    def grades(self) -> Grades | None:
        """The overall grades from scores or ranks, higher is better; None if there are none."""
        return self.scores if self.ranks is None else tuple(-rank for rank in self.ranks)

    def pairs(self, capability: str | None = None) -> list[Pair]:
        """Return the pairs that people order, overall or on one capability, without ties and identical responses."""
        grades = self.grades if capability is None else self.capabilities.get(capability)
        return [] if grades is None else [pair for pair in ordered_pairs(grades) if self.differ(*pair[:2])]

    def labeled_pairs(self, capability: str) -> list[Pair]:
        """Return the pairs that people order on a capability, then a judge's pairs that people did not grade."""
        grades = self.capabilities.get(capability, (None,) * len(self.responses))
        by_judge = [
            label.pair
            for label in self.judge_labels.get(capability, ())
            if None in (grades[label.first], grades[label.second]) and self.differ(*label[:2])
        ]
        return [*self.pairs(capability), *by_judge]

    def differ(self, first: int, second: int) -> bool:
        """Return whether two responses are different as a model reads them; no model can order identical ones."""
        texts = self.responses[first], self.responses[second]
        return texts[0] != texts[1] and stripped(texts[0]) != stripped(texts[1])

    def identical_pairs(self) -> int:
        """Count the pairs of identical responses that have different grades, overall or on a capability."""
        graded = [grades for grades in (self.grades, *self.capabilities.values()) if grades is not None]
        return sum(not self.differ(*pair[:2]) for grades in graded for pair in ordered_pairs(grades))


_SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
_NAME = r"\|[^|<>\s]{1,40}\|"  # of special tokens such as <|eot_id|>
_START = re.compile(rf"(?:\s|<{_NAME}>|{'|'.join(_SPECIAL_TOKENS)})*+")
_REVERSED_END = re.compile(rf"(?:\s|>{_NAME}<|{'|'.join(token[::-1] for token in _SPECIAL_TOKENS)})*+")


def stripped(text: str) -> str:
    """Return a text without the white space and the special tokens around it.

    A model reads only this of a message and of a response, on every path: some clients send what a tokenizer has
    decoded, with end-of-turn marks and padding, and others have removed them.
    """
    text = text.strip()
    if text.startswith("<") and (start := _START.match(text)):
        text = text[start.end() :]
    if text.endswith(">") and (end := _REVERSED_END.match(text[::-1])):
        text = text[: len(text) - end.end()]
    return text


def is_empty(text: str) -> bool:
    """Return whether a text contains only white space and special tokens."""
    return not stripped(text)


def ordered_pairs(grades: Sequence[float | None]) -> list[Pair]:
    """Return all pairs of graded responses whose grades differ, the better one first."""
    return [
        Pair(i, j) if first > second else Pair(j, i)
        for (i, first), (j, second) in itertools.combinations(enumerate(grades), 2)
        if first is not None and second is not None and first != second
    ]


def messages_of(prompt: Prompt) -> list[Message]:
    """Return a prompt as messages; a text becomes the user's only message."""
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)


def prompt_key(prompt: Prompt) -> str:
    """Return a text that is equal for prompts that look the same: Unicode-normalized, white space folded."""
    if isinstance(prompt, str):
        return _fold(prompt)
    turns = [(message.role, _fold(message.text)) for message in prompt]
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n".join(f"<{role}> {content}" for role, content in turns)


def _check_finite(name: str, grades: Sequence[float | None]) -> None:
    for grade in grades:
        if grade is not None and not math.isfinite(grade):
            raise ValueError(f"{name} has the value {grade}, which is not finite")
        if grade is not None and abs(grade) > _LARGEST:
            raise ValueError(f"{name} has the value {grade}, which is beyond ±{_LARGEST:g}")


def _check_encodable(texts: Iterable[str]) -> None:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is not valid Unicode") from None


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


# --- native rows ---------------------------------------------------------------------------------------------------

T = TypeVar("T", bound=BaseModel)
_HINTS = {
    "missing": "add the field",
    "too_short": "give at least two responses to a group, one to a query",
    "is empty": "give a text or leave the row out",
    "beyond": "give smaller numbers; only their differences count",
    "finite": "give a finite number, or null for a capability that was not graded",
    "both": "keep the one that people gave",
    "neither": "give scores (higher is better) or ranks (1 is best)",
    "has": "give one number for each response, in the order of responses",
    "surrogate": "write the text as valid Unicode",
}
_UNION_BRANCH = re.compile(r"str|tuple\[.*|function-.*")  # pydantic puts the branch of a union into the location
# Checks across several fields name the label at fault in their message; pydantic gives them no location.
_NAMED_LABEL = re.compile(r"((?:scores|ranks|margin|(?:capabilities|annotators)\..+?)) ((?:has|needs) .+)", re.DOTALL)


def parse_query(row: Mapping[str, Any]) -> Query:
    """Validate a native row as a `Query`; unknown fields are ignored. Raise `DataError` with field, value and hint."""
    return _parse(Query, row)


def parse_group(row: Mapping[str, Any]) -> Group:
    """Validate a native row as a `Group`; unknown fields are ignored. Raise `DataError` with field, value and hint."""
    return _parse(Group, row)


def _parse(kind: type[T], row: Mapping[str, Any]) -> T:
    try:
        return kind.model_validate({name: value for name, value in row.items() if name in kind.model_fields})
    except ValidationError as error:
        details = error.errors()
    # the first error; of a prompt that is a list, the error in the conversation
    whole = not isinstance(row.get("prompt"), Sequence) or isinstance(row.get("prompt"), str)
    detail: Any = next((d for d in details if whole or d["loc"] != ("prompt", "str")), details[0])
    location = [str(part) for part in detail["loc"] if not _UNION_BRANCH.fullmatch(str(part))]
    message = plain_fault(detail)
    if not location and (named := _NAMED_LABEL.match(message)):
        location, message = named[1].split(".", 1), named[2]
    hints = (text for word, text in _HINTS.items() if word in message)
    hint = _HINTS.get(detail["type"]) or next(hints, "see docs/data.md for the format")
    value = row.get(location[0]) if location and detail["type"] != "missing" else None
    if isinstance(value, Mapping) and location[1:] and location[1] in value:
        value = value[location[1]]
    raise DataError(message[0].lower() + message[1:], field=".".join(location) or None, value=value, hint=hint)
