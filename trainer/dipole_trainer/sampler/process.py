"""The sampler: draws images for the API, from base models and checkpoints, and plans jobs.
`dipole serve sampler` runs run_sampler().

A Celery worker with one thread on the queue `images`. An order that nobody waits for any more is dropped; an order is
claimed while it is worked on, so that a message that comes again draws nothing twice, and the API sees at once when a
sampler was killed. Models, and with them torch, are loaded by the first order: an idle sampler is small. Replicas share
the queue. It downloads nothing and knows no database: what is to be drawn is all in the message.

Health: `dipole serve sampler --check` exits 0 while this host's sampler beats, which it does while
it reaches Redis and no order is stuck; with `--live` also while Redis is away, because no restart would bring it back.
Containers look at the files that it touches meanwhile (HealthFiles).
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import structlog
from celery import Celery, Task
from redis import Redis
from redis.exceptions import RedisError

from dipole import logs, tracing
from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.image_requests import (
    IMAGE_QUEUE,
    IMAGE_TASK,
    PLAN_TASK,
    REQUEST_CLAIM_TTL_S,
    ImageRequestStore,
    image_coordination,
)
from dipole.broker.messages import CheckpointRef, ImageAnswer, ImageRequest, PlanAnswer, PlanRequest
from dipole.broker.process_health import HealthFiles, check_heartbeat
from dipole.errors import InvalidInput, Overloaded
from dipole.settings import MetricsSettings, SamplerSettings, load_settings
from dipole.web.metrics_server import serve_metrics
from dipole_trainer.sampler.metrics import SamplerMetrics

log = structlog.get_logger()

# past an order's deadline: what has not come back by then never will, and the process must go
STUCK_AFTER_S = 600.0


class DrawsImages(Protocol):
    """model_cache.ModelCache."""

    def draw_images(
        self, model: Mapping[str, Any], checkpoint: CheckpointRef | None, prompt: str, seeds: list[int]
    ) -> Iterator[bytes]: ...

    def describe_unread(self, model: Mapping[str, Any], prompt: str) -> str | None: ...


PlanJob = Callable[[Mapping[str, Any], list[str], int | None, SamplerSettings], PlanAnswer]
"""planner.answer_plan: of a job's fields, names of devices and a chunk size."""


class Sampler:
    """One order at a time. A thread of its own beats and renews the claim meanwhile."""

    def __init__(
        self,
        settings: SamplerSettings,
        make_models: Callable[[SamplerSettings], DrawsImages] | None = None,
        make_planner: Callable[[], PlanJob] | None = None,
    ) -> None:
        self._settings, self._make_models = settings, make_models or load_model_cache
        self._make_planner = make_planner or load_planner
        client = connect_redis(settings.redis_url)
        self._coordination, self._image_requests = image_coordination(client), ImageRequestStore(client)
        self.metrics = SamplerMetrics(client)
        self._models: DrawsImages | None = None
        self._planner: PlanJob | None = None
        self._host = socket.gethostname()
        self._claimed_key: str | None = None
        self._stuck_at = float("inf")
        self._health_files = HealthFiles(settings, "sampler")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat_loop, name="beat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Say good-bye, so that the API does not send orders to nobody."""
        self._stopping.set()
        self._thread.join()
        try:
            self._image_requests.remove_heartbeat(self._host)
        except RedisError as error:
            log.warning("redis_failed", error=describe_redis_error(error))

    def answer_message(self, message: ImageRequest) -> None:
        """Draw the images of one request and push its answer, or drop it."""

        def draw(deadline: float) -> ImageAnswer | None:
            assert self._models is not None
            return self._draw_answer(self._models, message, deadline)

        def load_models() -> None:
            self._models = self._models or self._make_models(self._settings)

        self._answer_request("images", message, load_models, draw)

    def answer_plan(self, message: PlanRequest) -> None:
        """Plan a job and push the answer, or drop the request."""

        def load_planner() -> None:
            self._planner = self._planner or self._make_planner()

        def plan(_: float) -> PlanAnswer:
            assert self._planner is not None
            try:
                return self._planner(message["job"], message["devices"], message["chunk_size"], self._settings)
            except InvalidInput as error:
                return {"status": "refused", "message": str(error), "field": error.field}
            except Exception:
                log.exception("order_failed", order=message["order"])
                return {"status": "failed"}

        self._answer_request("plan", message, load_planner, plan)

    def _answer_request(
        self,
        kind: str,
        message: ImageRequest | PlanRequest,
        prepare: Callable[[], None],
        answer_it: Callable[[float], ImageAnswer | PlanAnswer | None],
    ) -> None:
        """Claim a request that somebody waits for, and push the answer; nothing when `answer_it` was too late."""
        request_id, left = message["order"], message["deadline"] - self._coordination.server_time()
        if left <= 0 or not self._image_requests.is_open(request_id):
            log.info("order_dropped", order=request_id, why="past its deadline" if left <= 0 else "nobody waits for it")
            return
        # before the claim: see REQUEST_CLAIM_TTL_S
        prepare()
        if not self._coordination.claim_task(request_id):
            log.info("order_dropped", order=request_id, why="another sampler draws it")
            return
        began = time.monotonic()
        self._claimed_key, self._stuck_at = request_id, began + left + STUCK_AFTER_S
        try:
            with self.metrics.is_busy.track_inprogress():
                answer = answer_it(began + left)
            if answer is not None:
                self._coordination.push_answer(request_id, answer)
        finally:
            self._claimed_key, self._stuck_at = None, float("inf")
            self._coordination.release_claim(request_id)
        status, seconds = "given up" if answer is None else answer["status"], time.monotonic() - began
        self.metrics.requests.labels(kind, status).inc()
        self.metrics.seconds.labels(kind).observe(seconds)
        log.info("order_answered", order=request_id, status=status, seconds=round(seconds, 3))

    def _draw_answer(self, models: DrawsImages, message: ImageRequest, deadline: float) -> ImageAnswer | None:
        """What the API is told; nothing when it has given up meanwhile."""
        drawn: list[str] = []
        try:
            for image in models.draw_images(
                message["model"], message["checkpoint"], message["prompt"], message["seeds"]
            ):
                drawn.append(self._image_requests.put_image(message["order"], len(drawn), image))
                if time.monotonic() > deadline or not self._image_requests.is_open(message["order"]):
                    return None
        except InvalidInput as error:
            return {"status": "refused", "message": str(error), "field": error.field}
        except Overloaded as error:
            return {"status": "busy", "message": str(error), "retry_after": error.retry_after}
        except RedisError:
            raise
        except Exception:
            # a bug of ours, or a broken file: the caller shall know, not wait
            log.exception("order_failed", order=message["order"])
            return {"status": "failed"}
        warning = models.describe_unread(message["model"], message["prompt"])
        if warning is not None:
            log.warning("prompt_cut", order=message["order"], what=warning)
        return {"status": "drawn", "images": drawn, "warning": warning}

    def _heartbeat_loop(self) -> None:
        while not self._stopping.is_set():
            try:
                if (claimed := self._claimed_key) is not None:
                    self._coordination.renew_claims([claimed])
                if time.monotonic() < self._stuck_at:
                    # each time: a Redis that was restarted forgot it
                    self._image_requests.record_heartbeat(self._host, now=self._coordination.server_time())
                    self._health_files.touch(ready=True)
            except RedisError as error:
                log.warning("redis_failed", error=describe_redis_error(error))
                if time.monotonic() < self._stuck_at:
                    self._health_files.touch(ready=False)
            self._stopping.wait(REQUEST_CLAIM_TTL_S / 8)


def load_model_cache(settings: SamplerSettings) -> DrawsImages:
    models: DrawsImages = importlib.import_module("dipole_trainer.sampler.model_cache").ModelCache(settings)
    return models


def load_planner() -> PlanJob:
    planner: PlanJob = importlib.import_module("dipole_trainer.sampler.planner").answer_plan
    return planner


def register_tasks(app: Celery, sampler: Sampler) -> None:
    """Give the app its two tasks."""

    @app.task(name=IMAGE_TASK, bind=True)  # type: ignore[untyped-decorator]
    def draw_request(self: Task, **message: Any) -> None:
        with _follow_request(self, "draw"):
            sampler.answer_message(cast(ImageRequest, message))

    @app.task(name=PLAN_TASK, bind=True)  # type: ignore[untyped-decorator]
    def plan_request(self: Task, **message: Any) -> None:
        with _follow_request(self, "plan"):
            sampler.answer_plan(cast(PlanRequest, message))


@contextmanager
def _follow_request(task: Task, name: str) -> Iterator[None]:
    """With the ids of the API's request in the logs, and a span of its trace."""
    headers = task.request.headers or {}
    request_id = str(headers.get("request_id", ""))
    with (
        structlog.contextvars.bound_contextvars(request_id=request_id),
        tracing.trace_span(name, kind="consumer", parent=headers.get(tracing.TRACEPARENT), request_id=request_id),
    ):
        yield


# ---- the process ----------------------------------------------------------------------------------------------------


def run_sampler(settings: SamplerSettings) -> None:
    """Until SIGTERM or SIGINT; the order under way is finished first."""
    app, sampler = create_celery_app(settings.redis_url), Sampler(settings)
    register_tasks(app, sampler)
    worker = app.Worker(
        hostname=f"sampler@{socket.gethostname()}.{os.getpid()}",
        queues=[IMAGE_QUEUE],
        pool="solo",  # CUDA must not be touched before a fork
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel="WARNING",
    )
    tracing.configure_tracing("sampler")
    logs.configure_logging("sampler")  # after the worker was made, which sets the root logger's level to its own
    logging.getLogger("celery").setLevel(logging.WARNING)
    serve_metrics(load_settings(MetricsSettings), sampler.metrics.registry)
    sampler.start()
    log.info("sampler_started", models=settings.sampler_models)
    try:
        worker.start()
    finally:
        sampler.stop()
    sys.exit(worker.exitcode)


def check_health(settings: SamplerSettings, *, live: bool = False) -> None:
    """Raises ProcessUnhealthy unless this host's sampler beats; with `live` it may do so unseen: Redis is away."""

    def has_heartbeat(client: Redis, host: str) -> bool:
        return ImageRequestStore(client).has_heartbeat(host, now=image_coordination(client).server_time())

    check_heartbeat("sampler", settings.redis_url, has_heartbeat, live=live)
