from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from dmoerm.data.rows import open_rows
from dmoerm.errors import DataError
from dmoerm.scoring.shards import Shard, shard_rows, shards_of

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
    assert [row for shard in shards for row in placed(shard_rows(shard))] == expected
    assert [len(placed(shard_rows(shard))) for shard in shards] == [shard.rows for shard in shards]
    if make is not compressed:
        assert max(shard.rows for shard in shards) == min(most, len(expected))


def test_a_piece_travels_as_text(tmp_path: Path) -> None:
    shard = shards_of(str(jsonl(tmp_path)), 3)[2]
    assert Shard.model_validate_json(shard.model_dump_json()) == shard


def test_files_that_cannot_be_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file does not exist"):
        shards_of(str(tmp_path / "none.jsonl"), 3)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="has no rows"):
        shards_of(str(tmp_path / "empty.jsonl"), 3)
    (tmp_path / "broken.parquet").write_text("PAR1 is more than this")
    with pytest.raises(DataError, match="cannot be read"):
        shards_of(str(tmp_path / "broken.parquet"), 3)
