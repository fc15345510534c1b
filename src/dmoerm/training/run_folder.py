"""A run's folder belongs to one set of settings and data, and to one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import yaml

from ..config import Config, dump_config
from ..config.reading import flat
from ..data.splits import Splits
from ..errors import ConfigError
from ..io.locking import exclusive_folder
from ..io.paths import write_file
from ..io.storage import Mirror
from ..model.configuration import FORMAT_VERSION
from .processes import is_main

_UNSET = "unset"
_FORMAT = "format_version"  # the file that names the format of the steps' results, that of checkpoints


def locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the folder for this launch; rank 0 holds the lock for all processes."""
    return exclusive_folder(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext()


def claim(config: Config, data: Splits) -> Path:
    """Write the resolved settings and a digest of the data to the run's folder, and return the folder.

    A setting that the folder's version of the package did not have counts as its default.

    Raises `ConfigError` if the folder has a run with other settings or data, or of another version of the package.
    """
    folder = Path(config.output)
    mirror = Mirror(config.storage, folder)
    mirror.fetch(folder / _FORMAT)
    version = (folder / _FORMAT).read_text(encoding="utf-8").strip() if (folder / _FORMAT).exists() else "1"
    if (folder / "steps").exists() and version != str(FORMAT_VERSION):
        raise ConfigError(f"{folder}: holds a run of another version; set another `output` or delete that folder")
    if is_main():
        write_file(folder / _FORMAT, f"{FORMAT_VERSION}\n")
        mirror.keep(folder / _FORMAT)
    for name, text in (("config.yaml", dump_config(config)), ("data.sha256", data_digest(data))):
        written = folder / name
        mirror.fetch(written)
        before = written.read_text(encoding="utf-8") if written.exists() else text
        differences = _differences(before, text) if before != text and name == "config.yaml" else ""
        if differences or (before != text and name != "config.yaml"):
            what = f"settings ({differences})" if differences else "data"
            raise ConfigError(f"{folder}: holds a run with other {what}; set another `output` or delete that folder")
        if is_main():
            write_file(written, text)
            mirror.keep(written)
    return folder


def data_digest(data: Splits) -> str:
    """Return the SHA-256 of the taxonomy and the training part."""
    digest = hashlib.sha256(data.taxonomy.to_yaml().encode())
    for group in data.train:
        digest.update(group.model_dump_json().encode())
    return digest.hexdigest()


def _differences(before: str, now: str) -> str:
    """Name the settings in which two dumped configs differ, with both values; those unset before count as default."""
    try:
        old, new = (flat(yaml.safe_load(text)) for text in (before, now))
    except (yaml.YAMLError, AttributeError):
        return "its config.yaml is not valid YAML"
    defaults = flat(Config().model_dump(mode="json"))
    old = {name: defaults[name] for name in new if name in defaults} | old
    names = [name for name in dict.fromkeys([*new, *old]) if old.get(name, _UNSET) != new.get(name, _UNSET)]
    return "; ".join(f"{name} was {old.get(name, _UNSET)}, now {new.get(name, _UNSET)}" for name in names)
