"""Features of a response: sentences of each family, correctness of the answer, and quality of writing.

All features are computed from the text, so they apply to the output of any policy.
"""

from __future__ import annotations

import re
from functools import lru_cache

from dmoerm.schema import Prompt
from evidence.testbed.facts import FACTS
from evidence.testbed.phrases import FAMILIES

COUNTED_WORDS = (4, 30)
"""Fewest and most words of a sentence that counts; others are ignored, so that lists of cues earn nothing."""

_WORD = re.compile(r"[\w']+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION_WORDS = _words(
    "a an and any are as at be because been but by can could do does for from had has have he her here him his how i"
    " if in into is it its may me might my no nor not of off on or our out over she so some than that the their them"
    " then there these they this those through to too up us was we were what when where which who will with would you"
    " your"
)
_GENERIC_WORDS = _words(
    "about across after again answer anyway asked asks because been better between breakfast cannot case check class"
    " club colleagues compose days debate disagree does down evening every everything exam facts fact finally first"
    " forth friends from give gladly glossary going good have here home honest honestly hold holding just keep know"
    " known last letter like long main make many matter mine more most much must name need never night nobody notes"
    " once only opinion other over part parts people place play please pleasure question quick quiz right said same"
    " scene should show someone something stay still such take tell than that their them then there these they thing"
    " things think thinking this those time today together told truth turn under understand upon very view visitor"
    " wanted week well what when where which while will with without words would write wrong year years your"
)


def evidence(prompt: Prompt, response: str) -> dict[str, int]:
    """Count the different sentences of each family.

    `topic` counts the sentences that name the prompt's subject. A sentence of the family `persona` counts only if it
    names the subject, which is the character to play.
    """
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt if turn.role != "assistant"]
    words = {word.strip("'") for text in texts for word in _WORD.findall(text.lower())}
    # The subject's words are the long ones that do not belong to a frame.
    words = {_stem(w) for w in words if (len(w) > 3 or w == "fe") and w not in _GENERIC_WORDS | _FUNCTION_WORDS}
    counts = dict.fromkeys(FAMILIES, 0)
    for sentence in dict.fromkeys(_sentences(response.lower())):
        if not COUNTED_WORDS[0] <= len(_WORD.findall(sentence)) <= COUNTED_WORDS[1]:
            continue
        on_topic = not words.isdisjoint(map(_stem, _WORD.findall(sentence)))
        counts["topic"] += on_topic
        for name in families_of(sentence):
            counts[name] += on_topic if name == "persona" else name != "topic"
    return counts


def correctness(prompt: Prompt, response: str, guesses: int) -> float:
    """Return the correctness of an answer, 0 to 1.

    1 for the right answer alone, 0.4 for a right and a wrong answer, 0.25 without an answer, 0.1 for a wrong answer
    alone; a guess costs a third. 0.5 if the prompt has no question of the fact base.
    """
    question = (prompt if isinstance(prompt, str) else prompt[-1].content).lower()
    fact = next((fact for fact in FACTS if fact.question.lower() in question), None)
    if fact is None:
        return 0.5 if response.strip() else 0.0
    right, wrong = _names(response, fact.answer), any(_names(response, answer) for answer in fact.wrong)
    value = (0.4 if wrong else 1.0) if right else (0.1 if wrong else 0.25)
    return value * (2 / 3 if guesses else 1.0)


def workmanship(response: str, shortest: int, longest: int) -> float:
    """Return the quality of writing, 0 to 1: the product of factors for length, repetition, stuffing and fluency.

    The factor for length is 1 from `shortest` to `longest` words. The result is near 0 for an empty text, random words,
    a repeated sentence, or a text that is several times too long.
    """
    words = [word.lower() for word in _WORD.findall(response)]
    if not words:
        return 0.0
    length = min(1.0, len(words) / shortest, max(0.0, 2.0 - len(words) / longest))
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    fresh = len(set(trigrams)) / len(trigrams) if trigrams else 0.0
    sentences = _sentences(response)
    plain = sum(len(families_of(sentence)) < 3 for sentence in sentences) / len(sentences)
    fluent = min(1.0, sum(word in _FUNCTION_WORDS for word in words) / len(words) / 0.25)
    return length * min(1.0, fresh / 0.9) ** 2 * plain * fluent


@lru_cache(maxsize=65_536)  # the sentences of testbed responses repeat
def families_of(sentence: str) -> tuple[str, ...]:
    """Return the families whose cue is in a sentence."""
    return tuple(name for name, family in FAMILIES.items() if family.pattern.search(sentence))


def _sentences(text: str) -> list[str]:
    return _SENTENCE_END.split(" ".join(text.split()))


def _stem(word: str) -> str:
    return word.removesuffix("'s").rstrip("s")


def _names(text: str, answer: str) -> bool:
    return re.search(rf"\b{re.escape(answer.removeprefix('the '))}\b", text, re.IGNORECASE) is not None
