"""The one HTTP app of every reward: create_app(settings) serves whichever class DIPOLE_REWARD names.

POST /v1/rank, GET /v1/info, GET and DELETE /v1/rankings/{id}, /livez, /readyz, /metrics. The wiring is here; reading a
request is `reading`, scoring `service`, repeats `idempotency`, 202 answers `pending`, the documents `documents`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import httpx
from fastapi import FastAPI, Header, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException

from dipole.errors import ConfigurationError, DipoleError
from dipole.protocol.schemas import PendingRanking, Ranking, RewardInfo, Strict
from dipole.settings import load
from dipole.web import asgi, auth, body_limit, request_context
from dipole_rewards.reward import resolve
from dipole_rewards.scoring.service import OnFailure, RewardService
from dipole_rewards.server import openapi, request_parsing
from dipole_rewards.server.callbacks import check_callback_url, deliver_callback
from dipole_rewards.server.idempotency import Answer, IdempotencyStore
from dipole_rewards.server.pending_rankings import PendingRankings, State
from dipole_rewards.settings import RewardSettings

POLL_S = 1


def create_app(
    settings: RewardSettings | None = None,
    *,
    on_failure: OnFailure | None = None,
    callback_transport: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """Wire one service. Raises ConfigurationError when the reward cannot be imported or the host would be open to all.

    `on_failure` is told when the reward cannot be loaded or fails its golden check; `dipole rewards serve` stops then.
    """
    settings = settings or load(RewardSettings)
    auth.refuse_open_host(settings.reward_host, settings.reward_key, "DIPOLE_REWARD_KEY")
    secret = settings.reward_callback_secret
    if settings.reward_callback_hosts and secret is None:
        raise ConfigurationError("DIPOLE_REWARD_CALLBACK_HOSTS needs DIPOLE_REWARD_CALLBACK_SECRET to sign callbacks")
    registry = CollectorRegistry()
    service = RewardService(resolve(settings.reward), settings, registry)

    async def deliver(url: str, state: State) -> None:
        assert secret is not None
        await deliver_callback(url, state, secret=secret.get_secret_value(), transport=callback_transport)

    pending = PendingRankings(settings.reward_max_pending, deliver)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load() -> None:
            await asyncio.to_thread(service.load)
            if service.failure is not None and on_failure is not None:
                on_failure(service.failure)

        loading = asyncio.create_task(load())
        yield
        await pending.close()
        await loading
        service.close()

    app = FastAPI(title=f"Dipole reward: {service.name}", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    for kind in (DipoleError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, asgi.answer)
    app.add_middleware(
        body_limit.BodyLimit, max_bytes=settings.reward_max_body_bytes, timeout_s=settings.reward_body_timeout_s
    )
    app.add_middleware(auth.KeyGuard, keys=[settings.reward_key.get_secret_value()] if settings.reward_key else [])
    app.add_middleware(request_context.RequestContext)
    _add_ranking(app, service, pending, IdempotencyStore(settings.reward_idempotency_entries, pending.is_lost))
    _add_health(app, service, registry)
    openapi.describe(app)
    return app


def _add_ranking(app: FastAPI, service: RewardService, pending: PendingRankings, idempotency: IdempotencyStore) -> None:
    @app.post("/v1/rank", **openapi.RANK)
    async def rank(
        http: Request,
        idempotency_key: Annotated[str | None, Header(description=openapi.IDEMPOTENCY_KEY)] = None,
        prefer: Annotated[str | None, Header(description=openapi.PREFER)] = None,
    ) -> Response:
        service.ready()
        incoming = await request_parsing.read(http, service.settings)
        callback_url = incoming.request.callback_url
        check_callback_url(callback_url, service.settings)
        wanted = "respond-async" in [part.strip().lower() for part in (prefer or "").split(",")]

        async def make() -> Answer:
            if wanted or callback_url or service.reward_class.slow:
                submit, ranking = partial(service.submit, incoming), partial(service.rank, incoming)
                return _answer(pending.start(submit, ranking, callback_url))
            wait_s = service.settings.reward_answer_timeout_s
            return _answer(await service.rank(incoming, service.submit(incoming), wait_s=wait_s))

        kept = await idempotency.once(idempotency_key, f"{wanted}:{incoming.digest}", make)
        return Response(kept.body, kept.status, kept.headers, "application/json")

    @app.get("/v1/rankings/{ranking_id}", **openapi.GET_RANKING)
    async def get_ranking(ranking_id: Annotated[str, Path(max_length=128)]) -> Response:
        answer = _answer(pending.get(ranking_id))
        return Response(answer.body, answer.status, answer.headers, "application/json")

    @app.delete("/v1/rankings/{ranking_id}", **openapi.DELETE_RANKING)
    async def cancel_ranking(ranking_id: Annotated[str, Path(max_length=128)]) -> PendingRanking:
        state = pending.cancel(ranking_id)
        assert isinstance(state, PendingRanking)
        return state

    @app.get("/v1/info", **openapi.INFO)
    async def info() -> RewardInfo:
        return service.info()


def _answer(state: Ranking | PendingRanking) -> Answer:
    """200 for what is decided, 202 with the place to look for what is not."""
    body = state.model_dump_json().encode()
    if isinstance(state, PendingRanking) and state.status == "pending":
        headers = {"Location": f"/v1/rankings/{state.id}", "Retry-After": str(POLL_S)}
        return Answer(202, body, headers, promises=state.id)
    return Answer(200, body)


class Health(Strict):
    status: str


def _add_health(app: FastAPI, service: RewardService, registry: CollectorRegistry) -> None:
    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> Health:
        return Health(status="alive")

    @app.get("/readyz", responses={503: {}}, tags=["health"], summary="Loaded, and the golden score matched")
    async def readyz() -> Health:
        service.ready()
        return Health(status="ready")

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
