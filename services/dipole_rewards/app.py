"""The one HTTP app of every reward: create_app(settings) serves whichever class DIPOLE_REWARD names.

POST /v1/rank, GET /v1/info, GET and DELETE /v1/rankings/{id}, /livez, /readyz, /metrics. The wiring is here;
scoring.service scores; of `server`, request_parsing reads a request, idempotency answers repeats, pending_rankings
keeps 202 answers, and openapi describes it all.
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
from dipole.protocol.schemas import PendingRanking, ProtocolMessage, Ranking, RewardInfo
from dipole.settings import load_settings
from dipole.web import asgi, auth, body_limit, request_context
from dipole.web.json_body import JSONBuilder
from dipole_rewards.reward import import_reward
from dipole_rewards.scoring.service import OnFailure, RewardService
from dipole_rewards.server import openapi, request_parsing
from dipole_rewards.server.callbacks import check_callback_url, deliver_callback
from dipole_rewards.server.idempotency import IdempotencyStore, StoredResponse
from dipole_rewards.server.pending_rankings import PendingRankings, RankingState
from dipole_rewards.settings import RewardSettings

POLL_INTERVAL_S = 1
MAX_KEYS, KEYS_PER_CANDIDATE = 2**16, 5  # in a request's JSON, its metadata's included


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
    secret = settings.reward_callback_secret
    if settings.reward_callback_hosts and secret is None:
        raise ConfigurationError("DIPOLE_REWARD_CALLBACK_HOSTS needs DIPOLE_REWARD_CALLBACK_SECRET to sign callbacks")
    registry = CollectorRegistry()
    service = RewardService(import_reward(settings.reward), settings, registry)

    async def deliver_result(url: str, state: RankingState) -> None:
        assert secret is not None
        await deliver_callback(url, state, secret=secret.get_secret_value(), transport=callback_transport)

    pending = PendingRankings(settings.reward_max_pending, deliver_result)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def load_reward() -> None:
            await asyncio.to_thread(service.load_reward)
            if service.failure is not None and on_failure is not None:
                on_failure(service.failure)

        loading = asyncio.create_task(load_reward())
        yield
        await pending.close()
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
    app.add_middleware(auth.KeyGuard, keys=[settings.reward_key.get_secret_value()] if settings.reward_key else [])
    app.add_middleware(request_context.RequestContext)
    _add_ranking_routes(app, service, pending, IdempotencyStore(settings.reward_idempotency_entries, pending.is_lost))
    _add_health_routes(app, service, registry)
    openapi.install_openapi(app)
    return app


def _add_ranking_routes(
    app: FastAPI, service: RewardService, pending: PendingRankings, idempotency: IdempotencyStore
) -> None:
    builder = JSONBuilder(max_keys=max(MAX_KEYS, KEYS_PER_CANDIDATE * service.settings.reward_max_candidates))

    @app.post("/v1/rank", **openapi.RANK_ROUTE)
    async def rank_candidates(
        http: Request,
        idempotency_key: Annotated[str | None, Header(description=openapi.IDEMPOTENCY_KEY_DESCRIPTION)] = None,
        prefer: Annotated[str | None, Header(description=openapi.PREFER_DESCRIPTION)] = None,
    ) -> Response:
        service.ready_reward()
        incoming = await request_parsing.read_request(http, service.settings, builder)
        callback_url = incoming.request.callback_url
        check_callback_url(callback_url, service.settings)
        wanted = "respond-async" in [part.strip().lower() for part in (prefer or "").split(",")]

        async def make_answer() -> StoredResponse:
            if wanted or callback_url or service.reward_class.slow:
                submit, ranking = partial(service.submit_group, incoming), partial(service.await_ranking, incoming)
                return _stored_response(pending.start(submit, ranking, callback_url))
            wait_s = service.settings.reward_answer_timeout_s
            return _stored_response(
                await service.await_ranking(incoming, service.submit_group(incoming), wait_s=wait_s)
            )

        kept = await idempotency.run_once(idempotency_key, f"{wanted}:{incoming.digest}", make_answer)
        return Response(kept.body, kept.status, kept.headers, "application/json")

    @app.get("/v1/rankings/{ranking_id}", **openapi.GET_RANKING_ROUTE)
    async def get_ranking(ranking_id: Annotated[str, Path(max_length=128)]) -> Response:
        # where it is, whoever asks knows already
        answer = _stored_response(pending.get(ranking_id), with_location=False)
        return Response(answer.body, answer.status, answer.headers, "application/json")

    @app.delete("/v1/rankings/{ranking_id}", **openapi.DELETE_RANKING_ROUTE)
    async def cancel_ranking(ranking_id: Annotated[str, Path(max_length=128)]) -> PendingRanking:
        state = pending.cancel(ranking_id)
        assert isinstance(state, PendingRanking)
        return state

    @app.get("/v1/info", **openapi.INFO_ROUTE)
    async def describe_reward() -> RewardInfo:
        return service.describe()


def _stored_response(state: Ranking | PendingRanking, *, with_location: bool = True) -> StoredResponse:
    """200 with a finished ranking; 202, Location and Retry-After while it is pending.

    The Location is relative to /v1/rank: a proxy may have put a path prefix before it that nobody here knows.
    """
    body = state.model_dump_json().encode()
    if isinstance(state, PendingRanking) and state.status == "pending":
        headers = {"Retry-After": str(POLL_INTERVAL_S)}
        headers |= {"Location": f"rankings/{state.id}"} if with_location else {}
        return StoredResponse(202, body, headers, promised_ranking=state.id)
    return StoredResponse(200, body)


class HealthReport(ProtocolMessage):
    status: str


def _add_health_routes(app: FastAPI, service: RewardService, registry: CollectorRegistry) -> None:
    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> HealthReport:
        return HealthReport(status="alive")

    @app.get("/readyz", responses={503: {}}, tags=["health"], summary="Loaded, and the golden score matched")
    async def readyz() -> HealthReport:
        service.ready_reward()
        return HealthReport(status="ready")

    @app.get("/metrics", tags=["health"], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
