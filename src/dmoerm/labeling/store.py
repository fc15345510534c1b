"""Everything that was asked, in one SQLite file: a row a call, written before the next is sent.

A call's key is a hash over all that decides its answer (model, messages, settings): a changed rubric, wording or model
is a new question, and an unchanged one is never paid for twice. Before a call is sent it is claimed: a second process
leaves claimed calls alone. A claim is void when its process is dead; one of another host, of which that cannot be told,
when it is more than `_STALE` seconds away, to whichever side: clocks jump.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from .verdict import Token

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
class Answer:
    """What came of a call.

    Attributes:
        status: `answered`, `refused` or `failed`.
        text: the answer; None where there is none.
        tokens: its tokens with their log-probabilities, where the endpoint gave them.
        reason: why it was refused or failed.
        cost: in the currency of the prices given.
        seconds, attempts: how long it took, tries that failed included.
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
    """The name of a request: a hash over everything that is sent."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Store:
    """The record of all calls; several processes may have one file open.

    Raises:
        ArtefactError: the file cannot be opened, is no such store, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = f"{socket.gethostname()}/{os.getpid()}:{_born(os.getpid())}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise self._error("cannot be opened", error) from None

    def close(self) -> None:
        """Gives up this process's claims and closes the file."""
        self._run("DELETE FROM claims WHERE owner = ?", (self._owner,))
        self._db.close()

    def get(self, key: str) -> Answer | None:
        """The answer of a call that has ended; None where it has not."""
        row = self._run(f"SELECT {', '.join(_COLUMNS)} FROM calls WHERE key = ?", (key,)).fetchone()
        return _answer(row) if row else None

    def claim(self, key: str) -> bool:
        """Takes a call for this process; False where it has ended or another process is at it."""
        now = time.time()
        self._run("BEGIN IMMEDIATE")
        try:
            done = self._run("SELECT 1 FROM calls WHERE key = ?", (key,)).fetchone()
            held = self._run("SELECT owner, since FROM claims WHERE key = ?", (key,)).fetchone()
            if done or (held and held[0] != self._owner and _alive(held[0], held[1], now)):
                return False
            self._run("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, self._owner, now))
            return True
        finally:
            self._run("COMMIT")

    def put(self, key: str, model: str, question: Mapping[str, Any], messages: Any, answer: Answer) -> None:
        """Records an ended call and gives up its claim.

        Args:
            question: what the call is about, for the report: group, pair, order, capabilities.
        """
        row = (
            key,
            model,
            json.dumps(question, ensure_ascii=False),
            json.dumps(messages, ensure_ascii=False),
            *_values(answer),
            time.time(),
        )
        self._run("BEGIN IMMEDIATE")
        try:
            self._run(f"INSERT OR REPLACE INTO calls VALUES ({', '.join('?' * len(row))})", row)
            self._run("DELETE FROM claims WHERE key = ?", (key,))
        except ArtefactError:
            self._db.execute("ROLLBACK")
            raise
        self._run("COMMIT")

    def forget(self, key: str) -> None:
        """Gives up a claim without an answer."""
        self._run("DELETE FROM claims WHERE key = ?", (key,))

    def calls(self) -> Iterator[tuple[str, str, dict[str, Any], Answer]]:
        """Key, model, question and answer of every ended call."""
        for key, model, question, *row in self._run(f"SELECT key, model, question, {', '.join(_COLUMNS)} FROM calls"):
            yield key, model, json.loads(question), _answer(row)

    def _run(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._error("cannot be read or written", error) from None

    def _error(self, what: str, error: Exception) -> ArtefactError:
        return ArtefactError(f"{self.path}: the store of calls {what}: {error}")


_COLUMNS = (
    "status",
    "text",
    "tokens",
    "reason",
    "prompt_tokens",
    "completion_tokens",
    "cost",
    "seconds",
    "attempts",
)


def _values(answer: Answer) -> tuple[Any, ...]:
    tokens = json.dumps([[token.text, dict(token.top)] for token in answer.tokens]) if answer.tokens else None
    return tuple(tokens if name == "tokens" else getattr(answer, name) for name in _COLUMNS)


def _answer(row: Sequence[Any]) -> Answer:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["tokens"] = tuple(Token(text, top) for text, top in json.loads(values["tokens"] or "[]"))
    return Answer(**values)


def _alive(owner: str, since: float, now: float) -> bool:
    """Whether a claim still holds."""
    host, _, process = owner.rpartition("/")
    if host != socket.gethostname():
        return abs(now - since) <= _STALE
    number, _, born = process.partition(":")
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return born == _born(int(number))


def _born(process: int) -> str:
    """When a process began, in ticks since the system did: of a number given again, another. Empty: it has ended."""
    try:
        about = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""  # or the system does not tell
    return "" if about[0] == "Z" else about[19]
