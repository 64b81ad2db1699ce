"""The one HTTP app of every reward: create_app(settings) serves whichever class DIPOLE_REWARD names.

POST /v1/rank, /v1/sleep and /v1/wake, GET /v1/info, GET and DELETE /v1/rankings/{id}, /livez, /readyz, /metrics and
/docs. The wiring is here; scoring.service scores and scoring.reward_backend answers; of `server`, ranking_routes takes
a request, request_parsing reads it, idempotency answers repeats, pending_rankings keeps 202 answers, and openapi
describes it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import Field
from starlette.exceptions import HTTPException

from dipole.errors import DipoleError
from dipole.protocol.schemas import ProtocolMessage, WeightsState
from dipole.settings import load_settings, split_keys
from dipole.web import asgi, auth, body_limit, request_context
from dipole.web.api_reference.routes import PAGE_PATHS, add_api_reference
from dipole_rewards.reward import import_reward
from dipole_rewards.scoring.reward_backend import RewardBackend
from dipole_rewards.scoring.service import OnFailure, RewardService
from dipole_rewards.server import openapi
from dipole_rewards.server.ranking_routes import add_ranking_routes
from dipole_rewards.settings import RewardSettings


def create_app(
    settings: RewardSettings | None = None,
    *,
    on_failure: OnFailure | None = None,
    callback_transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Wire one service. Raises ConfigurationError when the reward cannot be imported or the host would be open to all.

    `on_failure` is told when the reward cannot be loaded or fails its golden check; `dipole rewards serve` stops then.
    """
    settings = settings or load_settings(RewardSettings)
    auth.refuse_open_host(settings.reward_host, settings.reward_key, "DIPOLE_REWARD_KEY")
    registry = CollectorRegistry()
    service = RewardService(import_reward(settings.reward), settings, registry)
    backend = RewardBackend(service, callback_transport=callback_transport)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load_reward() -> None:
            await asyncio.to_thread(service.load_reward)
            if service.failure is not None and on_failure is not None:
                on_failure(service.failure)

        loading = asyncio.create_task(load_reward())
        yield
        await backend.close()
        await loading
        service.close()

    app = FastAPI(
        title=f"Dipole reward: {service.name}",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # such a redirect would leave out a proxy's path prefix
    )
    for kind in (DipoleError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, asgi.answer_problem)
    app.add_middleware(
        body_limit.BodyLimit,
        max_bytes=settings.reward_max_body_bytes,
        timeout_s=settings.reward_body_timeout_s,
        budget=body_limit.BodyBudget(settings.reward_held_body_bytes),
    )
    app.add_middleware(
        auth.KeyGuard,
        keys=split_keys(settings.reward_key),
        open_paths=(*auth.OPEN_PATHS, *PAGE_PATHS),
    )
    app.add_middleware(request_context.RequestContext)
    add_ranking_routes(app, backend)
    _add_weight_routes(app, service)
    _add_health_routes(app, service, registry)
    openapi.install_openapi(app)
    add_api_reference(
        app,
        key_setting="DIPOLE_REWARD_KEY",
        is_keyed=settings.reward_key is not None,
        example_url=f"http://localhost:{settings.reward_port}",
    )
    return app


class HealthReport(ProtocolMessage):
    """The process answers, or the reward is loaded."""

    status: str = Field(description="`alive` or `ready`, by the route that was asked.")


def _add_weight_routes(app: FastAPI, service: RewardService) -> None:
    moving = asyncio.Lock()  # one thread at a time waits for forwards to end

    @app.post("/v1/sleep", **openapi.SLEEP_ROUTE)
    async def sleep_weights() -> WeightsState:
        weights = service.loaded_weights()
        async with moving:
            return await asyncio.to_thread(weights.sleep)

    @app.post("/v1/wake", **openapi.WAKE_ROUTE)
    async def wake_weights() -> WeightsState:
        weights = service.loaded_weights()
        async with moving:
            return await asyncio.to_thread(weights.wake)


def _add_health_routes(app: FastAPI, service: RewardService, registry: CollectorRegistry) -> None:
    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> HealthReport:
        """It answers while the process runs, also while the reward is loading."""
        return HealthReport(status="alive")

    @app.get("/readyz", responses={503: {}}, tags=["health"], summary="Loaded, and the golden score matched")
    async def readyz() -> HealthReport:
        """It answers 503 until the reward is loaded and its golden scores matched."""
        service.ready_reward()
        return HealthReport(status="ready")

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        """The answer is in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
