"""Files on shared storage: a folder that all machines mount, or any URL that fsspec supports (`s3://`, `gs://`, …).

Writes are atomic: a local file is renamed into place, and an object store shows an object only when it is complete.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, DataError
from .paths import complete_file, complete_folder, remove_leftovers

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_LAST = ("state.safetensors", "process0.pt")
"""Files that mark their folder as complete: they are written last and removed first."""

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
        upload(unfinished, location)


def upload(file: Path, location: str) -> None:
    """Copy a local file to a location. Raise `CheckpointError` if it cannot be written."""
    if local := local_path(location):
        with complete_file(local) as unfinished:
            shutil.copyfile(file, unfinished)
        return
    files, path = filesystem(location)
    try:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.put_file(str(file), path)
    except OSError as error:
        raise CheckpointError(f"{location}: cannot be written: {error}; nothing was changed there") from error


def local_path(location: str) -> Path | None:
    """Return the local path of a location, or None if it is not on this machine."""
    protocol, separator, path = location.partition("://")
    if not separator:
        return Path(location)
    return Path(path) if protocol in ("file", "local") else None


class Mirror:
    """Synchronize a run's folder with shared storage; each machine's own folder is a copy of a part of it.

    Args:
        location: the URL or folder of the storage; None: all machines share the run's folder, and nothing is copied.
        folder: the run's folder on this machine.
    """

    def __init__(self, location: str | None, folder: Path) -> None:
        self.location, self._folder = location, folder

    def _at(self, local: Path) -> str:
        return f"{(self.location or '').rstrip('/')}/{local.relative_to(self._folder).as_posix()}"

    def _remote_files(self, local: Path) -> dict[Path, str]:
        """Map the local path of every file under `local` to its path in the storage's file system."""
        files, root = filesystem(self._at(local))
        files.invalidate_cache()
        names = files.find(root) if files.exists(root) else []
        return {local / name.removeprefix(root).lstrip("/"): name for name in names}

    def fetch(self, local: Path, marker: str = "") -> None:
        """Copy a file or folder from the storage, unless it exists locally.

        Args:
            marker: the file that marks a complete folder; without it, the folder is not copied.
        """
        if self.location is None or local.exists():
            return
        remote = self._remote_files(local)
        if not remote or (marker and local / marker not in remote):
            return
        files, _ = filesystem(self.location)
        if local in remote:
            with complete_file(local) as unfinished:
                files.get_file(remote[local], str(unfinished))
            return
        with complete_folder(local) as unfinished:
            for path, name in remote.items():
                target = unfinished / path.relative_to(local)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(target))

    def keep(self, local: Path, marker: str = "") -> None:
        """Copy a file or folder to the storage, unless `marker` shows that a complete one is there."""
        if self.location is None or (marker and exists(self._at(local / marker))):
            return
        paths = [local] if local.is_file() else [path for path in local.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name in _LAST):
            upload(path, self._at(path))

    def prune(self, local: Path) -> None:
        """Remove files under `local` from the storage that do not exist locally."""
        if self.location is None:
            return
        files, _ = filesystem(self.location)
        removed = [path for path in self._remote_files(local).items() if not path[0].exists()]
        for _, name in sorted(removed, key=lambda path: path[0].name not in _LAST):
            files.rm_file(name)
