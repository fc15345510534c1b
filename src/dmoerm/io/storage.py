"""Files to score from and to: on this machine, or at any URL that fsspec supports (`s3://`, `gs://`, …).

Writes are atomic: a local file is renamed into place, and an object store shows an object only when it is complete.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, DataError
from .paths import complete_file, remove_leftovers

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_TAGS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "blob_id", "created")
"""Attributes that change when a file is rewritten, under the names of several file systems; the most reliable first."""


def is_url(location: str) -> bool:
    """Return whether a location is a URL for `fsspec` instead of a local path."""
    return "://" in location


def filesystem(location: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a location, and the path in it.

    Raises:
        ConfigError: the protocol is unknown, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{location}: {error}; correct the URL, or install the protocol's package") from None


def matching(pattern: str) -> list[str]:
    """Return the files that match a pattern (`*`, `?`, `[…]`, `**`), sorted by name; return any other path unchanged.

    Raises:
        DataError: no file matches.
    """
    if not any(sign in pattern for sign in "*?[") or (not is_url(pattern) and Path(pattern).exists()):
        return [pattern]
    files, path = filesystem(pattern)
    matches: Any = files.glob(path, detail=True)
    names = sorted(name for name, info in matches.items() if info["type"] == "file")
    if not names:
        raise DataError("matches no file", file=pattern, hint="correct the pattern")
    return [files.unstrip_protocol(name) if is_url(pattern) else name for name in names]


@contextlib.contextmanager
def open_binary(location: str) -> Iterator[IO[bytes]]:
    """Open a file for reading. Raise `OSError` if it cannot be read."""
    local = local_path(location)
    files, path = (None, "") if local else filesystem(location)
    with local.open("rb") if local else files.open(path, "rb") as file:  # pyright: ignore
        yield file  # pyright: ignore[reportReturnType]


def exists(location: str) -> bool:
    """Return whether the file exists now; listings are not cached."""
    files, path = filesystem(location)
    files.invalidate_cache()
    return files.exists(path)


def version(location: str) -> str:
    """Return a text that changes when the file is rewritten: its size and a tag or time, if the file system has one.

    The text is the same on every machine.

    Raises:
        DataError: the file cannot be accessed.
    """
    files, path = filesystem(location)
    files.invalidate_cache()
    try:
        info = files.info(path)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        raise DataError(
            f"cannot be read: {error}", file=location, hint="correct the path, or the permissions"
        ) from None
    return ", ".join([f"{info.get('size')} bytes", *[str(info[tag]) for tag in _TAGS if tag in info][:1]])


def remove_leftovers_at(location: str) -> None:
    """Remove what a killed writer of a local file left beside it."""
    if local := local_path(location):
        remove_leftovers(local)


@contextlib.contextmanager
def complete_at(location: str) -> Iterator[Path]:
    """Yield a local file to write to; it is uploaded to `location` when the block ends without an error.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if local := local_path(location):
        with complete_file(local) as unfinished:
            yield unfinished
        return
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder) / "unfinished"
        yield unfinished
        files, path = filesystem(location)
        try:
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.put_file(str(unfinished), path)
        except OSError as error:
            raise CheckpointError(f"{location}: cannot be written: {error}; nothing was changed there") from error


def local_path(location: str) -> Path | None:
    """Return the local path of a location, or None if it is not on this machine."""
    protocol, separator, path = location.partition("://")
    if not separator:
        return Path(location)
    return Path(path) if protocol in ("file", "local") else None
