"""What a run leaves behind, read once everything has settled: SQL, ledger, artifacts, and what clients were told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import CheckpointRow, EventRow, JobRow, RankedGroupRow, RankingRow
from dipole_trainer.storage import job_layout

from .clients import Told
from .schedule import PlannedFault

UNHANDLED = ("request_failed", "rank_crashed", "job_failed", "report_failed")
WEIGHTS = job_layout.adapter_weights_file("unet")


@dataclass(frozen=True)
class Job:
    """A row of `jobs`; `spec_name` and `wanted` are what its client wished, None where no client made it."""

    id: str
    key: str | None
    state: str
    fence: int
    steps: int
    spec_name: str | None = None
    wanted: tuple[str, ...] = ("succeeded",)
    error: str | None = None


@dataclass(frozen=True)
class Event:
    id: int
    job: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    scores: Sequence[float | None]
    failure: str | None = None
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Candidates of one prompt; `name` is the group's id without its job."""

    job: str
    name: str
    step: int
    prompt: str
    seeds: Sequence[int]
    candidates: Sequence[str]
    rankings: Mapping[str, Ranking]


@dataclass(frozen=True)
class Folder:
    """A job's artifacts: SHA-256 of the weights by step, steps of metrics.jsonl as they stand there, unfinished files,
    and files that cannot be read."""

    weights: Mapping[int, str] = field(default_factory=dict)
    logged_steps: Sequence[int] = ()
    unfinished: Sequence[str] = ()
    unreadable: Sequence[str] = ()


@dataclass(frozen=True)
class FaultRecord:
    """A fault as it was done. Times are seconds from the start; `error` is what prevented it, or its end."""

    planned: PlannedFault
    began_s: float
    ended_s: float
    done: str
    error: str | None = None

    @property
    def took_effect(self) -> bool:
        return self.error is None and not self.done.startswith("nothing")


@dataclass(frozen=True)
class Evidence:
    jobs: Sequence[Job]
    events: Sequence[Event]
    checkpoints: Sequence[tuple[str, int]]
    groups: Sequence[Group]
    folders: Mapping[str, Folder]
    told: Told
    references: Mapping[str, str] = field(default_factory=dict)
    """The undisturbed job of each spec's name."""
    faults: Sequence[FaultRecord] = ()
    unhandled: Sequence[str] = ()
    """Lines of the processes' logs that tell of an error which nobody meant to survive."""


def collect_evidence(
    database_url: str,
    artifacts: Path,
    logs: Path,
    told: Told,
    references: Mapping[str, str],
    faults: Sequence[FaultRecord],
) -> Evidence:
    database = Database(database_url)
    try:
        with database.reading() as session:
            jobs = [_to_job(row, told) for row in session.scalars(sa.select(JobRow).order_by(JobRow.seq))]
            events = [
                Event(row.id, row.job_id, row.kind, row.data)
                for row in session.scalars(sa.select(EventRow).order_by(EventRow.id))
            ]
            checkpoints = [(row.job_id, row.step) for row in session.scalars(sa.select(CheckpointRow))]
            rankings: dict[int, dict[str, Ranking]] = {}
            for row in session.scalars(sa.select(RankingRow)):
                ranking = Ranking(row.scores, row.failure, row.errors)
                rankings.setdefault(row.group_seq, {})[row.reward] = ranking
            groups = [
                _to_group(row, rankings.get(row.seq, {}))
                for row in session.scalars(sa.select(RankedGroupRow).order_by(RankedGroupRow.seq))
            ]
    finally:
        database.close()
    folders = {job.id: read_folder(artifacts / job_layout.job_path(job.id)) for job in jobs}
    return Evidence(jobs, events, checkpoints, groups, folders, told, references, faults, find_unhandled(logs))


def find_unhandled(logs: Path) -> list[str]:
    found = []
    for log in sorted(logs.glob("*.log")):
        for line in log.read_text(errors="replace").splitlines():
            if any(f'"event": "{event}"' in line for event in UNHANDLED):
                said = json.loads(line)
                errors = [f"{each['exc_type']}: {each['exc_value']}" for each in said.get("exception") or ()]
                found.append(f"{log.name}: {said['event']}: {' <- '.join(errors)}")
    return found


def _to_job(row: JobRow, told: Told) -> Job:
    name, wanted = told.wishes.get(row.idempotency_key or "", (None, ("succeeded",)))
    error = None if row.error is None else str(row.error.get("message"))
    return Job(row.id, row.idempotency_key, row.state, row.fence, row.steps, name, wanted, error)


def _to_group(row: RankedGroupRow, rankings: Mapping[str, Ranking]) -> Group:
    name = row.group_id.replace(row.job_id, "JOB")
    return Group(row.job_id, name, row.step, row.prompt, row.seeds, row.candidates, rankings)


def read_folder(folder: Path) -> Folder:
    weights: dict[int, str] = {}
    unreadable = []
    for step in job_layout.checkpoint_steps(folder):
        checkpoint = folder / job_layout.checkpoint_name(step)
        try:
            weights[step] = hashlib.sha256((checkpoint / WEIGHTS).read_bytes()).hexdigest()
            json.loads((checkpoint / job_layout.TRAINING_STATE_FILE).read_text())
        except (OSError, ValueError) as error:
            unreadable.append(f"{checkpoint.name}: {error}")
    log = folder / job_layout.METRICS_FILE
    logged: list[int] = []
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            logged.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError) as error:
            unreadable.append(f"{log.name}: {error}: {line[:80]}")
    unfinished = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*")) if folder.exists() else []
    return Folder(weights, logged, unfinished, unreadable)
