"""The answer store: no answer is lost or paid for twice, also with several processes."""

import multiprocessing
import os
import signal
import socket
import sqlite3
import time

import pytest

from dmoerm.errors import CheckpointError
from dmoerm.labeling import store
from dmoerm.labeling.prompt import Token
from dmoerm.labeling.store import AnswerStore, JudgeAnswer, call_key

ANSWER = JudgeAnswer(
    "answered", '{"empathy": "A"}', (Token("A", {"A": -0.1, "B": -2.0}),), None, 120, 5, 0.0003, 0.8, attempts=2
)
QUESTION = {"group": "g1", "pair": [0, 1], "capabilities": ["empathy"]}


def put(store: AnswerStore, key: str, answer: JudgeAnswer = ANSWER) -> None:
    store.put(key, "judge", QUESTION, [{"role": "user", "content": "?"}], answer)


def test_an_answer_comes_back_as_it_was(tmp_path):
    store = AnswerStore(tmp_path / "calls.sqlite")
    assert store.get("k") is None
    put(store, "k")
    assert store.get("k") == ANSWER
    failed = JudgeAnswer("failed", reason="context too long")
    put(store, "f", failed)
    store.close()
    store = AnswerStore(tmp_path / "calls.sqlite")
    assert list(store.calls()) == [("k", "judge", QUESTION, ANSWER), ("f", "judge", QUESTION, failed)]


def test_a_key_names_the_whole_request():
    request = {"model": "m", "messages": [{"role": "user", "content": "é"}], "temperature": 0}
    assert call_key(request) == call_key(dict(reversed(request.items())))
    changed = [{**request, "model": "n"}, {**request, "temperature": 1}, {**request, "messages": []}]
    assert len({call_key(body) for body in [request, *changed]}) == 4


def test_a_call_is_claimed_once(tmp_path):
    store = AnswerStore(tmp_path / "calls.sqlite")
    assert store.claim("k")
    put(store, "k")
    assert not store.claim("k")
    assert store.claim("other")
    store.release("other")
    assert store.claim("other")


def hold(path, ready, done):
    store = AnswerStore(path)
    ready.put(store.claim("k"))
    done.wait(30)
    put(store, "k")
    store.close()


@pytest.mark.parametrize("killed", [False, True])
def test_another_process_leaves_a_claimed_call_alone(tmp_path, killed):
    path, spawn = tmp_path / "calls.sqlite", multiprocessing.get_context("spawn")
    ready, done = spawn.Queue(), spawn.Event()
    process = spawn.Process(target=hold, args=(path, ready, done))
    process.start()
    assert ready.get(timeout=30)
    store = AnswerStore(path)
    assert not store.claim("k")
    if killed:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert store.claim("k")
        assert store.get("k") is None
    else:
        done.set()
        process.join()
        assert not store.claim("k")
        assert store.get("k") == ANSWER


def test_an_old_claim_of_another_host_is_void(tmp_path):
    path = tmp_path / "calls.sqlite"
    store, now = AnswerStore(path), time.time()
    other = sqlite3.connect(path)
    other.executemany("INSERT INTO claims VALUES (?, 'elsewhere/1', ?)", [("new", now), ("old", now - 7200)])
    other.commit()
    assert not store.claim("new")
    assert store.claim("old")


@pytest.mark.parametrize("jump", [-10 * 365 * 86_400, 10 * 365 * 86_400])
def test_a_clock_that_jumps_frees_no_call_of_a_living_process(tmp_path, monkeypatch, jump):
    """And the number of a dead process, given again to another, holds none."""
    path = tmp_path / "calls.sqlite"
    alive, now = f"{socket.gethostname()}/{os.getppid()}:{store._start_time(os.getppid())}", time.time()
    mine = AnswerStore(path)
    again = alive.rpartition(":")[0] + ":1"
    with sqlite3.connect(path) as other:
        other.executemany("INSERT INTO claims VALUES (?, ?, ?)", [("alive", alive, now), ("again", again, now)])
        other.execute("INSERT INTO claims VALUES ('elsewhere', 'elsewhere/1:1', ?)", (now + jump,))
    monkeypatch.setattr(time, "time", lambda: now + jump)
    assert not mine.claim("alive")
    assert mine.claim("again")
    monkeypatch.setattr(time, "time", lambda: now)
    assert mine.claim("elsewhere")


def test_a_file_that_is_not_a_store_is_refused(tmp_path):
    (tmp_path / "calls.sqlite").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(CheckpointError, match=r"calls\.sqlite: cannot open the answer store"):
        AnswerStore(tmp_path / "calls.sqlite")
    with pytest.raises(CheckpointError, match="cannot open"):
        AnswerStore(tmp_path)
