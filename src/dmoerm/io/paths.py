"""Well-known folders, and atomic writes of files and folders.

A file or folder is written beside its target as `.NAME.XXXXXXXX.unfinished`, under a lock file of the same name plus
`.lock`. The next writer of the same target, and `remove_leftovers`, remove what a killed writer left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import CheckpointError
from .locking import try_lock_file

CACHE_VARIABLE = "DMOERM_CACHE"
_UNFINISHED, _ASIDE, _LOCK = ".unfinished", ".aside", ".lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of Linux's renameat2
_SYNC_MODE = "rb" if os.name == "posix" else "r+b"  # Windows synchronizes only files that are open for writing


def cache_folder() -> Path:
    """Return the user's cache folder: `$DMOERM_CACHE`, else `$XDG_CACHE_HOME/dmoerm`, else `~/.cache/dmoerm`."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dmoerm"


SHIPPED = Path(__file__).parents[1] / "models"
"""The models that come with the package. A folder's name names its model, unless a path of that name exists."""


def model_folder(path: str) -> str:
    """Return the model folder inside a run folder, or of a model in `SHIPPED`; else the path or hub name unchanged."""
    if (Path(path) / "model" / "config.json").is_file():
        return str(Path(path) / "model")
    shipped = SHIPPED / path if path.isidentifier() and not Path(path).exists() else None
    return str(shipped) if shipped is not None and (shipped / "config.json").is_file() else path


def model_name(path: str) -> str:
    """Return the name of a run's or a model's folder; a hub name unchanged."""
    return Path(path).resolve().name if Path(path).exists() else path


def weights_digest(source: str) -> str:
    """Return a digest of the safetensors files in and below a folder; "" for a URL or a hub name."""
    if not Path(source).is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(Path(source).rglob("*.safetensors")):
        digest.update(file.relative_to(source).as_posix().encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to write into; it replaces `target` when the block ends without an error.

    If the block raises (for example on a full disk) or the process is killed, `target` is unchanged. Links are
    followed.
    """
    target = Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished_path(target) as folder:
        folder.mkdir()
        try:
            yield folder
            mode = folder.stat().st_mode & 0o666  # the umask itself cannot be read without setting it for all threads
            for path in folder.rglob("*"):
                if path.is_file():
                    path.chmod(mode)  # safetensors writes for the owner only
                    _sync_file(path)
            _exchange(folder, target) if target.exists() else folder.rename(target)
            _sync_names(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the failed attempt, or the folder that was replaced


@contextlib.contextmanager
def complete_file(target: Path) -> Iterator[Path]:
    """Yield a new file to write to; it replaces `target` when the block ends without an error. Links are followed.

    What cannot be replaced, such as /dev/stdout or a named pipe, is appended to.

    Raises:
        CheckpointError: no file can be created in that folder.
    """
    if (stream := _stream(target)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            yield (file := Path(folder) / "content")
            with file.open("rb") as content, open(stream, "ab", closefd=isinstance(stream, str)) as written:
                shutil.copyfileobj(content, written)
        return
    target = Path(os.path.realpath(target))
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(_unfinished_path(target))
            file.touch()
        except OSError as error:
            raise _unwritable(target, error) from None
        try:
            yield file
            _sync_file(file)
            file.replace(target)
            _sync_names(target.parent)
        except BaseException:
            file.unlink(missing_ok=True)
            raise


def _stream(target: Path) -> str | int | None:
    """Return the device, the pipe or this process's open file that a path leads to, through links; otherwise None."""
    path = os.path.abspath(target)
    for _ in range(40):  # the most links that Linux follows
        if descriptor := re.fullmatch(r"/(?:proc/self|dev)/fd/(\d+)", path):  # /dev/stdout is a link to one
            return int(descriptor[1])
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)) else None


def write_file(target: Path, content: str | bytes) -> None:
    """Write a file completely or not at all. Raise `CheckpointError` if it cannot be written."""
    try:
        with complete_file(target) as unfinished:
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    except CheckpointError:
        raise
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{target}: cannot be written: {error.strerror or error}; nothing was changed there")


@contextlib.contextmanager
def _unfinished_path(target: Path) -> Iterator[Path]:
    """Yield a free path beside `target` that no other writer uses or removes while the block runs."""
    remove_leftovers(target)
    while True:  # a name is taken only by chance, or while another writer removes leftovers
        path = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        lock = Path(f"{path}{_LOCK}")
        descriptor = try_lock_file(lock)
        if descriptor is not None:
            break
    try:
        yield path
    finally:
        _release(lock, descriptor)


def _release(lock: Path, descriptor: int) -> None:
    if os.name == "posix":  # while the lock is held, so that no writer locks a file that is about to vanish
        lock.unlink(missing_ok=True)
    os.close(descriptor)
    with contextlib.suppress(OSError):  # Windows removes no open file
        lock.unlink(missing_ok=True)


def remove_leftovers(target: Path) -> None:
    """Remove what killed writers of `target` left behind; put back a folder that one of them had moved aside."""
    pattern = f".{glob.escape(target.name)}.????????{_UNFINISHED}"
    files = [path for suffix in ("", _ASIDE, _LOCK) for path in target.parent.glob(pattern + suffix)]
    for leftover in {path.with_name(path.name.removesuffix(_ASIDE).removesuffix(_LOCK)) for path in files}:
        lock = Path(f"{leftover}{_LOCK}")
        try:
            descriptor = try_lock_file(lock)
        except OSError:
            continue
        if descriptor is None:
            continue
        with contextlib.suppress(OSError):
            aside = Path(f"{leftover}{_ASIDE}")
            if aside.exists():
                shutil.rmtree(aside) if target.exists() else aside.rename(target)
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        _release(lock, descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Exchange two folders: atomically on Linux; elsewhere, and on file systems without support, in three renames."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename and rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    aside = Path(f"{new}{_ASIDE}")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _sync_file(path: Path) -> None:
    with path.open(_SYNC_MODE) as file:
        os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """Flush a folder's new names to the disk, where the system can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
