"""Where things lie on disk, and the one way to write a file or a folder: complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ArtefactError

CACHE_VARIABLE = "DMOERM_CACHE"


def cache_folder() -> Path:
    """The user's cache folder: `$DMOERM_CACHE`, else `$XDG_CACHE_HOME/dmoerm`, else `~/.cache/dmoerm`."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmoerm"


@contextlib.contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to write into; it takes the place of `target` once the block has ended well.

    If the block raises (a full disk, a kill), `target` is as it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        _sync(folder)
        if target.exists():
            old = folder.with_name(folder.name + ".old")
            target.rename(old)
            folder.rename(target)
            shutil.rmtree(old)
        else:
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """A new file beside `target` to write into; it takes the place of `target` once the block has ended well.

    Raises:
        ArtefactError: there can be no file in that folder.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(target, error) from None
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_file(target: Path, content: str | bytes) -> None:
    """Writes a file completely or not at all. Raises `ArtefactError` where it cannot be written."""
    try:
        with complete_file(target) as unfinished:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    except ArtefactError:
        raise
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: OSError) -> ArtefactError:
    return ArtefactError(f"{target}: cannot be written: {error.strerror or error}; nothing was changed there")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
