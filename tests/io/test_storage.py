from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dmoerm.errors import ConfigError, DataError
from dmoerm.io.storage import complete_at, exists, matching, open_binary, remove_leftovers_at, version


@pytest.fixture(params=["memory", "file", "path", "s3"])
def place(request: Any, tmp_path: Path) -> Iterator[str]:
    """A storage of each kind, empty."""
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/kept/run"
        return
    paths = {"memory": "memory://kept/run", "file": f"file://{tmp_path}/kept", "path": str(tmp_path / "kept")}
    yield paths[request.param]
    fsspec.filesystem("memory").store.clear()


def write(place: str, text: str) -> None:
    with complete_at(place) as unfinished:
        unfinished.write_text(text)


def read(place: str) -> str:
    with open_binary(place) as file:
        return file.read().decode()


def test_what_a_killed_writer_left_is_removed(place: str, tmp_path: Path) -> None:
    write(f"{place}/a.txt", "whole")
    folder = tmp_path / "kept"
    if folder.exists():
        for name in (
            ".a.txt.12345678.unfinished",
            ".a.txt.12345678.unfinished.lock",
            ".b.txt.12345678.unfinished.lock",
        ):
            (folder / name).touch()
    remove_leftovers_at(f"{place}/a.txt")
    assert read(f"{place}/a.txt") == "whole"
    if folder.exists():
        assert {file.name for file in folder.iterdir()} == {"a.txt", ".b.txt.12345678.unfinished.lock"}


def test_a_block_that_fails_writes_nothing(place: str) -> None:
    def fail() -> None:
        with complete_at(f"{place}/a.txt") as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not exists(f"{place}/a.txt")
    write(f"{place}/a.txt", "whole")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read(f"{place}/a.txt") == "whole"


def test_patterns_name_files_in_order(place: str) -> None:
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", "d.txt"):
        write(f"{place}/{name}", name)
    assert [read(name) for name in matching(f"{place}/*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [read(name) for name in matching(f"{place}/**/*.jsonl")] == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert matching(f"{place}/none.jsonl") == [f"{place}/none.jsonl"]
    with pytest.raises(DataError, match="matches no file"):
        matching(f"{place}/*.parquet")


def test_a_file_that_is_written_anew_is_another_version(place: str) -> None:
    file = f"{place}/a.txt"
    assert version(file) == "no such file"
    write(file, "one")
    first = version(file)
    assert version(file) == first
    time.sleep(0.01)  # else its time may be the same
    write(file, "two")
    assert version(file) != first


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text("")
    assert matching(str(tmp_path / "a[1].jsonl")) == [str(tmp_path / "a[1].jsonl")]


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ConfigError, match=r"strange://a/b: .*correct the URL"):
        exists("strange://a/b")
