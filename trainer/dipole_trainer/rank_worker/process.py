"""The rank worker: one process a reward, so that a reward that hangs fills its own lane and no other (ADR 0003).

The parent forks a lane, a Celery worker with a few threads on the queue `rank.<reward>`, for every reward that a run
wants, also for those first wanted while it runs; restarts a lane that dies; ends lanes nobody wanted for a while.
Replicas share the queues. Lanes die with the parent, also when it is killed.

Health, for orchestrators: `dipole serve rank-worker --check` exits 0 when this host's rank worker has beaten within
the last BEAT_TTL_S seconds, which it does only while it reaches Redis and its lanes stand: an exec probe for readiness,
with a period of 15 s or more and a timeout of 10 s. For liveness add `--live`: it exits 0 also while Redis is away,
because no restart would bring Redis back.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType

import structlog
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from dipole import logs
from dipole.broker.connection import celery_app, connect
from dipole.broker.rankings import Board, queue_name
from dipole.errors import DipoleError
from dipole.settings import RankWorkerSettings
from dipole.stack.parent_death import die_with
from dipole_trainer.rank_worker.task import Lane, register

log = structlog.get_logger()

MAX_LANES = 64
BEAT_TTL_S = 30.0
TICK_S = 1.0  # a blocking read on the announcements; a dead lane is seen within it
LOOK_S = 10.0  # between looks at the wanted lanes when nothing is announced
PROBE_S = 3.0  # for Redis to answer a probe, which has seconds itself
STOP_S = 3.0  # for the requests under way; what is cut off is asked again


class NotHealthy(DipoleError):
    """The rank worker of this host does not beat."""

    slug = "not-healthy"


@dataclass
class _Slot:
    """A lane's process, and when it may be started again after deaths."""

    process: BaseProcess
    started: float
    deaths: int = 0


def run_lane(settings: RankWorkerSettings, reward: str, parent: int) -> None:
    """A lane's whole life, in its own process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    die_with(parent)
    logs.configure(f"rank-worker/{reward}")
    app = celery_app(settings.redis_url)
    register(app, Lane(settings))
    worker = app.Worker(
        hostname=f"{reward}@{socket.gethostname()}.{os.getpid()}",
        queues=[queue_name(reward)],
        pool="threads",
        concurrency=settings.rank_threads,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
        loglevel="WARNING",
    )
    worker.start()
    sys.exit(worker.exitcode)


class RankWorker:
    """The parent. It asks no endpoint itself and has one thread, so that it can fork."""

    def __init__(self, settings: RankWorkerSettings) -> None:
        self._settings = settings
        self._board = Board(connect(settings.redis_url), settings.candidate_ttl_s)
        self._context: BaseContext = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._slots: dict[str, _Slot] = {}
        self._stopping = False
        self._beat_at = 0.0

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        log.info("rank_worker_started", threads_per_reward=self._settings.rank_threads)
        try:
            while not self._stopping:
                try:
                    self._watch()
                except RedisError as error:
                    log.warning("redis_unreachable", error=str(error))
                    time.sleep(TICK_S)
        finally:
            self._end(list(self._slots))

    def _watch(self) -> None:
        """Serve lanes for as long as the subscription lives."""
        with contextlib.closing(self._board.lane_announcements()) as announcements:
            wanted, look_at = self._board.lanes(), time.monotonic() + LOOK_S
            while not self._stopping:
                self._tend(wanted)
                if announcements.get_message(timeout=TICK_S) or time.monotonic() > look_at:
                    wanted, look_at = self._board.lanes(), time.monotonic() + LOOK_S

    def _tend(self, wanted: list[str]) -> None:
        """Start, restart and end lanes so that exactly the wanted ones stand; beat when they do."""
        if len(wanted) > MAX_LANES:
            log.error("too_many_rewards", wanted=len(wanted), limit=MAX_LANES)
        for reward in wanted[:MAX_LANES]:
            self._ensure(reward)
        self._end([reward for reward in self._slots if reward not in wanted])
        now = time.monotonic()
        if now >= self._beat_at and all(slot.process.is_alive() for slot in self._slots.values()):
            self._board.beat(socket.gethostname(), BEAT_TTL_S)
            self._beat_at = now + BEAT_TTL_S / 4

    def _ensure(self, reward: str) -> None:
        slot, now = self._slots.get(reward), time.monotonic()
        if slot is not None and slot.process.is_alive():
            return
        deaths = 0 if slot is None or now - slot.started > 60 else slot.deaths + 1
        if slot is not None and now < slot.started + min(0.5 * 2**deaths, 30):
            return
        if slot is not None:
            log.warning("lane_restarted", reward=reward, exitcode=slot.process.exitcode, deaths=deaths)
        process = self._context.Process(  # type: ignore[attr-defined]
            target=run_lane, args=(self._settings, reward, os.getpid()), name=reward, daemon=True
        )
        process.start()
        log.info("lane_started", reward=reward, pid=process.pid)
        self._slots[reward] = _Slot(process, now, deaths)

    def _end(self, rewards: list[str]) -> None:
        slots = [self._slots.pop(reward) for reward in rewards]
        for slot in slots:
            slot.process.terminate()
        until = time.monotonic() + STOP_S
        for slot in slots:
            slot.process.join(max(until - time.monotonic(), 0))
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def check(settings: RankWorkerSettings, *, live: bool = False) -> None:
    """Raises NotHealthy unless this host's rank worker beats, or with `live` may do so unseen: Redis is away."""
    client = Redis.from_url(
        settings.redis_url, socket_connect_timeout=PROBE_S, socket_timeout=PROBE_S, retry=Retry(NoBackoff(), 0)
    )
    try:
        if Board(client, settings.candidate_ttl_s).beats(socket.gethostname()):
            return
    except RedisError as error:
        if live:
            return
        raise NotHealthy(f"Redis does not answer: {error}") from error
    raise NotHealthy(f"no rank worker on {socket.gethostname()} within the last {BEAT_TTL_S:g} s")


def main(settings: RankWorkerSettings) -> None:
    logs.configure("rank-worker")
    RankWorker(settings).run()
