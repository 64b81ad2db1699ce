"""Bring a database's tables to this version's shape: Alembic's migrations of one folder, under a lock."""

from __future__ import annotations

import time
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateSchema

from dipole.database.engine import Database
from dipole.database.failures import JOBS_DATABASE, DatabaseName, describe_database_error, is_out_of_reach
from dipole.errors import ConfigurationError

log = structlog.get_logger()

LOOK_AGAIN_S = 2.0


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
            if not database.is_sqlite():
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7046029254386353131)")
                _create_schema(connection)
            command.upgrade(alembic_config(connection, migrations), "head")
    except SQLAlchemyError as error:
        shown = database.engine.url.render_as_string()
        raise ConfigurationError(
            f"{named.setting} {shown}: the tables cannot be brought up to date: {describe_database_error(error)}. "
            f"Run `{named.upgrade_command}` where the database answers, as a user who may create and alter its tables"
        ) from error
    finally:
        database.close()


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
