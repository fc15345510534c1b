"""A labeling run against a judge that fails: every question ends once, nothing is paid twice, the key stays secret."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_judge
import pytest
from fake_judge import FINAL, TRANSIENT, FakeJudge

from dmoerm.errors import LabelingError
from dmoerm.labeling.prompt import read_verdicts
from dmoerm.labeling.questions import Endpoint, estimate_cost
from dmoerm.labeling.runner import collect_labels
from dmoerm.labeling.store import AnswerStore, JudgeAnswer
from dmoerm.labels import Outcome, content_digest
from dmoerm.schema import Group

from .question_data import TAXONOMY, ask, endpoint, groups, questions_on
from .test_prompt import HOSTILE

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


def test_the_questions_are_all_pairs_in_both_orders():
    where = Endpoint("http://x", "judge")
    questions = questions_on(groups(2, responses=3), where)
    capabilities = list(TAXONOMY.tasks["chitchat"].capabilities)
    assert len(questions) == 2 * 3 * len(capabilities) * 2
    assert len({question.key for question in questions}) == len(questions)
    assert {(q.first, q.second) for q in questions} == {(i, j) for i in range(3) for j in range(3) if i != j}
    together = questions_on(groups(2, responses=3), where, group_capabilities=True)
    assert len(together) == 2 * 3 * 2
    assert together[0].capabilities == tuple(capabilities)


def test_answers_are_recorded_with_their_soft_verdicts(tmp_path):
    with FakeJudge() as server:
        questions = questions_on(groups(3), endpoint(server))
        statistics = ask(questions, endpoint(server), tmp_path / "calls.sqlite")
    assert (statistics.answered, statistics.known, statistics.left) == (len(questions), 0, 0)
    for _, model, question, answer in AnswerStore(tmp_path / "calls.sqlite").calls():
        (verdict,) = read_verdicts(answer.text, question["capabilities"], answer.tokens).values()
        longer_first = question["pair"] == [1, 0]
        assert verdict.outcome == (Outcome.FIRST if longer_first else Outcome.SECOND)
        assert verdict.p_first == pytest.approx(0.8 if longer_first else 0.2, abs=0.01)
        assert model == "judge"
    assert statistics.cost == pytest.approx((statistics.prompt_tokens + 2 * statistics.completion_tokens) / 1e6)


@pytest.mark.parametrize("together", [False, True])
def test_a_label_has_both_orders_and_is_paid_once_even_if_the_data_have_a_group_twice(tmp_path, together):
    data = groups(2, responses=3)
    with FakeJudge() as server:
        where = endpoint(server)
        questions = questions_on([*data, *groups(1, responses=3)], where, group_capabilities=together)
        statistics = ask(questions, where, tmp_path / "calls.sqlite")
        labels = collect_labels(questions, AnswerStore(tmp_path / "calls.sqlite"), "judge")
    assert len(labels) == 2 * 3 * 5
    for label in labels:
        assert (label.given, label.swapped) == (Outcome.SECOND, Outcome.SECOND)  # the longer one
        assert (label.p_given, label.p_swapped) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.2, abs=0.01))
        assert label.first < label.second
    assert sum(label.cost for label in labels) == pytest.approx(statistics.cost)
    assert {label.content for label in labels} == {content_digest(group) for group in data}


def test_what_has_no_answer_is_open_and_other_ends_are_kept(tmp_path):
    questions = questions_on(groups(1), Endpoint("http://x", "judge"))
    store = AnswerStore(tmp_path / "calls.sqlite")
    store.put(questions[0].key, "judge", {}, [], JudgeAnswer("refused", reason="no"))
    store.put(questions[1].key, "judge", {}, [], JudgeAnswer("answered", text="Well …"))
    first, *others = collect_labels(questions, store, "judge")
    assert (first.given, first.swapped) == (Outcome.REFUSED, Outcome.UNPARSEABLE)
    assert {label.given for label in others} == {Outcome.OPEN}


@pytest.mark.parametrize(("count", "rate"), [(12, 0.4), pytest.param(200, 0.2, marks=pytest.mark.slow)])
def test_mixed_faults_end_every_question_once(tmp_path, count, rate):
    """120 calls with 40 % faults, or 2,000 with 20 %."""
    with FakeJudge(rate, (*TRANSIENT, *FINAL), delay=0.005) as server:
        questions = questions_on(groups(count), endpoint(server))
        statistics = ask(questions, endpoint(server), tmp_path / "calls.sqlite", concurrency=32)
        assert set(server.met) == {"", *TRANSIENT, *FINAL}
        again = ask(questions, endpoint(server), tmp_path / "calls.sqlite", concurrency=32)
    ended = statistics.answered + statistics.refused + statistics.failed
    assert ended + statistics.unanswered == len(questions) == count * 5 * 2
    assert statistics.known == statistics.elsewhere == statistics.left == 0
    assert again.known == ended
    assert again.answered + again.refused + again.failed + again.unanswered == statistics.unanswered
    assert max(server.paid.values()) == 1
    calls = list(AnswerStore(tmp_path / "calls.sqlite").calls())
    assert sum(answer.status != "failed" for *_, answer in calls) == len(server.paid) == sum(server.paid.values())
    assert sum(answer.prompt_tokens for *_, answer in calls) == statistics.prompt_tokens + again.prompt_tokens
    assert server.most_at_once <= 32


def test_hostile_responses_change_no_other_outcome(tmp_path):
    """20 of them, each first and second of a pair, beside harmless pairs: as if they were not there."""
    harmless = groups(5)
    hostile = [
        Group(id=f"h{i}", task="chitchat", prompt="Hi", responses=order, scores=(1, 2))
        for i, text in enumerate(HOSTILE)
        for order in (("Fine.", text), (text, "Fine."))
    ]
    assert len(hostile) == 40
    results = {}
    with FakeJudge() as server:
        for name, data in (("without", harmless), ("with", [*hostile, *harmless])):
            questions = questions_on(data, endpoint(server), group_capabilities=True)
            statistics = ask(questions, endpoint(server), tmp_path / name)
            assert statistics.answered + statistics.known == len(questions)
            labels = collect_labels(questions, AnswerStore(tmp_path / name), "judge")
            results[name] = {(label.group, label.capability): label for label in labels}
    assert {key: results["with"][key] for key in results["without"]} == results["without"]
    assert all(label.consistent for label in results["with"].values())


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import openai._base_client
from labeling.question_data import groups, questions_on
from dmoerm.labeling.questions import Endpoint
from dmoerm.labeling.runner import ask
from dmoerm.labeling.store import AnswerStore
openai._base_client.INITIAL_RETRY_DELAY = 0.01
where = Endpoint(sys.argv[1], "judge")
ask(questions_on(groups(int(sys.argv[4])), where), where, AnswerStore(Path(sys.argv[2])), concurrency=8)
"""


@pytest.mark.parametrize(("count", "kills"), [(12, 1), pytest.param(200, 3, marks=pytest.mark.slow)])
def test_a_killed_run_pays_again_for_what_was_in_flight_at_most(tmp_path, count, kills):
    """kill −9 at random moments of 120 or 2,000 calls with 20 % faults."""
    path, chance = tmp_path / "calls.sqlite", random.Random(count)
    with FakeJudge(0.2, (*TRANSIENT, *FINAL), delay=0.02) as server:
        command = [sys.executable, "-c", SCRIPT, server.url, path, Path(__file__).parents[1], str(count)]
        for _ in range(kills):
            process = subprocess.Popen(command)
            before = sum(server.paid.values())
            while sum(server.paid.values()) < before + chance.randint(20, 2 * count):
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        known = len(list(AnswerStore(path).calls()))
        questions = questions_on(groups(count), endpoint(server, prompt_price=0, completion_price=0))
        statistics = ask(questions, Endpoint(server.url, "judge"), path, concurrency=8)
        done = {key: answer.status for key, _, _, answer in AnswerStore(path).calls()}
    ended = statistics.known + statistics.answered + statistics.refused + statistics.failed
    assert statistics.known == known > 0
    assert ended + statistics.unanswered == count * 5 * 2
    assert len(done) + statistics.unanswered == count * 5 * 2
    assert set(done) <= {question.key for question in questions}
    kept, lost = sum(status != "failed" for status in done.values()), kills * 8
    assert kept <= len(server.paid) <= kept + lost  # a lost call may be refused when it is sent again
    assert sum(server.paid.values()) <= len(server.paid) + lost


def test_a_wrong_key_ends_the_run_and_stays_secret(tmp_path):
    with FakeJudge(fatal=401) as server:
        questions = questions_on(groups(5), endpoint(server))
        with pytest.raises(LabelingError, match=r"Incorrect API key.*OPENAI_API_KEY") as raised:
            ask(questions, endpoint(server), tmp_path / "calls.sqlite", concurrency=2)
        assert len(server.headers) <= 2
    assert SECRET not in str(raised.value)
    assert SECRET[3:] not in str(raised.value)
    assert SECRET.encode() not in (tmp_path / "calls.sqlite").read_bytes()


def test_the_key_is_not_logged(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with FakeJudge(0.3, TRANSIENT) as server:
        ask(questions_on(groups(2), endpoint(server)), endpoint(server), tmp_path / "calls.sqlite")
        assert any(SECRET in value for headers in server.headers for value in headers.values())
    assert caplog.text
    assert SECRET not in caplog.text
    assert all(SECRET.encode() not in file.read_bytes() for file in tmp_path.iterdir())


def test_the_budget_is_kept(tmp_path):
    with FakeJudge() as server:
        where = endpoint(server)
        questions = questions_on(groups(10), where)
        most = 7 * max(estimate_cost(question, where)[2] for question in questions)
        statistics = ask(questions, where, tmp_path / "calls.sqlite", concurrency=4, max_cost=most)
        assert 0 < statistics.cost <= most
        assert statistics.answered + statistics.left == len(questions)
        rest = ask(questions, where, tmp_path / "calls.sqlite")
    assert rest.known == statistics.answered
    assert rest.answered == statistics.left


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("choices", 0, "message", "content"), ["A"]),
        (("choices", 0, "logprobs", "content", 0, "top_logprobs", 0, "logprob"), "high"),
        (("choices", 0, "logprobs", "content"), 3),
        (("usage", "prompt_tokens"), float("nan")),
    ],
)
def test_an_answer_of_wrong_types_is_not_accepted(tmp_path, monkeypatch, path, value):
    whole = fake_judge.completion

    def wrong(*arguments):
        answer = whole(*arguments)
        children = answer
        for step in path[:-1]:
            children = children[step]
        children[path[-1]] = value
        return answer

    monkeypatch.setattr(fake_judge, "completion", wrong)
    with FakeJudge() as server, pytest.raises(LabelingError, match="not chat completions"):
        ask(questions_on(groups(1), endpoint(server))[:1], endpoint(server), tmp_path / "calls.sqlite")
    assert list(AnswerStore(tmp_path / "calls.sqlite").calls()) == []
