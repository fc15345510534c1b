"""Fuzz targets: the functions that read untrusted bytes and texts. They may raise only dmoerm's own errors.

Hypothesis generates nearly valid inputs (`test_targets.py`); atheris searches for inputs that reach new code
(`make fuzz`). schemathesis generates the server's requests (tests/serving/test_openapi.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from dmoerm.chat.rendered import conversation, response_text, split_response
from dmoerm.config import Config, apply_override, validated
from dmoerm.data.readers import read_groups, read_queries
from dmoerm.errors import CheckpointError, ConfigError, DataError, TaxonomyError
from dmoerm.labeling.prompt import Token, read_verdicts
from dmoerm.labels import read_labels
from dmoerm.model.integrity import check_sums, read_json
from dmoerm.schema import stripped
from dmoerm.taxonomy import load_taxonomy

_TEMPORARY = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_FOLDER = Path(_TEMPORARY.name)
_CAPABILITIES = ("empathy", "logic")


def rows(data: bytes, suffix: str = ".jsonl") -> None:
    """Preference data of any format: every row is a group, an error or a count; as a query, it is read or refused."""
    file = _written(data, f"rows{suffix}")
    with contextlib.suppress(DataError):
        reading = read_groups(file, on_error="collect")
        refused = len(reading.bad) + sum(n for reason, n in reading.skipped.items() if reason.startswith("row: "))
        assert len(reading.groups) + refused <= reading.rows
        assert reading.groups or refused
    bad: list[DataError] = []
    with contextlib.suppress(DataError):
        for query in read_queries(file, on_bad=bad.append):
            assert query.responses
            assert query.id


def array(data: bytes) -> None:
    """Rows as one JSON array."""
    rows(data, ".json")


def compressed(data: bytes) -> None:
    """Compressed rows."""
    rows(data, ".jsonl.gz")


def columns(data: bytes) -> None:
    """Parquet files, read as rows and as labels."""
    rows(data, ".parquet")
    with contextlib.suppress(DataError):
        read_labels(_FOLDER / "rows.parquet")


def verdict(data: bytes) -> None:
    """A judge's answer and its tokens: one verdict per capability, with probabilities between 0 and 1."""
    text = data.decode(errors="replace")
    numbers = [float(byte) - 128 for byte in data[:8]] or [0.0]
    chunks = [text[i : i + 3] for i in range(0, len(text), 3)]
    tokens = [Token(chunk, {chunk: numbers[i % len(numbers)], "B": -1.0}) for i, chunk in enumerate(chunks)]
    for capabilities in (_CAPABILITIES, _CAPABILITIES[:1]):
        verdicts = read_verdicts(text, capabilities, tokens)
        assert set(verdicts) == set(capabilities)
        assert all(verdict.p_first is None or 0 <= verdict.p_first <= 1 for verdict in verdicts.values())


def transcript(data: bytes) -> None:
    """A rendered conversation."""
    text = data.decode(errors="replace")
    assert stripped(stripped(text)) == stripped(text)
    conversation(text)
    with contextlib.suppress(DataError):
        prompt, response = split_response(text)
        assert prompt
        assert isinstance(response, str)
    with contextlib.suppress(DataError):
        response_text(text, text[: len(text) // 2])


def settings(data: bytes) -> None:
    """The text of a taxonomy and of a setting, and a checkpoint's config.json and checksums."""
    text = data.decode(errors="replace")
    with contextlib.suppress(TaxonomyError):
        load_taxonomy(str(_written(data, "taxonomy.yaml")))
    with contextlib.suppress(ConfigError):
        overrides: dict[str, object] = {}
        apply_override(overrides, text)
        validated(Config, overrides, "fuzz")
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
