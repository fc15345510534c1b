"""Several models behind one application: a request names its model, which is loaded for it if it is not in memory.

    request ──▶ name: header, else field `model`, else the first ──▶ in memory? ──no──▶ drop another, load ──▶ Service

What keeps models in memory, and chooses the one to drop, is given: Ray Serve's `multiplexed`. A model that is dropped
first answers the requests that use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException

from ..client.base import MODEL_HEADER
from ..errors import ServerError
from ..model.configuration import DMoERMConfig
from .engines import Load
from .limits import ServingConfig
from .metrics import Metrics
from .service import Service, model_card

_RETRY_SECONDS = 60.0  # a model that cannot be loaded is not tried again before: each try drops another model
_LOG = logging.getLogger("dmoerm.serving")


@dataclass(frozen=True)
class PooledModel:
    """A model of the pool, in memory or not.

    Attributes:
        load: loads it.
        config: its configuration.
    """

    load: Load
    config: DMoERMConfig


class LoadedModel:
    """A model in memory."""

    def __init__(self, service: Service, ending: contextlib.AsyncExitStack) -> None:
        self.service, self._ending = service, ending
        self._users, self._unused = 0, asyncio.Event()
        self._unused.set()
        # Ray Serve awaits the attribute `__del__` of a model that it drops; Python calls a method of the class, too
        self.__del__ = self.close

    def enter(self) -> None:
        """Note that a request uses the model."""
        self._users += 1
        self._unused.clear()

    def leave(self) -> None:
        """Note that a request has ended."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def close(self) -> None:
        """Free the model's memory once no request uses it; may be called again."""
        await self._unused.wait()
        await self._ending.aclose()
        vars(self).pop("service", None)
        gc.collect()  # modules have cyclic references; the next model needs the memory


Open = Callable[[str], Awaitable[LoadedModel]]


class ModelPool:
    """The interface of an application over several models; see `Service` for that over one.

    Args:
        models: name → model; the first is the default.
        settings: of each model's queue, and of the application.
        keep: turns the function that loads a model by its name into one that keeps the last models in memory.
    """

    def __init__(
        self, models: Mapping[str, PooledModel], settings: ServingConfig, keep: Callable[[Open], Open]
    ) -> None:
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self.ready = True  # a request waits until its model is loaded
        self._default, self._started = next(iter(models)), False
        self._loaded: set[LoadedModel] = set()
        self._broken: dict[str, float] = {}  # name → when it may be tried again
        self._entering = {name: asyncio.Lock() for name in models}

        async def load(name: str) -> LoadedModel:  # Ray Serve sets attributes of it, which a method cannot have
            return await self._load(name)

        self._find = keep(load)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load models and score requests until the block ends."""
        try:
            yield
        finally:
            for model in [*self._loaded]:
                await model.close()

    async def loaded(self) -> None:
        """Return once the default model has been loaded for the first time.

        Raises:
            ServerError: it cannot be loaded.
        """
        if not self._started:
            (await self._enter(self._default)).leave()
            self._started = True

    def cards(self) -> list[dict[str, Any]]:
        """Describe the models, in memory or not, the default first."""
        return [model_card(name, model.config, self.settings) for name, model in self.models.items()]

    @contextlib.asynccontextmanager
    async def using(self, request: Request) -> AsyncIterator[Service]:
        """Yield the service of the model that a request names, or of the default model.

        Raises:
            HTTPException: 404, there is no such model.
            ServerError: the model cannot be loaded.
        """
        name = await _requested(request) or self._default
        if name not in self.models:
            raise HTTPException(404, f"there is no model {name!r}; use one of {', '.join(self.models)}")
        entering = asyncio.ensure_future(self._enter(name))
        try:
            model = await asyncio.shield(entering)
        except asyncio.CancelledError:  # the client has left; other requests may wait for the same model
            entering.add_done_callback(_leave)
            raise
        try:
            yield model.service
        finally:
            model.leave()

    async def _enter(self, name: str) -> LoadedModel:
        """Return a model that stays in memory until `leave`; nothing runs between the two lines."""
        async with self._entering[name]:  # requests that wait for a model learn that it is broken, and do not try again
            if time.monotonic() < self._broken.get(name, 0.0):
                raise _cannot_load(name)
            model = await self._find(name)
            model.enter()
            return model

    async def _load(self, name: str) -> LoadedModel:
        service = Service(self.models[name].load, name, self.settings, metrics=self.metrics)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(service.running())
            try:
                await service.loaded()
            except Exception as error:  # whatever a file, a device or a library raises
                _LOG.error("a model cannot be loaded", extra={"model": name, "error": str(error)})
                self._broken[name] = time.monotonic() + _RETRY_SECONDS
                raise _cannot_load(name) from error
            ending = stack.pop_all()
        model = LoadedModel(service, ending)
        self._loaded.add(model)
        ending.callback(self._loaded.discard, model)
        return model


def _cannot_load(name: str) -> ServerError:
    return ServerError(f"the model {name} cannot be loaded; see the log of the server")


def _leave(entered: asyncio.Future[LoadedModel]) -> None:
    if not entered.cancelled() and entered.exception() is None:
        entered.result().leave()


async def _requested(request: Request) -> str | None:
    """Return the name in the header, with hyphens or underscores, or in the body's field `model`."""
    for key, value in request.headers.items():
        if key.replace("-", "_") == MODEL_HEADER:
            return value
    if request.method != "POST":
        return None
    with contextlib.suppress(ValueError):  # not JSON: the route reports it
        body = await request.json()
        name = body.get("model") if isinstance(body, dict) else None
        return name if isinstance(name, str) else None
    return None
