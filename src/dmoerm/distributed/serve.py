"""The reward server as a Ray Serve application: replicas that grow in number with the requests that wait.

    serve run dmoerm.distributed.serve:app model=runs/demo max_replicas=4

Each replica is the whole server of `dmoerm serve`, with all protocols. Ray Serve starts a lost replica again; a request
that was in it is answered with 500, which `dmoerm.Client` sends again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, plain_fault
from ..io.paths import model_folder
from ..model import DMoERM
from ..model.loading import limit_kernels
from ..serving import ServingConfig, create_app


class ReplicaSettings(BaseModel):
    """The arguments of the application."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """A model's or a run's folder, which all nodes can read, or a hub name."""
    dtype: str | None = None
    """Precision of trunk and branches, such as float32; None: as saved."""
    min_replicas: int = Field(default=1, ge=1)
    """Replicas that always run."""
    max_replicas: int = Field(default=4, ge=1)
    """Replicas under full load."""
    target_requests: float = Field(default=32.0, gt=0)
    """Requests per replica, waiting ones included, above which replicas are added and below which they are removed."""
    max_requests: int = Field(default=1024, ge=1)
    """Requests of a replica at once; further ones wait in Ray Serve's proxy."""
    cpus: float = Field(default=1.0, ge=0)
    """Processors of a replica, which are also its threads."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a replica."""
    settings: ServingConfig = ServingConfig()
    """Batching and limits of each replica."""

    def deployment(self) -> dict[str, Any]:
        """Return the options of Ray Serve's deployment."""
        scaling = {name: getattr(self, name) for name in ("min_replicas", "max_replicas")}
        return {
            "name": "dmoerm",
            "autoscaling_config": scaling | {"target_ongoing_requests": self.target_requests},
            "max_ongoing_requests": self.max_requests,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }


def app(arguments: dict[str, Any]) -> Any:
    """Build the application for `serve run` and `serve.run`.

    Args:
        arguments: the fields of `ReplicaSettings`.

    Raises:
        ConfigError: ray[serve] is not installed, or an argument is invalid.
    """
    try:
        from ray import serve
    except ImportError as error:
        message = f"the application needs the package {error.name}: pip install 'dmoerm[serve,ray-serve]'"
        raise ConfigError(message) from None
    try:
        settings = ReplicaSettings.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {plain_fault(first)}") from None

    def build() -> FastAPI:  # in each replica, which starts once the model is loaded
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(settings.cpus))))
        limit_kernels()
        model = DMoERM.from_pretrained(model_folder(settings.model), dtype=settings.dtype, device_map="auto")
        return create_app(model, settings.settings, Path(settings.model).name)

    return serve.deployment(serve.ingress(build)(), **settings.deployment()).bind()
