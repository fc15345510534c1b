"""Read and write results files; documents of earlier schemas are converted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import DataError, plain_fault
from ..io.paths import write_file
from .results import Results

P = TypeVar("P", bound=BaseModel)


def write_results(path: str | Path, results: Results) -> None:
    """Write results.json, completely or not at all. Raises `CheckpointError` if it cannot be written."""
    write_file(Path(path), results.to_json())


def read_results(path: str | Path) -> Results:
    """Read the results.json of a run. Raise `DataError` if the file is invalid; see `read_part`."""
    return read_part(path, Results, "use the results.json of `dmoerm train` or the file of `dmoerm eval --json`")


def read_part(path: str | Path, model: type[P], hint: str) -> P:
    """Read a results file of this model, or a part of one; see `read_model`."""
    return read_model(path, model, hint, "schemas 1 and 2", upgrade)


def read_model(
    path: str | Path, model: type[P], hint: str, schemas: str, convert: Callable[[Any], Any] = lambda document: document
) -> P:
    """Read a JSON file of this model.

    Args:
        hint: which file to use instead of an invalid one.
        schemas: what this version reads.
        convert: converts documents of earlier schemas.

    Raises:
        DataError: the file does not exist, is not JSON, has another schema, or does not match the model.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", file=path, hint=hint) from None
    try:
        return model.model_validate(convert(json.loads(text)))
    except json.JSONDecodeError as error:
        raise DataError(f"is not valid JSON: {error}", file=path, hint=hint) from None
    except ValidationError as error:
        detail = error.errors()[0]
    field = ".".join(str(part) for part in detail["loc"])
    if field == "schema":
        hint = f"this version reads {schemas}; install the version of dmoerm that wrote the file"
    value = None if detail["type"] == "missing" else detail["input"]
    raise DataError(plain_fault(detail), file=path, field=field or None, value=value, hint=hint)


def upgrade(document: Any) -> Any:
    """Convert a results document of schema 1 or of an earlier form of schema 2; return others unchanged.

    An earlier form names the shares of reversed pairs of a condition in place of its settings.
    Schema 1 calls accuracy `consistency` and does not contain the overlap with training prompts. There is no overlap
    after `train`, which measures held-out prompts; after other commands it is unknown.
    """
    if not isinstance(document, dict):
        return document
    upgraded = _renamed(document) if document.get("schema") == 1 else dict(document)
    if isinstance(conditions := document.get("conditions"), dict):
        upgraded["conditions"] = {name: _condition(condition) for name, condition in conditions.items()}
    if document.get("schema") != 1:
        return upgraded
    if "router" in document and "kind" not in document:
        known = document.get("command") in ("train", "demo")
        upgraded["overlap"] = {"known": known, "groups": 0, "prompts": 0, "included": not known}
    return upgraded | {"schema": 2}


def _condition(fields: Any) -> Any:
    """Convert a condition of a comparison; return those of other results unchanged."""
    if not isinstance(fields, dict) or "flip_scores" not in fields:
        return fields
    flips = {f"data.{name}": fields[name] for name in ("flip_scores", "flip_capabilities")}
    others = {name: value for name, value in _renamed(fields).items() if f"data.{name}" not in flips}
    return {"settings": flips, **others}


def _renamed(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {"accuracy" if name == "consistency" else name: value for name, value in fields.items()}
