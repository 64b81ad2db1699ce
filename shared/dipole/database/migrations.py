"""Bring a database's tables to this version's shape, or to an older one's: Alembic's migrations of one folder, under a
lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from dipole.database.engine import Database
from dipole.database.failures import JOBS_DATABASE, DatabaseName, describe_database_error, is_out_of_reach
from dipole.errors import ConfigurationError, InvalidInput

log = structlog.get_logger()

LOOK_AGAIN_S = 2.0
EMPTY = "base"  # Alembic's word for no tables


class Migration(NamedTuple):
    """A revision of the tables, and what it brought."""

    revision: str
    about: str


def upgrade_tables(
    database_url: str, migrations: Path, named: DatabaseName = JOBS_DATABASE, *, wait_s: float = 0.0
) -> None:
    """Run what `migrations` has and the database has not. Safe from several processes at once, and again. A PostgreSQL
    that cannot be reached yet is waited for.

    Raises ConfigurationError where the database is away, or does not let this user in or change its tables.
    """
    database = Database(database_url, named)
    try:
        if not database.is_sqlite():
            _wait_until_reached(database, wait_s)
        with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
            _lock(connection)
            if not database.is_sqlite():
                _create_schema(connection)
            _check_known(connection, list_migrations(migrations), named)
            command.upgrade(alembic_config(connection, migrations), "head")
    except SQLAlchemyError as error:
        shown = database.engine.url.render_as_string()
        raise ConfigurationError(
            f"{named.setting} {shown}: the tables cannot be brought up to date: {describe_database_error(error)}. "
            f"Run `{named.upgrade_command}` where the database answers, as a user who may create and alter its tables"
        ) from error
    finally:
        database.close()


def plan_downgrade(database: Database, migrations: Path, revision: str) -> tuple[str, list[Migration]]:
    """The database's revision, and what a way back to this one undoes, the newest first.

    Raises InvalidInput for a revision that does not exist or is later than the database's, and SQLAlchemyError.
    """
    with database.engine.connect() as connection:
        return _plan_downgrade(connection, migrations, revision, database.named)


def _plan_downgrade(
    connection: Connection, migrations: Path, revision: str, named: DatabaseName
) -> tuple[str, list[Migration]]:
    known = list_migrations(migrations)
    names = [EMPTY, *(each.revision for each in known)]
    if revision not in names:
        listed = "".join(f"\n  {each.revision}: {each.about}" for each in known)
        raise InvalidInput(f"there is no revision {revision}. There are {EMPTY}, which is without tables, and{listed}")
    current = _check_known(connection, known, named) or EMPTY
    if names.index(revision) > names.index(current):
        raise InvalidInput(f"{named.name} is at {current}, before {revision}: `{named.upgrade_command}` goes forward")
    return current, known[names.index(revision) : names.index(current)][::-1]


def downgrade_tables(database: Database, migrations: Path, revision: str) -> None:
    """Undo what `migrations` did after this revision; with EMPTY all of it. Safe from several processes at once.

    Raises as `plan_downgrade` does.
    """
    with database.engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        _lock(connection)
        _plan_downgrade(connection, migrations, revision, database.named)
        command.downgrade(alembic_config(connection, migrations), revision)


def list_migrations(migrations: Path) -> list[Migration]:
    """The oldest first."""
    scripts = ScriptDirectory(str(migrations)).walk_revisions()
    return [Migration(each.revision, each.doc) for each in scripts][::-1]


def read_revision(connection: Connection) -> str | None:
    """Of the tables that are there; None without any."""
    revision: str | None = MigrationContext.configure(connection).get_current_revision()
    return revision


def _check_known(connection: Connection, known: Sequence[Migration], named: DatabaseName) -> str | None:
    """The database's revision. Raises ConfigurationError for one that a newer version made."""
    revision, newest = read_revision(connection), known[-1].revision
    if revision not in (None, *(each.revision for each in known)):
        raise ConfigurationError(
            f"{named.name} is at {revision}, of a newer version than this, whose newest is {newest}: run "
            f"`{named.downgrade_command} {newest}` with the newer version, or restore a backup of this one"
        )
    return revision


def _lock(connection: Connection) -> None:
    """SQLite's transaction holds its lock already."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353131)")


def _wait_until_reached(database: Database, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            with database.engine.connect():
                return
        except SQLAlchemyError as error:
            if not is_out_of_reach(error) or time.monotonic() > until:
                raise
            log.warning("database_waited_for", error=describe_database_error(error))
        time.sleep(LOOK_AGAIN_S)


def _create_schema(connection: Connection) -> None:
    """The schema that a URL chooses (`?options=-csearch_path%3Dratings`), where it is not there yet."""
    if connection.exec_driver_sql("SELECT current_schema()").scalar() is None:
        wanted = str(connection.exec_driver_sql("SHOW search_path").scalar()).partition(",")[0].strip(' "')
        connection.execute(CreateSchema(wanted, if_not_exists=True))


def alembic_config(connection: Connection, migrations: Path) -> Config:
    """What Alembic is told: where the migrations are, and the open transaction that they run in."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
