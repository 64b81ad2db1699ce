"""The trainer worker: claims one job at a time, trains it, releases it. `dipole serve worker` runs main().

SQL says what there is to do; an idle worker looks every IDLE_S seconds, and on the same round looks whether rewards
that jobs wait for are back (GET /readyz of the endpoint, or what its kind has for it). A job ends in one of these ways:
- trained to its end, cancelled, or paused by its caller: the session returns, the job's state follows;
- a required reward is away: the job pauses with the reason and is queued again when the endpoint is back;
- any other error: the job fails with a sentence;
- the GPU computes nothing more in this process: the process ends, and whoever starts it again clears that;
- SIGTERM or SIGINT: the session stops at its next step with a checkpoint, the job goes back to the queue;
- kill -9, power, also of one of several processes: the lease runs out, another worker goes on from the last checkpoint;
- the lease is lost (this machine slept, or lost the database): nothing more is written.

Under `accelerate launch` every process runs main(), and the first is the worker; followers.py tells what the others do.

Health, for orchestrators: a worker touches `DIPOLE_HOME/worker-HOSTNAME.health` every heartbeat and every idle look.
`python -m dipole_trainer.worker --check` exits 0 while that is younger than HEALTHY_S; use it as an exec probe, for
liveness and readiness alike, with a period of 15 s or more and a timeout of 10 s. It does not import torch.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.client.connection import EndpointError
from dipole.client.rank_client import RankClient
from dipole.errors import ConfigurationError, DipoleError, InvalidInput, LeaseLost, NotFound, RewardUnavailable
from dipole.settings import PlatformSettings
from dipole_trainer.compute import gpu
from dipole_trainer.database.engine import Database
from dipole_trainer.distributed.failures import ProcessLost
from dipole_trainer.distributed.group import World
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.jobs.ranking_ledger import Ledger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.celery_ranker import CeleryRanker, ResolvedReward
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import RewardSpec, TrainSpec, asks_rewards
from dipole_trainer.storage.artifacts import Artifacts
from dipole_trainer.training.interface import Session
from dipole_trainer.weights import base_models
from dipole_trainer.worker import followers
from dipole_trainer.worker.claimed_job import Hold
from dipole_trainer.worker.followers import MakeRanker
from dipole_trainer.worker.health import touch

if TYPE_CHECKING:
    pass

log = structlog.get_logger()

IDLE_S = 1.0
LOOK_TIMEOUT_S = 5.0
MAX_ERROR_CHARS = 2000

Outcome = Literal["succeeded", "paused", "cancelled"]


class Worker:
    """One worker over one database. `session`, `make_ranker` and `transport` are the seams for tests.

    `world` has the other processes that train with it.
    """

    def __init__(
        self,
        settings: PlatformSettings,
        session: Session,
        make_ranker: MakeRanker = CeleryRanker,
        *,
        world: World | None = None,
        transport: httpx.BaseTransport | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self.world = world or World()
        self.settings, self._session, self._make_ranker = settings, session, make_ranker
        self._transport, self._idle_s = transport, idle_s
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.database = Database(settings.database_url)
        self.store, self.ledger = JobStore(self.database), Ledger(self.database)
        self.rewards = RewardRegistry(self.database)
        self.artifacts = Artifacts(settings.artifacts_url, settings.home / "work")
        self.stopping = threading.Event()

    def run(self) -> None:
        """Work until `stopping` is set."""
        log.info("worker_started", worker=self.name)
        while not self.stopping.is_set():
            try:
                self.resume_waiting()
                worked = self.work()
            except SQLAlchemyError as error:  # the database is away: so is everybody's
                log.warning("database_unreachable", error=str(error))
                worked = False
            if not worked:
                touch(self.settings)
                self.world.exchange({})  # nothing to do; and so an idle worker learns that a process of its own died
                self.stopping.wait(self._idle_s)
        self.world.exchange(followers.END)
        self.database.close()
        log.info("worker_stopped", worker=self.name)

    def work(self) -> bool:
        """Claim a job and train it for as long as this worker holds it; False when there was none."""
        claim = self.store.claim(self.name, self.settings.lease_s)
        if claim is None:
            return False
        touch(self.settings)
        with structlog.contextvars.bound_contextvars(job_id=claim.job_id):
            log.info("job_claimed", fence=claim.fence)
            try:
                state = self._train(claim)
            except LeaseLost as error:
                log.warning("lease_lost", reason=str(error))
            else:
                log.info("job_left", state=state)
        gpu.free()
        return True

    def resume_waiting(self) -> None:
        """Queue the jobs whose reward has come back."""
        for job_id, reward in self.store.due_waits():
            try:
                spec = next((each for each in self.store.spec(job_id).rewards if each.name == reward), None)
                back = spec is not None and self._is_back(spec)
            except InvalidInput:
                back = True  # let the job run into it, and fail with that sentence
            if back:
                self.store.reward_is_back(job_id, reward)

    # ---- one job ------------------------------------------------------------------------------------------------

    def _train(self, claim: Claim) -> str:
        """Train, and write how it ended; the job's state then."""
        workdir = self.artifacts.workdir(claim.job_id)
        hold = Hold(
            claim,
            self.store,
            self.ledger,
            self.artifacts,
            workdir,
            lease_s=self.settings.lease_s,
            stopping=self.stopping,
            on_beat=lambda: touch(self.settings),
        )
        with hold:
            try:
                hold.checkout()
                outcome = self._run_session(claim, hold)
                hold.sync()
            except (LeaseLost, ProcessLost, SQLAlchemyError):  # not its fault: the lease runs out, another goes on
                raise
            except RewardUnavailable as error:  # the session has written a checkpoint, which is in the store
                return self.store.wait_for_reward(claim, error.reward, str(error))
            except (KeyboardInterrupt, SystemExit):
                self.store.release(claim, "the worker was stopped")
                raise
            except Exception as error:
                log.exception("job_failed")
                explained = _explain(error)
                if gpu.lost():  # ends as by kill -9, which is counted: no job does this for ever
                    hold.on_event("accelerator_lost", {"reason": explained["message"]})
                    raise
                return self.store.finish(claim, "failed", error=explained)
            if outcome == "paused" and self.stopping.is_set():
                return self.store.release(claim, "the worker was stopped")
            return self.store.finish(claim, outcome)

    def _run_session(self, claim: Claim, hold: Hold) -> Outcome:
        spec = claim.spec
        base_models.check_name(spec.model, self.settings.models_dir)
        rewards = [self._resolve(reward) for reward in spec.rewards] if asks_rewards(spec) else []
        with self.artifacts.data(spec) as data:
            return self._with_ranker(claim, hold, spec, rewards, data)

    def _with_ranker(
        self, claim: Claim, hold: Hold, spec: TrainSpec, rewards: Sequence[ResolvedReward], data: Path | None
    ) -> Outcome:
        ranker = self._make_ranker(self.settings, claim.job_id, rewards, hold.on_ranked)
        self.world.exchange(followers.job(claim.job_id, spec, rewards))
        try:
            return self._session(
                spec,
                job_id=claim.job_id,
                workdir=hold.workdir,
                models_dir=self.settings.models_dir,
                rank=ranker,
                on_event=hold.on_event,
                control=hold.control,
                data=data,
            )
        finally:
            (ranker.close if isinstance(ranker, CeleryRanker) else ranker.cancel)()
            self.world.leave()

    def _resolve(self, spec: RewardSpec) -> ResolvedReward:
        """The endpoint that a reward means now. Raises InvalidInput when it is gone or no longer allowed."""
        try:
            return ResolvedReward(
                spec, self.rewards.resolve(spec, self.settings.reward_hosts, field=f"reward {spec.name}")
            )
        except NotFound as error:
            raise InvalidInput(f"reward {spec.name} is no longer registered", field="rewards") from error

    def _is_back(self, spec: RewardSpec) -> bool:
        """Whether the endpoint is ready; one without /readyz is, when it answers at all. Raises InvalidInput."""
        try:
            endpoint = self._resolve(spec).endpoint
            with RankClient(endpoint, tls_dir=self.settings.tls_dir, transport=self._transport) as client:
                return client.ready(deadline_s=LOOK_TIMEOUT_S)[0] < 500
        except EndpointError:
            return False
        except ConfigurationError:  # its key or certificates are elsewhere: let the job try, or fail with that sentence
            return True


def _explain(error: Exception) -> dict[str, str | None]:
    """A failed job's `error`: our own errors speak for themselves, others need their type to be understood."""
    ours = isinstance(error, DipoleError)
    message = str(error) if ours else f"{type(error).__name__}: {error}"
    code = error.slug.replace("-", "_") if isinstance(error, DipoleError) else "internal"
    return {
        "code": code,
        "message": message[:MAX_ERROR_CHARS],
        "param": getattr(error, "field", None) if ours else None,
    }
