"""SQLite files that several processes may open at the same time, with errors that name the file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


class Database:
    """An SQLite file with a write-ahead log: what is committed survives a `kill -9`. One thread uses it at a time.

    Args:
        path: the file; it and its folder are created.
        schema: the statements that create the tables if they do not exist.
        content: what the file contains, for messages, such as "answer store".

    Raises:
        CheckpointError: the file cannot be opened or is not an SQLite file, or the disk is full.
    """

    def __init__(self, path: Path, schema: str, content: str) -> None:
        self.path, self._content = path, content
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.executescript(schema)
        except (sqlite3.Error, OSError) as error:
            raise CheckpointError(f"{path}: cannot open the {content}: {error}") from None

    def run(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement. Raise `CheckpointError` if the file cannot be read or written."""
        try:
            return self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise CheckpointError(f"{self.path}: cannot read or write the {self._content}: {error}") from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all statements of the block together; none of them if the block raises."""
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk may have ended the transaction already
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
