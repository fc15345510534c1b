"""The pages that the package's servers send to browsers: how they are sent, and the files that they share.

A page is a folder with an `index.html`, scripts and styles. It loads nothing from other hosts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

SHARED = Path(__file__).with_name("shared")
"""The files that all pages may use."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of a page."""


def add_page(app: FastAPI, folder: Path) -> None:
    """Serve a page at `/`; its files, and the shared ones, are below `/page/`."""
    from starlette.responses import FileResponse, Response
    from starlette.staticfiles import StaticFiles

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(folder / "index.html", headers={"Content-Security-Policy": POLICY})

    app.mount("/page", StaticFiles(directory=folder, packages=[(__name__, SHARED.name)]), name="page")
