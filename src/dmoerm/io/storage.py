"""Files that other machines reach too: a shared folder, or any URL that fsspec knows (`s3://`, `gs://`, `file://`, …).

A write is complete or not at all: a local file is renamed into place, an object store shows an object once it is whole.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import CheckpointError, ConfigError, DataError
from .paths import complete_file, complete_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_LAST = ("state.safetensors", "trainer_state.json")
"""Files that say that those beside them are whole: they are written last and removed first."""

_TAGS = ("ETag", "etag", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "blob_id", "created")
"""What file systems call what changes when a file is written anew; the surer ones first."""


def is_url(place: str) -> bool:
    """Whether a place is no path of this machine, but for `fsspec` to open."""
    return "://" in place


def filesystem(place: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a place, and the place's path in it.

    Raises:
        ConfigError: the protocol is unknown, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{place}: {error}; correct the URL, or install the protocol's package") from None


def matching(pattern: str) -> list[str]:
    """The files that a pattern (`*`, `?`, `[…]`, `**`) names, in their names' order; what is no pattern names itself.

    Raises `DataError` where no file matches.
    """
    if not any(sign in pattern for sign in "*?[") or (not is_url(pattern) and Path(pattern).exists()):
        return [pattern]
    files, path = filesystem(pattern)
    found: Any = files.glob(path, detail=True)
    names = sorted(name for name, about in found.items() if about["type"] == "file")
    if not names:
        raise DataError("matches no file", file=pattern, hint="correct the pattern")
    return [files.unstrip_protocol(name) if is_url(pattern) else name for name in names]


@contextlib.contextmanager
def open_binary(place: str) -> Iterator[IO[bytes]]:
    """A file to read, from its beginning. Raises `OSError` where it cannot be read."""
    local = local_path(place)
    files, path = (None, "") if local else filesystem(place)
    with local.open("rb") if local else files.open(path, "rb") as file:  # pyright: ignore
        yield file  # pyright: ignore[reportReturnType]


def exists(place: str) -> bool:
    """Whether there is such a file, now."""
    files, path = filesystem(place)
    files.invalidate_cache()
    return files.exists(path)


def version(place: str) -> str:
    """A file's size, and what its file system changes when it is written anew: a tag, else a time. Both may be missing.

    Equal for as long as nobody writes the file; from whichever machine one looks. Raises `DataError` where one may not.
    """
    files, path = filesystem(place)
    files.invalidate_cache()
    try:
        about = files.info(path)
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        raise DataError(f"cannot be read: {error}", file=place, hint="correct the place or its rights") from None
    return ", ".join([f"{about.get('size')} bytes", *[str(about[tag]) for tag in _TAGS if tag in about][:1]])


@contextlib.contextmanager
def complete_at(place: str) -> Iterator[Path]:
    """A local file to write to; its content is at `place` once the block has ended well.

    Raises:
        CheckpointError: nothing can be written there.
    """
    if local := local_path(place):
        with complete_file(local) as unfinished:
            yield unfinished
        return
    with tempfile.TemporaryDirectory() as folder:
        unfinished = Path(folder) / "unfinished"
        yield unfinished
        upload(unfinished, place)


def upload(file: Path, place: str) -> None:
    """Copies a local file. Raises `CheckpointError` where it cannot be written."""
    if local := local_path(place):
        with complete_file(local) as unfinished:
            shutil.copyfile(file, unfinished)
        return
    files, path = filesystem(place)
    try:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.put_file(str(file), path)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be written: {error}; nothing was changed there") from error


def local_path(place: str) -> Path | None:
    """The path of a place on this machine; None: it is elsewhere."""
    protocol, separator, path = place.partition("://")
    if not separator:
        return Path(place)
    return Path(path) if protocol in ("file", "local") else None


class Mirror:
    """A run's folder, kept on storage that every machine reaches; each machine's own folder is a copy of a part of it.

    Args:
        place: the storage's URL or folder; None: all machines reach the run's folder itself, and nothing is copied.
        folder: the run's folder on this machine.
    """

    def __init__(self, place: str | None, folder: Path) -> None:
        self.place, self._folder = place, folder

    def _at(self, local: Path) -> str:
        return f"{(self.place or '').rstrip('/')}/{local.relative_to(self._folder).as_posix()}"

    def _found(self, local: Path) -> dict[Path, str]:
        """Path here → path in the storage's file system, of every file that the storage has under `local`."""
        files, root = filesystem(self._at(local))
        files.invalidate_cache()
        names = files.find(root) if files.exists(root) else []
        return {local / name.removeprefix(root).lstrip("/"): name for name in names}

    def fetch(self, local: Path, sign: str = "") -> None:
        """Copies a file or folder from the storage, unless it is here.

        Args:
            sign: the file without which the storage's folder is not whole, and is not copied.
        """
        if self.place is None or local.exists():
            return
        found = self._found(local)
        if not found or (sign and local / sign not in found):
            return
        files, _ = filesystem(self.place)
        if local in found:
            with complete_file(local) as unfinished:
                files.get_file(found[local], str(unfinished))
            return
        with complete_folder(local) as unfinished:
            for path, name in found.items():
                target = unfinished / path.relative_to(local)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(name, str(target))

    def keep(self, local: Path, sign: str = "") -> None:
        """Copies a file or folder to the storage; not if `sign` says that a whole one is there."""
        if self.place is None or (sign and exists(self._at(local / sign))):
            return
        paths = [local] if local.is_file() else [path for path in local.rglob("*") if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name in _LAST):
            upload(path, self._at(path))

    def prune(self, local: Path) -> None:
        """Removes from the storage what is under `local` there but not here."""
        if self.place is None:
            return
        files, _ = filesystem(self.place)
        gone = [path for path in self._found(local).items() if not path[0].exists()]
        for _, name in sorted(gone, key=lambda path: path[0].name not in _LAST):
            files.rm_file(name)
