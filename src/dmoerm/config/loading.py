"""Read settings from YAML and `--set a.b=value`, and write them to YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, did_you_mean, first_fault, shorten
from ..taxonomy import UniqueKeyLoader, read_yaml
from .settings import Config

S = TypeVar("S", bound=BaseModel)


def groups_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of settings among the types of an annotation: several if a step has several types."""
    parts = (annotation, *get_args(annotation))
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in parts]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def tag_of(kind: type[BaseModel]) -> tuple[str, str]:
    """Return name and value of the setting that tells a step's types apart."""
    name = next(name for name in ("fit", "kind") if name in kind.model_fields)
    return name, kind.model_fields[name].default


_STEP_TYPES = {
    name: (tag_of(groups[0])[0], {tag_of(group)[1]: group for group in groups})
    for name, field in Config.model_fields.items()
    if len(groups := groups_of(field.annotation)) > 1
}
"""Step → the name of the setting that tells its types apart, and its value → type."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or the shipped config of that name, and apply `a.b=value` overrides.

    If the file names another one in `extends`, settings that it lacks are taken from there.

    Raises:
        ConfigError: the file does not exist or is not valid YAML, a setting is unknown or has no effect, or a value is
            out of range.
    """
    settings: dict[str, Any] = _read_yaml(_locate(path)) if path else {}
    _apply(settings, [(*parse_override(each, f"--set {each}"), f"--set {each}") for each in overrides])
    file = _locate(path) if path else Path("--set")
    return validated(Config, _extended(settings, Path(path or ".").parent, (file,)), str(path or "--set"))


def changed(config: Config, settings: Mapping[str, Any], source: str = "settings") -> Config:
    """Return a copy with other values of some settings, named `a.b`. Raises `ConfigError` as `load_config` does."""
    whole = config.model_dump(mode="json")
    _apply(whole, [(name, value, name) for name, value in settings.items()])
    return validated(Config, whole, source)


def dump_config(config: Config) -> str:
    """Return the resolved settings as YAML that `load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one mapping from names with dots to values."""
    names: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and value
        names |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return names


def shipped_configs() -> dict[str, Path]:
    """Return name → file of the configs that ship with the package."""
    return {file.stem: file for file in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))}


def _locate(path: str | Path) -> Path:
    """Return the file, or the shipped config of that name if there is no such file."""
    return Path(path) if Path(path).is_file() else shipped_configs().get(str(path), Path(path))


def _extended(settings: dict[str, Any], folder: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    """Return the settings merged over those that they extend; `files` are those read so far, the settings' own last."""
    base = settings.pop("extends", None)
    if base is None:
        return settings
    neighbor = folder / str(base)
    path = neighbor if neighbor.is_file() else _locate(str(base))
    if path.resolve() in [file.resolve() for file in files]:
        circle = " → ".join(map(str, (*files, path)))
        raise ConfigError(f"{files[-1]}: extends: files extend each other in a circle ({circle}); remove one extends")
    return _merged(_extended(_read_yaml(path), path.parent, (*files, path)), settings)


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """Return settings over others; a step whose type changes keeps what its new type has too."""
    nested = {
        k: _merged(_of_type(k, base[k], v), v)
        for k, v in top.items()
        if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return base | top | nested


def _of_type(step: str, settings: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a step that it has after a change, which may name another type."""
    tag, types = _STEP_TYPES.get(step, ("", {}))
    kind = types.get(change.get(tag, ""))
    if kind is None or change[tag] == settings.get(tag, tag_of(type(getattr(Config(), step)))[1]):
        return settings
    return {name: value for name, value in settings.items() if name in kind.model_fields}


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix in (".jsonl", ".csv", ".tsv", ".parquet"):
        hint = f"propose a config for it with `dmoerm init {path}`, or name it in data.files"
        raise ConfigError(f"{path}: is a data file, and not a config; {hint}")
    try:
        settings = read_yaml(path, ConfigError)
    except FileNotFoundError:
        known = list(shipped_configs())
        hints = [did_you_mean(str(path), known), f"give a YAML file or one of the shipped configs {', '.join(known)}"]
        raise ConfigError(f"{path}: no such file; {' '.join(filter(None, hints))}") from None
    if not isinstance(settings or {}, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (got {shorten(settings)})")
    return settings or {}


def validated(kind: type[S], settings: dict[str, Any], source: str) -> S:
    """Return the settings as a model of this kind. Raises a `ConfigError` that names the setting and the fault."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        fault, location = first_fault(error), error.errors()[0]["loc"]
    field, value, message = _located(kind, location)[0], fault.value, fault.message
    if fault.kind == "extra_forbidden":
        message = _unknown(kind, location)
    elif fault.kind == "union_tag_invalid":
        tag, types = _STEP_TYPES[field]
        field, value = f"{field}.{tag}", settings[field].get(tag)
        message = f"must be {' or '.join(map(repr, types))}"
    raise ConfigError(f"{source}: {field}: {message} (got {shorten(value)})")


def _located(kind: type[BaseModel], location: Sequence[Any]) -> tuple[str, type[BaseModel] | None]:
    """Return the path of the setting at a location, which may also name a type of its group, and that group."""
    names: list[str] = []
    section: type[BaseModel] | None = kind
    types: Mapping[str, type[BaseModel]] = {}
    for part in map(str, location):
        if part in types:
            section, types = types[part], {}
            continue
        names.append(part)
        field = section.model_fields.get(part) if section else None
        groups = groups_of(field.annotation) if field else []
        section = groups[0] if len(groups) == 1 else None
        types = {tag_of(group)[1]: group for group in groups} if len(groups) > 1 else {}
    return ".".join(names) or "config", section


def _unknown(kind: type[BaseModel], location: Sequence[Any]) -> str:
    """Return the message for a setting that does not exist, with the one that is spelled most alike."""
    *parents, name = map(str, location)
    path, section = _located(kind, parents) if parents else ("", kind)
    tag, types = _STEP_TYPES.get(path, ("", {}))
    if others := [value for value, other in types.items() if name in other.model_fields]:
        return f"needs {path}.{tag}: {others[0]}"
    hint = did_you_mean(name, section.model_fields, f"{path}." if path else "") if section else ""
    return "; ".join(filter(None, ["unknown setting", hint]))


def _apply(settings: dict[str, Any], changes: Sequence[tuple[str, Any, str]]) -> None:
    """Set `a.b` to a value for each (name, value, source); steps that get another type first."""
    for name, value, _ in changes:
        step, _, tag = name.partition(".")
        if tag and isinstance(settings.get(step), dict) and _STEP_TYPES.get(step, ("",))[0] == tag:
            settings[step] = _of_type(step, settings[step], {tag: value})
    for name, value, source in changes:
        *parents, last = name.split(".")
        section = settings
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{source}: {parent} is not a group of settings")
        section[last] = value


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set `a.b=value`, with the value in YAML, in nested settings. Raises `ConfigError` if the override is invalid."""
    source = f"--set {override}"
    _apply(settings, [(*parse_override(override, source), source)])


def parse_override(override: str, source: str) -> tuple[str, Any]:
    """Return name and value of `a.b=value`, with the value in YAML. Raises `ConfigError`, which names the source."""
    name, separator, value = override.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"{source}: write it as a.b=value")
    try:
        return name.strip(), yaml.load(value, Loader=UniqueKeyLoader)
    except yaml.YAMLError:
        raise ConfigError(f"{source}: {value!r} is not valid YAML") from None
