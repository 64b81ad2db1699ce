"""The ratings database: `dipole.database` opens it, and its migrations are here."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dipole.database.engine import Database
from dipole.database.failures import DatabaseName
from dipole.database.migrations import upgrade_tables

RATINGS_DATABASE: Final = DatabaseName(
    "the ratings database", "DIPOLE_RATINGS_DATABASE_URL", "dipole db upgrade-ratings"
)
MIGRATIONS: Final = Path(__file__).parent / "migrations"


def open_database(url: str) -> Database:
    """Raises ConfigurationError for a URL that cannot be used."""
    return Database(url, RATINGS_DATABASE)


def upgrade_database(url: str, *, wait_s: float = 0.0) -> None:
    """Bring the tables to this version's shape, once the database is there. Raises ConfigurationError where that cannot
    be done.
    """
    upgrade_tables(url, MIGRATIONS, RATINGS_DATABASE, wait_s=wait_s)
