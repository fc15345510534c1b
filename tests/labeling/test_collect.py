"""From answers, live or recorded, to labels."""

from __future__ import annotations

import pytest
from fake_judge import FakeJudge

from dmoerm.errors import DataError
from dmoerm.labeling.collect import collect_labels, recorded_labels
from dmoerm.labeling.store import AnswerStore, JudgeAnswer
from dmoerm.labels import Outcome, content_digest
from dmoerm.schema import Group

from .question_data import ask, endpoint, groups, questions_on


def test_both_orders_stand_side_by_side(tmp_path) -> None:
    data = groups(2, responses=3)
    with FakeJudge() as server:
        questions = questions_on(data, endpoint(server))
        ask(questions, endpoint(server), tmp_path / "calls.sqlite")
        labels = collect_labels(questions, AnswerStore(tmp_path / "calls.sqlite"), "judge")
    assert len(labels) == len(questions) // 2
    for label in labels:
        assert (label.given, label.swapped) == (Outcome.SECOND, Outcome.SECOND)  # the longer one
        assert label.p_given == pytest.approx(0.2, abs=0.01)
        assert label.p_swapped == pytest.approx(0.2, abs=0.01)
        assert label.first < label.second
        assert label.cost > 0
    assert {label.content for label in labels} == {content_digest(group) for group in data}


@pytest.mark.parametrize("together", [False, True])
def test_a_group_is_labeled_and_paid_once_even_if_the_data_have_it_twice(tmp_path, together) -> None:
    with FakeJudge() as server:
        where = endpoint(server)
        questions = questions_on([*groups(1), *groups(1)], where, group_capabilities=together)
        tally = ask(questions, where, tmp_path / "calls.sqlite")
        labels = collect_labels(questions, AnswerStore(tmp_path / "calls.sqlite"), "judge/together")
    assert len(labels) == 5
    assert sum(label.cost for label in labels) == pytest.approx(tally.cost)
    assert all(label.consistent and label.soft is not None for label in labels)


def test_what_has_no_answer_is_open_and_other_ends_are_kept(tmp_path) -> None:
    data = groups(1)
    with FakeJudge() as server:
        questions = questions_on(data, endpoint(server))
    store = AnswerStore(tmp_path / "calls.sqlite")
    store.put(questions[0].key, "judge", {}, [], JudgeAnswer("refused", reason="no"))
    store.put(questions[1].key, "judge", {}, [], JudgeAnswer("answered", text="Well …"))
    first, *others = collect_labels(questions, store, "judge")
    assert (first.given, first.swapped) == (Outcome.REFUSED, Outcome.UNPARSEABLE)
    assert {label.given for label in others} == {Outcome.OPEN}


def verdict(**fields):
    return {"id": "g0", "order": "given", "preferred": {"empathy": 0}, **fields}


def test_recorded_verdicts_become_labels() -> None:
    rows = [verdict(), verdict(order="swapped", mode="m", preferred={"empathy": "tie"}), verdict(id="elsewhere")]
    rows += [verdict(order="swapped", preferred={"empathy": 1}), verdict(order="swapped", preferred={"empathy": 0})]
    rows += [verdict(order="swapped", preferred={"empathy": 0})]
    (plain, mode), unmatched = recorded_labels(enumerate(rows, 1), groups(1), "gpt")
    assert unmatched == 1
    assert (plain.judge, plain.given, plain.swapped) == ("gpt", Outcome.FIRST, Outcome.FIRST)
    assert (plain.p_given, plain.p_swapped) == (None, pytest.approx(2 / 3))  # three answers to one question
    assert (mode.judge, mode.given, mode.swapped) == ("gpt/m", Outcome.OPEN, Outcome.TIE)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (verdict(order="left"), "verdicts:7: order: is neither given nor swapped"),
        (verdict(preferred=None), "verdicts:7: preferred: is not an object"),
        (verdict(preferred={"empathy": 2}), r"verdicts:7: preferred\.empathy: is not one of the pair"),
        (verdict(pair=[1, 0]), "verdicts:7: pair: is not a pair"),
        (verdict(pair="ab"), "verdicts:7: pair: is not a pair"),
        (DataError("broken"), "verdicts:7: broken"),
        (verdict(order=["given"]), "verdicts:7: order: is neither given nor swapped"),
        (verdict(preferred={"empathy": [0]}), r"verdicts:7: preferred\.empathy: is not one of the pair"),
        (verdict(id="x"), r"verdicts: id: none of the 1 verdicts is about a group in the data.*like 'g0'.*got 'x'"),
        (verdict(preferred={}), "verdicts: preferred: preferred is empty in every row"),
    ],
)
def test_bad_verdicts_are_said(row, message) -> None:
    with pytest.raises(DataError, match=message):
        recorded_labels([(7, row)], groups(1), "gpt")


def test_verdicts_or_data_that_are_missing_are_said() -> None:
    with pytest.raises(DataError, match="verdicts: contains no verdicts; check the file"):
        recorded_labels([], groups(1), "gpt")
    with pytest.raises(DataError, match="the data contain no groups"):
        recorded_labels([(1, verdict())], [], "gpt")


def test_of_many_responses_the_pair_must_be_named() -> None:
    with pytest.raises(DataError, match="pair: is not a pair"):
        recorded_labels([(1, verdict())], groups(1, responses=3), "gpt")
    ((label,), _) = recorded_labels([(1, verdict(pair=[0, 2]))], groups(1, responses=3), "gpt")
    assert (label.first, label.second) == (0, 2)


def test_gpt4os_verdicts_on_real_pairs(human_data) -> None:
    """As its README says: overall, one order agrees with people on 0.60 and 0.53, both orders on 0.62 and 0.54."""
    from dmoerm.data.readers import read_groups
    from dmoerm.data.rows import open_rows
    from dmoerm.labeling.quality import label_quality

    data: list[Group] = read_groups(human_data / "cragc_pairs.jsonl").groups
    labels, _ = recorded_labels(open_rows(human_data / "cragc_llm_verdicts.jsonl"), data, "gpt-4o")
    results = {(q.judge, q.capability): q for q in label_quality(labels, data)}
    together, single = results["gpt-4o/combined", "overall"], results["gpt-4o/individual", "overall"]
    assert together.agreement_one == pytest.approx(0.60, abs=0.02)
    assert single.agreement_one == pytest.approx(0.53, abs=0.02)
    assert together.agreement_both == pytest.approx(0.62, abs=0.02)
    assert single.agreement_both == pytest.approx(0.54, abs=0.02)
    assert results["gpt-4o/combined", "coverage_deep"].shown_first == pytest.approx(0.65, abs=0.02)
