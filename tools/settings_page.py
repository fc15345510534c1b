"""Write `docs/settings.md` from the settings' docstrings, types and defaults: `python tools/settings_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dmoerm.config import Config

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

<!-- Written by `python tools/settings_page.py` from src/dmoerm/config/settings.py; do not edit. -->

A config is a YAML file of these settings; `extends: NAME` starts from a shipped config, and `--set a.b=value` overrides
single settings on the command line. A setting that does not exist, or a value outside its bounds, is an error.
"""
BOUNDS = {
    annotated_types.Ge: "≥ {0.ge}",
    annotated_types.Gt: "> {0.gt}",
    annotated_types.Le: "≤ {0.le}",
    annotated_types.Lt: "< {0.lt}",
}


def settings_page() -> str:
    """The page: one table for each group of settings."""
    return "\n".join([HEAD, *_tables("", Config)])


def _tables(prefix: str, model: type[BaseModel], description: str | None = None) -> Iterator[str]:
    fields = model.model_fields
    groups = {name: kind for name, field in fields.items() if (kind := _group(field.annotation))}
    yield f"## {prefix.rstrip('.') or 'Top level'}\n"
    if prefix:
        yield f"{_line(description or model.__doc__)}\n"
    yield "| setting | default | values | meaning |\n|---|---|---|---|"
    for name, field in fields.items():
        if name not in groups:
            default = _text(field.get_default(call_default_factory=True))
            yield f"| `{prefix}{name}` | {default} | {_values(field)} | {_line(field.description)} |"
    yield ""
    for name, kind in groups.items():
        yield from _tables(f"{prefix}{name}.", kind, fields[name].description)


def _group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _values(field: FieldInfo) -> str:
    bounds = [_bound(item) for item in field.metadata]
    return " ".join([_type(field.annotation), *filter(None, bounds)])


def _bound(item: Any) -> str:
    return BOUNDS.get(type(item), "").format(item)


def _type(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join(filter(None, [_type(arguments[0]), *(_metadata(item) for item in arguments[1:])]))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if part is NoneType else _type(part) for part in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}.get(kind.__name__, kind.__name__)


def _metadata(item: Any) -> str:
    return " ".join(filter(None, map(_bound, item.metadata))) if isinstance(item, FieldInfo) else _bound(item)


def _text(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(map(str, default)) + "]"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
