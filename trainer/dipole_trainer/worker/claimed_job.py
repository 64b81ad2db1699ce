"""A worker's hold on one job while it trains: the heartbeat thread, and what the training session may call.

control() answers what is desired, on_event() and on_ranked() write into the store under the claim's fence. When the
lease is lost, or may be (no heartbeat came through for its length), all of them raise LeaseLost: the session ends where
it stands and nothing more is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import stamina
import structlog
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from dipole.errors import DipoleError, LeaseLost
from dipole_trainer.jobs.leases import Claim, Desired
from dipole_trainer.jobs.ranking_ledger import Ledger, entry
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.groups import Group, RewardResult
from dipole_trainer.storage.artifacts import Artifacts
from dipole_trainer.storage.job_layout import checkpoint_steps

log = structlog.get_logger()
T = TypeVar("T")

# What an event says in a sentence; `data` has the numbers. Kinds that are not here are named by themselves.
MESSAGES: dict[str, str] = {
    "step": "Step {step}/{steps}: training loss {loss}",
    "evaluating": "Evaluating at step {step}: {prompts_done} of {prompts} prompts",
    "evaluation": "Evaluation at step {step}",
    "best": "The best is step {step}: {score} {value}",
    "resumed": "Going on from the checkpoint at step {step}",
    "samples": "Samples at step {step}",
    "export": "LoRA written to {path}",
    "out_of_memory": "Out of memory: {chunk_size} samples are worked on at once from here on",
    "slow_precision": "Advice: {what}",
    "skipped_group": "A group was skipped: {reason}",
    "reward_failure": "Reward {reward} was left out of a group: {reason}",
    "reward_hacking": "Reward hacking: {what}",
    "accelerator_lost": "The GPU computes nothing more in this worker, which starts anew: {reason}",
}
WARNINGS = ("out_of_memory", "slow_precision", "skipped_group", "reward_failure", "reward_hacking", "accelerator_lost")
SYNCED = ("samples", "evaluation", "export")


class Hold:
    """Use as a context manager: the heartbeats run inside."""

    def __init__(
        self,
        claim: Claim,
        store: JobStore,
        ledger: Ledger,
        artifacts: Artifacts,
        workdir: Path,
        *,
        lease_s: float,
        stopping: threading.Event,
        on_beat: Callable[[], None],
    ) -> None:
        self.claim, self.store, self.ledger, self.artifacts, self.workdir = claim, store, ledger, artifacts, workdir
        self._lease_s, self._stopping, self._on_beat = lease_s, stopping, on_beat
        self._desired: Desired = "run"
        self._lost: LeaseLost | None = None
        self._beaten = time.monotonic()
        self._ended = threading.Event()
        self._metrics: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    # ---- what the session calls ---------------------------------------------------------------------------------

    def control(self) -> Desired:
        """What the session should do now; a worker that is told to stop pauses its job. Raises LeaseLost."""
        if self._lost is None and time.monotonic() - self._beaten > self._lease_s:
            self._lost = LeaseLost(f"no heartbeat of job {self.claim.job_id} came through for {self._lease_s:g} s")
        if self._lost is not None:
            raise self._lost
        return "pause" if self._stopping.is_set() and self._desired == "run" else self._desired

    def on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Store what the session reports; copy its files where callers find them."""
        self.control()
        if kind == "ranked":  # on another process of this worker
            self._write(lambda: self.ledger.keep(self.claim, data))
            return
        if kind == "checkpoint":
            self._checkpoint(int(data["step"]), str(data["path"]))
            return
        if kind == "step":
            self._metrics = {"train_loss": data.get("loss"), **dict(data.get("rewards") or {})}
        if kind in SYNCED:
            self.sync()
        level = "warn" if kind in WARNINGS else "info"
        self._write(lambda: self.store.append_event(self.claim, kind, _message(kind, data), data, level=level))

    def on_ranked(self, group: Group, reward: str, result: RewardResult) -> None:
        self.on_event("ranked", entry(group, reward, result))

    def checkout(self) -> None:
        """Bring the job's files here. It may take long, so heartbeats run meanwhile; errors are met as by sync."""
        for attempt in self._attempts(lambda error: not isinstance(error, DipoleError)):
            with attempt:
                self.control()
                self.artifacts.checkout(self.claim.job_id)

    def sync(self) -> None:
        """Copy files to the store, which knows no fence: the lease is proven right before. Raises LeaseLost.

        What object stores raise depends on their client, so any error but our own is tried again while the lease holds.
        """
        for attempt in self._attempts(lambda error: not isinstance(error, DipoleError)):
            with attempt:
                self._renew()
                self.artifacts.sync(self.claim.job_id, self.workdir)

    # ---- inside -------------------------------------------------------------------------------------------------

    def _checkpoint(self, step: int, path: str) -> None:
        """The files first, the row after: a row promises that its files are there."""
        self.sync()
        relative = str(Path(path).relative_to(self.workdir)) if Path(path).is_absolute() else path
        kept = checkpoint_steps(self.workdir)
        self._write(lambda: self.store.add_checkpoint(self.claim, step, relative, self._metrics, kept=kept))

    def _write(self, call: Callable[[], T]) -> T:
        """Survive a database that restarts; it must be back while the lease holds."""
        for attempt in self._attempts(OperationalError):
            with attempt:
                return call()
        raise AssertionError("stamina either returns or raises")

    def _attempts(self, on: type[Exception] | Callable[[Exception], bool]) -> Iterable[AbstractContextManager[object]]:
        return stamina.retry_context(on=on, timeout=self._lease_s, attempts=None, wait_max=2.0)

    def _renew(self) -> None:
        asked = time.monotonic()
        self._desired = self.store.heartbeat(self.claim, self._lease_s)
        self._beaten = asked

    def _beat(self) -> None:
        while not self._ended.wait(self._lease_s / 4):
            try:
                self._renew()
            except LeaseLost as error:
                self._lost = error
                return
            except SQLAlchemyError as error:
                log.warning("heartbeat_failed", job=self.claim.job_id, error=str(error))
                continue
            self._on_beat()


def _message(kind: str, data: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in data.items()}
    try:
        return MESSAGES.get(kind, kind.replace("_", " ").capitalize()).format_map(shown)
    except (KeyError, ValueError):
        return kind.replace("_", " ").capitalize()
