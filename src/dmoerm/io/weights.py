"""A digest of a model's weights on disk, by which another model in the same folder is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path


def weights_digest(source: str) -> str:
    """Return a digest of the weights in a folder: the safetensors files in it and below it.

    It is empty for a URL or a hub name, which is trusted to stay the same.
    """
    if not Path(source).is_dir():
        return ""
    digest = hashlib.sha256()
    for file in sorted(Path(source).rglob("*.safetensors")):
        digest.update(file.relative_to(source).as_posix().encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
