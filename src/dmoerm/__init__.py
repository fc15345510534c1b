"""dmoerm: double-layer mixture-of-experts reward models (DMoERM, arXiv 2403.01197).

    import dmoerm
    rm = dmoerm.DMoERM.from_pretrained("runs/demo/model")
    rm.score("How are you?", ["Fine, and you?", "No."])

Everything is imported at its first use, so that the command line and the server's client start quickly and an interrupt
finds the command line ready for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _registration

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

_registration.when_transformers_loads()


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name == module or name in names:
            imported = importlib.import_module(f".{module}", __name__)
            return imported if name == module else getattr(imported, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
