"""The reward server as a Ray Serve application: replicas that grow in number with the requests that wait.

    serve run dmoerm.distributed.serve:app model=runs/demo max_replicas=4

Each replica is the whole server of `dmoerm serve`, with all protocols; it gets requests once its model is loaded. Ray
Serve replaces a replica that ends or whose model has failed. Requests that were in it are answered with 500, which
`dmoerm.Client` sends again.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, first_fault
from ..io.paths import model_folder, model_name
from ..model import DMoERM
from ..model.loading import prepare_process
from ..serving import ServingConfig, create_app

_EXIT_SECONDS = 15  # from the last answer to the end of a replica


class ReplicaSettings(BaseModel):
    """The arguments of the application."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """A model's or a run's folder, which all nodes can read, or a hub name."""
    backbone: str | None = None
    """The folder or hub name of the model's backbone; by default where the model names it, or $DMOERM_BACKBONE of the
    replica's node."""
    dtype: str | None = None
    """Precision of trunk and branches, such as float32; by default as saved."""
    min_replicas: int = Field(default=1, ge=1)
    """Replicas that always run."""
    max_replicas: int = Field(default=4, ge=1)
    """Replicas under full load."""
    target_requests: float = Field(default=32.0, gt=0)
    """Requests per replica, waiting ones included, above which replicas are added and below which they are removed."""
    max_requests: int = Field(default=1024, ge=1)
    """Requests of a replica at once; further ones wait in Ray Serve's proxy."""
    cpus: float = Field(default=1.0, ge=0)
    """Processors of a replica; Ray sets the number of its threads to it."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a replica."""
    settings: ServingConfig = ServingConfig()
    """Batching and limits of each replica. Without `api_key`, the key is $DMOERM_API_KEY of the replica's node."""

    def deployment(self) -> dict[str, Any]:
        """Return the options of Ray Serve's deployment."""
        scaling = {name: getattr(self, name) for name in ("min_replicas", "max_replicas")}
        return {
            "name": "dmoerm",
            "autoscaling_config": scaling | {"target_ongoing_requests": self.target_requests},
            "max_ongoing_requests": self.max_requests,
            "graceful_shutdown_timeout_s": self.settings.queue_seconds + _EXIT_SECONDS,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }

    def replica_app(self) -> FastAPI:
        """Create a replica's application."""
        prepare_process(self.settings.deterministic)
        key = self.settings.api_key or os.environ.get("DMOERM_API_KEY") or None
        settings = self.settings.model_copy(update={"api_key": key})
        load = partial(DMoERM.from_pretrained, dtype=self.dtype, backbone=self.backbone, device_map="auto")
        return create_app(lambda: load(model_folder(self.model)), settings, model_name(self.model))


class Replica:
    """The health check that Ray Serve calls on a replica."""

    app: FastAPI

    async def check_health(self) -> None:
        """Return once the model is loaded, so that a replica gets no requests before. Raises what the model raised."""
        await self.app.state.service.loaded()


def app(arguments: dict[str, Any]) -> Any:
    """Build the application for `serve run` and `serve.run`.

    Args:
        arguments: the fields of `ReplicaSettings`.

    Raises:
        ConfigError: ray[serve] is not installed, or an argument is invalid.
    """
    try:
        settings = ReplicaSettings.model_validate(arguments)
    except ValidationError as error:
        fault = first_fault(error)
        raise ConfigError(f"{fault.field}: {fault.message}") from None
    try:
        from ray import serve
    except ImportError as error:
        message = f"the application needs the package {error.name}: pip install '.[serve,ray-serve]' in dmoerm's folder"
        raise ConfigError(message) from None

    # Ray Serve calls the ingress in each replica
    replica: Any = serve.deployment(serve.ingress(lambda: settings.replica_app())(Replica), **settings.deployment())
    return replica.bind()
