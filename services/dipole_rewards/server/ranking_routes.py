"""The ranking protocol's routes over any backend: POST /v1/rank, GET and DELETE /v1/rankings/{id}, GET /v1/info."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Header, Path, Request, Response

from dipole.protocol.schemas import PendingRanking, RewardInfo
from dipole.web.json_body import JSONBuilder
from dipole_rewards.server import openapi, request_parsing
from dipole_rewards.server.ranking_backend import RankingBackend, RankingState, RankOptions

MAX_KEYS, KEYS_PER_CANDIDATE = 2**16, 5  # in a request's JSON, its metadata's included
RankingId = Annotated[str, Path(max_length=128, description="Id of the ranking.")]


def add_ranking_routes(app: FastAPI, backend: RankingBackend) -> None:
    builder = JSONBuilder(max_keys=max(MAX_KEYS, KEYS_PER_CANDIDATE * backend.bounds.max_candidates))

    @app.post("/v1/rank", **openapi.RANK_ROUTE)
    async def rank_candidates(
        http: Request,
        idempotency_key: Annotated[str | None, Header(description=openapi.IDEMPOTENCY_KEY_DESCRIPTION)] = None,
        prefer: Annotated[str | None, Header(description=openapi.PREFER_DESCRIPTION)] = None,
    ) -> Response:
        backend.check_ready()
        incoming = await request_parsing.read_request(http, backend.bounds, builder)
        backend.check_request(incoming)
        wanted = "respond-async" in [part.strip().lower() for part in (prefer or "").split(",")]
        options = RankOptions(idempotency_key=idempotency_key, respond_async=wanted)
        return _answer(await backend.rank_group(incoming, options), backend, with_location=True)

    @app.get("/v1/rankings/{ranking_id}", **openapi.GET_RANKING_ROUTE)
    async def get_ranking(ranking_id: RankingId) -> Response:
        # where it is, whoever asks knows already
        return _answer(await backend.get_ranking(ranking_id), backend, with_location=False)

    @app.delete("/v1/rankings/{ranking_id}", **openapi.DELETE_RANKING_ROUTE)
    async def cancel_ranking(ranking_id: RankingId) -> PendingRanking:
        return await backend.cancel_ranking(ranking_id)

    @app.get("/v1/info", **openapi.INFO_ROUTE)
    async def describe_reward() -> RewardInfo:
        return backend.describe()


def _answer(state: RankingState, backend: RankingBackend, *, with_location: bool) -> Response:
    """200 with a finished ranking; 202, Location and Retry-After while it is pending.

    The Location is relative to /v1/rank: a proxy may have put a path prefix before it that nobody here knows.
    """
    body = state.model_dump_json().encode()
    if isinstance(state, PendingRanking) and state.status == "pending":
        headers = {"Retry-After": str(backend.poll_interval_s)}
        headers |= {"Location": f"rankings/{state.id}"} if with_location else {}
        return Response(body, 202, headers, "application/json")
    return Response(body, 200, media_type="application/json")
