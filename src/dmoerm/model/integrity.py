"""The files of a checkpoint folder: checked before they are used, and written with their checksums.

* Files are regular, inside the folder and not larger than a model needs, so reading neither blocks nor fills memory.
* Files are unchanged. SHA256SUMS (the format of `sha256sum --check`) lists every file except the texts, which users
  edit. It detects damage, not tampering, because a file and its sum can be changed together. A folder without
  SHA256SUMS is accepted.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError

SUMS = "SHA256SUMS"
TEXTS = ("README.md", "run.yaml")
# Weights, settings, texts, and a tokenizer's vocabulary and template: neither code nor pickles.
FILES = ("*.safetensors", "*.json", *TEXTS, SUMS, "*.jinja", "*.txt", "*.model", "*.tiktoken")
_SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MAX_FILES = 100_000
_MAX_BYTES = {"config.json": 1 << 20, SUMS: 1 << 24} | dict.fromkeys(TEXTS, 1 << 24)
_MAX_OTHER_BYTES = 1 << 27  # four times the largest vocabularies
_MAX_HEADER_BYTES = 1 << 25  # of a safetensors file: about 200,000 tensors


def check_files(folder: Path) -> None:
    """Raise `CheckpointError` for a device, a file that is too large, or a link that leads out of the folder."""
    root = Path(os.path.realpath(folder))
    if root.parent.name == "snapshots":  # in the hub's cache, files are links to ../../blobs
        root = root.parents[1]
    for count, file in enumerate(_files(folder)):
        if count == _MAX_FILES:
            hint = "give the folder that `train` wrote"
            raise CheckpointError(f"{folder}: contains more than {_MAX_FILES} files; {hint}")
        target = Path(os.path.realpath(file))
        if not target.is_relative_to(root):
            hint = "replace the link by the file itself"
            raise CheckpointError(f"{file}: leads out of the model folder, to {target}; {hint}")
        if target.exists() and not target.is_file() and not target.is_dir():
            raise CheckpointError(f"{file}: is a device or a pipe, which is never read; delete it")
        if target.is_file() and any(fnmatch.fnmatch(file.name, kind) for kind in FILES):
            _check_size(file)


def _check_size(file: Path) -> None:
    size, limit, subject = file.stat().st_size, _MAX_BYTES.get(file.name, _MAX_OTHER_BYTES), "it"
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        if header > size:
            raise _damaged(file, "its header claims to be longer than the file")
        size, limit, subject = header, _MAX_HEADER_BYTES, "its header"
    if size > limit:
        raise CheckpointError(f"{file}: {subject} has {size} bytes, more than the limit of {limit}")


def _damaged(file: Path, error: object) -> CheckpointError:
    return CheckpointError(f"{file}: is not a safetensors file, or is damaged: {error}")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raise `CheckpointError` if the file is missing, too large, or contains something else."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not valid JSON")

    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is not a regular file")
        _check_size(file)
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError("it does not contain a JSON object")
    except CheckpointError:  # of the size
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    return content


def count_tensors(file: Path) -> int:
    """Count the tensors in a safetensors file. Raise `CheckpointError` if it is missing or damaged."""
    with _readable(file), safe_open(file, framework="pt") as opened:
        return len(opened.keys())


def read_tensors(file: Path, aligned: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file. Raise `CheckpointError` if it is missing or damaged.

    Args:
        aligned: copy the tensors. In a file's memory they are not aligned; matrix-vector products then add in another
            order than in a model that was never saved, and differ in the last digits.
    """
    with _readable(file):
        return {name: t.clone() if aligned else t for name, t in load_file(file).items()}


def write_tensors(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file and create its parent folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().cpu().contiguous() for name, t in state.items()}, file, metadata={"format": "pt"})


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    _check_present(file)
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from None


def _check_present(file: Path) -> None:
    if not file.is_file():
        pickles = [p.name for p in file.parent.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]
        hint = f"; {pickles[0]} is a pickle, which is never read" if pickles else ""
        raise CheckpointError(f"{file}: is missing{hint}; write the model again with save_pretrained")


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over all files of the folder except the texts."""
    names = sorted(str(file.relative_to(folder)) for file in _files(folder) if file.is_file())
    sums = _sums(folder, (name for name in names if name not in (*TEXTS, SUMS)))
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")


@contextlib.contextmanager
def checked(check: Callable[[], None]) -> Iterator[None]:
    """Run a check on another core while the block uses what it checks.

    If both fail, raise the error of the check: it is the cause of the block's.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(check)
        try:
            yield
        except Exception:
            if (error := running.exception()) is not None:
                raise error from None
            raise
        running.result()


def check_sums(folder: Path) -> None:
    """Raise a `CheckpointError` that names the files that are missing or changed."""
    file = folder / SUMS
    if not file.is_file():
        return
    try:
        lines = [_SUM_LINE.fullmatch(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    expected = {line[2]: line[1] for line in lines if line}
    outside = [name for name in expected if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if len(expected) != len(lines) or outside:
        raise CheckpointError(f"{file}: is damaged, or names files outside the folder; copy the model again")
    for name in expected:
        _check_present(folder / name)
    actual = _sums(folder, expected)
    if changed := [str(folder / name) for name in expected if actual[name] != expected[name]]:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise CheckpointError(
            f"{', '.join(changed[:3])}{more}: changed since the model was written (see {SUMS}); copy the model again, "
            f"or, if the change is intended, delete {SUMS}"
        )


def _sums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return name → SHA-256; hashing releases the GIL, so threads share the work."""

    def digest(name: str) -> tuple[str, str]:
        try:
            with (folder / name).open("rb") as opened:
                return name, hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror or error}") from None

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(digest, names))


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files and links, without following links; hidden entries, such as a checkout's .git, are skipped."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (Path(parent, name) for name in (*links, *files) if not name.startswith("."))
