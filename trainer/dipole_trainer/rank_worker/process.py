"""The rank worker: one process a reward, so that a reward that hangs fills its own lane and no other (ADR 4).

The parent forks a lane, a Celery worker with a few threads on the queue `rank.<reward>`, for every reward that a run
wants, also for those first wanted while it runs; restarts a lane that dies; ends lanes nobody wanted for a while.
Replicas share the queues. Lanes die with the parent, also when it is killed.

| who            | waits for                      | woken by                                               |
|----------------|--------------------------------|--------------------------------------------------------|
| the parent     | new runs, dead lanes, a signal | a publish on the lanes' channel, or LOOP_INTERVAL_S    |
| a lane         | messages on its reward's queue | Redis; a thread runs Lane.answer_message (task.py)     |
| metrics server | scrapes; adds up lanes' counts | Prometheus, where DIPOLE_METRICS_PORT is set           |
| a lane's claim | CLAIM_TTL_S without renewal    | the lane's renewing thread; else the ranker asks again |

Health: `dipole serve rank-worker --check` exits 0 when this host's rank worker has beaten within the last
HEARTBEAT_TTL_S seconds, which it does only while it reaches Redis and its lanes stand; with `--live` also while Redis
is away, because no restart would bring Redis back. Containers look at the files that it touches instead (HealthFiles).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import structlog
from redis import Redis
from redis.exceptions import RedisError

from dipole import logs, tracing
from dipole.broker.celery_app import create_celery_app
from dipole.broker.connection import connect_redis, describe_redis_error
from dipole.broker.process_health import HEARTBEAT_TTL_S, HealthFiles, check_heartbeat
from dipole.broker.rankings import TaskCoordination, queue_name
from dipole.broker.shared_memory import open_shared_memory
from dipole.settings import MetricsSettings, RankWorkerSettings, load_settings
from dipole.stack.parent_death import die_with_parent
from dipole.stack.supervisor import STEADY_RUN_S, restart_delay_s
from dipole.vault import Vault
from dipole_trainer.rank_worker.task import Lane, OnRequest, register_rank_task

log = structlog.get_logger()

MAX_LANES = 64
LOOP_INTERVAL_S = 1.0  # a blocking read on the announcements; a dead lane is seen within it
LANES_REFRESH_S = 10.0  # between looks at the wanted lanes when nothing is announced
# A lane is kept for so long after it was last wanted: a Redis that was restarted wants none until runs announce theirs
# anew, and requests under way need not be cut off for that.
LANE_GRACE_S = 30.0
METRICS_MODULE = "dipole_trainer.rank_worker.metrics"
METRICS_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's: lanes count in files of that folder
STOP_TIMEOUT_S = 3.0  # for the requests under way; what is cut off is asked again


@dataclass
class _LaneProcess:
    """A lane's process, and when it may be started again after deaths."""

    process: BaseProcess
    started: float
    deaths: int = 0
    last_wanted: float = 0.0


def run_lane(settings: RankWorkerSettings, reward: str, parent: int) -> None:
    """A lane's whole life, in its own process."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(parent)
    app = create_celery_app(settings.redis_url)
    register_rank_task(app, Lane(settings, on_request=_make_observer()))
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
    logs.configure_logging(f"rank-worker/{reward}")  # after the worker was made, which sets the root logger's level
    logging.getLogger("celery").setLevel(logging.WARNING)
    tracing.configure_tracing("rank-worker")
    worker.start()
    tracing.stop_tracing()
    sys.exit(worker.exitcode)


def _make_observer() -> OnRequest | None:
    """What counts a lane's requests; nothing where nobody asks for metrics."""
    if METRICS_FOLDER_VARIABLE not in os.environ:
        return None
    observer: OnRequest = importlib.import_module(METRICS_MODULE).LaneMetrics().observe_request
    return observer


def run_metrics_server(settings: RankWorkerSettings, folder: str, parent: int) -> None:
    """Imports what the parent must not (metrics.py)."""
    importlib.import_module(METRICS_MODULE).run_metrics_server(settings, folder, parent)


class RankWorker:
    """The parent. It asks no endpoint itself and has one thread, so that it can fork."""

    def __init__(self, settings: RankWorkerSettings, metrics_folder: str | None = None) -> None:
        self._settings, self._metrics_folder = settings, metrics_folder
        self._coordination = TaskCoordination(connect_redis(settings.redis_url), settings.candidate_ttl_s)
        self._context: BaseContext = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._lane_processes: dict[str, _LaneProcess] = {}
        self._metrics_server: _LaneProcess | None = None
        self._stopping = False
        self._health_files = HealthFiles(settings, "rank-worker")
        self._memory = open_shared_memory(settings)

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        log.info("rank_worker_started", threads_per_reward=self._settings.rank_threads)
        try:
            while not self._stopping:
                try:
                    self._ensure_metrics_server()
                    self._follow_announcements()
                except RedisError as error:
                    log.warning("redis_failed", error=describe_redis_error(error))
                    self._health_files.touch(ready=False)
                    time.sleep(LOOP_INTERVAL_S)
        finally:
            self._end_lanes(list(self._lane_processes))

    def _follow_announcements(self) -> None:
        """Serve lanes for as long as the subscription lives."""
        with contextlib.closing(self._coordination.subscribe_lanes()) as announcements:
            wanted, look_at = self._coordination.wanted_lanes(), time.monotonic() + LANES_REFRESH_S
            while not self._stopping:
                self._adjust_lanes(wanted)
                if announcements.get_message(timeout=LOOP_INTERVAL_S) or time.monotonic() > look_at:
                    self._sweep_memory()
                    wanted, look_at = self._coordination.wanted_lanes(), time.monotonic() + LANES_REFRESH_S

    def _adjust_lanes(self, wanted: list[str]) -> None:
        """Start, restart and end lanes so that the wanted ones stand; beat when they do."""
        self._ensure_metrics_server()
        if len(wanted) > MAX_LANES:
            log.error("too_many_rewards", wanted=len(wanted), limit=MAX_LANES)
        for reward in wanted[:MAX_LANES]:
            self._ensure_lane(reward)
        now = time.monotonic()
        for reward in wanted[:MAX_LANES]:
            self._lane_processes[reward].last_wanted = now
        self._end_lanes([name for name, slot in self._lane_processes.items() if now - slot.last_wanted > LANE_GRACE_S])
        if all(slot.process.is_alive() for slot in self._lane_processes.values()):
            # each time: a Redis that was restarted forgot it
            memory_id = self._memory.id if self._memory else ""
            self._coordination.record_heartbeat(socket.gethostname(), HEARTBEAT_TTL_S, memory_id)
            self._health_files.touch(ready=True)

    def _sweep_memory(self) -> None:
        """A trainer that was killed left its images, and may never start again on this machine."""
        if self._memory is not None and (swept := self._memory.sweep()):
            log.info("candidate_memory_swept", owners=swept)

    def _ensure_lane(self, reward: str) -> None:
        slot = self._lane_processes.get(reward)
        self._lane_processes[reward] = self._ensure_process(slot, reward, run_lane, self._settings, reward)

    def _ensure_metrics_server(self) -> None:
        if self._metrics_folder is not None:
            self._metrics_server = self._ensure_process(
                self._metrics_server, "metrics server", run_metrics_server, self._settings, self._metrics_folder
            )

    def _ensure_process(
        self, slot: _LaneProcess | None, name: str, run: Callable[..., None], *arguments: object
    ) -> _LaneProcess:
        """The slot's process, or one that is started anew; after several deaths with a pause."""
        now = time.monotonic()
        if slot is not None and slot.process.is_alive():
            return slot
        deaths = 0 if slot is None or now - slot.started > STEADY_RUN_S else slot.deaths + 1
        if slot is not None and now < slot.started + restart_delay_s(deaths + 1):
            return slot
        if slot is not None:
            log.warning("lane_restarted", reward=name, exitcode=slot.process.exitcode, deaths=deaths)
            self._forget_figures(slot.process.pid)
        process = self._context.Process(  # type: ignore[attr-defined]
            target=run, args=(*arguments, os.getpid()), name=name, daemon=True
        )
        process.start()
        log.info("lane_started", reward=name, pid=process.pid)
        return _LaneProcess(process, now, deaths)

    def _forget_figures(self, pid: int | None) -> None:
        """A process that has ended is no longer told of; otherwise its files would stay for ever."""
        for path in Path(self._metrics_folder).glob(f"*_{pid}.db") if self._metrics_folder else ():
            path.unlink(missing_ok=True)

    def _end_lanes(self, rewards: list[str]) -> None:
        slots = [self._lane_processes.pop(reward) for reward in rewards]
        for slot in slots:
            slot.process.terminate()
        until = time.monotonic() + STOP_TIMEOUT_S
        for slot in slots:
            slot.process.join(max(until - time.monotonic(), 0))
            if slot.process.is_alive():
                slot.process.kill()
                slot.process.join()
            self._forget_figures(slot.process.pid)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def check_health(settings: RankWorkerSettings, *, live: bool = False) -> None:
    """Raises ProcessUnhealthy unless this host's rank worker beats; with `live` it may do so unseen: Redis is away."""

    def has_heartbeat(client: Redis, host: str) -> bool:
        return TaskCoordination(client, settings.candidate_ttl_s).has_heartbeat(host)

    check_heartbeat("rank worker", settings.redis_url, has_heartbeat, live=live)


def run_rank_worker(settings: RankWorkerSettings) -> None:
    logs.configure_logging("rank-worker")
    Vault.from_environment()  # a key that is none is said here, not by lanes that die of it
    if load_settings(MetricsSettings).metrics_port is None:
        return RankWorker(settings).run()
    with tempfile.TemporaryDirectory(prefix="dipole-metrics-") as folder:
        os.environ[METRICS_FOLDER_VARIABLE] = folder
        RankWorker(settings, folder).run()
