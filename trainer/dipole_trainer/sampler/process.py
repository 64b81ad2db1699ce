"""The sampler: draws images for the API, from base models and checkpoints. `dipole serve sampler` runs main().

A Celery worker with one thread on the queue `images`. An order that nobody waits for any more is dropped; an order is
claimed while it is worked on, so that a message that comes again draws nothing twice, and the API sees at once when a
sampler was killed. Models, and with them torch, are loaded by the first order: an idle sampler is small. Replicas share
the queue. It downloads nothing and knows no database: what is to be drawn is all in the message.

Health, for orchestrators: `dipole serve sampler --check` exits 0 while this host's sampler beats, which it does while
it reaches Redis and no order is stuck; with `--live` also while Redis is away, because no restart would bring it back.
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
from typing import Any, Protocol

import structlog
from celery import Celery, Task
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from dipole import logs
from dipole.broker.connection import celery_app, connect
from dipole.broker.image_requests import (
    BEAT_TTL_S,
    IMAGE_QUEUE,
    IMAGE_TASK,
    ORDER_CLAIM_S,
    ImageBoard,
    Place,
    board_of,
)
from dipole.errors import DipoleError, InvalidInput, Overloaded
from dipole.settings import SamplerSettings

log = structlog.get_logger()

STUCK_S = 600.0  # past an order's deadline: what has not come back by then never will, and the process must go
PROBE_S = 3.0  # for Redis to answer a probe, which has seconds itself


class NotHealthy(DipoleError):
    """The sampler of this host does not beat."""

    slug = "not-healthy"


class Draws(Protocol):
    """sampler_models.Models.draw."""

    def draw(self, model: Mapping[str, Any], place: Place | None, prompt: str, seeds: list[int]) -> Iterator[bytes]: ...


class Sampler:
    """One order at a time. A thread of its own beats and renews the claim meanwhile."""

    def __init__(
        self, settings: SamplerSettings, make_models: Callable[[SamplerSettings], Draws] | None = None
    ) -> None:
        self._settings, self._make_models = settings, make_models or _load_models
        client = connect(settings.redis_url)
        self._board, self._images = board_of(client), ImageBoard(client)
        self._models: Draws | None = None
        self._host = socket.gethostname()
        self._claimed: str | None = None
        self._stuck_at = float("inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="beat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Say good-bye, so that the API does not send orders to nobody."""
        self._ended.set()
        self._thread.join()
        try:
            self._images.leave(self._host)
        except RedisError as error:
            log.warning("redis_unreachable", error=str(error))

    def handle(self, message: Mapping[str, Any]) -> None:
        """Draw one order and push its answer, or drop it."""
        order, left = message["order"], message["deadline"] - self._board.now()
        if left <= 0 or not self._images.is_open(order):
            log.info("order_dropped", order=order, why="past its deadline" if left <= 0 else "nobody waits for it")
            return
        self._models = self._models or self._make_models(self._settings)  # before the claim: see ORDER_CLAIM_S
        if not self._board.claim(order):
            log.info("order_dropped", order=order, why="another sampler draws it")
            return
        began = time.monotonic()
        self._claimed, self._stuck_at = order, began + left + STUCK_S
        try:
            answer = self._answer(self._models, message, began + left)
            if answer is not None:
                self._board.push(order, answer)
        finally:
            self._claimed, self._stuck_at = None, float("inf")
            self._board.release(order)
        status = "given up" if answer is None else answer["status"]
        log.info("order_answered", order=order, status=status, seconds=round(time.monotonic() - began, 3))

    def _answer(self, models: Draws, message: Mapping[str, Any], deadline: float) -> dict[str, Any] | None:
        """What the API is told; nothing when it has given up meanwhile."""
        drawn: list[str] = []
        try:
            for image in models.draw(message["model"], message["checkpoint"], message["prompt"], message["seeds"]):
                drawn.append(self._images.put(message["order"], len(drawn), image))
                if time.monotonic() > deadline or not self._images.is_open(message["order"]):
                    return None
        except InvalidInput as error:
            return {"status": "refused", "message": str(error), "field": error.field}
        except Overloaded as error:
            return {"status": "busy", "message": str(error), "retry_after": error.retry_after}
        except RedisError:
            raise
        except Exception:  # a bug of ours, or a broken file: the caller shall know, not wait
            log.exception("order_failed", order=message["order"])
            return {"status": "failed"}
        return {"status": "drawn", "images": drawn}

    def _beat(self) -> None:
        beat_at = 0.0
        while not self._ended.is_set():
            now = time.monotonic()
            try:
                if (claimed := self._claimed) is not None:
                    self._board.renew([claimed])
                if now >= beat_at and now < self._stuck_at:
                    self._images.beat(self._host, now=self._board.now())
                    beat_at = now + BEAT_TTL_S / 4
            except RedisError as error:
                log.warning("redis_unreachable", error=str(error))
            self._ended.wait(ORDER_CLAIM_S / 8)


def _load_models(settings: SamplerSettings) -> Draws:
    models: Draws = importlib.import_module("dipole_trainer.sampler.model_cache").Models(settings)
    return models


def register(app: Celery, sampler: Sampler) -> None:
    """Give the app its one task."""

    @app.task(name=IMAGE_TASK, bind=True)  # type: ignore[untyped-decorator]
    def draw(self: Task, **message: Any) -> None:
        request_id = str((self.request.headers or {}).get("request_id", ""))
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            sampler.handle(message)


# ---- the process ----------------------------------------------------------------------------------------------------


def main(settings: SamplerSettings) -> None:
    """Until SIGTERM or SIGINT; the order under way is finished first."""
    app, sampler = celery_app(settings.redis_url), Sampler(settings)
    register(app, sampler)
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
    logs.configure("sampler")  # after the worker was made, which sets the root logger's level to its own
    logging.getLogger("celery").setLevel(logging.WARNING)
    sampler.start()
    log.info("sampler_started", models=settings.sampler_models)
    try:
        worker.start()
    finally:
        sampler.stop()
    sys.exit(worker.exitcode)


def check(settings: SamplerSettings, *, live: bool = False) -> None:
    """Raises NotHealthy unless this host's sampler beats, or with `live` may do so unseen: Redis is away."""
    client = Redis.from_url(
        settings.redis_url, socket_connect_timeout=PROBE_S, socket_timeout=PROBE_S, retry=Retry(NoBackoff(), 0)
    )
    try:
        if ImageBoard(client).beats(socket.gethostname(), now=board_of(client).now()):
            return
    except RedisError as error:
        if live:
            return
        raise NotHealthy(f"Redis does not answer: {error}") from error
    raise NotHealthy(f"no sampler on {socket.gethostname()} within the last {BEAT_TTL_S:g} s")
