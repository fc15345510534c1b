"""Locks that the operating system releases when the process that holds them ends, even by `kill -9`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from ..errors import CheckpointError

_LOCK = ".lock"
_HOLDER_OFFSET = 1  # Windows locks byte 0 against reading, too, so the holder's name comes after it
_HOLDER_LENGTH = 256


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while the block runs; create the folder if it does not exist.

    On a file system without locks, nothing is locked.

    Raises:
        CheckpointError: another block holds the lock (the message names its process and host), or the folder cannot be
            written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        if not _lock(descriptor):
            holder = ""
            with contextlib.suppress(OSError):
                os.lseek(descriptor, _HOLDER_OFFSET, os.SEEK_SET)
                holder = os.read(descriptor, _HOLDER_LENGTH).decode(errors="replace").strip()
            hint = "wait for it to finish, or name another folder"
            raise CheckpointError(f"{folder}: {holder or 'another process'} is already running there; {hint}")
        with contextlib.suppress(OSError):  # on a full disk the lock is held without its holder's name
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f" process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def try_lock_file(path: Path) -> int | None:
    """Create and lock a file. Return the descriptor whose closing releases the lock, or None if another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # A file that another process has unlinked in the meantime protects nothing.
        if _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError:  # a file system without locks
        return True
