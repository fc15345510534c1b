"""The HTTP application of the annotation page, and its process.

It has no key, so it listens on this machine only: it accepts requests for the host names of this machine (a page of
another host that resolves to 127.0.0.1 is refused), and bodies in JSON, which a page of another origin cannot send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, Response

from ..errors import DataError, DmoermError, ServerError, plain_fault
from ..pages import add_page
from .session import AnnotationSession, Choice

HOST = "127.0.0.1"
_PAGE = Path(__file__).with_name("page")


class AnswerBody(BaseModel):
    """The body of an answer; see `AnnotationSession.answer`."""

    annotator: str
    pair: int
    capability: str
    left: int
    choice: Choice


class UndoBody(BaseModel):
    """The body of an undo: whose last answer is removed."""

    annotator: str


def create_annotation_app(session: AnnotationSession) -> FastAPI:
    """Create the application over one session. Every answer to the page is the state after the request."""
    app = FastAPI(title="dmoerm annotate", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/v1/question")
    async def question(annotator: str) -> dict[str, Any]:
        return session.state(annotator)

    @app.post("/v1/answer")
    async def answer(body: AnswerBody) -> dict[str, Any]:
        session.answer(**body.model_dump())
        return session.state(body.annotator)

    @app.post("/v1/undo")
    async def undo(body: UndoBody) -> dict[str, Any]:
        session.undo(body.annotator)
        return session.state(body.annotator)

    add_page(app, _PAGE)
    app.add_exception_handler(
        DmoermError, lambda _, error: _failure(422 if isinstance(error, DataError) else 500, error)
    )
    app.add_exception_handler(RequestValidationError, lambda _, error: _invalid(error))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return app


def _failure(status: int, message: object) -> Response:
    return JSONResponse({"error": {"message": str(message)}}, status)


def _invalid(error: Any) -> Response:
    first = error.errors()[0]
    return _failure(422, f"{'.'.join(map(str, first['loc']))}: {plain_fault(first)}")


def serve_annotation(session: AnnotationSession, port: int) -> None:
    """Serve the page on this machine until the process is asked to stop. Raise `ServerError` if the port is in use."""
    app = create_annotation_app(session)
    server = uvicorn.Server(uvicorn.Config(app, HOST, port, log_level="warning", server_header=False))
    try:
        server.run()
    except SystemExit:
        raise ServerError(f"cannot listen on {HOST}:{port}; is the port in use? Choose another with --port") from None
