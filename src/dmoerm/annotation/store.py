"""Groups, pairs and answers in one SQLite file.

An answer is on the disk before its request is answered, so a killed server loses nothing that an annotator was shown
as saved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from ..io.database import Database
from ..labeling.questions import ResponsePair
from ..labels import PROBABILITIES, Outcome, content_digest
from ..schema import Query

_APPLICATION_ID = 0x644D6F41
_SCHEMA = """
CREATE TABLE IF NOT EXISTS groups (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, content TEXT NOT NULL, query TEXT NOT NULL, UNIQUE (id, content));
CREATE TABLE IF NOT EXISTS pairs (
    number INTEGER PRIMARY KEY, group_number INTEGER NOT NULL REFERENCES groups, first INTEGER NOT NULL,
    second INTEGER NOT NULL, UNIQUE (group_number, first, second));
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT, annotator TEXT NOT NULL, pair INTEGER NOT NULL REFERENCES pairs,
    capability TEXT NOT NULL, outcome TEXT NOT NULL, shown_left INTEGER NOT NULL, answered REAL NOT NULL,
    UNIQUE (annotator, pair, capability));
"""


class PairAnswer(NamedTuple):
    """An annotator's answer to one question.

    Attributes:
        annotator: the annotator's name.
        pair: the number of the pair.
        capability: the name of the capability, or `overall`.
        outcome: `first`, `second` or `tie`; `refused` if the annotator skipped the question.
        shown_left: the index of the response that was shown on the left.
    """

    annotator: str
    pair: int
    capability: str
    outcome: Outcome
    shown_left: int


class AnnotationStore:
    """The record of an annotation project.

    Args:
        path: the SQLite file.
        create: create the file if it does not exist.

    Raises:
        CheckpointError: the file cannot be opened or is not an annotation store, or does not exist without `create`.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not create and not path.is_file():
            raise CheckpointError(f"{path}: the store does not exist; create one with `dmoerm annotate DATA`")
        self.path = path
        self._database = Database(path, _SCHEMA, "annotation store", durable=True, application_id=_APPLICATION_ID)
        self._run = self._database.run

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add_pairs(self, pairs: Iterable[ResponsePair]) -> int:
        """Add the pairs that the store does not have yet; return their number. A pair is known by its group's texts."""
        with self._database.transaction():
            return sum(self._add_pair(pair) for pair in pairs)

    def _add_pair(self, pair: ResponsePair) -> int:
        key = pair.group.id, content_digest(pair.group)
        self._run(
            "INSERT OR IGNORE INTO groups (id, content, query) VALUES (?, ?, ?)",
            (*key, pair.group.model_dump_json(include=set(Query.model_fields))),
        )
        (group,) = self._run("SELECT number FROM groups WHERE id = ? AND content = ?", key).fetchone()
        insertion = "INSERT OR IGNORE INTO pairs (group_number, first, second) VALUES (?, ?, ?)"
        return self._run(insertion, (group, pair.first, pair.second)).rowcount

    def pairs(self) -> dict[int, ResponsePair]:
        """Return number → pair, in the order of the data."""
        groups = {number: Query.model_validate_json(query) for number, query in self._run(_GROUPS)}
        return {
            number: ResponsePair(groups[group], first, second) for number, group, first, second in self._run(_PAIRS)
        }

    def put(self, answer: PairAnswer) -> None:
        """Record an answer; it replaces the annotator's earlier answer to the same question."""
        columns = "annotator, pair, capability, outcome, shown_left, answered"
        values = (*answer, time.time())
        self._run(f"INSERT OR REPLACE INTO answers ({columns}) VALUES (?, ?, ?, ?, ?, ?)", values)

    def undo(self, annotator: str) -> None:
        """Remove the annotator's last answer, if there is one."""
        last = "SELECT max(number) FROM answers WHERE annotator = ?"
        self._run(f"DELETE FROM answers WHERE number = ({last})", (annotator,))

    def answered(self, annotator: str) -> set[tuple[int, str]]:
        """Return the pair and the capability of each question that the annotator has answered."""
        return set(self._run("SELECT pair, capability FROM answers WHERE annotator = ?", (annotator,)))

    def answers(self) -> list[PairAnswer]:
        """Return all answers, the oldest first."""
        rows = self._run("SELECT annotator, pair, capability, outcome, shown_left FROM answers ORDER BY number")
        return [PairAnswer(who, pair, name, Outcome(outcome), left) for who, pair, name, outcome, left in rows]

    def compared(self, annotator: str | None = None) -> list[tuple[str, str, str, Outcome, Outcome, int]]:
        """Count the pairs that two annotators judged, without skipped questions.

        Args:
            annotator: only count those that this annotator judged, too; None: of all annotators.

        Returns:
            rows of both annotators, the capability, both verdicts and the number of pairs.
        """
        verdicts = ", ".join(f"'{outcome}'" for outcome in PROBABILITIES)
        rows = self._run(_COMPARED.format(verdicts=verdicts), {"annotator": annotator})
        return [(a, b, name, Outcome(first), Outcome(second), count) for a, b, name, first, second, count in rows]


_GROUPS = "SELECT number, query FROM groups"
_PAIRS = "SELECT number, group_number, first, second FROM pairs ORDER BY number"
_COMPARED = """
SELECT a.annotator, b.annotator, a.capability, a.outcome, b.outcome, count(*)
FROM answers a JOIN answers b ON a.pair = b.pair AND a.capability = b.capability AND a.annotator < b.annotator
WHERE a.outcome IN ({verdicts}) AND b.outcome IN ({verdicts})
    AND (:annotator IS NULL OR :annotator IN (a.annotator, b.annotator))
GROUP BY a.annotator, b.annotator, a.capability, a.outcome, b.outcome
"""
