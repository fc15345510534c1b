"""Read a judge's answer: one outcome per capability, with a probability if the endpoint returns log-probabilities.

Parsing is strict. After reasoning blocks are removed, the answer must be a JSON object with A, B or C for each
capability, or, for a single capability, the bare letter. Anything else is `unparseable`, which is never a tie.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..labels import Outcome
from .prompt import LETTERS

_FENCE = re.compile(r"```(?:json)?[ \t]*\r?\n(.*)```", re.S)
_NOT_A_LETTER = re.compile(r"[^A-Za-z]")
_REASONING_START = re.compile(r"<(?:think|thinking|thought|reasoning)>|\[THINK\]|◁think▷", re.I)
_REASONING_END = re.compile(
    r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>", re.I
)

_BY_LETTER = dict(zip(LETTERS, (Outcome.FIRST, Outcome.SECOND, Outcome.TIE), strict=True))


class Verdict(NamedTuple):
    """The verdict on one capability; `first` is the response shown first.

    Attributes:
        outcome: see `Outcome`.
        p_first: probability that the first response is better, where a tie counts half; None without log-probabilities.
    """

    outcome: Outcome
    p_first: float | None = None


class Token(NamedTuple):
    """A token of the answer, with the log-probabilities of the most likely tokens at its position."""

    text: str
    top: Mapping[str, float]


def read_verdicts(text: str, capabilities: Sequence[str], tokens: Sequence[Token] = ()) -> dict[str, Verdict]:
    """Return the verdict on each capability.

    Args:
        text: the answer.
        capabilities: names of the capabilities that the question contains.
        tokens: the answer's tokens with log-probabilities, if the endpoint returns them.
    """
    text = strip_reasoning(text)
    letters = _letters(text, capabilities)
    if letters is None:
        return dict.fromkeys(capabilities, Verdict(Outcome.UNPARSEABLE))
    verdicts = {}
    for name in capabilities:
        letter = letters.get(name)
        outcome = _BY_LETTER.get(letter or "", Outcome.UNPARSEABLE)
        verdicts[name] = Verdict(outcome, _p_first(text, name, letter, tokens) if letter in LETTERS else None)
    return verdicts


def strip_reasoning(text: str) -> str:
    """Return the part of an answer after its reasoning block, such as ``<think>…</think>``.

    The start tag may be missing, because some chat templates put it into the prompt. A block without an end tag was
    cut off before the answer: the result is empty.
    """
    ends = [match.end() for match in _REASONING_END.finditer(text)]
    answer = text[ends[-1] :] if ends else text
    return "" if _REASONING_START.match(answer.lstrip()) else answer


def _letters(text: str, capabilities: Sequence[str]) -> dict[str, str] | None:
    """Return the letter of each capability; None if the answer has another format."""
    fenced = _FENCE.fullmatch(text.strip())
    body = (fenced[1] if fenced else text).strip()
    bare = body.strip('".').upper()
    if len(capabilities) == 1 and bare in LETTERS:
        return {capabilities[0]: bare}
    try:
        answer = json.loads(body, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    return {name: value.strip().upper() for name, value in answer.items() if isinstance(value, str)}


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("duplicate key")
    return content


def _p_first(text: str, name: str, letter: str | None, tokens: Sequence[Token]) -> float | None:
    """Return the probability from those of A, B and C at the letter's position.

    The tokens may begin with the reasoning that the text no longer contains.
    """
    joined = "".join(token.text for token in tokens)
    position = _letter_position(text, name)
    if position is None or not joined.endswith(text):
        return None
    token = _token_at(tokens, len(joined) - len(text) + position)
    if token is None:
        return None
    masses: dict[str, float] = dict.fromkeys(LETTERS, 0.0)
    for alternative, logprob in token.top.items():
        if (bare := _NOT_A_LETTER.sub("", alternative).upper()) in LETTERS and not math.isnan(logprob):
            masses[bare] += math.exp(min(logprob, 0.0))
    total = sum(masses.values())
    return (masses["A"] + masses["C"] / 2) / total if total and masses[letter or ""] else None


def _letter_position(text: str, name: str) -> int | None:
    """Return the index of the capability's letter in the text."""
    key = re.search(re.escape(json.dumps(name)) + r'\s*:\s*"\s*', text)
    if key:
        return key.end()
    bare = re.search(r"[A-Ca-c]", text)
    return bare.start() if bare and len(text.strip()) <= 4 else None


def _token_at(tokens: Sequence[Token], position: int) -> Token | None:
    start = 0
    for token in tokens:
        if start <= position < start + len(token.text):
            return token
        start += len(token.text)
    return None
