"""Locks that end with the process that holds them, whatever ends it: a kill −9 leaves nothing to clear away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtefactError

_LOCK = ".lock"


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """While the block runs, no other block of the same folder does, in this process or another.

    Where the file system knows no locks, nobody is kept out.

    Raises:
        ArtefactError: another block runs, in which process and on which host; or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ArtefactError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        if not free(handle):
            holder = os.pread(handle, 256, 0).decode(errors="replace").strip() or "another process"
            raise ArtefactError(f"{folder}: {holder} is at work there; wait until it has ended, or name another folder")
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the name of its holder
            os.truncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def free(handle: int) -> bool:
    """Takes the lock of an open file or folder; False where another process, or another open file, has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def abandoned(path: Path) -> bool:
    """Whether nobody has the lock of this file or folder any more. False where that cannot be told."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
