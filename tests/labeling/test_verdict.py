"""Parsing is strict: an answer in an unknown format is unparseable, never a tie."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.labeling.prompt import Outcome, Token, Verdict, read_verdicts

SINGLE, TWO = ["empathy"], ["empathy", "logic"]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"empathy": "A"}', "first"),
        ('{"empathy": "B"}', "second"),
        ('{"empathy": "C"}', "tie"),
        (' {"empathy" :  "b"} \n', "second"),
        ('```json\n{"empathy": "A"}\n```', "first"),
        ('```\n{"empathy": "A"}\n```', "first"),
        ("A", "first"),
        ('"B".', "second"),
        ("c", "tie"),
        ('{"empathy": "A", "more": "words"}', "first"),
        ("", "unparseable"),
        ("D", "unparseable"),
        ("AB", "unparseable"),
        ("A or B", "unparseable"),
        ("The first is better: A", "unparseable"),
        ('I say {"empathy": "A"}', "unparseable"),
        ('{"empathy": "A"', "unparseable"),
        ('{"empathy": 1}', "unparseable"),
        ('{"empathy": null}', "unparseable"),
        ('{"empathy": "first"}', "unparseable"),
        ('{"Empathy": "A"}', "unparseable"),
        ('{"empathy": "A", "empathy": "B"}', "unparseable"),
        ('["A"]', "unparseable"),
        ("1", "unparseable"),
        ("[" * 100_000, "unparseable"),
    ],
)
def test_one_capability(text, outcome):
    assert read_verdicts(text, SINGLE) == {"empathy": Verdict(Outcome(outcome))}


@pytest.mark.parametrize(
    "text",
    [
        '<think>A? No, B is empty.</think>{"empathy": "A"}',
        '<think>\nLong.\n\n{"empathy": "B"}\n</think>\n\n{"empathy": "A"}',
        'I compare "A" with "B".</think> A',
        "<think>one</think><think>two</think>A",
        '<THINKING>x</THINKING>```json\n{"empathy": "A"}\n```',
        '[THINK]x[/THINK]{"empathy": "A"}',
        "◁think▷x◁/think▷A",
        '<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>{"empathy": "A"}',
        "<think></think>A",
    ],
)
def test_reasoning_in_front_of_the_answer_is_ignored(text):
    assert read_verdicts(text, SINGLE)["empathy"].outcome == Outcome.FIRST


@pytest.mark.parametrize(
    "text",
    ['<think>I would say {"empathy": "A"}', "  <think>A", "<think>x</think>", "A</think>", "<think>x</think>So A."],
)
def test_reasoning_without_an_answer_is_unparseable(text):
    assert read_verdicts(text, SINGLE)["empathy"].outcome == Outcome.UNPARSEABLE


@pytest.mark.parametrize("shown", [True, False])
def test_soft_verdicts_are_found_behind_reasoning(shown):
    """Whether the endpoint leaves the reasoning in the text, or removes it there but not from the tokens."""
    answer = ['{"', "empathy", '":', ' "', ("A", MASSES), '"}']
    made = tokens("<think>", ' "empathy": "', ("B", {"B": 1.0}), "</think>", *answer)
    text = "".join(token.text for token in (made if shown else made[4:]))
    assert read_verdicts(text, SINGLE, made)["empathy"].p_first == pytest.approx((0.6 + 0.1) / 0.9)


def test_several_capabilities_are_read_one_by_one():
    results = read_verdicts('{"empathy": "B", "logic": "?"}', TWO)
    assert [verdict.outcome for verdict in results.values()] == [Outcome.SECOND, Outcome.UNPARSEABLE]
    assert read_verdicts("A", TWO)["logic"].outcome == Outcome.UNPARSEABLE


@given(st.text(max_size=60))
def test_any_text_has_one_outcome_each(text):
    assert set(read_verdicts(text, TWO)) == set(TWO)


def tokens(*parts: str | tuple[str, dict[str, float]]) -> list[Token]:
    """Tokens; a pair states the probabilities at its position."""
    results = []
    for part in parts:
        text, masses = part if isinstance(part, tuple) else (part, {part: 1.0})
        results.append(Token(text, {name: math.log(mass) for name, mass in masses.items()}))
    return results


MASSES = {"A": 0.6, "B": 0.1, "C": 0.2, "x": 0.1}


@pytest.mark.parametrize(
    "parts",
    [
        ['{"', "empathy", '":', ' "', ("A", MASSES), '"}'],
        ['{"empathy":', (' "A', {f' "{k}': v for k, v in MASSES.items()}), '"}'],
        ['{"empathy": "', ('A"}', {f'{k}"}}': v for k, v in MASSES.items()})],
        [("A", MASSES)],
        [" ", ("a", {k.lower(): v for k, v in MASSES.items()})],
    ],
)
def test_soft_verdicts_come_from_the_position_of_the_letter(parts):
    made = tokens(*parts)
    (verdict,) = read_verdicts("".join(token.text for token in made), SINGLE, made).values()
    assert verdict.outcome == Outcome.FIRST
    assert verdict.p_first == pytest.approx((0.6 + 0.1) / 0.9)


def test_each_capability_has_a_position():
    first, second = {"A": 0.9, "B": 0.1}, {"A": 0.2, "B": 0.8}
    made = tokens('{"empathy": "', ("A", first), '", "logic": "', ("B", second), '"}')
    results = read_verdicts("".join(token.text for token in made), TWO, made)
    assert [verdict.p_first for verdict in results.values()] == pytest.approx([0.9, 0.2])


def test_without_tokens_that_make_up_the_text_there_is_no_soft_verdict():
    made = tokens("A", "!")
    assert read_verdicts("A", SINGLE, made)["empathy"] == Verdict(Outcome.FIRST)
    assert read_verdicts("A", SINGLE, [Token("A", {"q": -1.0})])["empathy"] == Verdict(Outcome.FIRST)


def test_a_name_in_quotes_and_signs_is_found():
    name = "a_b-c"
    made = tokens(json.dumps(name)[:-1], '": "', ("B", {"B": 1.0}), '"')
    text = "{" + "".join(token.text for token in made) + "}"
    assert read_verdicts(text, [name], [Token("{", {}), *made, Token("}", {})])[name].p_first == 0.0


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 1e6, -math.inf])
def test_an_invalid_log_probability_gives_no_invalid_probability(logprob):
    results = read_verdicts("A", SINGLE, [Token("A", {"A": logprob, "B": -1.0})])["empathy"]
    assert results.outcome is Outcome.FIRST
    assert results.p_first is None or 0 <= results.p_first <= 1
