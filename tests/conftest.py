"""Fixtures that several parts of the tests share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dmoerm.data.readers import Reading, read_groups
from dmoerm.schema import Group

DATA_VARIABLE = "DMOERM_DATA"


@pytest.fixture(scope="session")
def human_data() -> Path:
    """The folder of human-labelled preference data; tests that need it are skipped where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get(DATA_VARIABLE, default))
    if not (folder / "topical_chat.jsonl").is_file():
        pytest.skip(f"no human data in {folder}; set {DATA_VARIABLE} to its folder (docs/data.md names the sources)")
    return folder


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes rows as JSON Lines into a temporary folder and returns the file."""

    def write(rows: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_rows(write_rows: Callable[..., Path]) -> Callable[..., Reading]:
    """A function that writes rows to a file and reads them as groups."""
    return lambda *rows, format="auto": read_groups(write_rows(rows), format=format)


@pytest.fixture
def read_one(read_rows: Callable[..., Reading]) -> Callable[..., Group]:
    """The same for rows that make exactly one group and leave nothing out."""

    def read(*rows: Any, format: str = "auto") -> Group:
        reading = read_rows(*rows, format=format)
        assert not reading.left_out
        (group,) = reading.groups
        return group

    return read
