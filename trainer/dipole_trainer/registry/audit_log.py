"""The audit log: who asked for which change of the platform, when, and what was answered. Rows are added and, once they
are old, deleted; nothing changes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import delete, select

from dipole.database.queries import database_time, page_of_rows
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import AuditRow

DAY_S = 24 * 3600.0
PRUNED_AT_ONCE = 1000


@dataclass(frozen=True)
class AuditEntry:
    """A request that would change something. `caller` is a key's id, DIPOLE_API_KEY, `loopback` or `anonymous`."""

    caller: str
    caller_name: str
    method: str
    path: str
    job_id: str | None
    request_id: str
    status: int


class AuditLog:
    """The rows of the log, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add_entry(self, entry: AuditEntry) -> None:
        with self.database.writing() as session:
            session.add(AuditRow(**asdict(entry), created_at=database_time(session)))

    def list_entries(
        self, *, after: int | None = None, limit: int = 20, job_id: str | None = None
    ) -> tuple[Sequence[AuditRow], bool]:
        """Newest first; `after` is the number of the last entry already seen, `job_id` chooses one job's."""
        query = select(AuditRow).order_by(AuditRow.seq.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(AuditRow.seq < after)
        if job_id is not None:
            query = query.where(AuditRow.job_id == job_id)
        with self.database.reading() as session:
            return page_of_rows(session.scalars(query).all(), limit)

    def prune(self, *, days: int) -> int:
        """Delete entries that are older; how many. Few at a time, so that nobody waits long for the tables."""
        old = select(AuditRow.seq).where(AuditRow.created_at < now() - days * DAY_S).limit(PRUNED_AT_ONCE)
        total = 0
        while True:
            with self.database.writing() as session:
                gone = session.scalars(delete(AuditRow).where(AuditRow.seq.in_(old)).returning(AuditRow.seq)).all()
            total += len(gone)
            if len(gone) < PRUNED_AT_ONCE:
                return total
