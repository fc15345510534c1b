"""What a judge's answer says: one outcome a capability, and how sure the judge was, where the endpoint tells.

An answer is read strictly: a JSON object with one of A, B, C for each capability, or, where one was asked, the bare
letter. Anything else is `unparseable`, an outcome of its own and never a tie.
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
_NO_LETTER = re.compile(r"[^A-Za-z]")


_BY_LETTER = dict(zip(LETTERS, (Outcome.FIRST, Outcome.SECOND, Outcome.TIE), strict=True))


class Verdict(NamedTuple):
    """One capability's verdict; here `first` is the response shown first.

    Attributes:
        outcome: see `Outcome`.
        p_first: the probability that the first is better, a tie counting half; None where no log-probabilities came.
    """

    outcome: Outcome
    p_first: float | None = None


class Token(NamedTuple):
    """A token of the answer, and the log-probability of each of the likeliest tokens in its place."""

    text: str
    top: Mapping[str, float]


def read_verdicts(text: str, capabilities: Sequence[str], tokens: Sequence[Token] = ()) -> dict[str, Verdict]:
    """Capability → verdict, from the answer's text and, where there are some, its tokens."""
    letters = _letters(text, capabilities)
    if letters is None:
        return dict.fromkeys(capabilities, Verdict(Outcome.UNPARSEABLE))
    found = {}
    for name in capabilities:
        letter = letters.get(name)
        outcome = _BY_LETTER.get(letter or "", Outcome.UNPARSEABLE)
        found[name] = Verdict(outcome, _p_first(text, name, letter, tokens) if letter in LETTERS else None)
    return found


def _letters(text: str, capabilities: Sequence[str]) -> dict[str, str] | None:
    """Capability → letter; None where the answer has another form altogether."""
    fenced = _FENCE.fullmatch(text.strip())
    body = (fenced[1] if fenced else text).strip()
    bare = body.strip('".').upper()
    if len(capabilities) == 1 and bare in LETTERS:
        return {capabilities[0]: bare}
    try:
        answer = json.loads(body, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    return {name: value.strip().upper() for name, value in answer.items() if isinstance(value, str)}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _p_first(text: str, name: str, letter: str | None, tokens: Sequence[Token]) -> float | None:
    """From the probabilities of A, B and C in the place of the letter."""
    place = _place(text, name)
    token = _token_at(tokens, place) if place is not None and "".join(t.text for t in tokens) == text else None
    if token is None:
        return None
    masses: dict[str, float] = dict.fromkeys(LETTERS, 0.0)
    for alternative, logprob in token.top.items():
        if (bare := _NO_LETTER.sub("", alternative).upper()) in LETTERS and not math.isnan(logprob):
            masses[bare] += math.exp(min(logprob, 0.0))
    total = sum(masses.values())
    return (masses["A"] + masses["C"] / 2) / total if total and masses[letter or ""] else None


def _place(text: str, name: str) -> int | None:
    """Where the capability's letter stands in the text."""
    key = re.search(re.escape(json.dumps(name)) + r'\s*:\s*"\s*', text)
    if key:
        return key.end()
    bare = re.search(r"[A-Ca-c]", text)
    return bare.start() if bare and len(text.strip()) <= 4 else None


def _token_at(tokens: Sequence[Token], place: int) -> Token | None:
    start = 0
    for token in tokens:
        if start <= place < start + len(token.text):
            return token
        start += len(token.text)
    return None
