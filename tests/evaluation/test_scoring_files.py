"""Scored files: the rows, the best response, what is skipped, the formats, and shards that hold each row once."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from tiny import tiny_groups

from dmoerm.data.rows import open_rows
from dmoerm.errors import DataError
from dmoerm.evaluation.scoring_files import RowScorer, ScoreCounts, open_output, shards_of
from dmoerm.schema import Query
from dmoerm.scores import Score

QUERIES = [Query(prompt=group.prompt, responses=group.responses) for group in tiny_groups(3)]


@pytest.fixture
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model()


def test_a_row_has_the_models_scores_in_both_formats(model: Any, tmp_path: Path) -> None:
    rows = list(RowScorer(model).rows(QUERIES))
    for row, scores in zip(rows, model.score_queries(QUERIES), strict=True):
        assert row["rewards"] == pytest.approx([score.reward for score in scores], abs=1e-5)
        assert row["uncertainty"] == pytest.approx([score.uncertainty for score in scores], abs=1e-5)
        assert (row["task"], row["temperature"]) == (scores[0].task, scores[0].temperature)
    for name in ("out.parquet", "out.jsonl"):
        with open_output(str(tmp_path / name)) as write:
            write(rows)
    assert parquet.read_table(tmp_path / "out.parquet").to_pylist(maps_as_pydicts="strict") == rows
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == rows


class Given:
    """A model whose rewards are given."""

    config = SimpleNamespace(tasks={})

    def __init__(self, *rewards: list[float]) -> None:
        self.rewards = rewards

    def score_stream(self, queries: Any, *_: Any) -> Any:
        for query, row in zip(queries, self.rewards, strict=True):
            yield query, [Score(reward, None, {}, {}, None, 1.0) for reward in row]


def test_the_best_is_the_first_of_the_highest(tmp_path: Path) -> None:
    queries = [Query(id=str(i), prompt="p", responses=("a", "b", "c")) for i in range(3)]
    scorer: Any = RowScorer(Given([0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [-3.0, -2.0, -1.0]), best=True)  # pyright: ignore
    result = list(scorer.rows(queries))
    assert [(row["best"], row["chosen"]) for row in result] == [(1, "b"), (0, "a"), (2, "c")]
    with open_output(str(tmp_path / "out.parquet"), best=True) as write:
        write(result)
    read = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["best"], row["chosen"]) for row in read] == [(1, "b"), (0, "a"), (2, "c")]
    bad: Any = RowScorer(Given([1.0, math.nan, 0.0]), best=True)  # pyright: ignore
    with pytest.raises(DataError, match=r"query 0: cannot choose the best .* not finite \(got nan\)"):
        list(bad.rows(queries[:1]))


def test_a_task_for_all_goes_before_the_rows_own(model: Any, caplog: Any) -> None:
    queries = [query.model_copy(update={"task": "strange"}) for query in QUERIES]
    bad: list[DataError] = []
    assert {row["task"] for row in RowScorer(model, task="chitchat").rows(queries, bad.append)} == {"chitchat"}
    routed = [query.model_copy(update={"task": None}) for query in queries]
    scorer = RowScorer(model)
    assert list(scorer.rows(queries, bad.append)) == list(scorer.rows(routed, bad.append))
    assert not bad
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the model has no task 'strange'" in warning
    with pytest.raises(DataError, match="no such task"):
        RowScorer(model, task="strange").rows(queries)


def test_what_the_model_cannot_score_is_left_out(tiny_model: Callable[..., Any]) -> None:
    queries = [Query(id=name, prompt="How?", responses=("So. " * n, "No.")) for name, n in (("short", 2), ("long", 60))]
    bad: list[DataError] = []
    scorer = RowScorer(tiny_model(encoding={"max_length": 40}))
    assert [row["id"] for row in scorer.rows(queries, bad.append)] == ["short"]
    assert ["query long" in str(error) for error in bad] == [True]


def test_counts_add_up() -> None:
    counts = ScoreCounts()
    counts.add("chat", 2)
    counts.add(None, 3)
    assert counts.model_dump() == {"queries": 2, "responses": 5, "tasks": {"(general model)": 1, "chat": 1}}


# --- shards --------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"é {i}", "responses": ["a", "b"]} for i in range(23)]
TEXT = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS[:20]) + "\r\n  \n{\n"


def jsonl(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text(TEXT, encoding="utf-8")
    return folder / "rows.jsonl"


def compressed(folder: Path) -> Path:
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(TEXT.encode()))
    return folder / "rows.jsonl.gz"


def columns(folder: Path) -> Path:
    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=5)
    return folder / "rows.parquet"


def placed(rows: Any) -> list[tuple[int, Any]]:
    return [(line, row.message if isinstance(row, DataError) else row) for line, row in rows]


@pytest.mark.parametrize("make", [jsonl, compressed, columns])
@pytest.mark.parametrize("most", [1, 3, 5, 7, 100])
def test_the_pieces_hold_each_row_once_with_its_place(tmp_path: Path, make: Any, most: int) -> None:
    file = make(tmp_path)
    shards = shards_of(str(file), most)
    expected = placed(open_rows(file))
    assert [row for shard in shards for row in placed(shard.read())] == expected
    assert [len(placed(shard.read())) for shard in shards] == [shard.rows for shard in shards]
    if make is not compressed:
        assert max(shard.rows for shard in shards) == min(most, len(expected))


def test_files_that_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file does not exist"):
        shards_of(str(tmp_path / "none.jsonl"), 3)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="has no rows"):
        shards_of(str(tmp_path / "empty.jsonl"), 3)
    (tmp_path / "broken.parquet").write_text("PAR1 is more than this")
    with pytest.raises(DataError, match="cannot be read"):
        shards_of(str(tmp_path / "broken.parquet"), 3)
