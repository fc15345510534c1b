"""Compose responses from sentence banks: sentences for a hidden level of each capability, and sentences of style.

Sentences of style come from the same families for all tasks, so the responses to each task differ in warmth, hedging,
numbers, imagery and so on; only the task determines the value of these (`gold.py`). Gold grades depend on the text, not
on the hidden levels.
"""

from __future__ import annotations

import re
from random import Random

from dmoerm.schema import prompt_key
from evidence.testbed.phrases import ANSWERS, FAMILIES
from evidence.testbed.prompts import PromptItem, stream

EVIDENCE: dict[str, dict[str, str]] = {
    "roleplay": {
        "character_setting": "persona",
        "conversational_sense": "question",
        "empathy": "warmth",
        "relationship_traits": "bond",
        "personalised_expression": "quirk",
        "content_richness": "imagery",
    },
    "chitchat": {
        "conversational_sense": "topic",
        "proactivity": "question",
        "emotion_expression": "feeling",
        "empathy": "warmth",
        "content_richness": "example",
    },
    "subjective_qa": {
        "convincingness": "reason",
        "logic": "order",
        "viewpoint_richness": "viewpoint",
        "breadth_of_knowledge": "fact",
        "relevance": "topic",
    },
    "objective_qa": {
        "correctness": "answer",
        "objectivity": "",
        "reasoning": "reason",
        "logic": "order",
        "depth_of_knowledge": "fact",
        "relevance": "topic",
    },
    "text_creation": {
        "conformity_to_intent": "topic",
        "expressiveness": "imagery",
        "readability": "",
        "content_richness": "example",
        "logic": "order",
    },
}
"""Task → capability → the family whose sentences show it; "" if the absence of other families shows it."""

_CLUTTER = {
    "objectivity": ("warmth", "feeling", "viewpoint", "imagery"),
    "readability": ("viewpoint", "fact", "digression", "reason"),
}
_STYLE = ("warmth", "question", "feeling", "viewpoint", "fact", "imagery", "reason", "order", "example", "topic")
_RARE = ("persona", "bond", "quirk", "disclaimer", "digression", "guess")
_LEVEL_WEIGHTS = (40, 35, 18, 7)
_STYLE_WEIGHTS = (20, 35, 30, 15)
_RARE_SHARE = 0.25
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")


def sample_responses(item: PromptItem, n: int, seed: int = 0) -> list[str]:
    """Compose `n` responses to a prompt, mostly of 30 to 80 words. A larger `n` with the same seed adds more."""
    rng = stream("responses", item.task, prompt_key(item.prompt), seed)
    return [_compose(item, rng) for _ in range(n)]


def _compose(item: PromptItem, rng: Random) -> str:
    levels = {name: rng.choices(range(4), _LEVEL_WEIGHTS)[0] for name in EVIDENCE[item.task]}
    families: list[str] = []
    for capability, level in levels.items():
        family = EVIDENCE[item.task][capability]
        if not family:
            families += rng.choices(_CLUTTER[capability], k=max(0, 2 - level))
        elif family != "answer":
            families += [family] * level
    for _ in range(rng.choices(range(4), _STYLE_WEIGHTS)[0]):
        families.append(rng.choice(_RARE if rng.random() < _RARE_SHARE else _STYLE))
    rng.shuffle(families)
    sentences = [_answer(item, levels["correctness"], rng)] if item.fact else []
    used: set[str] = set()
    for family in families:
        fresh = [text for text in FAMILIES[family].sentences if text not in used] or FAMILIES[family].sentences
        template = rng.choice(fresh)
        used.add(template)
        sentences.append(fill(template, item, rng))
    return " ".join(sentences) or fill(FAMILIES["digression"].sentences[0], item, rng)


def _answer(item: PromptItem, level: int, rng: Random) -> str:
    """Compose the answer to a factual question. A higher level makes it more often right, and a guess less frequent."""
    assert item.fact is not None
    right = rng.random() < (0.3, 0.7, 1.0, 1.0)[level]
    answer = item.fact.answer if right else rng.choice(item.fact.wrong)
    stated = fill(rng.choice(ANSWERS).replace("{answer}", answer), item, rng)
    if rng.random() < (0.6, 0.4, 0.1, 0.0)[level]:
        stated += " " + fill(rng.choice(FAMILIES["guess"].sentences), item, rng)
    return stated


def fill(template: str, item: PromptItem, rng: Random) -> str:
    """Fill in a template: draw one of each `(a|b)`, and insert the prompt's slots and random numbers."""
    text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    numbers = {"year": str(rng.randrange(1790, 2020)), "number": str(rng.randrange(12, 980))}
    text = text.format_map({**item.slots, **numbers})
    return text[0].upper() + text[1:]
