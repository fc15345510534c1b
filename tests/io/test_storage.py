from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dmoerm.errors import ConfigError, DataError
from dmoerm.io.storage import Mirror, complete_at, exists, matching, open_binary, remove_leftovers_at, version


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


# --- mirrors -------------------------------------------------------------------------------------------------------


def step(folder: Path, state: str = "weights") -> Path:
    done = folder / "steps" / "phase1" / "chat"
    done.mkdir(parents=True)
    (done / "metrics.json").write_text("{}")
    (done / "state.safetensors").write_text(state)
    return done


def test_a_folder_goes_from_one_machine_to_another(place: str, tmp_path: Path) -> None:
    Mirror(place, tmp_path / "one").keep(step(tmp_path / "one"))
    other = tmp_path / "other" / "steps" / "phase1" / "chat"
    Mirror(place, tmp_path / "other").fetch(other, "state.safetensors")
    assert {file.name: file.read_text() for file in other.iterdir()} == {
        "metrics.json": "{}",
        "state.safetensors": "weights",
    }


def test_a_folder_that_is_not_whole_is_not_fetched(place: str, tmp_path: Path) -> None:
    write(f"{place}/steps/phase1/chat/metrics.json", "{}")
    here = tmp_path / "one" / "steps" / "phase1" / "chat"
    Mirror(place, tmp_path / "one").fetch(here, "state.safetensors")
    assert not here.exists()


def test_what_is_here_or_there_stays(place: str, tmp_path: Path) -> None:
    first, other = step(tmp_path / "one"), step(tmp_path / "other", "others")
    Mirror(place, tmp_path / "one").keep(first)
    Mirror(place, tmp_path / "other").fetch(other)
    assert (other / "state.safetensors").read_text() == "others"
    Mirror(place, tmp_path / "other").keep(other, "state.safetensors")
    assert read(f"{place}/steps/phase1/chat/state.safetensors") == "weights"


def test_a_single_file(place: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").write_text("seed: 0")
    Mirror(place, tmp_path / "one").keep(tmp_path / "one" / "config.yaml")
    Mirror(place, tmp_path / "other").fetch(tmp_path / "other" / "config.yaml")
    assert (tmp_path / "other" / "config.yaml").read_text() == "seed: 0"


def test_pruning_removes_what_is_not_here(place: str, tmp_path: Path) -> None:
    mirror, folder = Mirror(place, tmp_path), tmp_path / "checkpoints" / "router"
    for name in ("checkpoint-1", "checkpoint-2"):
        (folder / name).mkdir(parents=True)
        (folder / name / "process0.pt").write_text(name)
        mirror.keep(folder / name)
    (folder / "checkpoint-1" / "process0.pt").unlink()
    mirror.prune(folder)
    assert not exists(f"{place}/checkpoints/router/checkpoint-1/process0.pt")
    assert exists(f"{place}/checkpoints/router/checkpoint-2/process0.pt")


def test_without_a_storage_nothing_is_copied(tmp_path: Path) -> None:
    mirror, done = Mirror(None, tmp_path), step(tmp_path)
    mirror.keep(done)
    mirror.fetch(tmp_path / "none")
    mirror.prune(done)
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["metrics.json", "state.safetensors"]
