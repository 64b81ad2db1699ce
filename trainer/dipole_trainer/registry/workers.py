"""Workers that live, and what each can load: published with their heartbeats, looked at when a job is created."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, not_, select

from dipole.database.queries import database_time
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import WorkerRow
from dipole_trainer.weights.inventory import Inventory

# seen further ahead than its lease is long: before the database's clock was set back
_LIVES = and_(WorkerRow.expires_at > now(), WorkerRow.seen_at - now() < WorkerRow.expires_at - WorkerRow.seen_at)


class WorkerRegistry:
    """The rows of workers, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def publish(
        self,
        name: str,
        inventory: Inventory,
        devices: list[dict[str, Any]],
        *,
        lease_s: float,
        trackers: list[str] | None = None,
        version: str | None = None,
    ) -> None:
        """Say that a worker lives for `lease_s` seconds more, what it can load and report to, and Dipole's version. The
        dead go.
        """
        with self.database.writing() as session:
            time = database_time(session)
            row = session.get(WorkerRow, name) or WorkerRow(name=name, started_at=time)
            row.models, row.features, row.devices = dict(inventory.models), inventory.features, devices
            row.decoders, row.trackers, row.version = inventory.decoders, trackers, version
            row.seen_at, row.expires_at = time, time + lease_s
            session.add(row)
            session.execute(delete(WorkerRow).where(not_(_LIVES), WorkerRow.name != name))

    def remove(self, name: str) -> None:
        with self.database.writing() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.name == name))

    def list_live(self) -> Sequence[WorkerRow]:
        with self.database.reading() as session:
            return session.scalars(select(WorkerRow).where(_LIVES).order_by(WorkerRow.started_at, WorkerRow.name)).all()
