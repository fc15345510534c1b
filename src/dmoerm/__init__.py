"""dmoerm: double-layer mixture-of-experts reward models (DMoERM, arXiv 2403.01197).

    import dmoerm
    rm = dmoerm.DMoERM.from_pretrained("runs/demo/model")
    rm.score("How are you?", ["Fine, and you?", "No."])

Torch is imported at the first use of a model, so that the command line and the server's client start quickly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _registration
from .errors import BackboneError, CheckpointError, ConfigError, DataError, DmoermError, ServerError, TaxonomyError
from .schema import Group, Message, Query
from .scores import Score

if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .model import DMoERM, DMoERMConfig

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

_registration.when_transformers_loads()


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"DMoERM", "DMoERMConfig"}:
        from . import model

        return getattr(model, name)
    if name in {"AsyncClient", "Client"}:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
