"""Record every call in one SQLite file: one row per call, written before the next call is sent.

A call's key is a hash over the request (model, messages, settings). A changed rubric, wording, model or setting is a
new question, and an unchanged one is never paid for twice. A process claims a call before it sends it, and other
processes skip claimed calls. A claim expires when its process has ended. Whether a process on another host has ended
is unknown, so its claims expire after `_STALE` seconds, measured in both directions because clocks jump.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..io.database import Database
from .prompt import Token

_STALE = 3600.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, question TEXT NOT NULL, messages TEXT NOT NULL,
    status TEXT NOT NULL, text TEXT, tokens TEXT, reason TEXT,
    prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
    finished REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, since REAL NOT NULL);
"""


@dataclass(frozen=True)
class JudgeAnswer:
    """The result of a call, and a row of the store.

    Attributes:
        status: `answered`, `refused`, `failed`, or `unanswered`, which is not recorded.
        text: the answer; None after a refusal or a failure.
        tokens: the answer's tokens with log-probabilities; empty if the endpoint returns none.
        reason: why the call was refused or failed, or why the answer is incomplete.
        seconds: duration, including failed attempts.
    """

    status: str
    text: str | None = None
    tokens: Sequence[Token] = ()
    reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    attempts: int = 1


def call_key(request: Mapping[str, Any]) -> str:
    """Return the key of a request: a hash over the whole request."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AnswerStore:
    """The record of all calls. Several processes may open one file at the same time.

    Raises:
        CheckpointError: the file cannot be opened or is not an answer store, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._owner = f"{socket.gethostname()}/{os.getpid()}:{_start_time(os.getpid())}"
        self._database = Database(path, _SCHEMA, "answer store")
        self._run = self._database.run

    def close(self) -> None:
        """Release the claims of this process and close the file."""
        self._run("DELETE FROM claims WHERE owner = ?", (self._owner,))
        self._database.close()

    def get(self, key: str) -> JudgeAnswer | None:
        """Return the recorded answer of a call; None if it is not recorded."""
        row = self._run(f"SELECT {', '.join(_COLUMNS)} FROM calls WHERE key = ?", (key,)).fetchone()
        return _answer(row) if row else None

    def claim(self, key: str) -> bool:
        """Claim a call for this process. Return False if it is recorded or claimed by another process."""
        now = time.time()
        with self._database.transaction():
            done = self._run("SELECT 1 FROM calls WHERE key = ?", (key,)).fetchone()
            held = self._run("SELECT owner, since FROM claims WHERE key = ?", (key,)).fetchone()
            if done or (held and held[0] != self._owner and _alive(held[0], held[1], now)):
                return False
            self._run("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._owner, now))
            return True

    def put(self, key: str, model: str, question: Mapping[str, Any], messages: Any, answer: JudgeAnswer) -> None:
        """Record a call, with a description of the question, and release its claim."""
        tokens = json.dumps([[token.text, dict(token.top)] for token in answer.tokens]) if answer.tokens else None
        values = (tokens if name == "tokens" else getattr(answer, name) for name in _COLUMNS)
        texts = (json.dumps(value, ensure_ascii=False) for value in (question, messages))
        row = (key, model, *texts, *values, time.time())
        with self._database.transaction():
            self._run(f"INSERT OR REPLACE INTO calls VALUES ({', '.join('?' * len(row))})", row)
            self._run("DELETE FROM claims WHERE key = ?", (key,))

    def release(self, key: str) -> None:
        self._run("DELETE FROM claims WHERE key = ?", (key,))

    def calls(self) -> Iterator[tuple[str, str, dict[str, Any], JudgeAnswer]]:
        """Yield key, model, question and answer of every recorded call."""
        for key, model, question, *row in self._run(f"SELECT key, model, question, {', '.join(_COLUMNS)} FROM calls"):
            yield key, model, json.loads(question), _answer(row)


_COLUMNS = tuple(field.name for field in fields(JudgeAnswer))


def _answer(row: Sequence[Any]) -> JudgeAnswer:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["tokens"] = tuple(Token(text, top) for text, top in json.loads(values["tokens"] or "[]"))
    return JudgeAnswer(**values)


def _alive(owner: str, since: float, now: float) -> bool:
    host, _, process = owner.rpartition("/")
    if host != socket.gethostname():
        return abs(now - since) <= _STALE
    number, _, start_time = process.partition(":")
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return start_time == _start_time(int(number))


def _start_time(process: int) -> str:
    """Return when a process started, in clock ticks since boot; empty if it has ended or the system has no /proc.

    The start time distinguishes a process from a later one with the same number.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
