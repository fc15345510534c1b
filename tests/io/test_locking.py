"""One at a time, and no longer than a process lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmoerm.errors import CheckpointError
from dmoerm.io.locking import exclusive_folder, try_lock_file

HOLD = """
import pathlib, sys
from dmoerm.io.locking import exclusive_folder

with exclusive_folder(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_told_who_the_first_is(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    said = rf"{tmp_path / 'run'}: process {holder.pid} on {os.uname().nodename} is already running there; wait"
    with pytest.raises(CheckpointError, match=said), exclusive_folder(tmp_path / "run"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with exclusive_folder(tmp_path / "run"):
        pass


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_folder(tmp_path):
        raise ZeroDivisionError
    with (
        exclusive_folder(tmp_path),
        pytest.raises(CheckpointError, match=f"process {os.getpid()}"),
        exclusive_folder(tmp_path),
    ):
        pass


def test_a_place_that_can_be_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="cannot be written"), exclusive_folder(tmp_path / "file" / "run"):
        pass


def test_a_lock_file_that_was_removed_in_the_meantime_protects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_and_lose(descriptor: int, *, blocking: bool) -> bool:
        (tmp_path / "x.lock").unlink()
        return True

    monkeypatch.setattr("dmoerm.io.locking.lock_descriptor", lock_and_lose)
    assert try_lock_file(tmp_path / "x.lock") is None


def test_a_held_file_is_not_locked_twice(tmp_path: Path) -> None:
    first = try_lock_file(tmp_path / "x.lock")
    assert first is not None
    assert try_lock_file(tmp_path / "x.lock") is None
    os.close(first)
    second = try_lock_file(tmp_path / "x.lock")
    assert second is not None
    os.close(second)
