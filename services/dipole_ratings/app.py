"""The rating service: create_app(settings) is people behind the ranking protocol, their raters' API and the operator's.

Wiring alone: `queue` has the rules, over SQL; `api` the routes; `dipole_rewards.server` the protocol that reward
services have too; `housekeeping` what happens without a request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from dipole.settings import load_settings
from dipole.web import asgi, auth, background, body_limit, request_context
from dipole.web.api_reference.routes import add_api_reference
from dipole_ratings.api import health, operator, rater
from dipole_ratings.api.access import AccessGuard
from dipole_ratings.api.dependencies import RatingParts
from dipole_ratings.api.errors import install_error_handlers
from dipole_ratings.api.people_backend import PeopleBackend
from dipole_ratings.database.engine import open_database, upgrade_database
from dipole_ratings.housekeeping import Housekeeper
from dipole_ratings.pages.routes import add_page_routes
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.settings import RatingsSettings
from dipole_rewards.server import openapi
from dipole_rewards.server.ranking_routes import add_ranking_routes

OPENAPI_TAGS = [
    *openapi.TAGS,
    {"name": "rater", "description": "What a rater's page asks: tasks to take, answers to give and to take back."},
    {"name": "operator", "description": "Invitations, how the queue and its raters do, callbacks, exports."},
]
MAX_SMALL_BODY_BYTES = 64 * 2**10  # of any request but a trainer's: raters have no key yet when they come


def create_app(
    settings: RatingsSettings | None = None,
    *,
    context: QueueContext | None = None,
    callback_transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Wire the service. Raises ConfigurationError when others could reach it without a key, or for its database.

    `context` brings a clock and dice of the caller's, and its own database.
    """
    settings = settings or load_settings(RatingsSettings)
    auth.refuse_open_host(settings.ratings_host, settings.ratings_key, "DIPOLE_RATINGS_KEY")
    upgrade_database(settings.ratings_database_url)
    context = context or QueueContext(open_database(settings.ratings_database_url), settings)
    parts = RatingParts.over(context)
    backend = PeopleBackend(parts.tasks, settings)
    housekeeper = Housekeeper(parts, callback_transport=callback_transport)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with background.run_in_background(housekeeper.run_forever()):
            yield
        context.database.close()

    app = FastAPI(
        title="Dipole ratings",
        openapi_tags=OPENAPI_TAGS,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # such a redirect would leave out a proxy's path prefix
    )
    app.state.parts = parts
    install_error_handlers(app)
    add_ranking_routes(app, backend)
    for part in (rater, operator, health):
        app.include_router(part.router)
    app.include_router(health.metrics_router(parts))
    add_page_routes(app)
    app.add_middleware(_BodyLimits, settings=settings)
    app.add_middleware(AccessGuard, settings=settings)
    app.add_middleware(request_context.RequestContext)
    openapi.install_openapi(app)
    add_api_reference(
        app,
        key_setting="DIPOLE_RATINGS_KEY",
        is_keyed=settings.ratings_key is not None,
        example_url=f"http://localhost:{settings.ratings_port}",
        home=("operator", "People who rank"),
    )
    return app


class _BodyLimits:
    """Groups of images may be large; everything else is small. Both are bounded while they stream in."""

    def __init__(self, app: asgi.ASGIApp, *, settings: RatingsSettings) -> None:
        budget = body_limit.BodyBudget(settings.ratings_held_body_bytes)
        self._groups = body_limit.BodyLimit(app, max_bytes=settings.ratings_max_body_bytes, budget=budget)
        self._others = body_limit.BodyLimit(app, max_bytes=MAX_SMALL_BODY_BYTES, timeout_s=10)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        limit = self._groups if scope.get("path") == "/v1/rank" else self._others
        await limit(scope, receive, send)
