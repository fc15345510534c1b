"""The reward server: several protocols over one model, or over several.

app.py         the application: routes, errors, the page
guard.py       middleware: the API key, hosts, limits, log and metrics of every request
protocols/     one file per protocol; a new file there is a new protocol
judging.py     judges' prompts: which are recognized, and the answers that their clients parse
service.py     the model behind the protocols, loaded in the background
model_pool.py  several models, of which a request names one
batcher.py     the queue and the passes that requests of several clients share
score_cache.py scores of responses that are sent again
engines.py     what runs the passes: the model in a thread, or copies of it in processes
waiting.py     what waits in the queue, and the measured rate
limits.py      the settings
request_id.py  the request's id, in the answer and in the log
tracing.py     OpenTelemetry traces of requests
server.py      the process: uvicorn, its logs, its shutdown
page/          the page that a browser gets at /

A request reaches its scores in at most eight hops:

1. `Guard.__call__`           checks key or host, reads the body within its limits
2. the protocol's route       turns the body into queries, or into prompts and responses
3. `Service.score_texts`      groups prompts and responses into queries (not for queries)
4. `Service.score`            checks the number of responses, cancels when the client disconnects
5. `Batcher.score`            encodes, and queues the queries' parts
6. `Batcher._run_passes`      takes parts from the queue until a pass is full
7. `Batcher._run_pass`        runs the pass in the engine's thread
8. `DMoERM.score_encoded`     scores

Forms on the way: request body → Query → QueuedPart (with its Encoded) → Score.
"""

from .app import create_app
from .limits import ServingConfig

__all__ = ["ServingConfig", "create_app"]
