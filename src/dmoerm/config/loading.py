"""Read settings from YAML and `--set a.b=value`, and write them to YAML."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import ConfigError, did_you_mean, plain_fault, shorten
from ..taxonomy import UniqueKeyLoader
from .checks import epochs_without_effect
from .settings import Config

S = TypeVar("S", bound=BaseModel)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or the shipped config of that name, and apply `a.b=value` overrides.

    If the file names another one in `extends`, settings that it lacks are taken from there.

    Raises:
        ConfigError: the file does not exist or is not valid YAML, a setting is unknown or has no effect, or a value is
            out of range.
    """
    settings: dict[str, Any] = _read_yaml(_locate(path)) if path else {}
    from_file, from_overrides = copy.deepcopy(settings), dict[str, Any]()
    for override in overrides:
        apply_override(settings, override)
        apply_override(from_overrides, override)
    source = str(path or "--set")
    file = _locate(path) if path else Path("--set")
    config = validated(Config, _extended(settings, Path(path or ".").parent, (file,)), source)
    given = {source: from_file, "--set": from_overrides}
    for name, part in given.items():
        if message := next(epochs_without_effect(part, config), None):
            raise ConfigError(f"{name}: {message}")
    return config


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a copy with other values of some settings, named `a.b`. Raises `ConfigError` as `load_config` does."""
    whole = config.model_dump(mode="json")
    for name, value in settings.items():
        _set(whole, name, value, name)
    return validated(Config, whole, "settings")


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
    nested = {k: _merged(base[k], v) for k, v in top.items() if isinstance(v, dict) and isinstance(base.get(k), dict)}
    return base | top | nested


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix in (".jsonl", ".csv", ".tsv", ".parquet"):
        hint = f"propose a config for it with `dmoerm init {path}`, or name it in data.files"
        raise ConfigError(f"{path}: is a data file, and not a config; {hint}")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        known = list(shipped_configs())
        hints = [did_you_mean(str(path), known), f"give a YAML file or one of the shipped configs {', '.join(known)}"]
        raise ConfigError(f"{path}: no such file; {' '.join(filter(None, hints))}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: cannot be read as YAML: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings or {}, dict):
        raise ConfigError(f"{path}: must be a mapping of settings (got {shorten(settings)})")
    return settings or {}


def validated(kind: type[S], settings: dict[str, Any], source: str) -> S:
    """Return the settings as a model of this kind. Raises a `ConfigError` that names the setting and the fault."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        detail = error.errors()[0]
        field = _setting(kind, detail["loc"])
        alternatives = [plain_fault(each) for each in error.errors() if _setting(kind, each["loc"]) == field]
        message = " or ".join(dict.fromkeys(alternatives)).replace(" or must be ", " or ")
        message = _unknown(kind, detail["loc"]) if detail["type"] == "extra_forbidden" else message
        raise ConfigError(f"{source}: {field}: {message} (got {shorten(detail['input'])})") from None


def group_of(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings among the types of an annotation such as `LoraConfig | None`, if there is one."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _setting(kind: type[BaseModel], location: Sequence[Any]) -> str:
    """Return the path of the setting at a location, which may also name one of the alternatives of its type."""
    names: list[str] = []
    section: type[BaseModel] | None = kind
    alternative = False
    for part in location:
        if not alternative:
            names.append(str(part))
        field = section.model_fields.get(str(part)) if section else None
        section = group_of(field.annotation) if field else None
        kinds = set(get_args(field.annotation)) - {type(None)} if field and not section else set()
        alternative = len(kinds) > 1 and get_origin(field and field.annotation) in (Union, UnionType)
    return ".".join(names) or "config"


def _unknown(kind: type[BaseModel], location: Sequence[Any]) -> str:
    """Return the message for a setting that does not exist, with the one that is spelled most alike."""
    *parents, name = map(str, location)
    section: Any = kind
    for parent in parents:
        field = section.model_fields.get(parent) if section else None
        section = group_of(field.annotation) if field else None
    hint = did_you_mean(name, section.model_fields, "".join(f"{parent}." for parent in parents)) if section else ""
    return "; ".join(filter(None, ["unknown setting", hint]))


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Set `a.b=value`, with the value in YAML, in nested settings. Raises `ConfigError` if the override is invalid."""
    source = f"--set {override}"
    name, value = parse_override(override, source)
    _set(settings, name, value, source)


def parse_override(override: str, source: str) -> tuple[str, Any]:
    """Return name and value of `a.b=value`, with the value in YAML. Raises `ConfigError`, which names the source."""
    name, separator, value = override.partition("=")
    if not separator or not name.strip():
        raise ConfigError(f"{source}: write it as a.b=value")
    try:
        return name.strip(), yaml.load(value, Loader=UniqueKeyLoader)
    except yaml.YAMLError:
        raise ConfigError(f"{source}: {value!r} is not valid YAML") from None


def _set(settings: dict[str, Any], name: str, value: Any, source: str) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"{source}: {parent} is not a group of settings")
    settings[last] = value
