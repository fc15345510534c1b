"""Where things lie on disk, and the one way to write a file or a folder: complete or not at all.

What is being written lies beside its target as `.NAME.XXXXXXXX.unfinished` and is locked by its writer. What a killed
writer has left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArtefactError
from .locking import abandoned, free

CACHE_VARIABLE = "DMOERM_CACHE"
_UNFINISHED, _ASIDE = ".unfinished", ".aside"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


def cache_folder() -> Path:
    """The user's cache folder: `$DMOERM_CACHE`, else `$XDG_CACHE_HOME/dmoerm`, else `~/.cache/dmoerm`."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmoerm"


def model_folder(path: str) -> str:
    """The model's folder of a run's folder; a model's folder or hub name as it is."""
    inside = Path(path) / "model"
    return str(inside) if (inside / "config.json").is_file() else path


@contextlib.contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to write into; it takes the place of `target` once the block has ended well.

    If the block raises (a full disk) or its process is killed, `target` is as it was before. A link is followed.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear(target)
    folder = Path(tempfile.mkdtemp(_UNFINISHED, f".{target.name}.", target.parent))
    handle = os.open(folder, os.O_RDONLY)
    free(handle)
    try:
        yield folder
        folder.chmod(0o755)
        _sync(folder)
        _exchange(folder, target) if target.exists() else folder.rename(target)
        _sync_names(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what was written in vain, or what was there before
        os.close(handle)


@contextlib.contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """A new file beside `target` to write into; it takes the place of `target` once the block has ended well.

    Raises:
        ArtefactError: there can be no file in that folder.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        handle, name = tempfile.mkstemp(_UNFINISHED, f".{target.name}.", target.parent)
    except OSError as error:
        raise _unwritable(target, error) from None
    free(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
        _sync_names(target.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


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


def _clear(target: Path) -> None:
    """Removes what killed writers of `target` have left; puts back what one had put aside."""
    left_by_any = f".{glob.escape(target.name)}.????????{_UNFINISHED}"
    for aside in target.parent.glob(left_by_any + _ASIDE):
        with contextlib.suppress(OSError):
            shutil.rmtree(aside) if target.exists() else aside.rename(target)
    for left in target.parent.glob(left_by_any):
        if abandoned(left):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Two folders change places: at once on Linux; elsewhere, and on file systems that cannot, one after the other."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and rename(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _EXCHANGE) == 0:
        return
    aside = new.with_name(new.name + _ASIDE)
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """A new name is on the disk, too; where folders cannot be synchronised, nothing is done."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
