"""Code shared by the reward functions: scores of batches, their columns, prompts and completions in every form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reward_server import TASKS, score_by_rule

from dmoerm.errors import DataError
from dmoerm.integrations.scoring import as_prompt, as_response, score_samples
from dmoerm.schema import Message
from dmoerm.scores import log_columns

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]


class ByRule:
    """Scores like the tests' server, and records the queries."""

    def __init__(self):
        self.queries = []

    def score_queries(self, queries):
        self.queries += queries
        return [[score_by_rule(q.prompt, text, q.task) for text in q.responses] for q in queries]


def test_a_prompt_is_scored_once():
    scorer = ByRule()
    samples = [(None, "a?", "t"), (None, "b", "tt"), ("chitchat", "a?", "ttt"), (None, "a?", "x")]
    scores = score_samples(scorer, samples)
    assert [score.reward for score in scores] == [1.0, 2.0, 3.0, 0.0]
    assert [query.responses for query in scorer.queries] == [("t", "x"), ("tt",), ("ttt",)]
    assert score_samples(scorer, []) == []


def test_columns_have_the_same_names_whatever_was_scored():
    general = replace(score_by_rule("a", "t"), task=None, capabilities={}, uncertainty=None)
    batches = [[general], [score_by_rule("a?", "tt"), general, score_by_rule("a", "b")]]
    columns = [log_columns(scores, TASKS) for scores in batches]
    assert columns[0].keys() == columns[1].keys()
    assert all(len(values) == 3 for values in columns[1].values())
    assert columns[1]["task/objective_qa"] == [1.0, 0.0, 0.0]
    assert columns[1]["objective_qa/correctness"] == [1.0, 0.0, 0.0]
    assert columns[1]["uncertainty"] == [0.5, 0.0, 0.5]
    assert columns[1]["has_uncertainty"] == [1.0, 0.0, 1.0]
    assert not any(value for values in columns[0].values() for value in values)


def test_prompts_and_completions_of_every_form():
    turns = (Message(role="system", content="Be kind."), Message(role="user", content="Hi!"))
    rendered = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    assert as_prompt(TURNS) == as_prompt(rendered + "<|im_start|>assistant\n") == turns
    assert as_prompt("Hi!") == "Hi!"
    assert as_response("Yes.") == as_response([TURNS[1], {"role": "assistant", "content": "Yes."}]) == "Yes."
    assert as_response([]) == as_response([{"role": "assistant", "content": None}]) == ""


@pytest.mark.parametrize("turn", [{"role": "robot", "content": "5"}, {"role": "user"}, {"content": "x"}, "text"])
def test_an_invalid_message_is_an_error(turn):
    with pytest.raises(DataError, match="prompt: is not a chat message"):
        as_prompt([turn])
