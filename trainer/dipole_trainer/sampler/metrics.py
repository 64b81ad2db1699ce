"""What a sampler tells Prometheus: requests that it answered, and the queue that all samplers share."""

from __future__ import annotations

from collections.abc import Iterator

import redis
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from dipole.broker.connection import describe_redis_error
from dipole.broker.image_requests import IMAGE_QUEUE
from dipole.broker.queue_depth import read_queue_depth

log = structlog.get_logger()

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class SamplerMetrics:
    """Written by the thread that draws, read by the metrics server's."""

    def __init__(self, client: redis.Redis) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "dipole_sampler_requests",
            "Answered requests, of images or of a plan, by what they were told.",
            ["kind", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "dipole_sampler_request_seconds", "Time to answer.", ["kind"], registry=registry, buckets=SECONDS
        )
        self.is_busy = Gauge("dipole_sampler_busy", "1 while a request is answered.", registry=registry)
        registry.register(_QueueCollector(client))


class _QueueCollector(Collector):
    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield from self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting, reached = self._families()
        try:
            waiting.add_metric([], read_queue_depth(self._redis, IMAGE_QUEUE, now=0.0).messages)
            reached.add_metric([], 1)
        except RedisError as error:
            log.warning("redis_failed", error=describe_redis_error(error))
            reached.add_metric([], 0)
        yield from (waiting, reached)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        return (
            GaugeMetricFamily("dipole_sampler_queue_requests", "Requests that wait, over all samplers.", labels=[]),
            GaugeMetricFamily("dipole_sampler_redis_up", "1 while the sampler reaches Redis.", labels=[]),
        )
