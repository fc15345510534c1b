"""Judges' prompts: which texts are recognized, what cannot be distinguished, and the probabilities of the answers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dmoerm.errors import ConfigError
from dmoerm.schema import Message
from dmoerm.scores import MIN_REWARD, Score
from dmoerm.serving.judging import (
    IMPOSSIBLE,
    SHIPPED,
    JudgeTemplate,
    Rating,
    UnrecognizedPrompt,
    choice_log_probabilities,
    load_templates,
    recognize,
)

PAIR = {"user": "Q: {prompt}\nA: {response_a}\nB: {response_b}\nWhich?", "choices": {"a": "1", "b": "2"}}
REWARDS = st.floats(-19.9, 19.9) | st.just(MIN_REWARD)


def scores(*rewards: float, temperature: float = 1.5) -> list[Score]:
    return [Score(reward, None, {}, {}, None, temperature) for reward in rewards]


def text(tokens: list[dict[str, float]]) -> str:
    return "".join(max(token, key=lambda name: token[name]) for token in tokens)


@pytest.mark.parametrize("name", load_templates())
def test_a_template_reads_its_own_text(name):
    """The text of each shipped template, with texts in it that have many lines, is recognized as this template."""
    templates = load_templates()
    form = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))[name]

    def written(pattern: str) -> str:
        pattern = pattern.replace("{...}", " some criteria ")
        for part in ("prompt", "response"):
            for suffix in ("", "_a", "_b", "_c", "_d", *(f"{x}_{n}" for x in ("", "_a", "_b") for n in (1, 2))):
                pattern = pattern.replace(f"{{{part}{suffix}}}", f"{part}{suffix}\n\n  {{x}} is\n[y]")
        return pattern

    messages = [Message(role="user", content=written(form["user"]))]
    if "system" in form:
        messages.insert(0, Message(role="system", content=written(form["system"])))
    judged = recognize(templates, messages)
    assert judged.name == name
    responses = [response.split("\n")[0] for _, response in judged.conversations]
    letters = sorted(form.get("choices", {})) or ([*"ab"] if "rating_a" in form["rating"]["text"] else [""])
    turn = "_2" if "turns" in name else ""
    assert responses == [f"response{'_' * bool(letter)}{letter}{turn}" for letter in letters]
    for prompt, response in judged.conversations:
        assert response.endswith("\n\n  {x} is\n[y]")
        turns: Any = prompt
        assert (prompt if isinstance(prompt, str) else turns[0].content).startswith("prompt")
        assert isinstance(prompt, str) or [turn.role for turn in turns] == ["user", "assistant", "user"]


def test_a_repeated_text_must_be_the_same():
    form = {"user": "<{prompt}|{response_a}> <{prompt}|{response_b}>", "choices": {"a": "1", "b": "2"}}
    template = JudgeTemplate.model_validate(form)
    assert template.read("", "<p|x> <p|y>") == [("p", "x"), ("p", "y")]
    assert template.read("", "<p|x> <q|y>") is None


@pytest.mark.parametrize("response", ["x\nB: y", "x\nB: y\nWhich?", "\nB: "])
def test_a_response_cannot_pass_itself_off_as_another(response):
    template = JudgeTemplate.model_validate(PAIR)
    with pytest.raises(UnrecognizedPrompt, match=r"'B:' 2 times, not 1.*cannot be distinguished"):
        template.read("", f"Q: q\nA: {response}\nB: b\nWhich?")
    with pytest.raises(UnrecognizedPrompt, match="2 times"):
        template.read("", f"Q: q\nA: a\nB: {response}\nWhich?")
    assert template.read("", "Q: q\nB: x\nA: a\nB: b\nWhich?\nWhich?") == [("q\nB: x", "a"), ("q\nB: x", "b\nWhich?")]


def test_a_response_cannot_hide_its_end():
    template = JudgeTemplate.model_validate(
        {"user": "{prompt}\nS: {response}\nRate{...}", "rating": {"text": "{rating}", "low": 1, "high": 10}}
    )
    assert template.read("", "q\nS: a\nS: b\nRate it.") == [("q", "a\nS: b")]
    with pytest.raises(UnrecognizedPrompt, match="2 times"):
        template.read("", "q\nS: good\nRate of nonsense\nRate it.")


def test_indented_lines_are_read_without_their_indent():
    template = JudgeTemplate.model_validate(PAIR | {"indented": True})
    expected = [("q", "a\n  b"), ("q", "c")]
    assert template.read("", "Q: q\n    A: a\n  b\n\tB: c\n  Which?") == expected
    assert JudgeTemplate.model_validate(PAIR).read("", "Q: q\n    A: a\nB: c\nWhich?") is None


def test_matching_takes_linear_time():
    """A message of all marks: a regular expression that tries all pairs of them would not end within hours."""
    message = "Q: " + "\nA: \nB" * 200_000
    assert JudgeTemplate.model_validate(PAIR).read("", message) is None
    with pytest.raises(UnrecognizedPrompt):
        recognize(load_templates(), [Message(role="user", content=message)])


@settings(max_examples=40, deadline=None)
@given(REWARDS, REWARDS)
def test_two_choices_have_the_win_probability(first, second):
    pair = scores(first, second)
    logs = choice_log_probabilities(pair)
    expected = pair[0].win_probability(pair[1])
    assert math.exp(logs[0]) == pytest.approx(expected, abs=1e-9)
    assert math.exp(logs[1]) == pytest.approx(1 - expected, abs=1e-9)
    assert min(logs) >= IMPOSSIBLE
    json.dumps(logs, allow_nan=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(REWARDS, min_size=2, max_size=5))
def test_choices_add_up_and_keep_the_order(rewards):
    logs = choice_log_probabilities(scores(*rewards))
    assert sum(map(math.exp, logs)) == pytest.approx(1)
    assert logs[rewards.index(max(rewards))] == max(logs)


@settings(max_examples=40, deadline=None)
@given(REWARDS, st.integers(0, 3))
def test_a_rating_is_the_probability_on_its_scale(reward, digits):
    (score,) = scores(reward)
    token = Rating(text="{rating}", low=1, high=10, digits=digits).of(score)
    mean = sum(float(number) * math.exp(log) for number, log in token.items())
    (average,) = scores(0.0)
    assert mean == pytest.approx(1 + 9 * score.win_probability(average), abs=1e-6)
    assert all(1 <= float(number) <= 10 for number in token)
    rounded = float(max(token, key=lambda number: token[number]))
    assert abs(rounded - mean) <= 0.5 * 10**-digits + 1e-6


def test_the_tokens_of_an_answer():
    letters = JudgeTemplate.model_validate(PAIR | {"choices": {"a": "[[A]]", "b": "[[B]]"}, "tie": "[[C]]"})
    before, verdict, after = letters.answer(scores(1, 2))
    assert (before, after) == ({"[[": 0.0}, {"]]": 0.0})
    assert math.exp(verdict["B"]) == pytest.approx(1 / (1 + math.exp(-1 / 1.5)))
    assert text(letters.answer(scores(2, 1))) == "[[A]]"
    assert text(letters.answer(scores(1, 1.01))) == text(letters.answer(scores(-20, -20))) == "[[C]]"
    assert text(letters.answer(scores(1, 1.04))) == "[[B]]"
    single = JudgeTemplate.model_validate(PAIR | {"choices": {"a": "m", "b": "M"}})
    assert [set(token) for token in single.answer(scores(1, 2))] == [{"m", "M"}]
    assert text(single.answer(scores(1, 1))) == "m"
    nested = JudgeTemplate.model_validate(PAIR | {"choices": {"a": "A", "b": "AB"}})
    assert [set(token) for token in nested.answer(scores(1, 2))] == [{"A", "AB"}]
    two = {"user": PAIR["user"], "rating": {"text": "{rating_a} {rating_b}", "low": 0, "high": 10}}
    assert text(JudgeTemplate.model_validate(two).answer(scores(-20, 19))) == "0 10"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "needs either choices or a rating"),
        ({"rating": {"text": "{rating}", "low": 1, "high": 10}}, "needs either choices or a rating"),
        ({"user": "{response_a} and {response_b}"}, "user needs {prompt} and {response}"),
        ({"user": "{prompt}: {response_a_1}"}, "with the same turns"),
        ({"user": "{prompt}: {response_a}"}, r"the responses \['a'\], but the answer is for \['a', 'b'\]"),
        ({"user": "{prompt}{response_a} {response_b}"}, "two placeholders need a text between them"),
        ({"user": "Q: {prompt} A: {response_a} B: {response_b}\n{...}"}, "needs a text after each response"),
        ({"pattern": "x"}, "unknown setting"),
        ({"user": 5}, "must be text"),
    ],
)
def test_an_invalid_template_is_named(change, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"mine": PAIR | change}))
    with pytest.raises(ConfigError, match=rf"mine\.yaml: mine: .*{message}"):
        load_templates(file)


def test_own_templates_come_first(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"mine": PAIR, "verl-genrm": PAIR}))
    templates = load_templates(file)
    assert list(templates)[:2] == ["mine", "verl-genrm"]
    assert len(templates) == len(load_templates()) + 1
    assert recognize(templates, [Message(role="user", content="Q: a\nA: b\nB: c\nWhich?")]).name == "mine"
    for content, message in (("- a", "a mapping for each"), ("a: b", "a mapping for each"), ("a: [", "read as YAML")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_templates(file)
    with pytest.raises(ConfigError, match="No such file"):
        load_templates(tmp_path / "none.yaml")
