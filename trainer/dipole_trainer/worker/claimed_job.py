"""A worker's hold on one job while it trains: the heartbeat thread, and what the training session may call.

check_control() answers what is desired, store_event() and store_ranking() write into the store under the claim's
fence. When the lease is lost, or may be (no heartbeat came through for its length), all of them raise LeaseLost: the
session ends where it stands and nothing more is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import stamina
import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.database.failures import AWAY_ERRORS, describe_database_error
from dipole.errors import DependencyUnavailable, DipoleError, LeaseLost
from dipole.protocol import job_events
from dipole_trainer.jobs.leases import Claim, DesiredState
from dipole_trainer.jobs.ranking_ledger import LEDGER_REPORT, RankingLedger, make_ledger_entry
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.ranking.weight_changes import WeightChange
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.storage.job_layout import checkpoint_steps

log = structlog.get_logger()
T = TypeVar("T")

# events of files that callers look for
FILE_EVENTS = (
    job_events.SamplesWritten.kind,
    job_events.EvaluationFinished.kind,
    job_events.FileExported.kind,
    job_events.ReportWritten.kind,
)


class ClaimedJob:
    """Use as a context manager: the heartbeats run inside."""

    def __init__(
        self,
        claim: Claim,
        store: JobStore,
        ledger: RankingLedger,
        artifacts: ArtifactStore,
        workdir: Path,
        *,
        lease_s: float,
        stopping: threading.Event,
        on_heartbeat: Callable[[], None],
    ) -> None:
        self.claim, self.store, self.ledger, self.artifacts, self.workdir = claim, store, ledger, artifacts, workdir
        self._lease_s, self._stopping, self._on_heartbeat = lease_s, stopping, on_heartbeat
        self._desired: DesiredState = "run"
        self._lease_lost: LeaseLost | None = None
        self._last_renewal = time.monotonic()
        self._stop_heartbeat = threading.Event()
        self._metrics: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._heartbeat_loop, name=f"heartbeat {claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_heartbeat.set()
        self._thread.join()

    # ---- what the session calls ---------------------------------------------------------------------------------

    def check_control(self) -> DesiredState:
        """What the session should do now; a worker that is told to stop pauses its job. Raises LeaseLost."""
        if self._lease_lost is None and time.monotonic() - self._last_renewal > self._lease_s:
            self._lease_lost = LeaseLost(
                f"no heartbeat of job {self.claim.job_id} came through for {self._lease_s:g} s"
            )
        if self._lease_lost is not None:
            raise self._lease_lost
        return "pause" if self._stopping.is_set() and self._desired == "run" else self._desired

    def store_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Store what the session reports; copy its files where callers find them."""
        self.check_control()
        # on another process of this worker
        if kind == LEDGER_REPORT:
            self.write_with_retries(lambda: self.ledger.keep_ranking(self.claim, data))
            return
        if kind == job_events.CheckpointWritten.kind:
            self._store_checkpoint(int(data["step"]), str(data["path"]))
            return
        if kind == job_events.StepFinished.kind:
            self._metrics = {"train_loss": data.get("loss"), **dict(data.get("rewards") or {})}
        if kind in FILE_EVENTS:
            self.sync_files()
        self.write_with_retries(lambda: self.store.append_event(self.claim, kind, data))

    def take_weight_changes(self, step: int) -> Sequence[WeightChange]:
        """The job's changes of weights; those that are new count from `step`. Raises LeaseLost."""
        return self.write_with_retries(lambda: self.store.take_weight_changes(self.claim, step))

    def store_ranking(self, group: CandidateGroup, reward: str, result: RewardResult) -> None:
        self.store_event(LEDGER_REPORT, make_ledger_entry(group, reward, result))

    def checkout_files(self) -> None:
        """Bring the job's files here. It may take long, so heartbeats run meanwhile; errors are met as by sync."""
        for attempt in self._retry_attempts(_may_pass):
            with attempt:
                self.check_control()
                self.artifacts.checkout_job(self.claim.job_id)

    def sync_files(self) -> None:
        """Copy files to the store, which knows no fence: the lease is proven right before.

        Raises LeaseLost, and DependencyUnavailable where the store is away or full for longer than the lease.
        """
        for attempt in self._retry_attempts(_may_pass):
            with attempt:
                self._renew_lease()
                self.artifacts.sync_job(self.claim.job_id, self.workdir)

    def write_with_retries(self, call: Callable[[], T]) -> T:
        """Survive a database that restarts or is full; it must be back while the lease holds."""
        for attempt in self._retry_attempts(AWAY_ERRORS):
            with attempt:
                return call()
        raise AssertionError("stamina either returns or raises")

    # ---- inside -------------------------------------------------------------------------------------------------

    def _store_checkpoint(self, step: int, path: str) -> None:
        """The files first, the row after: a row promises that its files are there."""
        self.sync_files()
        relative = str(Path(path).relative_to(self.workdir)) if Path(path).is_absolute() else path
        kept = checkpoint_steps(self.workdir)
        self.write_with_retries(lambda: self.store.add_checkpoint(self.claim, step, relative, self._metrics, kept=kept))

    def _retry_attempts(
        self, on: tuple[type[Exception], ...] | Callable[[Exception], bool]
    ) -> Iterable[AbstractContextManager[object]]:
        return stamina.retry_context(on=on, timeout=self._lease_s, attempts=None, wait_max=2.0)

    def _renew_lease(self) -> None:
        asked = time.monotonic()
        self._desired = self.store.renew_lease(self.claim, self._lease_s)
        self._last_renewal = asked

    def _heartbeat_loop(self) -> None:
        while not self._stop_heartbeat.wait(self._lease_s / 4):
            try:
                self._renew_lease()
            except LeaseLost as error:
                self._lease_lost = error
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat_failed", job=self.claim.job_id, error=describe_database_error(error))
                continue
            self._on_heartbeat()


def _may_pass(error: Exception) -> bool:
    """Whether the same may succeed later; our own errors are final, but for one."""
    return isinstance(error, DependencyUnavailable) or not isinstance(error, DipoleError)
