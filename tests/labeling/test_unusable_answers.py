"""Answers without a verdict end a run, reasoning models get the fields they accept, and errors name the true cause."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeJudge

from dmoerm.errors import ConfigError, LabelingError
from dmoerm.labeling.client import JudgeClient
from dmoerm.labeling.questions import Endpoint
from dmoerm.labeling.runner import RunStatistics
from dmoerm.labeling.store import AnswerStore, JudgeAnswer

from .question_data import ask, endpoint, groups, questions_on

NOWHERE = Endpoint("http://127.0.0.1:9/v1", "judge")
GOOD, BAD = JudgeAnswer("answered", '{"overall": "A"}'), JudgeAnswer("answered", "Well, both are fine.")
REFUSED = JudgeAnswer("refused", reason="content filter")


class Scripted:
    """A client whose answer to a question depends on the number of the group."""

    endpoint = NOWHERE

    def __init__(self, answer: Callable[[int], JudgeAnswer]) -> None:
        self.answer, self.calls = answer, 0

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ask(self, request: dict[str, Any]) -> JudgeAnswer:
        self.calls += 1
        number = request["messages"][-1]["content"].partition("Can you do ")[2].partition("?")[0]
        return self.answer(int(number))


def run(client: Scripted, path: Path, count: int = 20, responses: int = 2, **limits: Any) -> RunStatistics:
    questions = questions_on(groups(count, responses), NOWHERE, overall=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmoerm.labeling.client.JudgeClient", lambda _: client)
        return ask(questions, NOWHERE, path, concurrency=1, **limits)


def test_unusable_answers_in_a_row_end_a_run_which_continues_afterwards(tmp_path):
    path, bad = tmp_path / "calls.sqlite", Scripted(lambda _: BAD)
    with pytest.raises(LabelingError, match="7 answers in a row are unusable; the last one is 'Well, both are fine"):
        run(bad, path, max_unusable=7)
    assert bad.calls == 7
    assert len(list(AnswerStore(path).calls())) == 7  # recorded, with their cost
    rest = run(Scripted(lambda _: GOOD), path, max_unusable=7)
    assert (rest.known, rest.answered, rest.unusable) == (7, 33, 0)


def test_a_usable_answer_starts_the_count_again(tmp_path):
    statistics = run(Scripted(lambda i: GOOD if i % 4 == 3 else BAD), tmp_path / "calls.sqlite", max_unusable=7)
    assert (statistics.answered, statistics.unusable) == (40, 30)


def test_one_group_that_a_filter_refuses_ends_no_run(tmp_path):
    client = Scripted(lambda i: REFUSED if i in (4, 5) else GOOD)
    statistics = run(client, tmp_path / "calls.sqlite", responses=5, max_unusable=7)
    assert (statistics.refused, statistics.unusable) == (2 * 20, 2 * 20)
    with pytest.raises(LabelingError, match="7 answers in a row are unusable; the last call was refused: content filt"):
        run(Scripted(lambda _: REFUSED), tmp_path / "other.sqlite", max_unusable=7)


def test_a_short_run_without_a_usable_answer_is_an_error(tmp_path):
    path = tmp_path / "calls.sqlite"
    for calls in (2, 0):  # also when it is started again, and all is known
        client = Scripted(lambda _: BAD)
        with pytest.raises(LabelingError, match="none of 2 questions has a usable answer; the last one is 'Well"):
            run(client, path, count=1)
        assert client.calls == calls
    assert run(Scripted(lambda i: GOOD if i == 1 else BAD), path, count=2).unusable == 0


def test_a_server_that_is_not_there_is_named_with_the_cause(tmp_path):
    questions = questions_on(groups(1), NOWHERE)
    where = Endpoint(NOWHERE.base_url, "judge", retries=0)
    with pytest.raises(LabelingError, match=r"none of 10 questions has a usable answer; Connection error\. .*failed"):
        ask(questions, where, tmp_path / "calls.sqlite")
    assert list(AnswerStore(tmp_path / "calls.sqlite").calls()) == []


def test_an_answer_that_reaches_the_token_limit_names_the_option(tmp_path):
    with FakeJudge(1.0, ["cut off"], reasoning="<think> Long thoughts") as server:
        questions = questions_on(groups(3), endpoint(server), group_capabilities=True)
        message = r"'<think> Long ': the answer reached the token limit; raise it with --request-field max_tokens=N"
        with pytest.raises(LabelingError, match=message):
            ask(questions, endpoint(server), tmp_path / "calls.sqlite", concurrency=1, max_unusable=5)


# --- request fields ------------------------------------------------------------------------------------------------

FIXES: dict[str, tuple[dict[str, Any], str]] = {
    "max_tokens": ({"max_completion_tokens": 4096}, "--request-field max_completion_tokens=N"),
    "temperature": ({"temperature": None}, "--request-field temperature=null"),
    "logprobs": ({"logprobs": None}, "--request-field logprobs=null"),
    "response_format": ({"response_format": None}, "--request-field response_format=null"),
    "top_k": ({}, "remove --request-field top_k"),
}


@pytest.mark.parametrize("field", FIXES)
def test_a_rejected_field_ends_the_run_and_the_message_names_the_option(tmp_path, field):
    """Nothing is paid or recorded before, and with the option all is answered."""
    fix, option = FIXES[field]
    with FakeJudge(rejects=[field]) as server:
        where = endpoint(server, **({"request_fields": {"top_k": 1}} if field == "top_k" else {}))
        with pytest.raises(LabelingError, match=f"rejects the request field '{field}': .*; .*{option}"):
            ask(questions_on(groups(2), where), where, tmp_path / "calls.sqlite", concurrency=1)
        assert len(server.bodies) == 1
        assert list(AnswerStore(tmp_path / "calls.sqlite").calls()) == []
        where = endpoint(server, request_fields=fix)
        assert ask(questions_on(groups(2), where), where, tmp_path / "calls.sqlite").answered == 20


def send(where: Endpoint, *reject: list[str], server: FakeJudge | None = None) -> list[JudgeAnswer]:
    """Ask a question for each list of request fields that the server then rejects."""

    async def ask_each() -> list[JudgeAnswer]:
        answers = []
        async with JudgeClient(where) as client:
            for question, fields in zip(questions_on(groups(1), where), reject, strict=False):
                if server:
                    server.rejects = fields
                answers.append(await client.ask(question.request))
        return answers

    return asyncio.run(ask_each())


def test_a_text_that_is_too_long_fails_alone_after_an_accepted_request():
    """Its message may contain the name of a field."""
    with FakeJudge() as server:
        answers = send(endpoint(server), [], ["max_tokens"], server=server)
    assert [answer.status for answer in answers] == ["answered", "failed"]


def test_request_fields_are_part_of_the_key_and_the_default_key_stays():
    """A reworded question would be paid for again."""
    key = "88c3164b952df8f6cfbab8338e3254e1ff906d87a6c6d0a276d1e470237b644b"
    assert questions_on(groups(1), Endpoint("http://x", "judge", retries=1, timeout=1))[0].key == key
    changed: list[dict[str, Any]] = [{"max_tokens": 100}, {"temperature": 0.5}, {"temperature": None}, {"top_k": 1}]
    changed += [{"top_k": 2}, {"max_completion_tokens": 40}, {"response_format": None}, {"logprobs": None}]
    keys = [questions_on(groups(1), Endpoint("http://x", "judge", request_fields=f))[0].key for f in changed]
    assert len({key, *keys}) == len(changed) + 1


def test_a_budget_requires_a_token_limit(tmp_path):
    where = Endpoint("http://x", "judge", prompt_price=1, request_fields={"max_tokens": None})
    with pytest.raises(ConfigError, match="a budget requires a token limit"):
        ask(questions_on(groups(1), where), where, tmp_path / "calls.sqlite", max_cost=1)


# --- causes --------------------------------------------------------------------------------------------------------


def test_a_key_that_no_header_can_contain_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "kéy\n")
    with pytest.raises(ConfigError, match=r"\$OPENAI_API_KEY contains characters") as caught:
        JudgeClient(NOWHERE)
    assert "kéy" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "http://[::", "ftp://server"])
def test_an_invalid_url_is_named(url):
    with pytest.raises(ConfigError, match="base_url must be an http:// or https:// URL"):
        JudgeClient(Endpoint(url, "judge"))


@pytest.mark.parametrize(
    ("judge", "timeout", "reason"),
    [
        ({"rate": 1.0, "faults": ["wrong json"]}, 60.0, r"not chat completions \(got .*list"),
        ({"delay": 0.3}, 0.05, r"timed out.* after 0\.05 s"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_described(judge, timeout, reason):
    with FakeJudge(**judge) as server:
        (answer,) = send(Endpoint(server.url, "judge", timeout=timeout, retries=0), [])
    assert answer.status == "unanswered"
    assert re.search(reason, answer.reason or "")
