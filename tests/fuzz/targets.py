"""What reads bytes and texts of strangers: each may refuse them in its own words, and must not fail in any other way.

Hypothesis gives them rows that are nearly right (`test_targets.py`), atheris whatever reaches new code (`make fuzz`).
The server's bodies are schemathesis's: tests/serving/test_openapi.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dmoerm.chat.rendered import bare, conversation, response_text, split_response
from dmoerm.config import Config, apply_override, validated
from dmoerm.data.readers import read_groups, read_queries
from dmoerm.errors import CheckpointError, ConfigError, DataError, TaxonomyError
from dmoerm.labeling.verdict import Token, read_verdicts
from dmoerm.labels import read_labels
from dmoerm.model.integrity import check_sums, read_json
from dmoerm.taxonomy import load_taxonomy

_PLACE = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_FOLDER = Path(_PLACE.name)
_CAPABILITIES = ("empathy", "logic")


def rows(data: bytes, suffix: str = ".jsonl") -> None:
    """Preference data of any format: no row vanishes, and the same row is a query or refused."""
    file = _written(data, f"rows{suffix}")
    with contextlib.suppress(DataError):
        found = read_groups(file, on_error="collect")
        refused = len(found.bad) + sum(n for why, n in found.skipped.items() if why.startswith("row: "))
        assert len(found.groups) + refused <= found.rows
        assert found.groups or refused
    bad: list[DataError] = []
    with contextlib.suppress(DataError):
        for query in read_queries(file, on_bad=bad.append):
            assert query.responses
            assert query.id


def array(data: bytes) -> None:
    """The same as one JSON array."""
    rows(data, ".json")


def compressed(data: bytes) -> None:
    """The same, compressed."""
    rows(data, ".jsonl.gz")


def columns(data: bytes) -> None:
    """Parquet, as rows and as labels."""
    rows(data, ".parquet")
    with contextlib.suppress(DataError):
        read_labels(_FOLDER / "rows.parquet")


def verdict(data: bytes) -> None:
    """A judge's answer with what its tokens might be: one outcome a capability, and chances that are chances."""
    text = data.decode(errors="replace")
    numbers = [float(byte) - 128 for byte in data[:8]] or [0.0]
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    tokens = [Token(piece, {piece: numbers[i % len(numbers)], "B": -1.0}) for i, piece in enumerate(pieces)]
    for capabilities in (_CAPABILITIES, _CAPABILITIES[:1]):
        found = read_verdicts(text, capabilities, tokens)
        assert set(found) == set(capabilities)
        assert all(one.p_first is None or 0 <= one.p_first <= 1 for one in found.values())


def transcript(data: bytes) -> None:
    """A rendered conversation."""
    text = data.decode(errors="replace")
    bare(text)
    conversation(text)
    with contextlib.suppress(DataError):
        prompt, response = split_response(text)
        assert prompt
        assert isinstance(response, str)
    with contextlib.suppress(DataError):
        response_text(text, text[: len(text) // 2])


def settings(data: bytes) -> None:
    """A taxonomy's and a config's text, a model's config.json and its checksums."""
    text = data.decode(errors="replace")
    with contextlib.suppress(TaxonomyError):
        load_taxonomy(str(_written(data, "taxonomy.yaml")))
    with contextlib.suppress(ConfigError):
        whole: dict[str, object] = {}
        apply_override(whole, text)
        validated(Config, whole, "fuzz")
    with contextlib.suppress(CheckpointError):
        json.dumps(read_json(_written(data, "config.json")))
    with contextlib.suppress(CheckpointError):
        _written(data, "SHA256SUMS")
        check_sums(_FOLDER)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (rows, array, compressed, columns, verdict, transcript, settings)
}


def _written(data: bytes, name: str) -> Path:
    (_FOLDER / name).write_bytes(data)
    return _FOLDER / name
