"""The types of the public interface: `make check` reads this file with pyright, and the tests run it."""
# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import asyncio
from typing import Any, assert_type

import pytest

from dmoerm import AsyncClient, Client, DMoERM, Message, Score
from dmoerm.errors import DataError

TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]}]
CHAT = [*TURNS, {"role": "user", "content": "How are you?"}]


def test_a_model_scores_one_prompt_or_several(trained_run: Any) -> None:
    rm: DMoERM = trained_run.model
    assert_type(rm.score("Hi.", ["tt", "t"]), list[Score])
    assert_type(rm.score(CHAT, ("tt", "t"), task="chitchat"), list[Score])
    assert_type(rm.score((Message(role="user", content="Hi."),), ["t"]), list[Score])
    several = assert_type(rm.score(["Hi.", CHAT], [["tt", "t"], ("t",)], [None, "chitchat"]), list[list[Score]])
    assert [len(scores) for scores in several] == [2, 1]
    with pytest.raises(DataError):
        rm.score(["Hi.", "Yes?"], ["tt", "t"])  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert assert_type(rm.capabilities, dict[str, list[str]]) == rm.config.tasks


def test_a_client_scores_one_prompt_or_several(reward_server: Any) -> None:
    with Client(reward_server.url) as client:
        assert_type(client.score("Hi.", ["tt", "t"]), list[Score])
        several = assert_type(client.score(["Hi.", CHAT], [["tt"], ["t"]], "chitchat"), list[list[Score]])
        assert [[score.reward for score in scores] for scores in several] == [[2.0], [1.0]]
        with pytest.raises(DataError):
            client.score(["Hi.", "Yes?"], ["tt", "t"])  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_an_asynchronous_client_scores_one_prompt_or_several(reward_server: Any) -> None:
    async def score() -> None:
        async with AsyncClient(reward_server.url) as client:
            assert_type(await client.score(CHAT, ["tt", "t"]), list[Score])
            several = assert_type(await client.score(["Hi.", "Yes?"], [["tt"], ["t"]]), list[list[Score]])
            assert [[score.reward for score in scores] for scores in several] == [[2.0], [1.0]]

    asyncio.run(score())
