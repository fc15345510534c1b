"""One at a time, and no longer than a process lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmoerm.errors import ArtefactError
from dmoerm.io.locking import only_one

HOLD = """
import pathlib, sys
from dmoerm.io.locking import only_one

with only_one(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_one_is_told_who_the_first_is(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    said = rf"{tmp_path / 'run'}: process {holder.pid} on {os.uname().nodename} is at work there; wait"
    with pytest.raises(ArtefactError, match=said), only_one(tmp_path / "run"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    with only_one(tmp_path / "run"):
        pass


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one(tmp_path):
        raise ZeroDivisionError
    with only_one(tmp_path), pytest.raises(ArtefactError, match=f"process {os.getpid()}"), only_one(tmp_path):
        pass


def test_a_place_that_can_be_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="cannot be written"), only_one(tmp_path / "file" / "run"):
        pass
