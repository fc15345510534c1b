"""LLM judges as scorers, zero-shot and few-shot, and the form of what they are asked."""

from __future__ import annotations

import pytest
from fake_judge import FakeJudge

from dmoerm.errors import ConfigError
from dmoerm.labeling.judge import LLMJudge
from dmoerm.labeling.questions import Form, all_pairs, shuffled
from dmoerm.schema import Group

from .test_labeling_run import TAXONOMY, endpoint, groups


def test_the_reward_is_how_often_a_response_wins(tmp_path) -> None:
    with FakeJudge() as server:
        judge = LLMJudge(endpoint(server), tmp_path / "calls.sqlite")
        assert judge.score("Hi", ["a", "longer", "the longest"]) == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
        calls = sum(server.paid.values())
        assert calls == 6
        judge.score("Hi", ["a", "longer", "the longest"])
        assert sum(server.paid.values()) == calls
        assert judge.score("Hi", ["alone"]) == [0.5]


def example(index: int, capabilities: dict | None = None) -> Group:
    return Group(
        id=f"e{index}",
        task="chitchat",
        prompt=f"Example {index}",
        responses=(f"good {index}", f"bad {index}"),
        scores=(2, 1),
        capabilities=capabilities or {},
    )


def test_examples_are_turns_with_their_answers() -> None:
    form = Form(overall=True, examples=[example(i) for i in range(3)], shots=2)
    (pair,) = all_pairs(groups(1))
    (asked,) = form.asked("chitchat")
    turns = form.messages(pair, asked)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [turns[2]["content"], turns[4]["content"]] == ['{"overall": "A"}', '{"overall": "B"}']
    assert "good 0" in turns[1]["content"]
    assert turns[3]["content"].index("bad 1") < turns[3]["content"].index("good 1")
    assert form.judge("m") == "m/2-shot"


def test_an_example_is_not_the_question_itself_and_is_of_the_same_task() -> None:
    own = example(0).model_copy(update={"prompt": "Can you do 0?"})
    other = example(1).model_copy(update={"task": "roleplay"})
    form = Form(overall=True, examples=[own, other, example(2)], shots=3)
    (pair,) = all_pairs(groups(1))
    turns = form.messages(pair, form.asked("chitchat")[0])
    assert len(turns) == 4
    assert "Example 2" in turns[1]["content"]


def test_an_ungraded_capability_is_a_tie_in_an_example() -> None:
    names = list(TAXONOMY.tasks["chitchat"].capabilities)
    form = Form(TAXONOMY, together=True, examples=[example(0, {names[0]: (1, 2)})], shots=1)
    (pair,) = all_pairs(groups(1))
    answer = form.messages(pair, form.asked("chitchat")[0])[2]["content"]
    assert answer.count('"C"') == len(names) - 1
    assert answer.startswith(f'{{"{names[0]}": "A"')


def test_without_a_taxonomy_there_is_only_the_whole_to_ask() -> None:
    with pytest.raises(ConfigError, match="taxonomy"):
        Form()
    assert Form(TAXONOMY).asked("no such task") == Form(TAXONOMY).asked(None) == []


def test_a_random_order_is_the_same_for_the_same_seed() -> None:
    pairs = list(all_pairs(groups(20)))
    assert shuffled(pairs, 1) == shuffled(pairs, 1) != shuffled(pairs, 2)
    assert sorted(p.group.id for p in shuffled(pairs, 1)) == sorted(p.group.id for p in pairs)
