"""/livez, /readyz, /metrics: the process answers; its database does; the queue for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import describe_database_error
from dipole.protocol.schemas import ProtocolMessage
from dipole_ratings.api.dependencies import Parts, RatingParts
from dipole_ratings.database.tables import TaskRow

log = structlog.get_logger()
router = APIRouter(tags=["health"])


class ServiceHealth(ProtocolMessage):
    """The process, or its database, answers."""

    status: str = Field(description="`alive` or `ready`, by the route that was asked.")


@router.get("/livez", summary="The process answers")
async def livez() -> ServiceHealth:
    """It answers while the process runs, whatever its database does."""
    return ServiceHealth(status="alive")


@router.get("/readyz", summary="The database answers and has its tables", responses={503: {}})
def readyz(parts: Parts) -> ServiceHealth:
    """It answers 503 while requests would fail for want of the database."""
    with parts.database.reading() as session:
        session.execute(select(TaskRow.id).limit(1))
    return ServiceHealth(status="ready")


def create_registry(parts: RatingParts) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_QueueCollector(parts))
    return registry


def metrics_router(parts: RatingParts) -> APIRouter:
    registry = create_registry(parts)
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", summary="Prometheus metrics", response_class=Response)
    def metrics() -> Response:
        """The answer is in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


class _QueueCollector(Collector):
    """Read from the database when it is asked, so that every replica says the same."""

    def __init__(self, parts: RatingParts) -> None:
        self._parts = parts

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._families()
        try:
            figures = self._parts.statistics.measure_queue()
            tasks = self._parts.statistics.count_tasks()
            deliveries = self._parts.outbox.count_deliveries()
        except SQLAlchemyError as error:
            log.warning("database_unreachable", error=describe_database_error(error))
            found["database"].add_metric([], 0)
            yield found["database"]
            return
        for state in ("pending", "completed", "failed", "cancelled"):
            found["tasks"].add_metric([state], tasks.get(state, 0))
        for state, count in deliveries.items():
            found["deliveries"].add_metric([state], count)
        found["leases"].add_metric([], figures.leased)
        found["answers"].add_metric([], figures.answered)
        found["oldest"].add_metric([], figures.oldest_s or 0)
        found["database"].add_metric([], 1)
        yield from found.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            "tasks": GaugeMetricFamily("dipole_ratings_tasks", "Tasks by state.", labels=["state"]),
            "leases": GaugeMetricFamily("dipole_ratings_leases", "Leases that raters hold.", labels=[]),
            "answers": GaugeMetricFamily("dipole_ratings_answers", "Answers that are kept.", labels=[]),
            "oldest": GaugeMetricFamily("dipole_ratings_oldest_seconds", "Age of the oldest task.", labels=[]),
            "deliveries": GaugeMetricFamily("dipole_ratings_deliveries", "Callbacks by state.", labels=["state"]),
            "database": GaugeMetricFamily("dipole_ratings_database_up", "1 while the database answers.", labels=[]),
        }
