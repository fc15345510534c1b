"""LLM judges as scorers, zero-shot and few-shot, and the form of what they are questions."""

from __future__ import annotations

import pytest
from fake_judge import FakeJudge

from dmoerm.errors import ConfigError, DataError, LabelingError
from dmoerm.labeling.judge import LLMJudge, rewards_from_labels
from dmoerm.labeling.questions import QuestionFormat, all_pairs, shuffled
from dmoerm.labels import OVERALL, CapabilityLabel, Outcome, content_digest
from dmoerm.schema import Group

from .question_data import TAXONOMY, endpoint, groups


def test_the_reward_is_how_often_a_response_wins(tmp_path) -> None:
    with FakeJudge() as server:
        judge = LLMJudge(endpoint(server), tmp_path / "calls.sqlite")
        assert judge.score("Hi", ["a", "longer", "the longest"]) == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
        calls = sum(server.paid.values())
        assert calls == 6
        judge.score("Hi", ["a", "longer", "the longest"])
        assert sum(server.paid.values()) == calls
        assert judge.score("Hi", ["alone"]) == [0.5]
        assert judge.score("Hi", ["same", "same"]) == [0.5, 0.5]


def test_a_judge_without_a_usable_answer_gives_no_rewards(tmp_path) -> None:
    """And not 0.5 to every response."""
    with FakeJudge(1.0, ["refusal"]) as server, pytest.raises(LabelingError, match="none of 2 questions has a usable"):
        LLMJudge(endpoint(server), tmp_path / "calls.sqlite").score("Hi", ["a", "b"])


def test_recorded_labels_of_other_queries_give_no_rewards() -> None:
    (group, other) = groups(2)
    label = CapabilityLabel("j", group.id, content_digest(group), "", OVERALL, 0, 1, Outcome.FIRST, Outcome.FIRST)
    assert rewards_from_labels([label], [group, other]) == [[1.0, 0.0], [0.5, 0.5]]
    with pytest.raises(DataError, match="no label of the judge is usable: no label has the id of a group"):
        rewards_from_labels([label], [other])


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
    form = QuestionFormat(overall=True, examples=[example(i) for i in range(3)], shots=2)
    (pair,) = all_pairs(groups(1))
    (questions,) = form.capability_sets("chitchat")
    turns = form.messages(pair, questions)
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [turns[2]["content"], turns[4]["content"]] == ['{"overall": "A"}', '{"overall": "B"}']
    assert "good 0" in turns[1]["content"]
    assert turns[3]["content"].index("bad 1") < turns[3]["content"].index("good 1")
    assert form.judge_name("m") == "m/2-shot"


def test_an_example_is_not_the_question_itself_and_is_of_the_same_task() -> None:
    same_task = example(0).model_copy(update={"prompt": "Can you do 0?"})
    other = example(1).model_copy(update={"task": "roleplay"})
    form = QuestionFormat(overall=True, examples=[same_task, other, example(2)], shots=3)
    (pair,) = all_pairs(groups(1))
    turns = form.messages(pair, form.capability_sets("chitchat")[0])
    assert len(turns) == 4
    assert "Example 2" in turns[1]["content"]


def test_an_ungraded_capability_is_a_tie_in_an_example() -> None:
    names = list(TAXONOMY.tasks["chitchat"].capabilities)
    form = QuestionFormat(TAXONOMY, group_capabilities=True, examples=[example(0, {names[0]: (1, 2)})], shots=1)
    (pair,) = all_pairs(groups(1))
    answer = form.messages(pair, form.capability_sets("chitchat")[0])[2]["content"]
    assert answer.count('"C"') == len(names) - 1
    assert answer.startswith(f'{{"{names[0]}": "A"')


def test_without_a_taxonomy_there_is_only_the_whole_to_ask() -> None:
    with pytest.raises(ConfigError, match="taxonomy"):
        QuestionFormat()
    assert (
        QuestionFormat(TAXONOMY).capability_sets("no such task") == QuestionFormat(TAXONOMY).capability_sets(None) == []
    )


def test_a_random_order_is_the_same_for_the_same_seed() -> None:
    pairs = list(all_pairs(groups(20)))
    assert shuffled(pairs, 1) == shuffled(pairs, 1) != shuffled(pairs, 2)
    assert sorted(p.group.id for p in shuffled(pairs, 1)) == sorted(p.group.id for p in pairs)
