"""The application: protocols, health, metrics and the page over one model."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from ..model import DMoERM
from . import protocols
from .guard import Guard, add_handlers
from .service import CurrentService, Service
from .settings import ServingConfig

_PAGE = Path(__file__).with_name("page")
_PAGE_POLICY = (  # it loads nothing from other hosts
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_state = APIRouter()
_DESCRIPTION = """\
Scores the responses to a prompt with a double-layer mixture-of-experts reward model. `/v1/score` returns everything
that the model computes; the other protocols belong to vLLM, SGLang, OpenRLHF, slime, Text Embeddings Inference,
infinity, Cohere and others, so that trainers and other clients can use the server without a plug-in.
"""


def create_app(
    model: DMoERM | Callable[[], DMoERM],
    settings: ServingConfig | None = None,
    name: str = "dmoerm",
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Create the application over one model.

    Args:
        model: a model, or a function that loads it once the server runs.
        name: the model's name in answers.
        on_failure: called when the model cannot be loaded; `app.state.service.failure` is the error.
    """
    load = (lambda: model) if isinstance(model, DMoERM) else model
    settings = settings or ServingConfig()
    service = Service(load, name, settings, on_failure)
    # FastAPI's own documentation pages load scripts from other hosts; /openapi.json is enough
    quiet: Any = {"docs_url": None, "redoc_url": None}
    app = FastAPI(title="dmoerm", description=_DESCRIPTION, lifespan=lambda _: service.running(), **quiet)
    app.state.service = service
    for module in pkgutil.iter_modules(protocols.__path__):  # a new file there is a new protocol
        if router := getattr(importlib.import_module(f"{protocols.__name__}.{module.name}"), "router", None):
            app.include_router(router)
    app.include_router(_state)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    add_handlers(app)
    paths = frozenset({"/", *app.openapi()["paths"]})
    app.add_middleware(Guard, settings=settings, metrics=service.metrics, paths=paths)
    if settings.allow_origins:  # around the guard: a browser's preflight request has no key
        allowed: Any = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        app.add_middleware(CORSMiddleware, allow_origins=settings.allow_origins, **allowed)
    return app


@_state.get("/health", tags=["state"])
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "live"}


@_state.get("/ready", tags=["state"])
async def ready(service: CurrentService) -> Response:
    """200 once the model is loaded and warm, 503 before."""
    status = "ready" if service.ready else "loading"
    return JSONResponse({"status": status}, 200 if service.ready else 503)


@_state.get("/metrics", tags=["state"])
async def metrics(service: CurrentService) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@_state.get("/v1/models", tags=["state"])
async def models(service: CurrentService) -> dict[str, Any]:
    """The model, its tasks and capabilities, and the limits of a request."""
    return {"object": "list", "data": [service.card()]}


@_state.get("/models", include_in_schema=False)
async def infinity_models(service: CurrentService) -> dict[str, Any]:
    """The model in infinity's form, whose client accepts no other owner."""
    return {"object": "list", "data": [service.card() | {"owned_by": "infinity", "stats": {}}]}


@_state.get("/v1/models/{name:path}", tags=["state"])
async def named_model(name: str, service: CurrentService) -> dict[str, Any]:
    """The model, by its name."""
    if name != service.name:
        raise HTTPException(404, f"there is no model {name!r}; use one of {service.name}")
    return service.card()


@_state.get("/", include_in_schema=False)
async def page() -> Response:
    """The page for people."""
    return FileResponse(_PAGE / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})
