"""What a rank worker tells Prometheus: requests of its lanes, and the queues that they serve.

    lane, lane, …   count in files of one folder (prometheus_client's multiprocess mode)
    metrics server  a process of its own beside them, because the parent forks and so has one thread; adds the files up

prometheus_client chooses that mode when it is imported, by PROMETHEUS_MULTIPROC_DIR: so this module is imported by the
children alone, after run_rank_worker() has set it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from dipole import logs
from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.queue_depth import read_queue_depth
from dipole.broker.rankings import TaskCoordination, queue_name
from dipole.settings import MetricsSettings, RankWorkerSettings, load_settings
from dipole.stack.parent_death import die_with_parent
from dipole.web.metrics_server import serve_metrics

log = structlog.get_logger()

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
REDIS_TIMEOUT_S = 3.0  # below Prometheus' own for a scrape


class LaneMetrics:
    """What a lane counts of the requests to its reward's endpoint."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "dipole_rank_requests",
            "Requests to endpoints: completed, pending (202), missing (images), or the code of a failure.",
            ["reward", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "dipole_rank_request_seconds",
            "Time until an endpoint had answered.",
            ["reward"],
            registry=registry,
            buckets=SECONDS,
        )
        self.is_circuit_open = Gauge(
            "dipole_rank_circuit_open",
            "1 while an endpoint that failed again and again is left alone, as of the last request.",
            ["reward"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )

    def observe_request(self, reward: str, outcome: str, seconds: float, circuit: str | None) -> None:
        self.requests.labels(reward, outcome).inc()
        if outcome in ("completed", "pending"):
            self.seconds.labels(reward).observe(seconds)
        if circuit is not None:
            self.is_circuit_open.labels(reward).set(circuit == "open")


class QueueCollector(Collector):
    """The queues of the wanted rewards, asked of Redis with every scrape: each rank worker says the same of them."""

    def __init__(self, settings: RankWorkerSettings) -> None:
        self._redis = connect_redis(settings.redis_url, connect_timeout_s=REDIS_TIMEOUT_S, timeout_s=REDIS_TIMEOUT_S)
        self._coordination = TaskCoordination(self._redis, settings.candidate_ttl_s)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from self._families().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = self._families()
        try:
            now = self._coordination.server_time()
            for reward in self._coordination.wanted_lanes():
                depth = read_queue_depth(self._redis, queue_name(reward), now=now)
                found["messages"].add_metric([reward], depth.messages)
                found["oldest"].add_metric([reward], depth.oldest_s)
            found["redis"].add_metric([], 1)
        except RedisError as error:
            log.warning("redis_failed", error=describe_redis_error(error))
            found["redis"].add_metric([], 0)
        yield from found.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        return {
            "messages": GaugeMetricFamily(
                "dipole_rank_queue_messages", "Messages that wait for a lane, over all rank workers.", labels=["reward"]
            ),
            "oldest": GaugeMetricFamily(
                "dipole_rank_queue_oldest_seconds", "How long the oldest of them has waited.", labels=["reward"]
            ),
            "redis": GaugeMetricFamily("dipole_rank_redis_up", "1 while the rank worker reaches Redis.", labels=[]),
        }


def run_metrics_server(settings: RankWorkerSettings, folder: str, parent: int) -> None:
    """The metrics server's whole life, in its own process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(parent)
    logs.configure_logging("rank-worker/metrics")
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    registry.register(QueueCollector(settings))
    ProcessCollector(pid=lambda: os.getppid(), registry=registry)
    serve_metrics(load_settings(MetricsSettings), registry)
    while True:
        signal.pause()
