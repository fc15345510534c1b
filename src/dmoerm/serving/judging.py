"""Judge's prompts: recognize the templates of clients that ask a language model, and write the answers they parse.

A template is the client's own text with `{prompt}`, `{response}` and the like in it; judge_templates.yaml describes the
form and holds those that ship. Matching takes linear time, whatever the texts contain: each part of a template is
searched once, from left to right.

    choices    log-softmax of reward / temperature over the responses; for two, the win probability of each
    rating     low + (high − low) · σ(reward / temperature): the probability that people prefer the response to one with
               the mean reward of its task, 0, on the template's scale

Rewards are the unbounded ones here. An answer is a list of tokens, each with its alternatives and their log
probabilities.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..config import validated
from ..errors import ConfigError, DataError, shorten
from ..schema import Message, Prompt
from ..scores import Score, unbound_reward

SHIPPED = Path(__file__).with_name("judge_templates.yaml")
IMPOSSIBLE = -9999.0
"""The log probability of a token that cannot occur, since JSON has no −∞; OpenAI's API uses the same."""

Token = dict[str, float]
"""A token's alternatives: text → log probability."""

_TIE = 0.02  # log odds of a win probability of 0.505: rewards of equal texts differ by rounding
_ANY = "..."
_PLACEHOLDER = re.compile(r"\{(\.\.\.|prompt(?:_\d)?|response(?:_[a-h])?(?:_\d)?)\}")
_RESPONSE = re.compile(r"response(?:_([a-h]))?(?:_(\d))?")
_RATING = re.compile(r"\{rating(?:_([a-h]))?\}")


class UnrecognizedPrompt(DataError):
    """The messages match no template."""


class Rating(BaseModel):
    """The form of a rating."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    text: str
    """The answer, with {rating}, or {rating_a} {rating_b} … for several responses."""
    low: float
    """The rating of a response that people never prefer."""
    high: float
    """The rating of a response that people always prefer."""
    digits: int = Field(default=0, ge=0, le=6)
    """Decimals of the rating."""

    def of(self, score: Score) -> Token:
        """Return the rating as the two next numbers with `digits` decimals; their mean is the exact rating."""
        share = 0.5 + 0.5 * math.tanh(unbound_reward(score.reward) / score.temperature / 2)
        exact = (self.low + (self.high - self.low) * share) * 10**self.digits
        below = math.floor(exact)
        weights = {below: 1 - (exact - below), below + 1: exact - below}
        return {
            f"{number / 10**self.digits:.{self.digits}f}": math.log(weight)
            for number, weight in weights.items()
            if weight > 0
        }


class JudgeTemplate(BaseModel):
    """A client's prompt, and the answer that it parses: `choices` or a `rating`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    client: str = ""
    """Which client sends it, for people."""
    user: str
    """The user's message with placeholders."""
    system: str | None = None
    """The system message with placeholders; None: any, or none."""
    indented: bool = False
    """The client may indent the lines of its own text."""
    choices: dict[str, str] | None = None
    """The answer for each response by its letter."""
    tie: str | None = None
    """The answer for rewards that are nearly equal; None: the better response's, as for other rewards."""
    rating: Rating | None = None
    """The form of a rating."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if (self.choices is None) == (self.rating is None):
            raise ValueError("needs either choices or a rating")
        try:
            example = [_conversation(dict.fromkeys(self._user.names, "text"), letter) for letter in self._letters]
        except (KeyError, IndexError):
            example = []
        if not example:
            raise ValueError("user needs {prompt} and {response}, with the same turns")
        rating = self.rating.text if self.rating else ""
        expected = {match[1] or "" for match in _RATING.finditer(rating)} | set(self.choices or ())
        if expected != set(self._letters):
            raise ValueError(f"user has the responses {self._letters}, but the answer is for {sorted(expected)}")
        return self

    @cached_property
    def _user(self) -> _Pattern:
        return _Pattern(self.user.strip(), self.indented)

    @cached_property
    def _system(self) -> _Pattern | None:
        return None if self.system is None else _Pattern(self.system.strip(), self.indented)

    @property
    def _letters(self) -> list[str]:
        return sorted({match[1] or "" for match in map(_RESPONSE.fullmatch, self._user.names) if match})

    def read(self, system: str, user: str) -> list[tuple[Prompt, str]] | None:
        """Return prompt and response of each judged conversation, or None if the messages do not match.

        Raises:
            UnrecognizedPrompt: the texts contain the template's own marks, so that they cannot be distinguished.
        """
        if self._system is not None and self._system.read(system) is None:
            return None
        values = self._user.read(user)
        return None if values is None else [_conversation(values, letter) for letter in self._letters]

    def answer(self, scores: Sequence[Score]) -> list[Token]:
        """Return the tokens of the answer for the scores of the responses, in the order of their letters."""
        if self.rating is not None:
            tokens = _RATING.split(self.rating.text)  # text, letter, text, letter, …, text
            ratings = dict(zip(self._letters, map(self.rating.of, scores), strict=True))
            parts = [ratings[part or ""] if i % 2 else {part: 0.0} for i, part in enumerate(tokens)]
            return [token for token in parts if "" not in token]
        logs = choice_log_probabilities(scores)
        if self.tie is not None and max(logs) - min(logs) < _TIE:
            return [{self.tie: 0.0}]
        return _verdict(dict(sorted((self.choices or {}).items())).values(), logs)


class Judged(NamedTuple):
    """A recognized request: its template, and prompt and response of each conversation."""

    name: str
    template: JudgeTemplate
    conversations: list[tuple[Prompt, str]]


def load_templates(path: str | Path | None = None) -> dict[str, JudgeTemplate]:
    """Return the templates of a YAML or JSON file, then those that ship; an equal name replaces a shipped one.

    Raises:
        ConfigError: the file cannot be read, or a template is invalid.
    """
    given = {} if path is None else _read(Path(path))
    return given | {name: template for name, template in _read(SHIPPED).items() if name not in given}


def recognize(templates: Mapping[str, JudgeTemplate], messages: Sequence[Message]) -> Judged:
    """Return the first template that the messages match, with their conversations.

    Raises:
        UnrecognizedPrompt: they match none.
    """
    *before, last = messages
    if last.role == "user" and all(message.role == "system" for message in before):
        system = "\n".join(message.content for message in before).strip()
        for name, template in templates.items():
            if (conversations := template.read(system, last.content)) is not None:
                return Judged(name, template, conversations)
    raise UnrecognizedPrompt(
        f"match no known template of a judge's prompt, and a reward model cannot chat; the templates are "
        f"{', '.join(templates)}",
        field="messages",
        hint="write yours into the file of --judge-templates",
    )


def choice_log_probabilities(scores: Sequence[Score]) -> list[float]:
    """Return log P(people prefer this response to the others) of each response; for two, of its win probability."""
    values = [unbound_reward(score.reward) / score.temperature for score in scores]
    largest = max(values)
    if math.isinf(largest):  # at an end of the range: equal ones share the probability
        values = [0.0 if value == largest else -math.inf for value in values]
        largest = 0.0
    total = math.log(sum(math.exp(value - largest) for value in values))
    return [max(value - largest - total, IMPOSSIBLE) for value in values]


class _Pattern:
    """A text with placeholders.

    Attributes:
        names: the placeholders in order.
    """

    def __init__(self, text: str, indented: bool) -> None:
        first, *rest = _PLACEHOLDER.split(text)
        self.names, self._literals = rest[::2], [first, *rest[1::2]]
        if "" in self._literals[1:-1]:
            raise ValueError("two placeholders need a text between them")
        self._indented = indented
        self._searched = [re.compile(_regular(literal, indented)) for literal in self._literals]
        self._end = re.compile(rf"(?:{self._searched[-1].pattern})\Z")
        responses = [index for index, name in enumerate(self.names) if _RESPONSE.fullmatch(name)]
        self._first_response = responses[0] if responses else len(self.names)
        self._marks = (
            self._literals[self._first_response + 1 : min(responses[-1] + 2, len(self.names))] if responses else []
        )
        if any(not mark.strip() for mark in self._marks):
            raise ValueError("needs a text after each response, not only white space, to tell where the response ends")

    def read(self, text: str) -> dict[str, str] | None:
        """Return name → text of the placeholders, or None if the text does not match. Raises `UnrecognizedPrompt`."""
        text = text.strip() if self._literals[-1] else text.lstrip()
        start = self._searched[0].match(text)
        if start is None:
            return None
        values: dict[str, str] = {}
        position, responses_from = start.end(), 0
        for index, name in enumerate(self.names):
            if index == self._first_response:
                responses_from = position
            literal = self._next(text, position, index, values.get(name) if name != _ANY else None)
            if literal is None:
                return None
            value = text[position : literal.start()]
            values[name] = value.strip() if self._indented else value
            position = literal.end()
        self._check_marks(text[responses_from:])
        return values

    def _next(self, text: str, start: int, index: int, value: str | None) -> re.Match[str] | None:
        """Return the literal after placeholder `index`, whose text begins at `start` and may be known already."""
        if index == len(self.names) - 1:
            return self._end.search(text, start)
        literal = self._searched[index + 1]
        if value is None:
            return literal.search(text, start)
        return literal.match(text, start + len(value)) if text.startswith(value, start) else None

    def _check_marks(self, text: str) -> None:
        """Refuse texts with the marks around responses: one could pass itself off as another, or hide its end."""
        for mark in self._marks:
            expected = "\0".join(self._marks).count(mark)
            counted = len(re.findall(_regular(mark, self._indented), text))
            if counted != expected:
                message = f"have the template's mark {shorten(mark.strip())} {counted} times, not {expected}"
                hint = "texts that contain a template's marks cannot be distinguished from the template"
                raise UnrecognizedPrompt(message, field="messages", hint=hint)


def _regular(literal: str, indented: bool) -> str:
    """Return the regular expression of a text, whose lines may be indented."""
    lines = map(re.escape, literal.split("\n"))
    return (r"\n[ \t]*" if indented else r"\n").join(lines)


def _conversation(values: Mapping[str, str], letter: str) -> tuple[Prompt, str]:
    """Return prompt and response of the conversation with this letter, which has one or more turns."""
    name = f"response_{letter}" if letter else "response"
    if name in values:
        return values["prompt"], values[name]
    turns = sorted(key.removeprefix("prompt") for key in values if key.startswith("prompt"))
    messages = [
        message
        for turn in turns
        for message in (
            Message(role="user", content=values[f"prompt{turn}"]),
            Message(role="assistant", content=values[f"{name}{turn}"]),
        )
    ]
    return tuple(messages[:-1]), messages[-1].content


def _verdict(texts: Iterable[str], logs: Sequence[float]) -> list[Token]:
    """Return the texts' common beginning, where they differ, and their common end."""
    texts = list(texts)
    start = _common_start(texts)
    rests = [text[len(start) :] for text in texts]
    end = _common_start([rest[::-1] for rest in rests])[::-1]
    if any(len(rest) == len(end) for rest in rests):  # one would be empty
        start, rests, end = "", texts, ""
    differing = dict(zip((rest.removesuffix(end) for rest in rests), logs, strict=True))
    return [token for token in ({start: 0.0}, differing, {end: 0.0}) if "" not in token]


def _common_start(texts: Sequence[str]) -> str:
    characters = itertools.takewhile(lambda same: len(set(same)) == 1, zip(*texts, strict=False))
    return "".join(same[0] for same in characters)


def _read(path: Path) -> dict[str, JudgeTemplate]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ConfigError(f"{path}: must have a mapping for each template's name (got {shorten(content)})")
    return {str(name): validated(JudgeTemplate, entry, f"{path}: {name}") for name, entry in content.items()}
