"""Results files in which every name and text contains markup."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from dmoerm.evaluation.results import Document

R = TypeVar("R", bound=Document)
HOSTILE = """<script>alert("$x$")</script> & ' {{ 1/0 }} {% raw %} a name that is too long for a plot"""
_KEYS = {"dmoerm", "general", "mean", "mean_human", "all", "human"}
"""Keys with a meaning, beside the names of fields."""
_SETTINGS = {"algorithm", "steps", "prompts_per_step", "generations", "parameters"}


def _hostile(value: Any, fields: set[str]) -> Any:
    """Append markup to all strings of a JSON value and to all keys that are names of methods, tasks and the like."""
    if isinstance(value, list):
        return [_hostile(item, fields) for item in value]
    if isinstance(value, dict):
        return {_key(key, fields): item if key == "kind" else _hostile(item, fields) for key, item in value.items()}
    return f"{value} {HOSTILE}" if isinstance(value, str) else value


def _key(key: str, fields: set[str]) -> str:
    if key.startswith("dmoerm - "):
        return f"dmoerm - {_key(key.removeprefix('dmoerm - '), fields)}"
    return key if key in fields | _KEYS | _SETTINGS else f"{key} {HOSTILE}"


def _field_names(schema: Any) -> set[str]:
    """Return the names of all fields in a JSON schema."""
    if isinstance(schema, list):
        return set().union(*map(_field_names, schema))
    if not isinstance(schema, dict):
        return set()
    own = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    return own.union(*map(_field_names, schema.values()))


def with_markup(results: R) -> R:
    """Return the same results with markup in every string, except in the names that have a meaning."""
    document = json.loads(results.to_json())
    return type(results).model_validate(_hostile(document, _field_names(type(results).model_json_schema())))
