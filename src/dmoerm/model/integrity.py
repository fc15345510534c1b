"""What is checked of a model's folder before anything in it is used.

* It holds files inside it, of sizes that a model's files have: what is read can neither hang nor fill the memory.
* They are what was written: SHA256SUMS (the form of `sha256sum --check`) names every file but the texts, which people
  edit. It finds damage, not fraud: whoever can change a file can change its sum. A folder without it is taken as it is.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError

SUMS = "SHA256SUMS"
TEXTS = ("README.md", "run.yaml")
# Weights, settings and texts; a tokenizer's vocabulary and template. None of them is code, or a pickle.
FILES = ("*.safetensors", "*.json", *TEXTS, SUMS, "*.jinja", "*.txt", "*.model", "*.tiktoken")
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MOST_FILES = 100_000
_MOST_BYTES = {"config.json": 1 << 20, SUMS: 1 << 24} | dict.fromkeys(TEXTS, 1 << 24)
_MOST_ELSE = 1 << 27  # the largest vocabularies take a quarter of that
_MOST_HEADER = 1 << 25  # of a safetensors file, some 200,000 tensors


def check_files(folder: Path) -> None:
    """Raises `CheckpointError` for a file that is a device, too large, or a link that leads out of the folder."""
    root = _root(folder)
    for count, file in enumerate(_files(folder)):
        if count == _MOST_FILES:
            raise CheckpointError(f"{folder}: holds more than {_MOST_FILES} files; give the folder that `train` wrote")
        place = Path(os.path.realpath(file))
        if not place.is_relative_to(root):
            raise CheckpointError(f"{file}: leads out of the model's folder, to {place}; put the file itself there")
        if place.exists() and not place.is_file() and not place.is_dir():
            raise CheckpointError(f"{file}: is a device or a pipe, which is never read; delete it")
        if place.is_file() and any(fnmatch.fnmatch(file.name, kind) for kind in FILES):
            _check_size(file)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a size that settings have. Raises `CheckpointError` where there is none."""
    try:
        if file.exists() and not file.is_file():
            raise CheckpointError(f"{file}: is no file")
        _check_size(file)
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except CheckpointError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: cannot be read: it holds no JSON object")
    return found


def count_tensors(file: Path) -> int:
    """How many tensors a safetensors file holds. Raises `CheckpointError` where it is missing, or none."""
    if not file.is_file():
        raise missing(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return len(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, error) from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file. Raises `CheckpointError` where it is missing, or none."""
    if not file.is_file():
        raise missing(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, error) from None


def missing(file: Path) -> CheckpointError:
    """What is said of a file that is not there."""
    pickles = [p.name for p in file.parent.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    hint = f"; {pickles[0]} is a pickle, which is never read" if pickles else ""
    return CheckpointError(f"{file}: is missing{hint}; write the model again with save_pretrained")


def damaged(file: Path, error: object) -> CheckpointError:
    """What is said of a file that holds no tensors."""
    return CheckpointError(f"{file}: is no safetensors file, or is damaged: {error}")


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over all files of the folder but the texts."""
    names = sorted(str(file.relative_to(folder)) for file in _files(folder) if file.is_file())
    names = [name for name in names if name not in (*TEXTS, SUMS)]
    lines = (f"{found}  {name}\n" for name, found in _sums(folder, names).items())
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


@contextlib.contextmanager
def sums_checked(folder: Path) -> Iterator[None]:
    """`check_sums` while the block reads the files, on another core; what it finds goes before the block's error."""
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(check_sums, folder)
        try:
            yield
        except Exception:
            if (error := found.exception()) is not None:
                raise error from None
            raise
        found.result()


def check_sums(folder: Path) -> None:
    """Raises `CheckpointError` that names the files which are missing, or are not what was written."""
    if not (folder / SUMS).is_file():
        return
    written = _read_sums(folder / SUMS)
    for name in written:
        if not (folder / name).is_file():
            raise missing(folder / name)
    found = _sums(folder, list(written))
    if changed := [str(folder / name) for name in written if found[name] != written[name]]:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise CheckpointError(
            f"{', '.join(changed[:3])}{more}: not what was written (by {SUMS}); copy the model again, or, if it was "
            f"changed on purpose, delete {SUMS}"
        )


def _read_sums(file: Path) -> dict[str, str]:
    try:
        lines = [_LINE.fullmatch(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    found = {line[2]: line[1] for line in lines if line}
    outside = [name for name in found if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if len(found) != len(lines) or outside:
        raise CheckpointError(f"{file}: is damaged, or names files outside the folder; copy the model again")
    return found


def _sums(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return dict(zip(names, pool.map(lambda name: _sum(folder / name), names), strict=True))


def _sum(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None


def _files(folder: Path) -> Iterator[Path]:
    """All entries but the folders themselves and what is hidden, such as a checkout's .git; no link is followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in (*links, *files) if not name.startswith("."))


def _root(folder: Path) -> Path:
    """What a file may not lead out of: the folder, or the cache that a folder of the hub is a view of."""
    folder = Path(os.path.realpath(folder))
    return folder.parents[1] if folder.parent.name == "snapshots" else folder


def _check_size(file: Path) -> None:
    size, most, what = file.stat().st_size, _MOST_BYTES.get(file.name, _MOST_ELSE), "it"
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        if header > size:
            raise damaged(file, "it says that its header is longer than itself")
        size, most, what = header, _MOST_HEADER, "its header"
    if size > most:
        raise CheckpointError(f"{file}: {what} takes {size} bytes, more than the {most} that a model needs")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
