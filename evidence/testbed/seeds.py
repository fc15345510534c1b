"""Named random streams: the same names give the same numbers on every machine and in every process."""

from __future__ import annotations

import hashlib
from random import Random


def stream(*names: object) -> Random:
    """Return the random stream of these names. The seed is a digest of their texts, not Python's salted `hash`."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))
