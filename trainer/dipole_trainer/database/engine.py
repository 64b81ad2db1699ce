"""The jobs database: `dipole.database` opens it, and its migrations are here."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from dipole.database.engine import Database, now
from dipole.database.migrations import upgrade_tables

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade_database(database_url: str, *, wait_s: float = 0.0) -> None:
    """Bring the tables to this version's shape, once the database is there. Raises ConfigurationError where that cannot
    be done.
    """
    upgrade_tables(database_url, MIGRATIONS, wait_s=wait_s)


__all__ = ["MIGRATIONS", "Database", "Session", "now", "upgrade_database"]
