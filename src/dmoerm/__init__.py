"""dmoerm: double-layer mixture-of-experts reward models (DMoERM, arXiv 2403.01197).

    import dmoerm
    rm = dmoerm.DMoERM.from_pretrained("runs/demo/model")
    rm.score("How are you?", ["Fine, and you?", "No."])

Everything is imported at its first use, so that the command line and the server's client start quickly and an interrupt
finds the command line ready for it. `dmoerm.model` registers itself in transformers' auto mappings when it is imported;
a hook imports it as soon as the module with these mappings is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import BackboneError, CheckpointError, ConfigError, DataError, DmoermError, ServerError, TaxonomyError
    from .integrations.client import AsyncClient, Client
    from .model import DMoERM, DMoERMConfig
    from .schema import Group, Message, Query
    from .scores import Score

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "BackboneError",
    "CheckpointError",
    "Client",
    "ConfigError",
    "DMoERM",
    "DMoERMConfig",
    "DataError",
    "DmoermError",
    "Group",
    "Message",
    "Query",
    "Score",
    "ServerError",
    "TaxonomyError",
]

_MODULES = {
    "integrations.client": {"AsyncClient", "Client"},
    "errors": {name for name in __all__ if name.endswith("Error")},
    "model": {"DMoERM", "DMoERMConfig"},
    "schema": {"Group", "Message", "Query"},
    "scores": {"Score"},
}

_AUTO_MODULE = "transformers.models.auto.modeling_auto"


class _Registration:
    """A finder that imports `dmoerm.model` after transformers' auto mappings."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == _AUTO_MODULE else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if "dmoerm.model" not in sys.modules:  # otherwise its import is running and loads transformers
                importlib.import_module("dmoerm.model")

        spec.loader.exec_module = execute_and_register
        return spec


if _AUTO_MODULE in sys.modules:
    importlib.import_module("dmoerm.model")
else:
    sys.meta_path.insert(0, _Registration)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name == module or name in names:
            imported = importlib.import_module(f".{module}", __name__)
            return imported if name == module else getattr(imported, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
