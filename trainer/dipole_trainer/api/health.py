"""/livez, /readyz, /metrics: the process answers; its database does; numbers of requests and jobs for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

import structlog
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from dipole.errors import Overloaded
from dipole.web import asgi
from dipole_trainer.api.dependencies import Use
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import ACTIVE, TERMINAL, Job

log = structlog.get_logger()
router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str


@router.get("/livez", summary="The process answers")
async def livez() -> Health:
    return Health(status="alive")


@router.get("/readyz", summary="The database answers and has its tables", responses={503: {}})
def readyz(parts: Use) -> Health:
    try:
        with parts.database.reading() as session:
            session.execute(select(Job.id).limit(1))
    except SQLAlchemyError as error:
        log.warning("not_ready", error=str(error))
        raise Overloaded(
            "the jobs database does not answer, or `dipole db upgrade` was not run", retry_after=5
        ) from error
    return Health(status="ready")


class Metrics:
    """Requests by route, and jobs by state as the database has them when asked."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self.requests = Counter("dipole_api_requests", "Answered requests.", labels, registry=self.registry)
        self.seconds = Histogram("dipole_api_request_seconds", "Time to answer.", ["route"], registry=self.registry)
        self.registry.register(_Jobs(database))

    def router(self) -> APIRouter:
        routes = APIRouter(tags=["health"])

        @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
        def metrics() -> Response:
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

        return routes


class CountRequests:
    """ASGI: counts by the route's template, so that ids do not become labels. Streams count when they end."""

    def __init__(self, app: asgi.ASGIApp, *, metrics: Metrics) -> None:
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
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)


class _Jobs(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("dipole_jobs", "Jobs by state.", labels=["state"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("dipole_jobs", "Jobs by state.", labels=["state"])
        try:
            with self._database.reading() as session:
                rows = session.execute(select(Job.state, func.count()).group_by(Job.state)).all()
        except SQLAlchemyError as error:
            log.warning("database_unreachable", error=str(error))
            return
        for state in (*ACTIVE, *TERMINAL):
            family.add_metric([state], next((count for name, count in rows if name == state), 0))
        yield family
