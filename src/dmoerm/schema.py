"""The types of preference data: messages, queries, groups and ordered pairs.

A *group* is one prompt with two or more responses and a preference over them. A *query* has no preference and may have
a single response. Scores: higher is better. Ranks: 1 is best, equal ranks are ties.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import DataError, first_fault
from .message import Message, Tool, check_tools
from .names import check_name

GENERATED = "testbed"
"""The `source` of generated groups; those of a test part have gold labels, which are computed from the texts."""
_LARGEST = 1e18  # squares of larger grades overflow float32
_Grade = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST, allow_inf_nan=False)]
Grades = tuple[float | None, ...]
Prompt = str | tuple[Message, ...]
PromptInput = str | Sequence[Mapping[str, Any] | Message]
"""A prompt as callers give it: a text or a list of chat messages."""
ResponseLists = Sequence[list[str] | tuple[str, ...]]
"""The responses to several prompts. It is not `Sequence[Sequence[str]]`, which would accept a list of texts."""
TaskName = Annotated[str, AfterValidator(partial(check_name, "task"))]
CapabilityName = Annotated[str, AfterValidator(partial(check_name, "capability"))]
_AnnotatedName = Annotated[str, AfterValidator(lambda n: n if n == "overall" else check_name("capability", n))]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is not valid Unicode") from None
    return text


_Text = Annotated[str, AfterValidator(_encodable)]


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
    probability: Annotated[float, Field(ge=0, le=1)]
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
    task: Annotated[TaskName | None, BeforeValidator(lambda task: task or None)] = None
    # one branch alone is tried, so that an error is about the form that the caller chose
    prompt: Annotated[
        Annotated[str, Tag("text")] | Annotated[tuple[Message, ...], Tag("messages")],
        Discriminator(lambda prompt: "text" if isinstance(prompt, str) else "messages"),
    ]
    responses: tuple[_Text, ...] = Field(min_length=1)
    tools: Annotated[tuple[Tool, ...], BeforeValidator(check_tools)] = ()
    _position: Position = PrivateAttr(default=Position())

    @field_validator("prompt")
    @classmethod
    def _prompt_has_text(cls, prompt: Prompt) -> Prompt:
        if all(is_empty(_encodable(message.text)) for message in messages_of(prompt)):
            raise ValueError("is empty")
        return prompt

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

    responses: tuple[_Text, ...] = Field(min_length=2)
    scores: tuple[_Grade, ...] | None = None
    ranks: tuple[_Grade, ...] | None = None
    capabilities: dict[CapabilityName, tuple[_Grade | None, ...]] = {}
    judge_labels: dict[CapabilityName, tuple[PairLabel, ...]] = {}
    annotators: dict[_AnnotatedName, tuple[tuple[_Grade | None, ...], ...]] = {}
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

    @field_validator("scores", "ranks", "capabilities", "annotators", mode="before")
    @classmethod
    def _one_entry_for_each_response(cls, value: Any, info: ValidationInfo) -> Any:
        count = len(info.data.get("responses", ()))  # 0 if the responses are invalid
        for name, entries in value.items() if isinstance(value, Mapping) else [(None, value)]:
            if count and isinstance(entries, list | tuple) and len(entries) != count:
                fault = ValueError(f"has {len(entries)} entries for {count} responses")
                location = () if name is None else (name,)
                error: Any = {"type": "value_error", "loc": location, "input": entries, "ctx": {"error": fault}}
                raise ValidationError.from_exception_data("labels", [error])
        return value

    @field_validator("judge_labels")
    @classmethod
    def _pairs_of_responses(
        cls, by_capability: dict[str, tuple[PairLabel, ...]], info: ValidationInfo
    ) -> dict[str, tuple[PairLabel, ...]]:
        count = len(info.data.get("responses", ()))
        for label in itertools.chain(*by_capability.values()):
            if not (0 <= min(label[:2]) < max(label[:2]) < count):
                raise ValueError(f"has {tuple(label)}, which is not a pair of the {count} responses")
        return by_capability

    @model_validator(mode="after")
    def _has_labels(self) -> Self:
        if self.scores is not None and self.ranks is not None:
            raise ValueError("scores and ranks are both given; keep one")
        if self.scores is None and self.ranks is None and not self.capabilities:
            raise ValueError("neither scores, ranks nor capabilities are given")
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


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


# --- native rows ---------------------------------------------------------------------------------------------------

T = TypeVar("T", bound=BaseModel)
_HINTS = {
    "missing": "add the field",
    "too_short": "give at least two responses to a group, one to a query",
    "entries for": "give one number for each response, in the order of responses",
    "finite_number": "give a finite number, or null for a capability that was not graded",
    "greater_than_equal": "give smaller numbers; only their differences count",
    "less_than_equal": "give smaller numbers; only their differences count",
    "is empty": "give a text or leave the row out",
    "both": "keep the one that people gave",
    "neither": "give scores (higher is better) or ranks (1 is best)",
    "surrogate": "write the text as valid Unicode",
}


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
        fault = first_fault(error)
    hints = (hint for word, hint in _HINTS.items() if word in fault.message)
    hint = _HINTS.get(fault.kind) or next(hints, None)
    field = re.sub(r"^prompt\.(text|messages)\b", "prompt", fault.field)
    form = "give a text, or a list of messages with role and content"
    hint = hint or (form if field.startswith("prompt") else "see docs/data.md for the format")
    value = fault.value if field else None  # the value of a fault of several fields is the whole row
    raise DataError(fault.message[0].lower() + fault.message[1:], field=field or None, value=value, hint=hint)
