"""The registry of methods, which comparisons, best-of-n, policy optimization, costs, reports and commands read.

A new method is one file that calls `register`: a module that is imported before the comparison, or an entry point of
the group `dmoerm.methods`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points

from ...errors import ConfigError
from .method import Method

ENTRY_POINTS = "dmoerm.methods"
EXTERNAL_COLOR = "#7b5ea7"
ABLATION_COLOR = "#8a94a0"

_methods: dict[str, Method] = {}


def register(*methods: Method) -> None:
    """Add methods to the registry. Raise `ConfigError` if another method has the same name."""
    for method in methods:
        if _methods.get(method.name, method) != method:
            raise ConfigError(f"{method.name!r} is a method of this comparison; give the other one another name")
        _methods[method.name] = method


def registered() -> dict[str, Method]:
    """Return all methods by name, with `dmoerm` last among those that are trained by default."""
    _load()
    last = {"run": 0, "baseline": 0}
    return dict(sorted(_methods.items(), key=lambda item: (last.get(item[1].family, 2), item[0] == "dmoerm")))


def default_methods() -> list[Method]:
    """Return the methods that every comparison trains."""
    return [method for method in registered().values() if method.family in ("run", "baseline")]


def choose_methods(names: Sequence[str] = (), ablations: Sequence[str] = ()) -> list[Method]:
    """Return methods in the order of `registered`: those named (none: the default ones), the ablations and `dmoerm`.

    Args:
        names: names of default methods or ablations.
        ablations: names of ablations.

    Raises:
        ConfigError: a name is unknown.
    """
    known, variants = registered(), ablation_methods()
    for option, given, allowed in (("method", names, known), ("ablation", ablations, variants)):
        if unknown := [name for name in given if name not in allowed]:
            raise ConfigError(f"unknown {option} {unknown[0]!r}; use some of {', '.join(allowed)}")
    chosen = {*(names or (method.name for method in default_methods())), *ablations, "dmoerm"}
    return [method for name, method in known.items() if name in chosen]


def ablation_methods() -> dict[str, Method]:
    """Return the ablations by name."""
    return {name: method for name, method in registered().items() if method.family == "ablation"}


def color_of(name: str) -> str:
    """Return a method's color; a method that is not registered is external."""
    method = registered().get(name)
    return method.color if method else EXTERNAL_COLOR


def family_of(name: str) -> str:
    """Return a method's family; a method that is not registered is external."""
    method = registered().get(name)
    return method.family if method else "external"


@functools.cache
def _load() -> None:
    for module in ("run_models", "all_labels"):
        importlib.import_module(f".{module}", __package__)
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()
