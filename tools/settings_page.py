"""Write `docs/settings.md` from the settings' docstrings, types and defaults: `python tools/settings_page.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dmoerm.config import Config
from dmoerm.config.loading import groups_of, tag_of

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

<!-- Written by `python tools/settings_page.py` from src/dmoerm/config/settings.py; do not edit. -->

A config is a YAML file of these settings; `extends: NAME` starts from a shipped config, and `--set a.b=value` overrides
single settings on the command line. A setting that does not exist, or a value outside its bounds, is an error.
"""
_BOUNDS = {"Ge": "≥ {0.ge}", "Gt": "> {0.gt}", "Le": "≤ {0.le}", "Lt": "< {0.lt}"}  # annotated_types' classes


class DocumentedSetting(NamedTuple):
    """One setting; `name` is the full one, `a.b`."""

    name: str
    default: str
    values: str
    meaning: str


class SettingsGroup(NamedTuple):
    """The settings of one group, without its subgroups; the name of the top level is empty."""

    name: str
    meaning: str
    settings: tuple[DocumentedSetting, ...]


def setting_groups(
    kinds: Sequence[type[BaseModel]] = (Config,), name: str = "", meaning: str | None = None
) -> Iterator[SettingsGroup]:
    """Yield a group of settings and its subgroups.

    Args:
        kinds: the types of the group: of a step, the exact and the trained one.
        name: the group's full name.
        meaning: what the group is; the default is the docstring of the last type.
    """
    prefix = f"{name}." if name else ""
    fields: dict[str, list[tuple[type[BaseModel], FieldInfo]]] = {}
    for kind in kinds:
        for field, info in kind.model_fields.items():
            fields.setdefault(field, []).append((kind, info))
    groups = {field: forms for field, ((_, info), *_) in fields.items() if (forms := groups_of(info.annotation))}
    settings = [_setting(prefix, field, known, kinds) for field, known in fields.items() if field not in groups]
    yield SettingsGroup(name, _line(meaning or kinds[-1].__doc__), tuple(settings))
    for field, forms in groups.items():
        yield from setting_groups(forms, f"{prefix}{field}", fields[field][0][1].description)


def _setting(
    prefix: str, field: str, known: Sequence[tuple[type[BaseModel], FieldInfo]], kinds: Sequence[type[BaseModel]]
) -> DocumentedSetting:
    """Document a field of some of the types; a field of one of several types says so."""
    infos = [info for _, info in known]
    texts = [_line(info.description) for info in infos if info.description]
    values = dict.fromkeys(map(_values, infos))
    if len(known) < len(kinds):
        name, tag = tag_of(known[0][0])
        texts = [f"With `{name}: {tag}`: {text}" for text in texts]
    default = _text(infos[-1].get_default(call_default_factory=True))
    return DocumentedSetting(f"{prefix}{field}", default, ", ".join(values), next(iter(texts), ""))


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
        return ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in arguments)
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


def settings_page() -> str:
    """The page: one table for each group of settings."""
    return "\n".join([HEAD, *(line for group in setting_groups() for line in _table(group))])


def _table(group: SettingsGroup) -> Iterator[str]:
    yield f"## {group.name or 'Top level'}\n"
    if group.name:
        yield f"{_escaped(group.meaning)}\n"
    yield "| setting | default | values | meaning |\n|---|---|---|---|"
    for name, default, values, meaning in group.settings:
        yield f"| `{name}` | {default} | {values} | {_escaped(meaning)} |"
    yield ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
