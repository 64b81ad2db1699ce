"""The worker's part in reports: one for each job that it ends, and for those that ended while nobody held them.

A report never decides how a job ends: what goes wrong in writing it is logged, and the job ends as it would have.
"""

from __future__ import annotations

import time
from typing import cast

import structlog
from sqlalchemy.exc import SQLAlchemyError

from dipole.errors import LeaseLost, is_storage_unavailable
from dipole.protocol import job_events
from dipole_trainer.jobs.job_record import EndedStatus, read_job_record
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.storage import job_layout
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.worker.claimed_job import ClaimedJob

log = structlog.get_logger()

UNHELD_LOOK_S = 5.0  # between two looks for jobs that ended without a report
UNHELD_WITHIN_S = 24 * 3600.0  # ended no longer ago


class ReportWriter:
    """One worker's. Draws with what training has loaded, so nothing of it is loaded before the first report."""

    def __init__(self, store: JobStore, artifacts: ArtifactStore) -> None:
        self.store, self.artifacts = store, artifacts
        self._looked_at: set[tuple[str, float]] = set()  # jobs by when they ended: each end once
        self._next_look = 0.0

    def write_ending(self, claimed: ClaimedJob, status: EndedStatus, error: str | None = None) -> None:
        """Write the report of a job that is about to end so, and tell of it. Raises LeaseLost, and what says so where
        there is no room for it: the job waits until there is. One that failed ends without it then.
        """
        claim = claimed.claim
        claimed.check_control()
        try:
            from dipole_trainer.reports.report import write_report

            record = read_job_record(self.store.database, claim.job_id)
            path = write_report(claimed.workdir, claim.spec, record, status=status, error=error)
            if path is not None:
                job_events.ReportWritten(path=job_layout.REPORT_FILE, status=status).report(claimed.store_event)
        except (LeaseLost, SQLAlchemyError):
            raise
        except Exception as error:
            if status != "failed" and is_storage_unavailable(error):
                raise
            _log_failure(error)

    def write_next_unheld(self) -> bool:
        """Write the report of a job that was cancelled or failed while no worker held it; whether there was one."""
        if time.monotonic() < self._next_look:
            return False
        ended = self.store.list_ended_jobs(within_s=UNHELD_WITHIN_S)
        self._looked_at &= set(ended)
        for job_id, finished_at in ended:
            if (job_id, finished_at) in self._looked_at:
                continue
            is_unreported = self.store.lacks_report(job_id)
            self._looked_at.add((job_id, finished_at))
            if is_unreported:
                self._write_unheld(job_id)
                return True
        self._next_look = time.monotonic() + UNHELD_LOOK_S
        return False

    def _write_unheld(self, job_id: str) -> None:
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            try:
                from dipole_trainer.reports.report import write_report

                job, workdir = self.store.get_job(job_id), self.artifacts.job_workdir(job_id)
                self.artifacts.checkout_job(job_id, checkpoints=False)
                status = cast(EndedStatus, job.state)
                record, error = read_job_record(self.store.database, job_id), (job.error or {}).get("message")
                path = write_report(workdir, self.store.load_spec(job_id), record, status=status, error=error)
                if path is None:
                    return
                self.artifacts.sync_job(job_id, workdir)
                told = job_events.ReportWritten(path=job_layout.REPORT_FILE, status=status)
                self.store.record_late_report(job_id, told)
                log.info("late_report_written")
            except SQLAlchemyError:
                raise
            except Exception as error:
                _log_failure(error)


def _log_failure(error: Exception) -> None:
    if is_storage_unavailable(error):
        log.warning("report_not_written", error=f"{type(error).__name__}: {error}")
    else:
        log.exception("report_failed")
