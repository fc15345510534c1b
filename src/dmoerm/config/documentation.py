"""The documentation of settings: their names, defaults, values and meanings, from the settings' docstrings and types.

Texts are Markdown: values that can be typed are between backticks.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .settings import Config

_BOUNDS = {"Ge": "≥ {0.ge}", "Gt": "> {0.gt}", "Le": "≤ {0.le}", "Lt": "< {0.lt}"}  # annotated_types' classes


class DocumentedSetting(NamedTuple):
    """One setting; `name` is the full one, `a.b`."""

    name: str
    default: str
    values: str
    meaning: str


class SettingsGroup(NamedTuple):
    """The settings of one group, without those of its subgroups; the name of the top level is empty."""

    name: str
    meaning: str
    settings: tuple[DocumentedSetting, ...]


def setting_groups(
    kind: type[BaseModel] = Config, name: str = "", meaning: str | None = None
) -> Iterator[SettingsGroup]:
    """Yield a group of settings and its subgroups.

    Args:
        kind: the model of the group.
        name: the group's full name.
        meaning: what the group is; None: its docstring.
    """
    fields, prefix = kind.model_fields, f"{name}." if name else ""
    groups = {field: group for field, info in fields.items() if (group := group_of(info.annotation))}
    settings = [
        DocumentedSetting(
            f"{prefix}{field}",
            _text(info.get_default(call_default_factory=True)),
            _values(info),
            _line(info.description),
        )
        for field, info in fields.items()
        if field not in groups
    ]
    yield SettingsGroup(name, _line(meaning or kind.__doc__), tuple(settings))
    for field, group in groups.items():
        yield from setting_groups(group, f"{prefix}{field}", fields[field].description)


def group_of(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings among the types of an annotation such as `LoraConfig | None`, if there is one."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _values(field: FieldInfo) -> str:
    bounds = [_bound(item) for item in field.metadata]
    return " ".join([_type(field.annotation), *filter(None, bounds)])


def _bound(item: Any) -> str:
    return _BOUNDS.get(type(item).__name__, "").format(item)


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
    name: str = kind.__name__
    return {"str": "text", "int": "integer", "float": "number", "bool": "true, false"}.get(name, name)


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
    return " ".join((text or "").split())
