"""The reward server: several protocols over one model.

app.py         the application: routes, errors, the page
guard.py       middleware: the API key, hosts, limits, log and metrics of every request, errors as answers
protocols/     what clients speak; a new file there is a new protocol
service.py     the model behind the protocols, loaded in the background
batcher.py     the queue, and the passes that requests of several clients share
monitoring.py  metrics, logs and request ids
settings.py    the settings
server.py      the process: uvicorn, its shutdown, several workers
page/          the page that a browser gets at /

A request reaches its scores in six hops:

1. `Guard.__call__`           checks key or host, reads the body within its limits, cancels when the client disconnects
2. the protocol's route       turns the body into queries, or into prompts and responses
3. `Service.score_texts`      groups prompts and responses into queries (`Service.score`: queries and weights)
4. `Batcher.score`            encodes, and queues the queries' parts
5. `Batcher.run`              takes parts from the queue until a pass is full, and runs it in a thread
6. `DMoERM.score_encoded`     scores

Forms on the way: request body → Query → QueuedPart (with its Encoded) → Score.
"""

from .app import create_app
from .server import serve
from .settings import ServingConfig

__all__ = ["ServingConfig", "create_app", "serve"]
