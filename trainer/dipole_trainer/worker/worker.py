"""The trainer worker: claims one job at a time, trains it, releases it. process.run_worker() runs it.

SQL says what there is to do; an idle worker looks every IDLE_S seconds, and on the same round looks whether what jobs
wait for is back: a reward (GET /readyz of the endpoint, or what its kind has for it), or room for their files, and
whether a job that nobody held has ended without its report. A job ends in one of these ways:
- trained to its end, cancelled, or paused by its caller: the session returns, the job's state follows;
- a required reward is away: the job pauses with the reason and is queued again when the endpoint is back;
- a disk is full, or the artifact store away: likewise, and it goes on from its last checkpoint when there is room;
- any other error: the job fails with a sentence;
- the GPU computes nothing more in this process: the process ends, and whoever starts it again clears that;
- SIGTERM or SIGINT: the session stops at its next step with a checkpoint, the job goes back to the queue;
- kill -9, power, also of one of several processes: the lease runs out, another worker goes on from the last checkpoint;
- the lease is lost (this machine slept, or lost the database): nothing more is written.

Under `accelerate launch` every process runs run_worker(), and the first is the worker; followers.py has the others.

Health, for orchestrators: a worker touches `DIPOLE_HOME/worker-HOSTNAME.health` every heartbeat and every idle look.
`python -m dipole_trainer.worker --check` exits 0 while that is younger than HEALTH_TIMEOUT_S; use it as an exec probe,
for liveness and readiness alike, with a period of 15 s or more and a timeout of 10 s. It does not import torch."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole import tracing
from dipole.client.connection import EndpointError
from dipole.client.rank_client import RankClient, tells_ready
from dipole.database.failures import describe_database_error
from dipole.errors import (
    ConfigurationError,
    DipoleError,
    InvalidInput,
    LeaseLost,
    NotFound,
    RewardUnavailable,
    is_storage_unavailable,
)
from dipole.protocol import job_events
from dipole.settings import PlatformSettings
from dipole_trainer.compute import gpu
from dipole_trainer.database.engine import Database
from dipole_trainer.distributed.failures import PeerLost
from dipole_trainer.distributed.group import ProcessGroup
from dipole_trainer.jobs.leases import Claim, DesiredState
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.score_store import SqlScoreStore
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.ranking.score_cache import ScoreCache
from dipole_trainer.ranking.weight_changes import apply_changes, read_weight_changes
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.registry.workers import WorkerRegistry
from dipole_trainer.spec import RewardSpec, TrainSpec
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.training.interface import RunSession
from dipole_trainer.weights import base_models
from dipole_trainer.worker import followers
from dipole_trainer.worker.claimed_job import ClaimedJob
from dipole_trainer.worker.followers import MakeRanker
from dipole_trainer.worker.health import touch_health_file
from dipole_trainer.worker.metrics import WorkerMetrics
from dipole_trainer.worker.published import WorkerReport
from dipole_trainer.worker.reports import ReportWriter

log = structlog.get_logger()

IDLE_S = 1.0
PROBE_TIMEOUT_S = 5.0
MAX_ERROR_CHARS = 2000

Outcome = Literal["succeeded", "paused", "cancelled"]


class Worker:
    """One worker over one database. `session`, `make_ranker` and `transport` are the seams for tests.

    `processes` has the other processes that train with it.
    """

    def __init__(
        self,
        settings: PlatformSettings,
        session: RunSession,
        make_ranker: MakeRanker = CeleryRanker,
        *,
        processes: ProcessGroup | None = None,
        transport: httpx.BaseTransport | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self.processes = processes or ProcessGroup()
        self.settings, self._session, self._make_ranker = settings, session, make_ranker
        self._transport, self._idle_s = transport, idle_s
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.database = Database(settings.database_url)
        self.store, self.ledger = JobStore(self.database), RankingLedger(self.database)
        self.rewards = RewardRegistry(self.database)
        self.artifacts = ArtifactStore(settings.artifacts_url, settings.home / "work")
        self.reports = ReportWriter(self.store, self.artifacts)
        self.report = WorkerReport(self.name, WorkerRegistry(self.database), settings)
        self.metrics = WorkerMetrics()
        self.stop_requested = threading.Event()

    def run(self) -> None:
        """Work until `stop_requested` is set."""
        log.info("worker_started", worker=self.name)
        self.report.start()
        while not self.stop_requested.is_set():
            try:
                self.requeue_waiting_jobs()
                worked = self.train_next_job() or self.reports.write_next_unheld()
            except SQLAlchemyError as error:
                # the database is away: so is everybody's
                log.warning("database_unreachable", error=describe_database_error(error))
                worked = False
            if not worked:
                touch_health_file(self.settings)
                self.processes.all_gather(
                    {}
                )  # nothing to do; and so an idle worker learns that a process of its own died
                self.stop_requested.wait(self._idle_s)
        self.report.stop()
        self.processes.all_gather(followers.END_MESSAGE)
        self.database.close()
        log.info("worker_stopped", worker=self.name)

    def train_next_job(self) -> bool:
        """Claim a job and train it for as long as this worker holds it; False when there was none."""
        claim = self.store.claim_job(self.name, self.settings.lease_s)
        if claim is None:
            return False
        touch_health_file(self.settings)
        with (
            structlog.contextvars.bound_contextvars(job_id=claim.job_id),
            tracing.trace_span("job", job_id=claim.job_id, fence=claim.fence),
        ):
            log.info("job_claimed", fence=claim.fence)
            state = "lost"
            try:
                state = self._train_claimed(claim)
            except LeaseLost as error:
                log.warning("lease_lost", reason=str(error))
            else:
                log.info("job_left", state=state)
            finally:
                self.metrics.jobs.labels(state).inc()
                tracing.set_attributes(state=state)
        gpu.free_memory()
        return True

    def requeue_waiting_jobs(self) -> None:
        """Queue the jobs that may go on: their reward has come back, or there is room for their files."""
        for job_id, reward in self.store.take_due_waits():
            if reward is None:
                back = self.artifacts.has_room(job_id)
            else:
                try:
                    changes = read_weight_changes(self.store.get_job(job_id).weight_changes)
                    rewards = apply_changes(self.store.load_spec(job_id).rewards, changes)
                    spec = next((each for each in rewards if each.name == reward), None)
                    # one whose weight was taken away meanwhile is waited for no more
                    back = spec is not None and (not spec.required or self._is_reward_back(spec))
                except InvalidInput:
                    back = True  # let the job run into it, and fail with that sentence
            if back:
                self.store.requeue_waiting_job(job_id, reward)

    # ---- one job ------------------------------------------------------------------------------------------------

    def _train_claimed(self, claim: Claim) -> str:
        """Train, and write how it ended; the job's state then."""
        workdir = self.artifacts.job_workdir(claim.job_id)
        claimed = ClaimedJob(
            claim,
            self.store,
            self.ledger,
            self.artifacts,
            workdir,
            lease_s=self.settings.lease_s,
            stopping=self.stop_requested,
            on_heartbeat=lambda: touch_health_file(self.settings),
        )
        with claimed:
            try:
                claimed.checkout_files()
                outcome = self._run_session(claim, claimed)
                if outcome != "paused":
                    self.reports.write_ending(claimed, outcome)
                claimed.sync_files()
            except (LeaseLost, PeerLost, SQLAlchemyError):
                # not its fault: the lease runs out, another goes on
                raise
            except RewardUnavailable as error:
                # the session has written a checkpoint, which is in the store
                reward, reason = error.reward, str(error)
                return claimed.write_with_retries(lambda: self.store.wait_for_reward(claim, reward, reason))
            except (KeyboardInterrupt, SystemExit):
                self.store.release_job(claim, "the worker was stopped")
                raise
            except Exception as error:
                claimed.check_control()  # what another worker does to the files of a job that it took is no failure
                explained = _explain_failure(error)
                if is_storage_unavailable(error):
                    why = str(explained["message"])
                    log.warning("storage_unavailable", error=why)
                    return claimed.write_with_retries(lambda: self.store.wait_for_storage(claim, why))
                log.exception("job_failed")
                # ends as by kill -9, which is counted: no job does this for ever
                if gpu.is_context_lost():
                    job_events.AcceleratorLost(reason=str(explained["message"])).report(claimed.store_event)
                    raise
                self.reports.write_ending(claimed, "failed", str(explained["message"]))
                return claimed.write_with_retries(lambda: self.store.finish_job(claim, "failed", error=explained))
            if outcome == "paused" and self.stop_requested.is_set():
                return self.store.release_job(claim, "the worker was stopped")
            return claimed.write_with_retries(lambda: self.store.finish_job(claim, outcome))

    def _run_session(self, claim: Claim, claimed: ClaimedJob) -> Outcome:
        spec = claim.spec
        base_models.check_model_name(spec.model, self.settings.models_dir)
        rewards = [self._resolve_reward(reward) for reward in spec.asked_rewards]
        with self.artifacts.offline_data(spec) as data:
            return self._run_with_ranker(claim, claimed, spec, rewards, data)

    def _run_with_ranker(
        self, claim: Claim, claimed: ClaimedJob, spec: TrainSpec, rewards: Sequence[ResolvedReward], data: Path | None
    ) -> Outcome:
        self._put_to_sleep(rewards)
        cache = self._open_score_cache()
        ranker = self._make_ranker(self.settings, claim.job_id, rewards, claimed.store_ranking, cache)
        self.processes.all_gather(followers.job_message(claim.job_id, spec, rewards))

        def report(kind: str, data: Mapping[str, Any]) -> None:
            claimed.store_event(kind, data)
            self.metrics.observe_event(kind, data)
            # with what a resumed job goes on from, so that nothing is counted twice
            if kind == job_events.CheckpointWritten.kind:
                _report_saved(cache, claimed)

        def control() -> DesiredState:
            self.metrics.observe_waiting(ranker)
            return claimed.check_control()

        try:
            with self.metrics.watch_job(claim.job_id, spec):
                outcome = self._session(
                    spec,
                    job_id=claim.job_id,
                    workdir=claimed.workdir,
                    models_dir=self.settings.models_dir,
                    ranker=ranker,
                    on_event=report,
                    control=control,
                    data=data,
                    candidates_max_gib=self.settings.candidates_max_gib,
                    take_weight_changes=claimed.take_weight_changes,
                )
            _report_saved(cache, claimed)
            return outcome
        finally:
            ranker.close()
            self.processes.leave_run()

    def _put_to_sleep(self, rewards: Sequence[ResolvedReward]) -> None:
        """Rewards on this GPU make room for the model; rank workers do so from then on. None of them has to obey."""
        for each in rewards:
            if each.endpoint.is_colocated:
                try:
                    with RankClient(each.endpoint, tls_dir=self.settings.tls_dir, transport=self._transport) as client:
                        client.sleep_weights()
                except (EndpointError, ConfigurationError) as error:
                    log.warning("reward_not_asleep", reward=each.spec.name, error=str(error))

    def _open_score_cache(self) -> ScoreCache | None:
        store = SqlScoreStore(self.database, self.settings.score_cache_groups)
        store.sweep()  # a small job keeps too little to do so
        if self.settings.score_cache_groups == 0:
            return None
        return ScoreCache(store, tls_dir=self.settings.tls_dir, transport=self._transport)

    def _resolve_reward(self, spec: RewardSpec) -> ResolvedReward:
        """The endpoint that a reward means now. Raises InvalidInput when it is gone or no longer allowed."""
        try:
            return ResolvedReward(
                spec, self.rewards.resolve_endpoint(spec, self.settings.reward_hosts, field=f"reward {spec.name}")
            )
        except NotFound as error:
            raise InvalidInput(f"reward {spec.name} is no longer registered", field="rewards") from error

    def _is_reward_back(self, spec: RewardSpec) -> bool:
        """Whether the endpoint is ready; one without /readyz is, when it answers at all. Raises InvalidInput."""
        try:
            endpoint = self._resolve_reward(spec).endpoint
            with RankClient(endpoint, tls_dir=self.settings.tls_dir, transport=self._transport) as client:
                return tells_ready(client.probe_readiness(deadline_s=PROBE_TIMEOUT_S)[0])
        except EndpointError:
            return False
        except ConfigurationError:
            # its key or certificates are elsewhere: let the job try, or fail with that sentence
            return True


def _report_saved(cache: ScoreCache | None, claimed: ClaimedJob) -> None:
    """Tell what rewards were not asked since it was last told."""
    for reward, saved in (cache.take_saved() if cache is not None else {}).items():
        event = job_events.ScoresReused(reward=reward, groups=saved.groups, seconds=round(saved.seconds, 3))
        event.report(claimed.store_event)


def _explain_failure(error: Exception) -> dict[str, str | None]:
    """A failed job's `error`: our own errors speak for themselves, others need their type to be understood."""
    ours = isinstance(error, DipoleError)
    message = str(error) if ours else f"{type(error).__name__}: {error}"
    code = error.slug.replace("-", "_") if isinstance(error, DipoleError) else "internal"
    return {
        "code": code,
        "message": message[:MAX_ERROR_CHARS],
        "param": getattr(error, "field", None) if ours else None,
    }
