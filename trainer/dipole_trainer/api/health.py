"""/livez, /readyz, /metrics: the process answers; its database does; numbers of requests and jobs for Prometheus."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator

import structlog
from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from sqlalchemy import case, func, select
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error
from dipole.web import asgi
from dipole_trainer.api.dependencies import State
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import ACTIVE_STATES, TERMINAL_STATES, JobRow, WorkerRow

log = structlog.get_logger()
router = APIRouter(tags=["health"])
VERSION = importlib.metadata.version("dipole")  # read once, and not at every probe
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ApiHealth(BaseModel):
    """The process, or its database, answers."""

    status: str = Field(description="`alive` or `ready`, by the route that was asked.")
    version: str = Field(
        default_factory=lambda: VERSION,
        examples=["0.1.0"],
        description="Dipole's version.",
    )


@router.get("/livez", summary="The process answers")
async def livez() -> ApiHealth:
    """It answers while the process runs, whatever its database does."""
    return ApiHealth(status="alive")


@router.get("/readyz", summary="The database answers and has its tables", responses={503: {}})
def readyz(state: State) -> ApiHealth:
    """It answers 503 while requests would fail for want of the database."""
    with state.database.reading() as session:
        session.execute(select(JobRow.id).limit(1))
    return ApiHealth(status="ready")


class ApiMetrics:
    """Requests by route, and jobs by state as the database has them when asked."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter("dipole_api_requests", "Answered requests.", labels, registry=self.registry)
        self.seconds = Histogram("dipole_api_request_seconds", "Time to answer.", ["route"], registry=self.registry)
        ProcessCollector(registry=self.registry)
        self.registry.register(_JobsCollector(database))

    def metrics_router(self) -> APIRouter:
        routes = APIRouter(tags=["health"])

        @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
        def metrics() -> Response:
            """The answer is in Prometheus' text format."""
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return routes


class RequestCountMiddleware:
    """ASGI: counts by the route's template, so that ids do not become labels. Streams count when they end.

    Nor do methods that callers make up: each label is kept for as long as the process lives.
    """

    def __init__(self, app: asgi.ASGIApp, *, metrics: ApiMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 500

        async def watch(message: asgi.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)


class _JobsCollector(Collector):
    """Read from the database when it is asked, so that every API process says the same."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._families()
        waits = case((JobRow.waiting_reward.is_not(None), "reward"), (JobRow.waiting_reason.is_not(None), "storage"))
        try:
            with self._database.reading() as session:
                by_state = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
                states = {state: count for state, count in by_state}  # noqa: C416 (rows are no tuples to mypy)
                paused = select(waits, func.count()).where(JobRow.state == "paused").group_by(waits)
                causes = {cause: count for cause, count in session.execute(paused)}  # noqa: C416
                workers = session.scalar(select(func.count()).where(WorkerRow.expires_at > now()))
        except SQLAlchemyError as error:
            log.warning("database_unreachable", error=describe_database_error(error))
            found["database"].add_metric([], 0)
            yield found["database"]
            return
        for state in (*ACTIVE_STATES, *TERMINAL_STATES):
            found["jobs"].add_metric([state], states.get(state, 0))
        for cause in ("reward", "storage"):
            found["waiting"].add_metric([cause], causes.get(cause, 0))
        found["workers"].add_metric([], workers or 0)
        found["database"].add_metric([], 1)
        yield from found.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            "jobs": GaugeMetricFamily("dipole_jobs", "Jobs by state.", labels=["state"]),
            "waiting": GaugeMetricFamily(
                "dipole_jobs_waiting", "Jobs that paused themselves until a reward or room is back.", labels=["cause"]
            ),
            "workers": GaugeMetricFamily("dipole_workers", "Workers that gave a sign of life lately.", labels=[]),
            "database": GaugeMetricFamily("dipole_api_database_up", "1 while the database answers.", labels=[]),
        }
