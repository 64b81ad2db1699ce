"""Serve the two pages: static HTML, ES modules and CSS, which ask nothing of any other host.

Whatever a page shows it asks from the JSON API, so these files are the same for everybody and need no key. Every URL in
them is relative: a proxy may serve the whole below a path prefix.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag: a new version shows at once
}


class PageFiles(StaticFiles):
    """Scripts and styles with the pages' headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page_routes(app: FastAPI) -> None:
    """Add `/`, `/rate`, `/operator` and `/static/…` to the app; none of them is in its OpenAPI document."""
    app.mount("/static", PageFiles(directory=STATIC), name="static")

    @app.get("/rate", include_in_schema=False, summary="The rater's page")
    async def show_rater_page() -> FileResponse:
        return FileResponse(STATIC / "rate.html", headers=HEADERS)

    @app.get("/operator", include_in_schema=False, summary="The operator's page")
    async def show_operator_page() -> FileResponse:
        return FileResponse(STATIC / "operator.html", headers=HEADERS)

    @app.get("/", include_in_schema=False, summary="To the operator's page")
    async def redirect_to_operator() -> RedirectResponse:
        return RedirectResponse("operator")  # relative, for the proxy's prefix
