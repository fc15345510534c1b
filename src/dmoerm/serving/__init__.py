"""The reward server: several protocols over one model.

app.py         the application: routes, errors, the page
protocols/     what clients of each kind send and read
service.py     the model behind them: loaded in the background, asked by whoever still waits
batching.py    requests of many clients scored together
guard.py       the key, the limits, the log and the metrics of every request
server.py      the process: uvicorn, its logs, its end
page/          what a browser sees at /
"""

from .app import create_app
from .settings import ServingConfig

__all__ = ["ServingConfig", "create_app"]
