"""The client of a dmoerm reward server, without torch and transformers.

    from dmoerm_client import Client
    with Client("http://127.0.0.1:8000") as client:
        scores = client.score("How are you?", ["Fine, and you?", "No."])

`dmoerm_client.integrations.trl` and `dmoerm_client.integrations.verl` are the reward functions of dmoerm, for servers.
"""

from .errors import ConfigError, DataError, DmoermError, ServerError
from .integrations.client import AsyncClient, Client
from .schema import Message, Query
from .scores import Score

__all__ = [
    "AsyncClient",
    "Client",
    "ConfigError",
    "DataError",
    "DmoermError",
    "Message",
    "Query",
    "Score",
    "ServerError",
]
