"""Jobs that `dipole demo` makes, told from others by a note, and those that a killed demo left in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dipole.client.trainer_api import ENDED, TrainerApi, TrainerApiError

NOTE = {"made_by": "dipole demo"}
JOBS = "/v1/fine_tuning/jobs"


def create_demo_job(client: TrainerApi, body: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """The job as the API shows it. Raises TrainerApiError."""
    created: dict[str, Any] = client.create_job({**body, "metadata": NOTE}, files)
    return created


def cancel_left_jobs(client: TrainerApi, tell: Callable[[str], object]) -> None:
    """Cancel and tell of the demo's jobs that have not ended: the platform's worker would train them before a new one.

    For a platform that this demo started, where no other demo's job can be under way. Raises TrainerApiError.
    """
    left = [job["id"] for job in client.iterate_items(JOBS) if job["metadata"] == NOTE and job["status"] not in ENDED]
    for job_id in left:
        try:
            client.post(f"{JOBS}/{job_id}/cancel")
        except TrainerApiError as error:
            if error.http_status != 409:  # it has just ended
                raise
            continue
        tell(f"Cancelled {job_id}, which an earlier demo in this folder had left")
