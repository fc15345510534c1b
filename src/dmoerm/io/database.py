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
        durable: flush every commit to the disk, so that it also survives a power failure.
        application_id: a number that distinguishes these files from other SQLite files; 0: none.

    Raises:
        CheckpointError: the file cannot be opened, is not an SQLite file or has other contents, or the disk is full.
    """

    def __init__(
        self, path: Path, schema: str, content: str, *, durable: bool = False, application_id: int = 0
    ) -> None:
        self.path, self._content = path, content
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            if application_id:
                self._identify(application_id)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.executescript(schema)
        except (sqlite3.Error, OSError) as error:
            raise CheckpointError(f"{path}: cannot open the {content}: {error}") from None

    def _identify(self, application_id: int) -> None:
        """Mark a new file. Raise `sqlite3.DatabaseError` for a file with other contents."""
        (known,) = self._connection.execute("PRAGMA application_id").fetchone()
        if known != application_id and self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise sqlite3.DatabaseError("the file has other contents")
        if known != application_id:
            self._connection.execute(f"PRAGMA application_id={application_id}")

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
