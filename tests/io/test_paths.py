"""Complete or not at all, whenever the writer dies; what it leaves is removed by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmoerm.errors import CheckpointError
from dmoerm.io import paths
from dmoerm.io.paths import complete_folder, write_file

DIE = """
import os, signal, sys
from pathlib import Path
from dmoerm.io.paths import complete_file, complete_folder
with {mode}(Path(sys.argv[1])) as unfinished:
    (unfinished / "a" if unfinished.is_dir() else unfinished).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_folder(target: Path, text: str) -> None:
    with complete_folder(target) as folder:
        (folder / "a").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def modes(folder: Path) -> set[tuple[bool, int]]:
    """Return whether each path below the folder is a folder, with its permissions."""
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in folder.rglob("*")}


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_the_umask_decides_who_can_read_what_is_written(tmp_path: Path, umask: int, file: int, folder: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "file", "text")
        with complete_folder(tmp_path / "folder") as unfinished:
            (unfinished / "below").mkdir()
            (unfinished / "below" / "private").touch(0o600)  # as safetensors writes them
    finally:
        os.umask(before)
    assert modes(tmp_path) == {(False, file), (True, folder)}


@pytest.mark.parametrize(("mode", "write"), [("complete_folder", write_folder), ("complete_file", write_file)])
def test_a_killed_writer_changes_nothing_and_is_cleared_up_after(
    tmp_path: Path, mode: str, write: Callable[[Path, str], None]
) -> None:
    target = tmp_path / "na[m]e"
    write(target, "old")
    (tmp_path / ".na[m]e.settings").write_text("not ours")
    died = subprocess.run([sys.executable, "-c", DIE.format(mode=mode), target], check=False)
    assert died.returncode == -signal.SIGKILL
    assert (target / "a" if target.is_dir() else target).read_text() == "old"
    assert len(names(tmp_path)) == 4  # the unfinished one and its lock
    write(target, "new")
    assert names(tmp_path) == [".na[m]e.settings", "na[m]e"]
    assert (target / "a" if target.is_dir() else target).read_text() == "new"


def test_what_another_is_writing_is_left_alone(tmp_path: Path) -> None:
    with complete_folder(tmp_path / "x") as first:
        (first / "a").write_text("first")
        write_folder(tmp_path / "x", "second")
        assert (first / "a").read_text() == "first"
    assert (tmp_path / "x" / "a").read_text() == "first"
    assert names(tmp_path) == ["x"]


def test_a_system_that_cannot_exchange_folders_moves_one_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths.ctypes, "CDLL", lambda *_, **__: object())
    write_folder(tmp_path / "x", "old")
    write_folder(tmp_path / "x", "new")
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert names(tmp_path) == ["x"]
    (tmp_path / "x").rename(tmp_path / ".x.abcdefgh.unfinished.aside")  # a kill between the two moves
    with pytest.raises(ZeroDivisionError), complete_folder(tmp_path / "x"):
        raise ZeroDivisionError
    assert (tmp_path / "x" / "a").read_text() == "new"


def test_a_link_to_a_file_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/scores.jsonl")  # of a file that does not exist yet
    for content in ("old", "new"):
        write_file(tmp_path / "link", content)
        assert os.readlink(tmp_path / "link") == "disk/scores.jsonl"
        assert (tmp_path / "disk" / "scores.jsonl").read_text() == content
    assert names(tmp_path) == ["disk", "link"]
    assert names(tmp_path / "disk") == ["scores.jsonl"]


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("pipe", "link"):
        write_file(tmp_path / name, "text")
        assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert names(tmp_path) == ["link", "pipe"]


def test_standard_output_that_is_a_file_keeps_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = "import sys; from pathlib import Path; from dmoerm.io.paths import write_file; print('before', flush=True); "
    code += "[write_file(Path(path), 'text\\n') for path in sys.argv[1:]]; print('after')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code, "/dev/stdout", tmp_path / "link"], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ntext\ntext\nafter\n"


def test_a_file_in_a_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(NotADirectoryError), complete_folder(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "mine"
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_file(tmp_path / "x" / "y", "text")
